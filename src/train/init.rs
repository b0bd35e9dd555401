//! Initial weights of a new model.

use super::params::{Params, Value};
use crate::checkpoint::{Component, ModelTensor, Role};
use crate::config::Config;
use crate::error::Result;
use crate::random::SplitMix64;

/// Random weights for the tensors that `wanted` accepts: norms 1; the vectors behind lambda normal
/// with deviation 0.1 (differential attention, arXiv 2410.05258); matrices normal with deviation
/// 1 / sqrt(in), those that end a residual branch less by the depth of their stack, so that the sum
/// of all branches does not grow with it; hash tables nearly 0, because most rows are looked up
/// rarely and their initial values are noise to the rest.
pub fn random(
    config: &Config,
    wanted: impl Fn(&ModelTensor) -> bool,
    seed: u64,
) -> Result<Params<f32>> {
    Params::new(config, wanted, |tensor| {
        let mut rng = SplitMix64::named(seed, &tensor.name);
        let n: usize = tensor.shape.iter().product();
        let depth = match tensor.component {
            Component::Entropy => config.entropy.as_ref().map_or(1, |e| e.n_layers),
            Component::Encoder => config.encoder.n_layers,
            Component::Global => config.global.n_layers,
            Component::Decoder => config.decoder.n_layers,
        };
        let fan_in = (tensor.shape.last().copied().unwrap_or(1) as f64).sqrt();
        let deviation = match tensor.role {
            Role::Norm => return Ok(Value::Owned(vec![1.0; n])),
            Role::Lambda => {
                let values = (0..n).map(|_| 0.1 * rng.normal() as f32);
                return Ok(Value::Owned(values.collect()));
            }
            Role::Bias => return Ok(Value::Owned(vec![0.0; n])),
            Role::HashTable | Role::Subwords => 0.01,
            Role::Residual => 1.0 / (fan_in * (2.0 * depth as f64).sqrt()),
            Role::Matrix | Role::Embedding | Role::Head | Role::Gate | Role::Boundary => {
                1.0 / fan_in
            }
        };
        let values = (0..n).map(|_| (deviation * rng.normal().clamp(-3.0, 3.0)) as f32);
        Ok(Value::Owned(values.collect()))
    })
}
