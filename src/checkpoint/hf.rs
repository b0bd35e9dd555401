//! The Hugging Face transformers layout: its configuration keys, old and new, and its name table.
//!
//! What transformers ignores is ignored here too (EOS segments, `monotonicity`,
//! `patching_threshold_add`), so that the same file gives the same numbers.

use serde_json::Value;

use super::json::Object;
use super::source::Source;
use crate::config::{
    Config, CrossAttentionConfig, HashConfig, PatcherConfig, PatchingMode, TransformerConfig,
    check_vocab_size,
};
use crate::error::{Error, Result};

/// The threshold of the released models, in nats; both implementations' default.
pub(super) const DEFAULT_THRESHOLD: f32 = 1.335_442_1;

/// A tensor that is there if the weights hold an entropy model.
pub(super) const PATCHER_TENSOR: &str = "model.patcher.embed_tokens.weight";

/// What transformers assumes where a part's object is silent.
struct Defaults {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: Option<usize>, // None: 8/3 of the width
    rope_theta: f32,
    max_positions: usize,
}

const PATCHER: Defaults = Defaults {
    dim: 768,
    n_layers: 14,
    n_heads: 12,
    hidden_dim: Some(2048),
    rope_theta: 10_000.0,
    max_positions: 8192,
};
const ENCODER: Defaults = Defaults {
    dim: 1024,
    n_layers: 1,
    n_heads: 16,
    hidden_dim: None,
    rope_theta: 500_000.0,
    max_positions: 24_576,
};
const DECODER: Defaults = Defaults {
    n_layers: 9,
    hidden_dim: Some(2816),
    ..ENCODER
};
const GLOBAL: Defaults = Defaults {
    dim: 2048,
    n_layers: 25,
    n_heads: 16,
    hidden_dim: Some(5632),
    rope_theta: 500_000.0,
    max_positions: 4096,
};

/// The window where a configuration does not mention one. An explicit null means none.
const DEFAULT_WINDOW: usize = 512;

/// Translates `config.json`. `has_patcher`: the weights hold an entropy model.
///
/// # Errors
/// [`Error::Config`] naming a key that is of the wrong type or out of range,
/// [`Error::Unsupported`] for a variant this engine does not compute.
pub(super) fn config(value: &Value, has_patcher: bool) -> Result<Config> {
    let root = Object::root(value)?;
    if let Some(n) = root.size("vocab_size")? {
        check_vocab_size("vocab_size", n)?;
    }
    let local_window = window(&root, "local_attention_window_len")?;
    let in_forward = root.flag("patch_in_forward")?.unwrap_or(true);

    let entropy = if has_patcher {
        Some(entropy_model(&root.required_object("patcher_config")?)?)
    } else {
        None
    };
    let encoder = root.required_object("encoder_config")?;
    let decoder = root.required_object("decoder_config")?;
    let global = root.required_object("global_config")?;
    let positions = |o: &Object, d: &Defaults| -> Result<usize> {
        Ok(o.size("max_position_embeddings")?
            .unwrap_or(d.max_positions))
    };
    let max_bytes = positions(&encoder, &ENCODER)?.min(positions(&decoder, &DECODER)?);

    let config = Config {
        entropy,
        encoder: transformer(&encoder, &ENCODER, local_window)?,
        encoder_cross: cross(&encoder, &ENCODER, false)?,
        global: transformer(&global, &GLOBAL, None)?,
        decoder: transformer(&decoder, &DECODER, local_window)?,
        decoder_cross: cross(&decoder, &DECODER, true)?,
        cross_attn_k: root.size("cross_attn_k")?.unwrap_or(2),
        hash: HashConfig {
            group_sizes: root
                .sizes("encoder_hash_byte_group_size")?
                .unwrap_or_else(|| (3..=8).collect()),
            vocab: root
                .size("encoder_hash_byte_group_vocab")?
                .unwrap_or(500_002),
            n_functions: root
                .size("encoder_hash_byte_group_nb_functions")?
                .unwrap_or(1),
        },
        patcher: patcher(&root, in_forward)?,
        bolmo: None,
        max_bytes,
        max_patches: positions(&global, &GLOBAL)?,
    };
    config.validate()?;
    Ok(config)
}

