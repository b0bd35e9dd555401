//! One function per kernel: sizes are checked here, so that no call can leave its buffers.

use std::sync::Arc;

use super::Rows;
use super::driver::{Arg, Buffer, Gpu, Kernel};
use crate::error::Result;
use crate::ops::Heads;
use crate::ops::Matrix;
use crate::tensor::DType;

/// Widest head of the attention kernel.
pub const MAX_HEAD_DIM: usize = 256;

/// From so many rows on the tensor cores take over: below, the weights' bytes are the limit.
const MATMUL_ROWS: usize = 8;

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

/// A matrix on the device.
#[derive(Debug)]
pub struct Linear {
    weights: Buffer,
    n_bytes: usize,
    rows: usize,
    cols: usize,
    tile_rows: usize,
    matvec: Kernel,
    matmul: Kernel,
}

fn u32_arg(n: usize) -> Arg {
    Arg::U32(u32::try_from(n).expect("sizes of a model fit 32 bits"))
}

impl Linear {
    /// Copies a matrix to the device as it lies in the file.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the memory does not suffice.
    pub fn new(gpu: &Arc<Gpu>, matrix: &Matrix) -> Result<Linear> {
        let tensor = matrix.tensor();
        let (format, tile_rows) = match tensor.dtype() {
            DType::Tiles(format) => (format.name().to_owned(), 16),
            DType::Table(_) => panic!("a table is for lookups"),
            float => (float.name().to_lowercase(), 1),
        };
        Ok(Linear {
            weights: gpu.upload(tensor.bytes())?,
            n_bytes: tensor.bytes().len(),
            rows: matrix.rows(),
            cols: matrix.cols(),
            tile_rows,
            matvec: gpu.kernel(&format!("matvec_{format}"))?,
            matmul: gpu.kernel(&format!("matmul_{format}"))?,
        })
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes on the device.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The product with x (n, cols) into y (n, rows).
    pub fn apply(&self, n: usize, x: &Buffer, y: &Buffer, mode: Mode) -> Result<()> {
        self.apply_at(n, (x, 0), y, mode)
    }

    /// As [`Linear::apply`]; x begins `skip` floats into its buffer.
    pub fn apply_at(
        &self,
        n: usize,
        (x, skip): (&Buffer, usize),
        y: &Buffer,
        mode: Mode,
    ) -> Result<()> {
        const MATVEC_THREADS: usize = 256;
        let gpu = self.weights.gpu();
        let (rows, cols) = (self.rows, self.cols);
        for first in (0..n).step_by(MAX_ROWS) {
            let n = MAX_ROWS.min(n - first);
            let weights = self.weights.holding_bytes(self.n_bytes);
            let x = x.after(skip + first * cols, n * cols);
            let y = y.after(first * rows, n * rows);
            let mode = Arg::U32(mode as u32);
            // SAFETY: the arguments of `matvec_*` and `matmul_*` in linear.cu; `after` checked x and y, the
            // weights are a whole matrix of that shape.
            unsafe {
                if n < MATMUL_ROWS {
                    let per_block = match self.tile_rows {
                        1 => MATVEC_THREADS / 32,
                        tile => tile,
                    };
                    let args = [weights, x, y, u32_arg(rows), u32_arg(cols), mode];
                    let grid = [rows.div_ceil(per_block), n];
                    gpu.launch(self.matvec, grid, MATVEC_THREADS, &args)?;
                } else {
                    let sizes = [u32_arg(rows), u32_arg(cols), u32_arg(n)];
                    let args = [weights, x, y, sizes[0], sizes[1], sizes[2], mode];
                    let grid = [rows.div_ceil(64), n.div_ceil(64)];
                    gpu.launch(self.matmul, grid, 128, &args)?;
                }
            }
        }
        Ok(())
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
    append: Kernel,
    attention: Kernel,
}

/// Threads of a kernel that gives each row a block.
const ROW_THREADS: usize = 256;

/// What an attention reads.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Head counts and width.
    pub heads: Heads,
    /// Keys, (capacity, n_kv_heads * head_dim): position p in row `p % capacity`.
    pub k: &'a Buffer,
    /// Values, laid out like the keys.
    pub v: &'a Buffer,
    /// Rows of `k` and `v`.
    pub capacity: usize,
    /// First visible position of each row, then one past the last of each.
    pub visible: &'a Buffer,
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
            append: gpu.kernel("append")?,
            attention: gpu.kernel("attention")?,
        })
    }

    /// RMSNorm of x (n, dim), which begins `skip` floats into its buffer, into y (n, dim).
    pub fn rms_norm(
        &self,
        n: usize,
        (x, skip): (&Buffer, usize),
        (weight, dim): (&Buffer, usize),
        eps: f32,
        y: &Buffer,
    ) -> Result<()> {
        let (x, y) = (x.after(skip, n * dim), y.holding(n * dim));
        let args = [x, weight.holding(dim), y, u32_arg(dim), Arg::F32(eps)];
        // SAFETY: the arguments of `rms_norm` in rows.cu, sizes checked.
        unsafe {
            weight
                .gpu()
                .launch(self.rms_norm, [n, 1], ROW_THREADS, &args)
        }
    }

    /// `gate = silu(gate) * up`, both (n, dim).
    pub fn swiglu(&self, n: usize, dim: usize, gate: &Buffer, up: &Buffer) -> Result<()> {
        let args = [gate.holding(n * dim), up.holding(n * dim), u32_arg(dim)];
        // SAFETY: the arguments of `swiglu` in rows.cu, sizes checked.
        unsafe { gate.gpu().launch(self.swiglu, [n, 1], ROW_THREADS, &args) }
    }

    /// Elementwise maxima of the rows `starts[i]..starts[i + 1]` of x into row i of out; `starts` has
    /// one more number than there are rows in out, and ascends.
    pub fn max_rows(&self, x: &Rows, starts: &[u32], list: &Buffer, out: &Buffer) -> Result<()> {
        let n = starts.len() - 1;
        assert!(starts.is_sorted_by(|a, b| a < b));
        assert!(starts[n] as usize <= x.capacity, "rows of x");
        let gpu = out.gpu();
        gpu.write_u32s(list, starts)?;
        let x = (&x.buffer, x.dim);
        let out = out.holding(n * x.1);
        let args = [
            x.0.holding(starts[n] as usize * x.1),
            list.holding(n + 1),
            out,
            u32_arg(x.1),
        ];
        // SAFETY: the arguments of `max_rows` in rows.cu, sizes checked; the list has just been written.
        unsafe { gpu.launch(self.max_rows, [n, 1], ROW_THREADS, &args) }
    }

    /// Entropies in nats of n rows of logits (n, vocab).
    pub fn entropy(&self, n: usize, vocab: usize, logits: &Buffer, out: &Buffer) -> Result<()> {
        let args = [logits.holding(n * vocab), out.holding(n), u32_arg(vocab)];
        // SAFETY: the arguments of `entropy` in rows.cu, sizes checked.
        unsafe { out.gpu().launch(self.entropy, [n, 1], ROW_THREADS, &args) }
    }

    /// Turns the heads of q (n, heads) in place and enters k, turned, and v at positions
    /// `first..first + n` of the rings. `angles`: cosines, then sines, each (n, head_dim / 2).
    pub fn rope_append(
        &self,
        (first, n): (usize, usize),
        heads: Heads,
        (q, k, v): (&Buffer, &Buffer, &Buffer),
        angles: &Buffer,
        (k_ring, v_ring): (&mut Rows, &mut Rows),
    ) -> Result<()> {
        let (q_dim, kv_dim) = (
            heads.n_heads * heads.head_dim,
            heads.n_kv_heads * heads.head_dim,
        );
        let half = heads.head_dim / 2;
        let capacity = k_ring.capacity;
        assert!(v_ring.capacity == capacity && n <= capacity);
        let size = capacity * kv_dim;
        let args = [
            q.holding(n * q_dim),
            k.holding(n * kv_dim),
            v.holding(n * kv_dim),
            angles.holding(n * half),
            angles.after(n * half, n * half),
            k_ring.buffer.holding(size),
            v_ring.buffer.holding(size),
            u32_arg(q_dim),
            u32_arg(kv_dim),
            u32_arg(half),
            u32_arg(first),
            u32_arg(capacity),
        ];
        // SAFETY: the arguments of `rope_append` in rope.cu, sizes checked.
        unsafe { q.gpu().launch(self.rope_append, [n, 1], ROW_THREADS, &args) }
    }

    /// Enters x (n, dim) at rows `first..first + n`.
    pub fn append(&self, (first, n): (usize, usize), x: &Buffer, rows: &mut Rows) -> Result<()> {
        assert!(n <= rows.capacity);
        assert!(rows.limit.is_some() || first + n <= rows.capacity);
        let (dim, capacity) = (rows.dim, rows.capacity);
        let args = [
            x.holding(n * dim),
            rows.buffer.holding(capacity * dim),
            u32_arg(dim),
            u32_arg(first),
            u32_arg(capacity),
        ];
        // SAFETY: the arguments of `append` in rope.cu, sizes checked.
        unsafe { x.gpu().launch(self.append, [n, 1], ROW_THREADS, &args) }
    }

    /// Softmax attention of q (n, heads) into out of the same shape. No visible range is empty.
    pub fn attention(&self, n: usize, q: &Buffer, over: Attention<'_>, out: &Buffer) -> Result<()> {
        let Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        } = over.heads;
        assert!(head_dim <= MAX_HEAD_DIM);
        let (dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let args = [
            q.holding(n * dim),
            over.k.holding(over.capacity * kv_dim),
            over.v.holding(over.capacity * kv_dim),
            over.visible.holding(n),
            over.visible.after(n, n),
            out.holding(n * dim),
            u32_arg(n_kv_heads),
            u32_arg(head_dim),
            u32_arg(over.capacity),
        ];
        assert!(n <= MAX_ROWS, "rows of one attention");
        // SAFETY: the arguments of `attention` in attention.cu, sizes checked; positions are taken modulo
        // the capacity, so no range can leave the rings.
        unsafe { q.gpu().launch(self.attention, [n_heads, n], 128, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        gpu.write_f32s(&buffer, values).unwrap();
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
                (33, 256, 65),
            ] {
                let values = noise(rows * cols, 3);
                let tensor = Tensor::from_values(dtype, vec![rows, cols], &values).unwrap();
                let w = tensor.to_f32_vec();
                let x = noise(n * cols, 5);
                let before = noise(n * rows, 7);
                let matrix = Linear::new(&gpu, &Matrix::new("w", tensor).unwrap()).unwrap();
                for (mode, keep) in [(Mode::Set, 0.0), (Mode::Add, 1.0), (Mode::DoubleAdd, 2.0)] {
                    let y = upload(&gpu, &before);
                    matrix.apply(n, &upload(&gpu, &x), &y, mode).unwrap();
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
        for (n_heads, n_kv_heads, head_dim, capacity) in
            [(1, 1, 8, 400), (4, 2, 64, 300), (3, 1, 200, 300)]
        {
            let heads = Heads {
                n_heads,
                n_kv_heads,
                head_dim,
            };
            let visible = [(0u32, 1u32), (5, 133), (250, 520), (7, 263)];
            let (n, kv_dim) = (visible.len(), n_kv_heads * head_dim);
            let q = noise(n * n_heads * head_dim, 11);
            let (k, v) = (noise(capacity * kv_dim, 13), noise(capacity * kv_dim, 17));
            let ends = visible.iter().map(|v| v.1);
            let list: Vec<u32> = visible.iter().map(|v| v.0).chain(ends).collect();
            let ranges = gpu.alloc(list.len() * 4).unwrap();
            gpu.write_u32s(&ranges, &list).unwrap();
            let out = gpu.alloc(q.len() * 4).unwrap();
            let over = Attention {
                heads,
                k: &upload(&gpu, &k),
                v: &upload(&gpu, &v),
                capacity,
                visible: &ranges,
            };
            ops.attention(n, &upload(&gpu, &q), over, &out).unwrap();
            let out = gpu.read_f32s(&out, q.len()).unwrap();
            for (i, (q, out)) in q.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
                let (from, to) = visible[i / n_heads];
                let kv_head = i % n_heads / (n_heads / n_kv_heads);
                let rows: Vec<usize> = (from..to)
                    .map(|p| p as usize % capacity * kv_dim + kv_head * head_dim)
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
}
