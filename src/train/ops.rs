//! Norms, rotary positions, the gated activation, dropout and the loss, forward and backward.
//!
//! Rows are flat: x (n, dim). Each function states which values its backward pass needs.

use super::float::{Float, dot, max_of, sum_of, vectorized};
use super::pooled_vec::PooledVec;
use crate::random::mix;
use crate::vocab::{Id, VOCAB_SIZE};

/// `y = x * w / rms(x)` row by row. Returns y (n, dim) and the reciprocals 1 / rms (n).
pub fn rms_norm<F: Float>(x: &[F], w: &[F], eps: f32) -> (PooledVec<F>, PooledVec<F>) {
    let dim = w.len();
    let mut y = PooledVec::any(x.len());
    let mut inv = PooledVec::any(x.len() / dim);
    let eps = F::of(eps.into());
    vectorized(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(dim).zip(y.chunks_exact_mut(dim));
            for ((x, y), inv) in rows.zip(inv.iter_mut()) {
                let mean = dot(x, x) / F::of(dim as f64);
                *inv = F::ONE / (mean + eps).sqrt();
                for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * *inv * w;
                }
            }
        },
    );
    (y, inv)
}

/// [`rms_norm`] from the reciprocals that it returned.
pub fn rms_norm_again<F: Float>(x: &[F], w: &[F], inv: &[F]) -> PooledVec<F> {
    let dim = w.len();
    let mut y = PooledVec::any(x.len());
    vectorized(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(dim).zip(y.chunks_exact_mut(dim));
            for ((x, y), &inv) in rows.zip(inv) {
                for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * inv * w;
                }
            }
        },
    );
    y
}

/// Back through [`rms_norm`]: adds to dx (n, dim) and, if it is trained, to dw (dim).
pub fn rms_norm_backward<F: Float>(
    x: &[F],
    w: &[F],
    inv: &[F],
    dy: &[F],
    dx: &mut [F],
    dw: Option<&mut [F]>,
) {
    let dim = w.len();
    vectorized(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(dim).zip(dy.chunks_exact(dim));
            for (((x, dy), dx), &inv) in rows.zip(dx.chunks_exact_mut(dim)).zip(inv) {
                let s = sum_of(dim, |c| dy[c] * w[c] * x[c]);
                let s = s * inv * inv * inv / F::of(dim as f64);
                for c in 0..dim {
                    dx[c] += dy[c] * w[c] * inv - x[c] * s;
                }
            }
        },
    );
    let Some(dw) = dw else { return };
    vectorized(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(dim).zip(dy.chunks_exact(dim));
            for ((x, dy), &inv) in rows.zip(inv) {
                for c in 0..dim {
                    dw[c] += dy[c] * x[c] * inv;
                }
            }
        },
    );
}

/// Cosines and sines of positions, (positions, head_dim / 2) each.
#[derive(Debug, Clone)]
pub struct Angles<F> {
    half: usize,
    cos: Vec<F>,
    sin: Vec<F>,
}

impl<F: Float> Angles<F> {
    /// Angles of the positions below `n`, rounded to f32 as inference rounds them
    /// (`ops::rope`).
    pub fn new(n: usize, head_dim: usize, theta: f32) -> Self {
        let half = head_dim / 2;
        let freqs: Vec<f32> = (0..half)
            .map(|j| {
                let exponent = (2 * j) as f32 / head_dim as f32;
                1.0 / f64::from(theta).powf(f64::from(exponent)) as f32
            })
            .collect();
        let mut angles = Angles {
            half,
            cos: Vec::with_capacity(n * half),
            sin: Vec::with_capacity(n * half),
        };
        for position in 0..n {
            for freq in &freqs {
                let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
                angles.cos.push(F::of(f64::from(cos as f32)));
                angles.sin.push(F::of(f64::from(sin as f32)));
            }
        }
        angles
    }

    /// Turns all heads of the rows of x, whose positions are given. `back` turns the other way,
    /// which is the gradient's way.
    pub fn turn(&self, x: &mut [F], positions: &[u32], back: bool) {
        let dim = x.len() / positions.len().max(1);
        if dim == 0 {
            return;
        }
        let sign = if back { -F::ONE } else { F::ONE };
        vectorized(
            #[inline(always)]
            || {
                for (row, &p) in x.chunks_exact_mut(dim).zip(positions) {
                    let start = p as usize * self.half;
                    let (cos, sin) = (
                        &self.cos[start..][..self.half],
                        &self.sin[start..][..self.half],
                    );
                    for head in row.chunks_exact_mut(2 * self.half) {
                        for ((pair, &c), &s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                            let (a, b, s) = (pair[0], pair[1], s * sign);
                            pair[0] = a * c - b * s;
                            pair[1] = a * s + b * c;
                        }
                    }
                }
            },
        );
    }
}

/// `silu(gate) * up`, elementwise.
pub fn swiglu<F: Float>(gate: &[F], up: &[F]) -> PooledVec<F> {
    let mut h = PooledVec::any(gate.len());
    vectorized(
        #[inline(always)]
        || {
            for ((h, &g), &u) in h.iter_mut().zip(gate).zip(up) {
                *h = g / (F::ONE + (-g).exp()) * u;
            }
        },
    );
    h
}

