//! The configuration as JSON text: the keys are the fields of [`Config`], all of them and no others, except
//! that `differential`, `variant` and `bolmo` are present only where a model has them. It round-trips exactly.

mod bolmo;

use serde_json::{Value, json};

use super::json::{self, Object};
use crate::config::{
    Config, CrossAttentionConfig, DifferentialConfig, HashConfig, PatcherConfig, PatchingMode,
    TransformerConfig,
};
use crate::error::{Error, Result};

/// Metadata key of the configuration in a native file, and its name in messages.
pub(super) const CONFIG_KEY: &str = "blt.config";

/// A configuration as JSON text, from which [`config_from_json`] makes an equal one.
pub fn config_to_json(config: &Config) -> String {
    let mut value = json!({
        "entropy": config.entropy.as_ref().map(transformer_to_json),
        "encoder": transformer_to_json(&config.encoder),
        "encoder_cross": cross_to_json(&config.encoder_cross),
        "global": transformer_to_json(&config.global),
        "decoder": transformer_to_json(&config.decoder),
        "decoder_cross": cross_to_json(&config.decoder_cross),
        "cross_attn_k": config.cross_attn_k,
        "hash": {
            "group_sizes": config.hash.group_sizes,
            "vocab": config.hash.vocab,
            "n_functions": config.hash.n_functions,
        },
        "patcher": {
            "mode": config.patcher.mode.name(),
            "threshold": threshold_to_json(config.patcher.threshold),
            "threshold_add": config.patcher.threshold_add.map(threshold_to_json),
            "monotonicity": config.patcher.monotonicity,
            "max_patch_length": config.patcher.max_patch_length,
            "patch_size": config.patcher.patch_size,
        },
        "max_bytes": config.max_bytes,
        "max_patches": config.max_patches,
    });
    if let Some(bolmo) = &config.bolmo {
        value["bolmo"] = bolmo::to_json(bolmo);
    }
    value.to_string()
}

fn transformer_to_json(c: &TransformerConfig) -> Value {
    let mut value = json!({
        "dim": c.dim,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_dim": c.hidden_dim,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "window": c.window,
        "eos_segments": c.eos_segments,
    });
    if let Some(differential) = &c.differential {
        value["differential"] = json!({"head_norm": differential.head_norm});
    }
    if let Some(variant) = &c.variant {
        value["variant"] = bolmo::variant_to_json(variant);
    }
    value
}

/// Infinities are strings, as JSON has no numbers for them.
fn threshold_to_json(nats: f32) -> Value {
    match nats {
        f32::INFINITY => "Infinity".into(),
        f32::NEG_INFINITY => "-Infinity".into(),
        _ => nats.into(),
    }
}

fn cross_to_json(c: &CrossAttentionConfig) -> Value {
    json!({
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "norm_eps": c.norm_eps,
        "all_layers": c.all_layers,
        "window": c.window,
        "pool_each_layer": c.pool_each_layer,
    })
}

/// Reads what [`config_to_json`] wrote.
///
/// # Errors
/// [`Error::Config`] if a key is missing, unknown, of the wrong type or out of range.
pub fn config_from_json(text: &str) -> Result<Config> {
    let value = json::parse(text.as_bytes())
        .map_err(|e| Error::config(CONFIG_KEY, format!("expected JSON, found a fault: {e}")))?;
    let root = Object::root(&value)?;
    let mut keys = vec![
        "entropy",
        "encoder",
        "encoder_cross",
        "global",
        "decoder",
        "decoder_cross",
        "cross_attn_k",
        "hash",
        "patcher",
        "max_bytes",
        "max_patches",
    ];
    if root.has("bolmo") {
        keys.push("bolmo");
    }
    root.check_keys(&keys)?;
    let entropy = match root.object("entropy")? {
        Some(o) => Some(transformer_from_json(&o)?),
        None => None,
    };
    let config = Config {
        entropy,
        encoder: transformer_from_json(&root.required_object("encoder")?)?,
        encoder_cross: cross_from_json(&root.required_object("encoder_cross")?)?,
        global: transformer_from_json(&root.required_object("global")?)?,
        decoder: transformer_from_json(&root.required_object("decoder")?)?,
        decoder_cross: cross_from_json(&root.required_object("decoder_cross")?)?,
        cross_attn_k: root.required_size("cross_attn_k")?,
        hash: hash_from_json(&root.required_object("hash")?)?,
        patcher: patcher_from_json(&root.required_object("patcher")?)?,
        bolmo: root
            .object("bolmo")?
            .map(|o| bolmo::from_json(&o))
            .transpose()?,
        max_bytes: root.required_size("max_bytes")?,
        max_patches: root.required_size("max_patches")?,
    };
    config.validate()?;
    Ok(config)
}

