//! Functions of one or two rows of activations: softmax, norms, gates, rotations, elementwise sums.

use half::f16;

use crate::isa::Isa;

/// The dot product of two vectors of equal length.
///
/// # Panics
/// If the lengths differ.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    dispatch!(isa, dot(a, b))
}

/// Rounds to half floats, to nearest, ties to even. A value beyond their range becomes infinite.
///
/// # Panics
/// If the lengths differ.
pub fn to_f16(isa: Isa, x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len());
    dispatch!(isa, to_f16(x, out))
}

/// Turns scores into probabilities in place: `exp(x - max) / sum exp(x - max)`.
///
/// An empty slice stays empty. A NaN or +infinity makes every element NaN, and so do scores that are all
/// minus infinity.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    dispatch!(isa, softmax(x))
}

/// The entropy, in nats, of the distribution softmax(`logits`): `-sum p ln p`.
///
/// Accurate to 2e-6 for a few hundred logits. A logit of minus infinity has probability 0. A NaN, a +infinity
/// or an empty slice gives NaN.
pub fn log_softmax_entropy(isa: Isa, logits: &[f32]) -> f32 {
    dispatch!(isa, log_softmax_entropy(logits))
}

/// Root-mean-square norm of one row: `out = x * (1 / sqrt(mean(x^2) + eps)) * weight`.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), weight.len());
    assert_eq!(x.len(), out.len());
    dispatch!(isa, rms_norm(x, weight, eps, out))
}

/// The gate of a feed-forward layer: `gate = silu(gate) * up` with `silu(z) = z / (1 + exp(-z))`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    dispatch!(isa, swiglu(gate, up))
}

/// Rotates the interleaved pairs of one head in place: `y0 = x0 * c - x1 * s`, `y1 = x1 * c + x0 * s`.
///
/// - `x`: (d); `cos`, `sin`: (d / 2) each.
///
/// # Panics
/// If the lengths do not match.
pub fn rope(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!(Some(x.len()), cos.len().checked_mul(2));
    assert_eq!(cos.len(), sin.len());
    dispatch!(isa, rope(x, cos, sin))
}

/// [`rope`] where a pair is an element of the first half of the head and the element of the second half with the same
/// index.
///
/// - `x`: (d); `cos`, `sin`: (d / 2) each.
///
/// # Panics
/// If the lengths do not match.
pub fn rope_halves(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!(Some(x.len()), cos.len().checked_mul(2));
    assert_eq!(cos.len(), sin.len());
    dispatch!(isa, rope_halves(x, cos, sin))
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    dispatch!(isa, add_assign(x, y))
}

/// `x = (x + x) + y`.
///
/// # Panics
/// If the lengths differ.
pub fn double_add(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    dispatch!(isa, double_add(x, y))
}

/// Elementwise maximum: `acc = row` where `row` is larger or NaN. A NaN on either side stays NaN. Of two zeros
/// with different signs, the one in `acc` stays.
///
/// # Panics
/// If the lengths differ.
pub fn max_assign(isa: Isa, acc: &mut [f32], row: &[f32]) {
    assert_eq!(acc.len(), row.len());
    dispatch!(isa, max_assign(acc, row))
}
