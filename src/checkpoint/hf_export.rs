//! Writing the Hugging Face layout: our configuration as `config.json`, our tensors
//! under transformers' names. Only published names are used.

use serde_json::{Map, Value, json};

use super::config_json::config_to_json;
use super::hf;
use super::names::expected_tensors;
use crate::config::{Config, PatchingMode, TransformerConfig};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// A tensor of an HF-layout file and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HfTensor {
    /// transformers' name.
    pub name: String,
    /// Our names of its parts, which are stacked along the first axis: one tensor, or all hash tables.
    pub parts: Vec<String>,
    /// The length of each axis.
    pub shape: Vec<usize>,
}

/// A model in HF layout without its numbers.
#[derive(Debug, Clone)]
pub struct HfLayout {
    /// The text of `config.json`.
    pub config: String,
    /// The text of `generation_config.json`.
    pub generation_config: String,
    /// The tensors of `model.safetensors`.
    pub tensors: Vec<HfTensor>,
    /// Keys of our configuration that this layout cannot express and that come back otherwise:
    /// what transformers ignores (`eos_segments`, `threshold_add`) or does its own way.
    pub lost: Vec<String>,
}

/// The HF layout of a model of this configuration whose weights are `dtype` in the main. `tied`: byte embedding and output
/// are one tensor, which is then written once, as transformers does.
///
/// # Errors
/// [`Error::Config`] if the configuration is not valid, [`Error::Unsupported`] if transformers has
/// no such model at all.
pub fn hf_layout(config: &Config, dtype: DType, tied: bool) -> Result<HfLayout> {
    config.validate()?;
    if config.bolmo.is_some() {
        return Err(Error::Unsupported(
            "the HF layout is that of transformers' BLT, the model is of the Bolmo family".into(),
        ));
    }
    if config.encoder.window != config.decoder.window {
        return Err(Error::Unsupported(format!(
            "the HF layout has one window for local encoder and decoder, the model has {:?} and {:?}",
            config.encoder.window, config.decoder.window
        )));
    }
    if let Some(part) = config.differential_part() {
        return Err(Error::Unsupported(format!(
            "the HF layout has no differential attention, the model's {part} has"
        )));
    }
    let value = to_json(config, dtype, tied);
    let back = hf::config(&value, config.entropy.is_some())?;
    let mut lost = Vec::new();
    let parse = |c: &Config| serde_json::from_str(&config_to_json(c)).unwrap_or(Value::Null);
    differences("", &parse(config), &parse(&back), &mut lost);
    Ok(HfLayout {
        config: format!("{value:#}\n"),
        generation_config: format!("{:#}\n", generation_config()),
        tensors: tensors(config, tied),
        lost,
    })
}

/// What transformers generates with; it would derive the same from `config.json`.
fn generation_config() -> Value {
    json!({
        "_from_model_config": true,
        "bos_token_id": crate::vocab::BOS,
        "eos_token_id": crate::vocab::EOS,
        "pad_token_id": 0,
        "use_cache": false,
    })
}

fn tensors(config: &Config, tied: bool) -> Vec<HfTensor> {
    let mut list: Vec<HfTensor> = Vec::new();
    for tensor in expected_tensors(config) {
        if tied && tensor.name == "encoder.tok_embeddings" {
            continue; // decoder.output stands for both
        }
        let (ours, shape) = (tensor.name, tensor.shape);
        let source = hf::source(&ours, config, false);
        let name = source.names.into_iter().next().unwrap_or_default();
        match list.iter_mut().find(|t| t.name == name) {
            Some(fused) => {
                fused.shape[0] += shape[0];
                fused.parts.push(ours);
            }
            None => list.push(HfTensor {
                name,
                parts: vec![ours],
                shape,
            }),
        }
    }
    list
}

/// Names the values of `a` that `b` has otherwise.
fn differences(at: &str, a: &Value, b: &Value, lost: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, a) in a {
                let at = match at {
                    "" => key.clone(),
                    _ => format!("{at}.{key}"),
                };
                differences(&at, a, &b[key], lost);
            }
        }
        _ if a != b => lost.push(at.to_string()),
        _ => {}
    }
}

