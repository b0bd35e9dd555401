//! The start of a run: new weights, a checkpoint, or the state of an earlier run.

use std::path::Path;

use blt::checkpoint::{Checkpoint, Component, ModelTensor, OpenOptions};
use blt::config::{Config, PatchingMode};
use blt::output_file::{OutputFolder, is_same_file, lock_folder};
use blt::train::params::{Params, Value, check_family};
use blt::train::settings::Settings;
use blt::train::state::Saved;
use blt::train::trainer::{ENTROPY_FILE, RUN_FILES, STATE, Stage, Trainer};
use blt::train::{init, memory};

use super::args::Args;
use super::effects;
use blt::cli::args::Failure;
use blt::cli::output::{self, Inputs};
use blt::cli::units;
use blt::vocab::VOCAB_SIZE;

/// An error about a setting, which is wrong usage of its flag.
pub fn of_setting(error: blt::Error) -> Failure {
    match error {
        blt::Error::Config { key, what } => {
            Failure::usage(format!("--{}: {what}", key.replace('_', "-")))
        }
        error => Failure::from(error),
    }
}

/// The settings: those of the run to be resumed, then files, then flags.
pub fn settings(args: &Args) -> Result<Settings, Failure> {
    let mut settings = Settings::default();
    if args.stage == "bench" {
        settings.steps = 8;
    }
    let apply = |settings: &mut Settings| -> Result<(), Failure> {
        for path in &args.config {
            settings.set_file(path.as_ref())?;
        }
        for (name, value) in &args.set {
            settings.set(name, value).map_err(of_setting)?;
        }
        Ok(())
    };
    apply(&mut settings)?;
    if args.resume && args.stage != "bench" {
        let out = Path::new(&settings.out);
        // A program that is running there is reported before files that it has not saved yet.
        lock_folder(out)?;
        let saved = Saved::open(&out.join(STATE))?;
        settings = Settings::default();
        settings.set_json(&saved.settings)?;
        apply(&mut settings)?;
    }
    Ok(settings)
}

/// Checks what is written against what is read and what is there already.
pub fn check_outputs(args: &Args, settings: &Settings) -> Result<(), Failure> {
    let out = Path::new(&settings.out);
    let mut inputs = Inputs::default();
    let data = settings.data.iter().chain(&settings.valid);
    for path in (data.clone().chain(&args.config).chain(&args.model)).chain(&settings.entropy_model)
    {
        inputs.add(path);
    }
    let plot = args.plot.as_ref().map(Path::new);
    let log = args.log.as_ref().map(Path::new);
    inputs.check(&[("--plot", plot), ("--log", log)])?;
    let is_stream = |path: &Path| output::is_stdout(path) || path.exists() && !path.is_file();
    if let Some(log) = log.filter(|log| plot.is_some() && is_stream(log)) {
        return Err(Failure::usage(format!(
            "--plot: expected --log to be a file, from which it is drawn, found {}",
            log.display()
        )));
    }
    if let Some(folder) = &args.hf {
        OutputFolder::check(folder.as_ref())?;
    }
    let own = RUN_FILES.map(|name| out.join(name));
    for path in data.clone().chain(&args.model).map(Path::new) {
        if own.iter().any(|own| is_same_file(own, path)) {
            return Err(Failure::usage(format!(
                "--out: expected another folder than that of {}, which is read",
                path.display()
            )));
        }
    }
    let folder = std::fs::canonicalize(out);
    let inside = |path: &&String| {
        let path = std::fs::canonicalize(path);
        matches!((&path, &folder), (Ok(path), Ok(folder)) if path.is_dir() && folder.starts_with(path))
    };
    if let Some(path) = data.clone().find(inside) {
        return Err(Failure::usage(format!(
            "--out: expected a folder outside of the data, found {} in {path}",
            settings.out
        )));
    }
    let found: Vec<_> = own.iter().filter(|path| path.exists()).collect();
    if args.resume || args.overwrite || found.is_empty() {
        return Ok(());
    }
    let what = match Saved::open(&out.join(STATE)) {
        Ok(saved) => {
            let mut was = Settings::default();
            was.set_json(&saved.settings)?;
            format!(
                "step {} of {} of {}",
                units::count(saved.position.step),
                units::count(was.steps),
                saved.stage
            )
        }
        Err(_) => found[0].display().to_string(),
    };
    Err(Failure::failed(format!(
        "{}: expected a folder without a run, found {what}; pass --resume to continue it, --overwrite to replace it, \
         or another --out",
        settings.out
    )))
}

/// A frozen entropy model and what it was trained for.
fn entropy_model(path: &Path) -> Result<(Config, Params<f32>), Failure> {
    // A run: finished, or interrupted.
    let states = [ENTROPY_FILE, STATE].map(|name| path.join(name));
    let state = states.iter().find(|state| state.is_file());
    if let Some(state) = state.filter(|_| !path.join("config.json").exists()) {
        let saved = Saved::open(state)?;
        let config = saved.config.clone();
        let params = Params::new(&config, of_entropy, |t| {
            Ok(Value::Owned(saved.param(&t.name, &t.shape)?))
        })?;
        return Ok((config, frozen(params)));
    }
    let checkpoint = Checkpoint::open(path, &OpenOptions::default())?;
    let config = checkpoint.config().clone();
    if config.entropy.is_none() {
        return Err(Failure::Failed(format!(
            "{}: expected an entropy model, found a checkpoint without one",
            path.display()
        )));
    }
    let params = widened_entropy_model(&checkpoint)?;
    Ok((config, params))
}

