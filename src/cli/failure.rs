//! Why a program ends before its work is done.

use crate::output_file::STDOUT;

/// Why a program ends before its work is done.
#[derive(Debug)]
pub enum Failure {
    /// The arguments make no sense: exit code 2.
    Usage(String),
    /// Something went wrong: exit code 1.
    Failed(String),
    /// A signal ended the work early: exit code 128 plus its number. The message may be empty.
    Interrupted(String),
    /// The reader of our standard output closed it: exit code 0, without a message.
    OutputClosed,
}

impl Failure {
    /// A [`Failure::Usage`] from anything that can be printed.
    pub fn usage(what: impl std::fmt::Display) -> Self {
        Failure::Usage(what.to_string())
    }

    /// A [`Failure::Failed`] from anything that can be printed.
    pub fn failed(what: impl std::fmt::Display) -> Self {
        Failure::Failed(what.to_string())
    }

    /// What an error of writing to standard output means.
    pub fn of_output(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Failed(format!("standard output: {error}")),
        }
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::Io { path, source } if path.as_os_str() == STDOUT => {
                Failure::of_output(source)
            }
            // Arguments of the library's calls are those of the command line.
            crate::Error::Argument { .. } => Failure::usage(error),
            crate::Error::Cancelled => {
                Failure::Interrupted("interrupted: nothing has been written".into())
            }
            error => Failure::Failed(error.to_string()),
        }
    }
}
