//! Products with weight matrices: linear.cu.

use std::sync::Arc;

use super::driver::{Arg, Buffer, Gpu, Kernel};
use super::ops::{MAX_ROWS, Slice, u32_arg};
use crate::error::{Error, Result};
use crate::ops::Matrix;
use crate::tensor::DType;

/// Most rows whose weights are read once for all of them; only these are normed or gated on the way.
pub const MATVEC_ROWS: usize = 32;

/// Side of the square of outputs that a block of `matmul_*` has, and the columns whose scales it makes at a time:
/// as in linear.cu.
const SIDE: usize = 128;
const SCALE_COLS: usize = 256;
/// Blocks that all of a GPU should have: where outputs alone are fewer, columns are dealt out too. A number that
/// is the same for all GPUs, and with it the order of sums.
const BLOCKS: usize = 256;

/// Partial sums of products of many rows whose columns are split among blocks, before `add_slices` adds them. All
/// products of a device share it.
#[derive(Debug)]
pub struct SplitSums(Buffer);

impl SplitSums {
    /// Allocates room for the largest product.
    ///
    /// # Errors
    /// [`Error::Device`] if the memory does not suffice.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Arc<SplitSums>> {
        Ok(Arc::new(SplitSums(gpu.alloc(BLOCKS * SIDE * SIDE * 4)?)))
    }
}

/// An RMSNorm: gain and epsilon.
#[derive(Debug)]
pub struct Norm {
    /// Gain, (dim).
    pub weight: Buffer,
    /// Columns.
    pub dim: usize,
    /// Added to the mean of squares.
    pub eps: f32,
}

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

/// Matrices of one input width on the device, their outputs side by side.
#[derive(Debug)]
pub struct Linear {
    segments: Vec<Segment>,
    rows: usize,
    cols: usize,
    split_sums: Arc<SplitSums>,
    join: Kernel,
}

/// Matrices of one type.
#[derive(Debug)]
struct Segment {
    weights: Buffer,
    n_bytes: usize,
    /// Its first output.
    first: usize,
    rows: usize,
    matvec8: Kernel,
    matvec32: Kernel,
    matmul: Kernel,
}

