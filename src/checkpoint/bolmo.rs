//! The layout of the Bolmo family as its publisher ships it: its configuration keys and its name table.
//!
//! Null counts as absent for every key. A key that would change the numbers in a way this engine does not compute is
//! refused by name. Where the configuration class has a default that no released model has, the key must be there.

use std::sync::Arc;

use serde_json::Value;

use super::json::Object;
use super::source::Source;
use super::tokenizer::Wanted;
use crate::config::{
    BolmoConfig, Config, CrossAttentionConfig, HashConfig, LayerVariant, PatcherConfig,
    PatchingMode, QkNorm, RopeScaling, Subwords, TransformerConfig,
};
use crate::error::{Error, Result};
use crate::subwords::SubwordTable;
use crate::vocab::{BOS, BYTE_OFFSET, Id, VOCAB_SIZE};

/// Patches a session holds at most unless it says otherwise. Positions are patches and nothing in the model ends at
/// `max_position_embeddings`.
const MAX_PATCHES: usize = 1 << 16;

/// Bytes a session holds at most unless it says otherwise.
const MAX_BYTES: usize = 1 << 19;

/// Names of the special ids.
const SPECIAL_TOKENS: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<bpe_token_end>"];

/// Translates `config.json`; `stops`: those of `generation_config.json`, see [`more_stops`]. `open_subwords` finds the subwords
/// of a model that has some.
///
/// # Errors
/// [`Error::Config`] naming a key that is missing, of the wrong type or out of range, [`Error::Unsupported`] naming one
/// whose value this engine does not compute; those of `open_subwords`.
pub(super) fn config(
    value: &Value,
    stops: Vec<usize>,
    open_subwords: impl FnOnce(&Wanted<'_>) -> Result<SubwordTable>,
) -> Result<Config> {
    let root = Object::root(value)?;
    let n_columns = root.size("vocab_size")?.unwrap_or(2 * VOCAB_SIZE);
    expect(&root, "vocab_size", n_columns == 2 * VOCAB_SIZE, "520")?;
    expect_text(&root, "hidden_act", "silu", &["silu"])?;
    expect_text(&root, "boundary_threshold", "sample:0", &["sample:0"])?;
    let lookahead = root.size("boundary_predictor_lookahead")?.unwrap_or(1);
    expect(&root, "boundary_predictor_lookahead", lookahead == 1, "1")?;
    expect_text(&root, "norm_type", "rms", &["rms", "qwen_rms"])?;
    let rotated = root.number("partial_rotary_factor")?.unwrap_or(1.0);
    expect(&root, "partial_rotary_factor", rotated == 1.0, "1")?;

    let dim = root.size("hidden_size")?.unwrap_or(4096);
    let norm_eps = root.number("rms_norm_eps")?.unwrap_or(1e-5);
    let local_heads = root.size("num_local_heads")?.unwrap_or(16);
    if local_heads == 0 || !dim.is_multiple_of(local_heads.saturating_mul(2)) {
        return Err(Error::config(
            "num_local_heads",
            format!("expected a divisor of half of hidden_size = {dim}, found {local_heads}"),
        ));
    }
    let local = |n_layers| -> Result<TransformerConfig> {
        Ok(TransformerConfig {
            dim,
            n_layers,
            n_heads: local_heads,
            n_kv_heads: local_heads,
            head_dim: dim / local_heads,
            hidden_dim: root.size("local_intermediate_size")?.unwrap_or(5504),
            norm_eps,
            rope_theta: 10_000.0, // of no effect
            window: None,
            eos_segments: false,
            differential: None,
            variant: None,
        })
    };
    let encoder = local(root.size("num_local_encoder_layers")?.unwrap_or(1))?;
    let decoder = local(root.size("num_local_decoder_layers")?.unwrap_or(4))?;
    let TokenizerKeys {
        identifier,
        eos,
        pad,
    } = tokenizer(&root)?;
    let n_rows = root.size("subword_vocab_size")?.unwrap_or(100_278);
    let has_subwords = root.flag("add_expanded_embeddings")?.unwrap_or(true);
    let mut config = Config {
        entropy: None,
        encoder_cross: no_cross(&encoder),
        decoder_cross: no_cross(&decoder),
        encoder,
        global: global(&root, dim, norm_eps)?,
        decoder,
        cross_attn_k: 1,
        hash: HashConfig {
            group_sizes: Vec::new(),
            vocab: 1,
            n_functions: 1,
        },
        patcher: PatcherConfig {
            mode: PatchingMode::Byte, // of no effect
            threshold: 0.0,
            threshold_add: None,
            monotonicity: false,
            max_patch_length: None,
            patch_size: 1,
        },
        bolmo: Some(BolmoConfig {
            join_norm_eps: root.number("local_rms_norm_eps")?.unwrap_or(1e-5),
            subwords: None,
            stop_ids: stop_ids(eos, stops),
            tokenizer: identifier.to_string(),
        }),
        max_bytes: MAX_BYTES,
        max_patches: MAX_PATCHES,
    };
    config.validate()?;
    if let Some(bolmo) = config.bolmo.as_mut().filter(|_| has_subwords) {
        let wanted = Wanted {
            n_rows,
            special_tokens: &SPECIAL_TOKENS,
            bos: BOS,
            eos,
            pad,
            identifier,
        };
        let table = Arc::new(open_subwords(&wanted)?);
        bolmo.subwords = Some(Subwords { n_rows, table });
    }
    config.validate()?;
    Ok(config)
}

/// Cross-attention of no effect.
fn no_cross(stack: &TransformerConfig) -> CrossAttentionConfig {
    CrossAttentionConfig {
        n_heads: stack.n_heads,
        n_kv_heads: stack.n_kv_heads,
        head_dim: stack.head_dim,
        norm_eps: stack.norm_eps,
        all_layers: false,
        window: None,
        pool_each_layer: false,
    }
}

fn global(root: &Object, dim: usize, norm_eps: f32) -> Result<TransformerConfig> {
    let n_layers = root.size("num_hidden_layers")?.unwrap_or(32);
    let n_heads = root.size("num_attention_heads")?.unwrap_or(32);
    let head_dim = match root.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if n_heads > 0 && dim.is_multiple_of(n_heads) => dim / n_heads,
        None => {
            return Err(Error::config(
                "num_attention_heads",
                format!("expected a divisor of hidden_size = {dim}, found {n_heads}"),
            ));
        }
    };
    let order = expect_text(
        root,
        "block_type",
        "reordered_norm",
        &["reordered_norm", "default"],
    )?;
    let qk_norm = match (
        root.flag("use_qk_norm")?.unwrap_or(true),
        root.flag("use_head_qk_norm")?.unwrap_or(false),
    ) {
        (false, _) => None,
        (true, false) => Some(QkNorm::Row),
        (true, true) => Some(QkNorm::Head),
    };
    let scaling = match root.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => root.object("rope_scaling")?,
    };
    let theta = match &scaling {
        Some(scaling) => scaling.number("rope_theta")?,
        None => None,
    };
    let theta = theta.or(root.number("rope_theta")?);
    Ok(TransformerConfig {
        dim,
        n_layers,
        n_heads,
        n_kv_heads: root.size("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        hidden_dim: root.size("intermediate_size")?.unwrap_or(11_008),
        norm_eps,
        // The class's default is that of no released model.
        rope_theta: root.required(
            "rope_theta",
            "the number of the source model, such as 500000",
            theta,
        )?,
        window: None,
        eos_segments: false,
        differential: None,
        variant: Some(Box::new(LayerVariant {
            norm_after: order == "reordered_norm",
            qk_norm,
            attention_bias: root.flag("attention_bias")?.unwrap_or(false),
            windows: windows(root, n_layers)?,
            rope_scaling: match scaling {
                Some(scaling) => rope_scaling(root, &scaling)?,
                None => RopeScaling::None,
            },
        })),
    })
}

