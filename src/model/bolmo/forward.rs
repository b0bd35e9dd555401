//! The path of a byte through a Bolmo model, top to bottom.
//!
//! ```text
//! byte states     the local encoder reads every byte, whatever the patches
//! flags           of bytes read, by the states of two neighbours; of bytes written, chosen with them
//! patches         the global transformer takes a step for each byte that ends one
//! logits          the local decoder reads every byte whose flag is known, with the latest patch
//! ```
//!
//! The last byte of a text that is read is pending: its flag needs the byte after it. If its logits are wanted, the flag is
//! guessed: the more likely of the byte's two ids. Writing makes the guess definite, reading more undoes it. So a text read
//! in pieces is the text read at once, and a written text keeps the flags it was written with.

use std::ops::Range;

use smallvec::SmallVec;

use super::Bolmo;
use super::boundary::ends_patch;
use super::state::{Flag, State};
use crate::cache::KvCache;
use crate::config::arch;
use crate::model::sequence::{Failure, LogitRows, Outputs, SequenceInput as Input, SequenceOutput};
use crate::model::split::split;
use crate::model::trace::{Tensor, Trace, record};
use crate::ops::Compute;
use crate::recurrence::Recurrence;
use crate::vocab::{Id, VOCAB_SIZE};

/// One sequence of a pass.
type SequenceInput<'a> = Input<'a, State>;

/// One element per sequence.
type PerSequence<T> = SmallVec<[T; 1]>;

impl Bolmo {
    /// Reads the ids of all sequences, every matrix with the rows of all of them at once, and computes the logits
    /// (rows, 2 * vocab) each of them asks for: after the last id, or after every position whose flag is known by this.
    /// After an error the states must be [rewound](State::rewind).
    pub fn forward<'c>(
        &self,
        compute: &'c Compute,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<Outputs<'c>, Failure> {
        inputs.iter_mut().for_each(|input| input.take_ids(compute));
        self.encode(compute, inputs);
        self.cut(compute, inputs)?;
        let mut outputs = self.decode_known(compute, inputs);
        self.guess_pending(compute, inputs);
        for (input, output) in inputs.iter().zip(&mut outputs) {
            if input.logits == LogitRows::Last {
                *output = SequenceOutput::new(compute, input.state.last_logits());
            }
        }
        Ok(outputs)
    }