/// Back through [`swiglu`]: gate and up become their gradients.
pub fn swiglu_backward<F: Float>(gate: &mut [F], up: &mut [F], dh: &[F]) {
    vectorized(
        #[inline(always)]
        || {
            for ((g, u), &d) in gate.iter_mut().zip(up.iter_mut()).zip(dh) {
                let s = F::ONE / (F::ONE + (-*g).exp());
                let silu = *g * s;
                let slope = s * (F::ONE + *g * (F::ONE - s));
                *g = d * *u * slope;
                *u = d * silu;
            }
        },
    );
}

/// Dropout. Which elements are dropped is a function of the seed, the site and the index, so the backward pass
/// needs no mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability that an element becomes 0.
    pub p: f64,
    /// Probability that a position goes without its n-gram embeddings.
    pub hash: f64,
    /// Fresh for every step and shard.
    pub seed: u64,
}

impl Dropout {
    /// Zeroes some elements and scales the others so that the mean stays the same. The gradient is the same
    /// operation. `site` identifies a place of the network.
    pub fn apply<F: Float>(&self, site: u64, x: &mut [F]) {
        if self.p <= 0.0 {
            return;
        }
        self.drop(self.p, F::of(1.0 / (1.0 - self.p)), site, x);
    }

    /// Zeroes elements with probability `p` and multiplies the others by `kept`.
    fn drop<F: Float>(&self, p: f64, kept: F, site: u64, x: &mut [F]) {
        let limit = (p * 4_294_967_296.0) as u32;
        let base = mix(self.seed ^ mix(site));
        vectorized(
            #[inline(always)]
            || {
                for (i, x) in x.iter_mut().enumerate() {
                    let draw = (mix(base.wrapping_add(i as u64)) >> 32) as u32;
                    *x = if draw < limit { F::ZERO } else { *x * kept };
                }
            },
        );
    }

    /// The factor of the n-gram embeddings of each of `n` positions, 0 or 1; `None`: 1 everywhere. What is kept is
    /// not enlarged: the sum with the byte embedding goes into a norm, and inference, which drops nothing, would
    /// see a scale that training never did.
    pub fn of_ngrams<F: Float>(&self, site: u64, n: usize) -> Option<PooledVec<F>> {
        if self.hash <= 0.0 {
            return None;
        }
        let mut shares = PooledVec::any(n);
        shares.fill(F::ONE);
        self.drop(self.hash, F::ONE, site, &mut shares);
        Some(shares)
    }
}

/// The quality of the predictions at some positions, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Sum of -ln p(target), in nats.
    pub nats: f64,
    /// Positions.
    pub n: usize,
    /// Positions whose target is a byte, not a special id.
    pub n_bytes: usize,
    /// Positions whose likeliest id is the target.
    pub n_right: usize,
    /// Sum of the likeliest ids' probabilities.
    pub confidence: f64,
    /// Patches among them.
    pub n_patches: usize,
}

impl Score {
    /// Adds another's sums.
    pub fn add(&mut self, other: &Score) {
        self.nats += other.nats;
        self.n += other.n;
        self.n_bytes += other.n_bytes;
        self.n_right += other.n_right;
        self.confidence += other.confidence;
        self.n_patches += other.n_patches;
    }

    /// Mean loss in nats per id.
    pub fn loss(&self) -> f64 {
        self.nats / self.n.max(1) as f64
    }

    /// Bits for everything, special ids included, per byte.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.n_bytes.max(1) as f64
    }
}

/// Cross-entropy of logits (n, vocab) against targets (n). The logits become their gradients for a
/// loss that is the sum over positions times `weight`.
pub fn cross_entropy<F: Float>(logits: &mut [F], targets: &[Id], weight: f64) -> Score {
    let mut score = Score::default();
    let weight = F::of(weight);
    for (row, &target) in logits.chunks_exact_mut(VOCAB_SIZE).zip(targets) {
        let target = usize::from(target);
        let (max, sum, shifted) = vectorized(
            #[inline(always)]
            || {
                let max = max_of(row);
                let shifted = row[target] - max;
                for l in row.iter_mut() {
                    *l = (*l - max).exp();
                }
                (max, sum_of(row.len(), |i| row[i]), shifted)
            },
        );
        // A NaN among the logits is passed over by `max_of`, but reaches the sum.
        score.nats += sum.f64().ln() - shifted.f64() + 0.0 * max.f64();
        score.n += 1;
        score.n_bytes += usize::from(target >= usize::from(crate::vocab::BYTE_OFFSET));
        score.n_right += usize::from(shifted >= F::ZERO);
        score.confidence += 1.0 / sum.f64();
        let scale = weight / sum;
        vectorized(
            #[inline(always)]
            || row.iter_mut().for_each(|l| *l *= scale),
        );
        row[target] -= weight;
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_n_gram_dropout_keeps_the_scale() {
        let n = 20_000;
        let dropout = Dropout {
            p: 0.25,
            hash: 0.4,
            seed: 3,
        };
        let mut x = vec![1.0f64; n];
        dropout.apply(7, &mut x);
        let kept = 1.0 / (1.0 - dropout.p);
        assert!(x.iter().all(|&x| x == 0.0 || x == kept));
        assert!((x.iter().sum::<f64>() / n as f64 - 1.0).abs() < 0.02);
        let factors = dropout.of_ngrams::<f64>(2, n).unwrap();
        assert!(factors.iter().all(|&f| f == 0.0 || f == 1.0));
        let kept = factors.iter().sum::<f64>() / n as f64;
        assert!((kept - 0.6).abs() < 0.02, "{kept}");
        assert!(
            Dropout {
                hash: 0.0,
                ..dropout
            }
            .of_ngrams::<f64>(2, n)
            .is_none()
        );
    }
}
