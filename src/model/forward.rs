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
use super::{Model, State, state::SLACK};
use crate::cache::KvCache;
use crate::config::arch;
use crate::error::{Error, Result};
use crate::ops::{self, ScratchVec};
use crate::sampler::Sampler;
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
    /// Of whoever wants an id chosen by the last logits: a GPU can do that in the same pass.
    pub sampler: Option<&'a Sampler>,
    /// Bytes to draft at a time, the one id included, if there is a sampler; `None`: as many as pays.
    pub draft: Option<usize>,
    /// Most bytes that may be drafted.
    pub draft_room: usize,
    /// What a GPU chose.
    pub chosen: Option<Id>,
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
    /// Reads the ids of all parts, every matrix with the rows of all of them at once, and returns the
    /// logits each part wants: (0, 1 or n, vocab). Each part's results are the same bits as if it were
    /// alone. On an error all states stay as they were.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if an entropy or a wanted logit is NaN or infinite; [`Error::Device`] if
    /// the GPU fails.
    pub(crate) fn forward(
        &self,
        parts: &mut [Part<'_>],
    ) -> Result<SmallVec<[ScratchVec<'_, f32>; 1]>, Failure> {
        let before: SmallVec<[Before; 1]> = parts.iter().map(|part| part.state.before()).collect();
        let backend = self.backend();
        let result = backend.forward(self, parts).and_then(|logits| {
            check_finite(parts, &logits)?;
            Ok(logits)
        });
        for (part, old) in parts.iter_mut().zip(before) {
            if result.is_err() {
                part.state.take_back(old);
                backend.discard_past_end(self, part.state);
            } else {
                backend.evict(self, part.state);
            }
        }
        result
    }

    pub(super) fn forward_on_cpu(
        &self,
        parts: &mut [Part<'_>],
    ) -> Result<SmallVec<[ScratchVec<'_, f32>; 1]>, Failure> {
        match &mut *parts {
            [part] => {
                if let Some(logits) = self.by_draft(part) {
                    return Ok(std::iter::once(logits).collect());
                }
            }
            // The weights are read once for all of them as it is.
            _ => (parts.iter_mut()).for_each(|part| part.state.drop_draft(self)),
        }
        parts.iter_mut().for_each(Part::read_text);
        // How uncertain each next byte is, and where patches start; then the bytes' states.
        self.entropies(parts);
        let n_closed = self.cut(parts)?;
        let mut x = self.encode(parts); // (n, local dim)
        self.close_patches(parts);
        Ok(self.decode(parts, &n_closed, &mut x))
    }

    /// The entropy model on the parts that have its cache: the entropy after each byte, in nats.
    pub(super) fn entropies(&self, parts: &mut [Part<'_>]) {
        let compute = &*self.compute;
        for part in parts.iter_mut().filter(|part| !part.runs_entropy()) {
            let end = part.positions().end;
            part.state.entropies.resize(end, f32::NAN);
        }
        let Some(entropy) = &self.blt().entropy else {
            return;
        };
        let n = n_rows(parts);
        let (mut rows, mut x) = (
            entropy.layers.rows(compute, n),
            compute.empty(n * entropy.dim()),
        );
        for part in parts.iter().filter(|part| part.runs_entropy()) {
            self.add_entropy_run(part.state, part.positions(), &mut rows);
            x.extend(entropy.embed(compute, part.ids).iter().copied());
        }
        if rows.n() == 0 {
            return;
        }
        let caches = parts
            .iter_mut()
            .filter_map(|part| part.state.entropy_cache.as_mut());
        let mut caches: SmallVec<[&mut KvCache; 1]> = caches.collect();
        let logits = entropy.forward(compute, x, &rows, &mut caches); // (n, vocab)
        drop(caches);
        let mut left = &*logits;
        for part in parts.iter_mut().filter(|part| part.runs_entropy()) {
            let (of_part, others) = left.split_at(part.ids.len() * VOCAB_SIZE);
            left = others;
            let row_entropy = |row| ops::entropy(compute, row);
            let entropies = &mut part.state.entropies;
            entropies.extend(of_part.chunks_exact(VOCAB_SIZE).map(row_entropy));
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.entropy_logits.extend_from_slice(of_part);
            }
        }
    }

    /// Where patches start, by entropies that are all numbers: how many are closed once each byte is
    /// read, (n).
    pub(crate) fn cut(&self, parts: &mut [Part<'_>]) -> Result<ScratchVec<'_, usize>, Failure> {
        let mut n_closed = self.compute.empty(n_rows(parts));
        for (i, part) in parts.iter_mut().enumerate() {
            let positions = part.positions();
            let entropies = &part.state.entropies[positions.clone()];
            let known = part.runs_entropy();
            if let Some(bad) = entropies.iter().position(|e| known && !e.is_finite()) {
                return Err(Failure::not_finite(i, "entropy", positions.start + bad));
            }
            part.cut(&mut n_closed);
        }
        Ok(n_closed)
    }

    /// Embeddings, then the local encoder: the bytes' states (n, local dim).
    pub(super) fn encode(&self, parts: &mut [Part<'_>]) -> ScratchVec<'_, f32> {
        let (compute, encoder) = (&*self.compute, &self.blt().encoder);
        let (n, dim) = (n_rows(parts), encoder.layers.config.dim);
        let (mut rows, mut x) = (encoder.layers.rows(compute, n), compute.empty(n * dim));
        for part in parts.iter_mut() {
            self.add_encoder_run(part.state, part.positions(), &mut rows);
            let first = part.positions().start;
            let of_part = encoder.embed(compute, &part.state.ids, first);
            x.extend(of_part.iter().copied());
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.input_embeds.extend_from_slice(&of_part);
            }
        }
        let states = parts.iter_mut().map(|part| {
            let state = &mut *part.state;
            (&mut state.encoder_cache, &mut state.byte_states[..])
        });
        let (mut caches, mut states): (SmallVec<[_; 1]>, SmallVec<[_; 1]>) = states.unzip();
        encoder.forward(compute, &rows, &mut caches, &mut states, &mut x);
        drop((caches, states));
        let mut left = &*x;
        for part in parts {
            let (of_part, others) = left.split_at(part.ids.len() * dim);
            left = others;
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.encoder_hidden.extend_from_slice(of_part);
            }
        }
        x
    }

    /// The patches that these bytes close: their vectors, the global transformer, and what the
    /// decoder reads of them.
    pub(super) fn close_patches(&self, parts: &mut [Part<'_>]) {
        let (compute, w) = (&*self.compute, self.blt());
        let mut parts: SmallVec<[(&mut Part<'_>, Range<usize>); 1]> = (parts.iter_mut())
            .map(|part| {
                let closed = part.closed();
                (part, closed)
            })
            .filter(|(_, closed)| !closed.is_empty())
            .collect();
        if parts.is_empty() {
            return;
        }
        let closed: SmallVec<[Closed<'_>; 1]> = (parts.iter())
            .map(|(part, patches)| Closed {
                states: &part.state.byte_states,
                starts: &part.state.starts,
                patches: patches.clone(),
            })
            .collect();
        let vectors = w.encoder.patches(compute, &closed); // (m, k * local dim)
        drop(closed);
        let mut left = &*vectors;
        for (part, closed) in parts.iter_mut() {
            let (of_part, others) = left.split_at(closed.len() * w.config.patch_dim());
            left = others;
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.encoder_cross.extend_from_slice(of_part);
            }
        }

        let n = parts.iter().map(|(_, closed)| closed.len()).sum();
        let mut rows = w.global.layers.rows(compute, n);
        for (part, closed) in parts.iter() {
            self.add_global_run(part.state, closed.clone(), &mut rows);
        }
        let caches = parts
            .iter_mut()
            .map(|(part, _)| &mut part.state.global_cache);
        let mut caches: SmallVec<[&mut KvCache; 1]> = caches.collect();
        let outputs = w.global.forward(compute, &rows, &mut caches, vectors); // (m, global dim)
        drop(caches);
        let mut left = &*outputs;
        for (part, closed) in parts.iter_mut() {
            let (of_part, others) = left.split_at(closed.len() * w.config.global.dim);
            left = others;
            part.state.global_out.push(of_part);
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.global_out.extend_from_slice(of_part);
            }
        }
        let mut stores: SmallVec<[(usize, &mut [PatchKv]); 1]> = (parts.iter_mut())
            .map(|(part, closed)| (closed.len(), &mut part.state.patch_kv[..]))
            .collect();
        w.decoder.add_patches(compute, &outputs, &mut stores);
    }

    /// The local decoder on the bytes' states x (n, local dim): byte i reads the last of `n_closed[i]`
    /// patches. Returns the logits that each part wants.
    pub(super) fn decode(
        &self,
        parts: &mut [Part<'_>],
        n_closed: &[usize],
        x: &mut [f32],
    ) -> SmallVec<[ScratchVec<'_, f32>; 1]> {
        let (compute, decoder) = (&*self.compute, &self.blt().decoder);
        let mut rows = decoder.layers.rows(compute, n_closed.len());
        for part in parts.iter() {
            self.add_decoder_run(part.state, part.positions(), &mut rows);
        }
        let states = parts.iter_mut().map(|part| {
            let state = &mut *part.state;
            (&mut state.decoder_cache, &state.patch_kv[..])
        });
        let (mut caches, patch_kv): (SmallVec<[_; 1]>, SmallVec<[_; 1]>) = states.unzip();
        decoder.forward(compute, &rows, n_closed, &patch_kv, &mut caches, x);
        drop((caches, patch_kv));

        let dim = decoder.layers.config.dim;
        let (mut wanted, mut left) = (compute.empty(x.len()), &*x);
        for part in parts.iter() {
            let (of_part, others) = left.split_at(part.ids.len() * dim);
            left = others;
            let unwanted = part.ids.len() - part.n_wanted();
            wanted.extend(of_part[unwanted * dim..].iter().copied());
        }
        let logits = decoder.logits(compute, &wanted);
        let mut left = &*logits;
        let of_part = |part: &Part<'_>| {
            let (of_part, others) = left.split_at(part.n_wanted() * VOCAB_SIZE);
            left = others;
            let mut logits = compute.empty(of_part.len());
            logits.extend(of_part.iter().copied());
            logits
        };
        parts.iter().map(of_part).collect()
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
fn check_finite(parts: &[Part<'_>], logits: &[ScratchVec<'_, f32>]) -> Result<(), Failure> {
    for (i, (part, logits)) in parts.iter().zip(logits).enumerate() {
        if let Some(bad) = logits.iter().position(|l| !l.is_finite()) {
            let n_rows = logits.len() / VOCAB_SIZE;
            let position = part.positions().end - n_rows + bad / VOCAB_SIZE;
            return Err(Failure::not_finite(i, "logits", position));
        }
    }
    Ok(())
}

/// The ids of all parts.
fn n_rows(parts: &[Part<'_>]) -> usize {
    parts.iter().map(|part| part.ids.len()).sum()
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

impl Part<'_> {
    /// Positions of the ids, once they are in the text.
    pub(crate) fn positions(&self) -> Range<usize> {
        let end = self.state.ids.len();
        end - self.ids.len()..end
    }

    /// Whether the entropy model reads them.
    pub(super) fn runs_entropy(&self) -> bool {
        self.state.entropy_cache.is_some()
    }

    /// Appends the ids to the text.
    pub(crate) fn read_text(&mut self) {
        assert!((1..=MAX_BATCH).contains(&self.ids.len()));
        self.state.ids.extend_from_slice(self.ids);
        let positions = self.positions();
        let state = &mut *self.state;
        let eos = positions.filter(|&p| state.ids[p] == EOS);
        state.eos.extend(eos);
    }

    /// Rows whose logits are wanted: the last ones.
    pub(crate) fn n_wanted(&self) -> usize {
        match self.wanted {
            Wanted::Nothing => 0,
            Wanted::Last => 1,
            Wanted::All => self.ids.len(),
        }
    }

    /// Decides where patches start: for byte p + 1 as soon as byte p is read. Adds to `n_closed` how
    /// many patches are closed once each byte is read.
    pub(super) fn cut(&mut self, n_closed: &mut ScratchVec<'_, usize>) {
        let positions = self.positions();
        let state = &mut *self.state;
        for (p, &id) in positions.zip(self.ids) {
            if state.patcher.push(id, state.entropies[p]) {
                state.starts.push(p + 1);
            }
            n_closed.extend([state.n_closed()]);
        }
    }

    /// The patches that the ids close.
    pub(crate) fn closed(&self) -> Range<usize> {
        let positions = self.positions();
        let n_closed = |end| arch::n_closed(&self.state.starts, end);
        n_closed(positions.start)..n_closed(positions.end)
    }
}

impl Failure {
    fn not_finite(part: usize, what: &'static str, position: usize) -> Failure {
        Failure::OfPart(part, Error::NonFinite { what, position })
    }
}