/// Whether a tensor belongs to the entropy model.
fn of_entropy(tensor: &ModelTensor) -> bool {
    tensor.component == Component::Entropy
}

/// The entropy model of a checkpoint, widened once because it reads every text, and frozen.
fn widened_entropy_model(checkpoint: &Checkpoint) -> blt::Result<Params<f32>> {
    let params = Params::new(checkpoint.config(), of_entropy, |t| {
        let tensor = checkpoint.tensor(&t.name, &t.shape)?;
        Ok(Value::Owned(tensor.to_f32_vec()))
    })?;
    Ok(frozen(params))
}

/// The parameters with training turned off for all of them.
fn frozen(mut params: Params<f32>) -> Params<f32> {
    for param in params.list_mut() {
        param.trained = false;
    }
    params
}

/// Makes the run that the arguments ask for.
pub fn trainer(args: &Args, settings: Settings) -> Result<Trainer, Failure> {
    if settings.lora_rank > 0 && args.stage != "finetune" {
        return Err(Failure::usage(
            "--lora-rank: expected it with finetune; a new model has no weights to adapt",
        ));
    }
    if settings.data.is_empty() {
        return Err(Failure::usage(
            "--data: expected at least one file or folder, found none",
        ));
    }
    let mut trainer = match args.stage.as_str() {
        "entropy" => {
            let config = settings.architecture().map_err(of_setting)?;
            memory::check(&settings, &config, true).map_err(of_setting)?;
            let params = init::random(&config, of_entropy, settings.seed)?;
            Trainer::new(Stage::Entropy, settings, config, params, None)?
        }
        "main" | "bench" => {
            let mut config = settings.architecture().map_err(of_setting)?;
            let mut entropy = None;
            if config.patcher.mode == PatchingMode::Entropy {
                let Some(path) = &settings.entropy_model else {
                    return Err(Failure::usage(
                        "--entropy-model: expected the run or checkpoint of a trained entropy \
                         model; train one with blt-train entropy, or choose --patching space",
                    ));
                };
                let (with, params) = entropy_model(Path::new(path))?;
                config.entropy = with.entropy;
                config.patcher.threshold = with.patcher.threshold;
                entropy = Some(params);
            } else {
                config.entropy = None;
            }
            effects::check_patching(args, config.patcher.mode)?;
            memory::check(&settings, &config, false).map_err(of_setting)?;
            let params = init::random(&config, |t| !of_entropy(t), settings.seed)?;
            Trainer::new(Stage::Main, settings, config, params, entropy)?
        }
        _ => finetune(args, settings)?,
    };
    if args.resume {
        let saved = Saved::open(&trainer.path(STATE))?;
        if saved.stage != args.stage {
            return Err(Failure::Failed(format!(
                "{}: expected a run of {}, found one of {}",
                trainer.settings.out, args.stage, saved.stage
            )));
        }
        trainer.resume(&saved, args.new_data)?;
    }
    Ok(trainer)
}

/// Whether byte embedding and output of a checkpoint are one tensor, or two of the same values.
fn is_tied(checkpoint: &Checkpoint) -> blt::Result<bool> {
    let shape = [VOCAB_SIZE, checkpoint.config().encoder.dim];
    let values = |name: &str| checkpoint.tensor(name, &shape).map(|t| t.to_f32_vec());
    Ok(values("encoder.tok_embeddings")? == values("decoder.output")?)
}

fn finetune(args: &Args, mut settings: Settings) -> Result<Trainer, Failure> {
    if let Some(name) = settings.changed_shape() {
        return Err(Failure::usage(format!(
            "--{}: finetune takes the sizes from the checkpoint; leave it out, or train a new model \
             with blt-train main",
            name.replace('_', "-")
        )));
    }
    let path = Path::new(args.model.as_deref().unwrap_or_default());
    let patching = settings.patching.as_deref().map(str::parse).transpose()?;
    let options = OpenOptions {
        entropy_model: settings.entropy_model.as_ref().map(Into::into),
        patching,
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open(path, &options)?;
    check_family(checkpoint.config())?;
    let mut config = checkpoint.config().clone();
    settings.patching_into(&mut config.patcher)?;
    effects::check_patching(args, config.patcher.mode)?;
    settings.seq_len = settings.seq_len.min(config.max_bytes);
    let quantised = (checkpoint.tensors()).find(|(_, t)| t.dtype().is_quantized());
    if let Some((name, tensor)) = quantised
        && !args.dequantize
    {
        return Err(Failure::Failed(format!(
            "{}: expected weights that are not quantised, found {name} in {}; pass --dequantize to widen \
             them, or fine-tune the original",
            path.display(),
            tensor.dtype()
        )));
    }
    // Tied weights of the checkpoint stay tied.
    if settings.tied.is_none() {
        settings.tied = Some(is_tied(&checkpoint)?);
    }
    let lora = settings.lora_rank > 0;
    if !lora {
        memory::check(&settings, &config, false).map_err(of_setting)?;
    }
    let params = Params::new(
        &config,
        |t| !of_entropy(t),
        |t| {
            let tensor = checkpoint.tensor(&t.name, &t.shape)?;
            Ok(match lora {
                true => Value::Frozen(tensor),
                false => Value::Owned(tensor.to_f32_vec()),
            })
        },
    )?;
    settings.fill_for_finetune(params.n_parameters());
    let entropy = (config.entropy.is_some())
        .then(|| widened_entropy_model(&checkpoint))
        .transpose()?;
    Ok(Trainer::new(
        Stage::Main,
        settings,
        config,
        params,
        entropy,
    )?)
}
