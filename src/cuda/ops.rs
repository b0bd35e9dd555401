//! One function per kernel: sizes are checked here, so that no call can leave its buffers.

use std::sync::Arc;

use super::Row;
use super::driver::{Arg, Buffer, Gpu, Kernel};
use crate::error::Result;
use crate::ops::{Heads, Matrix};
use crate::tensor::DType;
use blt_kernels::BlockFormat;

/// Widest head of the attention kernel.
pub const MAX_HEAD_DIM: usize = 256;
/// Most logits of a row that are sampled from.
pub const MAX_VOCAB: usize = 512;
/// Most tables of an embedding.
pub const MAX_TABLES: usize = 256;

/// Most rows of one launch: the limit of a grid's second side.
const MAX_ROWS: usize = 65535;

/// What becomes of the product's target.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Mode {
    /// `y = x W^T`.
    Set,
    /// `y += x W^T`: the residual of a layer.
    Add,
    /// `y = 2 y + x W^T`: the double residual of a cross-attention.
    DoubleAdd,
}

/// Part of a buffer: so many four-byte numbers from its start.
pub type At<'a> = (&'a Buffer, usize);

/// Matrices of one input width on the device, their outputs side by side.
#[derive(Debug)]
pub struct Linear {
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
}

/// Matrices of one type.
#[derive(Debug)]
struct Part {
    weights: Buffer,
    n_bytes: usize,
    /// Its first output.
    first: usize,
    rows: usize,
    narrow8: Kernel,
    narrow32: Kernel,
    matmul: Kernel,
}

fn u32_arg(n: usize) -> Arg {
    Arg::U32(u32::try_from(n).expect("sizes of a model fit 32 bits"))
}

impl Linear {
    /// Copies matrices to the device as they lie in the file.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the memory does not suffice.
    pub fn new(gpu: &Arc<Gpu>, matrices: &[&Matrix]) -> Result<Linear> {
        let cols = matrices[0].cols();
        let mut parts: Vec<Part> = Vec::new();
        let mut rows = 0;
        let mut left = matrices;
        while let Some(&matrix) = left.first() {
            let dtype = matrix.tensor().dtype();
            let (format, tile_rows) = match dtype {
                DType::Tiles(format) => (format.name().to_owned(), 16),
                DType::Table(_) => panic!("a table is for lookups"),
                float => (float.name().to_lowercase(), 1),
            };
            // Those that follow in the same type go into the same launch, as long as tiles are full.
            let mut n = 1;
            while n < left.len()
                && left[n].tensor().dtype() == dtype
                && left[n - 1].rows().is_multiple_of(tile_rows)
            {
                n += 1;
            }
            let (now, later) = left.split_at(n);
            left = later;
            assert!(now.iter().all(|m| m.cols() == cols), "columns");
            let n_bytes = now.iter().map(|m| m.tensor().bytes().len()).sum();
            let weights = gpu.alloc(n_bytes)?;
            let mut at = 0;
            for matrix in now {
                let bytes = matrix.tensor().bytes();
                gpu.write((&weights, at), bytes)?;
                at += bytes.len();
            }
            let of_part: usize = now.iter().map(|m| m.rows()).sum();
            parts.push(Part {
                weights,
                n_bytes,
                first: rows,
                rows: of_part,
                narrow8: gpu.kernel(&format!("narrow8_{format}"))?,
                narrow32: gpu.kernel(&format!("narrow32_{format}"))?,
                matmul: gpu.kernel(&format!("matmul_{format}"))?,
            });
            rows += of_part;
        }
        Ok(Linear { parts, rows, cols })
    }

    /// Output width: of all matrices together.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The product with x (n, cols) into y (n, rows).
    pub fn apply(&self, n: usize, x: At<'_>, y: At<'_>, mode: Mode) -> Result<()> {
        for first in (0..n).step_by(MAX_ROWS) {
            let n = MAX_ROWS.min(n - first);
            for part in &self.parts {
                let x = (x.0, x.1 + first * self.cols);
                let y = (y.0, y.1 + first * self.rows);
                self.launch(part, n, x, y, mode)?;
            }
        }
        Ok(())
    }

    fn launch(&self, part: &Part, n: usize, x: At<'_>, y: At<'_>, mode: Mode) -> Result<()> {
        let gpu = part.weights.gpu();
        let args = [
            part.weights.holding_bytes(part.n_bytes),
            x.0.after(x.1, n * self.cols),
            y.0.after(y.1 + part.first, n * self.rows - part.first),
            u32_arg(part.rows),
            u32_arg(self.cols),
            u32_arg(self.rows),
            u32_arg(n),
            Arg::U32(mode as u32),
        ];
        let narrow = [part.rows.div_ceil(16), 1];
        let (kernel, grid, threads) = match n {
            0..=8 => (part.narrow8, narrow, 256),
            9..=32 => (part.narrow32, narrow, 256),
            _ => (part.matmul, [part.rows.div_ceil(64), n.div_ceil(64)], 128),
        };
        // SAFETY: the arguments of `narrow8_*`, `narrow32_*` and `matmul_*` in linear.cu; `after` checked x
        // and y, the weights are whole matrices of that shape.
        unsafe { gpu.launch(kernel, grid, threads, &args) }
    }
}

