//! The entropy model: a small byte-level transformer whose uncertainty decides where patches start.
//!
//! Paper section 2.3, spec section 3.

use crate::cache::KvCache;
use crate::checkpoint::Checkpoint;
use crate::config::TransformerConfig;
use crate::error::Result;
use crate::model::block::{Rows, Stack};
use crate::model::weights::{matrix, table, vector};
use crate::ops::{self, Compute, Matrix, ScratchVec};
use crate::vocab::{Id, VOCAB_SIZE};

/// The entropy model's weights. Its activations keep 15 bits where its weights are quantised: a small error
/// can move the start of a patch, and everything after that differs.
#[derive(Debug)]
pub struct EntropyModel {
    pub(crate) tok_embeddings: Matrix, // (vocab, dim)
    /// The layers.
    pub layers: Stack,
    pub(crate) norm: Vec<f32>, // (dim)
    pub(crate) output: Matrix, // (vocab, dim)
}

impl EntropyModel {
    /// Takes the tensors `entropy.*`.
    pub fn load(checkpoint: &Checkpoint, config: &TransformerConfig) -> Result<Self> {
        let dim = config.dim;
        Ok(EntropyModel {
            tok_embeddings: table(checkpoint, "entropy.tok_embeddings", VOCAB_SIZE, dim)?,
            layers: Stack::load(checkpoint, "entropy", config)?.with_two_terms(),
            norm: vector(checkpoint, "entropy.norm", dim)?,
            output: matrix(checkpoint, "entropy.output", VOCAB_SIZE, dim)?.with_two_terms(),
        })
    }

    /// Embeddings of ids (n, dim).
    pub fn embed<'c>(&self, compute: &'c Compute, ids: &[Id]) -> ScratchVec<'c, f32> {
        let dim = self.norm.len();
        let mut x = compute.buffer(ids.len() * dim); // (n, dim)
        x.fill(0.0);
        for (x, &id) in x.chunks_exact_mut(dim).zip(ids) {
            ops::add_table_row(compute, &self.tok_embeddings, id.into(), x);
        }
        x
    }

    /// Width of the embeddings.
    pub fn dim(&self) -> usize {
        self.norm.len()
    }

    /// Logits of the next id after each of the ids (n, vocab) with the embeddings x (n, dim).
    pub fn forward<'c>(
        &self,
        compute: &'c Compute,
        mut x: ScratchVec<'c, f32>,
        rows: &Rows<'_>,
        caches: &mut [&mut KvCache],
    ) -> ScratchVec<'c, f32> {
        for layer in 0..self.layers.n_layers() {
            self.layers
                .forward_layer(compute, layer, rows, caches, &mut x);
        }
        let mut h = compute.buffer(x.len()); // (n, dim)
        ops::rms_norm(compute, &x, &self.norm, self.layers.config.norm_eps, &mut h);
        let mut logits = compute.buffer(rows.n() * VOCAB_SIZE); // (n, vocab)
        ops::linear(compute, &self.output, &h, &mut logits);
        logits
    }
}
