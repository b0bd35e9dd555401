//! The loop: step, log, validate, save, until the steps are done or Ctrl-C is pressed.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use blt::Error;
use blt::output_file;
use blt::tensor::DType;
use blt::train::ops::Score;
use blt::train::trainer::{LOG, RUN_FILES, Report, Trainer};
use blt::train::{export, plot};
use serde_json::json;

use super::args::Args;
use super::{bench, effects, start};
use blt::cli::args::Failure;
use blt::cli::progress::Progress;
use blt::cli::{interrupt, memory, output, units};

/// Runs the program.
pub fn run(args: Args) -> Result<(), Failure> {
    let settings = start::settings(&args)?;
    settings.validate().map_err(start::of_setting)?;
    effects::check(&args, &settings)?;
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = settings.threads {
        pool = pool.num_threads(threads);
    }
    let pool = pool.build().map_err(Failure::failed)?;
    interrupt::watch()?;
    pool.install(|| match args.stage.as_str() {
        "bench" => bench::run(&args, settings),
        _ => train(&args, settings),
    })
}

fn train(args: &Args, settings: blt::train::settings::Settings) -> Result<(), Failure> {
    let (folder, _lock) = RunFolder::lock(&settings.out)?;
    start::check_outputs(args, &settings)?;
    let mut trainer = start::trainer(args, settings)?;
    if args.hf.is_some() {
        export::hf_layout_of(&trainer.config, DType::Bf16)?;
    }
    if args.overwrite {
        for name in RUN_FILES {
            let _ = std::fs::remove_file(trainer.path(name));
        }
    }
    folder.keep();
    let log_path = match &args.log {
        Some(path) => PathBuf::from(path),
        None => trainer.path(LOG),
    };
    let known = args.resume.then_some(trainer.position.step);
    let mut log = Log::open(log_path, known, &trainer, args.quiet)?;
    log.begin(&trainer);
    if args.stage == "finetune" && trainer.position.step == 0 {
        // The loss of the checkpoint, to compare later ones with.
        validate(args, &mut trainer, &mut log, false)?;
    }

    let mut since = Window::default();
    let mut finished = false;
    let mut saved = Instant::now();
    while trainer.position.step < trainer.settings.steps {
        let report = trainer.step()?;
        since.add(&report);
        let step = trainer.position.step;
        let last = step == trainer.settings.steps;
        let stop = interrupt::requested();
        log.progress.set(step);
        if step.is_multiple_of(trainer.settings.log_every) || last || stop {
            let logged = log.step(&trainer, &std::mem::take(&mut since), &report);
            if logged.is_err() {
                trainer.save(&args.stage)?;
            }
            logged?;
        }
        if step.is_multiple_of(trainer.settings.valid_every) || last {
            validate(args, &mut trainer, &mut log, last)?;
            if trainer.is_stale() {
                log.say(&format!(
                    "no better for {} validations: stopping",
                    trainer.position.stale
                ));
                finished = true;
            }
        }
        let due = trainer.settings.save_every.is_due(step, saved.elapsed());
        if due || last || stop || finished {
            trainer.save(&args.stage)?;
            saved = Instant::now();
        }
        if stop && !last {
            log.progress.clear();
            draw(args, &log)?;
            return Err(Failure::Interrupted(format!(
                "stopped at step {step} and saved; continue with --resume"
            )));
        }
        if finished {
            break;
        }
    }
    log.progress.clear();
    finish(args, &mut trainer, &mut log)?;
    draw(args, &log)
}

/// Validates on a sample, always the same; at the very end also on all the text there is, which is for the record
/// and does not decide which weights are best.
fn validate(args: &Args, trainer: &mut Trainer, log: &mut Log, last: bool) -> Result<(), Failure> {
    let score = trainer.validate(trainer.settings.valid_bytes)?;
    if score.n == 0 {
        return Ok(());
    }
    log.validation(trainer, &score)?;
    if trainer.note(score.loss()) {
        trainer.keep_as_best(&args.stage)?;
    }
    if last {
        let all = trainer.validate(usize::MAX)?;
        if all.n > score.n {
            log.validation(trainer, &all)?;
        }
    }
    Ok(())
}

