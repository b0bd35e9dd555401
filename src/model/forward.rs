//! The whole path of a byte, top to bottom: the spec's section 9.4 for a run of bytes at once.
//!
//! Each row's arithmetic is the same whatever rows are computed with it, so reading a text at once
//! or byte by byte gives the same bits (tests/invariance.rs).

use std::ops::Range;
use std::sync::Arc;

use super::block::{Rows, Stack};
use super::decoder::PatchKv;
use super::device::{Caches, DeviceModel};
use super::encoder::Closed;
use super::patcher::Patcher;
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

/// One sequence's share of a pass.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub state: &'a mut State,
    /// 1 to [`MAX_BATCH`].
    pub ids: &'a [Id],
    pub wanted: Wanted,
    pub trace: Option<&'a mut Trace>,
}

/// Why a pass failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// One part is to blame, alone.
    OfPart(usize, Error),
    /// The device failed.
    OfAll(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::OfAll(match error {
            Error::Device(message) => message,
            other => other.to_string(),
        })
    }
}

/// The lengths that a part goes back to when a pass fails.
struct Before {
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
}

impl Model {
    /// Reads the ids of all parts, every matrix with the rows of all of them at once, and returns the
    /// logits each part wants: (0, 1 or n, vocab). Each part's results are the same bits as if it were
    /// alone. On an error all states stay as they were.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if an entropy or a wanted logit is NaN or infinite; [`Error::Device`] if
    /// the GPU fails.
    pub(crate) fn forward(&self, parts: &mut [Part<'_>]) -> Result<Vec<Vec<f32>>, Failure> {
        let before = |part: &Part<'_>| Before {
            n_ids: part.state.ids.len(),
            n_starts: part.state.starts.len(),
            n_eos: part.state.eos.len(),
            patcher: part.state.patcher.clone(),
        };
        let before: Vec<Before> = parts.iter().map(before).collect();
        let result = (self.compute).install(|| self.forward_parts(parts));
        if result.is_err() {
            for (part, old) in parts.iter_mut().zip(before) {
                self.take_back(part.state, old);
            }
        }
        result
    }

    fn take_back(&self, state: &mut State, old: Before) {
        // Caches past the length are dead; only what counts positions must go back.
        state.ids.truncate(old.n_ids);
        state.entropies.truncate(old.n_ids);
        state.starts.truncate(old.n_starts);
        state.eos.truncate(old.n_eos);
        state.patcher = old.patcher;
        if self.device.is_none() {
            (state.byte_states.iter_mut()).for_each(|s| s.truncate(old.n_ids));
            state.global_out.truncate(old.n_starts - 1);
            state.read_patches_again(self);
        }
    }

