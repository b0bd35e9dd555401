//! Facts about the weights as stored: their number, their size, a fingerprint; and reading all of them into
//! memory.

use std::ops::ControlFlow;
use std::sync::OnceLock;

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

    /// See [`Model::fingerprint`](super::Model::fingerprint).
    pub fn fingerprint(&self, config: &Config) -> u64 {
        *self.fingerprint.get_or_init(|| self.checksum(config))
    }

    /// Number of weights.
    pub fn n_parameters(&self) -> usize {
        let tensors = self.tensors.iter();
        tensors.map(|(_, tensor)| tensor.n_elements()).sum()
    }

    /// Bytes of the weights as stored.
    pub fn n_bytes(&self) -> usize {
        let tensors = self.tensors.iter();
        tensors.map(|(_, tensor)| tensor.bytes().len()).sum()
    }

    /// See [`Model::preload`](super::Model::preload).
    pub fn preload(&self, progress: &mut dyn FnMut(usize) -> ControlFlow<()>) -> ControlFlow<()> {
        const STEP: usize = 8 << 20;
        const PAGE: usize = 4096;
        let mut n_read = 0;
        for (_, tensor) in &self.tensors {
            for piece in tensor.bytes().chunks(STEP) {
                // One byte of each page: the system fetches the rest.
                let touched = piece.iter().step_by(PAGE).fold(0u8, |sum, &b| sum ^ b);
                std::hint::black_box(touched);
                n_read += piece.len();
                progress(n_read)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The checksum of the configuration without the patcher's settings and the limits, of all names, types and
    /// shapes, and of a sample of each tensor's bytes.
    fn checksum(&self, config: &Config) -> u64 {
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
            sum.update(format!("{name} {} {:?}", tensor.dtype().name(), tensor.shape()).as_bytes());
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