/// Every fourth layer sees everything if the file does not say which do.
fn windows(root: &Object, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = Some(root.size("sliding_window")?.unwrap_or(4096));
    let Some(value) = root.value("layer_types") else {
        let n_layers = n_layers.min(4096 + 1); // more are refused later
        return Ok((1..=n_layers)
            .map(|layer| window.filter(|_| layer % 4 != 0))
            .collect());
    };
    let list = root.required("layer_types", "a list of names", value.as_array())?;
    (list.iter())
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(window),
            _ => Err(unsupported(
                &root.key("layer_types"),
                "\"full_attention\" or \"sliding_attention\"",
                &kind.to_string(),
            )),
        })
        .collect()
}

fn rope_scaling(root: &Object, scaling: &Object) -> Result<RopeScaling> {
    let kind = match scaling.text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.text("type")?,
    };
    let original = |fallback: Option<f32>| -> Result<f32> {
        let positions = scaling
            .number("original_max_position_embeddings")?
            .or(fallback);
        scaling.required("original_max_position_embeddings", "a number", positions)
    };
    Ok(match kind.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: scaling.required_number("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.required_number("factor")?,
            low_freq_factor: scaling.required_number("low_freq_factor")?,
            high_freq_factor: scaling.required_number("high_freq_factor")?,
            original_positions: original(None)?,
        },
        "yarn" => {
            let factor = scaling.required_number("factor")?;
            let positions = root.number("max_position_embeddings")?.unwrap_or(2048.0);
            let magnitude = |mscale: f32| match factor > 1.0 {
                true => 0.1 * mscale * factor.ln() + 1.0,
                false => 1.0,
            };
            let attention_factor = match (
                scaling.number("attention_factor")?,
                scaling.number("mscale")?,
                scaling.number("mscale_all_dim")?,
            ) {
                (Some(given), ..) => given,
                (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                    magnitude(mscale) / magnitude(all)
                }
                _ => magnitude(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: scaling.number("beta_fast")?.unwrap_or(32.0),
                beta_slow: scaling.number("beta_slow")?.unwrap_or(1.0),
                original_positions: original(Some(positions))?,
                attention_factor,
                truncate: scaling.flag("truncate")?.unwrap_or(true),
            }
        }
        other => {
            return Err(unsupported(
                &scaling.key("rope_type"),
                "\"default\", \"linear\", \"llama3\" or \"yarn\"",
                &format!("{other:?}"),
            ));
        }
    })
}

