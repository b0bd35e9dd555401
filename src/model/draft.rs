//! Self-speculation: several bytes from one reading of the weights, the same that would come without.
//!
//! Spec section 13, after "Fast Byte Latent Transformer" (arXiv:2605.08044). The local encoder and
//! decoder go on by themselves past the end of the patch, on the last patch that is closed (*draft*).
//! Then the entropy model reads the drafted bytes at once, the global transformer the patches that it
//! cuts them into, and the decoder, again, the bytes whose patch has changed (*verify*). A drafted byte
//! counts if the sampler, with the same random numbers, would choose it by the logits that result; the
//! first that does not ends the draft. Since a row's arithmetic is the same whatever rows are computed
//! with it, the bits are those of reading byte by byte.
//!
//! Nothing of this shows from outside: what is known beyond the text waits in [`Draft`] until the same
//! byte is read, and any other byte throws it away.

use std::ops::AddAssign;

use super::block::Stack;
use super::sequence::{LogitRows, SequenceInput};
use super::{Model, State};
use crate::ops::ScratchVec;
use crate::sampler::Sampler;
use crate::vocab::{EOS, Id, VOCAB_SIZE};

/// Bytes known beyond the text read: their entropies and logits, computed already. The caches hold
/// their positions too.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    ids: Vec<Id>,
    entropies: Vec<f32>,
    logits: Vec<f32>, // (ids, vocab)
    /// What the sampler chooses after each.
    chosen: Vec<Id>,
    /// How many of them have been read since.
    n_read: usize,
    pub counts: DraftCounts,
    rate: AcceptanceRate,
    /// That sampler, as it is when the next of them is read.
    sampler: Option<Sampler>,
}

/// How drafting went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Drafts made.
    pub n_drafts: usize,
    /// Bytes drafted, the first of each draft, which is certain, included.
    pub n_drafted: usize,
    /// Those that counted.
    pub n_accepted: usize,
    /// Patches that these bytes closed.
    pub n_patches: usize,
    /// Drafts in which patches were closed: the global transformer ran, and the decoder again.
    pub n_closing: usize,
}

impl AddAssign for DraftCounts {
    fn add_assign(&mut self, other: Self) {
        self.n_drafts += other.n_drafts;
        self.n_drafted += other.n_drafted;
        self.n_accepted += other.n_accepted;
        self.n_patches += other.n_patches;
        self.n_closing += other.n_closing;
    }
}

/// How often drafted bytes have counted lately, each weighted by how long ago that is.
#[derive(Debug, Clone, Copy)]
struct AcceptanceRate {
    right: f64,
    wrong: f64,
}

impl Default for AcceptanceRate {
    /// As if 98 % had, the middle of what is published.
    fn default() -> Self {
        AcceptanceRate {
            right: 24.5,
            wrong: 0.5,
        }
    }
}

impl AcceptanceRate {
    /// Of a draft `n` bytes counted after the first, and whether one more did not.
    fn add(&mut self, n: usize, ended: bool) {
        self.right = self.right * 0.9 + n as f64;
        self.wrong = (self.wrong * 0.9).max(0.01) + f64::from(u8::from(ended));
    }

    /// Nothing was drafted: what is known grows old, so that another attempt is made some time.
    fn decay(&mut self) {
        let start = AcceptanceRate::default();
        self.right += (start.right - self.right) * 0.01;
        self.wrong += (start.wrong - self.wrong) * 0.01;
    }

    /// Bytes of a draft of `n` that will count, if each does as often as lately.
    fn expected(&self, n: usize) -> f64 {
        let p = self.right / (self.right + self.wrong);
        (1.0 - p.powi(n as i32)) / (1.0 - p)
    }
}

/// What reading each network's weights once costs, in bytes. That is what drafting saves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    entropy: f64,
    encoder: f64,
    global: f64,
    decoder: f64,
}

impl Costs {
    /// Of the layers, which are nearly all.
    pub fn of(entropy: Option<&Stack>, encoder: &Stack, global: &Stack, decoder: &Stack) -> Self {
        let of = |stack: &Stack| stack.n_bytes() as f64;
        Costs {
            entropy: entropy.map_or(0.0, of),
            encoder: of(encoder),
            global: of(global),
            decoder: of(decoder),
        }
    }

