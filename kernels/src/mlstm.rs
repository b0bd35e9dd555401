//! The mLSTM cell (arXiv 2405.04517): a recurrence whose memory is a matrix, for one head and one step at a time.
//!
//! ```text
//! i = cap(i), f = cap(f)              cap(x) = 15 tanh(x / 15)
//! m' = max(log sigmoid(f) + m, i)
//! a = exp(log sigmoid(f) + m - m')    b = exp(i - m')
//! C = a C + b k v^T                   n = a n + b k
//! out = q C / sqrt(d) / (max(|q . n| / sqrt(d), exp(-m')) + 1e-6)
//! ```
//!
//! The sum of a column over the rows of `C` runs in increasing order, and `q . n` in the order of all dot products. The
//! gates are a few numbers per head, so one scalar function computes them for every path.

use crate::scalar::{self, exp::exp};

/// The state of one head. All zero before the first step.
#[derive(Debug)]
pub struct MlstmHead<'a> {
    /// `C`, (key_dim, value_dim).
    pub memory: &'a mut [f32],
    /// `n`, (key_dim).
    pub normalizer: &'a mut [f32],
    /// `m`: the memory and the normalizer are both stored divided by `exp(m)`.
    pub max: &'a mut f32,
}

/// The gate values of one head before their activations.
#[derive(Debug, Clone, Copy)]
pub struct MlstmGates {
    /// `i`: the input gate, which weighs the new key and value.
    pub input: f32,
    /// `f`: the forget gate, which weighs the old memory.
    pub forget: f32,
}

/// Gates saturate softly at this value.
const GATE_CAP: f64 = 15.0;

/// Keeps the quotient of a step finite.
const EPS: f32 = 1e-6;

/// The factors of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// The factor of the memory and the normalizer.
    pub decay: f32,
    /// The factor of the key.
    pub input: f32,
    /// `1 / sqrt(key_dim)`.
    pub scale: f32,
    /// The smallest denominator.
    pub floor: f32,
}

impl Step {
    /// The factors of the next step. Updates `max`.
    pub fn new(gates: MlstmGates, key_dim: usize, max: &mut f32) -> Step {
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

    /// The factor of the sums over the rows of the memory, where `reach` is `q . n`.
    pub fn out_scale(self, reach: f32) -> f32 {
        self.scale / (scalar::max((self.scale * reach).abs(), self.floor) + EPS)
    }
}
