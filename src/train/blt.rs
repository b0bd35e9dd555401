//! The Byte Latent Transformer, forward and backward: `model/forward.rs` for training.

use super::batch::Batch;
use super::block::Stack;
use super::byte_model::add_embedding_grad;
use super::cross::CrossAttention;
use super::float::{Float, add_assign, vectorized};
use super::grads::Grads;
use super::matmul::Accumulate;
use super::ops::{Score, cross_entropy, rms_norm};
use super::params::{ParamId, Params};
use super::pass::Pass;
use super::pooled_vec::PooledVec;
use crate::config::Config;
use crate::config::arch::EncoderCross;
use crate::vocab::VOCAB_SIZE;

/// Where the tensors are, and how they join.
#[derive(Debug, Clone)]
pub struct Blt {
    config: Config,
    tok_embeddings: ParamId,
    hash_embeddings: Vec<ParamId>,
    encoder: Stack,
    /// The encoder's cross-attentions that count, each with the layer whose output it reads.
    encoder_cross: Vec<(usize, CrossAttention)>,
    /// The layer whose output is pooled.
    pool_layer: usize,
    encoder_projection: ParamId,
    input_projection: Option<ParamId>,
    global: Stack,
    decoder_projection: ParamId,
    decoder_cross: Vec<CrossAttention>,
    decoder: Stack,
    norm: ParamId,
    output: ParamId,
}

impl Blt {
    /// The tensors `encoder.*`, `global.*` and `decoder.*`.
    pub fn new<F: Float>(params: &Params<F>, config: &Config) -> Self {
        let encoder_cross = |EncoderCross { layer, index }| {
            let prefix = format!("encoder.cross.{index}");
            (
                layer,
                CrossAttention::new(params, &prefix, &config.encoder_cross),
            )
        };
        let decoder_cross = |l| {
            let prefix = format!("decoder.cross.{l}");
            CrossAttention::new(params, &prefix, &config.decoder_cross)
        };
        Blt {
            tok_embeddings: params.id("encoder.tok_embeddings"),
            hash_embeddings: (0..config.hash.n_tables())
                .map(|t| params.id(&format!("encoder.hash_embeddings.{t}")))
                .collect(),
            encoder: Stack::new(params, "encoder", &config.encoder, 2000),
            encoder_cross: (config.encoder_cross_layers().into_iter())
                .map(encoder_cross)
                .collect(),
            pool_layer: config.pool_layer(),
            encoder_projection: params.id("encoder.patch_projection"),
            input_projection: (config.has_global_projection())
                .then(|| params.id("global.input_projection")),
            global: Stack::new(params, "global", &config.global, 3000),
            decoder_projection: params.id("decoder.patch_projection"),
            decoder_cross: (0..config.n_decoder_cross()).map(decoder_cross).collect(),
            decoder: Stack::new(params, "decoder", &config.decoder, 4000),
            norm: params.id("decoder.norm"),
            output: params.id("decoder.output"),
            config: config.clone(),
        }
    }