    /// The length up to `most` that makes the bytes that count cheapest, with so many patches a byte;
    /// 1 if no draft pays.
    fn length(
        &self,
        rate: &AcceptanceRate,
        patches_per_byte: f64,
        runs_entropy: bool,
        most: usize,
    ) -> usize {
        let entropy = if runs_entropy { self.entropy } else { 0.0 };
        let per_byte = self.encoder + self.decoder;
        if per_byte + entropy + self.global < IN_CACHES {
            return 1;
        }
        let plain = per_byte + entropy + patches_per_byte * self.global;
        // Rows that are read together are not for nothing: their products have to be computed.
        let together = |rows: f64| 1.0 + (rows - 1.0).max(0.0) / ROWS_FOR_A_READING;
        let drafted = |n: usize| {
            let rows = n as f64;
            let closes = 1.0 - (1.0 - patches_per_byte).max(0.0).powi(n as i32);
            let verifying = together(rows) * (entropy + closes * self.decoder)
                + closes * together(rows * patches_per_byte) * self.global;
            (rows * per_byte + verifying) / rate.expected(n)
        };
        let costs = (2..=most).map(|n| (n, drafted(n)));
        match costs.min_by(|a, b| a.1.total_cmp(&b.1)) {
            Some((n, cost)) if cost < MIN_GAIN * plain => n,
            _ => 1,
        }
    }
}

/// Most bytes of a draft whose length is for us to choose.
const MAX_AUTO_DRAFT: usize = 16;

/// Weights that stay in the processor's caches: reading them again is cheap, and then a draft is only so many
/// rows more.
const IN_CACHES: f64 = 6e6;

/// As many rows more cost as much as the weights' reading, or less.
const ROWS_FOR_A_READING: f64 = 10.0;

/// What a draft must cost at most, beside reading byte by byte.
const MIN_GAIN: f64 = 0.95;

impl Draft {
    fn next(&self) -> Option<Id> {
        self.ids.get(self.n_read).copied()
    }

    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.entropies.clear();
        self.logits.clear();
        self.chosen.clear();
        self.n_read = 0;
    }
}

impl State {
    /// Drafts with the experience of another state.
    pub(crate) fn go_on_drafting(&mut self, mut other: State) {
        other.draft.clear();
        self.draft = other.draft;
    }

    /// Forgets what is known beyond the text.
    pub(super) fn drop_draft(&mut self, model: &Model) {
        if self.draft.next().is_some() {
            self.forget_beyond(model);
        }
        self.draft.clear();
    }
}