/// Translates the `config.json` of an entropy model that was saved by itself.
///
/// # Errors
/// As [`config`].
pub(super) fn patcher_alone(value: &Value) -> Result<TransformerConfig> {
    entropy_model(&Object::root(value)?)
}

fn entropy_model(o: &Object) -> Result<TransformerConfig> {
    transformer(o, &PATCHER, window(o, "sliding_window")?)
}

/// transformers cuts by entropy or after every byte, nothing else.
fn patcher(root: &Object, in_forward: bool) -> Result<PatcherConfig> {
    let mode = match root.text("patching_mode")?.unwrap_or("entropy") {
        "entropy" if in_forward => PatchingMode::Entropy,
        _ => PatchingMode::Byte,
    };
    let threshold = root.threshold("patching_threshold")?;
    if mode == PatchingMode::Entropy && threshold.is_none() && root.has("patching_threshold") {
        return Err(Error::config(
            "patching_threshold",
            "expected a number of nats, found null; patches by rank need the whole text at once",
        ));
    }
    Ok(PatcherConfig {
        mode,
        threshold: threshold.unwrap_or(DEFAULT_THRESHOLD),
        threshold_add: None,
        monotonicity: false,
        max_patch_length: root.size("max_patch_length")?,
        // Not used by either mode.
        patch_size: (root.number("patch_size")?.unwrap_or(4.0) as usize).max(1),
    })
}

fn transformer(o: &Object, d: &Defaults, window: Option<usize>) -> Result<TransformerConfig> {
    if let Some(act) = o.text("hidden_act")?.filter(|&act| act != "silu") {
        return Err(Error::Unsupported(format!(
            "configuration key \"{}\": expected \"silu\", found {act:?}",
            o.key("hidden_act")
        )));
    }
    let (dim, n_heads, head_dim) = widths(o, d)?;
    let n_kv_heads = o.size("num_key_value_heads")?.unwrap_or(n_heads);
    Ok(TransformerConfig {
        dim,
        n_layers: o.size("num_hidden_layers")?.unwrap_or(d.n_layers),
        n_heads,
        n_kv_heads,
        head_dim: o.size("head_dim")?.unwrap_or(head_dim),
        hidden_dim: match o.size("intermediate_size")? {
            Some(n) => n,
            None => d.hidden_dim.unwrap_or(dim.saturating_mul(8) / 3),
        },
        norm_eps: norm_eps(o)?,
        rope_theta: rope_theta(o)?.unwrap_or(d.rope_theta),
        window,
        eos_segments: false,
        differential: None,
        variant: None,
    })
}

fn cross(o: &Object, d: &Defaults, all_layers: bool) -> Result<CrossAttentionConfig> {
    let (_, n_heads, head_dim) = widths(o, d)?;
    Ok(CrossAttentionConfig {
        n_heads,
        n_kv_heads: o.size("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        norm_eps: norm_eps(o)?,
        all_layers: o.flag("cross_attn_all_layers")?.unwrap_or(all_layers),
        window: None,
        pool_each_layer: true,
    })
}

/// (width, heads, width of a head)
fn widths(o: &Object, d: &Defaults) -> Result<(usize, usize, usize)> {
    let dim = o.size("hidden_size")?.unwrap_or(d.dim);
    let n_heads = o.size("num_attention_heads")?.unwrap_or(d.n_heads);
    if n_heads == 0 || !dim.is_multiple_of(n_heads) {
        return Err(Error::config(
            o.key("num_attention_heads"),
            format!("expected a divisor of hidden_size = {dim}, found {n_heads}"),
        ));
    }
    Ok((dim, n_heads, dim / n_heads))
}

/// Published files say `norm_eps`, transformers 5 writes `rms_norm_eps`.
fn norm_eps(o: &Object) -> Result<f32> {
    Ok(match o.number("rms_norm_eps")? {
        Some(eps) => eps,
        None => o.number("norm_eps")?.unwrap_or(1e-5),
    })
}

/// Published files say `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters`.
fn rope_theta(o: &Object) -> Result<Option<f32>> {
    let mut theta = None;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = o.object(key)? else { continue };
        for kind in ["rope_type", "type"] {
            if let Some(kind) = rope.text(kind)?.filter(|&k| k != "default") {
                return Err(Error::Unsupported(format!(
                    "configuration key \"{}\": expected rope type \"default\", found {kind:?}",
                    o.key(key)
                )));
            }
        }
        theta = rope.number("rope_theta")?.or(theta);
    }
    match theta {
        Some(theta) => Ok(Some(theta)),
        None => o.number("rope_theta"),
    }
}

