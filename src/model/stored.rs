//! The weights as they are stored: how many, of which model, and whether they are in memory.

use std::ops::ControlFlow;
use std::sync::OnceLock;

use super::Model;
use crate::checkpoint::{Checkpoint, config_to_json};
use crate::config::{Config, PatcherConfig, PatchingMode};
use crate::tensor::Tensor;
use crate::wire::Checksum;

/// All tensors of a model.
#[derive(Debug)]
pub(super) struct Stored {
    tensors: Vec<(String, Tensor)>,
    fingerprint: OnceLock<u64>,
}

impl Stored {
    /// The tensors of a checkpoint; shares their bytes.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        let own = |(name, tensor): (&str, &Tensor)| (name.to_string(), tensor.clone());
        Stored {
            tensors: checkpoint.tensors().map(own).collect(),
            fingerprint: OnceLock::new(),
        }
    }

    /// A number that differs between models: of the configuration (but for the patcher's settings
    /// and the limits), of all names, types and shapes, and of a sample of each tensor's bytes.
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

impl Model {
    /// A number that tells models apart: of the configuration (but for the patcher's settings and
    /// the limits), of all tensors' names, types and shapes, and of a sample of their bytes. Not a
    /// protection against somebody who wants two models to have the same.
    pub fn fingerprint(&self) -> u64 {
        let stored = &self.weights.stored;
        *stored
            .fingerprint
            .get_or_init(|| stored.fingerprint(self.config()))
    }

    /// Number of weights, tables and the entropy model included.
    pub fn n_parameters(&self) -> usize {
        let tensors = self.weights.stored.tensors.iter();
        tensors.map(|(_, tensor)| tensor.n_elements()).sum()
    }

    /// Bytes of the weights as stored.
    pub fn weight_bytes(&self) -> usize {
        let tensors = self.weights.stored.tensors.iter();
        tensors.map(|(_, tensor)| tensor.bytes().len()).sum()
    }

    /// Reads all weights into memory, so that the first bytes do not wait for the disk. Without
    /// this, weights are read when they are first used (of the hash tables, only the rows used).
    ///
    /// `progress` is told after each piece of at most 8 MiB how many bytes of
    /// [`Model::weight_bytes`] have been read, and can stop the reading. Says whether it did.
    pub fn preload(&self, mut progress: impl FnMut(usize) -> ControlFlow<()>) -> ControlFlow<()> {
        const PIECE: usize = 8 << 20;
        const PAGE: usize = 4096;
        let mut n_read = 0;
        for (_, tensor) in &self.weights.stored.tensors {
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
