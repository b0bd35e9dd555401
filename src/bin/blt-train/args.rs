//! The arguments: a stage, then settings by name, from flags and files.

use argh::{EarlyExit, FromArgs};
use blt::cli::bytes::is_binary;
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

fn help() -> String {
    let mut text = String::from(
        "Usage: blt-train entropy|main|bench [--SETTING VALUE ...]\n       \
         blt-train finetune MODEL [--SETTING VALUE ...]\n\n\
         Trains a Byte Latent Transformer on the CPU: first its entropy model (entropy), then everything\n\
         else (main --entropy-model RUN); or continues from any checkpoint (finetune). bench times a few\n\
         steps of main on generated text, beside the CPU's peak.\n\n\
         Options:\n  \
         --config FILE     settings from a .toml or JSON file; flags win\n  \
         --resume          continue the run in --out\n  \
         --new-data        with --resume: the text may be another\n  \
         --overwrite       replace the run in --out\n  \
         --log FILE        log as JSON lines (default: log.jsonl in --out)\n  \
         --plot FILE       write the loss curves as .svg or .html at the end\n  \
         --hf DIR          write the model in the layout of transformers to a new or empty folder too\n  \
         --dequantize      finetune: widen quantised weights instead of refusing them\n  \
         --quiet           no progress\n  \
         --help            this text\n\n\
         Ctrl-C and SIGTERM save the state and exit with code 130 or 143; --resume continues.\n\n\
         Settings, with their defaults:\n",
    );
    for (name, doc, default) in Settings::list() {
        let name = name.replace('_', "-");
        text.push_str(&format!("  --{name:<18} {doc} [{default}]\n"));
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
        while let Some(&arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else {
                match (parsed.stage.as_str(), &parsed.model) {
                    ("", _) if STAGES.contains(&arg) => parsed.stage = arg.into(),
                    ("finetune", None) => parsed.model = Some(arg.into()),
                    ("", _) => {
                        let stages = STAGES.join(", ");
                        return Err(usage(format!("expected one of {stages}, found \"{arg}\"")));
                    }
                    _ => return Err(usage(format!("unexpected argument \"{arg}\""))),
                }
                continue;
            };
            match flag {
                "help" => {
                    return Err(EarlyExit {
                        output: help(),
                        status: Ok(()),
                    });
                }
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
            && ![".svg", ".html"].iter().any(|end| plot.ends_with(end))
        {
            return Err(usage(format!(
                "--plot: expected a name that ends in .svg or .html, found \"{plot}\""
            )));
        }
        if parsed.stage == "finetune" && parsed.model.is_none() {
            return Err(usage("expected a checkpoint to fine-tune".into()));
        }
        Ok(parsed)
    }
}
