//! Opening the model that the arguments name.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::config::{Config, PatcherConfig, PatchingMode};
use crate::device::{Device, GpuOptions};
use crate::model::Model;
use crate::ops::{Compute, Profile};
use blt_kernels::Isa;

use super::args::Failure;

/// Which model, and how to compute it.
#[derive(Debug, Default)]
pub struct ModelArgs<'a> {
    /// A file or folder in any of the known layouts; the default model if `None`.
    pub model: Option<&'a Path>,
    /// A configuration that lies apart from the weights.
    pub config: Option<&'a Path>,
    /// An entropy model that lies apart.
    pub entropy_model: Option<&'a Path>,
    /// A patching mode in place of the model's own; all but entropy need no entropy model.
    pub patching: Option<PatchingMode>,
    /// Number of threads.
    pub threads: Option<usize>,
    /// Name of an instruction set.
    pub isa: Option<&'a str>,
    /// The arithmetic.
    pub profile: Profile,
    /// What computes.
    pub device: Device,
    /// How a GPU is used.
    pub gpu: GpuOptions,
}

impl ModelArgs<'_> {
    /// Opens the checkpoint and takes its weights.
    pub fn load(&self) -> Result<Model, Failure> {
        self.take(&self.open()?)
    }

    /// Takes the weights of an open checkpoint.
    pub fn take(&self, checkpoint: &Checkpoint) -> Result<Model, Failure> {
        let model = Model::load(checkpoint, self.compute()?)?;
        if self.device != Device::Auto {
            return Ok(model.on_device_with(self.device, self.gpu)?);
        }
        match model.on_device_with(Device::Cuda(0), self.gpu) {
            Ok(on_gpu) => {
                eprintln!("computing on {}", on_gpu.gpu_name().unwrap_or_default());
                Ok(on_gpu)
            }
            Err(reason) => {
                eprintln!("computing on the CPU: {reason}");
                Ok(model)
            }
        }
    }

    /// Opens the checkpoint.
    pub fn open(&self) -> Result<Checkpoint, Failure> {
        let options = OpenOptions {
            config: self.config.map(Path::to_path_buf),
            entropy_model: self.entropy_model.map(Path::to_path_buf),
            patching: self.patching,
        };
        Ok(Checkpoint::open(&self.path()?, &options)?)
    }

    /// Where the model is.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        match self.model {
            Some(path) => Ok(path.to_path_buf()),
            None => default_model(),
        }
    }

    /// Threads and instructions.
    pub fn compute(&self) -> Result<Compute, Failure> {
        let isa = self.isa.map(parse_isa).transpose()?;
        let compute = Compute::new(self.threads, isa).map_err(Failure::usage)?;
        Ok(compute.profiled(self.profile))
    }
}

/// The model used when none is named: the one that comes with the source, or the tiny one of the
/// tests.
fn default_model() -> Result<PathBuf, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = ["models/default.safetensors", "tests/data/hf-gqa/model"];
    (places
        .iter()
        .map(|place| root.join(place))
        .find(|path| path.exists()))
    .ok_or_else(|| {
        Failure::usage("MODEL: expected a file or folder, found no default model either")
    })
}

/// The names of the instruction sets this machine has, fastest first.
pub fn isa_names() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

fn parse_isa(name: &str) -> Result<Isa, Failure> {
    Isa::by_name(name).ok_or_else(|| {
        let known = isa_names().join(", ");
        Failure::Usage(format!(
            "--isa: expected one this machine has ({known}), found \"{name}\""
        ))
    })
}

/// The model's patcher settings with another threshold; `None` if there is none.
pub fn patcher_config(
    config: &Config,
    threshold: Option<f32>,
) -> Result<Option<PatcherConfig>, Failure> {
    let Some(threshold) = threshold else {
        return Ok(None);
    };
    if !threshold.is_finite() {
        return Err(Failure::Usage(format!(
            "--threshold: expected a finite number of nats, found {threshold}"
        )));
    }
    if config.patcher.mode != PatchingMode::Entropy {
        return Err(Failure::Usage(format!(
            "--threshold: expected entropy patching, found {}; add --patching entropy",
            config.patcher.mode
        )));
    }
    let mut patcher = config.patcher.clone();
    patcher.threshold = threshold;
    Ok(Some(patcher))
}
