//! blt-train: trains the entropy model, then the rest; or goes on from any checkpoint.

mod args;
#[path = "../common/mod.rs"]
mod common;
mod start;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    common::args::main("blt-train", work::run)
}
