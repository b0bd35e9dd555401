//! The mLSTM cell: see [`crate::mlstm`].
//!
//! The columns of the memory are independent, so any number of columns side by side gives the bits of the definition.
//! The columns that fit into registers are taken together, so that the memory is read and written once, in long runs.

use super::linear::dot;
use super::rows::{exp, fold_vectors, for_vectors};
use super::simd::Simd;
use crate::mlstm::Step;
use crate::scalar::LANES;

#[inline(always)]
#[allow(clippy::too_many_arguments)] // a head's inputs and its state
pub(crate) fn mlstm_cell<S: Simd>(
    s: S,
    step: Step,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    memory: &mut [f32],
    normalizer: &mut [f32],
    out: &mut [f32],
) {
    let whole = v.len() - v.len() % LANES;
    let mut c = 0;
    while c < whole {
        c += match (whole - c) / LANES {
            8.. if S::WIDE => columns::<S, 8>(s, step, (q, k, v), memory, c, out),
            4.. if S::WIDE => columns::<S, 4>(s, step, (q, k, v), memory, c, out),
            2.. => columns::<S, 2>(s, step, (q, k, v), memory, c, out),
            _ => columns::<S, 1>(s, step, (q, k, v), memory, c, out),
        };
    }
    if whole < v.len() {
        last_columns(s, step, (q, k, v), memory, whole, out);
    }
    let (input, decay) = (s.splat(step.input), s.splat(step.decay));
    for_vectors!(s, |n in normalizer, k in k| s.fma(input, k, s.mul(decay, n)));
    let scale = s.splat(step.out_scale(dot(s, q, normalizer)));
    for_vectors!(s, |x in out| s.mul(x, scale));
}

/// `VECTORS` vectors of columns from `c` on. Returns the number of columns.
#[inline(always)]
fn columns<S: Simd, const VECTORS: usize>(
    s: S,
    step: Step,
    (q, k, v): (&[f32], &[f32], &[f32]),
    memory: &mut [f32],
    c: usize,
    out: &mut [f32],
) -> usize {
    let width = VECTORS * LANES;
    let (values, _) = v[c..c + width].as_chunks::<LANES>();
    let mut v_lanes = [s.splat(0.0); VECTORS];
    for (lanes, values) in v_lanes.iter_mut().zip(values) {
        *lanes = s.load_array(values);
    }
    let mut sums = [s.splat(0.0); VECTORS];
    let decay = s.splat(step.decay);
    let rows = memory.chunks_exact_mut(v.len());
    for ((row, &q), &k) in rows.zip(q).zip(k) {
        let row = &mut row[c..c + width];
        let (write, read) = (s.splat(step.input * k), s.splat(q));
        for j in 0..VECTORS {
            // SAFETY: the slice above holds `VECTORS` vectors.
            unsafe {
                let p = row.as_mut_ptr().add(j * LANES);
                let new = s.fma(write, v_lanes[j], s.mul(decay, s.load(p)));
                s.store(p, new);
                sums[j] = s.fma(read, new, sums[j]);
            }
        }
    }
    let (outs, _) = out[c..c + width].as_chunks_mut::<LANES>();
    for (out, sum) in outs.iter_mut().zip(sums) {
        *out = s.to_array(sum);
    }
    width
}

/// The columns from `c` on, fewer than a vector.
#[inline(always)]
fn last_columns<S: Simd>(
    s: S,
    step: Step,
    (q, k, v): (&[f32], &[f32], &[f32]),
    memory: &mut [f32],
    c: usize,
    out: &mut [f32],
) {
    let (values, decay) = (s.load_padded(&v[c..], 0.0), s.splat(step.decay));
    let mut sum = s.splat(0.0);
    let rows = memory.chunks_exact_mut(v.len());
    for ((row, &q), &k) in rows.zip(q).zip(k) {
        let old = s.load_padded(&row[c..], 0.0);
        let new = s.fma(s.splat(step.input * k), values, s.mul(decay, old));
        s.store_first(&mut row[c..], new);
        sum = s.fma(s.splat(q), new, sum);
    }
    s.store_first(&mut out[c..], sum);
}

#[inline(always)]
pub(crate) fn gated_norm<S: Simd>(s: S, x: &mut [f32], weight: &[f32], gate: &[f32], eps: f32) {
    let (n, zero) = (x.len() as f32, s.splat(0.0));
    let mean = s.sum(fold_vectors!(s, zero, |acc, v in x| s.add(acc, v))) / n;
    let mean = s.splat(mean);
    let squares = s.sum(fold_vectors!(s, zero, |acc, v in x| {
        let d = s.sub(v, mean);
        s.fma(d, d, acc)
    }));
    let scale = s.splat(1.0 / (squares / n + eps).sqrt());
    for_vectors!(s, |v in x, w in weight| s.mul(s.mul(s.sub(v, mean), scale), w));
    let one = s.splat(1.0);
    for_vectors!(s, |v in x, z in gate| {
        let e = exp(s, s.sub(s.splat(-0.0), z));
        s.div(v, s.add(one, e))
    });
}
