//! Rotary position embedding, on pairs of neighbours (spec section 2) or of halves.

use std::f32::consts::PI;

use super::{Compute, ScratchVec};
use crate::config::RopeScaling;

/// The frequencies of one head: `theta^(-2j/d)`.
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: usize,
    freqs: Vec<f32>, // (head_dim / 2)
    /// What cosines and sines are multiplied by.
    magnitude: f32,
    pairs: Pairs,
}

/// Which elements of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// Neighbours.
    Interleaved,
    /// Element `i` of the first half and element `i` of the second.
    Halves,
}

/// Cosines and sines of the angles at each position.
#[derive(Debug)]
pub struct Angles<'c> {
    half: usize,
    pairs: Pairs,
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
        Rope {
            head_dim,
            freqs,
            magnitude: 1.0,
            pairs: Pairs::Interleaved,
        }
    }

    /// A [`Rope`] whose pairs are halves, with frequencies scaled for longer texts.
    pub fn of_halves(head_dim: usize, theta: f32, scaling: RopeScaling) -> Self {
        let mut rope = Rope::new(head_dim, theta);
        rope.pairs = Pairs::Halves;
        match scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => rope.freqs.iter_mut().for_each(|f| *f /= factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions,
            } => {
                for freq in &mut rope.freqs {
                    let turns = original_positions / (2.0 * PI / *freq);
                    *freq = match turns {
                        turns if turns > high => *freq,
                        turns if turns < low => *freq / factor,
                        turns => {
                            let share = (turns - low) / (high - low);
                            (1.0 - share) * *freq / factor + share * *freq
                        }
                    };
                }
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_positions,
                attention_factor,
                truncate,
            } => {
                // The pair that turns so often in the original context.
                let pair = |turns: f32| {
                    let length = f64::from(original_positions)
                        / (f64::from(turns) * 2.0 * std::f64::consts::PI);
                    head_dim as f64 * length.ln() / (2.0 * f64::from(theta).ln())
                };
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                for (i, freq) in rope.freqs.iter_mut().enumerate() {
                    let ramp = (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
                    *freq = *freq / factor * ramp + *freq * (1.0 - ramp);
                }
                rope.magnitude = attention_factor;
            }
        }
        rope
    }

    /// Empty angles, with capacity for `n` positions.
    pub fn angles<'c>(&self, compute: &'c Compute, n: usize) -> Angles<'c> {
        let half = self.head_dim / 2;
        let (cos, sin) = (compute.empty(n * half), compute.empty(n * half));
        Angles {
            half,
            pairs: self.pairs,
            cos,
            sin,
        }
    }

    /// Appends the angles at `positions` to `angles`. Position times frequency is rounded to f32, as in the reference
    /// implementations.
    pub fn add_angles(&self, positions: impl Iterator<Item = usize>, angles: &mut Angles<'_>) {
        for position in positions {
            for &freq in &self.freqs {
                let (s, c) = f64::from(position as f32 * freq).sin_cos();
                angles.cos.extend([c as f32 * self.magnitude]);
                angles.sin.extend([s as f32 * self.magnitude]);
            }
        }
    }
}

impl Angles<'_> {
    /// Cosines and sines, each (n, head_dim / 2).
    pub fn cos_sin(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Rotates every head of every row of x (n, heads * head_dim) in place.
    pub fn apply(&self, compute: &Compute, x: &mut [f32]) {
        let n = self.cos.len() / self.half;
        let dim = x.len() / n;
        compute.rows(x, dim, 4, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                let angles = (first + i) * self.half..(first + i + 1) * self.half;
                for head in row.chunks_exact_mut(2 * self.half) {
                    let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles.clone()]);
                    match self.pairs {
                        Pairs::Interleaved => blt_kernels::rope(compute.isa(), head, cos, sin),
                        Pairs::Halves => blt_kernels::rope_halves(compute.isa(), head, cos, sin),
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed from the formula in f64: 128 wide heads, theta 500000, factor 8, original context 8192.
    #[test]
    fn yarn_leaves_high_frequencies_and_slows_low_ones() {
        let plain = Rope::new(128, 500_000.0);
        let attention_factor = 0.1 * 8f32.ln() + 1.0;
        let yarn = RopeScaling::Yarn {
            factor: 8.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_positions: 8192.0,
            attention_factor,
            truncate: true,
        };
        let yarn = Rope::of_halves(128, 500_000.0, yarn);
        assert!((yarn.magnitude - 1.20794).abs() < 1e-5);
        for (pair, before, after) in [
            (18, 2.49554e-2, 2.49554e-2),
            (20, 1.65604e-2, 1.48557e-2),
            (26, 4.83942e-3, 2.84672e-3),
            (34, 9.38474e-4, 1.65613e-4),
            (35, 7.64497e-4, 9.55621e-5),
        ] {
            for (found, expected) in [(plain.freqs[pair], before), (yarn.freqs[pair], after)] {
                assert!(
                    (found - expected).abs() < 1e-5 * expected,
                    "pair {pair}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn llama3_interpolates_between_low_and_high_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        };
        let (plain, scaled) = (
            Rope::new(128, 500_000.0),
            Rope::of_halves(128, 500_000.0, scaling),
        );
        for (freq, scaled) in plain.freqs.iter().zip(&scaled.freqs) {
            let turns = 8192.0 * freq / (2.0 * PI);
            let share = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
            let expected = freq * (share + (1.0 - share) / 8.0);
            assert!(
                (scaled - expected).abs() <= 1e-6 * expected,
                "{freq}: {scaled} {expected}"
            );
        }
    }
}
