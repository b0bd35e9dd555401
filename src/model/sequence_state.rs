//! The state of one sequence from byte to byte, for a model of any family.

use std::io::{self, Write};
use std::sync::Arc;

use super::patcher::Patcher;
use super::{Bolmo, Model, State, bolmo, state};
use crate::cache::KvType;
use crate::vocab::Id;
use crate::wire::{ReadError, Reader, Writer};

/// The state of one sequence. Cloning is a fork.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a session has two of them, whatever its family
pub(crate) enum SequenceState {
    Blt(State),
    Bolmo(bolmo::State),
}

/// Where a text ended: [`SequenceState::mark`].
#[derive(Debug)]
pub(crate) enum Mark {
    Blt(state::Mark),
    /// Number of ids.
    Bolmo(usize),
}

/// How patches are cut.
#[derive(Debug)]
pub(crate) struct Patching {
    /// The rule of a BLT.
    pub patcher: Patcher,
    /// Patch lengths from the caller, instead of any rule.
    pub lengths: Option<Vec<usize>>,
    /// Whether the entropy model runs.
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
            None => {
                let device = model.backend().new_caches(kv);
                let reset = entropy_reset;
                let state = State::new(model.blt(), device, patcher, entropies, reset, kv);
                SequenceState::Blt(state)
            }
            Some(bolmo) => {
                let starts = lengths.map(|lengths| -> Arc<[usize]> {
                    let mut start = 0;
                    let starts = lengths.iter().map(|length| {
                        start += length;
                        start
                    });
                    starts.collect()
                });
                SequenceState::Bolmo(bolmo::State::new(bolmo, kv, starts))
            }
        }
    }

    pub fn ids(&self) -> &[Id] {
        match self {
            SequenceState::Blt(state) => state.ids(),
            SequenceState::Bolmo(state) => &state.ids,
        }
    }

    pub fn entropies(&self) -> &[f32] {
        match self {
            SequenceState::Blt(state) => state.entropies(),
            SequenceState::Bolmo(state) => &state.entropies,
        }
    }

    pub fn patch_starts(&self) -> &[usize] {
        match self {
            SequenceState::Blt(state) => state.patch_starts(),
            SequenceState::Bolmo(state) => &state.starts,
        }
    }

    /// Number of patches that have ended.
    pub fn n_closed(&self) -> usize {
        self.patch_starts().len() - 1
    }

    /// Ids whose logits are final.
    pub fn n_settled(&self) -> usize {
        match self {
            SequenceState::Blt(state) => state.ids().len(),
            SequenceState::Bolmo(state) => state.n_settled(),
        }
    }

    /// Ids that the local decoder has read: all but those that are pending.
    pub fn n_decoded(&self) -> usize {
        match self {
            SequenceState::Blt(state) => state.ids().len(),
            SequenceState::Bolmo(state) => state.decoder.n_steps(),
        }
    }

    /// Whether the entropy model runs.
    pub fn runs_entropy(&self) -> bool {
        match self {
            SequenceState::Blt(state) => state.runs_entropy(),
            SequenceState::Bolmo(_) => false,
        }
    }

    /// Whether a pass without ids gives the logits after the last one. Otherwise that id has to be read again.
    pub fn keeps_logits(&self) -> bool {
        matches!(self, SequenceState::Bolmo(_))
    }

    /// The state of a BLT.
    ///
    /// # Panics
    /// If it is the state of another family.
    pub fn blt_mut(&mut self) -> &mut State {
        match self {
            SequenceState::Blt(state) => state,
            SequenceState::Bolmo(_) => panic!("a pass of a BLT with the state of a Bolmo model"),
        }
    }

    /// The state of a Bolmo model.
    ///
    /// # Panics
    /// If it is the state of another family.
    pub fn bolmo_mut(&mut self) -> &mut bolmo::State {
        match self {
            SequenceState::Bolmo(state) => state,
            SequenceState::Blt(_) => panic!("a pass of a Bolmo model with the state of a BLT"),
        }
    }

    /// Bytes of memory that the caches take.
    pub fn n_bytes(&self) -> usize {
        match self {
            SequenceState::Blt(state) => state.n_bytes(),
            SequenceState::Bolmo(state) => state.n_bytes(),
        }
    }

    /// Whether the caches are on a GPU.
    pub fn is_on_device(&self) -> bool {
        match self {
            SequenceState::Blt(state) => state.is_on_device(),
            SequenceState::Bolmo(..) => false,
        }
    }

    /// Where the text ends now. Called before a pass or a draft that may have to be undone.
    pub fn mark(&self) -> Mark {
        match self {
            SequenceState::Blt(state) => Mark::Blt(state.mark()),
            SequenceState::Bolmo(state) => Mark::Bolmo(state.ids.len()),
        }
    }

    /// Goes back to `mark`. Called when a pass has failed or a draft cannot be verified, before anything is evicted, so
    /// that it always can.
    pub fn rollback(&mut self, model: &Model, mark: Mark) {
        match (self, mark) {
            (SequenceState::Blt(state), Mark::Blt(mark)) => state.rollback(model.blt(), mark),
            (SequenceState::Bolmo(state), Mark::Bolmo(n_ids)) => {
                state.rewind(weights(model), &model.compute, n_ids);
            }
            _ => unreachable!("a mark of another sequence"),
        }
    }

    /// Goes back to the first `n_ids` ids. Called when a session goes back, and when drafted bytes are not the ones that
    /// follow.
    ///
    /// Returns `false`, leaving the state as it is, if rows that are needed have been evicted; the caller then starts
    /// over and reads the ids again.
    pub fn rewind(&mut self, model: &Model, n_ids: usize) -> bool {
        match self {
            SequenceState::Blt(state) => state.rewind(model.blt(), n_ids),
            SequenceState::Bolmo(state) => {
                state.rewind(weights(model), &model.compute, n_ids);
                true
            }
        }
    }

    /// Drops what neither the next bytes nor a rewind of a few hundred bytes can need. Called after each pass and each
    /// draft.
    pub fn evict(&mut self, model: &Model) {
        match self {
            SequenceState::Blt(state) => state.evict(model.blt().weights),
            SequenceState::Bolmo(state) => state.evict(),
        }
    }

    /// Writes the state.
    pub fn save(&self, model: &Model, out: &mut Writer<impl Write>) -> io::Result<()> {
        match self {
            SequenceState::Blt(state) => state.save(out),
            SequenceState::Bolmo(state) => state.save(&model.compute, out),
        }
    }

    /// Reads the output of [`SequenceState::save`] into this state, which must be empty and have the same settings. `limits` are the most
    /// bytes and patches that it may hold.
    pub fn load(
        &mut self,
        model: &Model,
        limits: (usize, usize),
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        match self {
            SequenceState::Blt(state) => state.load(model.blt(), limits, input),
            SequenceState::Bolmo(state) => {
                state.load(weights(model), &model.compute, limits, input)
            }
        }
    }
}

/// The weights for the state of a Bolmo model.
fn weights(model: &Model) -> &Bolmo {
    model.bolmo().expect("the state was made for its model")
}
