//! Everything that is not a matrix: softmax, norms, gates, rotations and elementwise sums.

use super::linear::{Bf16, Element, F16, F32, prefetch_address, prefetch_row};
use super::{Simd, dot, fold_vectors, for_vectors};
use crate::scalar::{self, LANES};
use crate::{FloatSlice, StridedRows, View, ViewMut, Weights};
use half::f16;

/// `e^x`, by the operations of [`scalar::exp`].
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    use crate::scalar::exp::{HIGHEST, LN2_HIGH, LN2_LOW, LOG2_E, LOWEST, MAGIC, POLY};
    let x = s.min(s.splat(HIGHEST), x);
    let x = s.max(s.splat(LOWEST), x);
    let t = s.fma(x, s.splat(LOG2_E), s.splat(MAGIC));
    let n = s.sub(t, s.splat(MAGIC));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(POLY[0]);
    for c in &POLY[1..] {
        p = s.fma(p, r, s.splat(*c));
    }
    s.scale(p, n, t)
}

/// The largest element; see the definition in `scalar`.
#[inline(always)]
fn max_of<S: Simd>(s: S, x: &[f32]) -> f32 {
    let lowest = s.splat(f32::NEG_INFINITY);
    let lanes = fold_vectors!(s, lowest, |acc, v in x| s.max(v, acc));
    scalar::tree(s.to_array(lanes), scalar::max)
}

/// See [`crate::softmax`].
#[inline(always)]
pub(crate) fn softmax<S: Simd>(s: S, x: &mut [f32]) {
    let max = s.splat(max_of(s, x));
    for_vectors!(s, |v in x| exp(s, s.sub(v, max)));
    let sum = s.sum(fold_vectors!(s, s.splat(0.0), |acc, v in x| s.add(acc, v)));
    let inverse = s.splat(1.0 / sum);
    for_vectors!(s, |v in x| s.mul(v, inverse));
}

/// See [`crate::log_softmax_entropy`] and the definition in `scalar`.
#[inline(always)]
pub(crate) fn log_softmax_entropy<S: Simd>(s: S, logits: &[f32]) -> f32 {
    let max = s.splat(max_of(s, logits));
    let lowest = s.splat(scalar::LOWEST);
    let zero = s.splat(0.0);
    let sum = fold_vectors!(s, zero, |acc, v in logits| {
        s.add(acc, exp(s, s.max(lowest, s.sub(v, max))))
    });
    let weighted = fold_vectors!(s, zero, |acc, v in logits| {
        let d = s.max(lowest, s.sub(v, max));
        s.fma(exp(s, d), s.sub(s.splat(-0.0), d), acc)
    });
    let sum = s.sum(sum);
    sum.ln() + s.sum(weighted) / sum
}

/// See [`crate::rms_norm`].
#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = s.splat(1.0 / (dot(s, x, x) / x.len() as f32 + eps).sqrt());
    out.copy_from_slice(x);
    for_vectors!(s, |v in out, w in weight| s.mul(s.mul(v, scale), w));
}

/// See [`crate::swiglu`].
#[inline(always)]
pub(crate) fn swiglu<S: Simd>(s: S, gate: &mut [f32], up: &[f32]) {
    let one = s.splat(1.0);
    for_vectors!(s, |z in gate, u in up| {
        let e = exp(s, s.sub(s.splat(-0.0), z));
        s.mul(s.div(z, s.add(one, e)), u)
    });
}

/// Rotates 8 pairs: `y0 = fma(x0, c, -(x1 * s))`, `y1 = fma(x1, c, x0 * s)`.
#[inline(always)]
fn rotate<S: Simd>(s: S, x: S::V, cos: &[f32; LANES / 2], sin: &[f32; LANES / 2]) -> S::V {
    let product = s.mul(s.swap_pairs(x), s.twice(sin));
    s.fma_alternating(x, s.twice(cos), product)
}

/// See [`crate::rope`].
#[inline(always)]
pub(crate) fn rope<S: Simd>(s: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (x, x_tail) = x.as_chunks_mut::<LANES>();
    let (cos, cos_tail) = cos.as_chunks();
    let (sin, sin_tail) = sin.as_chunks();
    for ((x, cos), sin) in x.iter_mut().zip(cos).zip(sin) {
        let y = rotate(s, s.load_array(x), cos, sin);
        // SAFETY: `x` is an array of 16 values.
        unsafe { s.store(x.as_mut_ptr(), y) };
    }
    if !x_tail.is_empty() {
        let (mut cos, mut sin) = ([0.0; LANES / 2], [0.0; LANES / 2]);
        cos[..cos_tail.len()].copy_from_slice(cos_tail);
        sin[..sin_tail.len()].copy_from_slice(sin_tail);
        let y = rotate(s, s.load_padded(x_tail, 0.0), &cos, &sin);
        s.store_first(x_tail, y);
    }
}

