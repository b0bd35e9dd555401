//! The two products of attention: queries with keys, and probabilities with values.

use crate::strided_rows::{FloatSlice, StridedRows};
use crate::view::{View, ViewMut};

/// Dot products of queries with keys: `out[i][j] = scale * dot(q[i], rows[j])`.
///
/// - `q`: (m, d); `rows`: n rows of d values; `out`: (m, n).
///
/// # Panics
/// If `rows` does not hold `n` rows, or `out` does not have one row for each query.
pub fn dot_rows(
    isa: crate::Isa,
    q: View<'_, f32>,
    rows: StridedRows<'_>,
    scale: f32,
    mut out: ViewMut<'_, f32>,
) {
    let ((m, d), n) = (q.shape(), out.shape().1);
    assert!(q.has_dense_rows() && out.shape().0 == m, "rows");
    check_rows(rows, n, d);
    let (scalar, out) = (crate::scalar::dot_rows, &mut out);
    match rows.values {
        FloatSlice::F32(_) => dispatch!(
            isa,
            scalar(q, rows, scale, out),
            dot_rows_f32(q, rows, scale, out)
        ),
        FloatSlice::F16(_) => dispatch!(
            isa,
            scalar(q, rows, scale, out),
            dot_rows_f16(q, rows, scale, out)
        ),
    }
}

/// Adds weighted values: `acc[i][c] = fma(p[i][j], rows[j][c], acc[i][c])` for `j` in increasing order.
///
/// The sum is strictly sequential in `j`, so two calls over consecutive ranges of rows give the bits of one.
///
/// - `p`: (m, n); `rows`: n rows of d values; `acc`: (m, d).
///
/// # Panics
/// If `rows` does not hold `n` rows, or `acc` does not have one row for each row of `p`.
pub fn weighted_sum(
    isa: crate::Isa,
    p: View<'_, f32>,
    rows: StridedRows<'_>,
    mut acc: ViewMut<'_, f32>,
) {
    let ((m, n), d) = (p.shape(), acc.shape().1);
    assert!(p.has_dense_rows() && acc.shape().0 == m, "rows");
    check_rows(rows, n, d);
    let (scalar, acc) = (crate::scalar::weighted_sum, &mut acc);
    match rows.values {
        FloatSlice::F32(_) => dispatch!(isa, scalar(p, rows, acc), weighted_sum_f32(p, rows, acc)),
        FloatSlice::F16(_) => dispatch!(isa, scalar(p, rows, acc), weighted_sum_f16(p, rows, acc)),
    }
}

/// Checks that `rows` holds `n` rows of `d` values.
fn check_rows(rows: StridedRows<'_>, n: usize, d: usize) {
    let StridedRows { values, stride, .. } = rows;
    let needed = match n {
        0 => Some(0),
        _ => (n - 1).checked_mul(stride).and_then(|s| s.checked_add(d)),
    };
    assert!(
        needed.is_some_and(|needed| needed <= values.len()),
        "{n} rows of {d} values, {stride} apart, do not fit into {} values",
        values.len()
    );
}
