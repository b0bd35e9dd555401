//! A sequence's state as bytes, caches included, so that a loaded state needs no computation.
//!
//! Only what cannot be derived is stored: the ids and entropies, from which the patcher finds the
//! same boundaries again, and the rows of the caches. How many rows follows from the model and the
//! number of ids.

use std::io::{self, Write};

use super::blt::Blt;
use super::state::State;
use crate::vocab::{EOS, Id, VOCAB_SIZE};
use crate::wire::{ReadError, Reader, Writer};

impl State {
    /// Writes the state.
    pub(crate) fn save(&self, out: &mut Writer<impl Write>) -> io::Result<()> {
        let n = self.ids.len();
        out.size(n)?;
        self.ids
            .iter()
            .try_for_each(|id| out.bytes(&id.to_le_bytes()))?;
        if let Some(cache) = &self.entropy_cache {
            out.f32s(&self.entropies)?;
            cache.save(n, out)?;
        }
        self.encoder_cache.save(n, out)?;
        self.decoder_cache.save(n, out)?;
        self.global_cache.save(self.n_closed(), out)?;
        self.byte_states.iter().try_for_each(|s| s.save(n, out))?;
        self.global_out.save(self.n_closed(), out)
    }

    /// Reads the output of [`State::save`] into this state of an empty session with the same settings.
    /// `max_bytes` and `max_patches` are that session's limits.
    pub(crate) fn load(
        &mut self,
        blt: Blt<'_>,
        (max_bytes, max_patches): (usize, usize),
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        let (w, compute) = (blt.weights, blt.compute);
        let n = input.size("number of ids")?;
        if n > max_bytes {
            return Err(format!(
                "number of ids: expected at most {max_bytes}, found {n}"
            ));
        }
        let (ids, _) = input.bytes("ids", n.saturating_mul(2))?.as_chunks::<2>();
        self.ids = ids.iter().map(|&id| Id::from_le_bytes(id)).collect();
        if let Some(bad) = self.ids.iter().find(|&&id| usize::from(id) >= VOCAB_SIZE) {
            return Err(format!(
                "ids: expected them below {VOCAB_SIZE}, found {bad}"
            ));
        }
        self.eos = (0..n).filter(|&p| self.ids[p] == EOS).collect();
        if let (Some(cache), Some(entropy)) = (&mut self.entropy_cache, &w.entropy) {
            self.entropies = finite("entropies", input.f32s("entropies", n)?)?;
            cache.load(compute, n, entropy.layers.config.window, input)?;
        } else {
            self.entropies = vec![f32::NAN; n];
        }
        for (p, (&id, &entropy)) in self.ids.iter().zip(&self.entropies).enumerate() {
            if self.patcher.push(id, entropy) {
                self.starts.push(p + 1);
            }
        }
        let n_closed = self.n_closed();
        if n_closed > max_patches {
            return Err(format!(
                "patches: expected at most {max_patches}, found {n_closed}"
            ));
        }
        self.encoder_cache
            .load(compute, n, w.config.encoder.window, input)?;
        self.decoder_cache
            .load(compute, n, w.config.decoder.window, input)?;
        self.global_cache
            .load(compute, n_closed, w.config.global.window, input)?;
        let oldest_patch = n_closed.saturating_sub(w.encoder.patches_seen_back());
        for store in &mut self.byte_states {
            store.load(self.starts[oldest_patch], n, input)?;
        }
        self.global_out.load(0, n_closed, input)?;
        self.rebuild_patches(blt);
        Ok(())
    }
}

/// The values, if all of them are finite.
pub(crate) fn finite(what: &str, values: Vec<f32>) -> Result<Vec<f32>, ReadError> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(values),
        Some(bad) => Err(format!("{what}: expected finite numbers, found {bad}")),
    }
}
