//! How a sequence goes back: what can be restored is, and the rest is computed again.

use super::Bolmo;
use super::forward::{Settle, settle};
use super::state::{Flag, State};
use crate::model::MAX_BATCH;
use crate::ops::Compute;

impl State {
    /// Goes back to the first `len` ids. The flag of the last one is unknown again unless it was chosen with its byte.
    /// Costs a byte of the local networks, or a few dozen steps of their recurrences; further back than a few hundred
    /// bytes, the local networks run again from a snapshot. The global network never does.
    pub fn rewind(&mut self, model: &Bolmo, compute: &Compute, len: usize) {
        self.undo_tentative(compute);
        self.ids.truncate(len);
        self.entropies.truncate(len);
        self.flags.truncate(len);
        let Some(last) = len.checked_sub(1) else {
            return self.reset();
        };
        let is_given = self.given_flag(last).is_some();
        if last > 0 && !is_given && !matches!(self.flags[last], Flag::Chosen(_)) {
            self.flags[last] = Flag::Unknown;
        }
        let n_known = self.n_known();
        self.starts.retain(|&start| start <= n_known);
        self.rewind_patches();

        // The byte before the last is decoded again: its logits were not kept.
        let n_decoded = last.saturating_sub(1);
        let near = self.byte_states.first() <= n_decoded
            && self
                .decoder
                .rewind(compute, n_decoded.min(self.decoder.n_steps()))
            && self.encoder.rewind(compute, len);
        if near {
            self.byte_states.rewind(len);
        } else {
            let n_decoded = self.decoder.rewind_to_snapshot(n_decoded);
            let n_encoded = self.encoder.rewind_to_snapshot(n_decoded);
            self.byte_states.clear(n_encoded);
            let mut n_encoded = n_encoded;
            while n_encoded < len {
                let end = len.min(n_encoded + MAX_BATCH);
                let mut x = compute.empty((end - n_encoded) * model.encoder.dim());
                model
                    .encoder
                    .embed(compute, &self.ids[..end], n_encoded, &mut x);
                let mut runs = [(end - n_encoded, &mut self.encoder)];
                self.byte_states
                    .push(&model.encoder.forward(compute, &mut runs, x));
                n_encoded = end;
            }
        }
        while self.decoder.n_steps() < n_known {
            let end = n_known.min(self.decoder.n_steps() + MAX_BATCH);
            let part = Settle {
                end,
                all_logits: false,
                trace: None,
                state: self,
            };
            settle(model, compute, &mut [part]);
        }
        self.evict();
    }

    /// Goes back to the start, the text being empty.
    fn reset(&mut self) {
        self.starts.truncate(1);
        self.encoder.rewind_to_snapshot(0);
        self.decoder.rewind_to_snapshot(0);
        self.byte_states.clear(0);
        self.rewind_patches();
        self.logits.clear();
    }
}
