//! The state of one sequence of a Bolmo model.

use std::sync::Arc;

use super::Bolmo;
use crate::cache::{KvCache, KvType, RowStore};
use crate::ops::Compute;
use crate::recurrence::Recurrence;
use crate::vocab::Id;

/// Whether a byte ends a patch, and who decided it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Undecided: the byte is pending.
    Unknown,
    /// Decided by the boundary predictor, or the first position.
    Read(bool),
    /// Decided by the decoder, for the last byte of a text that it continues.
    Forced(bool),
    /// Chosen by the decoder together with the byte.
    Chosen(bool),
}

impl Flag {
    /// Whether the byte ends a patch, as far as is known.
    pub fn ends_patch(self) -> bool {
        matches!(
            self,
            Flag::Read(true) | Flag::Forced(true) | Flag::Chosen(true)
        )
    }
}

/// The state of one sequence. Cloning is a fork.
#[derive(Debug, Clone)]
pub struct State {
    /// The ids read so far.
    pub ids: Vec<Id>,
    /// NaN for each id: this family has no entropy model.
    pub entropies: Vec<f32>,
    /// One for each id. Only the last can be [`Flag::Unknown`].
    pub flags: Vec<Flag>,
    /// Where patches start, ascending, `0` first: each position after a byte that ends one.
    pub starts: Vec<usize>,
    /// The local encoder, after all ids.
    pub encoder: Recurrence,
    /// The local decoder, after all ids whose flag is known.
    pub decoder: Recurrence,
    /// States of the latest bytes.
    pub byte_states: RowStore,
    /// Keys and values of all patches that have ended.
    pub global_cache: KvCache,
    /// For each of these patches, the row that is added to its bytes.
    pub patches: RowStore,
    /// Logits after the last id whose flag is known, one that is tentative left out.
    pub logits: Vec<f32>,
    /// Patch starts from the caller, ascending, instead of predictor and decoder.
    pub given_starts: Option<Arc<[usize]>>,
    /// Logits after the last id, if its flag is only a guess that lets the text continue: the predictor decides once there is
    /// another byte to read.
    pub tentative: Option<Vec<f32>>,
}

impl State {
    /// The state before the first byte.
    pub fn new(model: &Bolmo, kv: KvType, given_starts: Option<Arc<[usize]>>) -> Self {
        State {
            given_starts,
            ids: Vec::new(),
            entropies: Vec::new(),
            flags: Vec::new(),
            starts: vec![0],
            encoder: model.encoder.layers.new_recurrence(),
            decoder: model.decoder.layers.new_recurrence(),
            byte_states: RowStore::new(model.encoder.dim()),
            global_cache: model.global.new_cache(kv, 0),
            patches: RowStore::new(model.encoder.dim()),
            logits: Vec::new(),
            tentative: None,
        }
    }

    /// Number of patches that have ended.
    pub fn n_closed(&self) -> usize {
        self.starts.len() - 1
    }

    /// Bytes of memory that the caches take.
    pub fn n_bytes(&self) -> usize {
        let rows = [&self.byte_states, &self.patches].map(RowStore::n_bytes);
        self.encoder.n_bytes()
            + self.decoder.n_bytes()
            + self.global_cache.n_bytes()
            + rows.iter().sum::<usize>()
    }

    /// Logits after the last id: by a guess if its flag is not known.
    pub fn last_logits(&self) -> &[f32] {
        self.tentative.as_ref().unwrap_or(&self.logits)
    }

    /// Whether the last byte's flag is unknown or only a guess.
    pub fn is_pending(&self) -> bool {
        self.tentative.is_some() || self.flags.last() == Some(&Flag::Unknown)
    }

    /// The flag of a position that is given.
    pub fn given_flag(&self, position: usize) -> Option<bool> {
        let starts = self.given_starts.as_deref()?;
        Some(position == 0 || starts.binary_search(&(position + 1)).is_ok())
    }

    /// Sets the flag of a position, the first whose flag is unknown.
    pub fn set_flag(&mut self, position: usize, flag: Flag) {
        self.flags[position] = flag;
        if flag.ends_patch() {
            self.starts.push(position + 1);
        }
    }

    /// Makes the last byte's flag definite: the guess if there is one, else the one that the decoder finds more likely.
    pub fn force(&mut self) {
        match self.tentative.take() {
            Some(logits) => {
                self.logits = logits;
                self.decoder.release();
            }
            None => self.force_flag(),
        }
    }

    /// The forced rule: of the byte's two ids the one with the larger logit, the plain one if they are equal.
    pub fn force_flag(&mut self) {
        let position = self.ids.len() - 1;
        let id = usize::from(self.ids[position]);
        let [plain, fused] = [id, id + self.logits.len() / 2].map(|id| self.logits[id]);
        self.set_flag(position, Flag::Forced(fused > plain));
    }

    /// Undoes a guess.
    pub fn undo_tentative(&mut self, compute: &Compute) {
        if self.tentative.take().is_none() {
            return;
        }
        let position = self.ids.len() - 1;
        self.flags[position] = Flag::Unknown;
        self.starts.retain(|&start| start <= position);
        self.rewind_patches();
        let rewound = self.decoder.rewind(compute, position);
        assert!(rewound, "a snapshot was made before the guess");
        self.decoder.release();
    }

    /// Drops the rows of patches that have not ended.
    pub fn rewind_patches(&mut self) {
        let n_closed = self.n_closed();
        self.global_cache.rewind(n_closed);
        self.patches.rewind(n_closed);
    }

    /// Number of ids whose flag is known.
    pub fn n_known(&self) -> usize {
        self.ids.len() - usize::from(self.flags.last() == Some(&Flag::Unknown))
    }

    /// Ids after which logits are known for good: those whose flag is, a guess left out.
    pub fn n_settled(&self) -> usize {
        self.n_known() - usize::from(self.tentative.is_some())
    }

    /// Drops what neither the next bytes nor a rewind of a few hundred bytes can need.
    pub fn evict(&mut self) {
        self.encoder.evict();
        self.decoder.evict();
        self.byte_states.evict(self.decoder.oldest());
    }
}
