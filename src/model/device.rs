//! The model on a GPU: its matrices, a sequence's caches, and the four steps of a pass.
//!
//! What the model is, which rows see what, where patches begin and how a session goes back is decided
//! by the code that the CPU runs (`forward.rs`, `state.rs`); here is only the arithmetic between.
//! Embedding tables stay in host memory: a byte reads a few rows of them.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Weights;
use super::block::{Rows as Where, Stack};
use super::cross::CrossAttention;
use super::forward::Wanted;
use super::state::SLACK;
use crate::cuda::{Attention, Buffer, Gpu, Linear, MAX_HEAD_DIM, Mode, Ops, Rows};
use crate::error::{Error, Result};
use crate::ops::{Heads, Matrix};
use crate::vocab::VOCAB_SIZE;

/// Gain of a norm.
#[derive(Debug)]
struct Norm {
    weight: Buffer,
    dim: usize,
    eps: f32,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    wq: Linear,
    wk: Linear,
    wv: Linear,
    wo: Linear,
    ffn_norm: Norm,
    w1: Linear,
    w2: Linear,
    w3: Linear,
}

#[derive(Debug)]
struct Layers {
    heads: Heads,
    window: Option<usize>,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Cross {
    heads: Heads,
    norm_q: Norm,
    norm_kv: Norm,
    wq: Linear,
    wk: Linear,
    wv: Linear,
    wo: Linear,
}

/// Logits of rows: norm and output matrix.
#[derive(Debug)]
struct Head {
    norm: Norm,
    output: Linear,
}

/// The weights on a device.
#[derive(Debug)]
pub(super) struct DeviceModel {
    gpu: Arc<Gpu>,
    ops: Ops,
    entropy: Option<(Layers, Head)>,
    encoder: Layers,
    /// With the layer each reads.
    encoder_cross: Vec<(usize, Cross)>,
    /// The cross-attention whose layer is pooled.
    pooled: usize,
    encoder_window: usize,
    patch_projection: Linear,
    input_projection: Option<Linear>,
    global: Layers,
    output_projection: Linear,
    decoder: Layers,
    decoder_cross: Vec<Cross>,
    decoder_window: usize,
    head: Head,
    k: usize,
    /// One pass at a time.
    scratch: Mutex<Scratch>,
}

/// Memory that lasts for a pass.
#[derive(Debug)]
struct Scratch {
    work: Work,
    /// Byte rows of the entropy model.
    bytes: Buffer,
    /// Byte rows of the local models.
    x: Buffer,
    pooled: Buffer,
    patches: Buffer,
    global: Buffer,
    logits: Buffer,
    entropies: Buffer,
}

/// Memory that lasts for a layer.
#[derive(Debug)]
struct Work {
    a: Buffer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    o: Buffer,
    gate: Buffer,
    up: Buffer,
    angles: Buffer,
    /// What self-attention sees: first positions, then ends.
    visible: Buffer,
    /// What cross-attention sees, likewise.
    seen: Buffer,
}

/// Keys and values of a layer.
#[derive(Debug)]
struct Kv {
    k: Rows,
    v: Rows,
}

/// What one sequence has on the device.
#[derive(Debug)]
pub(super) struct Caches {
    entropy: Vec<Kv>,
    encoder: Vec<Kv>,
    global: Vec<Kv>,
    decoder: Vec<Kv>,
    /// Byte states of the cross-attentions, all of them.
    states: Vec<Rows>,
    /// Of the decoder's cross-attentions: k rows per patch.
    patches: Vec<Kv>,
    /// Positions and patches ever written, since the rings were last empty.
    n_bytes: usize,
    n_patches: usize,
}

/// Rows a ring holds besides its window: those of a pass, and those that a rewind may want back.
const MARGIN: usize = 2 * SLACK;

/// Makes a scratch buffer at least `n` floats large.
fn reserve(buffer: &mut Buffer, n: usize) -> Result<()> {
    if buffer.n_bytes() < n * 4 {
        let gpu = Arc::clone(buffer.gpu());
        *buffer = gpu.alloc(n.next_power_of_two() * 4)?;
    }
    Ok(())
}

impl DeviceModel {
    /// Copies the weights to a device.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none, or its memory does not suffice; [`Error::Unsupported`] for
    /// heads wider than the kernels know.
    pub fn new(weights: &Weights, number: usize) -> Result<DeviceModel> {
        let gpu = Gpu::new(number)?;
        let matrix = |m: &Matrix| Linear::new(&gpu, m);
        let norm = |values: &[f32], eps| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Ok::<_, Error>(Norm {
                weight: gpu.upload(&bytes)?,
                dim: values.len(),
                eps,
            })
        };
        let checked = |heads: Heads| match heads.head_dim <= MAX_HEAD_DIM {
            true => Ok(heads),
            false => Err(Error::Unsupported(format!(
                "heads on a GPU: expected a width of at most {MAX_HEAD_DIM}, found {}",
                heads.head_dim
            ))),
        };
        let layers = |stack: &Stack| {
            if stack.config.differential.is_some() {
                return Err(Error::Unsupported(
                    "differential attention does not run on a GPU yet; use the CPU".into(),
                ));
            }
            let eps = stack.config.norm_eps;
            let layer = |b: &super::block::Block| {
                Ok::<_, Error>(Layer {
                    attention_norm: norm(&b.attention_norm, eps)?,
                    wq: matrix(&b.wq)?,
                    wk: matrix(&b.wk)?,
                    wv: matrix(&b.wv)?,
                    wo: matrix(&b.wo)?,
                    ffn_norm: norm(&b.ffn_norm, eps)?,
                    w1: matrix(&b.w1)?,
                    w2: matrix(&b.w2)?,
                    w3: matrix(&b.w3)?,
                })
            };
            Ok::<_, Error>(Layers {
                heads: checked(stack.heads())?,
                window: stack.config.window,
                layers: stack.blocks.iter().map(layer).collect::<Result<_>>()?,
            })
        };
        let cross = |c: &CrossAttention| {
            Ok::<_, Error>(Cross {
                heads: checked(c.heads())?,
                norm_q: norm(&c.norm_q, c.config.norm_eps)?,
                norm_kv: norm(&c.norm_kv, c.config.norm_eps)?,
                wq: matrix(&c.wq)?,
                wk: matrix(&c.wk)?,
                wv: matrix(&c.wv)?,
                wo: matrix(&c.wo)?,
            })
        };
        let (encoder, global, decoder) = (&weights.encoder, &weights.global, &weights.decoder);
        let entropy = |e: &super::EntropyModel| {
            let head = Head {
                norm: norm(&e.norm, e.layers.config.norm_eps)?,
                output: matrix(&e.output)?,
            };
            Ok::<_, Error>((layers(&e.layers)?, head))
        };
        let pooled = (encoder.cross.iter()).position(|(layer, _)| *layer == encoder.pool_layer);
        Ok(DeviceModel {
            ops: Ops::new(&gpu)?,
            entropy: weights.entropy.as_ref().map(entropy).transpose()?,
            encoder: layers(&encoder.layers)?,
            encoder_cross: (encoder.cross.iter())
                .map(|(layer, c)| Ok((*layer, cross(c)?)))
                .collect::<Result<_>>()?,
            pooled: pooled.expect("the pooled layer has a cross-attention"),
            encoder_window: encoder.cross_window,
            patch_projection: matrix(&encoder.patch_projection)?,
            input_projection: global.input_projection.as_ref().map(matrix).transpose()?,
            global: layers(&global.layers)?,
            output_projection: matrix(&decoder.patch_projection)?,
            decoder: layers(&decoder.layers)?,
            decoder_cross: decoder.cross.iter().map(cross).collect::<Result<_>>()?,
            decoder_window: decoder.cross_window,
            head: Head {
                norm: norm(&decoder.norm, decoder.layers.config.norm_eps)?,
                output: matrix(&decoder.output)?,
            },
            k: encoder.k,
            scratch: Mutex::new(Scratch::new(&gpu)?),
            gpu,
        })
    }