/// What `tokenizer_config` says.
struct TokenizerKeys<'a> {
    identifier: &'a str,
    eos: Id,
    pad: Id,
}

fn tokenizer<'a>(root: &Object<'a>) -> Result<TokenizerKeys<'a>> {
    let keys = root.required_object("tokenizer_config")?;
    let n_columns = keys.size("vocab_size")?.unwrap_or(2 * VOCAB_SIZE);
    expect(&keys, "vocab_size", n_columns == 2 * VOCAB_SIZE, "520")?;
    let first = keys.flag("special_tokens_first")?.unwrap_or(true);
    expect(&keys, "special_tokens_first", first, "true")?;
    if let Some(names) = keys.value("special_tokens") {
        let known = SPECIAL_TOKENS.map(|name| Value::String(name.into()));
        let same = names.as_array().is_some_and(|names| names[..] == known);
        expect(
            &keys,
            "special_tokens",
            same,
            &format!("{SPECIAL_TOKENS:?}"),
        )?;
    }
    let id = |key: &str, default: Id| -> Result<Id> {
        let id = keys.size(key)?.unwrap_or(default.into());
        expect(&keys, key, id < usize::from(BYTE_OFFSET), "0 to 3")?;
        Ok(id as Id)
    };
    expect(&keys, "bos_token_id", id("bos_token_id", BOS)? == BOS, "1")?;
    expect(
        &keys,
        "bpe_token_end_id",
        id("bpe_token_end_id", 3)? == 3,
        "3",
    )?;
    Ok(TokenizerKeys {
        identifier: keys
            .text("original_identifier")?
            .unwrap_or("allenai/dolma2-tokenizer"),
        eos: id("eos_token_id", BOS)?,
        pad: id("pad_token_id", 0)?,
    })
}

/// The ids that end a generation as `generation_config.json` names them.
///
/// # Errors
/// [`Error::Config`] if they are not numbers.
pub(super) fn more_stops(generation: &Value) -> Result<Vec<usize>> {
    const KEY: &str = "eos_token_id";
    let root = Object::root(generation)?;
    match root.value(KEY) {
        Some(Value::Array(_)) => Ok(root.sizes(KEY)?.unwrap_or_default()),
        _ => Ok(root.size(KEY)?.into_iter().collect()),
    }
}

