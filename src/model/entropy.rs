//! The entropy model: a small byte-level transformer whose uncertainty cuts the patches.
//!
//! Paper section 2.3, spec section 3.

use crate::cache::KvCache;
use crate::checkpoint::Checkpoint;
use crate::config::TransformerConfig;
use crate::error::Result;
use crate::model::block::{Rows, Stack};
use crate::model::weights::{matrix, table, vector};
use crate::ops::{self, Compute, Matrix};
use crate::vocab::{Id, VOCAB_SIZE};

/// The entropy model's weights.
#[derive(Debug)]
pub struct EntropyModel {
    tok_embeddings: Matrix, // (vocab, dim)
    /// The layers.
    pub layers: Stack,
    pub(super) norm: Vec<f32>, // (dim)
    pub(super) output: Matrix, // (vocab, dim)
}

impl EntropyModel {
    /// Takes the tensors `entropy.*`.
    pub fn load(checkpoint: &Checkpoint, config: &TransformerConfig) -> Result<Self> {
        let dim = config.dim;
        Ok(EntropyModel {
            tok_embeddings: table(checkpoint, "entropy.tok_embeddings", VOCAB_SIZE, dim)?,
            layers: Stack::load(checkpoint, "entropy", config)?,
            norm: vector(checkpoint, "entropy.norm", dim)?,
            output: matrix(checkpoint, "entropy.output", VOCAB_SIZE, dim)?,
        })
    }

    /// Embeddings of ids (n, dim).
    pub fn embed(&self, compute: &Compute, ids: &[Id]) -> Vec<f32> {
        let dim = self.norm.len();
        let mut x = vec![0.0; ids.len() * dim]; // (n, dim)
        for (x, &id) in x.chunks_exact_mut(dim).zip(ids) {
            ops::add_table_row(compute, &self.tok_embeddings, id.into(), x);
        }
        x
    }

    /// Logits of the next id after each of `ids` (n, vocab).
    pub fn forward(
        &self,
        compute: &Compute,
        ids: &[Id],
        rows: &Rows,
        caches: &mut [&mut KvCache],
    ) -> Vec<f32> {
        let mut x = self.embed(compute, ids); // (n, dim)
        for layer in 0..self.layers.n_layers() {
            self.layers
                .forward_layer(compute, layer, rows, caches, &mut x);
        }
        let mut h = vec![0.0; x.len()]; // (n, dim)
        ops::rms_norm(compute, &x, &self.norm, self.layers.config.norm_eps, &mut h);
        let mut logits = vec![0.0; ids.len() * VOCAB_SIZE]; // (n, vocab)
        ops::linear(compute, &self.output, &h, &mut logits);
        logits
    }
}
