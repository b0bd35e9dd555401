//! What one sequence carries from byte to byte, whatever family its model is of.

use std::io::{self, Write};
use std::sync::Arc;

use super::bolmo;
use super::draft::DraftCounts;
use super::patcher::Patcher;
use super::{Model, State};
use crate::cache::KvType;
use crate::vocab::Id;
use crate::wire::{ReadError, Reader, Writer};

/// The state of one sequence. Cloning is a fork.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a session has two of them, whatever it is of
pub(crate) enum SequenceState {
    /// Of a BLT.
    Blt(State),
    /// Of a Bolmo model. No entropy was ever computed: as many NaNs as ids.
    Bolmo(bolmo::State, Vec<f32>),
}

/// How patches are cut.
#[derive(Debug)]
pub(crate) struct Patching {
    /// The rule of a BLT.
    pub patcher: Patcher,
    /// Lengths that the caller gave, instead of any rule.
    pub lengths: Option<Vec<usize>>,
    /// Whether the entropy model runs, and after how many bytes it begins again.
    pub entropies: bool,
    /// See [`State::new`].
    pub entropy_reset: Option<usize>,
}

impl SequenceState {
    /// The state before the first byte.
    pub fn new(model: &Model, patching: Patching, kv: KvType) -> Self {
        let Patching {
            patcher,
            lengths,
            entropies,
            entropy_reset,
        } = patching;
        match model.bolmo() {
            None => SequenceState::Blt(State::new(model, patcher, entropies, entropy_reset, kv)),
            Some(bolmo) => {
                let starts = lengths.map(|lengths| -> Arc<[usize]> {
                    let mut start = 0;
                    let starts = lengths.iter().map(|length| {
                        start += length;
                        start
                    });
                    starts.collect()
                });
                SequenceState::Bolmo(bolmo::State::new(bolmo, kv, starts), Vec::new())
            }
        }
    }

    pub fn ids(&self) -> &[Id] {
        match self {
            SequenceState::Blt(state) => state.ids(),
            SequenceState::Bolmo(state, _) => &state.ids,
        }
    }

    pub fn entropies(&self) -> &[f32] {
        match self {
            SequenceState::Blt(state) => state.entropies(),
            SequenceState::Bolmo(_, entropies) => entropies,
        }
    }

    pub fn patch_starts(&self) -> &[usize] {
        match self {
            SequenceState::Blt(state) => state.patch_starts(),
            SequenceState::Bolmo(state, _) => &state.starts,
        }
    }

    /// Number of patches that have ended.
    pub fn n_closed(&self) -> usize {
        self.patch_starts().len() - 1
    }

    /// Ids after which logits are known for good.
    pub fn n_settled(&self) -> usize {
        match self {
            SequenceState::Blt(state) => state.ids().len(),
            SequenceState::Bolmo(state, _) => state.n_settled(),
        }
    }

    pub fn draft_counts(&self) -> DraftCounts {
        match self {
            SequenceState::Blt(state) => state.draft_counts(),
            SequenceState::Bolmo(..) => DraftCounts::default(),
        }
    }

    /// As many entropies as ids, where none is ever computed.
    pub fn count_entropies(&mut self) {
        if let SequenceState::Bolmo(state, entropies) = self {
            entropies.resize(state.ids.len(), f32::NAN);
        }
    }

    /// Bytes of memory held.
    pub fn n_bytes(&self) -> usize {
        match self {
            SequenceState::Blt(state) => state.n_bytes(),
            SequenceState::Bolmo(state, _) => state.n_bytes(),
        }
    }

    /// Whether the caches are on a GPU.
    pub fn is_on_device(&self) -> bool {
        match self {
            SequenceState::Blt(state) => state.is_on_device(),
            SequenceState::Bolmo(..) => false,
        }
    }

    /// Drafts with the experience of another state.
    pub fn go_on_drafting(&mut self, other: SequenceState) {
        if let (SequenceState::Blt(state), SequenceState::Blt(other)) = (self, other) {
            state.go_on_drafting(other);
        }
    }

    /// Goes back to the first `len` ids, at least one. The logits after them are still to be computed, from the id that
    /// is returned: as from `len`, nothing but the logits is missing. `None`, leaving the state as it is: the caller
    /// starts over and reads the ids again.
    pub fn rewind(&mut self, model: &Model, len: usize) -> Option<usize> {
        match self {
            // The last byte is read again: its logits were not kept.
            SequenceState::Blt(state) => state.truncate(model, len - 1).then_some(len - 1),
            SequenceState::Bolmo(state, entropies) => {
                state.rewind(model.bolmo()?, &model.compute, len);
                entropies.truncate(len);
                Some(len)
            }
        }
    }

    /// Writes the state.
    pub fn save(&self, model: &Model, out: &mut Writer<impl Write>) -> io::Result<()> {
        match self {
            SequenceState::Blt(state) => state.save(out),
            SequenceState::Bolmo(state, _) => state.save(&model.compute, out),
        }
    }

    /// Reads what [`SequenceState::save`] wrote, into this state, which is that of an empty session with the same
    /// settings and these limits of bytes and patches.
    pub fn load(
        &mut self,
        model: &Model,
        limits: (usize, usize),
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        match (self, model.bolmo()) {
            (SequenceState::Bolmo(state, entropies), Some(bolmo)) => {
                state.load(bolmo, &model.compute, limits, input)?;
                entropies.resize(state.ids.len(), f32::NAN);
                Ok(())
            }
            (SequenceState::Blt(state), _) => state.load(model, limits, input),
            (SequenceState::Bolmo(..), None) => unreachable!("made for its model"),
        }
    }
}
