//! The error type of the engine, and its `Result`.
//!
//! A message names the thing, what was expected and what was found. Anything that a file, a prompt or a
//! caller can cause is an [`Error`]; a panic is a bug.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong because of a file, a prompt or a caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read, map or write a file.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file violates its format (truncated, damaged, hostile or of another kind).
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// A configuration key is missing, of the wrong type or out of range.
    Config {
        /// The key, in the spelling of the file it came from.
        key: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A tensor is missing or has the wrong shape or type.
    Tensor {
        /// The tensor's name in the file it came from.
        name: String,
        /// What was expected and what was found.
        what: String,
    },
    /// The model computed a value that is not finite: its weights are damaged.
    NonFinite {
        /// The result: `"entropy"` or `"logits"`.
        what: &'static str,
        /// Position of the byte from the start of the session, BOS included.
        position: usize,
    },
    /// The text does not fit into the context of the model or the session.
    ContextFull {
        /// `"bytes"` or `"patches"`.
        unit: &'static str,
        /// The limit, in that unit.
        limit: usize,
        /// The number needed.
        needed: usize,
    },
    /// An argument of a call is out of range.
    Argument {
        /// The argument.
        name: &'static str,
        /// What was expected and what was found.
        what: String,
    },
    /// The system gives no more memory; the call has no effect.
    Memory {
        /// Bytes that the call needs at most.
        needed: usize,
    },
    /// The requested GPU is missing, cannot run the kernels, is out of memory or was lost.
    Device(String),
    /// The file is valid but needs something that this engine does not support.
    Unsupported(String),
    /// A [`Canceller`](crate::Canceller) stopped the call.
    Cancelled,
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io {
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// An [`Error::Format`] for `path`.
    pub fn format(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Format {
            path: path.as_ref().to_path_buf(),
            what: what.into(),
        }
    }

    /// An [`Error::Config`] for `key`.
    pub fn config(key: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Config {
            key: key.into(),
            what: what.into(),
        }
    }

    /// The error with the file named in which a configuration is wrong; others as they are.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            Error::Config { key, what } => Error::Config {
                key,
                what: format!("{what} in {}", path.display()),
            },
            Error::Unsupported(what) => Error::Unsupported(format!("{what} in {}", path.display())),
            error => error,
        }
    }

    /// An [`Error::Tensor`] for `name`.
    pub fn tensor(name: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Tensor {
            name: name.into(),
            what: what.into(),
        }
    }

    /// An [`Error::Argument`] for `name`.
    pub fn argument(name: &'static str, what: impl Into<String>) -> Self {
        Error::Argument {
            name,
            what: what.into(),
        }
    }
}

/// Writes control characters, and those that change the direction of text, as escapes: paths, names of tensors and keys come
/// from files, and our messages must not be able to drive a terminal.
struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_hostile = |c: char| {
            c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        for part in text.split_inclusive(is_hostile) {
            match part.chars().next_back().filter(|&c| is_hostile(c)) {
                None => self.0.write_str(part)?,
                Some(c) => {
                    self.0.write_str(&part[..part.len() - c.len_utf8()])?;
                    write!(self.0, "{}", c.escape_default())?;
                }
            }
        }
        Ok(())
    }
}

/// Most characters of a message: names and values come from files. The middle of a longer one is left out.
const MAX_MESSAGE: usize = 1000;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut message = String::new();
        self.write(&mut message)?;
        let f = &mut Escaped(f);
        let n = message.chars().count();
        if n <= MAX_MESSAGE {
            return f.write_str(&message);
        }
        let byte_at = |char: usize| message.char_indices().nth(char).map_or(0, |(at, _)| at);
        let (start, end) = (byte_at(MAX_MESSAGE / 2), byte_at(n - MAX_MESSAGE / 2));
        write!(f, "{} ... {}", &message[..start], &message[end..])
    }
}

impl Error {
    fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Format { path, what } => write!(f, "{}: {what}", path.display()),
            Error::Config { key, what } => write!(f, "configuration key \"{key}\": {what}"),
            Error::Tensor { name, what } => write!(f, "tensor \"{name}\": {what}"),
            Error::NonFinite { what, position } => write!(
                f,
                "{what} at position {position}: expected finite numbers, found NaN or infinity; \
                 the model's weights are damaged; blt-info --check names the tensor"
            ),
            Error::ContextFull {
                unit,
                limit,
                needed,
            } => write!(
                f,
                "context: expected at most {limit} {unit}, found {needed}; shorten the text, \
                 raise the limit or use a sliding context"
            ),
            Error::Argument { name, what } => write!(f, "{name}: {what}"),
            Error::Memory { needed } => write!(
                f,
                "memory: expected up to {} MB more for this call, found less; the call has no effect",
                needed.div_ceil(1_000_000)
            ),
            Error::Device(what) | Error::Unsupported(what) => write!(f, "{what}"),
            Error::Cancelled => write!(f, "cancelled by the caller; this call has no effect"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_drive_a_terminal() {
        let name = "a\x1b[2J\r\u{9b}b\u{202e}\n";
        let escaped = r"a\u{1b}[2J\r\u{9b}b\u{202e}\n";
        let errors = [
            Error::tensor(name, "x"),
            Error::config(name, "x"),
            Error::format(name, "x"),
            Error::format("p", name),
            Error::io(name, std::io::ErrorKind::NotFound.into()),
            Error::Unsupported(name.into()),
        ];
        for error in errors {
            let message = error.to_string();
            assert!(message.contains(escaped), "{message:?}");
            assert!(!message.contains(char::is_control), "{message:?}");
        }
        assert_eq!(Error::argument("é", "ok").to_string(), "é: ok");
    }

    #[test]
    fn long_names_are_shortened_in_the_middle() {
        let long = "é".repeat(5000);
        let message =
            Error::config(&long, format!("expected 1, found {long} in a.json")).to_string();
        assert_eq!(message.chars().count(), MAX_MESSAGE + 5);
        assert!(message.starts_with("configuration key \"é") && message.ends_with("é in a.json"));
    }
}
