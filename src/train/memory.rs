//! What a run needs of memory, compared with what there is before anything is allocated.

use super::settings::Settings;
use crate::checkpoint::{Component, ModelTensor, Role, expected_tensors};
use crate::config::{Config, TransformerConfig};
use crate::error::{Error, Result};

/// Bytes for each trained parameter: its value, its gradient and the two moments of AdamW.
const PER_PARAMETER: u64 = 16;

/// Checks that a new model of this shape can be trained in this machine's memory.
///
/// The estimate is low: weights, gradients, moments, and the activations that the backward pass needs. It is there to
/// refuse settings that cannot work, not to promise that the others do.
///
/// # Errors
/// [`Error::Config`] naming the setting that takes the most.
pub fn check(settings: &Settings, config: &Config, of_entropy: bool) -> Result<()> {
    match available() {
        None => Ok(()),
        Some(available) => check_within(available, settings, config, of_entropy),
    }
}

fn check_within(
    available: u64,
    settings: &Settings,
    config: &Config,
    of_entropy: bool,
) -> Result<()> {
    let setting_of = |tensor: &ModelTensor| match (tensor.component, tensor.role) {
        (_, Role::HashTable) => "hash_vocab",
        (Component::Entropy, _) => "entropy_dim",
        (Component::Global, _) => "global_dim",
        _ => "local_dim",
    };
    let ids = settings.batch.max(settings.seq_len) as u64;
    let ids_setting = match settings.batch < settings.seq_len {
        true => "seq_len",
        false => "batch",
    };
    let stacks: Vec<&TransformerConfig> = match (of_entropy, &config.entropy) {
        (true, Some(entropy)) => vec![entropy],
        _ => vec![&config.encoder, &config.decoder],
    };
    // For each layer and each byte: what enters attention and feed-forward, and the products between.
    let per_id: u64 = (stacks.iter())
        .map(|c| 4 * (c.n_layers as u64).saturating_mul((6 * c.dim + 3 * c.hidden_dim) as u64))
        .fold(0, u64::saturating_add);
    let mut needs = vec![(ids_setting, ids.saturating_mul(per_id))];
    for tensor in expected_tensors(config) {
        if (tensor.component == Component::Entropy) != of_entropy {
            continue;
        }
        let setting = setting_of(&tensor);
        let bytes = (tensor.shape.iter()).fold(PER_PARAMETER, |n, &d| n.saturating_mul(d as u64));
        match needs.iter_mut().find(|(name, _)| *name == setting) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => needs.push((setting, bytes)),
        }
    }
    let total = needs
        .iter()
        .fold(0u64, |sum, (_, n)| sum.saturating_add(*n));
    let (setting, bytes) = (needs.into_iter().max_by_key(|(_, n)| *n)).expect("at least one");
    if total <= available {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    Err(Error::config(
        setting,
        format!(
            "expected a run that fits into the {:.1} GB of this machine, found one that needs at least {:.1} GB, {:.1} \
             GB of them by this setting",
            gb(available),
            gb(total),
            gb(bytes)
        ),
    ))
}

/// The memory of the machine, or what this process may have of it; `None` where the system does not say (all but Linux).
fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = (limits.lines())
        .find_map(|l| l.strip_prefix("Max address space"))
        .and_then(|l| l.split_whitespace().next()?.parse().ok());
    Some((kilobytes * 1024).min(limit.unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_takes_the_most_is_named() {
        let message = |set: &[(&str, &str)], of_entropy: bool| {
            let mut settings = Settings::default();
            for (name, value) in set {
                settings.set(name, value).unwrap();
            }
            let config = settings.architecture().unwrap();
            check_within(8 << 30, &settings, &config, of_entropy).map_err(|e| e.to_string())
        };
        assert_eq!(message(&[], false), Ok(()));
        assert_eq!(message(&[], true), Ok(()));
        for (name, value, of_entropy) in [
            ("hash_vocab", "100000000", false),
            ("global_dim", "12288", false),
            ("local_dim", "12288", false),
            ("entropy_dim", "12288", true),
            ("batch", "100000000", false),
            ("batch", "1099511627776", true),
            ("seq_len", "100000000", false),
        ] {
            let message = message(&[(name, value)], of_entropy).unwrap_err();
            assert!(
                message.contains(&format!("\"{name}\"")),
                "{name}: {message}"
            );
        }
    }
}
