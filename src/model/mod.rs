//! The Byte Latent Transformer: its four networks, and the pass that joins them.
//!
//! [`Model`] is weights: shared, immutable, `Send + Sync`. What changes while running is in the
//! `State` that a [`Session`](crate::Session) holds. `forward.rs` reads down the whole path of a
//! byte.

mod block;
mod cross;
mod decoder;
#[cfg(feature = "cuda")]
mod device;
#[cfg(not(feature = "cuda"))]
#[path = "no_device.rs"]
mod device;
mod differential;
mod draft;
mod encoder;
mod entropy;
mod forward;
mod global;
pub mod hash;
pub mod patcher;
pub(crate) mod saved;
mod state;
mod stored;
mod weights;

use std::path::Path;
use std::sync::Arc;

use crate::cache::KvType;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::config::Config;
use crate::device::{Device, GpuOptions};
use crate::error::Result;
use crate::ops::Compute;

pub use draft::DraftCounts;
pub use forward::Trace;
pub(crate) use forward::{Failure, MAX_BATCH, Part, Wanted};
pub(crate) use state::State;

use decoder::Decoder;
use device::DeviceModel;
use draft::Costs;
use encoder::Encoder;
use entropy::EntropyModel;
use global::Global;
use stored::Stored;

/// A loaded model. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Model {
    weights: Arc<Weights>,
    compute: Arc<Compute>,
    /// The weights on a GPU, if that computes.
    device: Option<Arc<DeviceModel>>,
}

#[derive(Debug)]
struct Weights {
    config: Config,
    entropy: Option<EntropyModel>,
    encoder: Encoder,
    global: Global,
    decoder: Decoder,
    draft_costs: Costs,
    stored: Stored,
}

impl Model {
    /// Opens a checkpoint in any of the known layouts, with all threads and the best instructions
    /// the machine has. Weights stay in the mapped file.
    ///
    /// # Errors
    /// Whatever is wrong with the file: see [`Checkpoint::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let checkpoint = Checkpoint::open(path.as_ref(), &OpenOptions::default())?;
        Model::load(&checkpoint, Compute::new(None, None)?)
    }

    /// Takes the weights of an open checkpoint.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] if a tensor is missing or has the wrong shape.
    pub fn load(checkpoint: &Checkpoint, compute: Compute) -> Result<Self> {
        let config = checkpoint.config().clone();
        let entropy = (config.entropy.as_ref())
            .map(|entropy| EntropyModel::load(checkpoint, entropy))
            .transpose()?;
        let encoder = Encoder::load(checkpoint, &config)?;
        let global = Global::load(checkpoint, &config)?;
        let decoder = Decoder::load(checkpoint, &config)?;
        Ok(Model {
            weights: Arc::new(Weights {
                draft_costs: Costs::of(
                    entropy.as_ref().map(|e| &e.layers),
                    &encoder.layers,
                    &global.layers,
                    &decoder.layers,
                ),
                entropy,
                encoder,
                global,
                decoder,
                stored: Stored::new(checkpoint),
                config,
            }),
            compute: Arc::new(compute),
            device: None,
        })
    }

    /// The same weights computed with other threads or instructions.
    pub fn with_compute(&self, compute: Compute) -> Self {
        Model {
            weights: Arc::clone(&self.weights),
            compute: Arc::new(compute),
            device: self.device.clone(),
        }
    }

    /// The same weights computed on a device. On a GPU all matrices are copied to its memory, and the
    /// embedding tables if they fit too.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if there is no such device, it cannot run the kernels, its memory
    /// does not suffice, or this crate was built without the feature `cuda`. Not for
    /// [`Device::Auto`], which then is the CPU.
    pub fn on_device(&self, device: Device) -> Result<Self> {
        self.on_device_with(device, GpuOptions::default())
    }

    /// As [`Model::on_device`], a GPU as `options` say.
    ///
    /// # Errors
    /// As [`Model::on_device`].
    pub fn on_device_with(&self, device: Device, options: GpuOptions) -> Result<Self> {
        let device = match device {
            Device::Cpu => None,
            Device::Cuda(n) => Some(DeviceModel::new(&self.weights, n, options)?),
            Device::Auto => DeviceModel::new(&self.weights, 0, options).ok(),
        };
        Ok(Model {
            device: device.map(Arc::new),
            ..self.clone()
        })
    }

    /// Bytes per second that the GPU reads and writes together when it copies; `None` on the CPU.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if it has no room for two buffers of 256 MiB.
    pub fn gpu_bandwidth(&self) -> Result<Option<f64>> {
        (self.device.as_ref().map(|device| device.bandwidth())).transpose()
    }

    /// Kernels that the GPU has started for this model: all, and those for patches that ended; `None` on the CPU.
    pub fn gpu_kernels(&self) -> Option<(usize, usize)> {
        self.device.as_ref().map(|device| device.n_kernels())
    }

    /// The name of the GPU that computes; `None` if the CPU does.
    pub fn gpu_name(&self) -> Option<&str> {
        self.device.as_ref().map(|device| device.name())
    }

    /// How sessions keep keys and values unless told: see [`KvType::for_weights`].
    pub fn default_kv(&self) -> KvType {
        let first = self.weights.global.layers.blocks.first();
        first.map_or(KvType::F32, |b| KvType::for_weights(b.wq.tensor().dtype()))
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.weights.config
    }

    /// Threads and instructions.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// Whether both compute the same weights in the same place, so that sessions of both can read
    /// together.
    pub(crate) fn is_same(&self, other: &Model) -> bool {
        let device = |model: &Model| model.device.as_ref().map(Arc::as_ptr);
        Arc::ptr_eq(&self.weights, &other.weights)
            && Arc::ptr_eq(&self.compute, &other.compute)
            && device(self) == device(other)
    }

    /// Whether the model has an entropy model.
    pub fn has_entropy_model(&self) -> bool {
        self.weights.entropy.is_some()
    }
}
