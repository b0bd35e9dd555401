//! Differential attention, forward and backward, from the outputs of its two softmaxes on:
//! `model/differential.rs` for training.
//!
//! ```text
//! forward    m = o1 - lambda o2   o = (1 - lambda_init) norm(m)                      head by head
//! backward   dm = back through the norm   do1 = dm   do2 = -lambda dm   dlambda = -sum(dm o2)
//! ```

use super::float::{Float, axpy, dot, vectorized};
use super::grads::Grads;
use super::ops::rms_norm;
use super::params::{ParamId, Params};
use super::pass::Pass;
use super::pooled_vec::PooledVec;
use crate::config::{DifferentialConfig, TransformerConfig};

/// Where the vectors of one layer are.
#[derive(Debug, Clone)]
pub struct Differential {
    lambdas: [[ParamId; 2]; 2], // q and k of either half: (head_dim / 2) each
    head_norm: Option<ParamId>, // (head_dim)
    head_dim: usize,
    norm_eps: f32,
    lambda_init: f64,
}

/// Values that the backward pass needs. n rows.
#[derive(Debug)]
pub struct DifferentialTape<F: Float> {
    /// The outputs of both softmaxes.
    pub both: PooledVec<F>, // (n, n_heads, 2, head_dim)
    mixed: PooledVec<F>, // (n, n_heads, head_dim), if there is a norm
    inv: PooledVec<F>,   // (n, n_heads), if there is a norm
}

impl Differential {
    /// The vectors of the layer `at`, number `layer` of its stack; `None` if the stack has plain
    /// attention.
    pub fn new<F: Float>(
        params: &Params<F>,
        at: &str,
        layer: usize,
        config: &TransformerConfig,
    ) -> Option<Self> {
        let differential = config.differential.as_ref()?;
        let id = |name: &str| params.id(&format!("{at}.{name}"));
        Some(Differential {
            lambdas: [
                [id("lambda_q1"), id("lambda_k1")],
                [id("lambda_q2"), id("lambda_k2")],
            ],
            head_norm: differential.head_norm.then(|| id("head_norm")),
            head_dim: config.head_dim,
            norm_eps: config.norm_eps,
            lambda_init: DifferentialConfig::lambda_init(layer),
        })
    }

    /// The two exponentials whose difference is the learned part of lambda.
    fn exponentials<F: Float>(&self, params: &Params<F>) -> [f64; 2] {
        self.lambdas.map(|[q, k]| {
            let (q, k) = (params.get(q).value.values(), params.get(k).value.values());
            let products = q.iter().zip(k.iter()).map(|(q, k)| q.f64() * k.f64());
            products.sum::<f64>().exp()
        })
    }

    fn lambda<F: Float>(&self, params: &Params<F>) -> F {
        let [first, second] = self.exponentials(params);
        F::of(first - second + self.lambda_init)
    }

    /// From the outputs of both softmaxes (n, n_heads, 2, head_dim) to what goes into `wo`
    /// (n, n_heads * head_dim).
    pub fn forward<F: Float>(
        &self,
        pass: Pass<'_, F>,
        both: PooledVec<F>,
    ) -> (PooledVec<F>, DifferentialTape<F>) {
        let (d, lambda) = (self.head_dim, self.lambda(pass.params));
        let mut mixed = PooledVec::any(both.len() / 2);
        vectorized(
            #[inline(always)]
            || {
                for (mixed, both) in mixed.chunks_exact_mut(d).zip(both.chunks_exact(2 * d)) {
                    let (first, second) = both.split_at(d);
                    for ((m, &a), &b) in mixed.iter_mut().zip(first).zip(second) {
                        *m = a - lambda * b;
                    }
                }
            },
        );
        let (mut o, mixed, inv) = match self.head_norm {
            Some(gain) => {
                let gain = pass.params.get(gain).value.values();
                let (o, inv) = rms_norm(&mixed, &gain, self.norm_eps);
                (o, mixed, inv)
            }
            None => (mixed, PooledVec::default(), PooledVec::default()),
        };
        self.scale(&mut o);
        (o, DifferentialTape { both, mixed, inv })
    }

    /// Backward pass: the gradient d_o (n, n_heads * head_dim) becomes that of the outputs of both
    /// softmaxes.
    pub fn backward<F: Float>(
        &self,
        pass: Pass<'_, F>,
        tape: &DifferentialTape<F>,
        mut d_o: PooledVec<F>,
        grads: &mut Grads<F>,
    ) -> PooledVec<F> {
        self.scale(&mut d_o);
        if let Some(gain) = self.head_norm {
            let mut d_mixed = PooledVec::zeros(d_o.len());
            pass.norm_backward(gain, &tape.mixed, &tape.inv, &d_o, &mut d_mixed, grads);
            d_o = d_mixed;
        }
        let (d, lambda) = (self.head_dim, self.lambda(pass.params));
        let mut d_both = PooledVec::any(tape.both.len());
        let mut d_lambda = 0.0;
        vectorized(
            #[inline(always)]
            || {
                let heads = d_o.chunks_exact(d).zip(tape.both.chunks_exact(2 * d));
                for ((d_o, both), d_both) in heads.zip(d_both.chunks_exact_mut(2 * d)) {
                    let (first, second) = d_both.split_at_mut(d);
                    first.copy_from_slice(d_o);
                    for (second, &d_o) in second.iter_mut().zip(d_o) {
                        *second = -lambda * d_o;
                    }
                    d_lambda -= dot(d_o, &both[d..]).f64();
                }
            },
        );
        let exponentials = self.exponentials(pass.params);
        for ((pair, e), sign) in self.lambdas.iter().zip(exponentials).zip([1.0, -1.0]) {
            let slope = F::of(sign * e * d_lambda);
            for (id, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                let (param, other) = (pass.params.get(id), pass.params.get(other));
                if param.trained {
                    axpy(slope, &other.value.values(), grads.dense(id, param));
                }
            }
        }
        d_both
    }

    fn scale<F: Float>(&self, x: &mut [F]) {
        let scale = F::of(1.0 - self.lambda_init);
        x.iter_mut().for_each(|x| *x *= scale);
    }
}