    /// The loss of a batch; with `grads`, adds the gradients of the sum of all positions' losses
    /// times `weight`. With `d_inputs` too, stores the gradient of the byte embeddings, (n, local
    /// dim), which shows what each prediction depends on.
    pub fn run<F: Float>(
        &self,
        pass: Pass<'_, F>,
        batch: &Batch<F>,
        weight: f64,
        grads: Option<&mut Grads<F>>,
        d_inputs: Option<&mut Vec<F>>,
    ) -> Score {
        let dim = self.config.encoder.dim;
        let n = batch.n();
        let n_patches = batch.patch_bytes.len();

        // Bytes: embeddings, then the local encoder.
        let mut x = PooledVec::zeros(n * dim); // (n, dim)
        let ids = batch.inputs.iter().map(|&id| usize::from(id));
        pass.params.add_rows(self.tok_embeddings, ids, None, &mut x);
        let shares = pass.dropout.and_then(|d| d.of_ngrams(2, n)); // (n)
        for (&table, rows) in self.hash_embeddings.iter().zip(&batch.hash_rows) {
            let rows = rows.iter().copied();
            pass.params.add_rows(table, rows, shares.as_deref(), &mut x);
        }
        pass.dropout(1, &mut x);
        let mut encoder_tapes = Vec::new();
        let mut states: Vec<PooledVec<F>> = Vec::new(); // outputs of the layers read, (n, dim) each
        for layer in 0..self.encoder.n_layers() {
            let (y, tape) = self.encoder.forward(pass, layer, &batch.encoder_rows, x);
            x = y;
            encoder_tapes.push(tape);
            if self.encoder_cross.iter().any(|(l, _)| *l == layer) {
                states.push(x.clone());
            }
        }

        // Patches: the largest value of each column, projected to k queries on the patch's bytes.
        let (pooled, winners) = pool(&states[self.state_of(self.pool_layer)], batch, dim); // (m, dim)
        let mut g = pass.linear(self.encoder_projection, &pooled); // (m * k, dim)
        let mut cross_tapes = Vec::new();
        for (layer, cross) in &self.encoder_cross {
            let kv = &states[self.state_of(*layer)];
            let (y, tape) = cross.forward(pass, g, kv, &batch.encoder_visible);
            g = y;
            cross_tapes.push(tape);
        }

        // Global transformer over patches.
        let mut y = match self.input_projection {
            Some(projection) => pass.linear(projection, &g), // (m, global dim)
            None => g.clone(),
        };
        let mut global_tapes = Vec::new();
        for layer in 0..self.global.n_layers() {
            let (z, tape) = self.global.forward(pass, layer, &batch.global_rows, y);
            y = z;
            global_tapes.push(tape);
        }
        let global_out = y;
        let u = pass.linear(self.decoder_projection, &global_out); // (m * k, dim)

        // Local decoder: starts from the byte states, each byte reads its patch.
        let mut decoder_tapes = Vec::new();
        let mut decoder_cross_tapes = Vec::new();
        for layer in 0..self.decoder.n_layers() {
            if let Some(cross) = self.decoder_cross.get(layer) {
                let (y, tape) = cross.forward(pass, x, &u, &batch.decoder_visible);
                x = y;
                decoder_cross_tapes.push(tape);
            }
            let (y, tape) = self.decoder.forward(pass, layer, &batch.decoder_rows, x);
            x = y;
            decoder_tapes.push(tape);
        }
        let norm = pass.params.get(self.norm).value.values();
        let (h, inv) = rms_norm(&x, &norm, self.config.decoder.norm_eps);
        let mut logits = pass.linear(self.output, &h); // (n, vocab)
        let (counted, rest) = logits.split_at_mut(batch.n_counted * VOCAB_SIZE);
        let mut score = cross_entropy(counted, &batch.targets, weight);
        rest.fill(F::ZERO);
        score.n_patches = n_patches;
        let Some(grads) = grads else { return score };

        // Backward, from the last layer to the first.
        let mut dh = PooledVec::any(h.len());
        pass.linear_backward(
            self.output,
            &h,
            &logits,
            Some((Accumulate::Overwrite, &mut dh)),
            grads,
        );
        drop(logits);
        let mut d = PooledVec::zeros(x.len()); // of the decoder's rows, (n, dim)
        pass.norm_backward(self.norm, &x, &inv, &dh, &mut d, grads);
        let mut du = PooledVec::zeros(u.len());
        for (layer, tape) in decoder_tapes.into_iter().enumerate().rev() {
            self.decoder
                .backward(pass, layer, &batch.decoder_rows, tape, &mut d, grads);
            if let Some(cross) = self.decoder_cross.get(layer) {
                let tape = decoder_cross_tapes.pop().expect("one per cross-attention");
                let visible = &batch.decoder_visible;
                cross.backward(pass, tape, &u, visible, &mut d, &mut du, grads);
            }
        }

        let mut dy = PooledVec::any(global_out.len());
        let dx = Some((Accumulate::Overwrite, &mut dy[..]));
        pass.linear_backward(self.decoder_projection, &global_out, &du, dx, grads);
        for (layer, tape) in global_tapes.into_iter().enumerate().rev() {
            self.global
                .backward(pass, layer, &batch.global_rows, tape, &mut dy, grads);
        }
        let mut dg = match self.input_projection {
            Some(projection) => {
                let mut dg = PooledVec::any(g.len());
                pass.linear_backward(
                    projection,
                    &g,
                    &dy,
                    Some((Accumulate::Overwrite, &mut dg)),
                    grads,
                );
                dg
            }
            None => dy,
        };

        let mut d_states: Vec<PooledVec<F>> =
            states.iter().map(|s| PooledVec::zeros(s.len())).collect();
        for ((layer, cross), tape) in self.encoder_cross.iter().zip(cross_tapes).rev() {
            let s = self.state_of(*layer);
            let visible = &batch.encoder_visible;
            cross.backward(
                pass,
                tape,
                &states[s],
                visible,
                &mut dg,
                &mut d_states[s],
                grads,
            );
        }
        let mut d_pooled = PooledVec::any(pooled.len());
        let dx = Some((Accumulate::Overwrite, &mut d_pooled[..]));
        pass.linear_backward(self.encoder_projection, &pooled, &dg, dx, grads);
        let d_state = &mut d_states[self.state_of(self.pool_layer)];
        for (i, (&row, &dp)) in winners.iter().zip(d_pooled.iter()).enumerate() {
            d_state[row as usize * dim + i % dim] += dp;
        }

        for (layer, tape) in encoder_tapes.into_iter().enumerate().rev() {
            if self.encoder_cross.iter().any(|(l, _)| *l == layer) {
                let d_state = d_states.pop().expect("one per layer read");
                add_assign(&mut d, &d_state);
            }
            self.encoder
                .backward(pass, layer, &batch.encoder_rows, tape, &mut d, grads);
        }
        pass.dropout(1, &mut d);
        add_embedding_grad(pass, self.tok_embeddings, &batch.inputs, &d, grads);
        if let Some(d_inputs) = d_inputs {
            *d_inputs = d.to_vec();
        }
        for (&share, d) in shares
            .iter()
            .flat_map(|s| s.iter())
            .zip(d.chunks_exact_mut(dim))
        {
            d.iter_mut().for_each(|d| *d *= share);
        }
        for (&table, rows) in self.hash_embeddings.iter().zip(&batch.hash_rows) {
            if pass.params.get(table).trained {
                grads.add_rows(table, dim, rows, &d);
            }
        }
        score
    }

    /// Which of the kept states is the output of encoder layer `layer`.
    fn state_of(&self, layer: usize) -> usize {
        let before = (self.encoder_cross.iter()).filter(|(l, _)| *l < layer);
        before.count()
    }
}

/// The largest value of each column of each patch's rows, (m, dim), and the row it came from.
fn pool<F: Float>(states: &[F], batch: &Batch<F>, dim: usize) -> (PooledVec<F>, Vec<u32>) {
    let n = batch.patch_bytes.len() * dim;
    let mut pooled = PooledVec::any(n);
    pooled.fill(F::NEG_INFINITY);
    let mut winners = vec![0u32; n];
    vectorized(
        #[inline(always)]
        || {
            let patches = pooled
                .chunks_exact_mut(dim)
                .zip(winners.chunks_exact_mut(dim));
            for ((best, winner), bytes) in patches.zip(&batch.patch_bytes) {
                for i in bytes.clone() {
                    let row = &states[i * dim..][..dim];
                    for ((best, winner), &x) in best.iter_mut().zip(winner.iter_mut()).zip(row) {
                        let better = x > *best;
                        *best = if better { x } else { *best };
                        *winner = if better { i as u32 } else { *winner };
                    }
                }
            }
        },
    );
    (pooled, winners)
}