    /// Embeddings, then the local encoder: the new bytes' states.
    fn encode(&self, compute: &Compute, inputs: &mut [SequenceInput<'_>]) {
        let n: usize = inputs.iter().map(|input| input.ids.len()).sum();
        let mut x = compute.empty(n * self.encoder.dim()); // (n, dim)
        for input in inputs.iter() {
            let ids = &input.state.ids;
            (self.encoder).embed(compute, ids, ids.len() - input.ids.len(), &mut x);
        }
        let mut runs: PerSequence<(usize, &mut Recurrence)> = (inputs.iter_mut())
            .map(|input| (input.ids.len(), &mut input.state.encoder))
            .collect();
        let states = self.encoder.forward(compute, &mut runs, x); // (n, dim)
        drop(runs);
        let lengths = inputs.iter().map(|input| input.ids.len());
        let pieces = split(&states, lengths.map(|n| n * self.encoder.dim()));
        let pieces: PerSequence<&[f32]> = pieces.collect();
        for (input, states) in inputs.iter_mut().zip(pieces) {
            input.state.byte_states.push(states);
        }
        let traces = inputs.iter_mut();
        record(
            traces.map(|input| (input.trace.as_deref_mut(), input.ids.len())),
            Tensor::EncoderHidden,
            &states,
        );
    }

    /// Decides, for each byte whose next byte has been read, whether it ends a patch.
    fn cut(&self, compute: &Compute, inputs: &mut [SequenceInput<'_>]) -> Result<(), Failure> {
        let dim = self.encoder.dim();
        let positions: PerSequence<Range<usize>> =
            inputs.iter().map(SequenceInput::decidable).collect();
        let n: usize = positions.iter().map(Range::len).sum();
        if n == 0 {
            return Ok(());
        }
        let (mut states, mut next) = (compute.empty(n * dim), compute.empty(n * dim)); // (n, dim) each
        for (input, positions) in inputs.iter().zip(&positions) {
            if !positions.is_empty() {
                let rows = &input.state.byte_states;
                states.extend_from_slice(rows.rows(positions.clone()));
                next.extend_from_slice(rows.rows(positions.start + 1..positions.end + 1));
            }
        }
        let log_probs = self.boundary.log_probs(compute, &states, &next);
        let pieces = split(&log_probs, positions.iter().map(Range::len));
        for (i, (input, log_probs)) in inputs.iter_mut().zip(pieces).enumerate() {
            for (position, &log_prob) in positions[i].clone().zip(log_probs) {
                if log_prob.is_nan() {
                    return Err(Failure::not_finite(i, "boundary", position));
                }
                let flag = Flag::Read(ends_patch(log_prob));
                input.state.set_flag(position, flag);
            }
        }
        let traces = inputs.iter_mut().map(|input| input.trace.as_deref_mut());
        record(
            traces.zip(positions.iter().map(Range::len)),
            Tensor::BoundaryLogProbs,
            &log_probs,
        );
        Ok(())
    }

    /// Patches and bytes whose flags are known: all logits of the sequences that ask for all, none of others.
    fn decode_known<'c>(
        &self,
        compute: &'c Compute,
        inputs: &mut [SequenceInput<'_>],
    ) -> Outputs<'c> {
        let mut known: PerSequence<Settle<'_>> = (inputs.iter_mut())
            .map(|input| Settle {
                end: input.state.n_known(),
                all_logits: input.logits == LogitRows::All,
                trace: input.trace.as_deref_mut(),
                state: &mut *input.state,
            })
            .collect();
        settle(self, compute, &mut known)
    }

    /// Closes pending bytes by the forced rule, for the logits after them.
    fn guess_pending(&self, compute: &Compute, inputs: &mut [SequenceInput<'_>]) {
        let needs_guess = |input: &SequenceInput<'_>| {
            input.logits == LogitRows::Last && input.state.flags.last() == Some(&Flag::Unknown)
        };
        let mut guesses: PerSequence<(Settle<'_>, Vec<f32>)> = SmallVec::new();
        for input in inputs.iter_mut().filter(|input| needs_guess(input)) {
            let state = &mut *input.state;
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
        let (mut settles, before): (PerSequence<Settle<'_>>, PerSequence<Vec<f32>>) =
            guesses.into_iter().unzip();
        settle(self, compute, &mut settles);
        for (settle, before) in settles.into_iter().zip(before) {
            settle.state.tentative = Some(std::mem::replace(&mut settle.state.logits, before));
        }
    }
}

impl SequenceInput<'_> {
    /// Adds the ids to the text. If the ids were written, the guess about the byte before them becomes definite. If they
    /// are read, it is undone.
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
            state.entropies.push(f32::NAN);
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

/// The bytes of one sequence to decode: all before position `end`, whose flags are known.
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
        let n_closed = arch::n_closed(&self.state.starts, self.end);
        self.state.patches.end()..n_closed
    }

    /// Positions to decode.
    fn positions(&self) -> Range<usize> {
        self.state.decoder.n_steps()..self.end
    }
}

/// The global transformer's steps for patches that have ended, then the local decoder for the bytes. Keeps the logits
/// after the last byte of each sequence, and returns all logits of the sequences that ask for them.
pub fn settle<'c>(model: &Bolmo, compute: &'c Compute, parts: &mut [Settle<'_>]) -> Outputs<'c> {
    close_patches(model, compute, parts);
    decode(model, compute, parts)
}

/// The global transformer reads the patches that have ended; their rows for the decoder are added to the states.
fn close_patches(model: &Bolmo, compute: &Compute, parts: &mut [Settle<'_>]) {
    let dim = model.encoder.dim();
    let closed: PerSequence<Range<usize>> = parts.iter().map(Settle::closed).collect();
    let n: usize = closed.iter().map(Range::len).sum();
    if n == 0 {
        return;
    }
    let mut last_bytes = compute.empty(n * dim); // (n, dim)
    let mut rows = model.global.rows(compute, n);
    for (part, closed) in parts.iter().zip(&closed) {
        for patch in closed.clone() {
            let end = part.state.starts[patch + 1];
            last_bytes.extend_from_slice(part.state.byte_states.rows(end - 1..end));
        }
        if !closed.is_empty() {
            (model.global).add_run(&mut rows, closed.clone(), |_| 0, |_| 0);
        }
    }
    let vectors = model.encoder.patches(compute, &last_bytes); // (n, dim)
    let mut x = compute.buffer(n * dim); // (n, dim)
    x.copy_from_slice(&vectors);
    let mut caches: PerSequence<&mut KvCache> = (parts.iter_mut().zip(&closed))
        .filter(|(_, closed)| !closed.is_empty())
        .map(|(part, _)| &mut part.state.global_cache)
        .collect();
    for layer in 0..model.global.n_layers() {
        (model.global).forward_layer(compute, layer, &rows, &mut caches, &mut x);
    }
    drop(caches);
    let given = model.decoder.patches(compute, &x); // (n, dim)
    let pieces = split(&given, closed.iter().map(|closed| closed.len() * dim));
    for (part, given) in parts.iter_mut().zip(pieces) {
        part.state.patches.push(given);
    }
    for (tensor, data) in [(Tensor::EncoderCross, &vectors), (Tensor::GlobalOut, &x)] {
        let traces = parts.iter_mut().map(|part| part.trace.as_deref_mut());
        record(traces.zip(closed.iter().map(Range::len)), tensor, data);
    }
}

/// The local decoder on bytes whose flags and patches are known.
fn decode<'c>(model: &Bolmo, compute: &'c Compute, parts: &mut [Settle<'_>]) -> Outputs<'c> {
    let dim = model.encoder.dim();
    let positions: PerSequence<Range<usize>> = parts.iter().map(Settle::positions).collect();
    let n: usize = positions.iter().map(Range::len).sum();
    let (mut states, mut patches) = (compute.empty(n * dim), compute.empty(n * dim)); // (n, dim) each
    for (part, positions) in parts.iter().zip(&positions) {
        states.extend_from_slice(part.state.byte_states.rows(positions.clone()));
        for position in positions.clone() {
            // A byte that ends a patch is given that patch.
            let patch = arch::n_closed(&part.state.starts, position + 1) - 1;
            patches.extend_from_slice(part.state.patches.rows(patch..patch + 1));
        }
    }
    let mut runs: PerSequence<(usize, &mut Recurrence)> = (parts.iter_mut().zip(&positions))
        .map(|(part, positions)| (positions.len(), &mut part.state.decoder))
        .collect();
    let y = model.decoder.forward(compute, &mut runs, &states, &patches); // (n, dim)
    drop(runs);

    // The last row of each sequence, or all of them.
    let n_rows = parts.iter().zip(&positions).map(|(part, positions)| {
        let n = positions.len();
        if part.all_logits { n } else { n.min(1) }
    });
    let n_rows: PerSequence<usize> = n_rows.collect();
    let mut last = compute.empty(n * dim);
    let pieces = split(&y, positions.iter().map(|positions| positions.len() * dim));
    for (y, n_rows) in pieces.zip(&n_rows) {
        last.extend_from_slice(&y[y.len() - n_rows * dim..]);
    }
    let logits = model.decoder.logits(compute, &last);
    let n_columns = model.decoder.n_logits();
    let pieces = split(&logits, n_rows.iter().map(|n| n * n_columns));
    let outputs = parts.iter_mut().zip(pieces).map(|(part, rows)| {
        if let Some(last) = rows.chunks_exact(n_columns).next_back() {
            part.state.logits.clear();
            part.state.logits.extend_from_slice(last);
        }
        SequenceOutput::new(compute, if part.all_logits { rows } else { &[] })
    });
    outputs.collect()
}