fn transformer_from_json(o: &Object) -> Result<TransformerConfig> {
    let mut keys = vec![
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "hidden_dim",
        "norm_eps",
        "rope_theta",
        "window",
        "eos_segments",
    ];
    keys.extend(
        ["differential", "variant"]
            .into_iter()
            .filter(|key| o.has(key)),
    );
    o.check_keys(&keys)?;
    Ok(TransformerConfig {
        dim: o.required_size("dim")?,
        n_layers: o.required_size("n_layers")?,
        n_heads: o.required_size("n_heads")?,
        n_kv_heads: o.required_size("n_kv_heads")?,
        head_dim: o.required_size("head_dim")?,
        hidden_dim: o.required_size("hidden_dim")?,
        norm_eps: o.required_number("norm_eps")?,
        rope_theta: o.required_number("rope_theta")?,
        window: o.size("window")?,
        eos_segments: o.required_flag("eos_segments")?,
        differential: (o.object("differential")?)
            .map(|o| differential_from_json(&o))
            .transpose()?,
        variant: (o.object("variant")?)
            .map(|o| bolmo::variant_from_json(&o).map(Box::new))
            .transpose()?,
    })
}

fn differential_from_json(o: &Object) -> Result<DifferentialConfig> {
    o.check_keys(&["head_norm"])?;
    Ok(DifferentialConfig {
        head_norm: o.required_flag("head_norm")?,
    })
}

fn cross_from_json(o: &Object) -> Result<CrossAttentionConfig> {
    o.check_keys(&[
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "norm_eps",
        "all_layers",
        "window",
        "pool_each_layer",
    ])?;
    Ok(CrossAttentionConfig {
        n_heads: o.required_size("n_heads")?,
        n_kv_heads: o.required_size("n_kv_heads")?,
        head_dim: o.required_size("head_dim")?,
        norm_eps: o.required_number("norm_eps")?,
        all_layers: o.required_flag("all_layers")?,
        window: o.size("window")?,
        pool_each_layer: o.required_flag("pool_each_layer")?,
    })
}

fn hash_from_json(o: &Object) -> Result<HashConfig> {
    o.check_keys(&["group_sizes", "vocab", "n_functions"])?;
    let group_sizes = o.sizes("group_sizes")?;
    Ok(HashConfig {
        group_sizes: o.required("group_sizes", "a list of whole numbers", group_sizes)?,
        vocab: o.required_size("vocab")?,
        n_functions: o.required_size("n_functions")?,
    })
}

