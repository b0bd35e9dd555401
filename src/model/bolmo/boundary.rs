//! Where patches end in a text that is read: a byte ends one if its state and the next byte's point apart.

use std::f32::consts::LN_2;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::model::weights::matrix;
use crate::ops::{self, Compute, Matrix, ScratchVec};

/// Cosines above this count as this: it bounds the logarithm.
const MAX_COSINE: f32 = 0.999;

/// The least length that a vector is divided by.
const MIN_NORM: f32 = 1e-12;

/// The boundary predictor's weights.
#[derive(Debug)]
pub struct Boundary {
    q: Matrix, // (dim, dim)
    k: Matrix, // (dim, dim)
}

impl Boundary {
    /// Takes the tensors `encoder.boundary_*`.
    pub fn load(checkpoint: &Checkpoint, dim: usize) -> Result<Self> {
        Ok(Boundary {
            q: matrix(checkpoint, "encoder.boundary_q", dim, dim)?,
            k: matrix(checkpoint, "encoder.boundary_k", dim, dim)?,
        })
    }

    /// Logarithms of the probabilities that bytes end patches: of each byte its state and that of the byte after it,
    /// both (n, dim).
    pub fn log_probs<'c>(
        &self,
        compute: &'c Compute,
        states: &[f32],
        next: &[f32],
    ) -> ScratchVec<'c, f32> {
        let dim = self.q.cols();
        let mut q = compute.buffer(states.len()); // (n, dim)
        let mut k = compute.buffer(next.len()); // (n, dim)
        ops::linear(compute, &self.q, states, &mut q);
        ops::linear(compute, &self.k, next, &mut k);
        let mut out = compute.empty(states.len() / dim);
        out.extend(q.chunks_exact(dim).zip(k.chunks_exact(dim)).map(|(q, k)| {
            let norm = |x: &[f32]| ops::dot(compute, x, x).sqrt().max(MIN_NORM);
            log_prob(ops::dot(compute, q, k) / norm(q) / norm(k))
        }));
        out
    }
}

/// The logarithm of `(1 - cosine) / 2`.
fn log_prob(cosine: f32) -> f32 {
    // Written so that NaN passes through.
    let cosine = if cosine > MAX_COSINE {
        MAX_COSINE
    } else {
        cosine
    };
    f64::from(-cosine).ln_1p() as f32 - LN_2
}

/// Whether a byte with this logarithm ends a patch: the probability is above one half.
pub fn ends_patch(log_prob: f32) -> bool {
    log_prob > -LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_ends_where_the_cosine_is_negative() {
        for (cosine, ends) in [
            (-1.0, true),
            (-1e-3, true),
            (0.0, false),
            (1e-3, false),
            (1.0, false),
        ] {
            assert_eq!(ends_patch(log_prob(cosine)), ends, "{cosine}");
        }
        assert_eq!(log_prob(-1.0), 0.0);
        assert_eq!(log_prob(0.999), log_prob(1.0001));
        assert!((log_prob(1.0) + 7.6009).abs() < 1e-3, "{}", log_prob(1.0));
        assert!(log_prob(f32::NAN).is_nan() && !ends_patch(f32::NAN));
    }
}