/// See [`crate::rope_halves`].
#[inline(always)]
pub(crate) fn rope_halves<S: Simd>(s: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    let vectors = first.chunks_mut(LANES).zip(second.chunks_mut(LANES));
    let angles = cos.chunks(LANES).zip(sin.chunks(LANES));
    for ((x0, x1), (cos, sin)) in vectors.zip(angles) {
        let (a, b) = (s.load_padded(x0, 0.0), s.load_padded(x1, 0.0));
        let (cos, sin) = (s.load_padded(cos, 0.0), s.load_padded(sin, 0.0));
        s.store_first(x0, s.fma(a, cos, s.sub(s.splat(-0.0), s.mul(b, sin))));
        s.store_first(x1, s.fma(b, cos, s.mul(a, sin)));
    }
}

/// See [`crate::add_assign`].
#[inline(always)]
pub(crate) fn add_assign<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    for_vectors!(s, |v in x, w in y| s.add(v, w));
}

/// See [`crate::double_add`].
#[inline(always)]
pub(crate) fn double_add<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    for_vectors!(s, |v in x, w in y| s.add(s.add(v, v), w));
}

/// See [`crate::max_assign`].
#[inline(always)]
pub(crate) fn max_assign<S: Simd>(s: S, acc: &mut [f32], row: &[f32]) {
    for_vectors!(s, |v in acc, w in row| s.max_or_nan(w, v));
}

/// See [`crate::weighted_sum`].
#[inline(always)]
pub(crate) fn weighted_sum<S: Simd>(
    s: S,
    p: View<'_, f32>,
    rows: StridedRows<'_>,
    acc: &mut ViewMut<'_, f32>,
) {
    match rows.values {
        FloatSlice::F32(_) => weighted_sum_of::<S, F32>(s, p, rows, acc),
        FloatSlice::F16(_) => weighted_sum_of::<S, F16>(s, p, rows, acc),
    }
}

#[inline(always)]
fn weighted_sum_of<S: Simd, E: Element>(
    s: S,
    p: View<'_, f32>,
    mut rows: StridedRows<'_>,
    acc: &mut ViewMut<'_, f32>,
) {
    let ((m, n), d) = (p.shape(), acc.shape().1);
    if n == 0 {
        return;
    }
    let stride = rows.stride * E::BYTES;
    let whole = d - d % LANES;
    let mut c = 0;
    while c < whole {
        let vectors = match (whole - c) / LANES {
            8.. if S::WIDE && m == 1 => 8,
            4.. if S::WIDE || m == 1 => 4,
            2.. => 2,
            _ => 1,
        };
        let mut i = 0;
        while i < m {
            i += match (vectors, m - i) {
                (8, _) => weighted_columns::<S, E, 1, 8>(s, p, i, rows, acc, c),
                (4, 4..) if S::WIDE => weighted_columns::<S, E, 4, 4>(s, p, i, rows, acc, c),
                (4, _) => weighted_columns::<S, E, 1, 4>(s, p, i, rows, acc, c),
                (2, 2..) if !S::WIDE => weighted_columns::<S, E, 2, 2>(s, p, i, rows, acc, c),
                (2, _) => weighted_columns::<S, E, 1, 2>(s, p, i, rows, acc, c),
                _ => weighted_columns::<S, E, 1, 1>(s, p, i, rows, acc, c),
            };
            rows.next = FloatSlice::F32(&[]);
        }
        c += vectors * LANES;
    }
    if whole == d {
        return;
    }
    let bytes = (d - whole) * E::BYTES;
    let rows = rows.values.bytes();
    for i in 0..m {
        let tail = &mut acc.row(i)[whole..];
        let mut sum = s.load_padded(tail, 0.0);
        for (j, &p) in p.row(i, 0, n).iter().enumerate() {
            let row = E::load_padded(s, &rows[j * stride + whole * E::BYTES..][..bytes]);
            sum = s.fma(s.splat(p), row, sum);
        }
        s.store_first(tail, sum);
    }
}