fn window(o: &Object, key: &str) -> Result<Option<usize>> {
    if !o.has(key) {
        return Ok(Some(DEFAULT_WINDOW));
    }
    o.size(key)
}

/// Whether input and output embeddings are one tensor.
pub(super) fn tied(value: &Value) -> Result<bool> {
    Ok(Object::root(value)?
        .flag("tie_word_embeddings")?
        .unwrap_or(false))
}

/// The name table: where the file has the tensor that we call `name`.
pub(super) fn source(name: &str, config: &Config, tied: bool) -> Source {
    const EMBEDDINGS: &str = "model.local_encoder.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    let parts: Vec<&str> = name.split('.').collect();
    let part = match parts[0] {
        "entropy" => "patcher",
        "encoder" => "local_encoder",
        "global" => "global_transformer",
        _ => "local_decoder",
    };
    let leaf = match parts[1..] {
        ["hash_embeddings", table] => {
            let table: usize = table.parse().expect("a number of our own making");
            return Source::rows_of(
                "model.encoder_hash_tok_embedding.weight",
                table,
                config.hash.n_tables(),
            );
        }
        ["tok_embeddings"] if part == "local_encoder" && tied => {
            return Source::either(EMBEDDINGS, HEAD);
        }
        ["output"] if part == "local_decoder" && tied => return Source::either(HEAD, EMBEDDINGS),
        ["output"] if part == "local_decoder" => return Source::named(HEAD),
        ["tok_embeddings"] => "embed_tokens".to_string(),
        ["output"] => "lm_head".to_string(),
        ["norm"] => "norm".to_string(),
        ["patch_projection"] => "patch_embedding_projection".to_string(),
        ["input_projection"] => "token_embedding_projection".to_string(),
        ["layers", l, tensor] => {
            let tensor = match tensor {
                "attention_norm" => "input_layernorm",
                "wq" => "self_attn.q_proj",
                "wk" => "self_attn.k_proj",
                "wv" => "self_attn.v_proj",
                "wo" => "self_attn.o_proj",
                "ffn_norm" => "post_attention_layernorm",
                "w1" => "mlp.gate_proj",
                "w2" => "mlp.down_proj",
                "w3" => "mlp.up_proj",
                other => other,
            };
            format!("layers.{l}.{tensor}")
        }
        ["cross", l, tensor] => {
            let tensor = match tensor {
                "norm_q" => "q_norm",
                "norm_kv" => "k_norm",
                "wq" => "q_proj",
                "wk" => "k_proj",
                "wv" => "v_proj",
                "wo" => "o_proj",
                other => other,
            };
            format!("cross_attn_layers.{l}.{tensor}")
        }
        _ => name.to_string(),
    };
    Source::named(format!("model.{part}.{leaf}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({
            "model_type": "blt",
            "patching_threshold": 1.5,
            "encoder_config": {}, "decoder_config": {}, "global_config": {}, "patcher_config": {},
        })
    }

    #[test]
    fn silent_configurations_mean_the_released_1b_model() {
        let c = config(&sample(), true).unwrap();
        let entropy = c.entropy.unwrap();
        assert_eq!(
            (entropy.dim, entropy.n_layers, entropy.hidden_dim),
            (768, 14, 2048)
        );
        assert_eq!((entropy.window, entropy.rope_theta), (Some(512), 10_000.0));
        assert_eq!((c.encoder.hidden_dim, c.encoder.window), (2730, Some(512)));
        assert_eq!((c.decoder.n_layers, c.decoder.window), (9, Some(512)));
        assert_eq!((c.global.dim, c.global.window), (2048, None));
        assert_eq!(c.hash.group_sizes, [3, 4, 5, 6, 7, 8]);
        assert!(!c.encoder_cross.all_layers && c.decoder_cross.all_layers);
        assert!(config(&sample(), false).unwrap().entropy.is_none());
    }

    #[test]
    fn a_window_of_null_is_no_window() {
        let mut value = sample();
        value["local_attention_window_len"] = Value::Null;
        value["patcher_config"]["sliding_window"] = Value::Null;
        let c = config(&value, true).unwrap();
        assert_eq!((c.encoder.window, c.decoder.window), (None, None));
        assert_eq!(c.entropy.unwrap().window, None);
    }

    #[test]
    fn both_spellings_of_eps_and_theta_are_read() {
        let mut value = sample();
        value["encoder_config"] = json!({"norm_eps": 1e-3, "rope_theta": 7.0,
            "rope_scaling": {"rope_type": "default"}});
        value["decoder_config"] = json!({"rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}});
        let c = config(&value, true).unwrap();
        assert_eq!((c.encoder.norm_eps, c.encoder.rope_theta), (1e-3, 7.0));
        assert_eq!((c.decoder.norm_eps, c.decoder.rope_theta), (1e-4, 9.0));
        assert_eq!(c.decoder_cross.norm_eps, 1e-4);
    }

    #[test]
    fn other_patching_modes_and_no_patcher_mean_one_byte_per_patch() {
        for (key, v) in [
            ("patching_mode", json!("space")),
            ("patch_in_forward", json!(false)),
        ] {
            let mut value = sample();
            value[key] = v;
            let mode = config(&value, false).unwrap().patcher.mode;
            assert_eq!(mode, PatchingMode::Byte, "{key}");
        }
        assert_eq!(
            config(&sample(), true).unwrap().patcher.mode,
            PatchingMode::Entropy
        );
    }

    #[test]
    fn faults_name_the_key() {
        let cases = [
            (
                "/encoder_config/num_attention_heads",
                json!(0),
                "encoder_config.num_attention_heads",
            ),
            (
                "/global_config/hidden_size",
                json!("wide"),
                "global_config.hidden_size",
            ),
            (
                "/decoder_config/num_hidden_layers",
                json!(-1),
                "decoder_config.num_hidden_layers",
            ),
            (
                "/decoder_config/num_key_value_heads",
                json!(0),
                "n_kv_heads",
            ),
            (
                "/encoder_config/num_key_value_heads",
                json!(3),
                "n_kv_heads",
            ),
            ("/global_config/hidden_size", json!(1u64 << 50), "dim"),
            ("/patching_threshold", json!("NaN"), "patching_threshold"),
            ("/patching_threshold", json!(1e39), "patching_threshold"),
            ("/patching_threshold", Value::Null, "patching_threshold"),
            ("/max_patch_length", json!(0), "max_patch_length"),
            ("/vocab_size", json!(256), "vocab_size"),
            (
                "/encoder_hash_byte_group_size",
                json!([3, 0]),
                "encoder_hash_byte_group_size",
            ),
            (
                "/encoder_hash_byte_group_size",
                json!("3,4"),
                "encoder_hash_byte_group_size",
            ),
            (
                "/encoder_config/rope_scaling",
                json!({"rope_type": "yarn"}),
                "rope_scaling",
            ),
            ("/encoder_config/hidden_act", json!("gelu"), "hidden_act"),
            ("/encoder_config/rms_norm_eps", json!(-1.0), "norm_eps"),
            ("/encoder_config", json!([]), "encoder_config"),
            ("/global_config", Value::Null, "global_config"),
        ];
        for (pointer, v, key) in cases {
            let mut value = sample();
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            value.pointer_mut(parent).unwrap()[last] = v.clone();
            let message = config(&value, true).expect_err(pointer).to_string();
            assert!(message.contains(key), "{pointer} = {v}: {message}");
        }
    }
}
