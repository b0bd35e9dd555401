//! Plain loops: the definition that every other path must agree with, bit for bit.
//!
//! Nothing here is meant to be fast. Every sum has 16 lanes: lane `j` adds the elements whose index is `j`
//! modulo 16, in increasing order, and [`tree`] then adds the lanes in a fixed order. A vector unit of 4, 8 or
//! 16 lanes can do exactly that.

mod attention;
mod bf16;
pub(crate) mod exp;
mod linear;
mod matmul;
mod mlstm;
mod quantized;

pub(crate) use attention::{dot_rows, weighted_sum};
pub(crate) use bf16::{linear_bf16_bf16, round_row};
pub(crate) use linear::linear;
pub(crate) use matmul::{KC, matmul, multiply_adds};
pub(crate) use mlstm::{gated_norm, mlstm_cell};
pub(crate) use quantized::{linear_quantized, quantize_row};

pub(crate) use crate::lanes::{LANES, tree};

use half::f16;

use crate::weights::Weights;
use exp::exp;

/// The sum in the canonical order.
fn sum(x: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, x) in x.enumerate() {
        lanes[i % LANES] += x;
    }
    tree(lanes, |a, b| a + b)
}

/// The larger value, or `b` if they are equal or either is NaN.
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest element, ignoring NaN; minus infinity if there is none.
fn max_of(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for (i, &x) in x.iter().enumerate() {
        lanes[i % LANES] = max(x, lanes[i % LANES]);
    }
    tree(lanes, max)
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[i % LANES] = a.mul_add(*b, lanes[i % LANES]);
    }
    tree(lanes, |a, b| a + b)
}

pub(crate) fn to_f16(x: &[f32], out: &mut [f16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f16::from_f32(*x);
    }
}

pub(crate) fn softmax(x: &mut [f32]) {
    let max = max_of(x);
    for x in x.iter_mut() {
        *x = exp(*x - max);
    }
    let inverse = 1.0 / sum(x.iter().copied());
    for x in x {
        *x *= inverse;
    }
}

/// With `d = logit - max` and `s = sum exp(d)`, the entropy is `ln s + sum(exp(d) * -d) / s`. No term is
/// negative, so nothing cancels. `d` is clamped to where `exp` is 0, so that 0 is never multiplied by minus
/// infinity.
pub(crate) fn log_softmax_entropy(logits: &[f32]) -> f32 {
    let top = max_of(logits);
    let d = |x: f32| max(exp::LOWEST, x - top);
    let s = sum(logits.iter().map(|&x| exp(d(x))));
    let mut lanes = [0.0f32; LANES];
    for (i, &x) in logits.iter().enumerate() {
        lanes[i % LANES] = exp(d(x)).mul_add(-d(x), lanes[i % LANES]);
    }
    s.ln() + tree(lanes, |a, b| a + b) / s
}

pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

pub(crate) fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, &c), &s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (x0, x1) = (pair[0], pair[1]);
        pair[0] = x0.mul_add(c, -(x1 * s));
        pair[1] = x1.mul_add(c, x0 * s);
    }
}

/// Pairs are an element of the first half and one of the second.
pub(crate) fn rope_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for (((x0, x1), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (a, b) = (*x0, *x1);
        *x0 = a.mul_add(c, -(b * s));
        *x1 = b.mul_add(c, a * s);
    }
}

pub(crate) fn add_assign(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

pub(crate) fn double_add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = (*x + *x) + y;
    }
}

pub(crate) fn max_assign(acc: &mut [f32], row: &[f32]) {
    for (acc, &x) in acc.iter_mut().zip(row) {
        if x > *acc || x.is_nan() {
            *acc = x;
        }
    }
}

pub(crate) fn add_row(acc: &mut [f32], row: Weights) {
    for (i, acc) in acc.iter_mut().enumerate() {
        *acc += row.get(i);
    }
}

pub(crate) fn read_row(row: Weights, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = row.get(i);
    }
}
