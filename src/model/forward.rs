//! The whole path of a byte, top to bottom: the spec's section 9.4 for a run of bytes at once.
//!
//! Each row's arithmetic is the same whatever rows are computed with it, so reading a text at once
//! or byte by byte gives the same bits (tests/invariance.rs). `pass.rs` surrounds this.

use super::blt::Blt;
use super::encoder::Closed;
use super::sequence::{
    Failure, Outputs, PerSequence, SequenceInput, byte_rows, cut, n_rows, outputs, record,
};
use super::trace::Tensor;
use crate::ops::{self, ScratchVec};
use crate::vocab::VOCAB_SIZE;

impl<'m> Blt<'m> {
    /// Ids in, logits of the next ids out. Every matrix is multiplied with the rows of all sequences
    /// at once; n counts these rows.
    pub(super) fn forward(self, inputs: &mut [SequenceInput<'_>]) -> Result<Outputs<'m>, Failure> {
        self.entropies(inputs);
        let n_closed = cut(self.compute, inputs)?; // (n)
        let x = self.encode(inputs); // (n, local dim)
        self.close_patches(inputs);
        Ok(self.decode(inputs, &n_closed, x))
    }

    /// The entropy model: how uncertain the byte after each byte is.
    pub(super) fn entropies(self, inputs: &mut [SequenceInput<'_>]) {
        let n = inputs.iter().map(SequenceInput::n_entropy_rows).sum();
        let Some(entropy) = self.weights.entropy.as_ref().filter(|_| n > 0) else {
            return;
        };
        let (compute, layers) = (self.compute, &entropy.layers);
        let (mut rows, mut x) = (layers.rows(compute, n), compute.empty(n * entropy.dim()));
        for input in inputs.iter().filter(|input| input.runs_entropy()) {
            (input.state).add_entropy_rows(layers, input.positions(), &mut rows);
            x.extend_from_slice(&entropy.embed(compute, input.ids));
        }
        let caches = inputs.iter_mut().map(|i| &mut i.state.entropy_cache);
        let mut caches: PerSequence<_> = caches.flatten().collect();
        let logits = entropy.forward(compute, x, &rows, &mut caches); // (n, vocab)
        drop(caches);
        let running = inputs.iter_mut().filter(|input| input.runs_entropy());
        for (input, logits) in running.zip(rows.by_run(&logits)) {
            let entropies = logits.chunks_exact(VOCAB_SIZE);
            (input.state.entropies).extend(entropies.map(|row| ops::entropy(compute, row)));
        }
        record(inputs, Tensor::EntropyLogits, &logits);
    }

    /// The local encoder: byte states (n, local dim) from embeddings of bytes and their n-grams.
    pub(super) fn encode(self, inputs: &mut [SequenceInput<'_>]) -> ScratchVec<'m, f32> {
        let (compute, encoder) = (self.compute, &self.weights.encoder);
        let rows = byte_rows(&encoder.layers, compute, inputs);
        let mut x = compute.empty(n_rows(inputs) * encoder.layers.config.dim);
        for input in inputs.iter() {
            let first = input.positions().start;
            x.extend_from_slice(&encoder.embed(compute, &input.state.ids, first));
        }
        record(inputs, Tensor::InputEmbeds, &x);
        let memory = inputs.iter_mut().map(|input| input.state.encoder_memory());
        let (mut caches, mut states): (PerSequence<_>, PerSequence<_>) = memory.unzip();
        encoder.forward(compute, &rows, &mut caches, &mut states, &mut x);
        drop((caches, states));
        record(inputs, Tensor::EncoderHidden, &x);
        x
    }

    /// The m patches that these bytes close: pooled into vectors, read by the global transformer, and
    /// turned into what the decoder reads.
    pub(super) fn close_patches(self, inputs: &mut [SequenceInput<'_>]) {
        let (compute, w) = (self.compute, self.weights);
        let m = inputs.iter().map(SequenceInput::n_closing).sum();
        if m == 0 {
            return;
        }
        let closing = inputs.iter().filter(|input| input.n_closing() > 0);
        let closed: PerSequence<Closed<'_>> = closing.map(SequenceInput::closed_bytes).collect();
        let vectors = w.encoder.patches(compute, &closed); // (m, k * local dim)
        drop(closed);
        record(inputs, Tensor::EncoderCross, &vectors);

        let mut rows = w.global.layers.rows(compute, m);
        for input in inputs.iter().filter(|input| input.n_closing() > 0) {
            (input.state).add_patch_rows(&w.global.layers, input.closed(), &mut rows);
        }
        let closing = inputs.iter_mut().filter(|input| input.n_closing() > 0);
        let mut caches: PerSequence<_> = closing.map(|i| &mut i.state.global_cache).collect();
        let outputs = w.global.forward(compute, &rows, &mut caches, vectors); // (m, global dim)
        drop(caches);
        record(inputs, Tensor::GlobalOut, &outputs);

        let mut stores = PerSequence::new();
        let closing = inputs.iter_mut().filter(|input| input.n_closing() > 0);
        for (input, outputs) in closing.zip(rows.by_run(&outputs)) {
            input.state.global_out.push(outputs);
            stores.push((input.n_closing(), &mut input.state.patch_kv[..]));
        }
        w.decoder.add_patches(compute, &outputs, &mut stores);
    }

    /// The local decoder on byte states x (n, local dim): byte i reads the last of `n_closed[i]` patches.
    pub(super) fn decode(
        self,
        inputs: &mut [SequenceInput<'_>],
        n_closed: &[usize],
        mut x: ScratchVec<'_, f32>,
    ) -> Outputs<'m> {
        let (compute, decoder) = (self.compute, &self.weights.decoder);
        let rows = byte_rows(&decoder.layers, compute, inputs);
        let memory = inputs.iter_mut().map(|input| input.state.decoder_memory());
        let (mut caches, patch_kv): (PerSequence<_>, PerSequence<_>) = memory.unzip();
        decoder.forward(compute, &rows, n_closed, &patch_kv, &mut caches, &mut x);
        drop((caches, patch_kv));
        let mut last = compute.empty(x.len()); // (l, local dim), the l rows whose logits are computed
        for (input, x) in inputs.iter().zip(rows.by_run(&x)) {
            let n_values = input.n_logit_rows() * decoder.layers.config.dim;
            last.extend_from_slice(&x[x.len() - n_values..]);
        }
        let logits = decoder.logits(compute, &last); // (l, vocab)
        outputs(compute, inputs, &logits)
    }
}
