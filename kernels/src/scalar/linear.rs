//! Matrix times vectors, by its definition.

use super::{LANES, tree};
use crate::view::ViewMut;
use crate::weights::Weights;

/// `out[i][r]` = dot(row `r` of `w`, row `i` of `x`), in the order of [`super::dot`].
pub(crate) fn linear(w: Weights, cols: usize, x: &[f32], out: &mut ViewMut<'_, f32>) {
    for i in 0..out.shape().0 {
        let x = &x[i * cols..][..cols];
        for (r, out) in out.row(i).iter_mut().enumerate() {
            let mut lanes = [0.0f32; LANES];
            for (k, x) in x.iter().enumerate() {
                lanes[k % LANES] = w.get(r * cols + k).mul_add(*x, lanes[k % LANES]);
            }
            *out = tree(lanes, |a, b| a + b);
        }
    }
}
