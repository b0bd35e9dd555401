//! `blt-train bench`: the speed of training on this machine, beside the CPU's peak of multiply-adds, measured between the
//! steps.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use blt::Error;
use blt::random::SplitMix64;
use blt::train::matmul::Precision;
use blt::train::settings::Settings;
use blt_kernels::{Isa, multiply_adds};

use super::args::Args;
use super::start;
use blt::cli::args::Failure;

/// Bytes of generated text for each step's batch, so that no patches are known in advance.
const TEXT_PER_ID: usize = 2;

/// Runs the stage.
pub fn run(args: &Args, mut settings: Settings) -> Result<(), Failure> {
    let folder = Folder::new()?;
    settings.out = folder.0.display().to_string();
    settings.valid_share = 0.0;
    if settings.patching.is_none() && settings.entropy_model.is_none() {
        settings.patching = Some("space".into());
    }
    let steps = settings.steps as usize;
    if settings.data.is_empty() {
        let path = folder.0.join("text.txt");
        let n = settings.batch * settings.accumulate * 2 * (steps + 1) * TEXT_PER_ID;
        std::fs::write(&path, text(n, settings.seed)).map_err(|e| Error::io(&path, e))?;
        settings.data = vec![path.display().to_string()];
    }
    let mut trainer = start::trainer(args, settings)?;
    // The text stays mapped; a program that is killed leaves nothing behind.
    drop(folder);
    let n = trainer.params.n_parameters();
    let mut out = std::io::stdout().lock();
    let mut print = |line: String| writeln!(out, "{line}").map_err(Failure::of_output);
    print(format!(
        "{:.2} M parameters, {} threads ({}), batches of {} ids, {} patching, medians of {steps} steps",
        n as f64 / 1e6,
        rayon::current_num_threads(),
        Isa::detect().name(),
        trainer.settings.batch * trainer.settings.accumulate,
        trainer.config.patcher.mode,
    ))?;
    print("precision  bytes/s  GFLOP/s     peak  share   patching  optimiser".into())?;
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        if !precision.is_available(Isa::detect()) {
            continue;
        }
        trainer.settings.precision = precision;
        trainer.step()?;
        let (mut reports, mut peaks) = (Vec::new(), Vec::new());
        for _ in 0..steps {
            reports.push(trainer.step()?);
            peaks.push(peak(precision));
        }
        let of = |f: fn(&_) -> f64| median(reports.iter().map(f).collect());
        let gflops = of(|r: &blt::train::trainer::Report| r.flops as f64 / r.seconds / 1e9);
        let peak = median(peaks);
        print(format!(
            "{name:9} {:8.0} {gflops:8.0} {peak:8.0} {:5.0} % {:8.0} % {:8.0} %",
            of(|r| r.score.n_bytes as f64 / r.seconds),
            100.0 * gflops / peak,
            100.0 * of(|r| r.patching / r.seconds),
            100.0 * of(|r| r.optimiser / r.seconds),
        ))?;
    }
    Ok(())
}

/// GFLOP/s of multiply-adds in registers on all threads.
fn peak(precision: Precision) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let start = Instant::now();
    let n = rayon::broadcast(|_| multiply_adds(Isa::detect(), precision, ROUNDS));
    n.iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Lines of generated words, `n` bytes.
fn text(n: usize, seed: u64) -> Vec<u8> {
    let mut rng = SplitMix64::mixed(seed);
    let mut text = Vec::with_capacity(n + 16);
    while text.len() < n {
        let length = 1 + (rng.unit() * rng.unit() * 12.0) as usize;
        text.extend((0..length).map(|_| b'a' + (rng.unit() * rng.unit() * 26.0) as u8));
        text.push(if rng.unit() < 0.1 { b'\n' } else { b' ' });
    }
    text
}

/// A folder that is removed with its content.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder, Failure> {
        let path = std::env::temp_dir().join(format!("blt-train-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
