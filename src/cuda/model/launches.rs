//! The launches of a pass, in order.

use super::inputs::{BytesOffsets, CloseOffsets, DecodeOffsets, Embeddings, StackOffsets};
use super::scratch::{Memory, Work, reserve};
use super::{Cross, GpuModel, Layers};
use crate::cuda::{self, Attention, Linear, MATVEC_ROWS, Mode, Norm, Ops, Slice};
use crate::error::Result;
use crate::vocab::VOCAB_SIZE;

/// The norm of x (n, dim) into y from row `to` on.
fn norm_rows(
    norm: &Norm,
    ops: &Ops,
    n: usize,
    x: Slice<'_>,
    (y, to): (&mut cuda::Buffer, usize),
) -> Result<()> {
    let weight = (&norm.weight, norm.dim);
    reserve(y, (to + n) * norm.dim)?;
    ops.rms_norm(n, x, weight, norm.eps, (y, to * norm.dim))
}

/// The product with the norm of n rows of x into y, which grows to hold it; `a` is for the norm of many rows.
fn normed(
    ops: &Ops,
    (w, norm): (&Linear, &Norm),
    (n, x): (usize, &cuda::Buffer),
    a: &mut cuda::Buffer,
    y: &mut cuda::Buffer,
) -> Result<()> {
    if n > MATVEC_ROWS {
        norm_rows(norm, ops, n, (x, 0), (&mut *a, 0))?;
        return linear(w, n, a, y);
    }
    reserve(y, n * w.rows())?;
    w.apply_normed(n, norm, (x, 0), (y, 0))
}

/// The product of n rows of x into y, which grows to hold it.
fn linear(w: &Linear, n: usize, x: &cuda::Buffer, y: &mut cuda::Buffer) -> Result<()> {
    reserve(y, n * w.rows())?;
    w.apply(n, (x, 0), (y, 0), Mode::Set)
}

impl Work {
    /// One layer on x (n, dim) in place.
    fn layer(
        &mut self,
        ops: &Ops,
        (layers, number): (&Layers, usize),
        (stage, at): (usize, &StackOffsets),
        x: &cuda::Buffer,
    ) -> Result<()> {
        let (layer, heads, n) = (&layers.layers[number], layers.heads, at.n);
        let wqkv = (&layer.wqkv, &layer.attention_norm);
        normed(ops, wqkv, (n, x), &mut self.a, &mut self.q)?;
        let (splits, inputs) = (self.splits[stage], &self.inputs[stage]);
        let (rows, angles) = ((inputs, at.rows), (inputs, at.angles));
        if !at.single {
            ops.rope_append(n, heads, &self.q, rows, angles, 2 * number)?;
        }
        reserve(&mut self.o, n * layer.wo.cols())?;
        let with = Attention {
            heads,
            rows,
            splits,
            plane: 2 * number,
            q_stride: layer.wqkv.rows(),
            angles: at.single.then_some(angles),
        };
        ops.attention(n, &self.q, with, &self.o)?;
        layer.wo.apply(n, (&self.o, 0), (x, 0), Mode::Add)?;

        reserve(&mut self.gate, n * layer.w2.cols())?;
        if n <= MATVEC_ROWS && layer.gate_up.is_gated() {
            (layer.gate_up).apply_gated(n, &layer.ffn_norm, (x, 0), (&self.gate, 0))?;
        } else {
            let gate_up = (&layer.gate_up, &layer.ffn_norm);
            normed(ops, gate_up, (n, x), &mut self.a, &mut self.gate_up)?;
            ops.swiglu(n, layer.w2.cols(), &self.gate_up, &self.gate)?;
        }
        layer.w2.apply(n, (&self.gate, 0), (x, 0), Mode::Add)
    }

    fn stack(
        &mut self,
        ops: &Ops,
        layers: &Layers,
        at: (usize, &StackOffsets),
        x: &cuda::Buffer,
    ) -> Result<()> {
        (0..layers.layers.len()).try_for_each(|number| self.layer(ops, (layers, number), at, x))
    }

    /// The cross-attention of n rows of x, in place, over planes `plane` and the next of what `rows` see.
    fn cross(
        &mut self,
        ops: &Ops,
        c: &Cross,
        (stage, rows, n): (usize, usize, usize),
        plane: usize,
        x: &cuda::Buffer,
    ) -> Result<()> {
        normed(ops, (&c.wq, &c.norm_q), (n, x), &mut self.a, &mut self.q)?;
        reserve(&mut self.o, n * c.wo.cols())?;
        let with = Attention {
            heads: c.heads,
            rows: (&self.inputs[stage], rows),
            splits: self.splits[stage],
            plane,
            q_stride: c.wq.rows(),
            angles: None,
        };
        ops.attention(n, &self.q, with, &self.o)?;
        c.wo.apply(n, (&self.o, 0), (x, 0), Mode::DoubleAdd)
    }

    /// Keys and values of n rows of x, entered at `rows` in planes `plane` and the next.
    fn keys_values(
        &mut self,
        ops: &Ops,
        c: &Cross,
        (stage, rows, n): (usize, usize, usize),
        plane: usize,
        x: &cuda::Buffer,
    ) -> Result<()> {
        normed(ops, (&c.wkv, &c.norm_kv), (n, x), &mut self.a, &mut self.kv)?;
        let rows = (&self.inputs[stage], rows);
        ops.scatter(n, &self.kv, rows, (plane, 2), c.wkv.rows() / 2)
    }
}