fn finish(args: &Args, trainer: &mut Trainer, log: &mut Log) -> Result<(), Failure> {
    if args.stage == "entropy" {
        let (threshold, length) = trainer.finish_entropy(&args.stage)?;
        log.say(&format!(
            "threshold {threshold:.4} nats: {length:.2} bytes a patch; train the rest with \
             blt-train main --entropy-model {}",
            trainer.settings.out
        ));
        return Ok(());
    }
    let (path, is_best) = trainer.finish(args.hf.as_deref().map(Path::new))?;
    let which = match is_best {
        true => format!("best on validation, loss {:.4}", trainer.position.best),
        false => "last weights".into(),
    };
    log.say(&format!("wrote {} ({which})", path.display()));
    if let Some(folder) = &args.hf {
        log.say(&format!("wrote {folder} for transformers"));
    }
    Ok(())
}

/// Draws the curves of everything the log holds, earlier runs that were resumed included.
fn draw(args: &Args, log: &Log) -> Result<(), Failure> {
    let Some(path) = &args.plot else {
        return Ok(());
    };
    let text = std::fs::read_to_string(&log.path).map_err(|e| Error::io(&log.path, e))?;
    let picture = match path.ends_with(".html") {
        true => plot::html(&text),
        false => plot::svg(&text),
    };
    Ok(output::write(path.as_ref(), picture.as_bytes())?)
}

/// The folder of a run, made if it is missing and removed again if no run begins.
struct RunFolder {
    made: Option<PathBuf>,
}

impl RunFolder {
    /// Makes and locks the folder, against a second run.
    fn lock(out: &str) -> Result<(RunFolder, Option<std::fs::File>), Failure> {
        let made = (!Path::new(out).exists()).then(|| out.into());
        std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        let folder = RunFolder { made };
        let lock = output_file::lock_folder(out.as_ref())?;
        Ok((folder, lock))
    }