/// Tables of one width, of whose rows an embedding is the sum.
#[derive(Debug)]
pub struct Tables {
    /// (n_tables), as `Table` in embedding.cu.
    list: Buffer,
    n: usize,
    /// Ids that a lookup reads, the own one included.
    window: usize,
    cols: usize,
    _memory: Vec<Buffer>,
}

/// Number of an element type in embedding.cu.
fn table_type(dtype: DType) -> u32 {
    let format = |format| match format {
        BlockFormat::Q8_0 => 0,
        BlockFormat::Q4_0 => 1,
        BlockFormat::Q4K => 2,
        BlockFormat::Q6K => 3,
        other => unreachable!("no tables of {other:?}"),
    };
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 2,
        DType::Table(f) => 3 + format(f),
        DType::Tiles(f) => 7 + format(f),
    }
}

impl Tables {
    /// Copies tables to the device: one whose row is the id, then those of n-grams, each with the powers
    /// that its ids are multiplied with, oldest id first.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the memory does not suffice.
    pub fn new(gpu: &Arc<Gpu>, ids: &Matrix, ngrams: &[(&Matrix, &[i64])]) -> Result<Tables> {
        let (mut list, mut memory) = (Vec::new(), Vec::new());
        let all = [(ids, &[][..])];
        let all = all.iter().chain(ngrams);
        for (matrix, powers) in all {
            let rows = gpu.upload(matrix.tensor().bytes())?;
            let bytes: Vec<u8> = powers.iter().flat_map(|p| p.to_le_bytes()).collect();
            let powers_at = gpu.upload(&bytes)?;
            let n = |n: usize| u32::try_from(n).expect("lengths of n-grams fit 32 bits");
            list.extend(rows.address().to_le_bytes());
            list.extend(powers_at.address().to_le_bytes());
            list.extend(table_type(matrix.tensor().dtype()).to_le_bytes());
            list.extend(n(powers.len()).to_le_bytes());
            list.extend((matrix.rows() as u64).to_le_bytes());
            memory.extend([rows, powers_at]);
        }
        let n = 1 + ngrams.len();
        assert!(n <= MAX_TABLES, "tables of an embedding");
        Ok(Tables {
            list: gpu.upload(&list)?,
            n,
            window: (ngrams.iter())
                .map(|(_, p)| p.len())
                .max()
                .unwrap_or(1)
                .max(1),
            cols: ids.cols(),
            _memory: memory,
        })
    }

    /// Ids that a lookup reads, the own one included.
    pub fn window(&self) -> usize {
        self.window
    }
}

/// The other kernels.
#[derive(Debug)]
pub struct Ops {
    rms_norm: Kernel,
    swiglu: Kernel,
    max_rows: Kernel,
    entropy: Kernel,
    rope_append: Kernel,
    put_rows: Kernel,
    take_rows: Kernel,
    attention: Kernel,
    embed: Kernel,
    sample: Kernel,
}

/// Threads of a kernel that gives each row a block.
const ROW_THREADS: usize = 256;

/// What an attention does with its rows.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Head counts and width.
    pub heads: Heads,
    /// (n, [`Row::UNITS`]).
    pub rows: At<'a>,
    /// The side of the keys; values are in the next.
    pub side: usize,
    /// Width of the rows that begin with the queries.
    pub q_stride: usize,
    /// Rotary angles, if keys and values that follow the queries are to be entered first: for rows of
    /// different sequences.
    pub angles: Option<At<'a>>,
}

