//! The Byte Latent Transformer: its four networks, and the pass that joins them.
//!
//! [`Model`] is weights: shared, immutable, `Send + Sync`. What changes while running is in the
//! `State` that a [`Session`](crate::Session) holds. `forward.rs` reads down the whole path of a
//! byte.

pub(crate) mod backend;
pub(crate) mod block;
pub(crate) mod cross;
mod decoder;
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
mod weights;
mod weights_info;

use std::path::Path;
use std::sync::Arc;

use crate::cache::KvType;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::config::Config;
use crate::error::Result;
use crate::ops::Compute;

pub use draft::DraftCounts;
pub use forward::Trace;
pub(crate) use forward::{Failure, MAX_BATCH, Part, Wanted};
pub(crate) use state::State;

use backend::{Backend, Cpu};
use decoder::Decoder;
use draft::Costs;
use encoder::Encoder;
pub(crate) use entropy::EntropyModel;
use global::Global;
use weights_info::WeightsInfo;

/// A loaded model. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Model {
    pub(crate) weights: Arc<Weights>,
    pub(crate) compute: Arc<Compute>,
    /// What computes instead of the CPU.
    device: Option<Arc<dyn Backend>>,
}

#[derive(Debug)]
pub(crate) struct Weights {
    config: Config,
    pub(crate) entropy: Option<EntropyModel>,
    pub(crate) encoder: Encoder,
    pub(crate) global: Global,
    pub(crate) decoder: Decoder,
    draft_costs: Costs,
    info: WeightsInfo,
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
                info: WeightsInfo::new(checkpoint),
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

    /// The same weights computed by a backend, or by the CPU.
    pub(crate) fn with_backend(&self, device: Option<Arc<dyn Backend>>) -> Self {
        Model {
            device,
            ..self.clone()
        }
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        self.device.as_deref().unwrap_or(&Cpu)
    }

    /// Bytes per second that the GPU reads and writes together when it copies; `None` on the CPU.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if it has no room for two buffers of 256 MiB.
    pub fn gpu_bandwidth(&self) -> Result<Option<f64>> {
        self.backend().gpu_bandwidth()
    }

    /// Kernels that the GPU has started for this model: all, and those for patches that ended; `None` on the CPU.
    pub fn gpu_kernels(&self) -> Option<(usize, usize)> {
        self.backend().gpu_kernels()
    }

    /// The name of the GPU that computes; `None` if the CPU does.
    pub fn gpu_name(&self) -> Option<&str> {
        self.backend().gpu_name()
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
        let same_backend = match (&self.device, &other.device) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        Arc::ptr_eq(&self.weights, &other.weights)
            && Arc::ptr_eq(&self.compute, &other.compute)
            && same_backend
    }

    /// Whether the model has an entropy model.
    pub fn has_entropy_model(&self) -> bool {
        self.weights.entropy.is_some()
    }
}
