//! Code that the programs share, those of other packages included. Nothing here knows what a program does. This is not
//! part of the library's interface and changes without notice.

/// Prints a line to standard error. Unlike `eprintln`, it does not panic if nobody reads it.
#[macro_export]
#[doc(hidden)]
macro_rules! errln {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

/// Prints to standard error as [`errln`] does, without ending the line.
#[macro_export]
#[doc(hidden)]
macro_rules! err {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($part)*);
    }};
}

pub mod args;
pub mod bytes;
mod failure;
mod help;
pub mod interrupt;
pub mod memory;
pub mod model;
pub mod output;
pub mod progress;
pub mod synthetic;
pub mod terminal;
pub mod units;
pub mod weights;
mod words;

/// Reading a whole file, up to a limit.
pub mod input {
    pub use crate::input::{read, read_from, read_text};
}
