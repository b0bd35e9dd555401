//! The mLSTM cell and the norm of its output.

use crate::isa::Isa;
use crate::mlstm::{MlstmGates, MlstmHead, Step};

/// One step of one head: writes `k` and `v` to the memory, then reads it at `q`.
///
/// - `q`, `k`: (key_dim); `v`, `out`: (value_dim).
///
/// # Panics
/// If the lengths do not match.
pub fn mlstm_step(
    isa: Isa,
    head: MlstmHead<'_>,
    gates: MlstmGates,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
) {
    let MlstmHead {
        memory,
        normalizer,
        max,
    } = head;
    let (key_dim, value_dim) = (k.len(), v.len());
    assert_eq!((q.len(), out.len()), (key_dim, value_dim), "queries");
    assert_eq!(normalizer.len(), key_dim, "normalizer");
    assert_eq!(Some(memory.len()), key_dim.checked_mul(value_dim), "memory");
    let step = Step::new(gates, key_dim, max);
    dispatch!(isa, mlstm_cell(step, q, k, v, memory, normalizer, out))
}

/// The norm of one mLSTM head and its output gate: `x = (x - mean) / sqrt(var + eps) * weight * sigmoid(gate)`, where
/// `var` is the mean of the squared differences.
///
/// # Panics
/// If the lengths differ.
pub fn gated_norm(isa: Isa, x: &mut [f32], weight: &[f32], gate: &[f32], eps: f32) {
    assert_eq!((x.len(), x.len()), (weight.len(), gate.len()));
    dispatch!(isa, gated_norm(x, weight, gate, eps))
}
