//! The text of `--help`, from what argh knows of a program's arguments.

use std::fmt::Write;

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};

/// Columns of a terminal.
const WIDTH: usize = 100;
/// Columns before the description of a flag.
const INDENT: usize = 28;

/// Groups of flags, by long name. A flag in none of them is the program's own; of several the first counts.
type Groups = [(&'static str, &'static [&'static str])];

const GROUPS: &Groups = &[
    (
        "Model",
        &[
            "config",
            "entropy-model",
            "tokenizer",
            "load",
            "verify",
            "patching",
            "patch-size",
            "patch-length",
            "max-patch-length",
            "threshold",
            "entropy-reset",
        ],
    ),
    (
        "Sampling",
        &[
            "temp",
            "top-k",
            "top-p",
            "min-p",
            "repeat-penalty",
            "seed",
            "ignore-eos",
        ],
    ),
    (
        "Machine",
        &["threads", "profile", "kv", "device", "isa", "tables"],
    ),
    (
        "Output",
        &[
            "per-byte",
            "html",
            "dump",
            "hf",
            "plot",
            "log",
            "log-every",
            "echo",
            "show-patches",
            "json",
            "csv",
            "verbose",
            "quiet",
        ],
    ),
];

/// What `blt-train` has before those.
const OF_TRAINING: &Groups = &[
    (
        "Run",
        &[
            "config",
            "out",
            "resume",
            "new-data",
            "overwrite",
            "seed",
            "steps",
            "valid-every",
            "valid-bytes",
            "save-every",
            "patience",
            "keep",
            "dtype",
        ],
    ),
    (
        "Data",
        &["data", "valid", "valid-share", "separator", "text-key"],
    ),
    (
        "Optimiser",
        &[
            "batch",
            "accumulate",
            "seq-len",
            "lr",
            "lr-floor",
            "warmup",
            "decay",
            "cooldown",
            "beta1",
            "beta2",
            "adam-eps",
            "weight-decay",
            "clip",
            "dropout",
            "hash-dropout",
            "precision",
            "shards",
        ],
    ),
    (
        "Fine-tuning",
        &["dequantize", "lora-rank", "lora-alpha", "lora-targets"],
    ),
    (
        "Sizes",
        &[
            "preset",
            "tied",
            "local-dim",
            "local-heads",
            "local-hidden",
            "local-window",
            "encoder-layers",
            "decoder-layers",
            "global-dim",
            "global-heads",
            "global-hidden",
            "global-layers",
            "cross-k",
            "hash-vocab",
            "hash-sizes",
            "hash-functions",
            "entropy-dim",
            "entropy-heads",
            "entropy-layers",
            "entropy-window",
            "diff-attention",
            "diff-norm",
        ],
    ),
];

/// The help of a program.
pub fn text(program: &str, info: &CommandInfoWithArgs) -> String {
    let mut out = String::new();
    wrap(&mut out, info.description, 0, 0);
    let _ = write!(out, "\nUsage: {program} [OPTIONS]");
    for positional in info.positionals {
        let _ = match positional.optionality {
            Optionality::Required => write!(out, " {}", positional.name),
            _ => write!(out, " [{}]", positional.name),
        };
    }
    out.push('\n');
    if !info.positionals.is_empty() {
        out.push('\n');
    }
    for positional in info.positionals {
        entry(&mut out, positional.name, positional.description);
    }
    let groups = match program {
        "blt-train" => [OF_TRAINING, GROUPS].concat(),
        _ => GROUPS.to_vec(),
    };
    // Where a flag is: in which group, and its place there.
    let place = |flag: &FlagInfo<'_>| {
        groups.iter().enumerate().find_map(|(i, (_, names))| {
            let place = names.iter().position(|name| flag.long[2..] == **name);
            place.map(|place| (i, place))
        })
    };
    let is_shown = |flag: &&FlagInfo<'_>| !flag.hidden && flag.long != "--help";
    let mut flags: Vec<_> = info.flags.iter().filter(is_shown).collect();
    flags.sort_by_key(|flag| place(flag));
    for part in flags.chunk_by(|a, b| place(a).map(|p| p.0) == place(b).map(|p| p.0)) {
        let title = place(part[0]).map_or("Options", |(i, _)| groups[i].0);
        group(&mut out, title, part);
    }
    out.push_str("\nHelp:\n");
    entry(&mut out, "-h, --help", "print this text");
    entry(&mut out, "-V, --version", "print the version");
    if !info.examples.is_empty() {
        out.push_str("\nExamples:\n");
    }
    for example in info.examples {
        let _ = writeln!(out, "  {example}");
    }
    for note in info.notes.iter().flat_map(|note| note.lines()) {
        out.push('\n');
        wrap(&mut out, note, 0, 0);
    }
    if !info.error_codes.is_empty() {
        out.push_str("\nExit codes:\n");
        entry(&mut out, "0", "Done.");
    }
    for code in info.error_codes {
        entry(&mut out, &code.code.to_string(), code.description);
    }
    out
}

fn group(out: &mut String, title: &str, flags: &[&FlagInfo<'_>]) {
    let _ = writeln!(out, "\n{title}:");
    for flag in flags {
        let short = match flag.short {
            Some(short) => format!("-{short}, "),
            None => "    ".into(),
        };
        let value = match flag.kind {
            FlagInfoKind::Switch => String::new(),
            FlagInfoKind::Option { arg_name } => format!(" <{arg_name}>"),
        };
        entry(
            out,
            &format!("{short}{}{value}", flag.long),
            flag.description,
        );
    }
}

/// A name, and what it is beside it or below.
fn entry(out: &mut String, name: &str, description: &str) {
    let _ = write!(out, "  {name}");
    let column = 2 + name.chars().count();
    let column = match column + 2 > INDENT {
        true => {
            out.push('\n');
            0
        }
        false => column,
    };
    out.extend(std::iter::repeat_n(' ', INDENT - column));
    wrap(out, description, INDENT, INDENT);
}

/// Appends words, from a column on, in lines that begin at another.
fn wrap(out: &mut String, text: &str, mut column: usize, indent: usize) {
    for (i, word) in text.split_whitespace().enumerate() {
        let length = word.chars().count();
        if i > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}
