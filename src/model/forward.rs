//! The whole path of a byte, top to bottom: the spec's section 9.4 for a run of bytes at once.
//!
//! Each row's arithmetic is the same whatever rows are computed with it, so reading a text at once
//! or byte by byte gives the same bits (tests/invariance.rs).

use std::ops::Range;

use smallvec::SmallVec;

use super::block::{Rows, Stack};
use super::decoder::PatchKv;
use super::encoder::Closed;
use super::patcher::Patcher;
use super::sequence::{Failure, SequenceInput};
use super::{Model, State, state::SLACK};
use crate::cache::KvCache;
use crate::config::arch;
use crate::ops::{self, ScratchVec};
use crate::vocab::VOCAB_SIZE;

/// Most bytes read in one pass: the caches' slack allows no more, and the scratch stays small.
pub(crate) const MAX_BATCH: usize = SLACK;

/// The lengths that a sequence goes back to when a pass fails.
pub(super) struct Before {
    n_ids: usize,
    n_starts: usize,
    n_eos: usize,
    patcher: Patcher,
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
    /// Of a Bolmo model: logarithms of the probabilities that bytes end patches, for each byte whose next one was read.
    pub boundary_log_probs: Vec<f32>,
}

impl Model {
    /// Reads the ids of all sequences, every matrix with the rows of all of them at once, and returns the
    /// logits each sequence wants: (0, 1 or n, vocab). each sequence's results are the same bits as if it were
    /// alone. On an error all states stay as they were.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if an entropy or a wanted logit is NaN or infinite; [`Error::Device`] if
    /// the GPU fails.
    pub(crate) fn forward(
        &self,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<SmallVec<[ScratchVec<'_, f32>; 1]>, Failure> {
        let before: SmallVec<[Before; 1]> =
            inputs.iter().map(|input| input.state.before()).collect();
        let backend = self.backend();
        let result = backend.forward(self, inputs).and_then(|logits| {
            check_finite(inputs, &logits)?;
            Ok(logits)
        });
        for (input, old) in inputs.iter_mut().zip(before) {
            if result.is_err() {
                input.state.take_back(old);
                backend.discard_past_end(self, input.state);
            } else {
                backend.evict(self, input.state);
            }
        }
        result
    }

    pub(super) fn forward_on_cpu(
        &self,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<SmallVec<[ScratchVec<'_, f32>; 1]>, Failure> {
        match &mut *inputs {
            [input] => {
                if let Some(logits) = self.by_draft(input) {
                    return Ok(std::iter::once(logits).collect());
                }
            }
            // The weights are read once for all of them as it is.
            _ => (inputs.iter_mut()).for_each(|input| input.state.drop_draft(self)),
        }
        inputs.iter_mut().for_each(SequenceInput::read_text);
        // How uncertain each next byte is, and where patches start; then the bytes' states.
        self.entropies(inputs);
        let n_closed = self.cut(inputs)?;
        let mut x = self.encode(inputs); // (n, local dim)
        self.close_patches(inputs);
        Ok(self.decode(inputs, &n_closed, &mut x))
    }

    /// The entropy model on the sequences that have its cache: the entropy after each byte, in nats.
    pub(super) fn entropies(&self, inputs: &mut [SequenceInput<'_>]) {
        let compute = &*self.compute;
        for input in inputs.iter_mut().filter(|input| !input.runs_entropy()) {
            let end = input.positions().end;
            input.state.entropies.resize(end, f32::NAN);
        }
        let Some(entropy) = &self.blt().entropy else {
            return;
        };
        let n = n_rows(inputs);
        let (mut rows, mut x) = (
            entropy.layers.rows(compute, n),
            compute.empty(n * entropy.dim()),
        );
        for input in inputs.iter().filter(|input| input.runs_entropy()) {
            self.add_entropy_run(input.state, input.positions(), &mut rows);
            x.extend(entropy.embed(compute, input.ids).iter().copied());
        }
        if rows.n() == 0 {
            return;
        }
        let caches = inputs
            .iter_mut()
            .filter_map(|input| input.state.entropy_cache.as_mut());
        let mut caches: SmallVec<[&mut KvCache; 1]> = caches.collect();
        let logits = entropy.forward(compute, x, &rows, &mut caches); // (n, vocab)
        drop(caches);
        let mut left = &*logits;
        for input in inputs.iter_mut().filter(|input| input.runs_entropy()) {
            let (piece, others) = left.split_at(input.ids.len() * VOCAB_SIZE);
            left = others;
            let row_entropy = |row| ops::entropy(compute, row);
            let entropies = &mut input.state.entropies;
            entropies.extend(piece.chunks_exact(VOCAB_SIZE).map(row_entropy));
            if let Some(trace) = input.trace.as_deref_mut() {
                trace.entropy_logits.extend_from_slice(piece);
            }
        }
    }

    /// Where patches start, by entropies that are all numbers: how many are closed once each byte is
    /// read, (n).
    pub(crate) fn cut(
        &self,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<ScratchVec<'_, usize>, Failure> {
        let mut n_closed = self.compute.empty(n_rows(inputs));
        for (i, input) in inputs.iter_mut().enumerate() {
            let positions = input.positions();
            let entropies = &input.state.entropies[positions.clone()];
            let known = input.runs_entropy();
            if let Some(bad) = entropies.iter().position(|e| known && !e.is_finite()) {
                return Err(Failure::not_finite(i, "entropy", positions.start + bad));
            }
            input.cut(&mut n_closed);
        }
        Ok(n_closed)
    }

    /// Embeddings, then the local encoder: the bytes' states (n, local dim).
    pub(super) fn encode(&self, inputs: &mut [SequenceInput<'_>]) -> ScratchVec<'_, f32> {
        let (compute, encoder) = (&*self.compute, &self.blt().encoder);
        let (n, dim) = (n_rows(inputs), encoder.layers.config.dim);
        let (mut rows, mut x) = (encoder.layers.rows(compute, n), compute.empty(n * dim));
        for input in inputs.iter_mut() {
            self.add_encoder_run(input.state, input.positions(), &mut rows);
            let first = input.positions().start;
            let piece = encoder.embed(compute, &input.state.ids, first);
            x.extend(piece.iter().copied());
            if let Some(trace) = input.trace.as_deref_mut() {
                trace.input_embeds.extend_from_slice(&piece);
            }
        }
        let states = inputs.iter_mut().map(|input| {
            let state = &mut *input.state;
            (&mut state.encoder_cache, &mut state.byte_states[..])
        });
        let (mut caches, mut states): (SmallVec<[_; 1]>, SmallVec<[_; 1]>) = states.unzip();
        encoder.forward(compute, &rows, &mut caches, &mut states, &mut x);
        drop((caches, states));
        let mut left = &*x;
        for input in inputs {
            let (piece, others) = left.split_at(input.ids.len() * dim);
            left = others;
            if let Some(trace) = input.trace.as_deref_mut() {
                trace.encoder_hidden.extend_from_slice(piece);
            }
        }
        x
    }

    /// The patches that these bytes close: their vectors, the global transformer, and what the
    /// decoder reads of them.
    pub(super) fn close_patches(&self, inputs: &mut [SequenceInput<'_>]) {
        let (compute, w) = (&*self.compute, self.blt());
        let mut inputs: SmallVec<[(&mut SequenceInput<'_>, Range<usize>); 1]> = (inputs.iter_mut())
            .map(|input| {
                let closed = input.closed();
                (input, closed)
            })
            .filter(|(_, closed)| !closed.is_empty())
            .collect();
        if inputs.is_empty() {
            return;
        }
        let closed: SmallVec<[Closed<'_>; 1]> = (inputs.iter())
            .map(|(input, patches)| Closed {
                states: &input.state.byte_states,
                starts: &input.state.starts,
                patches: patches.clone(),
            })
            .collect();
        let vectors = w.encoder.patches(compute, &closed); // (m, k * local dim)
        drop(closed);
        let mut left = &*vectors;
        for (input, closed) in inputs.iter_mut() {
            let (piece, others) = left.split_at(closed.len() * w.config.patch_dim());
            left = others;
            if let Some(trace) = input.trace.as_deref_mut() {
                trace.encoder_cross.extend_from_slice(piece);
            }
        }

        let n = inputs.iter().map(|(_, closed)| closed.len()).sum();
        let mut rows = w.global.layers.rows(compute, n);
        for (input, closed) in inputs.iter() {
            self.add_global_run(input.state, closed.clone(), &mut rows);
        }
        let caches = inputs
            .iter_mut()
            .map(|(input, _)| &mut input.state.global_cache);
        let mut caches: SmallVec<[&mut KvCache; 1]> = caches.collect();
        let outputs = w.global.forward(compute, &rows, &mut caches, vectors); // (m, global dim)
        drop(caches);
        let mut left = &*outputs;
        for (input, closed) in inputs.iter_mut() {
            let (piece, others) = left.split_at(closed.len() * w.config.global.dim);
            left = others;
            input.state.global_out.push(piece);
            if let Some(trace) = input.trace.as_deref_mut() {
                trace.global_out.extend_from_slice(piece);
            }
        }
        let mut stores: SmallVec<[(usize, &mut [PatchKv]); 1]> = (inputs.iter_mut())
            .map(|(input, closed)| (closed.len(), &mut input.state.patch_kv[..]))
            .collect();
        w.decoder.add_patches(compute, &outputs, &mut stores);
    }

    /// The local decoder on the bytes' states x (n, local dim): byte i reads the last of `n_closed[i]`
    /// patches. Returns the logits that each sequence wants.
    pub(super) fn decode(
        &self,
        inputs: &mut [SequenceInput<'_>],
        n_closed: &[usize],
        x: &mut [f32],
    ) -> SmallVec<[ScratchVec<'_, f32>; 1]> {
        let (compute, decoder) = (&*self.compute, &self.blt().decoder);
        let mut rows = decoder.layers.rows(compute, n_closed.len());
        for input in inputs.iter() {
            self.add_decoder_run(input.state, input.positions(), &mut rows);
        }
        let states = inputs.iter_mut().map(|input| {
            let state = &mut *input.state;
            (&mut state.decoder_cache, &state.patch_kv[..])
        });
        let (mut caches, patch_kv): (SmallVec<[_; 1]>, SmallVec<[_; 1]>) = states.unzip();
        decoder.forward(compute, &rows, n_closed, &patch_kv, &mut caches, x);
        drop((caches, patch_kv));

        let dim = decoder.layers.config.dim;
        let (mut wanted, mut left) = (compute.empty(x.len()), &*x);
        for input in inputs.iter() {
            let (piece, others) = left.split_at(input.ids.len() * dim);
            left = others;
            let unwanted = input.ids.len() - input.n_logit_rows();
            wanted.extend(piece[unwanted * dim..].iter().copied());
        }
        let logits = decoder.logits(compute, &wanted);
        let mut left = &*logits;
        let piece = |input: &SequenceInput<'_>| {
            let (piece, others) = left.split_at(input.n_logit_rows() * VOCAB_SIZE);
            left = others;
            let mut logits = compute.empty(piece.len());
            logits.extend(piece.iter().copied());
            logits
        };
        inputs.iter().map(piece).collect()
    }

    /// Where the entropy model stands at `positions`, if it runs in this sequence.
    pub(crate) fn add_entropy_run(
        &self,
        state: &State,
        positions: Range<usize>,
        rows: &mut Rows<'_>,
    ) {
        let (Some(entropy), Some(_)) = (&self.blt().entropy, &state.entropy_cache) else {
            return;
        };
        let reset = state.entropy_reset.unwrap_or(usize::MAX);
        let origin = |p: usize| p / reset * reset;
        let barrier = |p| segment(&entropy.layers, &state.eos, p).max(origin(p));
        entropy.layers.add_run(rows, positions, origin, barrier);
    }

    pub(crate) fn add_encoder_run(
        &self,
        state: &State,
        positions: Range<usize>,
        rows: &mut Rows<'_>,
    ) {
        let layers = &self.blt().encoder.layers;
        layers.add_run(rows, positions, |_| 0, |p| segment(layers, &state.eos, p));
    }

    pub(crate) fn add_global_run(&self, state: &State, patches: Range<usize>, rows: &mut Rows<'_>) {
        let layers = &self.blt().global.layers;
        let eos_patches = arch::eos_patches(&state.eos, &state.starts);
        layers.add_run(rows, patches, |_| 0, |p| segment(layers, &eos_patches, p));
    }

    pub(crate) fn add_decoder_run(
        &self,
        state: &State,
        positions: Range<usize>,
        rows: &mut Rows<'_>,
    ) {
        let layers = &self.blt().decoder.layers;
        layers.add_run(rows, positions, |_| 0, |p| segment(layers, &state.eos, p));
    }
}

/// Refuses logits that are NaN or infinite.
fn check_finite(
    inputs: &[SequenceInput<'_>],
    logits: &[ScratchVec<'_, f32>],
) -> Result<(), Failure> {
    for (i, (input, logits)) in inputs.iter().zip(logits).enumerate() {
        if let Some(bad) = logits.iter().position(|l| !l.is_finite()) {
            let n_rows = logits.len() / VOCAB_SIZE;
            let position = input.positions().end - n_rows + bad / VOCAB_SIZE;
            return Err(Failure::not_finite(i, "logits", position));
        }
    }
    Ok(())
}

/// The ids of all sequences.
fn n_rows(inputs: &[SequenceInput<'_>]) -> usize {
    inputs.iter().map(|input| input.ids.len()).sum()
}

/// The first position that `position` may see, if the layers keep texts apart.
fn segment(layers: &Stack, ends: &[usize], position: usize) -> usize {
    match layers.config.eos_segments {
        true => arch::segment_start(ends, position),
        false => 0,
    }
}

impl State {
    /// Where the text ends now.
    pub(super) fn before(&self) -> Before {
        Before {
            n_ids: self.ids.len(),
            n_starts: self.starts.len(),
            n_eos: self.eos.len(),
            patcher: self.patcher.clone(),
        }
    }

    /// Goes back to an earlier text. Caches past its length are dead.
    pub(super) fn take_back(&mut self, old: Before) {
        self.ids.truncate(old.n_ids);
        self.entropies.truncate(old.n_ids);
        self.starts.truncate(old.n_starts);
        self.eos.truncate(old.n_eos);
        self.patcher = old.patcher;
    }
}
