//! A sequence's state as bytes, so that reading it back computes nothing but the logits of a pending byte.
//!
//! Ids and the flags of their bytes, both recurrences, the last byte's state, keys and values and what bytes are given of
//! all patches, and the logits after the last byte whose flag is known. A guess is not stored.

use std::io::{self, Write};

use super::Bolmo;
use super::state::{Flag, State};
use crate::model::state_file::finite;
use crate::ops::Compute;
use crate::vocab::Id;
use crate::wire::{ReadError, Reader, Writer};

/// Flags as bytes.
const FLAGS: [Flag; 7] = [
    Flag::Unknown,
    Flag::Read(false),
    Flag::Read(true),
    Flag::Forced(false),
    Flag::Forced(true),
    Flag::Chosen(false),
    Flag::Chosen(true),
];

impl State {
    /// Writes the state.
    pub fn save(&self, compute: &Compute, out: &mut Writer<impl Write>) -> io::Result<()> {
        let mut state = self.clone();
        state.undo_tentative(compute);
        let n = state.ids.len();
        out.size(n)?;
        state
            .ids
            .iter()
            .try_for_each(|id| out.bytes(&id.to_le_bytes()))?;
        let code = |flag: &Flag| FLAGS.iter().position(|f| f == flag).expect("a known flag") as u8;
        let codes: Vec<u8> = state.flags.iter().map(code).collect();
        out.bytes(&codes)?;
        if n == 0 {
            return Ok(());
        }
        state.encoder.save(out)?;
        state.decoder.save(out)?;
        out.f32s(state.byte_states.rows(n - 1..n))?;
        state.global_cache.save(state.n_closed(), out)?;
        out.f32s(state.patches.rows(0..state.n_closed()))?;
        out.f32s(&state.logits)
    }

    /// Reads what [`State::save`] wrote, into this state, which is that of an empty session with the same settings.
    /// `max_bytes` and `max_patches` are that session's limits.
    pub fn load(
        &mut self,
        model: &Bolmo,
        compute: &Compute,
        (max_bytes, max_patches): (usize, usize),
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        let n = input.size("number of ids")?;
        if n > max_bytes {
            return Err(format!(
                "number of ids: expected at most {max_bytes}, found {n}"
            ));
        }
        let (ids, _) = input.bytes("ids", n.saturating_mul(2))?.as_chunks::<2>();
        let ids: Vec<Id> = ids.iter().map(|&id| Id::from_le_bytes(id)).collect();
        if let Some(bad) = ids.iter().find(|&&id| !model.encoder.can_read(id)) {
            return Err(format!(
                "ids: expected those of bytes or the start of a text, found {bad}"
            ));
        }
        let codes = input.bytes("flags", n)?.to_vec();
        for (position, (id, code)) in ids.into_iter().zip(codes).enumerate() {
            let flag = FLAGS.get(usize::from(code)).copied();
            let expected = match flag {
                None => false,
                Some(Flag::Unknown) => position > 0 && position + 1 == n,
                Some(flag) => position > 0 || flag == Flag::Read(true),
            };
            let Some(flag) = flag.filter(|_| expected) else {
                return Err(format!(
                    "flags: expected one that position {position} of {n} can have, found {code}"
                ));
            };
            self.ids.push(id);
            self.entropies.push(f32::NAN);
            self.flags.push(flag);
            if flag.ends_patch() {
                self.starts.push(position + 1);
            }
        }
        let n_closed = self.n_closed();
        if n_closed > max_patches {
            return Err(format!(
                "patches: expected at most {max_patches}, found {n_closed}"
            ));
        }
        if n == 0 {
            return Ok(());
        }
        let dim = model.encoder.dim();
        self.encoder.load(n, input)?;
        self.decoder.load(self.n_known(), input)?;
        self.byte_states.clear(n - 1);
        self.byte_states
            .push(&finite("byte state", input.f32s("byte state", dim)?)?);
        self.global_cache.load(compute, n_closed, None, input)?;
        let patches = input.f32s("patches", n_closed.saturating_mul(dim))?;
        self.patches.push(&finite("patches", patches)?);
        self.logits = finite("logits", input.f32s("logits", model.decoder.n_logits())?)?;
        Ok(())
    }
}
