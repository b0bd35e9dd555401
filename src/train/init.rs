//! The numbers a model starts from.

use super::params::{Params, Value};
use super::rng::Rng;
use crate::config::Config;
use crate::error::Result;

/// Random weights for the tensors that `wanted` accepts: norms 1; the vectors behind lambda normal
/// with deviation 0.1 (differential attention, arXiv 2410.05258); matrices normal with deviation
/// 1 / sqrt(in), those that end a residual branch less by the depth of their stack, so that the sum
/// of all branches does not grow with it; hash tables nearly 0, because most rows are met seldom and
/// what they start from is noise to the rest.
pub fn random(config: &Config, wanted: impl Fn(&str) -> bool, seed: u64) -> Result<Params<f32>> {
    Params::new(config, wanted, |name, shape| {
        let mut rng = Rng::named(seed, name);
        let n: usize = shape.iter().product();
        let leaf = name.rsplit('.').next().unwrap_or_default();
        if leaf.starts_with("lambda_") {
            return Ok(Value::Owned(
                (0..n).map(|_| 0.1 * rng.normal() as f32).collect(),
            ));
        }
        if shape.len() == 1 {
            return Ok(Value::Owned(vec![1.0; n]));
        }
        let depth = match name.split('.').next() {
            Some("entropy") => config.entropy.as_ref().map_or(1, |e| e.n_layers),
            Some("encoder") => config.encoder.n_layers,
            Some("global") => config.global.n_layers,
            _ => config.decoder.n_layers,
        };
        let fan_in = (shape[1] as f64).sqrt();
        let deviation = match leaf {
            _ if name.contains(".hash_embeddings.") => 0.01,
            "wo" | "w2" => 1.0 / (fan_in * (2.0 * depth as f64).sqrt()),
            _ => 1.0 / fan_in,
        };
        let values = (0..n).map(|_| (deviation * rng.normal().clamp(-3.0, 3.0)) as f32);
        Ok(Value::Owned(values.collect()))
    })
}
