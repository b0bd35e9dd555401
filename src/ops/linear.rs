//! Matrix products with weights as they lie in the file.

use std::cell::Cell;

use blt_kernels::{
    QuantizedActivations, RoundedActivations, Weights, linear as kernel, linear_quantized,
    linear_rounded, quantize_activation_rows, round_activation_rows,
};

use super::{Compute, Profile};
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

    /// What products need the other side in.
    fn activations(&self, compute: &Compute) -> Activations {
        match (self.tensor.dtype(), compute.profile()) {
            (dtype, _) if dtype.is_quantized() => Activations::Quantized,
            (DType::Bf16, Profile::Fast) => Activations::Rounded,
            _ => Activations::AsTheyAre,
        }
    }
}

/// What a kernel takes.
#[derive(Clone, Copy, PartialEq)]
enum Activations {
    AsTheyAre,
    Rounded,
    Quantized,
}

/// Activations in the other forms that kernels take.
#[derive(Default)]
struct Prepared {
    rounded: RoundedActivations,
    quantized: QuantizedActivations,
}

thread_local! {
    /// Memory for activations in other forms, which goes from product to product. It is taken out while
    /// in use: a thread that waits for others may begin another product meanwhile.
    static PREPARED: Cell<Prepared> = Cell::default();
}

/// `y = x W^T`: x (n, cols), y (n, rows).
pub fn linear(compute: &Compute, w: &Matrix, x: &[f32], y: &mut [f32]) {
    linear_many(compute, x, &mut [(w, y)]);
}

/// `y = x W^T` for several matrices of one input width: x (n, cols), each y (n, rows).
///
/// The same bits as one [`linear`] after the other, but threads are called together once, and x is
/// turned into another form once if the matrices need it.
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
    let needs = |form| (products.iter()).any(|(w, _)| w.activations(compute) == form);
    let (rounds, quantizes) = (needs(Activations::Rounded), needs(Activations::Quantized));
    let mut prepared = match rounds || quantizes {
        true => PREPARED.take(),
        false => Prepared::default(),
    };
    if rounds {
        round(compute, x, cols, &mut prepared.rounded);
    }
    if quantizes {
        quantize(compute, x, cols, &mut prepared.quantized);
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
            tasks.push((part, w.activations(compute), Vec::with_capacity(n)));
        }
        for row in y.chunks_exact_mut(w.rows) {
            for (task, part) in tasks[first_task..]
                .iter_mut()
                .zip(row.chunks_mut(task_rows))
            {
                task.2.push(part);
            }
        }
    }
    let Prepared { rounded, quantized } = &prepared;
    compute.for_each(
        tasks,
        |(weights, form, mut out): (Weights, Activations, Vec<&mut [f32]>)| match form {
            Activations::AsTheyAre => kernel(compute.isa(), weights, cols, x, &mut out),
            Activations::Rounded => linear_rounded(compute.isa(), weights, rounded, &mut out),
            Activations::Quantized => linear_quantized(compute.isa(), weights, quantized, &mut out),
        },
    );
    if rounds || quantizes {
        PREPARED.set(prepared);
    }
}

/// Rows that one task turns into another form, where a value takes about as long as `work`
/// multiply-adds.
fn run_length(compute: &Compute, n: usize, cols: usize, work: usize) -> usize {
    n.div_ceil(compute.n_tasks(work * n * cols).min(n))
}

/// Rounds x (n, cols) to bfloat16, on the threads if there are enough rows.
fn round(compute: &Compute, x: &[f32], cols: usize, out: &mut RoundedActivations) {
    let n = x.len() / cols;
    let run = run_length(compute, n, cols, 8);
    let tasks = x.chunks(run * cols).zip(out.rows_mut(n, cols, run));
    let work = |(x, rows)| round_activation_rows(compute.isa(), x, rows);
    if run == n {
        return tasks.for_each(work);
    }
    compute.for_each(tasks.collect(), work);
}

/// Turns x (n, cols) into 8 bits, on the threads if there are enough rows.
fn quantize(compute: &Compute, x: &[f32], cols: usize, out: &mut QuantizedActivations) {
    let n = x.len() / cols;
    let run = run_length(compute, n, cols, 32);
    let tasks = x.chunks(run * cols).zip(out.rows_mut(n, cols, run));
    let work = |(x, rows)| quantize_activation_rows(compute.isa(), x, rows);
    if run == n {
        return tasks.for_each(work);
    }
    compute.for_each(tasks.collect(), work);
}
