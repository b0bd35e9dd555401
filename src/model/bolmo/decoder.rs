//! The local decoder: byte states and the latest patch that has ended in, logits of the next byte out.

use super::encoder::bolmo;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::Result;
use crate::model::mlstm::MlstmStack;
use crate::model::weights::{matrix, vector};
use crate::ops::{self, Compute, Matrix, ScratchVec};
use crate::recurrence::Recurrence;

/// The local decoder's weights.
#[derive(Debug)]
pub struct Decoder {
    byte_projection: Matrix, // (dim, dim)
    byte_bias: Vec<f32>,     // (dim)
    patch_norm: Vec<f32>,    // (dim)
    patch_norm_eps: f32,
    /// The layers.
    pub layers: MlstmStack,
    norm: Vec<f32>, // (dim)
    norm_eps: f32,
    output: Matrix, // (2 * vocab, dim)
}

impl Decoder {
    /// Takes the tensors `decoder.*`.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let dim = config.decoder.dim;
        Ok(Decoder {
            byte_projection: matrix(checkpoint, "decoder.byte_projection", dim, dim)?,
            byte_bias: vector(checkpoint, "decoder.byte_bias", dim)?,
            patch_norm: vector(checkpoint, "decoder.patch_norm", dim)?,
            patch_norm_eps: bolmo(config).join_norm_eps,
            layers: MlstmStack::load(checkpoint, "decoder", &config.decoder)?,
            norm: vector(checkpoint, "decoder.norm", dim)?,
            norm_eps: config.decoder.norm_eps,
            output: matrix(checkpoint, "decoder.output", config.n_logits(), dim)?,
        })
    }

    /// Columns of the output: two for each id.
    pub fn n_logits(&self) -> usize {
        self.output.rows()
    }

    /// What bytes are given of patches, (n, dim), from the global outputs (n, dim).
    pub fn patches<'c>(&self, compute: &'c Compute, global_out: &[f32]) -> ScratchVec<'c, f32> {
        let mut patches = compute.buffer(global_out.len());
        ops::rms_norm(
            compute,
            global_out,
            &self.patch_norm,
            self.patch_norm_eps,
            &mut patches,
        );
        patches
    }

    /// Runs the layers for bytes with these states (n, dim), each given a patch (n, dim): (n, dim).
    pub fn forward<'c>(
        &self,
        compute: &'c Compute,
        runs: &mut [(usize, &mut Recurrence)],
        states: &[f32],
        patches: &[f32],
    ) -> ScratchVec<'c, f32> {
        let mut y = compute.buffer(states.len());
        ops::linear_with_bias(
            compute,
            &self.byte_projection,
            &self.byte_bias,
            states,
            &mut y,
        );
        ops::add_assign(compute, &mut y, patches);
        self.layers.forward(compute, runs, &mut y);
        y
    }

    /// Logits (n, 2 * vocab) from the layers' outputs (n, dim).
    pub fn logits<'c>(&self, compute: &'c Compute, y: &[f32]) -> ScratchVec<'c, f32> {
        let mut h = compute.buffer(y.len()); // (n, dim)
        ops::rms_norm(compute, y, &self.norm, self.norm_eps, &mut h);
        let n = y.len() / self.norm.len();
        let mut logits = compute.buffer(n * self.output.rows()); // (n, 2 * vocab)
        ops::linear(compute, &self.output, &h, &mut logits);
        logits
    }
}
