//! Rows of activations: softmax, norms, gates, rotations and elementwise sums.

use half::f16;

use super::element::{Bf16, Element, F16, F32};
use super::linear::dot;
use super::simd::Simd;
use crate::scalar::{self, LANES};
use crate::weights::Weights;

/// Replaces each vector `$v` of the slice `$x` by `$body`, which may also name the vector `$w` of the
/// slice `$y`. Lanes past the end see zeros.
///
/// A macro, because a closure might not be inlined, and then every instruction is a call.
macro_rules! for_vectors {
    ($s:ident, |$v:ident in $x:ident $(, $w:ident in $y:ident)?| $body:expr) => {{
        let (x, x_tail) = $x.as_chunks_mut::<LANES>();
        $(let (y, y_tail) = $y.as_chunks::<LANES>();)?
        #[allow(clippy::needless_range_loop)]
        for i in 0..x.len() {
            let $v = $s.load_array(&x[i]);
            $(let $w = $s.load_array(&y[i]);)?
            let v = $body;
            // SAFETY: an array of 16 values.
            unsafe { $s.store(x[i].as_mut_ptr(), v) };
        }
        if !x_tail.is_empty() {
            let $v = $s.load_padded(x_tail, 0.0);
            $(let $w = $s.load_padded(y_tail, 0.0);)?
            let v = $body;
            $s.store_first(x_tail, v);
        }
    }};
}

pub(super) use for_vectors;

/// Folds the vectors `$v` of the slice `$x` into `$acc` by `$body`. Lanes without an element in the last
/// vector do not change.
macro_rules! fold_vectors {
    ($s:ident, $start:expr, |$acc:ident, $v:ident in $x:ident| $body:expr) => {{
        let (x, tail) = $x.as_chunks::<LANES>();
        let mut $acc = $start;
        for x in x {
            let $v = $s.load_array(x);
            $acc = $body;
        }
        if !tail.is_empty() {
            let $v = $s.load_padded(tail, 0.0);
            $acc = $s.first(tail.len(), $body, $acc);
        }
        $acc
    }};
}
pub(super) use fold_vectors;

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
    let lowest = s.splat(scalar::exp::LOWEST);
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
        Weights::Bf12(_) | Weights::Blocks(..) => panic!("the row is not an array of weights"),
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
