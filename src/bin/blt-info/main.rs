//! Says what a checkpoint is: layout, configuration, parameters, memory.
//!
//! This file: arguments and output. `check` reads every weight.

mod check;
mod describe;

use std::io::Write;
use std::process::ExitCode;

use blt::program_args;

use blt::cli::args::{self, Failure};
use blt::cli::interrupt;
use blt::cli::model::{self, isa_names};

program_args! {
    /// Show what a Byte Latent Transformer checkpoint contains and what running it needs.
    #[argh(
        help_triggers("-h", "--help"),
        example = "blt-info MODEL --check",
        note = "--json prints one object: layout, files (path, bytes), parameters, bytes, parts (name: tensors, \
                parameters, bytes, dtypes), config (as in native files), memory (weight_bytes_per_byte, \
                weight_bytes_per_patch, resident_weight_bytes, cache_bytes_at_full_context); with --check \
                checked, the number of weights found finite, and checksums, the number of tensors found intact; with \
                --tensors tensors (name, dtype, shape, bytes).",
        error_code(1, "Failed, or a weight is damaged or not finite; standard error says which."),
        error_code(2, "Wrong usage."),
        error_code(130, "Ended by Ctrl-C; 143 by SIGTERM.")
    )]
    struct Args [model checkpoint] {
        /// list the tensors
        #[argh(switch)]
        tensors: bool,

        /// read every weight, compare it with its checksum (native files) and check that it is finite
        #[argh(switch)]
        check: bool,

        /// list: print the instruction sets of this machine, fastest first, and exit
        #[argh(option, arg_name = "list")]
        isa: Option<String>,

        /// print the NVIDIA GPUs of this machine and exit
        #[argh(switch)]
        devices: bool,

        /// show no progress
        #[argh(switch)]
        quiet: bool,

        /// print one JSON object
        #[argh(switch)]
        json: bool,
    }
}

fn main() -> ExitCode {
    args::main("blt-info", run)
}

fn run(args: Args) -> Result<(), Failure> {
    let alone = match args.devices {
        true => Some("--devices"),
        false => args.isa.as_ref().map(|_| "--isa"),
    };
    let about_model = args.model.is_some() || args.tensors || args.check || args.json;
    if let Some(flag) = alone.filter(|_| about_model || args.devices && args.isa.is_some()) {
        return Err(Failure::usage(format!(
            "{flag}: expected nothing else with it"
        )));
    }
    if args.devices {
        return print(&devices()?);
    }
    match args.isa.as_deref() {
        Some("list") => return print(&format!("{}\n", isa_names().join("\n"))),
        Some(other) => {
            return Err(Failure::Usage(format!(
                "--isa: expected list, found \"{other}\""
            )));
        }
        None => {}
    }
    let checkpoint = model::open(&args.checkpoint_options(), args.model.as_deref())?;
    let checked = match args.check {
        true => {
            interrupt::watch()?;
            let n_sums = model::verify(&checkpoint, args.quiet)?;
            Some((check::all_finite(&checkpoint, args.quiet)?, n_sums))
        }
        false => None,
    };
    print(&match args.json {
        true => format!("{}\n", describe::record(&checkpoint, checked, args.tensors)),
        false if args.tensors => describe::tensors(&checkpoint, checked),
        false => describe::text(&checkpoint, checked),
    })
}

/// A line for each GPU.
#[cfg(feature = "cuda")]
fn devices() -> Result<String, Failure> {
    let line = |d: &blt::DeviceInfo| {
        let (major, minor) = d.capability;
        let memory = blt::cli::units::memory(d.memory as u64);
        let blt::DeviceInfo { number, name, .. } = d;
        format!("cuda:{number}  {name}, compute capability {major}.{minor}, {memory}\n")
    };
    let lines: String = blt::devices()?.iter().map(line).collect();
    Ok(match lines.is_empty() {
        true => "no NVIDIA GPU\n".to_owned(),
        false => lines,
    })
}

#[cfg(not(feature = "cuda"))]
fn devices() -> Result<String, Failure> {
    Err(Failure::failed("built without CUDA (feature \"cuda\")"))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    (out.write_all(text.as_bytes()).and_then(|()| out.flush())).map_err(Failure::of_output)
}
