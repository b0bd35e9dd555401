//! Checkpoints of a run: everything needed to resume it with the same results.
//!
//! One safetensors file: `param.*`, `mean.*`, `square.*`, and in the metadata the configuration, the
//! settings and the counters. It replaces the previous file only when it is complete and on disk.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::adamw::AdamW;
use super::params::{Params, Value};
use crate::checkpoint::{
    SafetensorsWriter, TRAINING_KEY as KEY, TensorSpec, WeightFiles, config_from_json,
    config_to_json, parse_json,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Where a run is.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// Steps done.
    pub step: u64,
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Pieces drawn in the current one.
    pub cursor: usize,
    /// Ids read beyond the steps' batches, which the next batch reads less.
    pub surplus: usize,
    /// Lowest validation loss so far, in nats; infinite before the first.
    pub best: f64,
    /// Validations since then.
    pub stale: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Bytes read so far.
    pub bytes: u64,
    /// Fingerprint of the text that is trained and validated on; 0: unknown.
    pub data: u64,
}

impl Position {
    /// Before the first step.
    pub fn start() -> Self {
        Position {
            step: 0,
            epoch: 0,
            cursor: 0,
            surplus: 0,
            best: f64::INFINITY,
            stale: 0,
            seconds: 0.0,
            bytes: 0,
            data: 0,
        }
    }
}

/// A state file's content, less the tensors.
#[derive(Debug)]
pub struct Saved {
    /// The model's configuration.
    pub config: Config,
    /// `entropy`, `main` or `finetune`.
    pub stage: String,
    /// The settings, as [`super::settings::Settings::set_json`] takes them.
    pub settings: String,
    /// Where the run was.
    pub position: Position,
    n_steps: u64,
    file: WeightFiles,
}

/// Writes the state of a run.
///
/// # Errors
/// [`Error::Io`] if it cannot be written; the file of before is then intact.
pub fn save(
    path: &Path,
    config: &Config,
    stage: &str,
    settings: &Json,
    position: &Position,
    params: &Params<f32>,
    optimiser: &AdamW<f32>,
) -> Result<()> {
    let about = json!({
        "config": config_to_json(config),
        "stage": stage,
        "settings": settings,
        "step": position.step,
        "epoch": position.epoch,
        "cursor": position.cursor,
        "surplus": position.surplus,
        // As bits: JSON has no infinity, and resuming is exact.
        "best": position.best.to_bits(),
        "stale": position.stale,
        "seconds": position.seconds,
        "bytes": position.bytes,
        "data": position.data,
        "n_steps": optimiser.n_steps,
    });
    let mut list: Vec<(String, &[usize], &[f32])> = Vec::new();
    for (id, param) in params.iter() {
        let Value::Owned(values) = &param.value else {
            continue;
        };
        list.push((format!("param.{}", param.name), &param.shape, values));
        let moments = &optimiser.moments[id.0];
        if !moments.mean.is_empty() {
            list.push((format!("mean.{}", param.name), &param.shape, &moments.mean));
            list.push((
                format!("square.{}", param.name),
                &param.shape,
                &moments.square,
            ));
        }
    }
    let specs = (list.iter())
        .map(|(name, shape, values)| TensorSpec {
            name: name.clone(),
            dtype: "F32".into(),
            shape: shape.to_vec(),
            n_bytes: values.len() as u64 * 4,
        })
        .collect();
    let metadata = [(KEY.to_string(), about.to_string())];
    let mut writer = SafetensorsWriter::create(path, &metadata, specs)?;
    for (name, _, values) in list {
        for part in values.chunks(1 << 18) {
            let bytes: Vec<u8> = part.iter().flat_map(|v| v.to_le_bytes()).collect();
            writer.write(&name, &bytes)?;
        }
    }
    writer.finish()
}

impl Saved {
    /// Opens a state file.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if it cannot be read or is not a training state, [`Error::Tensor`] if its bytes
    /// differ from their checksums.
    pub fn open(path: &Path) -> Result<Saved> {
        let file = WeightFiles::open(path)?;
        file.verify(|_| Ok(()))?;
        let fault = |what: String| Error::format(path, what);
        let about = (file.metadata().and_then(|m| m.get(KEY)))
            .ok_or_else(|| fault(format!("expected a training state, found no {KEY}")))?;
        let about = parse_json(about.as_bytes()).map_err(|e| fault(format!("{KEY}: {e}")))?;
        let number = |key: &str| {
            about[key]
                .as_u64()
                .ok_or_else(|| fault(format!("expected the number \"{key}\" in {KEY}")))
        };
        let text = |key: &str| {
            about[key]
                .as_str()
                .ok_or_else(|| fault(format!("expected the text \"{key}\" in {KEY}")))
        };
        Ok(Saved {
            config: config_from_json(text("config")?)?,
            stage: text("stage")?.to_string(),
            settings: about["settings"].to_string(),
            position: Position {
                step: number("step")?,
                epoch: number("epoch")?,
                cursor: number("cursor")? as usize,
                // States of earlier versions have none.
                surplus: about["surplus"].as_u64().unwrap_or(0) as usize,
                best: f64::from_bits(number("best")?),
                stale: number("stale")?,
                seconds: about["seconds"].as_f64().unwrap_or(0.0),
                bytes: number("bytes")?,
                data: about["data"].as_u64().unwrap_or(0),
            },
            n_steps: number("n_steps")?,
            file,
        })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.file.tensor(name)? else {
            return Ok(None);
        };
        if tensor.shape() != shape || tensor.dtype() != DType::F32 {
            return Err(Error::tensor(
                name,
                format!(
                    "expected F32 {shape:?}, found {} {:?} in {}",
                    tensor.dtype(),
                    tensor.shape(),
                    self.file.path().display()
                ),
            ));
        }
        Ok(Some(tensor.to_f32_vec()))
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is missing or misshapen.
    pub fn param(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.tensor(&format!("param.{name}"), shape)?
            .ok_or_else(|| {
                Error::tensor(
                    name,
                    format!("expected {shape:?}, found no such tensor in the state"),
                )
            })
    }

    /// Puts values where they were, without the optimiser's moments.
    ///
    /// # Errors
    /// [`Error::Tensor`] if one is missing or misshapen.
    pub fn restore_params(&self, params: &mut Params<f32>) -> Result<()> {
        for param in params.list_mut() {
            if let Value::Owned(values) = &mut param.value {
                *values = self.param(&param.name, &param.shape)?;
            }
        }
        Ok(())
    }

    /// Puts values and moments where they were.
    ///
    /// # Errors
    /// [`Error::Tensor`] if one is missing or misshapen.
    pub fn restore(&self, params: &mut Params<f32>, optimiser: &mut AdamW<f32>) -> Result<()> {
        self.restore_params(params)?;
        for (param, moments) in params.list().iter().zip(&mut optimiser.moments) {
            if let Value::Owned(_) = &param.value {
                let get = |kind: &str| self.tensor(&format!("{kind}.{}", param.name), &param.shape);
                if let (Some(mean), Some(square)) = (get("mean")?, get("square")?) {
                    (moments.mean, moments.square) = (mean, square);
                }
            }
        }
        optimiser.n_steps = self.n_steps;
        Ok(())
    }
}