/// The ids that end a generation: the tokenizer's EOS, and `more`, which carry flags.
fn stop_ids(eos: Id, more: Vec<usize>) -> Vec<Id> {
    let mut stops = vec![eos];
    for id in more {
        // From another vocabulary: 50279 is the class's default.
        if id >= 2 * VOCAB_SIZE {
            continue;
        }
        let id = (id % VOCAB_SIZE) as Id;
        if !stops.contains(&id) {
            stops.push(id);
        }
    }
    stops
}

fn unsupported(key: &str, expected: &str, found: &str) -> Error {
    Error::Unsupported(format!(
        "configuration key \"{key}\": expected {expected}, found {found}"
    ))
}

/// Refuses the value of a key by its name.
fn expect(o: &Object, key: &str, holds: bool, expected: &str) -> Result<()> {
    let found = || o.value(key).map_or("nothing".into(), Value::to_string);
    match holds {
        true => Ok(()),
        false => Err(unsupported(&o.key(key), expected, &found())),
    }
}

/// A name out of `known`.
fn expect_text<'a>(o: &Object<'a>, key: &str, default: &'a str, known: &[&str]) -> Result<&'a str> {
    let name = o.text(key)?.unwrap_or(default);
    let list: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
    expect(o, key, known.contains(&name), &list.join(" or "))?;
    Ok(name)
}

