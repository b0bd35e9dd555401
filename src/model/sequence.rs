//! What a sequence brings to a pass, and why a pass may fail.

use std::ops::Range;

use super::State;
use super::forward::{MAX_BATCH, Trace};
use crate::config::arch;
use crate::error::Error;
use crate::ops::ScratchVec;
use crate::sampler::Sampler;
use crate::vocab::{EOS, Id};

/// Which logits a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogitRows {
    /// None.
    None,
    /// Those after the last byte.
    Last,
    /// Those after every byte.
    All,
}

/// One sequence's share of a pass.
#[derive(Debug)]
pub(crate) struct SequenceInput<'a> {
    pub state: &'a mut State,
    /// 1 to [`MAX_BATCH`].
    pub ids: &'a [Id],
    pub logits: LogitRows,
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
    /// The sequence of that number has the error; the others are sound.
    Sequence(usize, Error),
    /// The device failed.
    Device(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Device(match error {
            Error::Device(message) => message,
            other => other.to_string(),
        })
    }
}

impl SequenceInput<'_> {
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
    pub(crate) fn n_logit_rows(&self) -> usize {
        match self.logits {
            LogitRows::None => 0,
            LogitRows::Last => 1,
            LogitRows::All => self.ids.len(),
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
    pub(super) fn not_finite(input: usize, what: &'static str, position: usize) -> Failure {
        Failure::Sequence(input, Error::NonFinite { what, position })
    }
}
