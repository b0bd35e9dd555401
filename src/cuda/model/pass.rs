//! One pass on a GPU, over any number of sequences.
//!
//! A pass has two halves, since the host decides between them which patches end: first the entropy model
//! and the local encoder, then the global transformer and the decoder. Where the device also chooses the
//! next id, the second half continues with the first half of the pass that will read it ([`Ahead`]), so
//! that a byte takes one answer from the device: its logits, the id chosen, and the entropy after that.
//!
//! A half is the numbers that change from pass to pass (`inputs.rs`) and the launches that read them (`launches.rs`).

use std::ops::Range;
use std::sync::PoisonError;

use super::GpuModel;
use super::caches::{Ahead, Caches, Rings};
use super::inputs::{
    BytesOffsets, CloseOffsets, DecodeOffsets, Embeddings, PassInputs, Spans, last_run, rows_at,
    windows,
};
use super::scratch::{Launches, MAX_RECORDED, Scratch, reserve};
use crate::cache::KvType;
use crate::cuda::choice_units;
use crate::error::Result;
use crate::model::State;
use crate::model::backend::Backend;
use crate::model::blt::Blt;
use crate::model::device_caches::DeviceCaches;
use crate::model::sequence::{
    Failure, IdChoice, LogitRows, Outputs, SequenceInput, SequenceOutput, cut,
};
use crate::model::split::split;
use crate::vocab::{Id, VOCAB_SIZE};

/// Takes the first `n` of what is left.
fn first<'a, T>(left: &mut &'a [T], n: usize) -> &'a [T] {
    left.split_off(..n).expect("every input has its share")
}

impl Backend for GpuModel {
    fn forward<'m>(
        &self,
        blt: Blt<'m>,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<Outputs<'m>, Failure> {
        let take = |input: &mut SequenceInput<'_>| input.state.device.take();
        let mut caches: Vec<Option<Box<dyn DeviceCaches>>> = inputs.iter_mut().map(take).collect();
        let result = self.pass(blt, inputs, &mut caches);
        for (input, caches) in inputs.iter_mut().zip(caches) {
            input.state.device = caches;
        }
        result
    }

    fn new_caches(&self, kv: KvType) -> Option<Box<dyn DeviceCaches>> {
        Some(Box::new(Caches::new(kv)))
    }

    fn gpu_name(&self) -> Option<&str> {
        Some(&self.gpu.info().name)
    }

    fn gpu_kernels(&self) -> Option<(usize, usize)> {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        Some((self.gpu.n_kernels(), scratch.n_closing))
    }

    /// The best of five copies on the device.
    fn gpu_bandwidth(&self) -> Result<Option<f64>> {
        const SIZE: usize = 256 << 20;
        // No pass meanwhile: it would be measured too, or record the copies in its graph.
        let _scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (self.gpu.alloc(SIZE)?, self.gpu.alloc(SIZE)?);
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            self.gpu.read_f32s(&to, 1)?; // waits
            let start = std::time::Instant::now();
            self.gpu.copy((&from, 0), (&to, 0), SIZE)?;
            self.gpu.read_f32s(&to, 1)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(Some(2.0 * SIZE as f64 / best))
    }
}

