//! The Byte Latent Transformer: its four networks, and the pass that joins them. `bolmo/` has a family of models
//! that differ in most parts.
//!
//! [`Model`] holds the weights: shared, immutable, `Send + Sync`. What changes while running is in the state
//! that a [`Session`](crate::Session) holds. Sessions call the passes of `pass.rs`; `forward.rs` is the
//! figure of a BLT, the whole path of a byte from top to bottom.

#![forbid(unsafe_code)]

pub(crate) mod backend;
pub(crate) mod block;
pub(crate) mod blt;
mod bolmo;
pub(crate) mod cross;
mod decoder;
pub(crate) mod device_caches;
mod differential;
mod draft;
mod encoder;
pub(crate) mod entropy;
mod forward;
mod global;
pub mod hash;
mod mlstm;
mod pass;
pub mod patcher;
pub(crate) mod sequence;
mod sequence_state;
pub(crate) mod split;
mod state;
pub(crate) mod state_file;
mod trace;
mod weights;
mod weights_info;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::cache::KvType;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::Compute;
use crate::vocab::{Choices, Id, VOCAB_SIZE};

pub(crate) use blt::NetworkBytes;
pub(crate) use bolmo::Bolmo;
pub(crate) use sequence_state::{Mark, Patching, SequenceState};
pub(crate) use state::{MAX_BATCH, State};
pub use trace::Trace;

use backend::{Backend, Cpu};
use blt::{Blt, BltWeights};
use weights_info::WeightsInfo;

/// A loaded model. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Model {
    networks: Networks,
    info: Arc<Info>,
    pub(crate) compute: Arc<Compute>,
    /// The backend that computes instead of the CPU.
    device: Option<Arc<dyn Backend>>,
}

/// The networks of one of the families.
#[derive(Debug, Clone)]
enum Networks {
    Blt(Arc<BltWeights>),
    Bolmo(Arc<Bolmo>),
}

/// Facts about a model of any family.
#[derive(Debug)]
struct Info {
    config: Config,
    weights: WeightsInfo,
}

impl Model {
    /// Opens a checkpoint in any of the known layouts, with all threads and the best instructions
    /// the machine has. Weights stay in the mapped file.
    ///
    /// # Errors
    /// Errors of the file: see [`Checkpoint::open`].
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
        let networks = match &config.bolmo {
            Some(_) => Networks::Bolmo(Arc::new(Bolmo::load(checkpoint, &config)?)),
            None => Networks::Blt(Arc::new(BltWeights::load(checkpoint, &config)?)),
        };
        Ok(Model {
            networks,
            info: Arc::new(Info {
                weights: WeightsInfo::new(checkpoint),
                config,
            }),
            compute: Arc::new(compute),
            device: None,
        })
    }

    /// This model computed with other threads or instructions.
    pub fn with_compute(&self, compute: Compute) -> Self {
        Model {
            compute: Arc::new(compute),
            ..self.clone()
        }
    }

    /// This model computed by a backend; `None`: by the CPU.
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

    /// How sessions keep keys and values by default: see [`KvType::for_weights`].
    pub fn default_kv(&self) -> KvType {
        let global = match &self.networks {
            Networks::Blt(weights) => &weights.global.layers,
            Networks::Bolmo(bolmo) => &bolmo.global,
        };
        let first = global.blocks.first();
        first.map_or(KvType::F32, |b| KvType::for_weights(b.wq.tensor().dtype()))
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.info.config
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
        Arc::ptr_eq(&self.info, &other.info)
            && Arc::ptr_eq(&self.compute, &other.compute)
            && same_backend
    }

    /// Whether the model has an entropy model.
    pub fn has_entropy_model(&self) -> bool {
        self.info.config.entropy.is_some()
    }

    /// The ids that the model chooses among, for a [`Sampler`](crate::sampler::Sampler) of its own.
    pub fn choices(&self) -> Choices {
        self.info.config.choices()
    }

    /// Whether all ids can be read; `written`: with the flags that they were chosen with.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first that cannot.
    pub(crate) fn check_ids(&self, ids: &[Id], written: bool) -> Result<()> {
        let choices = self.choices();
        let expected = match (written, &self.networks) {
            (true, Networks::Bolmo(_)) => {
                "ids of bytes, with or without the flag that they end a patch"
            }
            (false, Networks::Bolmo(_)) => "ids of bytes or 1, the start of a text",
            (_, Networks::Blt(_)) => "ids below 260",
        };
        let can_read = |id: Id| match &self.networks {
            Networks::Blt(_) => usize::from(id) < VOCAB_SIZE,
            Networks::Bolmo(bolmo) => {
                let plain = if written { choices.plain(id) } else { id };
                usize::from(id) < choices.n_ids() && bolmo.encoder.can_read(plain)
            }
        };
        match ids.iter().find(|&&id| !can_read(id)) {
            None => Ok(()),
            Some(bad) => Err(Error::argument(
                "ids",
                format!("expected {expected}, found {bad}"),
            )),
        }
    }

    /// The networks of a BLT.
    ///
    /// # Panics
    /// If the model is of another family, which has passes of its own.
    pub(crate) fn blt(&self) -> Blt<'_> {
        match &self.networks {
            Networks::Blt(weights) => Blt {
                weights,
                compute: &self.compute,
            },
            Networks::Bolmo(_) => panic!("a pass of a BLT with a Bolmo model"),
        }
    }

    pub(crate) fn bolmo(&self) -> Option<&Bolmo> {
        match &self.networks {
            Networks::Blt(_) => None,
            Networks::Bolmo(bolmo) => Some(bolmo),
        }
    }

    /// Bytes of each network's layers, if the model can draft: a BLT on the CPU.
    pub(crate) fn draft_networks(&self) -> Option<&NetworkBytes> {
        match &self.networks {
            Networks::Blt(weights) if self.device.is_none() => Some(&weights.network_bytes),
            _ => None,
        }
    }

    /// Whether ids can be chosen where their logits are computed: [`IdChoice`](sequence::IdChoice).
    pub(crate) fn chooses_ids(&self) -> bool {
        self.device.is_some()
    }

    /// A checksum that identifies the model: of the configuration without the patcher's settings and the
    /// limits, of all tensors' names, types and shapes, and of a sample of their bytes. It does not protect
    /// against somebody who wants two models to have the same one.
    pub fn fingerprint(&self) -> u64 {
        self.info.weights.fingerprint(self.config())
    }

    /// Number of weights, tables and the entropy model included.
    pub fn n_parameters(&self) -> usize {
        self.info.weights.n_parameters()
    }

    /// Bytes of the weights as stored.
    pub fn weight_bytes(&self) -> usize {
        self.info.weights.n_bytes()
    }

    /// Reads all weights into memory, so that the first bytes do not wait for the disk. Without
    /// this, weights are read when they are first used (of the hash tables, only the rows used).
    ///
    /// `progress` is called after each piece of at most 8 MiB with the bytes of
    /// [`Model::weight_bytes`] read so far, and can stop the reading. Returns whether it did.
    pub fn preload(&self, mut progress: impl FnMut(usize) -> ControlFlow<()>) -> ControlFlow<()> {
        self.info.weights.preload(&mut progress)
    }
}
