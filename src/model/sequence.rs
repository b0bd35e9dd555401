//! The input and output of one sequence in a pass.

use std::ops::Range;

use smallvec::SmallVec;

use super::block::{Rows, Stack};
use super::encoder::Closed;
use super::split::split;
use super::state::{MAX_BATCH, State};
use super::trace::{self, Tensor, Trace};
use crate::config::arch;
use crate::error::Error;
use crate::ops::{Compute, ScratchVec};
use crate::vocab::{EOS, Id, VOCAB_SIZE};

/// Which logits a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogitRows {
    /// None.
    None,
    /// The logits after the last byte.
    Last,
    /// The logits after every byte.
    All,
}

/// One sequence of a pass, with a state of the model's family.
#[derive(Debug)]
pub(crate) struct SequenceInput<'a, S = State> {
    pub state: &'a mut S,
    /// 1 to [`MAX_BATCH`]; none if the state keeps logits and only these are asked for.
    pub ids: &'a [Id],
    /// Whether the model wrote the ids. Where ids carry flags, these are then the ones they were chosen with.
    pub written: bool,
    pub logits: LogitRows,
    pub trace: Option<&'a mut Trace>,
    /// How the next id may be chosen where the logits are computed. Only a GPU does that.
    #[allow(dead_code)]
    pub choice: Option<IdChoice>,
}

/// The results of a pass for one sequence.
#[derive(Debug)]
pub(crate) struct SequenceOutput<'c> {
    /// (0, 1 or n, columns): one column per logit of the model.
    pub logits: ScratchVec<'c, f32>,
    /// The next id, if it was chosen where the logits were computed.
    pub chosen: Option<Id>,
}

/// One element per sequence of a pass, in order. For one sequence, the usual case, it allocates nothing.
pub(crate) type PerSequence<T> = SmallVec<[T; 1]>;

/// The outputs of all sequences of a pass.
pub(crate) type Outputs<'c> = PerSequence<SequenceOutput<'c>>;

/// How to choose an id by its logits, in numbers. [`crate::sampler`] says what they mean.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(dead_code)] // read by GPUs only
pub(crate) struct IdChoice {
    /// The random number, 0 to below 1.
    pub draw: f64,
    /// 0: the largest logit.
    pub temperature: f64,
    /// All logits: no limit.
    pub top_k: u32,
    /// 1: no limit.
    pub top_p: f64,
    /// 0: no limit.
    pub min_p: f64,
    /// A bit for each special id that must not be chosen.
    pub banned: u32,
    /// The id if the logits allow none.
    pub fallback: u32,
}

/// Why a pass failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The sequence of that number has the error; the others are sound.
    Sequence(usize, Error),
    /// The device failed.
    Device(String),
}

impl Failure {
    pub(super) fn not_finite(sequence: usize, what: &'static str, position: usize) -> Failure {
        Failure::Sequence(sequence, Error::NonFinite { what, position })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Device(match error {
            Error::Device(message) => message,
            other => other.to_string(),
        })
    }
}

/// Number of ids of all sequences together.
pub(super) fn n_rows(inputs: &[SequenceInput<'_>]) -> usize {
    inputs.iter().map(|input| input.ids.len()).sum()
}

/// The rows of all sequences' bytes in the stack of the local encoder or decoder.
pub(super) fn byte_rows<'c>(
    stack: &Stack,
    compute: &'c Compute,
    inputs: &[SequenceInput<'_>],
) -> Rows<'c> {
    let mut rows = stack.rows(compute, n_rows(inputs));
    for input in inputs {
        (input.state).add_byte_rows(stack, input.positions(), &mut rows);
    }
    rows
}

/// Where patches start, by entropies that are all numbers: how many patches are closed once each
/// byte is read, (n).
pub(crate) fn cut<'c>(
    compute: &'c Compute,
    inputs: &mut [SequenceInput<'_>],
) -> Result<ScratchVec<'c, usize>, Failure> {
    let mut n_closed = compute.empty(n_rows(inputs));
    for (i, input) in inputs.iter_mut().enumerate() {
        let positions = input.positions();
        let state = &mut *input.state;
        if state.entropy_cache.is_none() {
            state.entropies.resize(positions.end, f32::NAN);
        } else if let Some(bad) = (positions.clone()).find(|&p| !state.entropies[p].is_finite()) {
            return Err(Failure::not_finite(i, "entropy", bad));
        }
        for (p, &id) in positions.zip(input.ids) {
            if state.patcher.push(id, state.entropies[p]) {
                state.starts.push(p + 1);
            }
            n_closed.extend([state.n_closed()]);
        }
    }
    Ok(n_closed)
}

