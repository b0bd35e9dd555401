//! Rotary position embedding, on interleaved pairs (spec section 2).

use super::{Compute, ScratchVec};

/// The frequencies of one head: `theta^(-2j/d)`.
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: usize,
    freqs: Vec<f32>, // (head_dim / 2)
}

/// Cosines and sines of some positions.
#[derive(Debug)]
pub struct Angles<'c> {
    half: usize,
    cos: ScratchVec<'c, f32>, // (n, head_dim / 2)
    sin: ScratchVec<'c, f32>, // (n, head_dim / 2)
}

impl Rope {
    /// Frequencies for heads of `head_dim` and base `theta`, rounded as the reference
    /// implementations round them: exponent, power and reciprocal each to f32.
    pub fn new(head_dim: usize, theta: f32) -> Self {
        let freqs = (0..head_dim / 2)
            .map(|j| {
                let exponent = (2 * j) as f32 / head_dim as f32;
                1.0 / f64::from(theta).powf(f64::from(exponent)) as f32
            })
            .collect();
        Rope { head_dim, freqs }
    }

    /// No angles yet, with room for those at `n` positions.
    pub fn angles<'c>(&self, compute: &'c Compute, n: usize) -> Angles<'c> {
        let half = self.head_dim / 2;
        let (cos, sin) = (compute.empty(n * half), compute.empty(n * half));
        Angles { half, cos, sin }
    }

    /// Adds the angles at `positions` to those of this `Rope`; position times frequency is rounded to
    /// f32, as the references do.
    pub fn add_angles(&self, positions: impl Iterator<Item = usize>, to: &mut Angles<'_>) {
        for position in positions {
            for &freq in &self.freqs {
                let (s, c) = f64::from(position as f32 * freq).sin_cos();
                to.cos.extend([c as f32]);
                to.sin.extend([s as f32]);
            }
        }
    }
}

impl Angles<'_> {
    /// Cosines and sines, each (n, head_dim / 2).
    pub fn cos_sin(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Turns every head of every row of x (n, heads * head_dim) in place.
    pub fn apply(&self, compute: &Compute, x: &mut [f32]) {
        let n = self.cos.len() / self.half;
        let dim = x.len() / n;
        compute.rows(x, dim, 4, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                let at = (first + i) * self.half..(first + i + 1) * self.half;
                for head in row.chunks_exact_mut(2 * self.half) {
                    let (cos, sin) = (&self.cos[at.clone()], &self.sin[at.clone()]);
                    blt_kernels::rope(compute.isa(), head, cos, sin);
                }
            }
        });
    }
}
