//! The mLSTM cell (arXiv 2405.04517): a recurrence with a matrix as its memory, one head and one step at a time.
//!
//! ```text
//! i = cap(i), f = cap(f)              cap(x) = 15 tanh(x / 15)
//! m' = max(log sigmoid(f) + m, i)
//! a = exp(log sigmoid(f) + m - m')    b = exp(i - m')
//! C = a C + b k v^T                   n = a n + b k
//! out = q C / sqrt(d) / (max(|q . n| / sqrt(d), exp(-m')) + 1e-6)
//! ```
//!
//! A column's sum over the rows of `C` is taken in increasing order, `q . n` in the order of all dot products. The
//! gates are a few numbers a head: one scalar function computes them for every path.

#[cfg(target_arch = "aarch64")]
use crate::aarch64;
use crate::isa::Isa;
use crate::scalar::exp::exp;
#[cfg(target_arch = "x86_64")]
use crate::x86;
use crate::{portable, scalar};

/// What one head carries from step to step: all zero before the first.
#[derive(Debug)]
pub struct MlstmHead<'a> {
    /// `C`, (key_dim, value_dim).
    pub memory: &'a mut [f32],
    /// `n`, (key_dim).
    pub normalizer: &'a mut [f32],
    /// `m`: memory and normalizer are both kept divided by its exponential.
    pub max: &'a mut f32,
}

/// Gate values before their activations, one of each a head.
#[derive(Debug, Clone, Copy)]
pub struct MlstmGates {
    /// `i`: how much of the new key and value is written.
    pub input: f32,
    /// `f`: how much of the memory stays.
    pub forget: f32,
}

/// Gates saturate softly at this value.
const GATE_CAP: f64 = 15.0;

/// Keeps the quotient of a step finite.
const EPS: f32 = 1e-6;

/// One step's factors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// What memory and normalizer are multiplied by.
    pub decay: f32,
    /// What the key is multiplied by.
    pub input: f32,
    /// `1 / sqrt(key_dim)`.
    pub scale: f32,
    /// The least denominator.
    pub floor: f32,
}

impl Step {
    /// Moves `max` on.
    fn new(gates: MlstmGates, key_dim: usize, max: &mut f32) -> Step {
        let cap = |x: f32| GATE_CAP * (f64::from(x) / GATE_CAP).tanh();
        let (input, forget) = (cap(gates.input), cap(gates.forget));
        let log_forget = (forget.min(0.0) - (-forget.abs()).exp().ln_1p()) as f32;
        let kept = log_forget + *max;
        let new_max = scalar::max(kept, input as f32);
        *max = new_max;
        Step {
            decay: exp(kept - new_max),
            input: exp(input as f32 - new_max),
            scale: 1.0 / (key_dim as f32).sqrt(),
            floor: exp(-new_max),
        }
    }

    /// What the sums over the memory's rows are multiplied by; `reach` is `q . n`.
    pub fn out_scale(self, reach: f32) -> f32 {
        self.scale / (scalar::max((self.scale * reach).abs(), self.floor) + EPS)
    }
}

/// One step of one head: writes `k` and `v` to the memory, then reads it at `q`.
///
/// - `q`, `k`: (key_dim); `v`, `out`: (value_dim).
///
/// # Panics
/// If the lengths do not fit each other.
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