/// The name table: where the file has the tensor that we call `name`.
pub(super) fn source(name: &str, config: &Config, tied: bool) -> Source {
    const EMBEDDINGS: &str = "model.local_encoder.byte_embedding.weight";
    let norm_after = (config.global.variant.as_ref()).is_some_and(|variant| variant.norm_after);
    let parts: Vec<&str> = name.split('.').collect();
    let found = match parts[..] {
        ["encoder", "tok_embeddings"] => EMBEDDINGS.into(),
        ["encoder", "subword_embeddings"] => "model.local_encoder.subword_embedding.weight".into(),
        ["encoder", "norm"] => "model.local_encoder.post_last_block_norm.weight".into(),
        ["encoder", "patch_projection"] => "model.local_encoder.out_projection.weight".into(),
        ["encoder", "patch_bias"] => "model.local_encoder.out_projection.bias".into(),
        ["encoder", "boundary_q"] => {
            "model.local_encoder.boundary_predictor_module.q_proj_layer.weight".into()
        }
        ["encoder", "boundary_k"] => {
            "model.local_encoder.boundary_predictor_module.k_proj_layer.weight".into()
        }
        ["decoder", "patch_norm"] => "model.local_decoder.initial_norm.weight".into(),
        ["decoder", "byte_projection"] => "model.local_decoder.in_projection.weight".into(),
        ["decoder", "byte_bias"] => "model.local_decoder.in_projection.bias".into(),
        ["decoder", "norm"] => "model.norm.weight".into(),
        ["decoder", "output"] if tied => EMBEDDINGS.into(),
        ["decoder", "output"] => "lm_head.weight".into(),
        ["global", "layers", layer, tensor] => {
            let tensor = match tensor {
                "attention_norm" if norm_after => "post_attention_layernorm.weight",
                "attention_norm" => "input_layernorm.weight",
                "ffn_norm" if norm_after => "post_feedforward_layernorm.weight",
                "ffn_norm" => "post_attention_layernorm.weight",
                "wq" => "self_attn.q_proj.weight",
                "wk" => "self_attn.k_proj.weight",
                "wv" => "self_attn.v_proj.weight",
                "wo" => "self_attn.o_proj.weight",
                "bq" => "self_attn.q_proj.bias",
                "bk" => "self_attn.k_proj.bias",
                "bv" => "self_attn.v_proj.bias",
                "bo" => "self_attn.o_proj.bias",
                "norm_q" => "self_attn.q_norm.weight",
                "norm_k" => "self_attn.k_norm.weight",
                "w1" => "mlp.gate_proj.weight",
                "w2" => "mlp.down_proj.weight",
                "w3" => "mlp.up_proj.weight",
                other => other,
            };
            format!("model.layers.{layer}.{tensor}")
        }
        [part, "layers", layer, tensor] => {
            let tensor = match tensor {
                "cell_norm" => "pre_xlstm_layernorm.weight",
                "wq" => "xlstm.q.weight",
                "wk" => "xlstm.k.weight",
                "wv" => "xlstm.v.weight",
                "wg" => "xlstm.ogate_preact.weight",
                "wi" => "xlstm.igate_preact.weight",
                "bi" => "xlstm.igate_preact.bias",
                "wf" => "xlstm.fgate_preact.weight",
                "bf" => "xlstm.fgate_preact.bias",
                "head_norm" => "xlstm.multihead_norm.weight",
                "wo" => "xlstm.out_proj.weight",
                "ffn_norm" => "pre_feedforward_layernorm.weight",
                "w1" => "mlp.gate_proj.weight",
                "w2" => "mlp.down_proj.weight",
                "w3" => "mlp.up_proj.weight",
                other => other,
            };
            format!("model.local_{part}.layers.{layer}.{tensor}")
        }
        _ => name.to_string(),
    };
    Source::named(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subwords::Subword;
    use serde_json::json;

    fn sample() -> Value {
        json!({
            "model_type": "bolmo", "rope_theta": 500000,
            "tokenizer_config": {"eos_token_id": 1, "original_identifier": "org/source"},
        })
    }

    fn config(value: &Value, generation: Option<&Value>) -> Result<Config> {
        let stops = generation.map(more_stops).transpose()?.unwrap_or_default();
        super::config(value, stops, |wanted| {
            assert_eq!((wanted.bos, wanted.pad), (1, 0));
            let single = (0..=255u8).map(|byte| (Subword::Bytes(vec![byte]), byte.into()));
            Ok(SubwordTable::new(single.chain([(Subword::Special(1), 256)])).unwrap())
        })
    }

    fn variant(value: &Value) -> LayerVariant {
        *config(value, None).unwrap().global.variant.unwrap()
    }

    #[test]
    fn silent_configurations_mean_the_classes_defaults() {
        let c = config(&sample(), None).unwrap();
        assert_eq!(
            (c.encoder.dim, c.encoder.n_layers, c.decoder.n_layers),
            (4096, 1, 4)
        );
        assert_eq!(
            (c.encoder.n_heads, c.encoder.head_dim, c.encoder.hidden_dim),
            (16, 256, 5504)
        );
        assert_eq!(
            (c.global.n_layers, c.global.n_heads, c.global.n_kv_heads),
            (32, 32, 32)
        );
        assert_eq!(
            (c.global.head_dim, c.global.hidden_dim, c.n_logits()),
            (128, 11_008, 520)
        );
        let bolmo = c.bolmo.as_ref().unwrap();
        assert_eq!(bolmo.subwords.as_ref().unwrap().n_rows, 100_278);
        assert_eq!(bolmo.stop_ids, [1]);
        assert_eq!(bolmo.tokenizer, "org/source");
        let variant = c.global.variant.unwrap();
        assert_eq!(
            (variant.norm_after, variant.qk_norm),
            (true, Some(QkNorm::Row))
        );
        assert_eq!(
            variant.windows[..5],
            [Some(4096), Some(4096), Some(4096), None, Some(4096)]
        );
    }

    #[test]
    fn null_counts_as_absent() {
        let mut value = sample();
        for key in [
            "vocab_size",
            "hidden_act",
            "layer_types",
            "rope_scaling",
            "head_dim",
            "block_type",
            "norm_type",
            "boundary_threshold",
            "partial_rotary_factor",
            "num_key_value_heads",
            "use_qk_norm",
        ] {
            value[key] = Value::Null;
        }
        value["tokenizer_config"]["special_tokens"] = Value::Null;
        assert_eq!(
            config(&value, None).unwrap(),
            config(&sample(), None).unwrap()
        );
    }

    #[test]
    fn values_that_change_the_numbers_are_refused_by_name() {
        let cases = [
            ("/vocab_size", json!(260), "vocab_size"),
            ("/hidden_act", json!("gelu"), "hidden_act"),
            (
                "/boundary_threshold",
                json!("sample:1"),
                "boundary_threshold",
            ),
            (
                "/boundary_predictor_lookahead",
                json!(0),
                "boundary_predictor_lookahead",
            ),
            ("/block_type", json!("peri"), "block_type"),
            ("/norm_type", json!("layer"), "norm_type"),
            (
                "/layer_types",
                json!(["full_attention", "chunked"]),
                "layer_types",
            ),
            ("/layer_types", json!(["full_attention"]), "layer_types"),
            ("/layer_types", json!("full_attention"), "layer_types"),
            (
                "/partial_rotary_factor",
                json!(0.5),
                "partial_rotary_factor",
            ),
            ("/rope_theta", Value::Null, "rope_theta"),
            (
                "/rope_scaling",
                json!({"rope_type": "dynamic", "factor": 2}),
                "rope_type",
            ),
            (
                "/rope_scaling",
                json!({"rope_type": "llama3", "factor": 2}),
                "low_freq_factor",
            ),
            ("/rope_scaling", json!({"type": "linear"}), "factor"),
            (
                "/rope_scaling",
                json!({"type": "linear", "factor": 0}),
                "factor",
            ),
            ("/num_local_heads", json!(3), "num_local_heads"),
            ("/num_local_heads", json!(0), "num_local_heads"),
            ("/num_attention_heads", json!(0), "num_attention_heads"),
            ("/num_key_value_heads", json!(5), "n_kv_heads"),
            ("/sliding_window", json!(0), "sliding_window"),
            ("/subword_vocab_size", json!(0), "subword_vocab_size"),
            ("/tokenizer_config", Value::Null, "tokenizer_config"),
            (
                "/tokenizer_config/special_tokens_first",
                json!(false),
                "special_tokens_first",
            ),
            (
                "/tokenizer_config/special_tokens",
                json!(["<pad>"]),
                "special_tokens",
            ),
            (
                "/tokenizer_config/vocab_size",
                json!(519),
                "tokenizer_config.vocab_size",
            ),
            ("/tokenizer_config/bos_token_id", json!(2), "bos_token_id"),
            ("/tokenizer_config/eos_token_id", json!(4), "eos_token_id"),
        ];
        for (pointer, bad, key) in cases {
            let mut value = sample();
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            value.pointer_mut(parent).unwrap()[last] = bad.clone();
            let message = config(&value, None).expect_err(pointer).to_string();
            assert!(message.contains(key), "{pointer} {bad}: {message}");
        }
    }

    #[test]
    fn rope_scaling_is_read_in_all_spellings() {
        let mut value = sample();
        value["rope_scaling"] = json!({"type": "linear", "factor": 4.0});
        assert_eq!(
            variant(&value).rope_scaling,
            RopeScaling::Linear { factor: 4.0 }
        );
        value["rope_scaling"] = json!({"rope_type": "yarn", "factor": 8.0, "beta_fast": null});
        value["max_position_embeddings"] = json!(8192);
        let RopeScaling::Yarn {
            beta_fast,
            beta_slow,
            original_positions,
            attention_factor,
            truncate,
            ..
        } = variant(&value).rope_scaling
        else {
            panic!("expected yarn");
        };
        assert_eq!(
            (beta_fast, beta_slow, original_positions, truncate),
            (32.0, 1.0, 8192.0, true)
        );
        assert!(
            (attention_factor - 1.20794).abs() < 1e-5,
            "{attention_factor}"
        );
        value["rope_theta"] = Value::Null;
        value["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1e6});
        assert_eq!(config(&value, None).unwrap().global.rope_theta, 1e6);
        assert_eq!(variant(&value).rope_scaling, RopeScaling::None);
    }

    #[test]
    fn stop_ids_of_both_files_count_once_and_without_their_flag() {
        for (generation, expected) in [
            (json!({}), vec![1]),
            (json!({"eos_token_id": 50279}), vec![1]),
            (json!({"eos_token_id": 1}), vec![1]),
            (json!({"eos_token_id": 261}), vec![1]),
            (json!({"eos_token_id": [2, 274, 520]}), vec![1, 2, 14]),
        ] {
            let c = config(&sample(), Some(&generation)).unwrap();
            assert_eq!(c.bolmo.unwrap().stop_ids, expected, "{generation}");
        }
        let message = config(&sample(), Some(&json!({"eos_token_id": "x"})))
            .unwrap_err()
            .to_string();
        assert!(message.contains("eos_token_id"), "{message}");
    }
}
