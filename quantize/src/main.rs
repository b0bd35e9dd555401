//! The program `blt-quantize`: arguments, progress, tables. The library does the work.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blt::Model;
use blt::checkpoint::Checkpoint;
use blt::error::Error;
use blt::ops::Compute;
use blt::output_file::OutputFolder;
use blt::program_args;
use blt::tensor::DType;
use blt_kernels::BlockFormat;
use blt_quantize::convert::{Importance, Job};
use blt_quantize::policy::{Policy, Rule, Target};
use blt_quantize::{calibrate, evaluate, export, report};

use blt::cli::args::{self, Failure};
use blt::cli::interrupt;
use blt::cli::model;
use blt::cli::output::{self, Inputs};
use blt::cli::progress::Progress;

/// Bytes of the calibration text that are read by default.
const CALIBRATE_BYTES: usize = 1 << 15;

/// Bytes per window of the comparison by default.
const WINDOW: usize = 512;

/// Bytes of the evaluation text that are read by default.
const EVAL_BYTES: usize = 1 << 16;

program_args! {
    /// Convert a Byte Latent Transformer checkpoint to one native file, quantised or not, or to a folder in Hugging
    /// Face layout.
    #[argh(
        help_triggers("-h", "--help"),
        example = "blt-quantize MODEL model.q4.safetensors --type q4_k --calibrate text.txt --eval other.txt",
        note = "Norms become f32; byte embeddings and the output head become q8_0. --type q8_0 keeps the entropy \
                model as it is (packed as bf12 if it is bf16), so that patches start where they did. Other types \
                make its layers q8_0. Hash tables become q8_0 with q8_0 and q6_k, else q4_0.\n\
                --tensor-type PATTERN=TYPE overrides this. PATTERN is a tensor name in which * stands for any \
                characters (names start with entropy, encoder, global or decoder). TYPE is q8_0, q4_0, q4_k, \
                q6_k, bf12, bf16, f16, f32 or keep. The last matching pattern wins.\n\
                --patching is stored in the output.",
        error_code(1, "Failed; standard error says why, and there is no output."),
        error_code(2, "Wrong usage."),
        error_code(130, "Ended by Ctrl-C; 143 by SIGTERM.")
    )]
    struct Args [checkpoint] {
        /// the checkpoint: a file or a folder in any layout
        #[argh(positional, arg_name = "IN", from_str_fn(blt::cli::bytes::path))]
        input: PathBuf,

        /// the file to write, - for standard output, or with --to hf the folder, which must be new or empty; not
        /// needed with --dry-run
        #[argh(positional, arg_name = "OUT", from_str_fn(blt::cli::bytes::path))]
        output: Option<PathBuf>,

        /// quantise to q8_0, q6_k, q4_k or q4_0
        #[argh(option, long = "type", arg_name = "type")]
        kind: Option<String>,

        /// convert to bf12 (bf16 in 12 bits, lossless), bf16, f16, f32 or keep (a native file), or hf (a folder,
        /// types kept)
        #[argh(option, arg_name = "type")]
        to: Option<String>,

        /// type of some tensors, as PATTERN=TYPE; may be given several times
        #[argh(option, arg_name = "rule")]
        tensor_type: Vec<Rule>,

        /// a text that the model reads first, to find the most important weights
        #[argh(option, arg_name = "text", from_str_fn(blt::cli::bytes::path))]
        calibrate: Option<PathBuf>,

        /// bytes of that text to read (default: 32768)
        #[argh(option, arg_name = "n")]
        calibrate_bytes: Option<usize>,

        /// a text on which to compare the result with the input
        #[argh(option, arg_name = "text", from_str_fn(blt::cli::bytes::path))]
        eval: Option<PathBuf>,

        /// bytes of that text to read (default: 65536)
        #[argh(option, arg_name = "n")]
        eval_bytes: Option<usize>,

        /// bytes per window of the comparison (default: 512)
        #[argh(option, arg_name = "n")]
        window: Option<usize>,

        /// write nothing; print sizes, and errors estimated from a sample of the weights
        #[argh(switch)]
        dry_run: bool,

        /// accept an input that is already quantised, and convert its dequantised values
        #[argh(switch)]
        dequantize: bool,

        /// with --to hf: continue if the layout cannot express all of the model's configuration
        #[argh(switch)]
        allow_loss: bool,

        /// number of threads (default: all)
        #[argh(option, short = 't', arg_name = "n")]
        threads: Option<usize>,

        /// show no progress
        #[argh(switch)]
        quiet: bool,
    }
}

