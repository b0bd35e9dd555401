//! The words of a command line before argh reads them: forms that argh does not know, help and version, near names.
//!
//! `--flag=value` and `-n5` become two words. An unknown flag is an error that suggests the nearest known one.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};

use super::failure::Failure;

/// Arguments of the library that have another name as flags.
const ALIASES: [(&str, &str); 3] = [
    ("max_bytes", "context"),
    ("shape", "synthetic"),
    ("temperature", "temp"),
];

/// Flags of earlier versions that no longer have an effect.
const REMOVED: [&str; 1] = ["--cublaslt"];

/// What a command line asks for.
#[derive(Debug, PartialEq)]
pub enum Words {
    /// To run, with these words.
    Run(Vec<String>),
    /// To print the help.
    Help,
    /// To print the version.
    Version,
}

/// Reads the words of a command line.
///
/// # Errors
/// [`Failure::Usage`] for unknown flags and values that are missing or too many.
pub fn read(
    program: &str,
    info: &CommandInfoWithArgs,
    args: Vec<String>,
) -> Result<Words, Failure> {
    let (mut words, mut positionals) = (Vec::new(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            positionals.extend(args);
            break;
        }
        match arg.as_str() {
            "-h" | "--help" => return Ok(Words::Help),
            "-V" | "--version" => return Ok(Words::Version),
            _ => {}
        }
        let (flag, value) = split(info, &arg);
        let Some(known) = find(info, &flag) else {
            if REMOVED.contains(&flag.as_str()) {
                crate::errln!(
                    "{program}: {flag} is ignored: it was removed, and blt's own kernels are used"
                );
                continue;
            }
            if looks_like_flag(&flag) {
                return Err(unknown(info, &flag));
            }
            // argh takes a positional that begins with a dash, such as -, only after --.
            positionals.push(arg);
            continue;
        };
        let takes_value = matches!(known.kind, FlagInfoKind::Option { .. });
        let value = match (takes_value, value) {
            (false, Some(value)) => {
                return Err(Failure::Usage(format!(
                    "{flag}: expected no value, found \"{value}\""
                )));
            }
            (true, None) => Some(args.next().ok_or_else(|| {
                Failure::Usage(format!("{flag}: expected a value after it, found none"))
            })?),
            (_, value) => value,
        };
        words.push(flag);
        words.extend(value);
    }
    if positionals
        .iter()
        .any(|word: &String| word.starts_with('-'))
    {
        words.push("--".into());
    }
    words.extend(positionals);
    Ok(Words::Run(words))
}

/// The flag of that name, as typed.
pub fn find(info: &CommandInfoWithArgs, name: &str) -> Option<&'static FlagInfo<'static>> {
    let is_short = |short: char| name.strip_prefix('-') == Some(short.encode_utf8(&mut [0; 4]));
    let named = |flag: &&FlagInfo<'_>| flag.long == name || flag.short.is_some_and(is_short);
    info.flags.iter().find(named)
}

/// `--flag=value` and `-n5` in their parts.
fn split(info: &CommandInfoWithArgs, arg: &str) -> (String, Option<String>) {
    if arg.starts_with("--") {
        return match arg.split_once('=') {
            Some((flag, value)) => (flag.into(), Some(value.into())),
            None => (arg.into(), None),
        };
    }
    let mut rest = arg.chars();
    if rest.next() == Some('-')
        && let Some(short) = rest.next()
        && !rest.as_str().is_empty()
    {
        let flag = format!("-{short}");
        if find(info, &flag).is_some() {
            return (flag, Some(rest.as_str().into()));
        }
    }
    (arg.into(), None)
}

/// Whether a word is meant as a flag: neither `-`, which is a stream, nor a number.
fn looks_like_flag(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-') && word.parse::<f64>().is_err()
}

fn unknown(info: &CommandInfoWithArgs, flag: &str) -> Failure {
    let nearest = (info.flags.iter())
        .map(|known| known.long)
        .chain(["--help", "--version"])
        .map(|known| (distance(flag, known), known))
        .min();
    // More than a third of the letters is another word.
    match nearest.filter(|(n, known)| 3 * n <= known.len()) {
        Some((_, near)) => Failure::Usage(format!("{flag}: unknown flag; did you mean {near}?")),
        None => Failure::Usage(format!("{flag}: unknown flag")),
    }
}

