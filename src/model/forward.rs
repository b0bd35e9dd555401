//! The whole path of a byte, top to bottom: the spec's section 9.4 for a run of bytes at once.
//!
//! Each row's arithmetic is the same whatever rows are computed with it, so reading a text at once
//! or byte by byte gives the same bits (tests/invariance.rs).

use super::{Model, State, state::SLACK};
use crate::error::{Error, Result};
use crate::ops;
use crate::vocab::{EOS, Id, VOCAB_SIZE};

/// Most bytes read in one pass: the caches' slack allows no more, and the scratch stays small.
pub(crate) const MAX_BATCH: usize = SLACK;

/// Which logits a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// None.
    Nothing,
    /// Those after the last byte.
    Last,
    /// Those after every byte.
    All,
}

/// What a pass computed.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Logits, (1 or n, vocab); empty if none were wanted.
    pub logits: Vec<f32>,
}

/// Intermediate tensors of the bytes and patches read, for tests and tools.
#[derive(Debug, Default, Clone)]
pub struct Trace {
    /// Byte embeddings with their n-grams, (n, local dim).
    pub input_embeds: Vec<f32>,
    /// Byte states after the local encoder, (n, local dim).
    pub encoder_hidden: Vec<f32>,
    /// Patch vectors of the closed patches, (patches * k, local dim).
    pub encoder_cross: Vec<f32>,
    /// Global outputs of the closed patches, (patches, global dim).
    pub global_out: Vec<f32>,
    /// Logits of the entropy model, (n, vocab).
    pub entropy_logits: Vec<f32>,
}

impl Model {
    /// Reads up to [`MAX_BATCH`] `ids`. On an error the state stays as it was.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if an entropy or a wanted logit is NaN or infinite; [`Error::Device`] if
    /// the GPU fails.
    pub(crate) fn forward(
        &self,
        state: &mut State,
        ids: &[Id],
        wanted: Wanted,
        trace: Option<&mut Trace>,
    ) -> Result<Batch> {
        let old = (state.ids.len(), state.starts.len(), state.eos.len());
        let patcher = state.patcher.clone();
        let result = (self.compute).install(|| self.forward_batch(state, ids, wanted, trace));
        if result.is_err() {
            // Caches past the length are dead; only what counts positions must go back.
            state.ids.truncate(old.0);
            state.entropies.truncate(old.0);
            state.starts.truncate(old.1);
            state.eos.truncate(old.2);
            state.patcher = patcher;
        }
        if result.is_err() && self.device.is_none() {
            state.byte_states.iter_mut().for_each(|s| s.truncate(old.0));
            state.global_out.truncate(old.1 - 1);
            state.read_patches_again(self);
        }
        result
    }