fn patcher_from_json(o: &Object) -> Result<PatcherConfig> {
    o.check_keys(&[
        "mode",
        "threshold",
        "threshold_add",
        "monotonicity",
        "max_patch_length",
        "patch_size",
    ])?;
    let mode: PatchingMode = o.required("mode", "a string", o.text("mode")?)?.parse()?;
    Ok(PatcherConfig {
        mode,
        threshold: o.required("threshold", "a number", o.threshold("threshold")?)?,
        threshold_add: o.threshold("threshold_add")?,
        monotonicity: o.required_flag("monotonicity")?,
        max_patch_length: o.size("max_patch_length")?,
        patch_size: o.required_size("patch_size")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        let stack = TransformerConfig {
            dim: 24,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 6,
            hidden_dim: 64,
            norm_eps: 1e-5,
            rope_theta: 500_000.0,
            window: None,
            eos_segments: true,
            differential: None,
            variant: None,
        };
        let cross = CrossAttentionConfig {
            n_heads: 4,
            n_kv_heads: 4,
            head_dim: 6,
            norm_eps: f32::MIN_POSITIVE,
            all_layers: true,
            window: Some(3),
            pool_each_layer: false,
        };
        Config {
            entropy: Some(TransformerConfig {
                window: Some(512),
                norm_eps: 0.1,
                ..stack.clone()
            }),
            encoder: stack.clone(),
            encoder_cross: cross.clone(),
            global: stack.clone(),
            decoder: stack,
            decoder_cross: cross,
            cross_attn_k: 2,
            hash: HashConfig {
                group_sizes: vec![3, 8],
                vocab: 127,
                n_functions: 2,
            },
            patcher: PatcherConfig {
                mode: PatchingMode::Entropy,
                threshold: 1.335_442_1,
                threshold_add: Some(-0.102_965_236),
                monotonicity: false,
                max_patch_length: Some(5),
                patch_size: 4,
            },
            bolmo: None,
            max_bytes: 24_576,
            max_patches: 4096,
        }
    }

    #[test]
    fn configurations_come_back_equal() {
        let mut config = sample();
        assert_eq!(config_from_json(&config_to_json(&config)).unwrap(), config);
        assert!(!config_to_json(&config).contains("differential"));
        for (stack, head_norm) in [(&mut config.global, true), (&mut config.decoder, false)] {
            stack.head_dim = 8;
            stack.differential = Some(DifferentialConfig { head_norm });
        }
        assert_eq!(config_from_json(&config_to_json(&config)).unwrap(), config);
        config.patcher.threshold = f32::INFINITY;
        config.patcher.threshold_add = Some(f32::NEG_INFINITY);
        assert_eq!(config_from_json(&config_to_json(&config)).unwrap(), config);
        config.entropy = None;
        config.hash.group_sizes.clear();
        config.patcher = PatcherConfig {
            mode: PatchingMode::Space,
            threshold: f32::from_bits(0x3f7f_ffff),
            threshold_add: None,
            max_patch_length: None,
            monotonicity: true,
            patch_size: 1,
        };
        assert_eq!(config_from_json(&config_to_json(&config)).unwrap(), config);
    }

    #[test]
    fn our_own_schema_is_strict() {
        let mut config = sample();
        config.decoder.head_dim = 8;
        config.decoder.differential = Some(DifferentialConfig { head_norm: true });
        let good: Value = serde_json::from_str(&config_to_json(&config)).unwrap();
        // Every key of every object: missing, and of a wrong type.
        for (pointer, object) in [
            ("", &good),
            ("/entropy", &good["entropy"]),
            ("/encoder_cross", &good["encoder_cross"]),
            ("/decoder/differential", &good["decoder"]["differential"]),
            ("/hash", &good["hash"]),
            ("/patcher", &good["patcher"]),
        ] {
            for key in object.as_object().unwrap().keys() {
                let mut value = good.clone();
                let parent = value.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
                parent.remove(key);
                let message = config_from_json(&value.to_string())
                    .unwrap_err()
                    .to_string();
                assert!(message.contains(key), "{pointer}/{key} missing: {message}");
                let mut value = good.clone();
                value.pointer_mut(pointer).unwrap()[key] = json!(["no"]);
                let message = config_from_json(&value.to_string())
                    .unwrap_err()
                    .to_string();
                assert!(
                    message.contains(key),
                    "{pointer}/{key} = [\"no\"]: {message}"
                );
            }
            let mut value = good.clone();
            value.pointer_mut(pointer).unwrap()["extra"] = json!(1);
            let message = config_from_json(&value.to_string())
                .unwrap_err()
                .to_string();
            assert!(message.contains("extra"), "{pointer}: {message}");
        }
        for text in [
            "",
            "{}",
            "[]",
            "null",
            "{\"encoder\":",
            &"[".repeat(100_000),
        ] {
            assert!(config_from_json(text).is_err());
        }
    }
}
