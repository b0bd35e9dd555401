//! Products with weight matrices: linear.cu.

use std::sync::Arc;

use super::driver::{Arg, Buffer, Gpu, Kernel};
use super::ops::{At, MAX_ROWS, u32_arg};
use crate::error::Result;
use crate::ops::Matrix;
use crate::tensor::DType;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::ops::testing::{device, noise, upload};
    use crate::tensor::Tensor;
    use blt_kernels::BlockFormat;

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
}
