//! A hook on the forward pass: intermediate tensors for tests and tools.

use smallvec::SmallVec;

use super::split::split;

/// Intermediate tensors of the bytes and patches read, for tests and tools.
#[derive(Debug, Default, Clone)]
pub struct Trace {
    /// Byte embeddings with their n-grams, (n, local dim).
    pub input_embeds: Vec<f32>,
    /// Byte states after the local encoder, (n, local dim).
    pub encoder_hidden: Vec<f32>,
    /// Patch vectors of the closed patches, (patches * k, local dim).
    pub encoder_cross: Vec<f32>,
    /// Global outputs of the closed patches, (patches, global dim).
    pub global_out: Vec<f32>,
    /// Logits of the entropy model, (n, vocab).
    pub entropy_logits: Vec<f32>,
    /// Bolmo models: logarithms of the probabilities that bytes end patches, for each byte whose next one was read.
    pub boundary_log_probs: Vec<f32>,
}

/// A tensor of a [`Trace`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Tensor {
    InputEmbeds,
    EncoderHidden,
    EncoderCross,
    GlobalOut,
    EntropyLogits,
    BoundaryLogProbs,
}

/// The hook: `data` holds the rows of several sequences, one after the other. Adds the rows of each to the tensor in
/// its trace, if it has one. `sequences` gives the traces and numbers of rows.
pub(super) fn record<'t>(
    sequences: impl Iterator<Item = (Option<&'t mut Trace>, usize)>,
    tensor: Tensor,
    data: &[f32],
) {
    let (traces, n_rows): (SmallVec<[_; 1]>, SmallVec<[usize; 1]>) = sequences.unzip();
    if data.is_empty() || traces.iter().all(Option::is_none) {
        return;
    }
    let width = data.len() / n_rows.iter().sum::<usize>();
    let pieces = split(data, n_rows.iter().map(|n| n * width));
    for (trace, piece) in traces.into_iter().zip(pieces) {
        let Some(trace) = trace else { continue };
        let tensor = match tensor {
            Tensor::InputEmbeds => &mut trace.input_embeds,
            Tensor::EncoderHidden => &mut trace.encoder_hidden,
            Tensor::EncoderCross => &mut trace.encoder_cross,
            Tensor::GlobalOut => &mut trace.global_out,
            Tensor::EntropyLogits => &mut trace.entropy_logits,
            Tensor::BoundaryLogProbs => &mut trace.boundary_log_probs,
        };
        tensor.extend_from_slice(piece);
    }
}
