//! From arguments to exit code: what every program does around its own work.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 128 and the signal's number for work that a signal has cut short (130
//! for Ctrl-C, 143 for SIGTERM). An error is one line on standard error that begins with the program's name. A reader
//! that closes our standard output (`| head`) has seen enough, which is not a failure.

use std::io::Write;
use std::process::ExitCode;

use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};

use super::bytes;
pub use super::failure::Failure;
use super::terminal::harmless;
use super::words::{self, Words};
use super::{help, interrupt};

/// Parses the arguments, runs the program and reports how it ended.
pub fn main<T: FromArgs + ArgsInfo>(
    program: &str,
    run: impl FnOnce(T) -> Result<(), Failure>,
) -> ExitCode {
    crate::tensor::exit_if_lost(program);
    let info = T::get_args_info();
    let mut words = Vec::new();
    let failure = match parse(program, &info, &mut words) {
        Ok(Parsed::Run(args)) => match run(args) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => failure,
        },
        Ok(Parsed::Print(text)) => {
            // A reader that closes the pipe before the end of the help is not a failure either.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(failure) => failure,
    };
    // Work that fails after a signal has usually failed because of it.
    let signal = interrupt::signal().map_or(1, |signal| 128 + signal);
    let (code, message) = match failure {
        Failure::OutputClosed => return ExitCode::SUCCESS,
        Failure::Interrupted(message) if message.is_empty() => return ExitCode::from(signal),
        Failure::Failed(message) | Failure::Interrupted(message) => (signal, message),
        Failure::Usage(message) => {
            let message = words::with_flag(&info, &words, &message);
            (2, format!("{message} (see {program} --help)"))
        }
    };
    crate::errln!("{program}: {}", one_line(&message));
    ExitCode::from(code)
}

enum Parsed<T> {
    Run(T),
    Print(String),
}

fn parse<T: FromArgs>(
    program: &str,
    info: &CommandInfoWithArgs,
    words: &mut Vec<String>,
) -> Result<Parsed<T>, Failure> {
    let args = std::env::args_os().skip(1).map(bytes::encode).collect();
    match words::read(program, info, args)? {
        Words::Run(read) => *words = read,
        Words::Help => return Ok(Parsed::Print(help::text(program, info))),
        Words::Version => {
            let version = env!("CARGO_PKG_VERSION");
            return Ok(Parsed::Print(format!("{program} {version}\n")));
        }
    }
    let args: Vec<&str> = words.iter().map(String::as_str).collect();
    match T::from_args(&[program], &args) {
        Ok(args) => Ok(Parsed::Run(args)),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Print(exit.output)),
        Err(exit) => Err(Failure::Usage(reworded(exit.output.trim_end()))),
    }
}

/// Rewords a message of argh: the flag as typed, what was expected, what was found.
fn reworded(message: &str) -> String {
    let value = message.strip_prefix("Error parsing option '");
    let value = value.and_then(|rest| rest.split_once("' with value '"));
    let parts = value.and_then(|(flag, rest)| Some((flag, rest.split_once("': ")?)));
    if let Some((flag, (value, reason))) = parts {
        let name = flag.trim_start_matches('-');
        let reason = match reason.trim_end() {
            "invalid digit found in string" | "cannot parse integer from empty string" => {
                "expected a whole number"
            }
            "number too large to fit in target type" => "expected a smaller number",
            "invalid float literal" | "cannot parse float from empty string" => "expected a number",
            "duplicate values provided" => return format!("{flag}: expected once, found twice"),
            other => (other.strip_prefix(name)).map_or(other, |rest| rest.trim_start_matches(": ")),
        };
        return match reason.contains("found") {
            true => format!("{flag}: {reason}"),
            false => format!("{flag}: {reason}, found \"{value}\""),
        };
    }
    match message.strip_prefix("Unrecognized argument: ") {
        Some(word) => format!("expected no further argument, found \"{word}\""),
        None => lower_first(message),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = |c: char| match bytes::is_binary(c.encode_utf8(&mut [0; 4])) {
        true => char::REPLACEMENT_CHARACTER,
        false => harmless(c),
    };
    line.chars().map(shown).collect()
}