/// The shortest decimal that stands for the same single.
fn number(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn to_json(c: &Config, dtype: DType, tied: bool) -> Value {
    let mut encoder = stack(&c.encoder, "blt_local_encoder", c.max_bytes);
    let mut decoder = stack(&c.decoder, "blt_local_decoder", c.max_bytes);
    for (part, cross) in [
        (&mut encoder, &c.encoder_cross),
        (&mut decoder, &c.decoder_cross),
    ] {
        part.insert("vocab_size".into(), crate::vocab::VOCAB_SIZE.into());
        part.insert("hidden_size_global".into(), c.global.dim.into());
        part.insert("cross_attn_k".into(), c.cross_attn_k.into());
        part.insert("cross_attn_all_layers".into(), cross.all_layers.into());
    }
    encoder.insert("sliding_window".into(), json!(c.encoder.window));
    if c.encoder.head_dim * c.encoder.n_heads == c.encoder.dim {
        // The published files do not have it in this part.
        encoder.remove("head_dim");
    }
    let mut global = stack(&c.global, "blt_global_transformer", c.max_patches);
    let projected = c.has_global_projection().then(|| c.patch_dim());
    global.insert("encoder_cross_output_size".into(), json!(projected));
    let entropy_mode = c.patcher.mode == PatchingMode::Entropy;
    let patching_mode = if entropy_mode { "entropy" } else { "byte" };
    let mut value = json!({
        "architectures": ["BltForCausalLM"],
        "model_type": "blt",
        "vocab_size": crate::vocab::VOCAB_SIZE,
        "bos_token_id": crate::vocab::BOS,
        "eos_token_id": crate::vocab::EOS,
        "pad_token_id": 0,
        // With its cache on, transformers 5 continues a text otherwise than it reads it.
        "use_cache": false,
        "max_position_embeddings": c.max_bytes,
        "dtype": match dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            _ => "bfloat16",
        },
        "initializer_range": 0.02,
        "tie_word_embeddings": tied,
        "cross_attn_k": c.cross_attn_k,
        "local_attention_window_len": c.encoder.window,
        "encoder_hash_byte_group_size": c.hash.group_sizes,
        "encoder_hash_byte_group_vocab": c.hash.vocab,
        "encoder_hash_byte_group_nb_functions": c.hash.n_functions,
        "patch_in_forward": c.entropy.is_some(),
        "patching_mode": patching_mode,
        "patching_threshold": threshold(c.patcher.threshold),
        "patching_batch_size": 1,
        "patch_size": c.patcher.patch_size,
        "max_patch_length": c.patcher.max_patch_length,
        // Each part has its own; this one, which transformers always writes, nobody reads.
        "rope_parameters": rope(500_000.0),
        "encoder_config": encoder,
        "decoder_config": decoder,
        "global_config": global,
    });
    if let Some(entropy) = &c.entropy {
        let mut patcher = stack(entropy, "blt_patcher", c.max_bytes);
        patcher.insert("vocab_size".into(), crate::vocab::VOCAB_SIZE.into());
        patcher.insert("sliding_window".into(), json!(entropy.window));
        value["patcher_config"] = patcher.into();
    }
    value
}

/// Infinities as transformers writes them.
fn threshold(nats: f32) -> Value {
    match nats {
        f32::INFINITY => json!({"__float__": "Infinity"}),
        f32::NEG_INFINITY => json!({"__float__": "-Infinity"}),
        _ => nats.into(),
    }
}

fn rope(theta: f32) -> Value {
    json!({"rope_theta": number(theta), "rope_type": "default"})
}

fn stack(c: &TransformerConfig, kind: &str, positions: usize) -> Map<String, Value> {
    let value = json!({
        "model_type": kind,
        "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.hidden_dim,
        "hidden_act": "silu",
        "rms_norm_eps": number(c.norm_eps),
        "rope_parameters": rope(c.rope_theta),
        "max_position_embeddings": positions,
        "initializer_range": 0.02,
        "dropout": 0.0,
        "tie_word_embeddings": false,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
