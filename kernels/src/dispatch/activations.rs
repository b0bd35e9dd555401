//! Activations in the forms that quantised and bfloat16 weights are multiplied with.

use crate::bf16::Bf16Activations;
use crate::block::activations::ActivationBlock;
use crate::block::{QuantizedActivations, Terms};
use crate::isa::Isa;
use crate::thread_pool::ThreadPool;
use crate::view::ViewMut;

/// Quantises rows of activations to one or two terms of 8 bits, in blocks of 32 with a scale each, for
/// [`linear_quantized`](crate::linear_quantized).
///
/// A NaN or infinity in a block makes every result that uses the block NaN.
///
/// - `x`: (n, cols).
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn quantize_activations(
    isa: Isa,
    terms: Terms,
    x: &[f32],
    cols: usize,
    out: &mut QuantizedActivations,
) {
    let mut blocks = out.resize(terms, x, cols);
    quantize_rows(isa, terms, x, cols, &mut blocks);
}

/// [`quantize_activations`] on a thread pool, `task_rows` rows per task.
///
/// # Panics
/// If `x` is not a whole number of rows, or `task_rows` is 0.
pub fn quantize_activations_on(
    pool: &ThreadPool,
    task_rows: usize,
    isa: Isa,
    terms: Terms,
    x: &[f32],
    cols: usize,
    out: &mut QuantizedActivations,
) {
    let blocks = out.resize(terms, x, cols);
    let size = (task_rows, blocks.shape().1);
    pool.parts(&mut [blocks], size, |_, row, _, mut part| {
        quantize_rows(isa, terms, &x[row * cols..], cols, &mut part);
    });
}

/// Quantises the first rows of `x`, one for each row of `blocks`.
fn quantize_rows(
    isa: Isa,
    terms: Terms,
    x: &[f32],
    cols: usize,
    blocks: &mut ViewMut<'_, ActivationBlock>,
) {
    for i in 0..blocks.shape().0 {
        let (x, blocks) = (&x[i * cols..][..cols], blocks.row(i));
        dispatch_int8!(
            isa,
            crate::scalar::quantize_row(terms, x, blocks),
            quantize_row(terms, x, blocks)
        );
    }
}

/// Rounds rows of activations to bfloat16, for [`linear_bf16_bf16`](crate::linear_bf16_bf16).
///
/// - `x`: (n, cols).
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn round_activations(isa: Isa, x: &[f32], cols: usize, out: &mut Bf16Activations) {
    let mut values = out.resize(x, cols);
    round_rows(isa, x, cols, &mut values);
}

/// [`round_activations`] on a thread pool, `task_rows` rows per task.
///
/// # Panics
/// If `x` is not a whole number of rows, or `task_rows` is 0.
pub fn round_activations_on(
    pool: &ThreadPool,
    task_rows: usize,
    isa: Isa,
    x: &[f32],
    cols: usize,
    out: &mut Bf16Activations,
) {
    let values = out.resize(x, cols);
    let size = (task_rows, values.shape().1);
    pool.parts(&mut [values], size, |_, row, _, mut part| {
        round_rows(isa, &x[row * cols..], cols, &mut part);
    });
}

/// Rounds the first rows of `x`, one for each row of `out`.
fn round_rows(isa: Isa, x: &[f32], cols: usize, out: &mut ViewMut<'_, u16>) {
    for i in 0..out.shape().0 {
        let (values, padding) = out.row(i).split_at_mut(cols);
        let x = &x[i * cols..][..cols];
        dispatch!(isa, round_row(x, values));
        padding.fill(0);
    }
}
