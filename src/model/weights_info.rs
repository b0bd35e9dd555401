//! Facts about the weights as stored: their number, their size, a fingerprint; and reading all of them into
//! memory.

use std::ops::ControlFlow;
use std::sync::OnceLock;

use super::block::Stack;
use super::{Model, Networks};
use crate::checkpoint::{Checkpoint, config_to_json};
use crate::config::{Config, PatcherConfig, PatchingMode};
use crate::tensor::Tensor;
use crate::wire::Checksum;

/// All tensors of a model.
#[derive(Debug)]
pub(super) struct WeightsInfo {
    tensors: Vec<(String, Tensor)>,
    fingerprint: OnceLock<u64>,
}

impl WeightsInfo {
    /// The tensors of a checkpoint; shares their bytes.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        let own = |(name, tensor): (&str, &Tensor)| (name.to_string(), tensor.clone());
        WeightsInfo {
            tensors: checkpoint.tensors().map(own).collect(),
            fingerprint: OnceLock::new(),
        }
    }

    /// A checksum that tells models apart: of the configuration without the patcher's settings and the
    /// limits, of all names, types and shapes, and of a sample of each tensor's bytes.
    fn fingerprint(&self, config: &Config) -> u64 {
        let mut sum = Checksum::default();
        let architecture = Config {
            patcher: PatcherConfig {
                mode: PatchingMode::Byte,
                threshold: 0.0,
                threshold_add: None,
                monotonicity: false,
                max_patch_length: None,
                patch_size: 1,
            },
            max_bytes: 1,
            max_patches: 1,
            ..config.clone()
        };
        sum.update(config_to_json(&architecture).as_bytes());
        for (name, tensor) in &self.tensors {
            sum.update(format!("{name} {} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
            /// Bytes looked at in each of three places. More would read more of the file.
            const SAMPLE: usize = 64;
            let bytes = tensor.bytes();
            for start in [0, bytes.len() / 2, bytes.len().saturating_sub(SAMPLE)] {
                sum.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
            }
        }
        sum.finish()
    }
}

/// Bytes of each network's layers, which are nearly all its weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkBytes {
    pub entropy: f64,
    pub encoder: f64,
    pub global: f64,
    pub decoder: f64,
}

impl NetworkBytes {
    pub(super) fn new(
        entropy: Option<&Stack>,
        encoder: &Stack,
        global: &Stack,
        decoder: &Stack,
    ) -> Self {
        let n_bytes = |stack: &Stack| stack.n_bytes() as f64;
        NetworkBytes {
            entropy: entropy.map_or(0.0, n_bytes),
            encoder: n_bytes(encoder),
            global: n_bytes(global),
            decoder: n_bytes(decoder),
        }
    }
}

impl Model {
    /// Bytes of each network's layers, if the model can draft: a BLT on the CPU.
    pub(crate) fn draft_networks(&self) -> Option<&NetworkBytes> {
        match &self.networks {
            Networks::Blt(weights) if self.device.is_none() => Some(&weights.network_bytes),
            _ => None,
        }
    }

    /// Whether ids can be chosen where their logits are computed: [`IdChoice`](super::sequence::IdChoice).
    pub(crate) fn chooses_ids(&self) -> bool {
        self.device.is_some()
    }

    /// A checksum that tells models apart: of the configuration without the patcher's settings and the
    /// limits, of all tensors' names, types and shapes, and of a sample of their bytes. It does not protect
    /// against somebody who wants two models to have the same one.
    pub fn fingerprint(&self) -> u64 {
        let info = &self.info.weights;
        *info
            .fingerprint
            .get_or_init(|| info.fingerprint(self.config()))
    }

    /// Number of weights, tables and the entropy model included.
    pub fn n_parameters(&self) -> usize {
        let tensors = self.info.weights.tensors.iter();
        tensors.map(|(_, tensor)| tensor.n_elements()).sum()
    }

    /// Bytes of the weights as stored.
    pub fn weight_bytes(&self) -> usize {
        let tensors = self.info.weights.tensors.iter();
        tensors.map(|(_, tensor)| tensor.bytes().len()).sum()
    }

    /// Reads all weights into memory, so that the first bytes do not wait for the disk. Without
    /// this, weights are read when they are first used (of the hash tables, only the rows used).
    ///
    /// `progress` is called after each piece of at most 8 MiB with the bytes of
    /// [`Model::weight_bytes`] read so far, and can stop the reading. Returns whether it did.
    pub fn preload(&self, mut progress: impl FnMut(usize) -> ControlFlow<()>) -> ControlFlow<()> {
        const PIECE: usize = 8 << 20;
        const PAGE: usize = 4096;
        let mut n_read = 0;
        for (_, tensor) in &self.info.weights.tensors {
            for piece in tensor.bytes().chunks(PIECE) {
                // One byte of each page: the system fetches the rest.
                let touched = piece.iter().step_by(PAGE).fold(0u8, |sum, &b| sum ^ b);
                std::hint::black_box(touched);
                n_read += piece.len();
                progress(n_read)?;
            }
        }
        ControlFlow::Continue(())
    }
}
