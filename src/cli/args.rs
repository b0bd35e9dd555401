//! From arguments to exit code: what every program does around its own work.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 128 and the signal's number for work that a signal has cut short (130
//! for Ctrl-C, 143 for SIGTERM). An error is one line on standard error that begins with the program's name. A reader
//! that closes our standard output (`| head`) has seen enough, which is not a failure.

use std::io::Write;
use std::process::ExitCode;

use argh::FromArgs;

use super::bytes;
pub use super::failure::Failure;
use super::interrupt;
use super::terminal::harmless;

/// Parses the arguments, runs the program and reports how it ended.
pub fn main<T: FromArgs>(program: &str, run: impl FnOnce(T) -> Result<(), Failure>) -> ExitCode {
    crate::tensor::exit_if_lost(program);
    let failure = match parse(program) {
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
        Failure::Usage(message) => (2, format!("{message} (see {program} --help)")),
    };
    crate::errln!("{program}: {}", one_line(&message));
    ExitCode::from(code)
}

enum Parsed<T> {
    Run(T),
    Print(String),
}

fn parse<T: FromArgs>(program: &str) -> Result<Parsed<T>, Failure> {
    let args: Vec<String> = std::env::args_os().skip(1).map(bytes::encode).collect();
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    if args == ["--version"] {
        let version = env!("CARGO_PKG_VERSION");
        return Ok(Parsed::Print(format!("{program} {version}\n")));
    }
    loop {
        let exit = match T::from_args(&[program], &args) {
            Ok(args) => return Ok(Parsed::Run(args)),
            Err(exit) if exit.status.is_ok() => return Ok(Parsed::Print(exit.output)),
            Err(exit) => exit,
        };
        let Some(index) = removed_flag(&exit.output, &args) else {
            return Err(Failure::Usage(with_hint(lower_first(&exit.output), &args)));
        };
        let flag = args.remove(index);
        crate::errln!(
            "{program}: {flag} is ignored: it was removed, and blt's own kernels are used"
        );
    }
}

/// Flags of earlier versions that no longer have an effect.
const REMOVED: [&str; 1] = ["--cublaslt"];

/// The index of the argument that the parser refused with `message`, if it is a removed flag.
fn removed_flag(message: &str, args: &[&str]) -> Option<usize> {
    let flag = (REMOVED.iter()).find(|flag| message.trim_end().ends_with(**flag))?;
    args.iter().rposition(|arg| arg == flag)
}

/// The parser takes `--name value` only; most others take `--name=value` too.
fn with_hint(message: String, args: &[&str]) -> String {
    let unknown = (args.iter()).find(|a| a.starts_with("--") && message.trim_end().ends_with(**a));
    match unknown.and_then(|a| a.split_once('=')) {
        Some((name, value)) => format!("{}; write {name} {value}", message.trim_end()),
        None => message,
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