    fn forward_batch(
        &self,
        state: &mut State,
        ids: &[Id],
        wanted: Wanted,
        mut trace: Option<&mut Trace>,
    ) -> Result<Batch> {
        let compute = &*self.compute;
        let w = &*self.weights;
        let first = state.ids.len();
        let n = ids.len();
        let end = first + n;
        assert!((1..=MAX_BATCH).contains(&n));
        let mut gpu = (self.device.as_ref())
            .map(|device| device.begin(&mut state.device))
            .transpose()?;

        state.ids.extend_from_slice(ids);
        let eos = (first..end).filter(|&p| state.ids[p] == EOS);
        state.eos.extend(eos);
        let (text, eos) = (&state.ids, &state.eos);
        let segment = |of: &crate::config::TransformerConfig, position| match of.eos_segments {
            true => State::segment_start(eos, position),
            false => 0,
        };

        // How uncertain the next byte is, in nats.
        if let (Some(entropy), Some(cache)) = (&w.entropy, &mut state.entropy_cache) {
            let reset = state.entropy_reset.unwrap_or(usize::MAX);
            let origin = |p: usize| p / reset * reset;
            let barrier = |p| segment(&entropy.layers.config, p).max(origin(p));
            let rows = entropy.layers.rows(first, n, origin, barrier);
            let of_trace = trace.as_deref_mut().map(|t| &mut t.entropy_logits);
            if let Some(gpu) = &mut gpu {
                let x = entropy.embed(compute, ids);
                let entropies = gpu.entropies(&x, &rows, of_trace)?;
                state.entropies.extend(entropies);
            } else {
                let logits = entropy.forward(compute, ids, &rows, cache); // (n, vocab)
                let row_entropy = |row| ops::entropy(compute, row);
                state
                    .entropies
                    .extend(logits.chunks_exact(VOCAB_SIZE).map(row_entropy));
                if let Some(of_trace) = of_trace {
                    of_trace.extend(logits);
                }
            }
            if let Some(bad) = state.entropies[first..].iter().position(|e| !e.is_finite()) {
                return Err(Error::NonFinite {
                    what: "entropy",
                    position: first + bad,
                });
            }
        } else {
            state.entropies.resize(end, f32::NAN);
        }

        // Where patches start: decided for byte p + 1 as soon as byte p is read. The model insists
        // on a first patch of one byte.
        let mut n_closed = Vec::with_capacity(n); // patches closed once each byte is read
        for (p, &id) in (first..end).zip(&text[first..]) {
            if state.patcher.push(id, state.entropies[p]) || p == 0 {
                state.starts.push(p + 1);
            }
            n_closed.push(state.starts.len() - 1);
        }

        // Bytes: embeddings, then the local encoder.
        let origin = |_| 0;
        let mut x = w.encoder.embed(compute, text, first); // (n, local dim)
        if let Some(trace) = trace.as_deref_mut() {
            trace.input_embeds.extend_from_slice(&x);
        }
        let layers = &w.encoder.layers;
        let rows = layers.rows(first, n, origin, |p| segment(&layers.config, p));
        if let Some(gpu) = &mut gpu {
            x = gpu.bytes(&x, &rows, trace.is_some())?;
        } else {
            let (cache, states) = (&mut state.encoder_cache, &mut state.byte_states);
            w.encoder.forward(compute, &rows, cache, states, &mut x);
        }
        if let Some(trace) = trace.as_deref_mut() {
            trace.encoder_hidden.extend_from_slice(&x);
        }

        // Patches that these bytes close: their vectors, then the global transformer.
        let closed = State::closed_between(&state.starts, first, end);
        if !closed.is_empty() {
            let (states, starts) = (&state.byte_states, &state.starts);
            let eos_patches = State::eos_patches(&state.eos, starts);
            let layers = &w.global.layers;
            let barrier = |p| match layers.config.eos_segments {
                true => State::segment_start(&eos_patches, p),
                false => 0,
            };
            let rows = layers.rows(closed.start, closed.len(), origin, barrier);
            // Vectors (m, k * local dim) and global outputs (m, global dim).
            let (vectors, outputs) = if let Some(gpu) = &mut gpu {
                gpu.patches(starts, closed, &rows, trace.is_some())?
            } else {
                let vectors = w.encoder.patches(compute, states, starts, closed);
                let of_trace = match trace.is_some() {
                    true => vectors.clone(),
                    false => Vec::new(),
                };
                let cache = &mut state.global_cache;
                let outputs = w.global.forward(compute, &rows, cache, vectors);
                state.global_out.push(&outputs);
                w.decoder
                    .add_patches(compute, &outputs, &mut state.patch_kv);
                (of_trace, outputs)
            };
            if let Some(trace) = trace {
                trace.encoder_cross.extend(vectors);
                trace.global_out.extend(outputs);
            }
        }

        // Each byte reads the last patch closed when it has been read.
        let layers = &w.decoder.layers;
        let rows = layers.rows(first, n, origin, |p| segment(&layers.config, p));
        let logits = if let Some(gpu) = &mut gpu {
            let seen = n_closed.iter().map(|&n| w.decoder.patches_seen(n));
            gpu.decode(&rows, &seen.collect::<Vec<_>>(), wanted)?
        } else {
            let (kv, cache) = (&state.patch_kv, &mut state.decoder_cache);
            w.decoder
                .forward(compute, &rows, &n_closed, kv, cache, &mut x);
            let dim = layers.config.dim;
            match wanted {
                Wanted::Nothing => Vec::new(),
                Wanted::Last => w.decoder.logits(compute, &x[(n - 1) * dim..]),
                Wanted::All => w.decoder.logits(compute, &x),
            }
        };
        if let Some(bad) = logits.iter().position(|l| !l.is_finite()) {
            let rows = logits.len() / VOCAB_SIZE;
            return Err(Error::NonFinite {
                what: "logits",
                position: end - rows + bad / VOCAB_SIZE,
            });
        }
        drop(gpu);
        if self.device.is_none() {
            state.drop_unneeded(self);
        }
        Ok(Batch { logits })
    }
}
