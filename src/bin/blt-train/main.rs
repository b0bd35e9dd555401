//! blt-train: trains the entropy model, then the rest; or continues from any checkpoint; or measures the speed of
//! training.

mod args;
mod bench;
mod effects;
mod start;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    blt::cli::args::main("blt-train", work::run)
}