/// What to make.
enum Product {
    Native(Policy),
    Hf,
}

fn main() -> ExitCode {
    args::main("blt-quantize", run)
}

fn run(args: Args) -> Result<(), Failure> {
    let product = product(&args)?;
    let n_threads = Compute::new(args.threads, None)
        .map_err(Failure::usage)?
        .n_threads();
    let checkpoint = model::open(&args.checkpoint_options(), Some(&args.input))?;
    if let Some((name, t)) = checkpoint.tensors().find(|(_, t)| t.dtype().is_quantized())
        && !args.dequantize
    {
        return Err(Failure::failed(format!(
            "{}: expected weights that are not quantised, found {name} in {}; quantising twice loses \
             twice; pass --dequantize to convert what they stand for",
            args.input.display(),
            t.dtype()
        )));
    }
    let tables_aside = check_output(&args, &checkpoint, &product)?;
    interrupt::watch()?;
    model::verify(&checkpoint, args.quiet)?;
    match product {
        Product::Hf => to_hf(&args, &checkpoint, n_threads),
        Product::Native(policy) => to_native(&args, &checkpoint, &policy, n_threads, tables_aside),
    }
}

fn product(args: &Args) -> Result<Product, Failure> {
    let main = match (args.kind.as_deref(), args.to.as_deref()) {
        (Some(name), None) => {
            let format = BlockFormat::by_name(name).ok_or_else(|| {
                Failure::usage(format!(
                    "--type: expected q8_0, q4_0, q4_k or q6_k, found \"{name}\""
                ))
            })?;
            Some(Target::Blocks(format))
        }
        (None, Some("hf")) => None,
        (None, Some(name)) => match Target::parse(name) {
            Some(target @ (Target::Float(_) | Target::Keep)) => Some(target),
            _ => {
                return Err(Failure::usage(format!(
                    "--to: expected bf12, bf16, f16, f32, keep or hf, found \"{name}\""
                )));
            }
        },
        _ => return Err(Failure::usage("expected one of --type and --to")),
    };
    let hf = main.is_none();
    for (given, name, fits) in [
        (args.output.is_none(), "OUT: expected a path", args.dry_run),
        (
            !args.tensor_type.is_empty(),
            "--tensor-type: not with --to hf",
            !hf,
        ),
        (
            args.calibrate.is_some(),
            "--calibrate: not with --to hf",
            !hf,
        ),
        (args.eval.is_some(), "--eval: not with --to hf", !hf),
        (
            args.eval.is_some(),
            "--eval: not with --dry-run",
            !args.dry_run,
        ),
        (args.dry_run, "--dry-run: not with --to hf", !hf),
        (args.allow_loss, "--allow-loss: only with --to hf", hf),
        (
            args.window == Some(0),
            "--window: expected at least 1, found 0",
            false,
        ),
        (
            args.calibrate_bytes.is_some(),
            "--calibrate-bytes: expected --calibrate with it",
            args.calibrate.is_some(),
        ),
        (
            args.eval_bytes.is_some(),
            "--eval-bytes: expected --eval with it",
            args.eval.is_some(),
        ),
        (
            args.window.is_some(),
            "--window: expected --eval with it",
            args.eval.is_some(),
        ),
    ] {
        if given && !fits {
            return Err(Failure::usage(name));
        }
    }
    Ok(match main {
        None => Product::Hf,
        Some(main) => Product::Native(Policy {
            main,
            rules: args.tensor_type.clone(),
        }),
    })
}

/// Checks the file or folder to be written. Whether it is standard output, so that tables go elsewhere.
fn check_output(args: &Args, checkpoint: &Checkpoint, product: &Product) -> Result<bool, Failure> {
    let Some(out) = &args.output else {
        return Ok(false);
    };
    if matches!(product, Product::Hf) {
        return Ok(OutputFolder::check(out).map(|()| false)?);
    }
    let mut inputs = Inputs::of(checkpoint);
    inputs.add(&args.input);
    let read = [&args.config, &args.entropy_model, &args.tokenizer];
    for input in read
        .into_iter()
        .chain([&args.calibrate, &args.eval])
        .flatten()
    {
        inputs.add(input);
    }
    let is_stdout = inputs.check(&[("OUT", Some(out))])?;
    if args.eval.is_some() && (is_stdout || out.exists() && !out.is_file()) {
        return Err(Failure::usage(format!(
            "--eval: expected OUT to be a file, which is read again, found {}",
            out.display()
        )));
    }
    Ok(is_stdout)
}

