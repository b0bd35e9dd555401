//! blt-train: trains the entropy model, then the rest; or goes on from any checkpoint.

mod args;
mod start;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    blt::cli::args::main("blt-train", work::run)
}
