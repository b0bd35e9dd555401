//! Matrix products with weights as they lie in the file.

use std::cell::Cell;

use blt_kernels::{
    QuantizedActivations, Weights, linear as kernel, linear_quantized, quantize_activation_rows,
};

use super::Compute;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A weight matrix, row-major (out, in), or a table of rows, in the element type of its file.
#[derive(Debug, Clone)]
pub struct Matrix {
    tensor: Tensor,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// A matrix of a two-dimensional tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the tensor has another rank or a type no kernel reads.
    pub fn new(name: &str, tensor: Tensor) -> Result<Self> {
        let &[rows, cols] = tensor.shape() else {
            return Err(Error::tensor(
                name,
                format!("expected two dimensions, found {:?}", tensor.shape()),
            ));
        };
        Ok(Matrix { tensor, rows, cols })
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The weights in the form kernels take.
    pub(super) fn weights(&self) -> Weights<'_> {
        let bytes = self.tensor.bytes();
        match self.tensor.dtype() {
            DType::F32 => Weights::F32(bytes),
            DType::F16 => Weights::F16(bytes),
            DType::Bf16 => Weights::Bf16(bytes),
            DType::Tiles(format) | DType::Table(format) => Weights::Blocks(format, bytes),
        }
    }

    /// Whether products need the other side in 8 bits.
    fn is_quantized(&self) -> bool {
        self.tensor.dtype().is_quantized()
    }
}

thread_local! {
    /// Memory for activations in 8 bits, which goes from product to product. It is taken out while
    /// in use: a thread that waits for others may begin another product meanwhile.
    static QUANTIZED: Cell<QuantizedActivations> = Cell::new(QuantizedActivations::new());
}

/// `y = x W^T`: x (n, cols), y (n, rows).
pub fn linear(compute: &Compute, w: &Matrix, x: &[f32], y: &mut [f32]) {
    linear_many(compute, x, &mut [(w, y)]);
}

/// `y = x W^T` for several matrices of one input width: x (n, cols), each y (n, rows).
///
/// The same bits as one [`linear`] after the other, but threads are called together once, and x is
/// turned into 8 bits once if quantised matrices need it.
pub fn linear_many(compute: &Compute, x: &[f32], products: &mut [(&Matrix, &mut [f32])]) {
    let Some(cols) = products.first().map(|(w, _)| w.cols) else {
        return;
    };
    let n = x.len() / cols;
    assert_eq!(x.len(), n * cols, "rows of x");
    for (w, y) in products.iter() {
        assert_eq!(w.cols, cols, "columns of the matrices");
        assert_eq!(y.len(), n * w.rows, "rows of y");
        assert!(
            !matches!(w.tensor.dtype(), DType::Table(_)),
            "a table is for lookups"
        );
        compute.observe(w, x);
    }
    if n == 0 {
        return;
    }
    let mut quantized = QuantizedActivations::new();
    if products.iter().any(|(w, _)| w.is_quantized()) {
        quantized = QUANTIZED.take();
        quantize(compute, x, cols, &mut quantized);
    }

    let rows: usize = products.iter().map(|(w, _)| w.rows).sum();
    let n_tasks = compute.n_tasks(n * rows * cols).min(rows);
    let mut tasks = Vec::with_capacity(n_tasks + products.len());
    for (w, y) in products.iter_mut() {
        let weights = w.weights();
        // Whole tiles of 16 rows where there are enough, and where they lie in tiles.
        let task_rows = match rows.div_ceil(n_tasks) {
            r if r > 16 => r.next_multiple_of(16),
            r => r.next_multiple_of(weights.row_multiple()),
        };
        let first_task = tasks.len();
        for first in (0..w.rows).step_by(task_rows) {
            let part = weights.slice_rows(first..(first + task_rows).min(w.rows), cols);
            tasks.push((part, Vec::with_capacity(n)));
        }
        for row in y.chunks_exact_mut(w.rows) {
            for (task, part) in tasks[first_task..]
                .iter_mut()
                .zip(row.chunks_mut(task_rows))
            {
                task.1.push(part);
            }
        }
    }
    let quantized_x = &quantized;
    compute.for_each(
        tasks,
        |(weights, mut out): (Weights, Vec<&mut [f32]>)| match weights {
            Weights::Blocks(..) => linear_quantized(compute.isa(), weights, quantized_x, &mut out),
            _ => kernel(compute.isa(), weights, cols, x, &mut out),
        },
    );
    if quantized.n() > 0 {
        QUANTIZED.set(quantized);
    }
}

/// Turns x (n, cols) into 8 bits, on the threads if there are enough rows.
fn quantize(compute: &Compute, x: &[f32], cols: usize, out: &mut QuantizedActivations) {
    /// A value takes about as long as so many multiply-adds.
    const WORK: usize = 32;
    let n = x.len() / cols;
    let run = n.div_ceil(compute.n_tasks(WORK * x.len()).min(n));
    let tasks = x.chunks(run * cols).zip(out.rows_mut(n, cols, run));
    let work = |(x, rows)| quantize_activation_rows(compute.isa(), x, rows);
    if run == n {
        return tasks.for_each(work);
    }
    compute.for_each(tasks.collect(), work);
}
