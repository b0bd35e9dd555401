//! The arguments: a stage, then settings by name, from flags and files.

use std::sync::LazyLock;

use argh::{
    ArgsInfo, CommandInfoWithArgs, EarlyExit, ErrorCodeInfo, FlagInfo, FlagInfoKind, FromArgs,
    Optionality, PositionalInfo,
};
use blt::cli::bytes::is_binary;
use blt::output_file::STDOUT;
use blt::train::settings::Settings;

/// The work to do.
#[derive(Debug)]
pub struct Args {
    pub stage: String,
    /// The checkpoint to fine-tune.
    pub model: Option<String>,
    /// Continue the run in `--out`.
    pub resume: bool,
    /// Replace the run in `--out`.
    pub overwrite: bool,
    /// Continue with another text.
    pub new_data: bool,
    /// Widen quantised weights rather than refuse them.
    pub dequantize: bool,
    /// Write the model in the layout of transformers to this folder too.
    pub hf: Option<String>,
    /// Write the loss curves to this file.
    pub plot: Option<String>,
    /// Log to this file instead of `log.jsonl` in the folder of the run.
    pub log: Option<String>,
    pub quiet: bool,
    /// What was set, in order; [`Settings`] names.
    pub set: Vec<(String, String)>,
    /// Files with settings.
    pub config: Vec<String>,
}

const STAGES: [&str; 4] = ["entropy", "main", "finetune", "bench"];

/// Flags that are no settings, with the name of their value if they have one.
const FLAGS: [(&str, Option<&str>, &str); 9] = [
    (
        "--config",
        Some("file"),
        "settings from a .toml or JSON file; flags win",
    ),
    ("--resume", None, "continue the run in --out"),
    ("--new-data", None, "with --resume: the text may be another"),
    ("--overwrite", None, "replace the run in --out"),
    (
        "--log",
        Some("file"),
        "log as JSON lines, - for standard output (default: log.jsonl in --out)",
    ),
    (
        "--plot",
        Some("file"),
        "write the loss curves as .svg or .html at the end; - is standard output, as .svg",
    ),
    (
        "--hf",
        Some("folder"),
        "write the model in the layout of transformers to a new or empty folder too",
    ),
    (
        "--dequantize",
        None,
        "finetune: widen quantised weights instead of refusing them",
    ),
    ("--quiet", None, "show no progress"),
];

impl ArgsInfo for Args {
    fn get_args_info() -> CommandInfoWithArgs {
        static ALL: LazyLock<Vec<FlagInfo<'static>>> = LazyLock::new(|| {
            let flag = |long, value: Option<&'static str>, description| FlagInfo {
                kind: match value {
                    None => FlagInfoKind::Switch,
                    Some(arg_name) => FlagInfoKind::Option { arg_name },
                },
                optionality: Optionality::Optional,
                long,
                short: (long == "--threads").then_some('t'),
                description,
                hidden: false,
            };
            // Made once and kept for as long as the program runs.
            let kept = |text: String| -> &'static str { text.leak() };
            let own = FLAGS.map(|(long, value, description)| flag(long, value, description));
            let settings = Settings::list().into_iter().map(|(name, doc, default)| {
                let long = kept(format!("--{}", name.replace('_', "-")));
                flag(long, Some("value"), kept(description(&doc, &default)))
            });
            own.into_iter().chain(settings).collect()
        });
        CommandInfoWithArgs {
            name: "blt-train",
            description: "Train a Byte Latent Transformer on the CPU: first its entropy model (entropy), then \
                          everything else (main --entropy-model RUN); or continue from any checkpoint (finetune). \
                          bench times a few steps of main on generated text, beside the CPU's peak.",
            examples: &[
                "blt-train entropy --data texts --out entropy",
                "blt-train main --data texts --entropy-model entropy --out model",
                "blt-train finetune MODEL --data texts --out tuned",
            ],
            flags: &ALL,
            notes: &["Ctrl-C and SIGTERM save the state of the run; --resume continues it."],
            positionals: &[
                PositionalInfo {
                    name: "STAGE",
                    description: "entropy, main, finetune or bench",
                    optionality: Optionality::Required,
                    hidden: false,
                },
                PositionalInfo {
                    name: "MODEL",
                    description: "the checkpoint to fine-tune",
                    optionality: Optionality::Optional,
                    hidden: false,
                },
            ],
            error_codes: &[
                ErrorCodeInfo {
                    code: 1,
                    description: "Failed; standard error says why.",
                },
                ErrorCodeInfo {
                    code: 2,
                    description: "Wrong usage.",
                },
                ErrorCodeInfo {
                    code: 130,
                    description: "Ended by Ctrl-C; 143 by SIGTERM.",
                },
            ],
            ..CommandInfoWithArgs::default()
        }
    }
}

