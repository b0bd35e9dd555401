//! The two passes of self-speculation: one that guesses several bytes, and one that makes the guesses exact.
//!
//! Spec section 13. Who guesses, how many, and which count is decided above the model: [`crate::session`].

use super::blt::Blt;
use super::sequence::{Failure, Outputs, PerSequence, SequenceInput, cut};
use super::split::split;
use crate::ops::ScratchVec;

/// What [`Blt::verify`] found about the ids of one sequence.
#[derive(Debug)]
pub(crate) struct Verified<'c> {
    /// The first `n_kept` ids closed no patch: the logits of the draft are exact.
    pub n_kept: usize,
    /// Logits after the others, (n - n_kept, vocab).
    pub logits: Option<ScratchVec<'c, f32>>,
}

impl<'m> Blt<'m> {
    /// Guesses the logits after ids that are not certain: the local encoder and decoder read them, with
    /// the patches that are closed already. [`Blt::verify`] or [`State::rollback`](super::State::rollback) must follow.
    pub(super) fn draft(self, inputs: &mut [SequenceInput<'_>]) -> Outputs<'m> {
        inputs.iter_mut().for_each(SequenceInput::read_text);
        let x = self.encode(inputs); // (n, local dim)
        let mut n_closed = self.compute.empty(1);
        for input in inputs.iter() {
            n_closed.extend(input.ids.iter().map(|_| input.state.n_closed()));
        }
        self.decode(inputs, &n_closed, x)
    }

    /// Makes the guesses of [`Blt::draft`] exact: the entropy model reads all ids drafted since the
    /// last whole pass, the global transformer the patches that they close, and the decoder, again,
    /// the bytes after the first boundary.
    ///
    /// # Errors
    /// [`Failure::Sequence`] if an entropy is NaN or infinite.
    pub(super) fn verify(
        self,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<PerSequence<Verified<'m>>, Failure> {
        let (compute, weights) = (self.compute, self.weights);
        let n_before: PerSequence<usize> = inputs.iter().map(|i| i.state.n_closed()).collect();
        self.entropies(inputs);
        let n_closed = cut(compute, inputs)?; // (n)
        self.close_patches(inputs);

        let dim = weights.encoder.layers.config.dim;
        let (mut n_closed_after, mut x) = (compute.empty(1), compute.empty(dim));
        let mut after = PerSequence::<SequenceInput<'_>>::new();
        let mut verified = PerSequence::<Verified<'m>>::new();
        let mut indices = PerSequence::<usize>::new(); // of `after` in `verified`
        let pieces = split(&n_closed, inputs.iter().map(|input| input.ids.len()));
        let pieces: PerSequence<&[usize]> = pieces.collect();
        for ((input, n_closed), n_before) in inputs.iter_mut().zip(pieces).zip(n_before) {
            let n_kept = n_closed.partition_point(|&n| n == n_before);
            if n_kept < n_closed.len() {
                indices.push(verified.len());
                n_closed_after.extend_from_slice(&n_closed[n_kept..]);
                let input = SequenceInput::new(input.state, &input.ids[n_kept..]);
                let states = weights.encoder.output(&input.state.byte_states);
                x.extend_from_slice(states.rows(input.positions()));
                after.push(input);
            }
            verified.push(Verified {
                n_kept,
                logits: None,
            });
        }
        if after.is_empty() {
            return Ok(verified);
        }
        let outputs = self.decode(&mut after, &n_closed_after, x);
        for (i, output) in indices.into_iter().zip(outputs) {
            verified[i].logits = Some(output.logits);
        }
        Ok(verified)
    }
}
