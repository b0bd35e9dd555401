//! AdamW, with updates of only the touched rows of sparse tensors, and clipping by global norm.

use rayon::prelude::*;

use super::float::{Float, vectorized};
use super::grads::{Grad, Grads};
use super::params::{Param, Params, Value};

/// Settings of the optimiser.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamConfig {
    /// Decay of the mean of gradients, and of the mean of their squares.
    pub betas: (f64, f64),
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decoupled weight decay; norms and embeddings are spared.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; longer ones are scaled down. 0: no limit.
    pub clip: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        AdamConfig {
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
        }
    }
}

/// Running means of one tensor; empty until it gets a gradient.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments<F> {
    /// Running mean of the gradient.
    pub mean: Vec<F>,
    /// Running mean of its square.
    pub square: Vec<F>,
}

/// The optimiser's state.
#[derive(Debug, Clone)]
pub struct AdamW<F> {
    config: AdamConfig,
    /// One per tensor.
    pub moments: Vec<Moments<F>>,
    /// Steps taken.
    pub n_steps: u64,
}

impl<F: Float> AdamW<F> {
    /// Before the first step.
    pub fn new(config: AdamConfig, params: &Params<F>) -> Self {
        let empty = || Moments {
            mean: Vec::new(),
            square: Vec::new(),
        };
        AdamW {
            config,
            moments: (0..params.len()).map(|_| empty()).collect(),
            n_steps: 0,
        }
    }

    /// One step at learning rate `lr`. Returns the norm of the gradient before clipping. If that is
    /// not finite, nothing changes.
    pub fn step(&mut self, params: &mut Params<F>, grads: &Grads<F>, lr: f64) -> f64 {
        let norm = grads.squared_norm().sqrt();
        if !norm.is_finite() {
            return norm;
        }
        let clip = match self.config.clip > 0.0 {
            true => (self.config.clip / (norm + 1e-6)).min(1.0),
            false => 1.0,
        };
        self.n_steps += 1;
        let (b1, b2) = self.config.betas;
        let n = self.n_steps as i32;
        let rule = Rule {
            clip: F::of(clip),
            b1: F::of(b1),
            b2: F::of(b2),
            one_minus_b1: F::of(1.0 - b1),
            one_minus_b2: F::of(1.0 - b2),
            eps: F::of(self.config.eps),
            lr: F::of(lr / (1.0 - b1.powi(n))),
            root: F::of(1.0 / (1.0 - b2.powi(n)).sqrt()),
        };
        let shrink = F::of(1.0 - lr * self.config.weight_decay);
        let tensors: Vec<_> = (params.list_mut().iter_mut())
            .zip(&mut self.moments)
            .zip(grads.list())
            .collect();
        tensors
            .into_par_iter()
            .for_each(|((param, moments), grad)| update(param, moments, grad, &rule, shrink));
        norm
    }
}

/// One step's numbers.
struct Rule<F> {
    clip: F,
    b1: F,
    b2: F,
    one_minus_b1: F,
    one_minus_b2: F,
    eps: F,
    lr: F,
    root: F,
}

/// Elements that one task updates.
const CHUNK: usize = 1 << 15;

fn update<F: Float>(
    param: &mut Param<F>,
    moments: &mut Moments<F>,
    grad: &Grad<F>,
    rule: &Rule<F>,
    shrink: F,
) {
    let decays = param.decays;
    let (cols, n) = (param.shape.last().copied().unwrap_or(1), param.n_elements());
    let Value::Owned(values) = &mut param.value else {
        return;
    };
    if matches!(grad, Grad::None) || !param.trained {
        return;
    }
    if moments.mean.is_empty() {
        moments.mean.resize(n, F::ZERO);
        moments.square.resize(n, F::ZERO);
    }
    match grad {
        Grad::None => {}
        Grad::Dense(grad) => {
            (values.par_chunks_mut(CHUNK))
                .zip(moments.mean.par_chunks_mut(CHUNK))
                .zip(moments.square.par_chunks_mut(CHUNK))
                .zip(grad.par_chunks(CHUNK))
                .for_each(|(((p, m), v), g)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            if decays {
                                p.iter_mut().for_each(|p| *p *= shrink);
                            }
                            rule.apply(p, m, v, g);
                        },
                    );
                });
        }
        Grad::Sparse(grad) => vectorized(
            #[inline(always)]
            || {
                for (&row, g) in grad.rows.iter().zip(grad.values.chunks_exact(cols)) {
                    let range = row as usize * cols..(row as usize + 1) * cols;
                    let p = &mut values[range.clone()];
                    let m = &mut moments.mean[range.clone()];
                    rule.apply(p, m, &mut moments.square[range], g);
                }
            },
        ),
    }
}

impl<F: Float> Rule<F> {
    #[inline(always)]
    fn apply(&self, p: &mut [F], m: &mut [F], v: &mut [F], g: &[F]) {
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.clip;
            *m = self.b1 * *m + self.one_minus_b1 * g;
            *v = self.b2 * *v + self.one_minus_b2 * g * g;
            *p -= self.lr * *m / (v.sqrt() * self.root + self.eps);
        }
    }
}
