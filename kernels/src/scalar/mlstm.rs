//! The mLSTM cell: see [`crate::mlstm`].

use super::exp::exp;
use super::{LANES, dot, sum, tree};
use crate::mlstm::Step;

pub(crate) fn mlstm_cell(
    step: Step,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    memory: &mut [f32],
    normalizer: &mut [f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    for ((row, q), k) in memory.chunks_exact_mut(v.len().max(1)).zip(q).zip(k) {
        for ((c, v), out) in row.iter_mut().zip(v).zip(&mut *out) {
            *c = (step.input * k).mul_add(*v, step.decay * *c);
            *out = q.mul_add(*c, *out);
        }
    }
    for (n, k) in normalizer.iter_mut().zip(k) {
        *n = step.input.mul_add(*k, step.decay * *n);
    }
    let scale = step.out_scale(dot(q, normalizer));
    out.iter_mut().for_each(|out| *out *= scale);
}

pub(crate) fn gated_norm(x: &mut [f32], weight: &[f32], gate: &[f32], eps: f32) {
    let n = x.len() as f32;
    let mean = sum(x.iter().copied()) / n;
    let mut lanes = [0.0f32; LANES];
    for (i, &x) in x.iter().enumerate() {
        lanes[i % LANES] = (x - mean).mul_add(x - mean, lanes[i % LANES]);
    }
    let scale = 1.0 / (tree(lanes, |a, b| a + b) / n + eps).sqrt();
    for ((x, w), z) in x.iter_mut().zip(weight).zip(gate) {
        *x = (*x - mean) * scale * w / (1.0 + exp(-z));
    }
}
