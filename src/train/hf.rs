//! Trained weights in the layout of transformers: `config.json` and `model.safetensors`, which
//! `BltForCausalLM.from_pretrained` loads.

use std::path::Path;

use serde_json::{Value, json};

use super::export::tensors;
use super::params::Params;
use crate::checkpoint::{SafetensorsWriter, TensorSpec};
use crate::config::{Config, CrossAttentionConfig, PatchingMode, TransformerConfig};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// What transformers cannot express is refused rather than dropped.
///
/// # Errors
/// [`Error::Unsupported`] naming the first such thing.
pub fn check(config: &Config) -> Result<()> {
    let p = &config.patcher;
    let mut faults = Vec::new();
    match p.mode {
        PatchingMode::Entropy | PatchingMode::Byte => {}
        mode => faults.push(format!("{mode} patching")),
    }
    if p.monotonicity || p.threshold_add.is_some() {
        faults.push("patching by rising entropy".into());
    }
    let stacks = [&config.encoder, &config.global, &config.decoder];
    if stacks
        .into_iter()
        .chain(&config.entropy)
        .any(|s| s.eos_segments)
    {
        faults.push("segments that end at EOS".into());
    }
    if config.differential_part().is_some() {
        faults.push("differential attention".into());
    }
    if config.encoder.window != config.decoder.window || config.global.window.is_some() {
        faults.push("these windows".into());
    }
    for (stack, cross) in [
        (&config.encoder, &config.encoder_cross),
        (&config.decoder, &config.decoder_cross),
    ] {
        let same = (cross.n_heads, cross.n_kv_heads) == (stack.n_heads, stack.n_kv_heads);
        if !same || cross.window.is_some() || stack.head_dim * stack.n_heads != stack.dim {
            faults.push("cross-attention of another shape than self-attention".into());
        }
    }
    if config.encoder_cross.all_layers && !config.encoder_cross.pool_each_layer {
        faults.push("patches refined by every encoder layer".into());
    }
    match faults.first() {
        None => Ok(()),
        Some(fault) => Err(Error::Unsupported(format!(
            "--hf: the layout of transformers has no {fault}; the native file has"
        ))),
    }
}

fn stack(c: &TransformerConfig) -> Value {
    json!({
        "vocab_size": crate::vocab::VOCAB_SIZE,
        "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.hidden_dim,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_theta": c.rope_theta, "rope_type": "default"},
        "hidden_act": "silu",
        "dropout": 0.0,
    })
}

fn config_json(config: &Config, dtype: DType) -> Value {
    let local = |c: &TransformerConfig, cross: &CrossAttentionConfig| {
        let mut v = stack(c);
        v["cross_attn_all_layers"] = json!(cross.all_layers);
        v["cross_attn_k"] = json!(config.cross_attn_k);
        v["hidden_size_global"] = json!(config.global.dim);
        v["max_position_embeddings"] = json!(config.max_bytes);
        v
    };
    let mut global = stack(&config.global);
    global["max_position_embeddings"] = json!(config.max_patches);
    let projected = config.has_global_projection().then(|| config.patch_dim());
    global["encoder_cross_output_size"] = json!(projected);
    let mut root = json!({
        "architectures": ["BltForCausalLM"],
        "model_type": "blt",
        "dtype": if dtype == DType::F32 { "float32" } else { "bfloat16" },
        "vocab_size": crate::vocab::VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "use_cache": false,
        "tie_word_embeddings": false,
        "max_position_embeddings": config.max_patches,
        "patch_in_forward": config.entropy.is_some(),
        "patching_mode": config.patcher.mode.name(),
        "patching_threshold": config.patcher.threshold,
        "max_patch_length": config.patcher.max_patch_length,
        "patch_size": config.patcher.patch_size,
        "local_attention_window_len": config.encoder.window,
        "cross_attn_k": config.cross_attn_k,
        "encoder_hash_byte_group_size": config.hash.group_sizes,
        "encoder_hash_byte_group_vocab": config.hash.vocab,
        "encoder_hash_byte_group_nb_functions": config.hash.n_functions,
        "encoder_config": local(&config.encoder, &config.encoder_cross),
        "decoder_config": local(&config.decoder, &config.decoder_cross),
        "global_config": global,
    });
    if let Some(entropy) = &config.entropy {
        let mut v = stack(entropy);
        v["sliding_window"] = json!(entropy.window);
        v["max_position_embeddings"] = json!(config.max_bytes);
        root["patcher_config"] = v;
    }
    root
}