/// Reports progress and ends the work when Ctrl-C has been pressed.
fn step(progress: &mut Progress) -> impl FnMut(u64) -> blt::Result<()> + '_ {
    |done| {
        progress.set(done);
        match interrupt::requested() {
            false => Ok(()),
            true => Err(Error::Cancelled),
        }
    }
}

fn to_hf(args: &Args, checkpoint: &Checkpoint, n_threads: usize) -> Result<(), Failure> {
    let to = args.dequantize.then_some(DType::Bf16);
    let (layout, _) = export::plan(checkpoint, to)?;
    if !layout.lost.is_empty() && !args.allow_loss {
        return Err(Failure::failed(format!(
            "the Hugging Face layout cannot say {}; pass --allow-loss to leave it out",
            layout.lost.join(", ")
        )));
    }
    let out = output(args)?;
    let total = checkpoint
        .tensors()
        .map(|(_, t)| t.bytes().len() as u64)
        .sum();
    let mut progress = Progress::new("converting", Some(total), args.quiet);
    let result = export::write(checkpoint, to, out, n_threads, step(&mut progress));
    progress.finish();
    Ok(result?)
}

fn to_native(
    args: &Args,
    checkpoint: &Checkpoint,
    policy: &Policy,
    n_threads: usize,
    tables_aside: bool,
) -> Result<(), Failure> {
    let window = args.window.unwrap_or(WINDOW);
    let plan = policy.plan(checkpoint)?;
    // What can go wrong with the arguments goes wrong before the long work.
    let eval = match &args.eval {
        None => None,
        Some(path) => {
            let text = read(path, args.eval_bytes.unwrap_or(EVAL_BYTES))?;
            evaluate::check(checkpoint.config(), &text, window)?;
            Some(text)
        }
    };
    let importance = match &args.calibrate {
        None => Importance::new(),
        Some(path) => {
            let text = read(path, args.calibrate_bytes.unwrap_or(CALIBRATE_BYTES))?;
            let mut progress = Progress::new("calibrating", Some(text.len() as u64), args.quiet);
            let result = calibrate::importance(checkpoint, &text, n_threads, step(&mut progress));
            progress.finish();
            result?
        }
    };
    let job = Job {
        checkpoint,
        plan: &plan,
        importance: &importance,
        threads: n_threads,
    };
    let mut progress = Progress::new("converting", Some(job.total_bytes()), args.quiet);
    let result = match args.dry_run {
        true => job.rehearse(step(&mut progress)),
        false => {
            let out = output(args)?;
            job.write(|| output::create(out), step(&mut progress))
        }
    };
    progress.finish();
    let table = report::parts(&result?, args.dry_run);
    match tables_aside {
        true => blt::err!("{table}"),
        false => print(&table)?,
    }
    let Some(text) = eval else {
        return Ok(());
    };
    let options = Model::options().threads(n_threads);
    let before = options.load(checkpoint)?;
    let after = options.open(output(args)?)?;
    let mut progress = Progress::new("comparing", Some(text.len() as u64), args.quiet);
    let result = evaluate::compare(&before, &after, &text, window, |done| {
        progress.set(done);
        match interrupt::requested() {
            false => Ok(()),
            true => Err(Error::Cancelled),
        }
    });
    progress.finish();
    let comparison = result.map_err(|error| match error {
        Error::Cancelled => {
            let what = "interrupted: the file is written, the comparison is not done";
            Failure::Interrupted(what.into())
        }
        error => Failure::from(error),
    })?;
    print(&format!("\n{}", report::comparison(&comparison)))
}

fn output(args: &Args) -> Result<&Path, Failure> {
    (args.output.as_deref()).ok_or_else(|| Failure::usage("OUT: expected a path"))
}

/// The first `most` bytes of the file at `path`.
fn read(path: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let failed = |e| Failure::failed(format!("{}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    file.take(most as u64)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    (out.write_all(text.as_bytes()).and_then(|()| out.flush())).map_err(Failure::of_output)
}