impl Memory {
    /// The first half of a pass. With `chosen` the last ids are read from there in `out`; entropies go to
    /// `entropies` in `out`.
    pub fn read_bytes(
        &mut self,
        model: &GpuModel,
        stage: usize,
        at: &BytesOffsets,
        chosen: Option<usize>,
        entropies: usize,
    ) -> Result<()> {
        let ops = &model.ops;
        let Memory {
            work,
            bytes,
            logits,
            x,
            out,
            ..
        } = self;
        if let (Some(entropy), Some((ids, stack))) = (&model.entropy, &at.entropy) {
            let (n, head) = (stack.n, &entropy.head);
            reserve(bytes, n * head.norm.dim)?;
            let ids = (&work.inputs[stage], *ids);
            ops.embed(n, &entropy.tables, ids, chosen.map(|c| (&*out, c)), bytes)?;
            work.stack(ops, &entropy.layers, (stage, stack), bytes)?;
            let output = (&head.output, &head.norm);
            normed(ops, output, (n, bytes), &mut work.a, logits)?;
            ops.entropy(n, VOCAB_SIZE, (logits, 0), (out, entropies))?;
        }

        let (n, dim) = (at.encoder.n, model.patch_projection.cols());
        reserve(x, n * dim)?;
        match (at.embeddings, &model.tables) {
            (Embeddings::Ids(ids), Some(tables)) => {
                let ids = (&work.inputs[stage], ids);
                ops.embed(n, tables, ids, chosen.map(|c| (&*out, c)), x)?;
            }
            (Embeddings::Sums(from), _) => {
                let from = (&work.inputs[stage], from * 4);
                model.gpu.copy(from, (x, 0), n * dim * 4)?;
            }
            (Embeddings::Ids(_), None) => unreachable!("ids are for tables"),
        }
        for number in 0..model.encoder.layers.len() {
            work.layer(ops, (&model.encoder, number), (stage, &at.encoder), x)?;
            let cross = model.encoder_cross.iter().enumerate();
            for (i, (_, cross)) in cross.filter(|(_, c)| c.0 == number) {
                let states = (&work.inputs[stage], at.states);
                ops.scatter(n, x, states, (i, 1), dim)?;
                work.keys_values(ops, cross, (stage, at.bytes, n), 2 * i, x)?;
            }
        }
        Ok(())
    }

    /// Vectors of closed patches, the global transformer, and what the decoder reads of its outputs.
    pub fn close(&mut self, model: &GpuModel, at: &CloseOffsets) -> Result<()> {
        const STAGE: usize = 1;
        let (ops, m, k) = (&model.ops, at.stack.n, model.k);
        let dim = model.patch_projection.cols();
        let Memory {
            work,
            pooled,
            patches,
            global,
            vectors,
            ..
        } = self;
        reserve(pooled, m * dim)?;
        let bytes = (&work.inputs[STAGE], at.pooled);
        ops.max_pool(m, bytes, model.pooled, dim, pooled)?;
        linear(&model.patch_projection, m, pooled, patches)?;
        for (i, (_, cross)) in model.encoder_cross.iter().enumerate() {
            work.cross(ops, cross, (STAGE, at.seen, m * k), 2 * i, patches)?;
        }
        if at.traced {
            reserve(vectors, m * k * dim)?;
            (model.gpu).copy((patches, 0), (vectors, 0), m * k * dim * 4)?;
        }

        let x = match &model.input_projection {
            Some(projection) => {
                linear(projection, m, patches, global)?;
                &*global
            }
            None => &*patches,
        };
        work.stack(ops, &model.global, (STAGE, &at.stack), x)?;

        linear(&model.output_projection, m, x, pooled)?; // (m * k, dim)
        for (i, cross) in model.decoder_cross.iter().enumerate() {
            work.keys_values(ops, cross, (STAGE, at.outputs, m * k), 2 * i, pooled)?;
        }
        Ok(())
    }

    /// The outputs of the global transformer, after [`Memory::close`].
    pub fn global_rows(&self, model: &GpuModel) -> &cuda::Buffer {
        match model.input_projection {
            Some(_) => &self.global,
            None => &self.patches,
        }
    }

    /// The decoder, the wanted logits, and the next ids with the first half of their pass.
    pub fn decode(&mut self, model: &GpuModel, at: &DecodeOffsets) -> Result<()> {
        const STAGE: usize = 2;
        let (ops, n) = (&model.ops, at.stack.n);
        let dim = model.patch_projection.cols();
        let Memory { work, x, out, .. } = self;
        reserve(x, n * dim)?;
        let states = (&work.inputs[STAGE], at.states);
        ops.gather(n, x, states, model.encoder_cross.len() - 1, dim)?;
        for number in 0..model.decoder.layers.len() {
            if let Some(cross) = model.decoder_cross.get(number) {
                work.cross(ops, cross, (STAGE, at.seen, n), 2 * number, x)?;
            }
            work.layer(ops, (&model.decoder, number), (STAGE, &at.stack), x)?;
        }
        let wanted: usize = at.spans.iter().map(|span| span.1).sum();
        reserve(&mut work.a, wanted * dim)?;
        let mut n_wanted = 0;
        for &(first, count) in &at.spans {
            let rows = (&*x, first * dim);
            norm_rows(&model.head.norm, ops, count, rows, (&mut work.a, n_wanted))?;
            n_wanted += count;
        }
        if n_wanted == 0 {
            return Ok(());
        }
        (model.head.output).apply(n_wanted, (&work.a, 0), (out, 0), Mode::Set)?;
        let Some((choices, bytes)) = &at.ahead else {
            return Ok(());
        };
        let chosen = n_wanted * VOCAB_SIZE;
        let choices = (&work.inputs[STAGE], *choices);
        ops.sample(n_wanted, VOCAB_SIZE, (out, 0), choices, (out, chosen))?;
        self.read_bytes(model, STAGE, bytes, Some(chosen), chosen + n_wanted)
    }
}