/// Letters to insert, remove or replace to make one word of another; 1 for a word that begins the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > 4 && b.starts_with(&a) {
        return 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A message about an argument of the library with the flag in its place, as it was typed: `top_p: ...` becomes
/// `--top-p: ...`.
pub fn with_flag(info: &CommandInfoWithArgs, words: &[String], message: &str) -> String {
    let Some((name, rest)) = message.split_once(": ") else {
        return message.into();
    };
    let alias = ALIASES.iter().find(|(argument, _)| *argument == name);
    let long = alias.map_or(name, |(_, flag)| flag).replace('_', "-");
    let Some(flag) = info.flags.iter().find(|flag| flag.long[2..] == long) else {
        return message.into();
    };
    let short = flag.short.map(|short| format!("-{short}"));
    let typed = short.filter(|short| words.contains(short));
    format!("{}: {rest}", typed.as_deref().unwrap_or(flag.long))
}

#[cfg(test)]
mod tests {
    use super::*;
    use argh::ArgsInfo;

    /// A program.
    #[derive(argh::FromArgs, argh::ArgsInfo)]
    #[allow(dead_code)]
    struct Args {
        /// a number
        #[argh(option, short = 'n')]
        number: Option<usize>,
        /// a share
        #[argh(option)]
        top_p: Option<f32>,
        /// a temperature
        #[argh(option)]
        temp: Option<f32>,
        /// say nothing
        #[argh(switch)]
        quiet: bool,
        /// a file
        #[argh(positional)]
        file: Option<String>,
    }

    fn words(args: &[&str]) -> Result<Words, String> {
        let args = args.iter().map(|&arg| arg.into()).collect();
        read("x", &Args::get_args_info(), args).map_err(|failure| match failure {
            Failure::Usage(message) => message,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn forms_that_others_take_are_taken() {
        let run = |args: &[&str], expected: &[&str]| {
            let expected = expected.iter().map(|&word| word.into()).collect();
            assert_eq!(words(args), Ok(Words::Run(expected)), "{args:?}");
        };
        run(&["-n5", "x"], &["-n", "5", "x"]);
        run(&["--number=5"], &["--number", "5"]);
        run(&["--number=a=b"], &["--number", "a=b"]);
        run(&["--number="], &["--number", ""]);
        run(&["-n", "--help"], &["-n", "--help"]);
        run(&["-", "-n", "-5"], &["-n", "-5", "--", "-"]);
        run(&["x", "--quiet"], &["--quiet", "x"]);
        run(&["--", "-x", "--help"], &["--", "-x", "--help"]);
        run(&["--", "x"], &["x"]);
        run(&["--cublaslt", "x"], &["x"]);
        assert_eq!(words(&["x", "-h"]), Ok(Words::Help));
        assert_eq!(words(&["--quiet", "-V"]), Ok(Words::Version));
    }

    #[test]
    fn messages_name_the_flag_and_the_nearest() {
        for (args, expected) in [
            (
                &["--numbr", "5"][..],
                "--numbr: unknown flag; did you mean --number?",
            ),
            (&["--num=5"], "--num: unknown flag; did you mean --number?"),
            (&["--nothing-near"], "--nothing-near: unknown flag"),
            (&["-x"], "-x: unknown flag"),
            (&["--quiet=1"], "--quiet: expected no value, found \"1\""),
            (&["x", "-n"], "-n: expected a value after it, found none"),
        ] {
            assert_eq!(words(args), Err(expected.into()), "{args:?}");
        }
        let info = Args::get_args_info();
        let named = |message| with_flag(&info, &["-n".into(), "5".into()], message);
        assert_eq!(named("top_p: too much"), "--top-p: too much");
        assert_eq!(named("number: too much"), "-n: too much");
        assert_eq!(named("temperature: too much"), "--temp: too much");
        assert_eq!(named("x: too much"), "x: too much");
    }
}