impl Linear {
    /// Copies matrices to the device as they are stored in the file, packed ones unpacked.
    ///
    /// # Errors
    /// [`Error::Device`] if the memory does not suffice; [`Error::Unsupported`] for matrices of 2^32 values.
    pub fn new(
        gpu: &Arc<Gpu>,
        split_sums: &Arc<SplitSums>,
        matrices: &[&Matrix],
    ) -> Result<Linear> {
        let cols = matrices[0].cols();
        let mut segments: Vec<Segment> = Vec::new();
        let mut rows = 0;
        let mut left = matrices;
        while let Some(&matrix) = left.first() {
            let of = |m: &Matrix| m.tensor().dtype().unpacked();
            let dtype = of(matrix);
            let (format, tile_rows) = match dtype {
                DType::Tiles(format) => (format.name().to_owned(), 16),
                DType::Table(_) => panic!("a table is for lookups"),
                float => (float.name().to_lowercase(), 1),
            };
            // Those that follow in the same type go into the same launch, as long as tiles are full.
            let mut n = 1;
            while n < left.len()
                && of(left[n]) == dtype
                && left[n - 1].rows().is_multiple_of(tile_rows)
            {
                n += 1;
            }
            let (now, later) = left.split_at(n);
            left = later;
            assert!(now.iter().all(|m| m.cols() == cols), "columns");
            let n_bytes = now.iter().map(|m| m.tensor().unpacked_size()).sum();
            let weights = gpu.alloc(n_bytes)?;
            let mut at = 0;
            for matrix in now {
                let bytes = matrix.tensor().unpacked_bytes();
                gpu.write((&weights, at), &bytes)?;
                at += bytes.len();
            }
            let segment_rows: usize = now.iter().map(|m| m.rows()).sum();
            if u32::try_from(segment_rows * cols).is_err() {
                return Err(Error::Unsupported(format!(
                    "matrices on a GPU: expected fewer than 2^32 values, found {segment_rows} x {cols}"
                )));
            }
            segments.push(Segment {
                weights,
                n_bytes,
                first: rows,
                rows: segment_rows,
                matvec8: gpu.kernel(&format!("matvec8_{format}"))?,
                matvec32: gpu.kernel(&format!("matvec32_{format}"))?,
                matmul: gpu.kernel(&format!("matmul_{format}"))?,
            });
            rows += segment_rows;
        }
        Ok(Linear {
            segments,
            rows,
            cols,
            split_sums: Arc::clone(split_sums),
            join: gpu.kernel("add_slices")?,
        })
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
    pub fn apply(&self, n: usize, x: Slice<'_>, y: Slice<'_>, mode: Mode) -> Result<()> {
        for segment in &self.segments {
            // In pieces of one size: none has few rows if not all have.
            let pieces = n.div_ceil(self.max_rows());
            for piece in 0..pieces {
                let first = n * piece / pieces;
                let n = n * (piece + 1) / pieces - first;
                let x = (x.0, x.1 + first * self.cols);
                let y = (y.0, y.1 + first * self.rows);
                match n {
                    0..=MATVEC_ROWS => self.matvec(segment, n, (x, None), y, (mode, 0))?,
                    _ => self.matmul(segment, n, x, y, mode)?,
                }
            }
        }
        Ok(())
    }

    /// Most rows of one launch.
    fn max_rows(&self) -> usize {
        // `matmul_*` takes whole runs of 32 columns, and counts the values of x in 32 bits.
        match self.cols.is_multiple_of(32) {
            true => MAX_ROWS.min(u32::MAX as usize / self.cols),
            false => MATVEC_ROWS,
        }
    }

    /// The product with the norm of x (n, cols) into y (n, rows), for up to [`MATVEC_ROWS`].
    pub fn apply_normed(&self, n: usize, norm: &Norm, x: Slice<'_>, y: Slice<'_>) -> Result<()> {
        assert!(n <= MATVEC_ROWS);
        let set = (Mode::Set, 0);
        (self.segments.iter())
            .try_for_each(|segment| self.matvec(segment, n, (x, Some(norm)), y, set))
    }

    /// Whether [`Linear::apply_gated`] can: two matrices of one shape and type.
    pub fn is_gated(&self) -> bool {
        self.segments.len() == 1 && self.rows.is_multiple_of(2)
    }

    /// `y = silu(g) * u` for the product g of the first matrix and u of the second with the norm of x
    /// (n, cols), into y (n, rows / 2), for up to [`MATVEC_ROWS`].
    pub fn apply_gated(&self, n: usize, norm: &Norm, x: Slice<'_>, y: Slice<'_>) -> Result<()> {
        assert!(n <= MATVEC_ROWS && self.is_gated());
        let up = self.rows / 2;
        self.matvec(&self.segments[0], n, (x, Some(norm)), y, (Mode::Set, up))
    }

    /// `up`: where the ups begin, if the rows before it are their gates; or 0.
    fn matvec(
        &self,
        segment: &Segment,
        n: usize,
        (x, norm): (Slice<'_>, Option<&Norm>),
        y: Slice<'_>,
        (mode, up): (Mode, usize),
    ) -> Result<()> {
        let gpu = segment.weights.gpu();
        let gated = up > 0;
        let (rows, stride) = match gated {
            true => (up, up),
            false => (segment.rows, self.rows),
        };
        let args = [
            segment.weights.holding_bytes(segment.n_bytes),
            x.0.after(x.1, n * self.cols),
            y.0.after(y.1 + segment.first, n * stride - segment.first),
            norm.map_or(Arg::Pointer(0), |norm| norm.weight.holding(self.cols)),
            u32_arg(rows),
            u32_arg(self.cols),
            u32_arg(stride),
            u32_arg(n),
            Arg::U32(mode as u32),
            u32_arg(up),
            Arg::F32(norm.map_or(0.0, |norm| norm.eps)),
        ];
        let kernel = match n {
            0..=8 => segment.matvec8,
            _ => segment.matvec32,
        };
        let grid = [rows.div_ceil(if gated { 8 } else { 16 }), 1];
        // SAFETY: the arguments of `matvec8_*` and `matvec32_*` in linear.cu; x, y and the gain are checked,
        // the weights are whole matrices of that shape, and with `up` half of their rows are gates.
        unsafe { gpu.launch(kernel, grid, 256, &args) }
    }

    fn matmul(
        &self,
        segment: &Segment,
        n: usize,
        x: Slice<'_>,
        y: Slice<'_>,
        mode: Mode,
    ) -> Result<()> {
        let gpu = segment.weights.gpu();
        let (w_tiles, x_tiles) = (segment.rows.div_ceil(SIDE), n.div_ceil(SIDE));
        let chunks = self.cols.div_ceil(SCALE_COLS);
        let in_slice = chunks.div_ceil((BLOCKS / (w_tiles * x_tiles)).max(1));
        let slices = chunks.div_ceil(in_slice);
        let (sums, stride, first_mode) = match slices {
            1 => (self.target(segment, n, y), self.rows, mode),
            _ => {
                let sums = self.split_sums.0.holding(slices * n * segment.rows);
                (sums, segment.rows, Mode::Set)
            }
        };
        let args = [
            segment.weights.holding_bytes(segment.n_bytes),
            x.0.after(x.1, n * self.cols),
            sums,
            u32_arg(segment.rows),
            u32_arg(self.cols),
            u32_arg(stride),
            u32_arg(n),
            Arg::U32(first_mode as u32),
            u32_arg(in_slice * SCALE_COLS / 32),
        ];
        // SAFETY: the arguments of `matmul_*` in linear.cu; x and y or the slices are checked, the weights are
        // whole matrices of that shape.
        unsafe { gpu.launch(segment.matmul, [w_tiles, x_tiles, slices], 256, &args)? };
        match slices {
            1 => Ok(()),
            _ => self.join(segment, slices, n, y, mode),
        }
    }

    /// Where a segment's n rows of y begin.
    fn target(&self, segment: &Segment, n: usize, y: Slice<'_>) -> Arg {
        y.0.after(y.1 + segment.first, n * self.rows - segment.first)
    }

    /// Adds slices of sums into n rows of y.
    fn join(
        &self,
        segment: &Segment,
        slices: usize,
        n: usize,
        y: Slice<'_>,
        mode: Mode,
    ) -> Result<()> {
        let args = [
            self.split_sums.0.holding(slices * n * segment.rows),
            self.target(segment, n, y),
            u32_arg(segment.rows),
            u32_arg(self.rows),
            Arg::U32(mode as u32),
            u32_arg(slices),
        ];
        let grid = [segment.rows.div_ceil(256), n];
        // SAFETY: the arguments of `add_slices` in linear.cu, sizes checked.
        unsafe { segment.weights.gpu().launch(self.join, grid, 256, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::ops::testing::{device, noise, upload};
    use crate::tensor::Tensor;
    use blt_kernels::BlockFormat;

    /// Matrices (rows, cols) of some types side by side times n rows of very different sizes, in every mode, against
    /// sums in double precision.
    fn assert_products(
        gpu: &Arc<Gpu>,
        split_sums: &Arc<SplitSums>,
        types: &[DType],
        (rows, cols, n): (usize, usize, usize),
    ) {
        // Two bfloat16 keep 16 bits of a term; sums of up to 544 terms of size 1.
        const TOLERANCE: f64 = 300.0 / 65536.0 / 16.0;
        let size = |row: usize| 2f32.powi(20 * (row as i32 % 5 - 2));
        let sized = |width: usize, seed| -> Vec<f32> {
            let values = noise(n * width, seed).into_iter().enumerate();
            values.map(|(i, v)| v * size(i / width)).collect()
        };
        let tensor = |(i, &dtype): (usize, &DType)| {
            let values = noise(rows * cols, 3 + 2 * i as u64);
            Tensor::from_values(dtype, vec![rows, cols], &values).unwrap()
        };
        let tensors: Vec<Tensor> = types.iter().enumerate().map(tensor).collect();
        let w: Vec<f32> = tensors.iter().flat_map(|t| t.to_f32_vec()).collect();
        let matrix = |t| Matrix::new("w", t).unwrap();
        let matrices: Vec<Matrix> = tensors.into_iter().map(matrix).collect();
        let linear = Linear::new(gpu, split_sums, &matrices.iter().collect::<Vec<_>>()).unwrap();
        let rows = linear.rows();
        let (x, before) = (sized(cols, 5), sized(rows, 7));
        let from = upload(gpu, &x);
        let dots: Vec<f64> = (0..n * rows)
            .map(|i| {
                let (row, out) = (&x[i / rows * cols..][..cols], &w[i % rows * cols..][..cols]);
                let terms = row.iter().zip(out);
                terms.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            })
            .collect();
        for (mode, keep) in [(Mode::Set, 0.0), (Mode::Add, 1.0), (Mode::DoubleAdd, 2.0)] {
            let y = upload(gpu, &before);
            linear.apply(n, (&from, 0), (&y, 0), mode).unwrap();
            let y = gpu.read_f32s(&y, n * rows).unwrap();
            for (i, (&found, dot)) in y.iter().zip(&dots).enumerate() {
                let expected = dot + keep * f64::from(before[i]);
                let difference = (f64::from(found) - expected).abs() / f64::from(size(i / rows));
                assert!(
                    difference < TOLERANCE,
                    "{types:?} {rows} x {cols}, {n} rows, {mode:?}: value {i}: expected {expected}, found {found}"
                );
            }
        }
    }

    /// Products of every type, of few and of many rows, with sizes on and off every edge.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn products_are_those_of_the_weights_values() {
        let gpu = device();
        let split_sums = SplitSums::new(&gpu).unwrap();
        let types = (DType::FLOATS.into_iter()).chain(BlockFormat::ALL.map(DType::Tiles));
        for dtype in types {
            for shape in [
                (1, 1, 1),
                (17, 33, 3),
                (64, 64, 8),
                (70, 300, 9),
                (40, 96, 32),
                (33, 288, 65),
                (136, 64, 130),
                (24, 100, 40),
                (24, 544, 40),
            ] {
                assert_products(&gpu, &split_sums, &[dtype], shape);
            }
        }
    }

    /// Norm and gate on the way, against both done apart in double precision, and the same bits for a row
    /// whatever rows come with it.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn products_norm_and_gate_on_the_way() {
        let gpu = device();
        // As above, for terms of up to four times the size: normed.
        const TOLERANCE: f64 = 300.0 / 65536.0 / 4.0;
        let types = (DType::FLOATS.into_iter()).chain(BlockFormat::ALL.map(DType::Tiles));
        for dtype in types {
            for (rows, cols, n) in [(16, 33, 1), (48, 256, 8), (32, 300, 9), (16, 96, 32)] {
                let values = |seed| noise(rows * cols, seed);
                let tensor =
                    |seed| Tensor::from_values(dtype, vec![rows, cols], &values(seed)).unwrap();
                let (gate, up) = (tensor(3), tensor(71));
                let (g, u) = (gate.to_f32_vec(), up.to_f32_vec());
                let matrix = |t| Matrix::new("w", t).unwrap();
                let w = Linear::new(
                    &gpu,
                    &SplitSums::new(&gpu).unwrap(),
                    &[&matrix(gate), &matrix(up)],
                )
                .unwrap();
                assert!(w.is_gated());
                let (x, gain) = (noise(n * cols, 5), noise(cols, 9));
                let norm = Norm {
                    weight: upload(&gpu, &gain),
                    dim: cols,
                    eps: 1e-5,
                };
                let run = |n: usize, first: usize| {
                    let x = (&upload(&gpu, &x), first * cols);
                    let (y, z) = (
                        gpu.alloc(n * 2 * rows * 4).unwrap(),
                        gpu.alloc(n * rows * 4).unwrap(),
                    );
                    w.apply_normed(n, &norm, x, (&y, 0)).unwrap();
                    w.apply_gated(n, &norm, x, (&z, 0)).unwrap();
                    let y = gpu.read_f32s(&y, n * 2 * rows).unwrap();
                    (y, gpu.read_f32s(&z, n * rows).unwrap())
                };
                let (y, z) = run(n, 0);
                let alone = run(1, n - 1);
                assert_eq!(
                    alone.0,
                    y[(n - 1) * 2 * rows..],
                    "{dtype}, the last row alone"
                );
                assert_eq!(alone.1, z[(n - 1) * rows..], "{dtype}, the last row alone");
                for (i, x) in x.chunks(cols).enumerate() {
                    let squares: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
                    let scale = 1.0 / (squares / cols as f64 + f64::from(1e-5f32)).sqrt();
                    let dot = |w: &[f32], row: usize| -> f64 {
                        let terms = w[row * cols..][..cols].iter().zip(x).zip(&gain);
                        terms
                            .map(|((&w, &x), &g)| {
                                f64::from(w) * f64::from(x) * f64::from(g) * scale
                            })
                            .sum()
                    };
                    for row in 0..rows {
                        let (g, u) = (dot(&g, row), dot(&u, row));
                        let found = [
                            y[i * 2 * rows + row],
                            y[(i * 2 + 1) * rows + row],
                            z[i * rows + row],
                        ];
                        let gated = g / (1.0 + (-g).exp()) * u;
                        let size = g.abs().max(u.abs()).max(1.0);
                        for (found, expected, size) in [
                            (found[0], g, 1.0),
                            (found[1], u, 1.0),
                            (found[2], gated, size),
                        ] {
                            assert!(
                                (f64::from(found) - expected).abs() < TOLERANCE * size,
                                "{dtype} {rows} x {cols}, {n} rows, row {i}, output {row}: expected {expected}, found {found}"
                            );
                        }
                    }
                }
            }
        }
    }
}
