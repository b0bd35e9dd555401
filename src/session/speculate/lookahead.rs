//! Bytes whose logits a session has computed before reading them.

use super::policy::{AcceptanceRate, DraftCounts};
use crate::sampler::Sampler;
use crate::vocab::{Id, VOCAB_SIZE};

/// Ids at the end of the session's state that the session does not count as read yet, with what follows
/// from each. While a draft is made they are guesses; afterwards they are exact.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lookahead {
    pub(super) ids: Vec<Id>,
    pub(super) logits: Vec<f32>, // (ids, vocab)
    /// What the sampler chooses after each.
    pub(super) chosen: Vec<Id>,
    /// How many of them have been read.
    n_read: usize,
    /// The sampler as it is before the choice after the last id read, or the first.
    pub(super) committed_sampler: Option<Sampler>,
    /// Samples while a draft is made.
    pub(super) draft_sampler: Option<Sampler>,
    pub(super) rate: AcceptanceRate,
    pub(super) counts: DraftCounts,
}

impl Lookahead {
    /// How many of the ids have not been read.
    pub fn n_unread(&self) -> usize {
        self.ids.len() - self.n_read
    }

    /// How drafting went.
    pub fn counts(&self) -> DraftCounts {
        self.counts
    }

    /// Forgets all ids, but not how drafting went.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.logits.clear();
        self.chosen.clear();
        self.n_read = 0;
    }

    /// Whether `id` is the next id.
    pub fn is_next(&self, id: Id) -> bool {
        self.ids.get(self.n_read) == Some(&id)
    }

    /// Reads the next id: the logits after it, (vocab).
    pub fn read(&mut self) -> &[f32] {
        if self.n_read > 0
            && let Some(sampler) = &mut self.committed_sampler
        {
            sampler.skip();
        }
        self.n_read += 1;
        &self.logits[(self.n_read - 1) * VOCAB_SIZE..][..VOCAB_SIZE]
    }

    /// What `sampler` would choose after the id read last, if that is known.
    pub fn choice(&self, sampler: &Sampler) -> Option<Id> {
        let last = self.n_read.checked_sub(1)?;
        let committed = self.committed_sampler.as_ref();
        committed.filter(|own| own.same_choices(sampler))?;
        Some(self.chosen[last])
    }
}
