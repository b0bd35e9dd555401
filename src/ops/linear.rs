//! Products with weight matrices in the element types of their files.

use std::cell::Cell;

use blt_kernels::{
    Bf16Activations, BlockFormat, QuantizedActivations, Terms, ViewMut, linear as kernel,
    linear_bf16_bf16, linear_quantized, quantize_activations_on, round_activations_on,
};

use super::matrix::Matrix;
use super::{Compute, Profile};
use crate::tensor::DType;

/// The form of the activations that a kernel takes.
#[derive(Clone, Copy, PartialEq)]
enum Activations {
    F32,
    Bf16,
    Quantized(Terms),
}

/// The form of the activations that a product needs.
fn activations(w: &Matrix, compute: &Compute) -> Activations {
    match (w.tensor().dtype(), compute.profile()) {
        (dtype, _) if dtype.is_quantized() => Activations::Quantized(w.terms()),
        (DType::Bf16 | DType::Bf12, Profile::Fast) => Activations::Bf16,
        _ => Activations::F32,
    }
}

/// Activations in the forms that need a conversion.
#[derive(Default)]
struct Prepared {
    bf16: Bf16Activations,
    quantized: QuantizedActivations,
}

thread_local! {
    /// Memory for converted activations, reused from product to product. It is taken out while in use, because a thread
    /// that waits for others may start another product meanwhile.
    static PREPARED: Cell<Prepared> = Cell::default();
}

/// `y = x W^T`: x (n, cols), y (n, rows).
pub fn linear(compute: &Compute, w: &Matrix, x: &[f32], y: &mut [f32]) {
    linear_many(compute, x, [(w, y)]);
}

/// `y = x W^T + bias`: x (n, cols), bias (rows), y (n, rows).
pub fn linear_with_bias(compute: &Compute, w: &Matrix, bias: &[f32], x: &[f32], y: &mut [f32]) {
    linear(compute, w, x, y);
    super::rows::add_bias(compute, y, bias);
}

/// `y = x W^T` for several matrices of one input width: x (n, cols), each y (n, rows).
///
/// Gives the same bits as one [`linear`] after the other, but starts the threads once, and converts x once if the matrices
/// need another form.
pub fn linear_many<const MATRICES: usize>(
    compute: &Compute,
    x: &[f32],
    products: [(&Matrix, &mut [f32]); MATRICES],
) {
    let (cols, terms) = (products[0].0.cols(), products[0].0.terms());
    let n = x.len() / cols;
    assert_eq!(x.len(), n * cols, "rows of x");
    for (w, y) in &products {
        assert_eq!(w.cols(), cols, "columns of the matrices");
        assert_eq!(w.terms(), terms, "activations of the matrices");
        assert_eq!(y.len(), n * w.rows(), "rows of y");
        assert!(
            !matches!(w.tensor().dtype(), DType::Table(_)),
            "a table is for lookups"
        );
        compute.observe(w, x);
    }
    if n == 0 {
        return;
    }
    let matrices: [_; MATRICES] = std::array::from_fn(|i| products[i].0);
    let weights = matrices.map(|w| (w.weights(), activations(w, compute)));
    let needs = |form| weights.iter().any(|(_, needed)| *needed == form);
    let rounds = needs(Activations::Bf16);
    let quantizes = needs(Activations::Quantized(terms));
    let mut prepared = match rounds || quantizes {
        true => PREPARED.take(),
        false => Prepared::default(),
    };
    if rounds {
        let (pool, task_rows) = compute.task_rows(n, cols, 8);
        round_activations_on(pool, task_rows, compute.isa(), x, cols, &mut prepared.bf16);
    }
    if quantizes {
        let (pool, task_rows) = compute.task_rows(n, cols, 32);
        let quantized = &mut prepared.quantized;
        quantize_activations_on(pool, task_rows, compute.isa(), terms, x, cols, quantized);
    }

    let rows: usize = matrices.iter().map(|w| w.rows()).sum();
    let n_tasks = compute.n_tasks(n * rows * cols).min(rows);
    // Quantised matrices can only be split between tiles.
    let task_rows = (rows.div_ceil(n_tasks)).next_multiple_of(BlockFormat::TILE_ROWS);
    let Prepared { bf16, quantized } = &prepared;
    let mut outputs = products.map(|(w, y)| ViewMut::strided(y, n, w.rows(), w.rows()));
    compute.parts(&mut outputs, (n, task_rows), |i, _, first, out| {
        let (weights, form) = weights[i];
        let weights = weights.slice_rows(first..first + out.shape().1, cols);
        match form {
            Activations::F32 => kernel(compute.isa(), weights, cols, x, out),
            Activations::Bf16 => linear_bf16_bf16(compute.isa(), weights, bf16, out),
            Activations::Quantized(_) => linear_quantized(compute.isa(), weights, quantized, out),
        }
    });
    if rounds || quantizes {
        PREPARED.set(prepared);
    }
}