/// The hook of the forward pass: adds the rows of `data` to the traces of the sequences that have one.
pub(super) fn record(inputs: &mut [SequenceInput<'_>], tensor: Tensor, data: &[f32]) {
    let sequences = inputs.iter_mut().map(|input| {
        let n_rows = match tensor {
            Tensor::EncoderCross | Tensor::GlobalOut => input.n_closing(),
            Tensor::EntropyLogits => input.n_entropy_rows(),
            _ => input.ids.len(),
        };
        (input.trace.as_deref_mut(), n_rows)
    });
    trace::record(sequences, tensor, data);
}

/// The logits of all sequences, one after the other, as the output of each.
pub(super) fn outputs<'c>(
    compute: &'c Compute,
    inputs: &[SequenceInput<'_>],
    logits: &[f32],
) -> Outputs<'c> {
    let lengths = inputs.iter().map(|input| input.n_logit_rows() * VOCAB_SIZE);
    split(logits, lengths)
        .map(|logits| SequenceOutput::new(compute, logits))
        .collect()
}

impl<'c> SequenceOutput<'c> {
    /// A copy of these logits.
    pub(super) fn new(compute: &'c Compute, values: &[f32]) -> Self {
        let mut logits = compute.empty(values.len());
        logits.extend_from_slice(values);
        SequenceOutput {
            logits,
            chosen: None,
        }
    }
}

impl<'a, S> SequenceInput<'a, S> {
    /// Ids whose logits are all computed.
    pub fn new(state: &'a mut S, ids: &'a [Id]) -> Self {
        SequenceInput {
            state,
            ids,
            written: false,
            logits: LogitRows::All,
            trace: None,
            choice: None,
        }
    }

    /// This input with a part of its state.
    pub(super) fn with<'b, T>(
        &'b mut self,
        state: impl FnOnce(&'b mut S) -> &'b mut T,
    ) -> SequenceInput<'b, T> {
        SequenceInput {
            state: state(self.state),
            ids: self.ids,
            written: self.written,
            logits: self.logits,
            trace: self.trace.as_deref_mut(),
            choice: self.choice,
        }
    }
}

impl SequenceInput<'_> {
    /// Adds the ids to the text.
    pub(super) fn read_text(&mut self) {
        assert!((1..=MAX_BATCH).contains(&self.ids.len()));
        self.state.ids.extend_from_slice(self.ids);
        let positions = self.positions();
        let state = &mut *self.state;
        let eos = positions.filter(|&p| state.ids[p] == EOS);
        state.eos.extend(eos);
    }

    /// Positions of the ids, which are the last of the text.
    pub(crate) fn positions(&self) -> Range<usize> {
        let end = self.state.ids.len();
        end - self.ids.len()..end
    }

    /// Whether the entropy model reads them.
    pub(super) fn runs_entropy(&self) -> bool {
        self.state.entropy_cache.is_some()
    }

    /// Rows of the entropy model: one per id, or none if it does not run.
    pub(super) fn n_entropy_rows(&self) -> usize {
        match self.runs_entropy() {
            true => self.ids.len(),
            false => 0,
        }
    }

    /// Rows whose logits are computed: the last ones.
    pub(crate) fn n_logit_rows(&self) -> usize {
        match self.logits {
            LogitRows::None => 0,
            LogitRows::Last => 1,
            LogitRows::All => self.ids.len(),
        }
    }

    /// The patches that the ids close, once boundaries are decided.
    pub(crate) fn closed(&self) -> Range<usize> {
        let positions = self.positions();
        let n_closed = |end| arch::n_closed(&self.state.starts, end);
        n_closed(positions.start)..n_closed(positions.end)
    }

    /// How many patches they close.
    pub(super) fn n_closing(&self) -> usize {
        self.closed().len()
    }

    /// The bytes of these patches.
    pub(super) fn closed_bytes(&self) -> Closed<'_> {
        Closed {
            states: &self.state.byte_states,
            starts: &self.state.starts,
            patches: self.closed(),
        }
    }
}
