//! Operations on single rows: norms, residuals, gates, pooling, lookups.

use blt_kernels::BlockFormat;

use super::{Compute, Matrix};
use crate::tensor::DType;

/// Tasks of elementwise operations take a multiple of this many elements.
const CHUNK: usize = 1024;

/// RMSNorm of every row: x (n, dim), weight (dim), out (n, dim).
pub fn rms_norm(compute: &Compute, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    assert_eq!(x.len(), out.len());
    compute.rows(out, dim, 4, |first, out| {
        let x = x[first * dim..].chunks_exact(dim);
        for (x, out) in x.zip(out.chunks_exact_mut(dim)) {
            blt_kernels::rms_norm(compute.isa(), x, weight, eps, out);
        }
    });
}

/// `gate = silu(gate) * up`, elementwise.
pub fn swiglu(compute: &Compute, gate: &mut [f32], up: &[f32]) {
    compute.rows(gate, CHUNK, 16, |first, gate| {
        let up = &up[first * CHUNK..][..gate.len()];
        blt_kernels::swiglu(compute.isa(), gate, up);
    });
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

/// `x += y`: the residual of a transformer layer.
pub fn add_assign(compute: &Compute, x: &mut [f32], y: &[f32]) {
    compute.rows(x, CHUNK, 4, |first, x| {
        let y = &y[first * CHUNK..][..x.len()];
        blt_kernels::add_assign(compute.isa(), x, y);
    });
}

/// Adds `bias` (dim) to every row of x (n, dim).
pub fn add_bias(compute: &Compute, x: &mut [f32], bias: &[f32]) {
    compute.rows(x, bias.len(), 4, |_, rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            blt_kernels::add_assign(compute.isa(), row, bias);
        }
    });
}

/// The dot product of two vectors.
pub fn dot(compute: &Compute, a: &[f32], b: &[f32]) -> f32 {
    blt_kernels::dot(compute.isa(), a, b)
}

/// `x = 2 x + y`: the double residual around a cross-attention (spec sections 6 and 7).
pub fn double_add(compute: &Compute, x: &mut [f32], y: &[f32]) {
    compute.rows(x, CHUNK, 4, |first, x| {
        let y = &y[first * CHUNK..][..x.len()];
        blt_kernels::double_add(compute.isa(), x, y);
    });
}

/// Elementwise maximum of the rows of x (n, dim), n >= 1, into out (dim).
pub fn max_rows(compute: &Compute, x: &[f32], out: &mut [f32]) {
    let dim = out.len();
    out.copy_from_slice(&x[..dim]);
    for row in x[dim..].chunks_exact(dim) {
        blt_kernels::max_assign(compute.isa(), out, row);
    }
}

/// `acc += table[row]`: an embedding lookup.
pub fn add_table_row(compute: &Compute, table: &Matrix, row: usize, acc: &mut [f32]) {
    let weights = table.weights();
    let Some(format) = table.tensor().dtype().block_format() else {
        let row = weights.slice_rows(row..row + 1, table.cols());
        return blt_kernels::add_row(compute.isa(), acc, row);
    };
    let DType::Table(_) = table.tensor().dtype() else {
        let mut values = compute.buffer(acc.len());
        blt_kernels::decode_row(weights, row, &mut values);
        return blt_kernels::add_assign(compute.isa(), acc, &values);
    };
    // The pieces of the row are rows of a matrix that is one chunk wide.
    let width = format.chunk_cols();
    let first = row * table.cols().div_ceil(width);
    let mut piece = [0.0; BlockFormat::MAX_CHUNK_COLS];
    for (i, acc) in acc.chunks_mut(width).enumerate() {
        blt_kernels::decode_row(weights, first + i, &mut piece[..width]);
        blt_kernels::add_assign(compute.isa(), acc, &piece[..acc.len()]);
    }
}

/// Entropy in nats of the distribution softmax(`logits`).
pub fn entropy(compute: &Compute, logits: &[f32]) -> f32 {
    blt_kernels::log_softmax_entropy(compute.isa(), logits)
}