/// The name of one of our tensors there.
fn name(ours: &str) -> String {
    let parts: Vec<&str> = ours.split('.').collect();
    let part = match parts[0] {
        "entropy" => "patcher",
        "encoder" => "local_encoder",
        "global" => "global_transformer",
        _ => "local_decoder",
    };
    let leaf = match parts[1..] {
        ["output"] if part == "local_decoder" => return "lm_head.weight".into(),
        ["output"] => "lm_head".to_string(),
        ["tok_embeddings"] => "embed_tokens".into(),
        ["patch_projection"] => "patch_embedding_projection".into(),
        ["input_projection"] => "token_embedding_projection".into(),
        ["layers", l, leaf] => {
            let leaf = match leaf {
                "attention_norm" => "input_layernorm",
                "wq" => "self_attn.q_proj",
                "wk" => "self_attn.k_proj",
                "wv" => "self_attn.v_proj",
                "wo" => "self_attn.o_proj",
                "ffn_norm" => "post_attention_layernorm",
                "w1" => "mlp.gate_proj",
                "w2" => "mlp.down_proj",
                _ => "mlp.up_proj",
            };
            format!("layers.{l}.{leaf}")
        }
        ["cross", l, leaf] => {
            let leaf = match leaf {
                "norm_q" => "q_norm",
                "norm_kv" => "k_norm",
                "wq" => "q_proj",
                "wk" => "k_proj",
                "wv" => "v_proj",
                _ => "o_proj",
            };
            format!("cross_attn_layers.{l}.{leaf}")
        }
        _ => parts[1..].join("."),
    };
    format!("model.{part}.{leaf}.weight")
}

/// Writes the folder.
///
/// # Errors
/// [`Error::Unsupported`] if transformers cannot express the model, [`Error::Io`] if a file cannot
/// be written.
pub fn write(folder: &Path, config: &Config, sources: &[&Params<f32>], dtype: DType) -> Result<()> {
    check(config)?;
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    // The hash tables are one tensor there; transformers wants one type for all.
    let mut list: Vec<(String, Vec<usize>, Vec<Tensor>)> = Vec::new();
    for (ours, tensor) in tensors(config, sources, dtype)? {
        let tensor = match tensor.dtype() == dtype {
            true => tensor,
            false => super::export::tensor(dtype, tensor.shape(), &tensor.to_f32_vec())?,
        };
        if ours.contains(".hash_embeddings.") {
            let fused = "model.encoder_hash_tok_embedding.weight";
            match list.last_mut() {
                Some((name, shape, parts)) if name == fused => {
                    shape[0] += tensor.rows();
                    parts.push(tensor);
                }
                _ => list.push((fused.into(), tensor.shape().to_vec(), vec![tensor])),
            }
        } else {
            list.push((name(&ours), tensor.shape().to_vec(), vec![tensor]));
        }
    }
    let specs = (list.iter())
        .map(|(name, shape, parts)| TensorSpec {
            name: name.clone(),
            dtype: dtype.name().into(),
            shape: shape.clone(),
            n_bytes: parts.iter().map(|t| t.bytes().len() as u64).sum(),
        })
        .collect();
    let metadata = [("format".to_string(), "pt".to_string())];
    let path = folder.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, &metadata, specs)?;
    for (name, _, parts) in &list {
        for part in parts {
            writer.write(name, part.bytes())?;
        }
    }
    writer.finish()?;
    let path = folder.join("config.json");
    let text = serde_json::to_string_pretty(&config_json(config, dtype)).expect("plain JSON");
    std::fs::write(&path, text).map_err(|e| Error::io(&path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, OpenOptions};
    use crate::config::DifferentialConfig;
    use crate::train::init::random;
    use crate::train::presets::preset;

    #[test]
    fn the_folder_opens_as_the_same_model() {
        for n_functions in [1, 2] {
            let mut config = preset("toy").unwrap();
            config.patcher.mode = PatchingMode::Entropy;
            config.hash.n_functions = n_functions;
            let params = random(&config, |_| true, 1).unwrap();
            let folder = std::env::temp_dir().join(format!("blt-hf-{}", std::process::id()));
            write(&folder, &config, &[&params], DType::F32).unwrap();
            let found = Checkpoint::open(&folder, &OpenOptions::default()).unwrap();
            assert_eq!(*found.config(), config);
            for (name, tensor) in found.tensors() {
                assert_eq!(
                    tensor.to_f32_vec(),
                    *params.saved_values(name).unwrap(),
                    "{name}"
                );
            }
            std::fs::remove_dir_all(&folder).unwrap();
        }
        let mut config = preset("toy").unwrap();
        config.patcher.mode = PatchingMode::Space;
        assert!(check(&config).unwrap_err().to_string().contains("space"));
        config.patcher.mode = PatchingMode::Entropy;
        config.decoder.differential = Some(DifferentialConfig { head_norm: true });
        let message = check(&config).unwrap_err().to_string();
        assert!(message.contains("no differential attention"), "{message}");
    }
}