/// `VECTORS` vectors from column `c` on of `INPUTS` weighted sums from `i` on: the sums stay in registers over all
/// the rows. Returns `INPUTS`.
#[inline(always)]
fn weighted_columns<S: Simd, E: Element, const INPUTS: usize, const VECTORS: usize>(
    s: S,
    p: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    acc: &mut ViewMut<'_, f32>,
    c: usize,
) -> usize {
    let n = p.shape().1;
    let (stride, next) = (rows.stride * E::BYTES, rows.next.bytes());
    let rows = &rows.values.bytes()[c * E::BYTES..];
    let width = VECTORS * LANES;
    let mut sums = [[s.splat(0.0); VECTORS]; INPUTS];
    for (m, sums) in sums.iter_mut().enumerate() {
        let (acc, _) = acc.row(i + m)[c..c + width].as_chunks::<LANES>();
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = s.load_array(acc);
        }
    }
    let weights: [&[f32]; INPUTS] = core::array::from_fn(|m| p.row(i + m, 0, n));
    assert!(weights.iter().all(|w| w.len() == n));
    // One sum takes whole rows without gaps as one stream, as the dot products do.
    let is_stream = INPUTS == 1 && stride == width * E::BYTES;
    for j in 0..n {
        let row = &rows[j * stride..][..width * E::BYTES];
        match is_stream {
            true => {
                let prefetch = prefetch_address(rows, next, j * stride);
                for line in (0..width * E::BYTES).step_by(64) {
                    s.prefetch_streaming(prefetch.wrapping_add(line));
                }
            }
            false => prefetch_row(s, next, j * stride, acc.shape().1 * E::BYTES),
        }
        let mut p = [s.splat(0.0); INPUTS];
        for (p, weights) in p.iter_mut().zip(weights) {
            *p = s.splat(weights[j]);
        }
        for v in 0..VECTORS {
            // SAFETY: the slice above holds `VECTORS` vectors.
            let value = unsafe { E::load(s, row.as_ptr().add(v * LANES * E::BYTES)) };
            for (sums, p) in sums.iter_mut().zip(p) {
                sums[v] = s.fma(p, value, sums[v]);
            }
        }
    }
    for (m, sums) in sums.into_iter().enumerate() {
        let (acc, _) = acc.row(i + m)[c..c + width].as_chunks_mut::<LANES>();
        for (acc, sum) in acc.iter_mut().zip(sums) {
            *acc = s.to_array(sum);
        }
    }
    INPUTS
}

/// See [`crate::to_f16`].
#[inline(always)]
pub(crate) fn to_f16<S: Simd>(s: S, x: &[f32], out: &mut [f16]) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for (x, out) in x.iter().zip(out) {
        s.store_f16(out, s.load_array(x));
    }
    let mut last = [f16::ZERO; LANES];
    s.store_f16(&mut last, s.load_padded(x_tail, 0.0));
    out_tail.copy_from_slice(&last[..out_tail.len()]);
}

/// See [`crate::add_row`].
#[inline(always)]
pub(crate) fn add_row<S: Simd>(s: S, acc: &mut [f32], row: Weights) {
    match row {
        Weights::F32(b) => add_row_of::<S, F32>(s, acc, b),
        Weights::F16(b) => add_row_of::<S, F16>(s, acc, b),
        Weights::Bf16(b) => add_row_of::<S, Bf16>(s, acc, b),
        Weights::Bf12(_) | Weights::Blocks(..) => panic!("weights of a row depend on each other"),
    }
}

#[inline(always)]
fn add_row_of<S: Simd, E: Element>(s: S, acc: &mut [f32], row: &[u8]) {
    let (acc, tail) = acc.as_chunks_mut::<LANES>();
    let mut row = row.chunks(LANES * E::BYTES);
    for (acc, row) in acc.iter_mut().zip(&mut row) {
        assert_eq!(row.len(), LANES * E::BYTES);
        // SAFETY: the assertion proves 16 elements.
        let w = unsafe { E::load(s, row.as_ptr()) };
        *acc = s.to_array(s.add(s.load_array(acc), w));
    }
    if let (false, Some(row)) = (tail.is_empty(), row.next()) {
        let sum = s.add(s.load_padded(tail, 0.0), E::load_padded(s, row));
        s.store_first(tail, sum);
    }
}
