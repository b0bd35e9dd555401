//! The entropy model, forward and backward: `model/entropy.rs` for training.

use super::batch::ByteBatch;
use super::block::Stack;
use super::float::{Float, max_of, sum_of, vectorized};
use super::grads::Grads;
use super::matmul::Accumulate;
use super::ops::{Score, cross_entropy, rms_norm};
use super::params::{ParamId, Params};
use super::pass::Pass;
use super::pooled_vec::PooledVec;
use crate::config::TransformerConfig;
use crate::vocab::VOCAB_SIZE;

/// Where the entropy model's tensors are.
#[derive(Debug, Clone)]
pub struct ByteModel {
    tok_embeddings: ParamId,
    layers: Stack,
    norm: ParamId,
    output: ParamId,
}

impl ByteModel {
    /// The tensors `entropy.*`.
    pub fn new<F: Float>(params: &Params<F>, config: &TransformerConfig) -> Self {
        ByteModel {
            tok_embeddings: params.id("entropy.tok_embeddings"),
            layers: Stack::new(params, "entropy", config, 1000),
            norm: params.id("entropy.norm"),
            output: params.id("entropy.output"),
        }
    }

    /// Entropy in nats of the id after each position (n).
    pub fn entropies<F: Float>(&self, pass: Pass<'_, F>, batch: &ByteBatch<F>) -> Vec<f32> {
        let mut x = self.embed(pass, batch);
        for layer in 0..self.layers.n_layers() {
            x = self.layers.forward(pass, layer, &batch.rows, x).0;
        }
        let norm = pass.params.get(self.norm).value.values();
        let (h, _) = rms_norm(&x, &norm, self.layers.config().norm_eps);
        let mut logits = pass.linear(self.output, &h);
        let entropy = |row: &mut [F]| {
            vectorized(
                #[inline(always)]
                || {
                    let max = max_of(row);
                    row.iter_mut().for_each(|l| *l -= max);
                    let sum = sum_of(row.len(), |i| row[i].exp());
                    let weighted = sum_of(row.len(), |i| row[i].exp() * row[i]);
                    (sum.f64().ln() - (weighted / sum).f64()) as f32
                },
            )
        };
        logits.chunks_exact_mut(VOCAB_SIZE).map(entropy).collect()
    }

    fn embed<F: Float>(&self, pass: Pass<'_, F>, batch: &ByteBatch<F>) -> PooledVec<F> {
        let dim = self.layers.config().dim;
        let mut x = PooledVec::zeros(batch.inputs.len() * dim);
        let ids = batch.inputs.iter().map(|&id| usize::from(id));
        pass.params.add_rows(self.tok_embeddings, ids, None, &mut x);
        x
    }

    /// The loss of a batch; with `grads`, adds the gradients of the sum of all positions' losses
    /// times `weight`.
    pub fn run<F: Float>(
        &self,
        pass: Pass<'_, F>,
        batch: &ByteBatch<F>,
        weight: f64,
        grads: Option<&mut Grads<F>>,
    ) -> Score {
        let mut x = self.embed(pass, batch); // (n, dim)
        pass.dropout(999, &mut x);
        let mut tapes = Vec::new();
        for layer in 0..self.layers.n_layers() {
            let (y, tape) = self.layers.forward(pass, layer, &batch.rows, x);
            x = y;
            if grads.is_some() {
                tapes.push(tape);
            }
        }
        let norm = pass.params.get(self.norm).value.values();
        let (h, inv) = rms_norm(&x, &norm, self.layers.config().norm_eps);
        let mut logits = pass.linear(self.output, &h); // (n, vocab)
        let score = cross_entropy(&mut logits, &batch.targets, weight);
        let Some(grads) = grads else { return score };

        let mut dh = PooledVec::any(h.len());
        pass.linear_backward(
            self.output,
            &h,
            &logits,
            Some((Accumulate::Overwrite, &mut dh)),
            grads,
        );
        let mut d = PooledVec::zeros(x.len());
        pass.norm_backward(self.norm, &x, &inv, &dh, &mut d, grads);
        for (layer, tape) in tapes.into_iter().enumerate().rev() {
            self.layers
                .backward(pass, layer, &batch.rows, tape, &mut d, grads);
        }
        pass.dropout(999, &mut d);
        add_embedding_grad(pass, self.tok_embeddings, &batch.inputs, &d, grads);
        score
    }
}

/// Adds the gradient of byte embeddings from that of the rows d (n, dim) they were added to.
pub(super) fn add_embedding_grad<F: Float>(
    pass: Pass<'_, F>,
    table: ParamId,
    ids: &[crate::vocab::Id],
    d: &[F],
    grads: &mut Grads<F>,
) {
    let param = pass.params.get(table);
    if !param.trained {
        return;
    }
    let dim = param.shape[1];
    let dw = grads.dense(table, param);
    vectorized(
        #[inline(always)]
        || {
            for (&id, d) in ids.iter().zip(d.chunks_exact(dim)) {
                super::float::axpy(F::ONE, d, &mut dw[usize::from(id) * dim..][..dim]);
            }
        },
    );
}
