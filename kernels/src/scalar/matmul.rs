//! The product of two matrices, by its definition.

use crate::matmul::Accumulate;
use crate::view::{View, ViewMut};

/// The largest number of `k` in a block. In bfloat16 a block has that many pairs of `k`.
pub(crate) const KC: usize = 256;

/// See [`crate::matmul`].
pub(crate) fn matmul(
    accumulate: Accumulate,
    c: &mut ViewMut<'_, f32>,
    scale: f32,
    a: View<'_, f32>,
    b: View<'_, f32>,
) {
    let k = a.shape().1;
    let block = k.div_ceil(k.div_ceil(KC));
    for i in 0..c.shape().0 {
        for j in 0..c.shape().1 {
            let c = &mut c.row(i)[j];
            for first in (0..k).step_by(block) {
                let block = first..(first + block).min(k);
                let dot = block.fold(0.0f32, |sum, k| a.get(i, k).mul_add(b.get(k, j), sum));
                *c = match accumulate {
                    Accumulate::Overwrite if first == 0 => scale * dot,
                    _ => scale.mul_add(dot, *c),
                };
            }
        }
    }
}

/// See [`crate::multiply_adds`].
pub(crate) fn multiply_adds(rounds: usize) -> (u64, f32) {
    let sum = (0..rounds).fold(0.0f32, |sum, _| {
        core::hint::black_box(0.5f32).mul_add(0.25, sum)
    });
    (2 * rounds as u64, sum)
}
