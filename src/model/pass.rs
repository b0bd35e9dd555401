//! The passes that sessions ask for: the whole model over new bytes, and the two of self-speculation.
//!
//! Self-speculation (spec section 13) needs a pass that guesses several bytes and one that checks them.
//! Who guesses, how many, and which count is decided above the model: [`crate::session`].

use smallvec::SmallVec;

use super::sequence::{Failure, Outputs, SequenceInput, n_rows};
use super::split::split;
use super::{Mark, Model, SequenceState, State};
use crate::ops::ScratchVec;

/// What [`Model::verify`] found about the ids of one sequence.
#[derive(Debug)]
pub(crate) struct Verified<'c> {
    /// The first `n_kept` ids closed no patch: the logits of the draft are exact.
    pub n_kept: usize,
    /// Logits after the others, (n - n_kept, vocab).
    pub logits: Option<ScratchVec<'c, f32>>,
}

impl Model {
    /// Reads the ids of all sequences. Each sequence's results are the same bits as if it were alone.
    /// On an error all states stay as they were.
    ///
    /// # Errors
    /// [`Failure::Sequence`] if an entropy or a logit is NaN or infinite; [`Failure::Device`] if the
    /// GPU fails.
    pub(crate) fn run(
        &self,
        inputs: &mut [SequenceInput<'_, SequenceState>],
    ) -> Result<Outputs<'_>, Failure> {
        let marks: SmallVec<[Mark; 1]> = inputs.iter().map(|input| input.state.mark()).collect();
        let outputs = match self.bolmo() {
            None => {
                let mut inputs = blt(inputs);
                inputs.iter_mut().for_each(SequenceInput::read_text);
                self.backend().forward(self, &mut inputs)
            }
            Some(bolmo) => {
                let inputs = inputs.iter_mut().map(|i| i.with(SequenceState::bolmo_mut));
                bolmo.forward(&self.compute, &mut inputs.collect::<SmallVec<[_; 1]>>())
            }
        };
        let outputs = outputs.and_then(|outputs| self.check_logits(inputs, outputs));
        match &outputs {
            Ok(_) => (inputs.iter_mut()).for_each(|input| input.state.evict(self)),
            Err(_) => (inputs.iter_mut().zip(marks))
                .for_each(|(input, mark)| input.state.rollback(self, mark)),
        }
        outputs
    }

    /// Guesses the logits after ids that are not certain: the local encoder and decoder read them, with
    /// the patches that are closed already. [`Model::verify`] or [`SequenceState::rollback`] must follow.
    pub(crate) fn draft(&self, inputs: &mut [SequenceInput<'_, SequenceState>]) -> Outputs<'_> {
        let inputs = &mut *blt(inputs);
        inputs.iter_mut().for_each(SequenceInput::read_text);
        let x = self.encode(inputs); // (n, local dim)
        let mut n_closed = self.compute.empty(1);
        for input in inputs.iter() {
            n_closed.extend(input.ids.iter().map(|_| input.state.n_closed()));
        }
        self.decode(inputs, &n_closed, x)
    }

    /// Makes the guesses of [`Model::draft`] exact: the entropy model reads all ids drafted since the
    /// last whole pass, the global transformer the patches that they close, and the decoder, again,
    /// the bytes after the first boundary.
    ///
    /// # Errors
    /// [`Failure::Sequence`] if an entropy is NaN or infinite.
    pub(crate) fn verify(
        &self,
        inputs: &mut [SequenceInput<'_, SequenceState>],
    ) -> Result<SmallVec<[Verified<'_>; 1]>, Failure> {
        let (compute, inputs) = (&*self.compute, &mut *blt(inputs));
        let n_before: SmallVec<[usize; 1]> = inputs.iter().map(|i| i.state.n_closed()).collect();
        self.entropies(inputs);
        let n_closed = self.cut(inputs)?; // (n)
        self.close_patches(inputs);

        let dim = self.blt().encoder.layers.config.dim;
        let (mut n_closed_after, mut x) = (compute.empty(1), compute.empty(dim));
        let mut after = SmallVec::<[SequenceInput<'_>; 1]>::new();
        let mut verified = SmallVec::<[Verified<'_>; 1]>::new();
        let mut indices = SmallVec::<[usize; 1]>::new(); // of `after` in `verified`
        let pieces = split(&n_closed, inputs.iter().map(|input| input.ids.len()));
        let pieces: SmallVec<[&[usize]; 1]> = pieces.collect();
        for ((input, n_closed), n_before) in inputs.iter_mut().zip(pieces).zip(n_before) {
            let n_kept = n_closed.partition_point(|&n| n == n_before);
            if n_kept < n_closed.len() {
                indices.push(verified.len());
                n_closed_after.extend_from_slice(&n_closed[n_kept..]);
                let input = SequenceInput::new(input.state, &input.ids[n_kept..]);
                let states = self.blt().encoder.output(&input.state.byte_states);
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

    /// Where patches start, by entropies that are all numbers: how many patches are closed once each
    /// byte is read, (n).
    pub(crate) fn cut(
        &self,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<ScratchVec<'_, usize>, Failure> {
        let mut n_closed = self.compute.empty(n_rows(inputs));
        for (i, input) in inputs.iter_mut().enumerate() {
            let positions = input.positions();
            let state = &mut *input.state;
            if state.entropy_cache.is_none() {
                state.entropies.resize(positions.end, f32::NAN);
            } else if let Some(bad) = (positions.clone()).find(|&p| !state.entropies[p].is_finite())
            {
                return Err(Failure::not_finite(i, "entropy", bad));
            }
            for (p, &id) in positions.zip(input.ids) {
                if state.patcher.push(id, state.entropies[p]) {
                    state.starts.push(p + 1);
                }
                n_closed.extend([state.n_closed()]);
            }
        }
        Ok(n_closed)
    }

    /// The outputs, if all their logits are numbers.
    fn check_logits<'c>(
        &self,
        inputs: &[SequenceInput<'_, SequenceState>],
        outputs: Outputs<'c>,
    ) -> Result<Outputs<'c>, Failure> {
        let n_columns = self.config().n_logits();
        for (i, (input, output)) in inputs.iter().zip(&outputs).enumerate() {
            if let Some(bad) = output.logits.iter().position(|l| !l.is_finite()) {
                let first = input.state.n_decoded() - output.logits.len() / n_columns;
                return Err(Failure::not_finite(i, "logits", first + bad / n_columns));
            }
        }
        Ok(outputs)
    }
}

/// The inputs of a BLT.
fn blt<'b>(
    inputs: &'b mut [SequenceInput<'_, SequenceState>],
) -> SmallVec<[SequenceInput<'b, State>; 1]> {
    (inputs.iter_mut())
        .map(|input| input.with(SequenceState::blt_mut))
        .collect()
}