    fn forward_parts(&self, parts: &mut [Part<'_>]) -> Result<Vec<Vec<f32>>, Failure> {
        for part in parts.iter_mut() {
            assert!((1..=MAX_BATCH).contains(&part.ids.len()));
            part.read_text();
        }
        if let Some(device) = &self.device {
            let mut all = Vec::with_capacity(parts.len());
            for (i, part) in parts.iter_mut().enumerate() {
                all.push(self.forward_on(device, i, part)?);
            }
            return Ok(all);
        }
        // How uncertain each next byte is, and where patches start; then the bytes' states.
        self.entropies(parts)?;
        let n_closed = parts.iter_mut().flat_map(Part::cut).collect::<Vec<_>>(); // (n)
        let mut x = self.encode(parts); // (n, local dim)
        self.close_patches(parts);
        let logits = self.decode(parts, &n_closed, &mut x);
        for (i, (part, logits)) in parts.iter_mut().zip(&logits).enumerate() {
            if let Some(bad) = logits.iter().position(|l| !l.is_finite()) {
                let rows = logits.len() / VOCAB_SIZE;
                let position = part.positions().end - rows + bad / VOCAB_SIZE;
                return Err(Failure::not_finite(i, "logits", position));
            }
        }
        for part in parts {
            part.state.drop_unneeded(self);
        }
        Ok(logits)
    }

    /// The entropy model on the parts that have its cache: the entropy after each byte, in nats.
    fn entropies(&self, parts: &mut [Part<'_>]) -> Result<(), Failure> {
        let mut rows = Rows::default();
        let (mut ids, mut caches, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts.iter_mut() {
            let positions = part.positions();
            self.add_entropy_run(part.state, positions.clone(), &mut rows);
            let state = &mut *part.state;
            let Some(cache) = &mut state.entropy_cache else {
                state.entropies.resize(positions.end, f32::NAN);
                continue;
            };
            ids.extend_from_slice(part.ids);
            caches.push(cache);
            found.push((
                &mut state.entropies,
                part.trace.as_deref_mut(),
                part.ids.len(),
            ));
        }
        let Some(entropy) = self.weights.entropy.as_ref().filter(|_| rows.n() > 0) else {
            return Ok(());
        };
        let logits = entropy.forward(&self.compute, &ids, &rows, &mut caches); // (n, vocab)
        let mut logits = logits.as_slice();
        for (entropies, trace, n) in found {
            let (of_part, others) = logits.split_at(n * VOCAB_SIZE);
            logits = others;
            let row_entropy = |row| ops::entropy(&self.compute, row);
            entropies.extend(of_part.chunks_exact(VOCAB_SIZE).map(row_entropy));
            if let Some(trace) = trace {
                trace.entropy_logits.extend_from_slice(of_part);
            }
        }
        for (i, part) in parts.iter().enumerate() {
            let entropies = &part.state.entropies[part.positions()];
            let known = part.state.entropy_cache.is_some();
            if let Some(bad) = entropies.iter().position(|e| known && !e.is_finite()) {
                return Err(Failure::not_finite(
                    i,
                    "entropy",
                    part.positions().start + bad,
                ));
            }
        }
        Ok(())
    }

    /// Embeddings, then the local encoder: the bytes' states (n, local dim).
    fn encode(&self, parts: &mut [Part<'_>]) -> Vec<f32> {
        let (compute, encoder) = (&*self.compute, &self.weights.encoder);
        let (mut rows, mut x) = (Rows::default(), Vec::new());
        let (mut caches, mut states) = (Vec::new(), Vec::new());
        for part in parts.iter_mut() {
            let positions = part.positions();
            self.add_encoder_run(part.state, positions.clone(), &mut rows);
            let state = &mut *part.state;
            let of_part = encoder.embed(compute, &state.ids, positions.start);
            x.extend_from_slice(&of_part);
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.input_embeds.extend(of_part);
            }
            caches.push(&mut state.encoder_cache);
            states.push(&mut state.byte_states[..]);
        }
        encoder.forward(compute, &rows, &mut caches, &mut states, &mut x);
        let mut left = &*x;
        for part in parts {
            let (of_part, others) = left.split_at(part.ids.len() * encoder.layers.config.dim);
            left = others;
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.encoder_hidden.extend_from_slice(of_part);
            }
        }
        x
    }

    /// The patches that these bytes close: their vectors, the global transformer, and what the
    /// decoder reads of them.
    fn close_patches(&self, parts: &mut [Part<'_>]) {
        let (compute, w) = (&*self.compute, &*self.weights);
        let mut parts: Vec<(&mut Part<'_>, Range<usize>)> = (parts.iter_mut())
            .map(|part| {
                let closed = part.closed();
                (part, closed)
            })
            .filter(|(_, closed)| !closed.is_empty())
            .collect();
        if parts.is_empty() {
            return;
        }
        let closed: Vec<Closed<'_>> = (parts.iter())
            .map(|(part, patches)| Closed {
                states: &part.state.byte_states,
                starts: &part.state.starts,
                patches: patches.clone(),
            })
            .collect();
        let vectors = w.encoder.patches(compute, &closed); // (m, k * local dim)
        let mut left = &*vectors;
        for (part, closed) in &mut parts {
            let (of_part, others) = left.split_at(closed.len() * w.config.patch_dim());
            left = others;
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.encoder_cross.extend_from_slice(of_part);
            }
        }

        let (mut rows, mut caches) = (Rows::default(), Vec::new());
        for (part, closed) in &mut parts {
            self.add_global_run(part.state, closed.clone(), &mut rows);
            caches.push(&mut part.state.global_cache);
        }
        let outputs = w.global.forward(compute, &rows, &mut caches, vectors); // (m, global dim)
        let mut left = &*outputs;
        for (part, closed) in &mut parts {
            let (of_part, others) = left.split_at(closed.len() * w.config.global.dim);
            left = others;
            part.state.global_out.push(of_part);
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.global_out.extend_from_slice(of_part);
            }
        }
        let mut stores: Vec<(usize, &mut [PatchKv])> = (parts.iter_mut())
            .map(|(part, closed)| (closed.len(), &mut part.state.patch_kv[..]))
            .collect();
        w.decoder.add_patches(compute, &outputs, &mut stores);
    }

    /// The local decoder on the bytes' states x (n, local dim): byte i reads the last of `n_closed[i]`
    /// patches. Returns the logits that each part wants.
    fn decode(&self, parts: &mut [Part<'_>], n_closed: &[usize], x: &mut [f32]) -> Vec<Vec<f32>> {
        let (compute, decoder) = (&*self.compute, &self.weights.decoder);
        let mut rows = Rows::default();
        let (mut caches, mut patch_kv) = (Vec::new(), Vec::new());
        for part in parts.iter_mut() {
            self.add_decoder_run(part.state, part.positions(), &mut rows);
            let state = &mut *part.state;
            caches.push(&mut state.decoder_cache);
            patch_kv.push(&state.patch_kv[..]);
        }
        decoder.forward(compute, &rows, n_closed, &patch_kv, &mut caches, x);

        let dim = decoder.layers.config.dim;
        let (mut wanted, mut n_wanted, mut left) = (Vec::new(), Vec::new(), &*x);
        for part in parts.iter() {
            let n = part.ids.len();
            let (of_part, others) = left.split_at(n * dim);
            left = others;
            let n_rows = match part.wanted {
                Wanted::Nothing => 0,
                Wanted::Last => 1,
                Wanted::All => n,
            };
            wanted.extend_from_slice(&of_part[(n - n_rows) * dim..]);
            n_wanted.push(n_rows * VOCAB_SIZE);
        }
        let logits = decoder.logits(compute, &wanted);
        let mut left = &*logits;
        let of_part = |n| {
            let (of_part, others) = left.split_at(n);
            left = others;
            of_part.to_vec()
        };
        n_wanted.into_iter().map(of_part).collect()
    }

    /// Where the entropy model stands at `positions`, if it runs in this sequence.
    fn add_entropy_run(&self, state: &State, positions: Range<usize>, rows: &mut Rows) {
        let (Some(entropy), Some(_)) = (&self.weights.entropy, &state.entropy_cache) else {
            return;
        };
        let reset = state.entropy_reset.unwrap_or(usize::MAX);
        let origin = |p: usize| p / reset * reset;
        let barrier = |p| segment(&entropy.layers, &state.eos, p).max(origin(p));
        entropy.layers.add_run(rows, positions, origin, barrier);
    }

    fn add_encoder_run(&self, state: &State, positions: Range<usize>, rows: &mut Rows) {
        let layers = &self.weights.encoder.layers;
        layers.add_run(rows, positions, |_| 0, |p| segment(layers, &state.eos, p));
    }

    fn add_global_run(&self, state: &State, patches: Range<usize>, rows: &mut Rows) {
        let layers = &self.weights.global.layers;
        let eos_patches = State::eos_patches(&state.eos, &state.starts);
        layers.add_run(rows, patches, |_| 0, |p| segment(layers, &eos_patches, p));
    }

    fn add_decoder_run(&self, state: &State, positions: Range<usize>, rows: &mut Rows) {
        let layers = &self.weights.decoder.layers;
        layers.add_run(rows, positions, |_| 0, |p| segment(layers, &state.eos, p));
    }

    /// One part on a GPU.
    fn forward_on(
        &self,
        device: &DeviceModel,
        number: usize,
        part: &mut Part<'_>,
    ) -> Result<Vec<f32>, Failure> {
        let mut caches = part.state.device.take();
        let result = self.forward_with(device, &mut caches, number, part);
        part.state.device = caches;
        result
    }

    fn forward_with(
        &self,
        device: &DeviceModel,
        caches: &mut Option<Arc<Caches>>,
        number: usize,
        part: &mut Part<'_>,
    ) -> Result<Vec<f32>, Failure> {
        let (compute, w) = (&*self.compute, &*self.weights);
        let positions = part.positions();
        let mut rows = Rows::default();
        self.add_entropy_run(part.state, positions.clone(), &mut rows);
        let mut gpu = device.begin(caches)?;
        if let Some(entropy) = w.entropy.as_ref().filter(|_| rows.n() > 0) {
            let x = entropy.embed(compute, part.ids);
            let of_trace = part.trace.as_deref_mut().map(|t| &mut t.entropy_logits);
            let entropies = gpu.entropies(&x, &rows, of_trace)?;
            if let Some(bad) = entropies.iter().position(|e| !e.is_finite()) {
                return Err(Failure::not_finite(
                    number,
                    "entropy",
                    positions.start + bad,
                ));
            }
            part.state.entropies.extend(entropies);
        } else {
            part.state.entropies.resize(positions.end, f32::NAN);
        }
        let n_closed = part.cut();
        let mut rows = Rows::default();
        self.add_encoder_run(part.state, positions.clone(), &mut rows);
        let x = w.encoder.embed(compute, &part.state.ids, positions.start);
        let hidden = gpu.bytes(&x, &rows, part.trace.is_some())?;
        if let Some(trace) = part.trace.as_deref_mut() {
            trace.input_embeds.extend(x);
            trace.encoder_hidden.extend(hidden);
        }
        let closed = part.closed();
        if !closed.is_empty() {
            let mut rows = Rows::default();
            self.add_global_run(part.state, closed.clone(), &mut rows);
            let wanted = part.trace.is_some();
            let (vectors, outputs) = gpu.patches(&part.state.starts, closed, &rows, wanted)?;
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.encoder_cross.extend(vectors);
                trace.global_out.extend(outputs);
            }
        }
        let mut rows = Rows::default();
        self.add_decoder_run(part.state, positions.clone(), &mut rows);
        let seen: Vec<_> = (n_closed.iter().map(|&n| w.decoder.patches_seen(n))).collect();
        let logits = gpu.decode(&rows, &seen, part.wanted)?;
        if let Some(bad) = logits.iter().position(|l| !l.is_finite()) {
            let position = positions.end - logits.len() / VOCAB_SIZE + bad / VOCAB_SIZE;
            return Err(Failure::not_finite(number, "logits", position));
        }
        Ok(logits)
    }
}

/// The first position that `position` may see, if the layers keep texts apart.
fn segment(layers: &Stack, ends: &[usize], position: usize) -> usize {
    match layers.config.eos_segments {
        true => State::segment_start(ends, position),
        false => 0,
    }
}

impl Part<'_> {
    /// Positions of the ids, once they are in the text.
    fn positions(&self) -> Range<usize> {
        let end = self.state.ids.len();
        end - self.ids.len()..end
    }

    fn read_text(&mut self) {
        self.state.ids.extend_from_slice(self.ids);
        let positions = self.positions();
        let state = &mut *self.state;
        let eos = positions.filter(|&p| state.ids[p] == EOS);
        state.eos.extend(eos);
    }

    /// Decides where patches start: for byte p + 1 as soon as byte p is read. The model insists on a
    /// first patch of one byte. Returns how many patches are closed once each byte is read.
    fn cut(&mut self) -> Vec<usize> {
        let positions = self.positions();
        let state = &mut *self.state;
        let mut n_closed = Vec::with_capacity(self.ids.len());
        for (p, &id) in positions.zip(self.ids) {
            if state.patcher.push(id, state.entropies[p]) || p == 0 {
                state.starts.push(p + 1);
            }
            n_closed.push(state.n_closed());
        }
        n_closed
    }

    /// The patches that the ids close.
    fn closed(&self) -> Range<usize> {
        let positions = self.positions();
        State::closed_between(&self.state.starts, positions.start, positions.end)
    }
}

impl Failure {
    fn not_finite(part: usize, what: &'static str, position: usize) -> Failure {
        Failure::OfPart(part, Error::NonFinite { what, position })
    }
}
