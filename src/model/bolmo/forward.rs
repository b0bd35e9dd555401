//! The path of a byte through a Bolmo model, top to bottom.
//!
//! ```text
//! byte states     the local encoder reads every byte, whatever patches there are
//! flags           of bytes read, by the states of two neighbours; of bytes written, chosen with them
//! patches         the global transformer takes a step for each byte that ends one
//! logits          the local decoder reads every byte whose flag is known, with the latest patch
//! ```
//!
//! The last byte of a text that is read is pending: its flag needs the byte after it. If logits are wanted all the same,
//! the byte is closed by a guess, the more likely of its two ids. Writing makes the guess definite, reading on undoes it.
//! So a text read in pieces is the text read at once, and a text written keeps the flags it was written with.

use std::ops::Range;

use smallvec::SmallVec;

use super::Bolmo;
use super::boundary::ends_patch;
use super::state::{Flag, State};
use crate::cache::KvCache;
use crate::model::Trace;
use crate::model::sequence::LogitRows;
use crate::ops::{Compute, ScratchVec};
use crate::recurrence::Recurrence;
use crate::vocab::{Id, VOCAB_SIZE};

/// One sequence's share of a pass.
#[derive(Debug)]
pub struct Sequence<'a> {
    pub state: &'a mut State,
    /// Ids to read; none, if only logits are wanted. Those that were written carry the flag they were chosen with.
    pub ids: &'a [Id],
    /// Whether the ids were written, not read.
    pub written: bool,
    pub logits: LogitRows,
    pub trace: Option<&'a mut Trace>,
}

/// Why a sequence could not be read.
#[derive(Debug)]
pub struct NotFinite {
    /// The sequence.
    pub part: usize,
    /// What is NaN or infinite.
    pub what: &'static str,
    /// After which position.
    pub position: usize,
}

impl Bolmo {
    /// Reads the ids of all sequences, every matrix with the rows of all of them at once, and returns the logits each of
    /// them wants, (rows, 2 * vocab): after the last id, or after every position whose flag is known by this. Each one's
    /// results are the same bits as if it were alone. After an error the states must be [rewound](State::rewind).
    pub fn forward<'c>(
        &self,
        compute: &'c Compute,
        parts: &mut [Sequence<'_>],
    ) -> Result<SmallVec<[ScratchVec<'c, f32>; 1]>, NotFinite> {
        parts.iter_mut().for_each(|part| part.take_ids(compute));
        self.encode(compute, parts);
        self.cut(compute, parts)?;
        let mut logits = self.decode_known(compute, parts);
        self.guess_pending(compute, parts);
        for (part, logits) in parts.iter_mut().zip(&mut logits) {
            if part.logits == LogitRows::Last {
                logits.extend(part.state.last_logits().iter().copied());
            }
            part.state.evict();
        }
        for (number, (part, logits)) in parts.iter().zip(&logits).enumerate() {
            if let Some(bad) = logits.iter().position(|l| !l.is_finite()) {
                let n_columns = part.state.logits.len();
                let first = part.state.decoder.n_steps() - logits.len() / n_columns;
                return Err(NotFinite {
                    part: number,
                    what: "logits",
                    position: first + bad / n_columns,
                });
            }
        }
        Ok(logits)
    }

    /// Embeddings, then the local encoder: the new bytes' states.
    fn encode(&self, compute: &Compute, parts: &mut [Sequence<'_>]) {
        let (dim, n) = (
            self.encoder.dim(),
            parts.iter().map(|part| part.ids.len()).sum::<usize>(),
        );
        let mut x = compute.empty(n * dim); // (n, dim)
        for part in parts.iter() {
            let ids = &part.state.ids;
            self.encoder
                .embed(compute, ids, ids.len() - part.ids.len(), &mut x);
        }
        let mut runs: SmallVec<[(usize, &mut Recurrence); 1]> = (parts.iter_mut())
            .map(|part| (part.ids.len(), &mut part.state.encoder))
            .collect();
        let states = self.encoder.forward(compute, &mut runs, x);
        drop(runs);
        let mut rest = &*states;
        for part in parts {
            let (states, others) = rest.split_at(part.ids.len() * dim);
            rest = others;
            part.state.byte_states.push(states);
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.encoder_hidden.extend_from_slice(states);
            }
        }
    }

