//! The passes that sessions run: the whole model over new bytes, and the two of self-speculation.
//!
//! The passes over sequences of a family are in `forward.rs` and `draft.rs`, and in `bolmo/forward.rs`.

use super::draft::Verified;
use super::sequence::{Failure, Outputs, PerSequence, SequenceInput};
use super::{Mark, Model, SequenceState, State};

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
        let marks: PerSequence<Mark> = inputs.iter().map(|input| input.state.mark()).collect();
        let outputs = match self.bolmo() {
            None => {
                let mut inputs = blt(inputs);
                inputs.iter_mut().for_each(SequenceInput::read_text);
                self.backend().forward(self.blt(), &mut inputs)
            }
            Some(bolmo) => {
                let inputs = inputs.iter_mut().map(|i| i.with(SequenceState::bolmo_mut));
                bolmo.forward(&self.compute, &mut inputs.collect::<PerSequence<_>>())
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

    /// Guesses the logits after ids that are not certain: [`Blt::draft`](super::blt::Blt::draft). [`Model::verify`] or
    /// [`SequenceState::rollback`] must follow.
    pub(crate) fn draft(&self, inputs: &mut [SequenceInput<'_, SequenceState>]) -> Outputs<'_> {
        self.blt().draft(&mut blt(inputs))
    }

    /// Makes the guesses of [`Model::draft`] exact: [`Blt::verify`](super::blt::Blt::verify).
    ///
    /// # Errors
    /// [`Failure::Sequence`] if an entropy is NaN or infinite.
    pub(crate) fn verify(
        &self,
        inputs: &mut [SequenceInput<'_, SequenceState>],
    ) -> Result<PerSequence<Verified<'_>>, Failure> {
        self.blt().verify(&mut blt(inputs))
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
) -> PerSequence<SequenceInput<'b, State>> {
    (inputs.iter_mut())
        .map(|input| input.with(SequenceState::blt_mut))
        .collect()
}
