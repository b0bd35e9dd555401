//! bfloat16 weights times bfloat16 activations, by the definition in [`crate::bf16`].

use super::{LANES, tree};
use crate::bf16::{Bf16Activations, round, stride};
use crate::view::ViewMut;
use crate::weights::Weights;

/// See [`crate::linear_bf16_bf16`].
pub(crate) fn linear_bf16_bf16(w: &[u8], x: &Bf16Activations, out: &mut ViewMut<'_, f32>) {
    let (w, cols) = (Weights::Bf16(w), x.cols);
    for i in 0..out.shape().0 {
        let x = &x.values[i * stride(cols)..][..cols];
        for (r, out) in out.row(i).iter_mut().enumerate() {
            let mut lanes = [0.0f32; LANES];
            for (pair, x) in x.chunks(2).enumerate() {
                let lane = &mut lanes[pair % LANES];
                for (k, x) in x.iter().enumerate().rev() {
                    let x = f32::from_bits(u32::from(*x) << 16);
                    *lane = w.get(r * cols + 2 * pair + k).mul_add(x, *lane);
                }
            }
            *out = tree(lanes, |a, b| a + b);
        }
    }
}

/// See [`crate::round_activations`].
pub(crate) fn round_row(x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round(*x);
    }
}