    /// Whether each byte ends a patch whose next byte has been read too.
    fn cut(&self, compute: &Compute, parts: &mut [Sequence<'_>]) -> Result<(), NotFinite> {
        let dim = self.encoder.dim();
        let n: usize = parts.iter().map(|part| part.decidable().len()).sum();
        if n == 0 {
            return Ok(());
        }
        let (mut states, mut next) = (compute.empty(n * dim), compute.empty(n * dim)); // (n, dim) each
        for part in parts.iter().filter(|part| !part.decidable().is_empty()) {
            let positions = part.decidable();
            let rows = &part.state.byte_states;
            states.extend(rows.rows(positions.clone()).iter().copied());
            next.extend(
                rows.rows(positions.start + 1..positions.end + 1)
                    .iter()
                    .copied(),
            );
        }
        let log_probs = self.boundary.log_probs(compute, &states, &next);
        let mut rest = &*log_probs;
        for (number, part) in parts.iter_mut().enumerate() {
            let positions = part.decidable();
            let (log_probs, others) = rest.split_at(positions.len());
            rest = others;
            for (position, &log_prob) in positions.zip(log_probs) {
                if log_prob.is_nan() {
                    return Err(NotFinite {
                        part: number,
                        what: "boundary",
                        position,
                    });
                }
                part.state
                    .set_flag(position, Flag::Read(ends_patch(log_prob)));
            }
            if let Some(trace) = part.trace.as_deref_mut() {
                trace.boundary_log_probs.extend_from_slice(log_probs);
            }
        }
        Ok(())
    }

    /// Patches and bytes whose flags are known: all logits of the sequences that want them, none of others.
    fn decode_known<'c>(
        &self,
        compute: &'c Compute,
        parts: &mut [Sequence<'_>],
    ) -> SmallVec<[ScratchVec<'c, f32>; 1]> {
        let mut known: SmallVec<[Settle<'_>; 1]> = (parts.iter_mut())
            .map(|part| Settle {
                end: part.state.n_known(),
                all_logits: part.logits == LogitRows::All,
                trace: part.trace.as_deref_mut(),
                state: &mut *part.state,
            })
            .collect();
        settle(self, compute, &mut known)
    }

    /// Closes pending bytes by the forced rule, for the logits after them.
    fn guess_pending(&self, compute: &Compute, parts: &mut [Sequence<'_>]) {
        let needs_guess = |part: &Sequence<'_>| {
            part.logits == LogitRows::Last && part.state.flags.last() == Some(&Flag::Unknown)
        };
        let mut guesses: SmallVec<[(Settle<'_>, Vec<f32>); 1]> = SmallVec::new();
        for part in parts.iter_mut().filter(|part| needs_guess(part)) {
            let state = &mut *part.state;
            state.decoder.mark();
            state.force_flag();
            let before = state.logits.clone();
            let settle = Settle {
                end: state.n_known(),
                all_logits: false,
                trace: None,
                state,
            };
            guesses.push((settle, before));
        }
        let (mut settles, before): (SmallVec<[Settle<'_>; 1]>, SmallVec<[Vec<f32>; 1]>) =
            guesses.into_iter().unzip();
        settle(self, compute, &mut settles);
        for (settle, before) in settles.into_iter().zip(before) {
            settle.state.tentative = Some(std::mem::replace(&mut settle.state.logits, before));
        }
    }
}

impl Sequence<'_> {
    /// Adds the ids to the text. What was guessed about the byte before them is made definite if they were written, and
    /// undone if they are read.
    fn take_ids(&mut self, compute: &Compute) {
        let state = &mut *self.state;
        if !self.ids.is_empty() && state.is_pending() {
            match self.written {
                true => state.force(),
                false => state.undo_tentative(compute),
            }
        }
        for &id in self.ids {
            let position = state.ids.len();
            state.ids.push(id % VOCAB_SIZE as Id);
            state.flags.push(Flag::Unknown);
            if let Some(flag) = state.given_flag(position) {
                state.set_flag(position, Flag::Read(flag));
            } else if position == 0 {
                state.set_flag(0, Flag::Read(true));
            } else if self.written {
                state.set_flag(position, Flag::Chosen(usize::from(id) >= VOCAB_SIZE));
            }
        }
    }

    /// Positions whose flag is unknown and can be decided.
    fn decidable(&self) -> Range<usize> {
        let flags = &self.state.flags;
        let unknown = flags
            .iter()
            .rev()
            .take_while(|flag| **flag == Flag::Unknown)
            .count();
        flags.len() - unknown..flags.len() - usize::from(unknown > 0)
    }
}

/// What is to be decoded of one sequence: all bytes before position `end`, whose flags are known.
pub struct Settle<'a> {
    pub state: &'a mut State,
    pub end: usize,
    /// Whether the logits after each of them are wanted.
    pub all_logits: bool,
    pub trace: Option<&'a mut Trace>,
}

impl Settle<'_> {
    /// Patches that end before `end`, without those known already.
    fn closed(&self) -> Range<usize> {
        let n_closed = self
            .state
            .starts
            .partition_point(|&start| start <= self.end)
            - 1;
        self.state.patches.end()..n_closed
    }

    /// Positions to be decoded.
    fn positions(&self) -> Range<usize> {
        self.state.decoder.n_steps()..self.end
    }
}

/// The global transformer's steps for patches that have ended, then the local decoder for the bytes. Keeps the logits
/// after the last byte of each sequence; returns all of those that want them.
pub fn settle<'c>(
    model: &Bolmo,
    compute: &'c Compute,
    parts: &mut [Settle<'_>],
) -> SmallVec<[ScratchVec<'c, f32>; 1]> {
    close_patches(model, compute, parts);
    decode(model, compute, parts)
}

/// What bytes are given of the patches that have ended.
fn close_patches(model: &Bolmo, compute: &Compute, parts: &mut [Settle<'_>]) {
    let dim = model.encoder.dim();
    let n: usize = parts.iter().map(|part| part.closed().len()).sum();
    if n == 0 {
        return;
    }
    let mut last_bytes = compute.empty(n * dim); // (n, dim)
    let mut rows = model.global.rows(compute, n);
    for part in parts.iter() {
        let closed = part.closed();
        for patch in closed.clone() {
            let end = part.state.starts[patch + 1];
            last_bytes.extend(part.state.byte_states.rows(end - 1..end).iter().copied());
        }
        if !closed.is_empty() {
            model.global.add_run(&mut rows, closed, |_| 0, |_| 0);
        }
    }
    let vectors = model.encoder.patches(compute, &last_bytes); // (n, dim)
    let mut x = compute.buffer(n * dim); // (n, dim)
    x.copy_from_slice(&vectors);
    let mut caches: SmallVec<[&mut KvCache; 1]> = (parts.iter_mut())
        .filter(|part| !part.closed().is_empty())
        .map(|part| &mut part.state.global_cache)
        .collect();
    for layer in 0..model.global.n_layers() {
        model
            .global
            .forward_layer(compute, layer, &rows, &mut caches, &mut x);
    }
    drop(caches);
    let given = model.decoder.patches(compute, &x); // (n, dim)
    let mut first = 0;
    for part in parts {
        let rows = first..first + part.closed().len() * dim;
        first = rows.end;
        if let Some(trace) = part.trace.as_deref_mut() {
            trace
                .encoder_cross
                .extend_from_slice(&vectors[rows.clone()]);
            trace.global_out.extend_from_slice(&x[rows.clone()]);
        }
        part.state.patches.push(&given[rows]);
    }
}

/// The local decoder on bytes whose flags and patches are known.
fn decode<'c>(
    model: &Bolmo,
    compute: &'c Compute,
    parts: &mut [Settle<'_>],
) -> SmallVec<[ScratchVec<'c, f32>; 1]> {
    let dim = model.encoder.dim();
    let positions: SmallVec<[Range<usize>; 1]> = parts.iter().map(Settle::positions).collect();
    let n: usize = positions.iter().map(Range::len).sum();
    let (mut states, mut patches) = (compute.empty(n * dim), compute.empty(n * dim)); // (n, dim) each
    for (part, positions) in parts.iter().zip(&positions) {
        states.extend(
            part.state
                .byte_states
                .rows(positions.clone())
                .iter()
                .copied(),
        );
        for position in positions.clone() {
            // A byte that ends a patch is given that patch.
            let patch = part
                .state
                .starts
                .partition_point(|&start| start <= position + 1)
                - 2;
            patches.extend(part.state.patches.rows(patch..patch + 1).iter().copied());
        }
    }
    let mut runs: SmallVec<[(usize, &mut Recurrence); 1]> = (parts.iter_mut().zip(&positions))
        .map(|(part, positions)| (positions.len(), &mut part.state.decoder))
        .collect();
    let y = model.decoder.forward(compute, &mut runs, &states, &patches); // (n, dim)
    drop(runs);

    // The last row of each sequence, or all of them.
    let n_rows = |part: &Settle<'_>, n: usize| if part.all_logits { n } else { n.min(1) };
    let (mut wanted, mut rest) = (compute.empty(n * dim), &*y);
    for (part, positions) in parts.iter().zip(&positions) {
        let (rows, others) = rest.split_at(positions.len() * dim);
        rest = others;
        let skipped = positions.len() - n_rows(part, positions.len());
        wanted.extend(rows[skipped * dim..].iter().copied());
    }
    let logits = model.decoder.logits(compute, &wanted);
    let n_columns = model.decoder.n_logits();
    let mut rest = &*logits;
    let mut all = SmallVec::new();
    for (part, positions) in parts.iter_mut().zip(&positions) {
        let (rows, others) = rest.split_at(n_rows(part, positions.len()) * n_columns);
        rest = others;
        if let Some(last) = rows.chunks_exact(n_columns).next_back() {
            part.state.logits.clear();
            part.state.logits.extend_from_slice(last);
        }
        let mut out = compute.empty(rows.len());
        if part.all_logits {
            out.extend(rows.iter().copied());
        }
        all.push(out);
    }
    all
}