impl GpuModel {
    fn pass<'m>(
        &self,
        blt: Blt<'m>,
        inputs: &mut [SequenceInput<'_>],
        caches: &mut [Option<Box<dyn DeviceCaches>>],
    ) -> Result<Outputs<'m>, Failure> {
        // Before anything is started, copies of what a fork shares too: a graph that another pass records
        // would record them instead. After a panic the content of the scratch is undefined, but every pass
        // writes it first.
        let scratch = self.scratch.lock();
        let scratch = &mut *scratch.unwrap_or_else(PoisonError::into_inner);
        let own = caches.iter_mut().map(|caches| Caches::own(caches, self));
        let mut caches: Vec<&mut Rings> = own.collect::<Result<_>>()?;
        for (input, caches) in inputs.iter().zip(&mut caches) {
            // Rows know where they are, so this comes before any: one byte more is read ahead, and a byte
            // closes at most one patch.
            let n_patches = input.state.n_closed() + input.ids.len();
            let n_bytes = input.state.ids.len() + 1;
            caches.reserve(n_bytes, n_patches, self.k)?;
            caches.n_bytes = caches.n_bytes.max(n_bytes);
        }
        let mut fresh = Vec::new();
        for (i, (input, caches)) in inputs.iter_mut().zip(&mut caches).enumerate() {
            let ahead = caches.ahead.take().filter(|ahead| {
                input.ids == [ahead.id]
                    && input.positions().start == ahead.position
                    && input.trace.is_none()
            });
            match ahead {
                Some(ahead) => input.state.entropies.push(ahead.entropy),
                None => fresh.push(i),
            }
        }
        if !fresh.is_empty() {
            self.first_half(blt, scratch, inputs, &caches, &fresh)?;
        }
        let n_closed = cut(blt.compute, inputs)?;
        for (input, caches) in inputs.iter().zip(&mut caches) {
            caches.n_patches = caches.n_patches.max(input.state.n_closed());
        }
        self.close_on(blt, scratch, inputs, &caches)?;
        Ok(self.decode_on(blt, scratch, inputs, &mut caches, &n_closed)?)
    }

    /// Fills the inputs of the first half at `positions` of some sequences; those with an entropy model
    /// come first, and `n_entropy` says how many rows they have.
    fn bytes_inputs(
        &self,
        blt: Blt<'_>,
        pass_inputs: &mut PassInputs,
        sequences: &[(&State, &Rings, Range<usize>)],
    ) -> Result<BytesOffsets> {
        let n = sequences
            .iter()
            .map(|(.., positions)| positions.len())
            .sum();
        let mut entropy = None;
        if let Some(entropy_model) = &blt.weights.entropy {
            let (mut rows, mut list) = (entropy_model.layers.rows(blt.compute, n), Vec::new());
            let mut ids = Vec::new();
            for (state, caches, positions) in sequences {
                if let (Some(ring), Some(_)) = (&caches.entropy, &state.entropy_cache) {
                    state.add_entropy_rows(&entropy_model.layers, positions.clone(), &mut rows);
                    list.extend(last_run(&rows, ring));
                    ids.extend(windows(&state.ids, positions.clone(), 1));
                }
            }
            entropy =
                (!list.is_empty()).then(|| (pass_inputs.put(ids), pass_inputs.stack(&list, &rows)));
        }

        let layers = &blt.weights.encoder.layers;
        let (mut rows, mut list) = (layers.rows(blt.compute, n), Vec::new());
        let (mut states, mut bytes) = (Vec::new(), Vec::new());
        let (mut ids, mut sums) = (Vec::new(), Vec::new());
        for (state, caches, positions) in sequences {
            state.add_byte_rows(layers, positions.clone(), &mut rows);
            list.extend(last_run(&rows, &caches.encoder));
            states.extend(rows_at(positions.clone(), &caches.states));
            bytes.extend(rows_at(positions.clone(), &caches.bytes));
            match &self.tables {
                Some(tables) => {
                    ids.extend(windows(&state.ids, positions.clone(), tables.window()));
                }
                None => {
                    let encoder = &blt.weights.encoder;
                    let of_run = encoder.embed(blt.compute, &state.ids, positions.start);
                    sums.extend_from_slice(&of_run);
                }
            }
        }
        Ok(BytesOffsets {
            entropy,
            encoder: pass_inputs.stack(&list, &rows),
            embeddings: match self.tables {
                Some(_) => Embeddings::Ids(pass_inputs.put(ids)),
                None => Embeddings::Sums(pass_inputs.put(sums.iter().map(|x| x.to_bits()))),
            },
            states: pass_inputs.rows(&states),
            bytes: pass_inputs.rows(&bytes),
        })
    }

    /// The entropy model and the local encoder on the sequences `fresh`.
    fn first_half(
        &self,
        blt: Blt<'_>,
        scratch: &mut Scratch,
        inputs: &mut [SequenceInput<'_>],
        caches: &[&mut Rings],
        fresh: &[usize],
    ) -> Result<()> {
        let mut pass_inputs = PassInputs::default();
        let sequences: Vec<(&State, &Rings, Range<usize>)> = (inputs.iter().zip(caches))
            .enumerate()
            .filter(|(i, _)| fresh.contains(i))
            .map(|(_, (input, caches))| (&*input.state, &**caches, input.positions()))
            .collect();
        let at = self.bytes_inputs(blt, &mut pass_inputs, &sequences)?;
        let traced = inputs.iter().any(|input| input.trace.is_some());
        let n_entropy = at.entropy.map_or(0, |(_, stack)| stack.n);
        let name = (at.encoder.single && at.encoder.n <= MAX_RECORDED && !traced).then_some((
            Launches::Bytes(at.encoder.n, n_entropy),
            pass_inputs.splits(),
        ));
        let gpu = &self.gpu;
        scratch.memory.upload(0, &pass_inputs)?;
        reserve(&mut scratch.memory.out, n_entropy)?;
        scratch.run(gpu, name, |memory| memory.read_bytes(self, 0, &at, None, 0))?;

        let memory = &scratch.memory;
        let (vocab, dim) = match traced {
            true => (VOCAB_SIZE, self.patch_projection.cols()),
            false => (0, 0),
        };
        let entropies = gpu.read_f32s(&memory.out, n_entropy)?;
        let logits = gpu.read_f32s(&memory.logits, n_entropy * vocab)?;
        let hidden = gpu.read_f32s(&memory.x, at.encoder.n * dim)?;
        let (mut entropies, mut logits, mut hidden) = (&entropies[..], &logits[..], &hidden[..]);
        for &i in fresh {
            let input = &mut inputs[i];
            let positions = input.positions();
            let n_known = match input.state.entropy_cache {
                Some(_) => positions.len(),
                None => 0,
            };
            let state = &mut *input.state;
            (state.entropies).extend_from_slice(first(&mut entropies, n_known));
            state.entropies.resize(positions.end, f32::NAN);
            let logits = first(&mut logits, n_known * vocab);
            let hidden = first(&mut hidden, positions.len() * dim);
            if let Some(trace) = input.trace.as_deref_mut() {
                let encoder = &blt.weights.encoder;
                let embeddings = encoder.embed(blt.compute, &state.ids, positions.start);
                trace.input_embeds.extend_from_slice(&embeddings);
                trace.entropy_logits.extend_from_slice(logits);
                trace.encoder_hidden.extend_from_slice(hidden);
            }
        }
        Ok(())
    }

    /// The patches that the ids close: their vectors, the global transformer, and what the decoder reads.
    fn close_on(
        &self,
        blt: Blt<'_>,
        scratch: &mut Scratch,
        inputs: &mut [SequenceInput<'_>],
        caches: &[&mut Rings],
    ) -> Result<()> {
        let (k, gpu) = (self.k, &self.gpu);
        let n = inputs.iter().map(|input| input.closed().len()).sum();
        let layers = &blt.weights.global.layers;
        let (mut rows, mut list) = (layers.rows(blt.compute, n), Vec::new());
        let (mut pooled, mut seen, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for (input, caches) in inputs.iter().zip(caches) {
            let closed = input.closed();
            if closed.is_empty() {
                continue;
            }
            (input.state).add_patch_rows(layers, closed.clone(), &mut rows);
            list.extend(last_run(&rows, &caches.global));
            outputs.extend(rows_at(closed.start * k..closed.end * k, &caches.patches));
            let starts = &input.state.starts;
            for p in closed {
                pooled.push(caches.states.row(0, starts[p]..starts[p + 1]));
                let first = (p + 1).saturating_sub(self.encoder_window);
                let row = caches.bytes.row(0, starts[first]..starts[p + 1]);
                seen.extend(std::iter::repeat_n(row, k));
            }
        }
        if list.is_empty() {
            return Ok(());
        }
        let mut pass_inputs = PassInputs::default();
        let at = CloseOffsets {
            stack: pass_inputs.stack(&list, &rows),
            pooled: pass_inputs.rows(&pooled),
            seen: pass_inputs.rows(&seen),
            outputs: pass_inputs.rows(&outputs),
            traced: inputs.iter().any(|input| input.trace.is_some()),
        };
        let n = at.stack.n;
        let name = (at.stack.single && n <= MAX_RECORDED && !at.traced)
            .then_some((Launches::Close(n), pass_inputs.splits()));
        scratch.memory.upload(1, &pass_inputs)?;
        let before = gpu.n_kernels();
        scratch.run(gpu, name, |memory| memory.close(self, &at))?;
        scratch.n_closing += gpu.n_kernels() - before;
        if !at.traced {
            return Ok(());
        }
        let (width, dim) = (self.patch_projection.rows(), self.output_projection.cols());
        let memory = &scratch.memory;
        let vectors = gpu.read_f32s(&memory.vectors, n * width)?;
        let outputs = gpu.read_f32s(memory.global_rows(self), n * dim)?;
        let (mut vectors, mut outputs) = (&vectors[..], &outputs[..]);
        for input in inputs {
            let n = input.closed().len();
            let vectors = first(&mut vectors, n * width);
            let outputs = first(&mut outputs, n * dim);
            if let Some(trace) = input.trace.as_deref_mut() {
                trace.encoder_cross.extend_from_slice(vectors);
                trace.global_out.extend_from_slice(outputs);
            }
        }
        Ok(())
    }

    /// The local decoder; then, if all sequences want it, the choice of the next ids, which are read ahead.
    fn decode_on<'m>(
        &self,
        blt: Blt<'m>,
        scratch: &mut Scratch,
        inputs: &mut [SequenceInput<'_>],
        caches: &mut [&mut Rings],
        n_closed: &[usize],
    ) -> Result<Outputs<'m>> {
        let (k, gpu) = (self.k, &self.gpu);
        let layers = &blt.weights.decoder.layers;
        let (mut rows, mut list) = (layers.rows(blt.compute, n_closed.len()), Vec::new());
        let (mut states, mut seen) = (Vec::new(), Vec::new());
        let mut spans = Spans::new();
        let mut n = 0;
        for (input, caches) in inputs.iter().zip(&*caches) {
            let positions = input.positions();
            (input.state).add_byte_rows(layers, positions.clone(), &mut rows);
            list.extend(last_run(&rows, &caches.decoder));
            for (position, n_closed) in positions.clone().zip(&n_closed[n..]) {
                states.push(caches.states.row(position, position..position + 1));
                let patches = n_closed.saturating_sub(self.decoder_window)..*n_closed;
                seen.push(caches.patches.row(0, patches.start * k..patches.end * k));
            }
            let end = n + positions.len();
            let n_wanted = input.n_logit_rows();
            match spans.last_mut() {
                _ if n_wanted == 0 => {}
                Some((first, count)) if *first + *count == end - n_wanted => *count += n_wanted,
                _ => spans.push((end - n_wanted, n_wanted)),
            }
            n = end;
        }
        let mut pass_inputs = PassInputs::default();
        let mut at = DecodeOffsets {
            stack: pass_inputs.stack(&list, &rows),
            states: pass_inputs.rows(&states),
            seen: pass_inputs.rows(&seen),
            spans,
            ahead: None,
        };
        if let Some(choices) = self.choices(inputs) {
            let choices = pass_inputs.put(choices.iter().flat_map(choice_units));
            let sequences: Vec<(&State, &Rings, Range<usize>)> = (inputs.iter().zip(&*caches))
                .filter(|(input, _)| input.logits != LogitRows::None)
                .map(|(input, caches)| {
                    let end = input.state.ids.len();
                    (&*input.state, &**caches, end..end + 1)
                })
                .collect();
            let bytes = self.bytes_inputs(blt, &mut pass_inputs, &sequences)?;
            at.ahead = Some((choices, bytes));
        }
        let n_wanted: usize = at.spans.iter().map(|span| span.1).sum();
        let n_ahead = at.ahead.as_ref().map_or(0, |(_, bytes)| bytes.encoder.n);
        let known = (at.ahead.as_ref()).is_some_and(|(_, bytes)| bytes.entropy.is_some());
        let n_out = n_wanted * VOCAB_SIZE + 2 * n_ahead;
        let recorded = at.stack.single && n <= MAX_RECORDED && n_wanted == n;
        let name = Launches::Decode(n, n_ahead > 0, known);
        let name = recorded.then_some((name, pass_inputs.splits()));
        scratch.memory.upload(2, &pass_inputs)?;
        reserve(&mut scratch.memory.out, n_out)?;
        scratch.run(gpu, name, |memory| memory.decode(self, &at))?;
        let out = gpu.read_u32s(&scratch.memory.out, n_out)?;

        let (logits, ahead) = out.split_at(n_wanted * VOCAB_SIZE);
        let (chosen, entropies) = ahead.split_at(n_ahead);
        let n_logits = inputs.iter().map(|input| input.n_logit_rows() * VOCAB_SIZE);
        let outputs = split(logits, n_logits).map(|bits| {
            let mut logits = blt.compute.empty(bits.len());
            logits.extend(bits.iter().map(|&bits| f32::from_bits(bits)));
            SequenceOutput {
                logits,
                chosen: None,
            }
        });
        let mut outputs: Outputs<'_> = outputs.collect();
        let choosing = (inputs.iter().zip(caches).zip(&mut outputs))
            .filter(|((input, _), _)| input.logits != LogitRows::None);
        for (((input, caches), output), (&id, &entropy)) in
            choosing.zip(chosen.iter().zip(entropies))
        {
            let id = Id::try_from(id).expect("ids are below the size of the vocabulary");
            output.chosen = Some(id);
            caches.ahead = Some(Ahead {
                position: input.state.ids.len(),
                id,
                entropy: match known {
                    true => f32::from_bits(entropy),
                    false => f32::NAN,
                },
            });
        }
        Ok(outputs)
    }

    /// How the device chooses the next ids: if it has the tables to read them, and every sequence that wants
    /// logits wants an id, and all or none of these run the entropy model.
    fn choices(&self, inputs: &[SequenceInput<'_>]) -> Option<Vec<IdChoice>> {
        self.tables.as_ref()?;
        let wanting = inputs
            .iter()
            .filter(|input| input.logits != LogitRows::None);
        let wanting: Vec<&SequenceInput<'_>> = wanting.collect();
        let known = |input: &&SequenceInput<'_>| input.state.entropy_cache.is_some();
        let alike = wanting.iter().all(known) || !wanting.iter().any(known);
        wanting.first().filter(|_| alike)?;
        (wanting.iter())
            .map(|input| match input.logits {
                LogitRows::Last => input.choice,
                _ => None,
            })
            .collect()
    }
}