impl Ops {
    /// Looks the kernels up.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Ops> {
        Ok(Ops {
            rms_norm: gpu.kernel("rms_norm")?,
            swiglu: gpu.kernel("swiglu")?,
            max_rows: gpu.kernel("max_rows")?,
            entropy: gpu.kernel("entropy")?,
            rope_append: gpu.kernel("rope_append")?,
            put_rows: gpu.kernel("put_rows")?,
            take_rows: gpu.kernel("take_rows")?,
            attention: gpu.kernel("attention")?,
            embed: gpu.kernel("embed")?,
            sample: gpu.kernel("sample")?,
        })
    }

    /// RMSNorm of x (n, dim) into y (n, dim).
    pub fn rms_norm(
        &self,
        n: usize,
        x: At<'_>,
        (weight, dim): (&Buffer, usize),
        eps: f32,
        y: At<'_>,
    ) -> Result<()> {
        let (x, y) = (x.0.after(x.1, n * dim), y.0.after(y.1, n * dim));
        let args = [x, weight.holding(dim), y, u32_arg(dim), Arg::F32(eps)];
        let gpu = weight.gpu();
        // SAFETY: the arguments of `rms_norm` in rows.cu, sizes checked.
        unsafe { gpu.launch(self.rms_norm, [n, 1], ROW_THREADS, &args) }
    }

    /// `out = silu(gate) * up`: gate_up (n, 2 * dim), out (n, dim).
    pub fn swiglu(&self, n: usize, dim: usize, gate_up: &Buffer, out: &Buffer) -> Result<()> {
        let args = [
            gate_up.holding(n * 2 * dim),
            out.holding(n * dim),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `swiglu` in rows.cu, sizes checked.
        unsafe { out.gpu().launch(self.swiglu, [n, 1], ROW_THREADS, &args) }
    }

    /// Elementwise maxima of what each row sees in `side` of its memory, whose rows are `dim` wide, into
    /// out (n, dim).
    pub fn max_rows(
        &self,
        n: usize,
        rows: At<'_>,
        side: usize,
        dim: usize,
        out: &Buffer,
    ) -> Result<()> {
        let args = [
            out.holding(n * dim),
            rows.0.after(rows.1, n * Row::UNITS),
            u32_arg(side),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `max_rows` in rope.cu, sizes checked; rows come from `Store::row`.
        unsafe { out.gpu().launch(self.max_rows, [n, 1], ROW_THREADS, &args) }
    }

    /// Entropies in nats of n rows of logits (n, vocab).
    pub fn entropy(&self, n: usize, vocab: usize, logits: At<'_>, out: At<'_>) -> Result<()> {
        let logits = logits.0.after(logits.1, n * vocab);
        let args = [logits, out.0.after(out.1, n), u32_arg(vocab)];
        let gpu = out.0.gpu();
        // SAFETY: the arguments of `entropy` in rows.cu, sizes checked.
        unsafe { gpu.launch(self.entropy, [n, 1], ROW_THREADS, &args) }
    }

    /// Turns the heads of the queries in qkv (n, queries + keys + values) in place and enters keys,
    /// turned, and values in sides `side` and the next. `angles`: (n, head_dim), cosines, then sines.
    pub fn rope_append(
        &self,
        n: usize,
        heads: Heads,
        qkv: &Buffer,
        rows: At<'_>,
        angles: At<'_>,
        side: usize,
    ) -> Result<()> {
        let q_dim = heads.n_heads * heads.head_dim;
        let kv_dim = heads.n_kv_heads * heads.head_dim;
        let args = [
            qkv.holding(n * (q_dim + 2 * kv_dim)),
            rows.0.after(rows.1, n * Row::UNITS),
            angles.0.after(angles.1, n * heads.head_dim),
            u32_arg(side),
            u32_arg(q_dim),
            u32_arg(kv_dim),
            u32_arg(heads.head_dim / 2),
        ];
        // SAFETY: the arguments of `rope_append` in rope.cu, sizes checked; rows come from `Store::row`.
        unsafe {
            qkv.gpu()
                .launch(self.rope_append, [n, 1], ROW_THREADS, &args)
        }
    }

    /// Enters the `sides` pieces of `dim` of each row of x at its position, in the sides from `side` on.
    pub fn put_rows(
        &self,
        n: usize,
        x: &Buffer,
        rows: At<'_>,
        (side, sides): (usize, usize),
        dim: usize,
    ) -> Result<()> {
        let args = [
            x.holding(n * sides * dim),
            rows.0.after(rows.1, n * Row::UNITS),
            u32_arg(side),
            u32_arg(sides),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `put_rows` in rope.cu, sizes checked; rows come from `Store::row`.
        unsafe { x.gpu().launch(self.put_rows, [n, 1], ROW_THREADS, &args) }
    }

    /// Fetches x (n, dim) from `side` of each row's memory, at its position.
    pub fn take_rows(
        &self,
        n: usize,
        x: &Buffer,
        rows: At<'_>,
        side: usize,
        dim: usize,
    ) -> Result<()> {
        let args = [
            x.holding(n * dim),
            rows.0.after(rows.1, n * Row::UNITS),
            u32_arg(side),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `take_rows` in rope.cu, sizes checked; rows come from `Store::row`.
        unsafe { x.gpu().launch(self.take_rows, [n, 1], ROW_THREADS, &args) }
    }

    /// Softmax attention of the queries in q into out (n, n_heads * head_dim).
    pub fn attention(&self, n: usize, q: &Buffer, with: Attention<'_>, out: &Buffer) -> Result<()> {
        let Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        } = with.heads;
        assert!(head_dim <= MAX_HEAD_DIM);
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let angles = with.angles.map(|a| a.0.after(a.1, n * head_dim));
        let least = match angles {
            Some(_) => q_dim + 2 * kv_dim,
            None => q_dim,
        };
        assert!(with.q_stride >= least && n <= MAX_ROWS);
        let args = [
            q.holding(n * with.q_stride),
            with.rows.0.after(with.rows.1, n * Row::UNITS),
            angles.unwrap_or(Arg::Pointer(0)),
            out.holding(n * q_dim),
            u32_arg(with.q_stride),
            u32_arg(with.side),
            u32_arg(n_kv_heads),
            u32_arg(head_dim),
        ];
        // SAFETY: the arguments of `attention` in attention.cu, sizes checked; rows come from `Store::row`,
        // and positions are taken modulo the capacity, so no range can leave the rings.
        unsafe { q.gpu().launch(self.attention, [n_heads, n], 256, &args) }
    }

    /// Embeddings x (n, width of the tables). `ids`: (n, window), those up to each row's own, 0 before the
    /// text. With `chosen` (n) the last id of each row is taken from there.
    pub fn embed(
        &self,
        n: usize,
        tables: &Tables,
        ids: At<'_>,
        chosen: Option<At<'_>>,
        x: &Buffer,
    ) -> Result<()> {
        let args = [
            tables.list.holding_bytes(tables.n * 32),
            ids.0.after(ids.1, n * tables.window),
            chosen.map_or(Arg::Pointer(0), |c| c.0.after(c.1, n)),
            x.holding(n * tables.cols),
            u32_arg(tables.n),
            u32_arg(tables.window),
            u32_arg(tables.cols),
        ];
        // SAFETY: the arguments of `embed` in embedding.cu, sizes checked; rows of n-gram tables are taken
        // modulo their lengths, and single ids are below that of the first table.
        unsafe { x.gpu().launch(self.embed, [n, 1], ROW_THREADS, &args) }
    }

    /// Chooses an id by each row of logits (n, vocab), as `choices` (n, [`Choice::UNITS`]) say.
    pub fn sample(
        &self,
        n: usize,
        vocab: usize,
        logits: At<'_>,
        choices: At<'_>,
        chosen: At<'_>,
    ) -> Result<()> {
        assert!(vocab <= MAX_VOCAB);
        let args = [
            logits.0.after(logits.1, n * vocab),
            choices.0.after(choices.1, n * Choice::UNITS),
            chosen.0.after(chosen.1, n),
            u32_arg(vocab),
        ];
        let gpu = chosen.0.gpu();
        // SAFETY: the arguments of `sample` in sample.cu, sizes checked.
        unsafe { gpu.launch(self.sample, [n, 1], ROW_THREADS, &args) }
    }
}

/// How an id is chosen; the same structure in kernels/cuda/sample.cu.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// A random number from 0 to below 1.
    pub draw: f64,
    /// Of 0: the largest logit.
    pub temperature: f64,
    /// 1: all are kept.
    pub top_p: f64,
    /// Least weight, where the largest is 1.
    pub least: f64,
    /// As many as there are ids: all are kept.
    pub top_k: u32,
    /// Bits of ids that cannot be chosen.
    pub banned: u32,
    /// What is chosen when the logits say nothing.
    pub fallback: u32,
}

impl Choice {
    /// Four-byte numbers of a choice.
    pub const UNITS: usize = 12;

    /// As the kernel reads it.
    pub fn units(&self) -> [u32; Choice::UNITS] {
        let mut units = [0; Choice::UNITS];
        let numbers = [self.draw, self.temperature, self.top_p, self.least];
        for (pair, number) in units.chunks_exact_mut(2).zip(numbers) {
            let bits = number.to_bits();
            pair.copy_from_slice(&[bits as u32, (bits >> 32) as u32]);
        }
        units[8..11].copy_from_slice(&[self.top_k, self.banned, self.fallback]);
        units
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Store;
    use crate::tensor::Tensor;
    use blt_kernels::BlockFormat;

    /// Numbers in -1..1, the same for a seed.
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        let next = |_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(next).collect()
    }

    fn device() -> Option<Arc<Gpu>> {
        let found = crate::cuda::devices().is_ok_and(|devices| !devices.is_empty());
        match found {
            true => Some(Gpu::new(0).unwrap()),
            false => {
                eprintln!("skipped: no CUDA device");
                None
            }
        }
    }

    fn upload(gpu: &Arc<Gpu>, values: &[f32]) -> Buffer {
        let buffer = gpu.alloc(values.len() * 4).unwrap();
        let bits: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
        gpu.write_u32s(&buffer, &bits).unwrap();
        buffer
    }

    /// Products of every type, of few and of many rows, with sizes on and off every edge.
    #[test]
    fn products_are_those_of_the_weights_values() {
        let Some(gpu) = device() else { return };
        // Two bfloat16 keep 16 bits of a term; sums of up to 300 terms of size 1.
        const TOLERANCE: f64 = 300.0 / 65536.0 / 16.0;
        let types = (DType::FLOATS.into_iter()).chain(BlockFormat::ALL.map(DType::Tiles));
        for dtype in types {
            for (rows, cols, n) in [
                (1, 1, 1),
                (17, 33, 3),
                (64, 64, 8),
                (70, 300, 9),
                (40, 96, 32),
                (33, 256, 65),
            ] {
                let values = noise(rows * cols, 3);
                let tensor = Tensor::from_values(dtype, vec![rows, cols], &values).unwrap();
                let w = tensor.to_f32_vec();
                let x = noise(n * cols, 5);
                let before = noise(n * rows, 7);
                let matrix = Linear::new(&gpu, &[&Matrix::new("w", tensor).unwrap()]).unwrap();
                for (mode, keep) in [(Mode::Set, 0.0), (Mode::Add, 1.0), (Mode::DoubleAdd, 2.0)] {
                    let y = upload(&gpu, &before);
                    matrix
                        .apply(n, (&upload(&gpu, &x), 0), (&y, 0), mode)
                        .unwrap();
                    let y = gpu.read_f32s(&y, n * rows).unwrap();
                    for (i, &found) in y.iter().enumerate() {
                        let (row, out) =
                            (&x[i / rows * cols..][..cols], &w[i % rows * cols..][..cols]);
                        let dot: f64 = row
                            .iter()
                            .zip(out)
                            .map(|(&a, &b)| f64::from(a) * f64::from(b))
                            .sum();
                        let expected = dot + keep * f64::from(before[i]);
                        assert!(
                            (f64::from(found) - expected).abs() < TOLERANCE,
                            "{dtype} {rows} x {cols}, {n} rows, {mode:?}: value {i}: expected {expected}, found {found}"
                        );
                    }
                }
            }
        }
    }

    /// Ranges of one key and of several tiles, rings that wrap, heads that share keys.
    #[test]
    fn attention_is_the_softmax_average() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        for (n_heads, n_kv_heads, head_dim, capacity) in [
            (1, 1, 8, 400),
            (4, 2, 64, 300),
            (3, 1, 200, 300),
            (2, 1, 6, 300),
        ] {
            let heads = Heads {
                n_heads,
                n_kv_heads,
                head_dim,
            };
            let visible = [0..1, 5..133, 250..520, 7..263];
            let (n, kv_dim) = (visible.len(), n_kv_heads * head_dim);
            let q = noise(n * n_heads * head_dim, 11);
            let mut store = Store::new(&gpu, 2, kv_dim, Some(capacity)).unwrap();
            store.reserve(600).unwrap();
            let kv = noise(2 * capacity * kv_dim, 13);
            let (k, v) = kv.split_at(capacity * kv_dim);
            for position in 0..capacity {
                let of_side = |side: &[f32]| side[position * kv_dim..][..kv_dim].to_vec();
                let x = upload(&gpu, &[of_side(k), of_side(v)].concat());
                let row = rows(&gpu, &[store.row(position, 0..1)]);
                ops.put_rows(1, &x, (&row, 0), (0, 2), kv_dim).unwrap();
            }
            let seen: Vec<Row> = visible.iter().map(|v| store.row(0, v.clone())).collect();
            let seen = rows(&gpu, &seen);
            let out = gpu.alloc(q.len() * 4).unwrap();
            let with = Attention {
                heads,
                rows: (&seen, 0),
                side: 0,
                q_stride: n_heads * head_dim,
                angles: None,
            };
            ops.attention(n, &upload(&gpu, &q), with, &out).unwrap();
            let out = gpu.read_f32s(&out, q.len()).unwrap();
            for (i, (q, out)) in q.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
                let kv_head = i % n_heads / (n_heads / n_kv_heads);
                let rows: Vec<usize> = (visible[i / n_heads].clone())
                    .map(|p| p % capacity * kv_dim + kv_head * head_dim)
                    .collect();
                let score = |&at: &usize| {
                    let dot: f64 = q
                        .iter()
                        .zip(&k[at..])
                        .map(|(&a, &b)| f64::from(a) * f64::from(b))
                        .sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = rows.iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                for (d, &found) in out.iter().enumerate() {
                    let expected: f64 = rows
                        .iter()
                        .zip(&weights)
                        .map(|(at, w)| w * f64::from(v[at + d]))
                        .sum::<f64>()
                        / sum;
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-5,
                        "{heads:?} row {i} column {d}: expected {expected}, found {found}"
                    );
                }
            }
        }
    }

    /// Entering and turning in the attention's launch is what rope_append does before it.
    #[test]
    fn rows_of_different_sequences_enter_their_own_keys() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
        };
        let (n, q_dim, kv_dim) = (3, 64, 32);
        let qkv = noise(n * (q_dim + 2 * kv_dim), 19);
        let angles = upload(&gpu, &noise(n * heads.head_dim, 23));
        let run = |fused: bool| {
            let stores: Vec<Store> = (0..n)
                .map(|_| Store::new(&gpu, 2, kv_dim, Some(64)).unwrap())
                .collect();
            for store in &stores {
                let row = rows(
                    &gpu,
                    &(0..4).map(|p| store.row(p, 0..1)).collect::<Vec<_>>(),
                );
                let x = upload(&gpu, &noise(4 * 2 * kv_dim, 29));
                ops.put_rows(4, &x, (&row, 0), (0, 2), kv_dim).unwrap();
            }
            let list: Vec<Row> = stores.iter().map(|s| s.row(4, 1..5)).collect();
            let list = rows(&gpu, &list);
            let (qkv, out) = (upload(&gpu, &qkv), gpu.alloc(n * q_dim * 4).unwrap());
            if !fused {
                let at = ((&list, 0), (&angles, 0));
                ops.rope_append(n, heads, &qkv, at.0, at.1, 0).unwrap();
            }
            let with = Attention {
                heads,
                rows: (&list, 0),
                side: 0,
                q_stride: q_dim + 2 * kv_dim,
                angles: fused.then_some((&angles, 0)),
            };
            ops.attention(n, &qkv, with, &out).unwrap();
            let entered = gpu.alloc(n * kv_dim * 4).unwrap();
            ops.take_rows(n, &entered, (&list, 0), 0, kv_dim).unwrap();
            let mut found = gpu.read_f32s(&out, n * q_dim).unwrap();
            found.extend(gpu.read_f32s(&entered, n * kv_dim).unwrap());
            found
        };
        assert_eq!(run(true), run(false));
    }

    fn rows(gpu: &Arc<Gpu>, rows: &[Row]) -> Buffer {
        let units: Vec<u32> = rows.iter().flat_map(|r| r.units()).collect();
        let buffer = gpu.alloc(units.len() * 4).unwrap();
        gpu.write_u32s(&buffer, &units).unwrap();
        buffer
    }

    /// Ties, infinities, numbers that are none, and every setting of the sampler.
    #[test]
    fn ids_are_chosen_as_the_sampler_does() {
        use crate::sampler::{Sampler, SamplerConfig};
        use crate::vocab::VOCAB_SIZE;
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        let (n, mut seed) = (40, 0);
        for temperature in [0.0, 0.3, 1.0, 7.5] {
            for (top_k, top_p, min_p) in [
                (None, None, None),
                (Some(1), None, None),
                (Some(5), Some(0.7), None),
                (Some(1000), Some(0.95), Some(0.02)),
                (None, Some(0.3), Some(1.0)),
            ] {
                seed += 1;
                let config = SamplerConfig {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    seed,
                    ban_special: seed % 2 == 0,
                    ignore_eos: seed % 3 == 0,
                    ..SamplerConfig::default()
                };
                let mut sampler = Sampler::new(config).unwrap();
                let mut logits = noise(n * VOCAB_SIZE, seed);
                for (i, logit) in logits.iter_mut().enumerate() {
                    *logit = match (i / VOCAB_SIZE, i % VOCAB_SIZE) {
                        (0, _) => f32::NAN,
                        (1, _) => f32::NEG_INFINITY,
                        (2, 7 | 90) => f32::INFINITY,
                        (3, id) => [0.0, -0.0, 1.0][id % 3],
                        (4, id) if id % 5 == 0 => f32::NAN,
                        (row, _) => *logit * row as f32,
                    };
                }
                let (mut choices, mut expected) = (Vec::new(), Vec::new());
                for row in logits.chunks(VOCAB_SIZE) {
                    choices.extend(sampler.choice(VOCAB_SIZE).unwrap().units());
                    expected.push(u32::from(sampler.sample(row, &[])));
                }
                let on_device = gpu.alloc(choices.len() * 4).unwrap();
                gpu.write_u32s(&on_device, &choices).unwrap();
                let chosen = gpu.alloc(n * 4).unwrap();
                let logits = upload(&gpu, &logits);
                ops.sample(n, VOCAB_SIZE, (&logits, 0), (&on_device, 0), (&chosen, 0))
                    .unwrap();
                let found = gpu.read_u32s(&chosen, n).unwrap();
                assert_eq!(found, expected, "{:?}", sampler.config());
            }
        }
    }

    #[track_caller]
    fn assert_near(what: &str, found: f32, expected: f64) {
        let difference = (f64::from(found) - expected).abs();
        assert!(
            difference <= 1e-5 * expected.abs().max(1.0) || found.is_nan() && expected.is_nan(),
            "{what}: expected {expected}, found {found}"
        );
    }

    /// Norm, gate and entropy of rows of fewer and more columns than a block has threads.
    #[test]
    fn rows_by_themselves_are_as_defined() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        for (n, dim) in [(1, 1), (3, 33), (2, 256), (5, 1000)] {
            let out = gpu.alloc(n * dim * 4).unwrap();
            let (x, weight) = (noise(n * dim, 31), noise(dim, 37));
            let gain = upload(&gpu, &weight);
            let from = upload(&gpu, &x);
            ops.rms_norm(n, (&from, 0), (&gain, dim), 1e-5, (&out, 0))
                .unwrap();
            let found = gpu.read_f32s(&out, n * dim).unwrap();
            for (row, found) in x.chunks(dim).zip(found.chunks(dim)) {
                let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                let scale = 1.0 / (squares / dim as f64 + 1e-5).sqrt();
                for (i, &found) in found.iter().enumerate() {
                    let expected = f64::from(row[i]) * scale * f64::from(weight[i]);
                    assert_near(&format!("norm of {dim}, column {i}"), found, expected);
                }
            }

            let gate_up: Vec<f32> = noise(n * 2 * dim, 41).iter().map(|v| v * 30.0).collect();
            ops.swiglu(n, dim, &upload(&gpu, &gate_up), &out).unwrap();
            let found = gpu.read_f32s(&out, n * dim).unwrap();
            for (row, found) in gate_up.chunks(2 * dim).zip(found.chunks(dim)) {
                for (i, &found) in found.iter().enumerate() {
                    let (gate, up) = (f64::from(row[i]), f64::from(row[dim + i]));
                    let expected = gate / (1.0 + (-gate).exp()) * up;
                    assert_near(&format!("gate of {dim}, column {i}"), found, expected);
                }
            }

            let mut logits: Vec<f32> = noise(n * dim, 43).iter().map(|v| v * 20.0).collect();
            if n > 2 {
                logits[1] = f32::NEG_INFINITY;
                logits[dim] = f32::NAN;
            }
            ops.entropy(n, dim, (&upload(&gpu, &logits), 0), (&out, 0))
                .unwrap();
            let found = gpu.read_f32s(&out, n).unwrap();
            for (row, &found) in logits.chunks(dim).zip(&found) {
                let largest = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
                let weights: Vec<f64> = (row.iter())
                    .map(|&v| (f64::from(v) - largest).exp())
                    .collect();
                let sum: f64 = weights.iter().sum();
                let term = |w: &f64| {
                    if *w == 0.0 {
                        0.0
                    } else {
                        -w / sum * (w / sum).ln()
                    }
                };
                assert_near(
                    &format!("entropy of {dim}"),
                    found,
                    weights.iter().map(term).sum(),
                );
            }
        }
    }

    /// Rings that wrap: what is put is taken, and the maximum is that of what is seen.
    #[test]
    fn rows_of_a_store_are_put_taken_and_pooled() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        let (dim, capacity, n) = (70, 9, 14);
        let mut store = Store::new(&gpu, 3, dim, Some(capacity)).unwrap();
        store.reserve(n).unwrap();
        let x = noise(n * 2 * dim, 47);
        for (position, row) in x.chunks(2 * dim).enumerate() {
            let at = rows(&gpu, &[store.row(position, 0..1)]);
            let row = upload(&gpu, row);
            ops.put_rows(1, &row, (&at, 0), (1, 2), dim).unwrap();
        }
        let put = |position: usize, side: usize| &x[(2 * position + side - 1) * dim..][..dim];
        let seen = [5..6, 6..14, 11..13];
        let list: Vec<Row> = (seen.iter())
            .map(|s| store.row(s.start, s.clone()))
            .collect();
        let list = rows(&gpu, &list);
        let out = gpu.alloc(seen.len() * dim * 4).unwrap();
        for side in [1, 2] {
            ops.take_rows(seen.len(), &out, (&list, 0), side, dim)
                .unwrap();
            let found = gpu.read_f32s(&out, seen.len() * dim).unwrap();
            for (row, s) in found.chunks(dim).zip(&seen) {
                assert_eq!(row, put(s.start, side), "side {side}, row {}", s.start);
            }
            ops.max_rows(seen.len(), (&list, 0), side, dim, &out)
                .unwrap();
            let found = gpu.read_f32s(&out, seen.len() * dim).unwrap();
            for (row, s) in found.chunks(dim).zip(&seen) {
                for (i, &found) in row.iter().enumerate() {
                    let expected = (s.clone()).fold(f32::MIN, |m, p| m.max(put(p, side)[i]));
                    assert_eq!(found, expected, "side {side}, maximum of {s:?}, column {i}");
                }
            }
        }
    }

    /// Queries and keys are turned by their angles, values are not.
    #[test]
    fn positions_turn_queries_and_keys() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 6,
        };
        let (n, q_dim, kv_dim, half) = (3, 24, 12, 3);
        let (qkv, angles) = (noise(n * (q_dim + 2 * kv_dim), 53), noise(n * 2 * half, 59));
        let store = Store::new(&gpu, 2, kv_dim, Some(4)).unwrap();
        let list: Vec<Row> = (0..n).map(|i| store.row(2 + i, 0..1)).collect();
        let list = rows(&gpu, &list);
        let on_device = upload(&gpu, &qkv);
        let turns = upload(&gpu, &angles);
        ops.rope_append(n, heads, &on_device, (&list, 0), (&turns, 0), 0)
            .unwrap();
        let turned = gpu.read_f32s(&on_device, qkv.len()).unwrap();
        let out = gpu.alloc(n * kv_dim * 4).unwrap();
        let side = |side| {
            ops.take_rows(n, &out, (&list, 0), side, kv_dim).unwrap();
            gpu.read_f32s(&out, n * kv_dim).unwrap()
        };
        let (keys, values) = (side(0), side(1));
        for i in 0..n {
            let row = &qkv[i * (q_dim + 2 * kv_dim)..][..q_dim + 2 * kv_dim];
            let angle = &angles[i * 2 * half..][..2 * half];
            let expected = |from: &[f32], at: usize| {
                let pair = at / 2;
                let (cos, sin) = (angle[pair % half], angle[half + pair % half]);
                let (a, b) = (from[2 * pair], from[2 * pair + 1]);
                let turned = [a * cos - b * sin, a * sin + b * cos];
                f64::from(turned[at % 2])
            };
            for at in 0..q_dim {
                let found = turned[i * (q_dim + 2 * kv_dim) + at];
                assert_near(
                    &format!("query {i}, column {at}"),
                    found,
                    expected(&row[..q_dim], at),
                );
            }
            for at in 0..kv_dim {
                let found = keys[i * kv_dim + at];
                assert_near(
                    &format!("key {i}, column {at}"),
                    found,
                    expected(&row[q_dim..], at),
                );
            }
            assert_eq!(
                values[i * kv_dim..][..kv_dim],
                row[q_dim + kv_dim..],
                "value {i}"
            );
        }
    }

    /// Sums of rows of tables of every type: the id's own, and those of the n-grams that end there.
    #[test]
    fn embeddings_are_sums_of_rows_of_tables() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        let types = (DType::FLOATS.into_iter())
            .chain(BlockFormat::ALL.map(DType::Table))
            .chain(BlockFormat::ALL.map(DType::Tiles));
        let (n, n_ids, n_rows) = (4, 50, 37);
        for (cols, dtype) in [40, 300]
            .into_iter()
            .flat_map(|c| types.clone().map(move |t| (c, t)))
        {
            let table = |dtype, rows, seed| {
                let values = noise(rows * cols, seed);
                let tensor = Tensor::from_values(dtype, vec![rows, cols], &values).unwrap();
                (tensor.to_f32_vec(), Matrix::new("table", tensor).unwrap())
            };
            let (own, ids_matrix) = table(DType::F32, n_ids, 61);
            let (ngram, matrix) = table(dtype, n_rows, 67);
            let powers = [1_000_003, -7_046_029_254_386_353_131, i64::MAX];
            let tables = Tables::new(&gpu, &ids_matrix, &[(&matrix, &powers)]).unwrap();
            let ids: Vec<u32> = (0..n as u32 * 3).map(|i| i * 17 % n_ids as u32).collect();
            let on_device = gpu.alloc(ids.len() * 4).unwrap();
            gpu.write_u32s(&on_device, &ids).unwrap();
            let out = gpu.alloc(n * cols * 4).unwrap();
            ops.embed(n, &tables, (&on_device, 0), None, &out).unwrap();
            let found = gpu.read_f32s(&out, n * cols).unwrap();
            for (ids, found) in ids.chunks(3).zip(found.chunks(cols)) {
                let terms = ids.iter().zip(powers);
                let hash = terms.fold(0i64, |sum, (&id, power)| {
                    sum.wrapping_add(i64::from(id).wrapping_mul(power))
                });
                let row = hash.rem_euclid(n_rows as i64) as usize;
                for (i, &found) in found.iter().enumerate() {
                    let expected = own[ids[2] as usize * cols + i] + ngram[row * cols + i];
                    assert_near(&format!("{dtype}, column {i}"), found, expected.into());
                }
            }
        }
    }
}