/// The doc comment of a setting in the form of the other programs' flags.
fn description(doc: &str, default: &str) -> String {
    let first = doc.split(' ').next().unwrap_or_default();
    let mut text = String::from(doc.trim_end_matches('.'));
    // Not names such as AdamW.
    if first.matches(char::is_uppercase).count() == 1 {
        text[..1].make_ascii_lowercase();
    }
    if !default.is_empty() {
        text.push_str(&format!(" (default: {default})"));
    }
    text
}

fn usage(text: String) -> EarlyExit {
    EarlyExit {
        output: text,
        status: Err(()),
    }
}

impl FromArgs for Args {
    fn from_args(_: &[&str], args: &[&str]) -> Result<Self, EarlyExit> {
        let mut parsed = Args {
            stage: String::new(),
            model: None,
            resume: false,
            overwrite: false,
            new_data: false,
            dequantize: false,
            hf: None,
            plot: None,
            log: None,
            quiet: false,
            set: Vec::new(),
            config: Vec::new(),
        };
        if let Some(arg) = args.iter().find(|arg| is_binary(arg)) {
            return Err(usage(format!("argument \"{arg}\": expected UTF-8")));
        }
        let mut args = args.iter();
        let mut is_flag = true;
        let mut seen = Vec::new();
        while let Some(&arg) = args.next() {
            if arg == "--" {
                is_flag = false;
                continue;
            }
            let flag = if arg == "-t" { "--threads" } else { arg };
            let Some(flag) = flag.strip_prefix("--").filter(|_| is_flag) else {
                match (parsed.stage.as_str(), &parsed.model) {
                    ("", _) if STAGES.contains(&arg) => parsed.stage = arg.into(),
                    ("finetune", None) => parsed.model = Some(arg.into()),
                    ("", _) => {
                        let stages = STAGES.join(", ");
                        return Err(usage(format!("expected one of {stages}, found \"{arg}\"")));
                    }
                    _ => {
                        let message = format!("expected no further argument, found \"{arg}\"");
                        return Err(usage(message));
                    }
                }
                continue;
            };
            if flag != "config" && seen.contains(&flag) {
                let message = "expected once, found twice; a list has commas between its parts";
                return Err(usage(format!("{arg}: {message}")));
            }
            seen.push(flag);
            match flag {
                "resume" => parsed.resume = true,
                "overwrite" => parsed.overwrite = true,
                "new-data" => parsed.new_data = true,
                "dequantize" => parsed.dequantize = true,
                "quiet" => parsed.quiet = true,
                _ => {
                    let Some(value) = args.next() else {
                        return Err(usage(format!("expected a value after --{flag}")));
                    };
                    let value = value.to_string();
                    match flag {
                        "hf" => parsed.hf = Some(value),
                        "plot" => parsed.plot = Some(value),
                        "log" => parsed.log = Some(value),
                        "config" => parsed.config.push(value),
                        _ => parsed.set.push((flag.into(), value)),
                    }
                }
            }
        }
        if parsed.stage.is_empty() {
            return Err(usage(format!("expected one of {}", STAGES.join(", "))));
        }
        if parsed.resume && parsed.overwrite {
            return Err(usage(
                "expected one of --resume and --overwrite, found both".into(),
            ));
        }
        if parsed.new_data && !parsed.resume {
            return Err(usage("--new-data: expected --resume with it".into()));
        }
        if let Some(plot) = &parsed.plot
            && plot != STDOUT
            && ![".svg", ".html"].iter().any(|end| plot.ends_with(end))
        {
            return Err(usage(format!(
                "--plot: expected a name that ends in .svg or .html, or -, found \"{plot}\""
            )));
        }
        if parsed.stage == "finetune" && parsed.model.is_none() {
            return Err(usage("expected a checkpoint to fine-tune".into()));
        }
        Ok(parsed)
    }
}
