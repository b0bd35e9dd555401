//! The products of attention, by their definition.

use super::dot;
use crate::strided_rows::StridedRows;
use crate::view::{View, ViewMut};

/// See [`crate::dot_rows`].
pub(crate) fn dot_rows(
    q: View<'_, f32>,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) {
    let (m, d) = q.shape();
    for i in 0..m {
        for (j, out) in out.row(i).iter_mut().enumerate() {
            let start = j * rows.stride;
            let row: Vec<f32> = (start..start + d).map(|k| rows.values.get(k)).collect();
            *out = scale * dot(q.row(i, 0, d), &row);
        }
    }
}

/// See [`crate::weighted_sum`].
pub(crate) fn weighted_sum(p: View<'_, f32>, rows: StridedRows<'_>, acc: &mut ViewMut<'_, f32>) {
    let (m, n) = p.shape();
    for i in 0..m {
        for j in 0..n {
            for (c, acc) in acc.row(i).iter_mut().enumerate() {
                let value = rows.values.get(j * rows.stride + c);
                *acc = p.get(i, j).mul_add(value, *acc);
            }
        }
    }
}
