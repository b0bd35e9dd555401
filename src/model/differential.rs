//! Differential attention: the parameters of a layer besides its matrices.
//!
//! The formula is in [`DifferentialConfig`], the attention itself in `ops/attention.rs`.

use crate::checkpoint::Checkpoint;
use crate::config::{DifferentialConfig, TransformerConfig};
use crate::error::{Error, Result};
use crate::model::weights::vector;
use crate::ops::{self, Compute, ScratchVec};

/// The differential attention of one layer.
#[derive(Debug)]
pub struct Differential {
    /// The factor of the second halves' attention, which is subtracted.
    pub lambda: f32,
    head_norm: Option<Vec<f32>>, // (head_dim)
    norm_eps: f32,
    scale: f32, // 1 - lambda_init
}

impl Differential {
    /// Takes the vectors of the layer `prefix`, number `layer` of its stack; `None` if the stack has
    /// plain attention.
    pub fn load(
        checkpoint: &Checkpoint,
        prefix: &str,
        layer: usize,
        config: &TransformerConfig,
    ) -> Result<Option<Self>> {
        let Some(differential) = &config.differential else {
            return Ok(None);
        };
        let vector = |name: &str, dim| vector(checkpoint, &format!("{prefix}.{name}"), dim);
        let exp_of_product = |q: &str, k: &str| -> Result<f64> {
            let (q, k) = (vector(q, config.key_dim())?, vector(k, config.key_dim())?);
            let products = q.iter().zip(&k).map(|(&q, &k)| f64::from(q) * f64::from(k));
            Ok(products.sum::<f64>().exp())
        };
        let init = DifferentialConfig::lambda_init(layer);
        let learned =
            exp_of_product("lambda_q1", "lambda_k1")? - exp_of_product("lambda_q2", "lambda_k2")?;
        let lambda = (learned + init) as f32;
        if !lambda.is_finite() {
            return Err(Error::tensor(
                format!("{prefix}.lambda_q1"),
                format!("expected vectors that give a finite lambda, found {lambda}"),
            ));
        }
        Ok(Some(Differential {
            lambda,
            head_norm: (differential.head_norm)
                .then(|| vector("head_norm", config.head_dim))
                .transpose()?,
            norm_eps: config.norm_eps,
            scale: (1.0 - init) as f32,
        }))
    }

    /// The heads' outputs o (n, n_heads * head_dim), normed and scaled, before `wo`.
    pub fn finish<'c>(&self, compute: &'c Compute, o: ScratchVec<'c, f32>) -> ScratchVec<'c, f32> {
        let mut out = match &self.head_norm {
            Some(gain) => {
                let mut normed = compute.buffer(o.len());
                ops::rms_norm(compute, &o, gain, self.norm_eps, &mut normed);
                normed
            }
            None => o,
        };
        ops::scale(&mut out, self.scale);
        out
    }
}