    /// Bytes read and written per second in copies on the device: the best of five.
    pub fn bandwidth(&self) -> Result<f64> {
        const SIZE: usize = 256 << 20;
        let (from, to) = (self.gpu.alloc(SIZE)?, self.gpu.alloc(SIZE)?);
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            self.gpu.read_f32s(&to, 1)?; // waits
            let start = std::time::Instant::now();
            self.gpu.copy(&from, &to, SIZE)?;
            self.gpu.read_f32s(&to, 1)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(2.0 * SIZE as f64 / best)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.gpu.info().name
    }

    /// A pass over one sequence, whose caches are made or, if a fork has them too, copied first.
    pub fn begin<'a>(&'a self, caches: &'a mut Option<Arc<Caches>>) -> Result<Pass<'a>> {
        if caches.is_none() {
            *caches = Some(Arc::new(Caches::new(self)?));
        }
        let shared = caches.as_mut().expect("made above");
        if Arc::get_mut(shared).is_none() {
            *shared = Arc::new(shared.copied()?);
        }
        Ok(Pass {
            model: self,
            caches: Arc::get_mut(shared).expect("copied above"),
            // After a panic the scratch holds what it likes: every pass writes it first.
            scratch: self.scratch.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }
}

impl Scratch {
    fn new(gpu: &Arc<Gpu>) -> Result<Scratch> {
        let empty = || gpu.alloc(4);
        Ok(Scratch {
            work: Work {
                a: empty()?,
                q: empty()?,
                k: empty()?,
                v: empty()?,
                o: empty()?,
                gate: empty()?,
                up: empty()?,
                angles: empty()?,
                visible: empty()?,
                seen: empty()?,
            },
            bytes: empty()?,
            x: empty()?,
            pooled: empty()?,
            patches: empty()?,
            global: empty()?,
            logits: empty()?,
            entropies: empty()?,
        })
    }
}

impl Kv {
    fn new(gpu: &Arc<Gpu>, dim: usize, limit: Option<usize>) -> Result<Kv> {
        Ok(Kv {
            k: Rows::new(gpu, dim, limit)?,
            v: Rows::new(gpu, dim, limit)?,
        })
    }

    fn reserve(&mut self, end: usize) -> Result<()> {
        self.k.reserve(end)?;
        self.v.reserve(end)
    }

    fn copied(&self) -> Result<Kv> {
        Ok(Kv {
            k: self.k.copied()?,
            v: self.v.copied()?,
        })
    }
}

impl Caches {
    fn new(model: &DeviceModel) -> Result<Caches> {
        let gpu = &model.gpu;
        let stack = |layers: &Layers| {
            let dim = layers.heads.n_kv_heads * layers.heads.head_dim;
            let limit = layers.window.map(|window| window + MARGIN);
            let kv = |_: &Layer| Kv::new(gpu, dim, limit);
            layers.layers.iter().map(kv).collect::<Result<Vec<_>>>()
        };
        let entropy = model.entropy.as_ref().map(|(layers, _)| stack(layers));
        let patches = |c: &Cross| {
            let limit = (model.decoder_window + MARGIN) * model.k;
            Kv::new(gpu, c.wk.rows(), Some(limit))
        };
        let states = |_: &(usize, Cross)| Rows::new(gpu, model.patch_projection.cols(), None);
        Ok(Caches {
            entropy: entropy.transpose()?.unwrap_or_default(),
            encoder: stack(&model.encoder)?,
            global: stack(&model.global)?,
            decoder: stack(&model.decoder)?,
            states: model
                .encoder_cross
                .iter()
                .map(states)
                .collect::<Result<_>>()?,
            patches: model
                .decoder_cross
                .iter()
                .map(patches)
                .collect::<Result<_>>()?,
            n_bytes: 0,
            n_patches: 0,
        })
    }

    fn copied(&self) -> Result<Caches> {
        let kvs = |kvs: &[Kv]| kvs.iter().map(Kv::copied).collect::<Result<Vec<_>>>();
        Ok(Caches {
            entropy: kvs(&self.entropy)?,
            encoder: kvs(&self.encoder)?,
            global: kvs(&self.global)?,
            decoder: kvs(&self.decoder)?,
            states: self
                .states
                .iter()
                .map(Rows::copied)
                .collect::<Result<_>>()?,
            patches: kvs(&self.patches)?,
            ..*self
        })
    }

    /// Whether nothing that bytes after the first `n_bytes` read, with `n_patches` patches closed, has
    /// been written over.
    pub fn hold(&self, n_bytes: usize, n_patches: usize) -> bool {
        self.n_bytes <= n_bytes + MARGIN - SLACK && self.n_patches <= n_patches + MARGIN - SLACK
    }

    /// Bytes of device memory.
    pub fn memory(&self) -> usize {
        let kvs = [
            &self.entropy,
            &self.encoder,
            &self.global,
            &self.decoder,
            &self.patches,
        ];
        let kvs = kvs
            .into_iter()
            .flatten()
            .map(|kv| kv.k.n_bytes() + kv.v.n_bytes());
        kvs.sum::<usize>() + self.states.iter().map(Rows::n_bytes).sum::<usize>()
    }
}

impl Norm {
    /// Of x (n, dim), which begins at row `first` of its buffer, into y.
    fn apply(
        &self,
        ops: &Ops,
        (first, n): (usize, usize),
        x: &Buffer,
        y: &mut Buffer,
    ) -> Result<()> {
        reserve(y, n * self.dim)?;
        let weight = (&self.weight, self.dim);
        ops.rms_norm(n, (x, first * self.dim), weight, self.eps, y)
    }
}

/// The product of n rows of x into y, which grows to hold it.
fn linear(w: &Linear, n: usize, x: &Buffer, y: &mut Buffer) -> Result<()> {
    reserve(y, n * w.rows())?;
    w.apply(n, x, y, Mode::Set)
}

impl Work {
    /// Uploads angles and visible ranges of rows.
    fn set_rows(&mut self, gpu: &Gpu, rows: &Where) -> Result<()> {
        let (cos, sin) = rows.angles.cos_sin();
        reserve(&mut self.angles, cos.len() + sin.len())?;
        gpu.write_f32s(&self.angles, &[cos, sin].concat())?;
        set_visible(gpu, &mut self.visible, &rows.visible)
    }

    /// One layer on x (n, dim) in place.
    fn layer(
        &mut self,
        ops: &Ops,
        (layer, heads): (&Layer, Heads),
        rows: &Where,
        kv: &mut Kv,
        x: &Buffer,
    ) -> Result<()> {
        let (first, n) = (rows.runs[0].start, rows.n());
        layer.attention_norm.apply(ops, (0, n), x, &mut self.a)?;
        linear(&layer.wq, n, &self.a, &mut self.q)?;
        linear(&layer.wk, n, &self.a, &mut self.k)?;
        linear(&layer.wv, n, &self.a, &mut self.v)?;
        kv.reserve(first + n)?;
        let qkv = (&self.q, &self.k, &self.v);
        ops.rope_append((first, n), heads, qkv, &self.angles, (&mut kv.k, &mut kv.v))?;
        reserve(&mut self.o, n * layer.wq.rows())?;
        let over = Attention {
            heads,
            k: kv.k.buffer(),
            v: kv.v.buffer(),
            capacity: kv.k.capacity(),
            visible: &self.visible,
        };
        ops.attention(n, &self.q, over, &self.o)?;
        layer.wo.apply(n, &self.o, x, Mode::Add)?;

        layer.ffn_norm.apply(ops, (0, n), x, &mut self.a)?;
        linear(&layer.w1, n, &self.a, &mut self.gate)?;
        linear(&layer.w3, n, &self.a, &mut self.up)?;
        ops.swiglu(n, layer.w1.rows(), &self.gate, &self.up)?;
        layer.w2.apply(n, &self.gate, x, Mode::Add)
    }

    /// Keys and values of the n rows of x from row `first` on, into `self.k` and `self.v`.
    fn keys_values(
        &mut self,
        ops: &Ops,
        c: &Cross,
        rows: (usize, usize),
        x: &Buffer,
    ) -> Result<()> {
        c.norm_kv.apply(ops, rows, x, &mut self.a)?;
        linear(&c.wk, rows.1, &self.a, &mut self.k)?;
        linear(&c.wv, rows.1, &self.a, &mut self.v)
    }

    /// The cross-attention of n rows of x, in place, over a patch's rings or, if `None`, `capacity`
    /// rows of `self.k` and `self.v`.
    fn cross(
        &mut self,
        ops: &Ops,
        c: &Cross,
        (kv, capacity): (Option<&Kv>, usize),
        n: usize,
        x: &Buffer,
    ) -> Result<()> {
        c.norm_q.apply(ops, (0, n), x, &mut self.a)?;
        linear(&c.wq, n, &self.a, &mut self.q)?;
        reserve(&mut self.o, n * c.wq.rows())?;
        let (k, v) = match kv {
            Some(kv) => (kv.k.buffer(), kv.v.buffer()),
            None => (&self.k, &self.v),
        };
        let over = Attention {
            heads: c.heads,
            k,
            v,
            capacity,
            visible: &self.seen,
        };
        ops.attention(n, &self.q, over, &self.o)?;
        c.wo.apply(n, &self.o, x, Mode::DoubleAdd)
    }
}

/// Uploads visible ranges: all first positions, then all ends.
fn set_visible(gpu: &Gpu, buffer: &mut Buffer, visible: &[Range<usize>]) -> Result<()> {
    reserve(buffer, 2 * visible.len())?;
    let starts = visible.iter().map(|r| r.start as u32);
    let ends = visible.iter().map(|r| r.end as u32);
    gpu.write_u32s(buffer, &starts.chain(ends).collect::<Vec<_>>())
}

/// One pass over up to `MAX_BATCH` bytes of one sequence: its steps in order.
pub(super) struct Pass<'a> {
    model: &'a DeviceModel,
    caches: &'a mut Caches,
    scratch: MutexGuard<'a, Scratch>,
}

impl Pass<'_> {
    /// Entropies after bytes with the embeddings x (n, dim), and if wanted their logits.
    pub fn entropies(
        &mut self,
        x: &[f32],
        rows: &Where,
        logits: Option<&mut Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let DeviceModel { gpu, ops, .. } = self.model;
        let s = &mut *self.scratch;
        let n = rows.n();
        self.caches.n_bytes = self.caches.n_bytes.max(rows.runs[0].start + n);
        let (layers, head) = self
            .model
            .entropy
            .as_ref()
            .expect("there is an entropy model");
        reserve(&mut s.bytes, x.len())?;
        gpu.write_f32s(&s.bytes, x)?;
        s.work.set_rows(gpu, rows)?;
        for (layer, kv) in layers.layers.iter().zip(&mut self.caches.entropy) {
            s.work
                .layer(ops, (layer, layers.heads), rows, kv, &s.bytes)?;
        }
        head.norm.apply(ops, (0, n), &s.bytes, &mut s.work.a)?;
        linear(&head.output, n, &s.work.a, &mut s.logits)?;
        reserve(&mut s.entropies, n)?;
        ops.entropy(n, VOCAB_SIZE, &s.logits, &s.entropies)?;
        if let Some(logits) = logits {
            logits.extend(gpu.read_f32s(&s.logits, n * VOCAB_SIZE)?);
        }
        gpu.read_f32s(&s.entropies, n)
    }