impl Model {
    /// The logits after the one id of a sequence, if the draft has them or can be made anew: (vocab).
    pub(super) fn by_draft(&self, input: &mut SequenceInput<'_>) -> Option<ScratchVec<'_, f32>> {
        let &[id] = input.ids else {
            input.state.drop_draft(self);
            return None;
        };
        if input.trace.is_some() || input.state.draft.next() != Some(id) {
            input.state.drop_draft(self);
            let sampler = input.sampler.filter(|_| input.trace.is_none())?;
            let n = self.draft_length(input);
            if n < 2 {
                input.state.draft.rate.decay();
                return None;
            }
            self.draft(input.state, id, sampler, n)?;
        }
        input.read_text();
        let state = &mut *input.state;
        let draft = &mut state.draft;
        let at = draft.n_read;
        draft.n_read += 1;
        state.entropies.push(draft.entropies[at]);
        if let (Some(own), Some(sampler)) = (&mut draft.sampler, input.sampler) {
            input.chosen = own.is_like(sampler).then_some(draft.chosen[at]);
            own.skip();
        }
        input.cut(&mut self.compute.empty(1));
        let logits = &input.state.draft.logits[at * VOCAB_SIZE..][..VOCAB_SIZE];
        let mut row = self.compute.empty(VOCAB_SIZE);
        row.extend(logits.iter().copied());
        Some(row)
    }

    fn draft_length(&self, input: &SequenceInput<'_>) -> usize {
        if let Some(n) = input.draft {
            return n.min(input.draft_room);
        }
        let state = &*input.state;
        let patches_per_byte = state.n_closed() as f64 / state.ids.len().max(1) as f64;
        let (costs, rate) = (&self.blt().draft_costs, &state.draft.rate);
        costs.length(
            rate,
            patches_per_byte,
            input.runs_entropy(),
            input.draft_room.min(MAX_AUTO_DRAFT),
        )
    }

    /// Drafts at most `n` bytes, `id` the first, and keeps those that count. The text stays as it is. `None`
    /// if not even the first is sure: some number is not finite, or will not be in the draft.
    fn draft(&self, state: &mut State, id: Id, sampler: &Sampler, n: usize) -> Option<()> {
        let before = state.before();
        let mut draft = std::mem::take(&mut state.draft);
        let drafted = self.draft_into(&mut draft, state, id, sampler, n);
        state.take_back(before);
        if drafted.is_none() {
            draft.clear();
            state.forget_beyond(self);
        }
        state.draft = draft;
        drafted
    }

    fn draft_into(
        &self,
        draft: &mut Draft,
        state: &mut State,
        id: Id,
        official: &Sampler,
        most: usize,
    ) -> Option<()> {
        let compute = &*self.compute;
        let dim = self.blt().encoder.layers.config.dim;
        let (first, n_closed) = (state.ids.len(), state.n_closed());
        draft.clear();
        let sampler = draft.sampler.get_or_insert_with(|| official.clone());
        sampler.clone_from(official);

        // The bytes' states, (n, local dim), and one byte after the other by the last closed patch.
        let mut states = compute.empty(most * dim);
        let mut next = id;
        while draft.ids.len() < most && (draft.ids.is_empty() || next != EOS) {
            draft.ids.push(next);
            let mut row = one(state, &draft.ids[draft.ids.len() - 1..]);
            row.read_text();
            let mut x = self.encode(std::slice::from_mut(&mut row));
            states.extend(x.iter().copied());
            let logits = self.decode(std::slice::from_mut(&mut row), &[n_closed], &mut x);
            draft.logits.extend_from_slice(&logits[0]);
            next = sampler.sample(&logits[0], &state.ids);
            draft.chosen.push(next);
        }
        let drafted = draft.ids.len();

        // Where patches start after all, and what the bytes after that are followed by.
        let mut all = one(state, &draft.ids);
        self.entropies(std::slice::from_mut(&mut all));
        let closed = self.cut(std::slice::from_mut(&mut all)).ok()?;
        self.close_patches(std::slice::from_mut(&mut all));
        let exact = closed.partition_point(|&n| n == n_closed);
        if exact < drafted {
            let mut rest = one(state, &draft.ids[exact..]);
            let x = &mut states[exact * dim..];
            let logits = self.decode(std::slice::from_mut(&mut rest), &closed[exact..], x);
            draft.logits.truncate(exact * VOCAB_SIZE);
            draft.logits.extend_from_slice(&logits[0]);
        }

        let rows = draft.logits.chunks_exact(VOCAB_SIZE);
        let finite = rows.take_while(|row| row.iter().all(|l| l.is_finite()));
        let finite = finite.count();
        sampler.clone_from(official);
        let mut n = 0;
        while n < finite {
            if n < exact {
                sampler.skip(); // chosen by the same logits
            } else {
                let logits = &draft.logits[n * VOCAB_SIZE..][..VOCAB_SIZE];
                draft.chosen[n] = sampler.sample(logits, &state.ids[..=first + n]);
            }
            n += 1;
            if draft.ids.get(n) != Some(&draft.chosen[n - 1]) {
                break;
            }
        }
        if n == 0 {
            return None;
        }
        sampler.clone_from(official);
        draft.ids.truncate(n);
        draft.logits.truncate(n * VOCAB_SIZE);
        draft.chosen.truncate(n);
        draft
            .entropies
            .extend_from_slice(&state.entropies[first..first + n]);
        let n_starts = state.starts.partition_point(|&s| s <= first + n);
        state.forget_from(self, first + n, n_starts - 1);
        draft.rate.add(n - 1, n < drafted);
        draft.counts += DraftCounts {
            n_drafts: 1,
            n_drafted: drafted,
            n_accepted: n,
            n_patches: n_starts - 1 - n_closed,
            n_closing: usize::from(exact < drafted),
        };
        Some(())
    }
}

/// Ids at the end of a text, all of whose logits are wanted.
fn one<'a>(state: &'a mut State, ids: &'a [Id]) -> SequenceInput<'a> {
    SequenceInput {
        state,
        ids,
        logits: LogitRows::All,
        trace: None,
        sampler: None,
        draft: None,
        draft_room: 0,
        chosen: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the released 1B model, with four bytes a patch.
    const COSTS: Costs = Costs {
        entropy: 198e6,
        encoder: 26e6,
        global: 2560e6,
        decoder: 268e6,
    };

    fn length(rate: &AcceptanceRate) -> usize {
        COSTS.length(rate, 0.25, true, 16)
    }

    #[test]
    fn drafts_are_as_long_as_they_hold() {
        let mut rate = AcceptanceRate::default();
        assert!(length(&rate) >= 8, "the first one");
        (0..20).for_each(|_| rate.add(15, false));
        assert_eq!(length(&rate), 16);
        (0..20).for_each(|_| rate.add(5, true));
        let some = length(&rate);
        assert!((2..16).contains(&some), "{some}");
        (0..20).for_each(|_| rate.add(0, true));
        assert_eq!(length(&rate), 1);
    }

    #[test]
    fn where_no_draft_held_another_is_made_after_a_while() {
        let mut rate = AcceptanceRate::default();
        (0..20).for_each(|_| rate.add(0, true));
        let attempt = (0..).find(|_| {
            rate.decay();
            length(&rate) > 1
        });
        let bytes = attempt.expect("some time");
        assert!((10..1000).contains(&bytes), "after {bytes} bytes");
    }

    #[test]
    fn nothing_is_gained_where_only_the_decoder_weighs() {
        let costs = Costs {
            entropy: 0.0,
            global: 1e6,
            ..COSTS
        };
        assert_eq!(costs.length(&AcceptanceRate::default(), 0.25, true, 16), 1);
    }
}
