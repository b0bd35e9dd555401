//! Work on rows by themselves: rows.cu.

use super::driver::{Arg, Buffer};
use super::ops::{Ops, ROW_THREADS, Slice, u32_arg};
use crate::error::Result;

impl Ops {
    /// RMSNorm of x (n, dim) into y (n, dim).
    pub fn rms_norm(
        &self,
        n: usize,
        x: Slice<'_>,
        (weight, dim): (&Buffer, usize),
        eps: f32,
        y: Slice<'_>,
    ) -> Result<()> {
        let (x, y) = (x.0.after(x.1, n * dim), y.0.after(y.1, n * dim));
        let args = [x, weight.holding(dim), y, u32_arg(dim), Arg::F32(eps)];
        let gpu = weight.gpu();
        // SAFETY: the arguments of `rms_norm` in rows.cu, sizes checked.
        unsafe { gpu.launch(self.rms_norm, [n, 1], ROW_THREADS, &args) }
    }

    /// `out = silu(gate) * up`: gate_up (n, 2 * dim), out (n, dim).
    pub fn swiglu(&self, n: usize, dim: usize, gate_up: &Buffer, out: &Buffer) -> Result<()> {
        let args = [
            gate_up.holding(n * 2 * dim),
            out.holding(n * dim),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `swiglu` in rows.cu, sizes checked.
        unsafe { out.gpu().launch(self.swiglu, [n, 1], ROW_THREADS, &args) }
    }

    /// Entropies in nats of n rows of logits (n, vocab).
    pub fn entropy(&self, n: usize, vocab: usize, logits: Slice<'_>, out: Slice<'_>) -> Result<()> {
        let logits = logits.0.after(logits.1, n * vocab);
        let args = [logits, out.0.after(out.1, n), u32_arg(vocab)];
        let gpu = out.0.gpu();
        // SAFETY: the arguments of `entropy` in rows.cu, sizes checked.
        unsafe { gpu.launch(self.entropy, [n, 1], ROW_THREADS, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::ops::testing::{assert_near, device, noise, upload};

    /// Norm, gate and entropy of rows of fewer and more columns than a block has threads.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn rows_by_themselves_are_as_defined() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        for (n, dim) in [(1, 1), (3, 33), (2, 256), (5, 1000)] {
            let out = gpu.alloc(n * dim * 4).unwrap();
            let (x, weight) = (noise(n * dim, 31), noise(dim, 37));
            let gain = upload(&gpu, &weight);
            let from = upload(&gpu, &x);
            ops.rms_norm(n, (&from, 0), (&gain, dim), 1e-5, (&out, 0))
                .unwrap();
            let found = gpu.read_f32s(&out, n * dim).unwrap();
            for (row, found) in x.chunks(dim).zip(found.chunks(dim)) {
                let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                let scale = 1.0 / (squares / dim as f64 + 1e-5).sqrt();
                for (i, &found) in found.iter().enumerate() {
                    let expected = f64::from(row[i]) * scale * f64::from(weight[i]);
                    assert_near(&format!("norm of {dim}, column {i}"), found, expected);
                }
            }

            let gate_up: Vec<f32> = noise(n * 2 * dim, 41).iter().map(|v| v * 30.0).collect();
            ops.swiglu(n, dim, &upload(&gpu, &gate_up), &out).unwrap();
            let found = gpu.read_f32s(&out, n * dim).unwrap();
            for (row, found) in gate_up.chunks(2 * dim).zip(found.chunks(dim)) {
                for (i, &found) in found.iter().enumerate() {
                    let (gate, up) = (f64::from(row[i]), f64::from(row[dim + i]));
                    let expected = gate / (1.0 + (-gate).exp()) * up;
                    assert_near(&format!("gate of {dim}, column {i}"), found, expected);
                }
            }

            let mut logits: Vec<f32> = noise(n * dim, 43).iter().map(|v| v * 20.0).collect();
            if n > 2 {
                logits[1] = f32::NEG_INFINITY;
                logits[dim] = f32::NAN;
            }
            ops.entropy(n, dim, (&upload(&gpu, &logits), 0), (&out, 0))
                .unwrap();
            let found = gpu.read_f32s(&out, n).unwrap();
            for (row, &found) in logits.chunks(dim).zip(&found) {
                let largest = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
                let weights: Vec<f64> = (row.iter())
                    .map(|&v| (f64::from(v) - largest).exp())
                    .collect();
                let sum: f64 = weights.iter().sum();
                let term = |w: &f64| {
                    if *w == 0.0 {
                        0.0
                    } else {
                        -w / sum * (w / sum).ln()
                    }
                };
                assert_near(
                    &format!("entropy of {dim}"),
                    found,
                    weights.iter().map(term).sum(),
                );
            }
        }
    }
}
