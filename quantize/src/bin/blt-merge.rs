//! The program `blt-merge`: arguments and progress. The work is the library's.

use std::path::PathBuf;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use blt::checkpoint::{Checkpoint, OpenOptions, WeightFiles};
use blt::cli::args::{self, Failure};
use blt::cli::interrupt;
use blt::cli::output::{self, Inputs};
use blt::cli::progress::Progress;
use blt::error::Error;
use blt_quantize::merge::Merge;

/// Make a chat model of a Bolmo model: add to its global layers what instruction tuning did to the subword model that it
/// was made from.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    example = "blt-merge Bolmo-7B Olmo-3-1025-7B Olmo-3-7B-Instruct chat.safetensors",
    note = "W += alpha * (W_instruct - W_base) for every tensor of the global layers and the last norm. All of them must be \
            in both subword models with the same shapes; nothing else changes. The result is one native file.",
    error_code(
        1,
        "Something failed; standard error says what. There is no output then."
    ),
    error_code(2, "Wrong usage."),
    error_code(130, "Ended by Ctrl-C; 143 by SIGTERM.")
)]
struct Args {
    /// the byte model
    #[argh(positional, arg_name = "BASE_BYTE", from_str_fn(blt::cli::bytes::path))]
    byte: PathBuf,

    /// the subword model it was made from
    #[argh(positional, arg_name = "BASE", from_str_fn(blt::cli::bytes::path))]
    base: PathBuf,

    /// the same subword model after instruction tuning
    #[argh(positional, arg_name = "INSTRUCT", from_str_fn(blt::cli::bytes::path))]
    instruct: PathBuf,

    /// the file to write; - is standard output
    #[argh(positional, arg_name = "OUT", from_str_fn(blt::cli::bytes::path))]
    out: PathBuf,

    /// how much of the difference is added (default: 1)
    #[argh(option, arg_name = "x", default = "1.0")]
    alpha: f32,

    /// the byte model's tokenizer files, if they are not in the folder "tokenizer" beside its weights
    #[argh(option, arg_name = "path", from_str_fn(blt::cli::bytes::path))]
    tokenizer: Option<PathBuf>,

    /// show no progress
    #[argh(switch)]
    quiet: bool,
}

fn main() -> ExitCode {
    args::main("blt-merge", run)
}

fn run(args: Args) -> Result<(), Failure> {
    if !args.alpha.is_finite() {
        return Err(Failure::Usage(format!(
            "--alpha: expected a finite number, found {}",
            args.alpha
        )));
    }
    let options = OpenOptions {
        tokenizer: args.tokenizer,
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open(&args.byte, &options)?;
    let (base, instruct) = (
        WeightFiles::open(&args.base)?,
        WeightFiles::open(&args.instruct)?,
    );
    let merge = Merge {
        checkpoint: &checkpoint,
        base: &base,
        instruct: &instruct,
        alpha: args.alpha,
    };
    let total = checkpoint
        .tensors()
        .map(|(_, tensor)| tensor.bytes().len() as u64)
        .sum();
    let mut inputs = Inputs::of(&checkpoint);
    for input in [&args.byte, &args.base, &args.instruct] {
        inputs.add(input);
    }
    for file in base.files().chain(instruct.files()) {
        inputs.add(&file.path);
    }
    inputs.check(&[("OUT", Some(&args.out))])?;
    interrupt::watch()?;
    let mut progress = Progress::new("merging", Some(total), args.quiet);
    let merged = merge.write(
        || output::create(&args.out),
        |done| {
            progress.set(done);
            match interrupt::requested() {
                true => Err(Error::Cancelled),
                false => Ok(()),
            }
        },
    )?;
    progress.finish();
    blt::errln!(
        "{} tensors changed by {:.2} % of their size, {} kept",
        merged.n_changed,
        100.0 * merged.relative_change,
        merged.n_kept
    );
    Ok(())
}