    fn keep(mut self) {
        self.made = None;
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            // One that is not empty stays.
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Sums since the last line of the log.
#[derive(Debug, Default)]
struct Window {
    score: Score,
    seconds: f64,
    flops: u64,
}

impl Window {
    fn add(&mut self, report: &Report) {
        self.score.add(&report.score);
        self.seconds += report.seconds;
        self.flops += report.flops;
    }
}

/// The log: JSON lines in a file, plain lines on standard error.
struct Log {
    path: PathBuf,
    file: Box<dyn Write>,
    quiet: bool,
    /// A bar below the lines.
    progress: Progress,
}

impl Log {
    /// A new log, or that of a run up to the step it continues from: what came after the last checkpoint comes
    /// again.
    fn open(
        path: PathBuf,
        known: Option<u64>,
        trainer: &Trainer,
        quiet: bool,
    ) -> Result<Log, Failure> {
        let is_stdout = output::is_stdout(&path);
        if !is_stdout && (path.is_file() || !path.exists()) {
            let old = match known {
                Some(_) => std::fs::read_to_string(&path).unwrap_or_default(),
                None => String::new(),
            };
            let is_known = |line: &&str| {
                let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
                let step = line.and_then(|line| line["step"].as_u64());
                step.is_some() && step <= known
            };
            let kept: String = (old.lines().filter(is_known))
                .map(|line| format!("{line}\n"))
                .collect();
            output_file::write(&path, kept.as_bytes())?;
        }
        let file: Box<dyn Write> = match is_stdout {
            true => Box::new(std::io::stdout()),
            false => {
                let mut options = std::fs::OpenOptions::new();
                let file = options.append(true).open(&path);
                Box::new(file.map_err(|e| Error::io(&path, e))?)
            }
        };
        let (step, steps) = (trainer.position.step, trainer.settings.steps);
        Ok(Log {
            path,
            file,
            quiet,
            progress: Progress::steps("training", step, steps, quiet),
        })
    }

    fn put(&mut self, line: serde_json::Value) -> Result<(), Failure> {
        match writeln!(self.file, "{line}") {
            // Nobody reads it any more, which is no reason to lose the run.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.file = Box::new(std::io::sink()),
            written => written.map_err(|e| Error::io(&self.path, e))?,
        }
        Ok(())
    }

    fn say(&mut self, text: &str) {
        if !self.quiet {
            self.progress.clear();
            blt::errln!("{text}");
        }
    }

    fn begin(&mut self, trainer: &Trainer) {
        let all = trainer.params.n_parameters();
        let trained = (trainer.params.list().iter()).filter(|param| param.trained);
        let trained: usize = trained.map(|param| param.n_elements()).sum();
        let (train, valid) = trainer.data_bytes();
        self.say(&format!(
            "{:.2} M parameters, {:.2} M trained; {} to train on, {} to validate on; {} ids a step; lr \
             {}, warm-up {} steps, decay {}",
            all as f64 / 1e6,
            trained as f64 / 1e6,
            units::memory(train as u64),
            units::memory(valid as u64),
            trainer.settings.batch * trainer.settings.accumulate,
            trainer.schedule().peak,
            trainer.schedule().warmup,
            trainer.settings.adam().weight_decay,
        ));
    }

    fn step(&mut self, trainer: &Trainer, window: &Window, last: &Report) -> Result<(), Failure> {
        let s = &window.score;
        let step = trainer.position.step;
        let rate = s.n_bytes as f64 / window.seconds;
        let gflops = window.flops as f64 / window.seconds / 1e9;
        let memory = memory::peak_bytes().unwrap_or(0);
        let patch = (s.n_patches > 0).then(|| s.n as f64 / s.n_patches as f64);
        self.put(json!({
            "step": step,
            "epoch": trainer.position.epoch,
            "bytes": trainer.position.bytes,
            "loss": s.loss(),
            "bits_per_byte": s.bits_per_byte(),
            "accuracy": s.n_right as f64 / s.n as f64,
            "perplexity": s.loss().exp(),
            "confidence": s.confidence / s.n as f64,
            "mean_patch_length": patch,
            "bytes_per_second": rate,
            "gflops": gflops,
            "lr": last.lr,
            "gradient_norm": last.norm,
            "peak_memory_bytes": memory,
            "seconds": trainer.position.seconds,
        }))?;
        self.say(&format!(
            "step {step}/{} loss {:.4} bpb {:.4} acc {:.3} ppl {:.2} conf {:.3}{} {}/s \
             {gflops:.0} GFLOP/s lr {:.2e} norm {:.2} mem {}, {} left",
            trainer.settings.steps,
            s.loss(),
            s.bits_per_byte(),
            s.n_right as f64 / s.n as f64,
            s.loss().exp(),
            s.confidence / s.n as f64,
            patch.map_or(String::new(), |p| format!(" patch {p:.2}")),
            units::memory(rate as u64),
            last.lr,
            last.norm,
            units::memory(memory),
            units::duration(self.progress.left(step).unwrap_or_default()),
        ));
        Ok(())
    }

    fn validation(&mut self, trainer: &Trainer, s: &Score) -> Result<(), Failure> {
        let step = trainer.position.step;
        self.put(json!({
            "step": step,
            "valid_loss": s.loss(),
            "valid_bits_per_byte": s.bits_per_byte(),
            "valid_accuracy": s.n_right as f64 / s.n as f64,
            "valid_bytes": s.n_bytes,
            "seconds": trainer.position.seconds,
        }))?;
        self.say(&format!(
            "step {step} valid loss {:.4} bpb {:.4} acc {:.3} on {} bytes",
            s.loss(),
            s.bits_per_byte(),
            s.n_right as f64 / s.n as f64,
            s.n_bytes
        ));
        Ok(())
    }
}