    /// The local encoder on bytes with the embeddings x (n, dim); returns their states if wanted.
    pub fn bytes(&mut self, x: &[f32], rows: &Where, wanted: bool) -> Result<Vec<f32>> {
        let DeviceModel {
            gpu, ops, encoder, ..
        } = self.model;
        let s = &mut *self.scratch;
        let n = rows.n();
        let end = rows.runs[0].start + n;
        reserve(&mut s.x, x.len())?;
        gpu.write_f32s(&s.x, x)?;
        s.work.set_rows(gpu, rows)?;
        self.caches.n_bytes = self.caches.n_bytes.max(end);
        for (l, (layer, kv)) in encoder
            .layers
            .iter()
            .zip(&mut self.caches.encoder)
            .enumerate()
        {
            s.work.layer(ops, (layer, encoder.heads), rows, kv, &s.x)?;
            for ((of_layer, _), store) in
                self.model.encoder_cross.iter().zip(&mut self.caches.states)
            {
                if *of_layer == l {
                    store.reserve(end)?;
                    ops.append((rows.runs[0].start, n), &s.x, store)?;
                }
            }
        }
        match wanted {
            true => gpu.read_f32s(&s.x, x.len()),
            false => Ok(Vec::new()),
        }
    }

    /// The patches `closed`, which begin at `starts`: their vectors, the global transformer at `rows`,
    /// and what the decoder reads of them. Vectors and global outputs are returned if wanted.
    pub fn patches(
        &mut self,
        starts: &[usize],
        closed: Range<usize>,
        rows: &Where,
        wanted: bool,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let DeviceModel {
            gpu,
            ops,
            global,
            k,
            ..
        } = self.model;
        let s = &mut *self.scratch;
        let m = closed.len();
        let dim = self.model.patch_projection.cols();
        let n_rows = m * k;

        let edges: Vec<u32> = starts[closed.start..=closed.end]
            .iter()
            .map(|&s| s as u32)
            .collect();
        reserve(&mut s.pooled, m * dim)?;
        reserve(&mut s.work.visible, m + 1)?;
        let pooled = &self.caches.states[self.model.pooled];
        ops.max_rows(pooled, &edges, &s.work.visible, &s.pooled)?;
        linear(&self.model.patch_projection, m, &s.pooled, &mut s.patches)?;
        let sees =
            |p: usize| starts[(p + 1).saturating_sub(self.model.encoder_window)]..starts[p + 1];
        let bytes = sees(closed.start).start..starts[closed.end];
        let visible: Vec<Range<usize>> = (closed.clone())
            .map(|p| sees(p).start - bytes.start..sees(p).end - bytes.start)
            .flat_map(|range| std::iter::repeat_n(range, *k))
            .collect();
        set_visible(gpu, &mut s.work.seen, &visible)?;
        for ((_, cross), states) in self.model.encoder_cross.iter().zip(&self.caches.states) {
            let of_bytes = (bytes.start, bytes.len());
            s.work.keys_values(ops, cross, of_bytes, states.buffer())?;
            s.work
                .cross(ops, cross, (None, bytes.len()), n_rows, &s.patches)?;
        }
        let mut vectors = Vec::new();
        if wanted {
            vectors = gpu.read_f32s(&s.patches, n_rows * dim)?;
        }

        let x = match &self.model.input_projection {
            Some(projection) => {
                linear(projection, m, &s.patches, &mut s.global)?;
                &s.global
            }
            None => &s.patches,
        };
        s.work.set_rows(gpu, rows)?;
        for (layer, kv) in global.layers.iter().zip(&mut self.caches.global) {
            s.work.layer(ops, (layer, global.heads), rows, kv, x)?;
        }
        let mut outputs = Vec::new();
        if wanted {
            outputs = gpu.read_f32s(x, m * self.model.output_projection.cols())?;
        }

        linear(&self.model.output_projection, m, x, &mut s.pooled)?; // (m * k, dim)
        for (cross, kv) in self
            .model
            .decoder_cross
            .iter()
            .zip(&mut self.caches.patches)
        {
            s.work.keys_values(ops, cross, (0, n_rows), &s.pooled)?;
            kv.reserve(closed.end * k)?;
            ops.append((closed.start * k, n_rows), &s.work.k, &mut kv.k)?;
            ops.append((closed.start * k, n_rows), &s.work.v, &mut kv.v)?;
        }
        self.caches.n_patches = self.caches.n_patches.max(closed.end);
        Ok((vectors, outputs))
    }

    /// The local decoder on the bytes of [`Pass::bytes`]; byte i sees the patches `seen[i]`. Returns the
    /// wanted logits.
    pub fn decode(
        &mut self,
        rows: &Where,
        seen: &[Range<usize>],
        wanted: Wanted,
    ) -> Result<Vec<f32>> {
        let DeviceModel {
            gpu,
            ops,
            decoder,
            head,
            k,
            ..
        } = self.model;
        let s = &mut *self.scratch;
        let n = rows.n();
        let visible: Vec<Range<usize>> = seen.iter().map(|p| p.start * k..p.end * k).collect();
        set_visible(gpu, &mut s.work.seen, &visible)?;
        s.work.set_rows(gpu, rows)?;
        for (l, (layer, kv)) in decoder
            .layers
            .iter()
            .zip(&mut self.caches.decoder)
            .enumerate()
        {
            let cross = self
                .model
                .decoder_cross
                .get(l)
                .zip(self.caches.patches.get(l));
            if let Some((cross, patches)) = cross {
                let over = (Some(patches), patches.k.capacity());
                s.work.cross(ops, cross, over, n, &s.x)?;
            }
            s.work.layer(ops, (layer, decoder.heads), rows, kv, &s.x)?;
        }
        let (first, n) = match wanted {
            Wanted::Nothing => return Ok(Vec::new()),
            Wanted::Last => (n - 1, 1),
            Wanted::All => (0, n),
        };
        head.norm.apply(ops, (first, n), &s.x, &mut s.work.a)?;
        linear(&head.output, n, &s.work.a, &mut s.logits)?;
        gpu.read_f32s(&s.logits, n * VOCAB_SIZE)
    }
}
