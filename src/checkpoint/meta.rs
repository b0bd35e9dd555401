//! The layouts of the original implementation: hub (`config.json` with `args`) and consolidated
//! (`params.json` with `model`), the entropy model's own configuration, and the name table.

use serde_json::Value;

use super::hf::DEFAULT_THRESHOLD;
use super::json::Object;
use super::source::Source;
use crate::config::{
    Config, CrossAttentionConfig, HashConfig, PatcherConfig, PatchingMode, TransformerConfig,
    check_vocab_size,
};
use crate::error::{Error, Result};

/// The one attention implementation of the original that honours windows and EOS segments. The
/// others are plain causal there; we keep the window a model was trained with whatever is said.
const XFORMERS: &str = "xformers";

/// Translates the model's arguments (`args` or `model`). `patcher_args`: those of `train_args.json` or `params.json`, see
/// [`patcher_args`], which the original's generation uses for patching; without
/// it the `patching_*` keys of the model count. The entropy model is the caller's to add.
///
/// # Errors
/// [`Error::Config`] naming a key that is missing, of the wrong type or out of range,
/// [`Error::Unsupported`] for a variant this engine does not compute.
pub(super) fn config(args: &Object, patcher_args: Option<PatcherConfig>) -> Result<Config> {
    check_vocab_size(&args.key("vocab_size"), args.required_size("vocab_size")?)?;
    check_variant(args)?;

    let xformers = args.text("attn_impl")? == Some(XFORMERS);
    let local_window = args.size("local_attention_window_len")?;
    let local = |dim: &str, n_layers: &str, n_heads: &str| -> Result<TransformerConfig> {
        Ok(TransformerConfig {
            window: local_window,
            // The local parts use the bias "local_block_causal" whatever attn_bias_type says.
            eos_segments: xformers,
            ..stack(args, dim, n_layers, n_heads, "n_kv_heads")?
        })
    };
    let encoder = local(
        "dim_local_encoder",
        "n_layers_local_encoder",
        "n_heads_local_encoder",
    )?;
    let decoder = local(
        "dim_local_decoder",
        "n_layers_local_decoder",
        "n_heads_local_decoder",
    )?;
    let global = TransformerConfig {
        eos_segments: xformers && global_bias(args)? == "block_causal",
        ..stack(
            args,
            "dim_global",
            "n_layers_global",
            "n_heads_global",
            "n_kv_heads_global",
        )?
    };

    let max_patches = args.size("max_seqlen")?.unwrap_or(1024);
    let config = Config {
        entropy: None,
        encoder_cross: cross(args, &encoder, "encoder")?,
        decoder_cross: cross(args, &decoder, "decoder")?,
        encoder,
        global,
        decoder,
        cross_attn_k: args.required_size("cross_attn_k")?,
        hash: HashConfig {
            group_sizes: group_sizes(args)?,
            vocab: args
                .size("encoder_hash_byte_group_vocab")?
                .unwrap_or(30_000),
            n_functions: args
                .size("encoder_hash_byte_group_nb_functions")?
                .unwrap_or(3),
        },
        patcher: match patcher_args {
            Some(patcher) => patcher,
            None => patcher(args, "patching_threshold", "patching_threshold_add")?,
        },
        // Null means no limit of its own: at one byte per patch, that of the patches.
        bolmo: None,
        max_bytes: args.size("max_encoder_seq_length")?.unwrap_or(max_patches),
        max_patches,
    };
    config.validate()?;
    Ok(config)
}

/// Refuses what the original can be configured to compute and this engine does not.
fn check_variant(args: &Object) -> Result<()> {
    let expect = |key: &str, default: bool, expected: bool| -> Result<()> {
        match args.flag(key)?.unwrap_or(default) {
            found if found == expected => Ok(()),
            found => Err(Error::Unsupported(format!(
                "configuration key \"{}\": expected {expected}, found {found}; this variant of \
                 the architecture is not supported",
                args.key(key)
            ))),
        }
    };
    expect("cross_attn_encoder", false, true)?;
    expect("cross_attn_decoder", false, true)?;
    expect("cross_attn_init_by_pooling", false, true)?;
    expect("use_local_encoder_transformer", false, true)?;
    expect("use_rope", true, true)?;
    expect("encoder_enable_byte_ngrams", false, false)?;
    match args.text("downsampling_by_pooling")? {
        None | Some("max") => Ok(()),
        Some(found) => Err(Error::Unsupported(format!(
            "configuration key \"{}\": expected \"max\", found {found:?}",
            args.key("downsampling_by_pooling")
        ))),
    }
}

fn global_bias<'a>(args: &Object<'a>) -> Result<&'a str> {
    match args.text("attn_bias_type")?.unwrap_or("causal") {
        bias @ ("causal" | "block_causal") => Ok(bias),
        other => Err(Error::config(
            args.key("attn_bias_type"),
            format!("expected causal or block_causal, found {other:?}"),
        )),
    }
}

/// One stack of layers, without window and segments.
fn stack(
    args: &Object,
    dim: &str,
    n_layers: &str,
    n_heads: &str,
    n_kv_heads: &str,
) -> Result<TransformerConfig> {
    let width = args.size(dim)?.unwrap_or(512);
    let heads = args.size(n_heads)?.unwrap_or(8);
    Ok(TransformerConfig {
        dim: width,
        n_layers: args.size(n_layers)?.unwrap_or(8),
        n_heads: heads,
        n_kv_heads: args.size(n_kv_heads)?.unwrap_or(heads),
        head_dim: match args.size("head_dim")? {
            Some(n) => n,
            None => head_dim(args, n_heads, width, heads)?,
        },
        hidden_dim: hidden_dim(
            width,
            args.number("ffn_dim_multiplier")?,
            &args.key("ffn_dim_multiplier"),
            args.size("multiple_of")?.unwrap_or(256),
        )?,
        norm_eps: args.number("norm_eps")?.unwrap_or(1e-5),
        rope_theta: args.number("rope_theta")?.unwrap_or(10_000.0),
        window: None,
        eos_segments: false,
        differential: None,
        variant: None,
    })
}

fn head_dim(args: &Object, key: &str, dim: usize, n_heads: usize) -> Result<usize> {
    if n_heads == 0 || !dim.is_multiple_of(n_heads) {
        return Err(Error::config(
            args.key(key),
            format!("expected a divisor of the width {dim}, found {n_heads}"),
        ));
    }
    Ok(dim / n_heads)
}

/// Two thirds of four widths, scaled, rounded up to a multiple.
fn hidden_dim(dim: usize, multiplier: Option<f32>, key: &str, multiple: usize) -> Result<usize> {
    let err = |found: String| {
        Err(Error::config(
            key,
            format!("expected a usable width of the feed-forward layers, found {found}"),
        ))
    };
    let Some(mut hidden) = dim.checked_mul(8).map(|n| n / 3) else {
        return err(format!("that of {dim}"));
    };
    if let Some(multiplier) = multiplier {
        if multiplier.is_nan() || multiplier <= 0.0 {
            return err(multiplier.to_string());
        }
        hidden = (f64::from(multiplier) * hidden as f64) as usize; // saturates
    }
    match multiple {
        0 => err("multiple_of 0".into()),
        m => match hidden.checked_next_multiple_of(m) {
            Some(n) => Ok(n),
            None => err(format!("{hidden} in multiples of {m}")),
        },
    }
}

fn cross(args: &Object, local: &TransformerConfig, part: &str) -> Result<CrossAttentionConfig> {
    let n_heads = args.required_size("cross_attn_nheads")?;
    Ok(CrossAttentionConfig {
        n_heads,
        n_kv_heads: n_heads,
        head_dim: head_dim(args, "cross_attn_nheads", local.dim, n_heads)?,
        norm_eps: local.norm_eps,
        all_layers: args
            .flag(&format!("cross_attn_all_layers_{part}"))?
            .unwrap_or(false),
        window: args.size(&format!("cross_attn_window_{part}"))?,
        pool_each_layer: false,
    })
}

/// A list, or numbers with commas between; null: no hash embeddings.
fn group_sizes(args: &Object) -> Result<Vec<usize>> {
    const KEY: &str = "encoder_hash_byte_group_size";
    let Some(Value::String(text)) = args.value(KEY) else {
        return Ok(args.sizes(KEY)?.unwrap_or_default());
    };
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| part.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|_| {
            Error::config(
                args.key(KEY),
                format!("expected numbers with commas between, found {text:?}"),
            )
        })
}

/// The patcher's settings in `train_args.json` or `params.json`, if there are any.
///
/// # Errors
/// As [`config`].
pub(super) fn patcher_args(train: &Object) -> Result<Option<PatcherConfig>> {
    let args = match train.object("data")? {
        Some(data) => data.object("patcher_args")?,
        None => None,
    };
    let Some(args) = args else {
        return Ok(None);
    };
    let patcher = patcher(&args, "threshold", "threshold_add")?;
    patcher.validate()?;
    Ok(Some(patcher))
}

fn patcher(o: &Object, threshold: &str, threshold_add: &str) -> Result<PatcherConfig> {
    let mode = match o.text("patching_mode")?.unwrap_or("entropy") {
        name @ ("" | "bpe_patcher") => {
            return Err(Error::Unsupported(format!(
                "configuration key \"{}\": expected entropy, space, static, byte or bpe, found \
                 {name:?}, which is not supported",
                o.key("patching_mode")
            )));
        }
        name => name.parse::<PatchingMode>()?,
    };
    if mode == PatchingMode::Entropy && o.has(threshold) && o.value(threshold).is_none() {
        return Err(Error::config(
            o.key(threshold),
            "expected a number of nats, found null; patches by rank need the whole text at once",
        ));
    }
    Ok(PatcherConfig {
        mode,
        threshold: o.threshold(threshold)?.unwrap_or(DEFAULT_THRESHOLD),
        threshold_add: o.threshold(threshold_add)?,
        monotonicity: o.flag("monotonicity")?.unwrap_or(false),
        max_patch_length: o.size("max_patch_length")?,
        patch_size: patch_size(o, mode)?,
    })
}

/// The patch size is a target average (4.5) except in static mode, where it is a count.
fn patch_size(o: &Object, mode: PatchingMode) -> Result<usize> {
    let size = o.number("patch_size")?.unwrap_or(4.5);
    if mode == PatchingMode::Static && (size.fract() != 0.0 || size < 1.0) {
        return Err(Error::config(
            o.key("patch_size"),
            format!("expected a whole number of bytes in static mode, found {size}"),
        ));
    }
    Ok((size as usize).max(1))
}

/// The entropy model's arguments in its own hub repository (`args`): all keys count.
///
/// # Errors
/// [`Error::Config`] naming a key that is missing, of the wrong type or out of range.
pub(super) fn entropy_from_hub(args: &Object) -> Result<TransformerConfig> {
    check_vocab_size(&args.key("vocab_size"), args.required_size("vocab_size")?)?;
    let bias = args.text("attn_bias_type")?.unwrap_or("causal");
    Ok(TransformerConfig {
        window: args.size("sliding_window")?,
        eos_segments: args.text("attn_impl")? == Some(XFORMERS) && bias.ends_with("block_causal"),
        ..stack(args, "dim", "n_layers", "n_heads", "n_kv_heads")?
    })
}

/// The entropy model's arguments beside a checkpoint (`entropy_model` in `params.json`). The
/// original's loader reads only the sizes and fixes everything else; so do we.
///
/// # Errors
/// [`Error::Config`] naming a key that is missing, of the wrong type or out of range.
pub(super) fn entropy_from_params(args: &Object) -> Result<TransformerConfig> {
    check_vocab_size(&args.key("vocab_size"), args.required_size("vocab_size")?)?;
    let dim = args.required_size("dim")?;
    let n_heads = args.required_size("n_heads")?;
    Ok(TransformerConfig {
        dim,
        n_layers: args.required_size("n_layers")?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: head_dim(args, "n_heads", dim, n_heads)?,
        hidden_dim: hidden_dim(
            dim,
            args.number("ffn_dim_multiplier")?,
            &args.key("ffn_dim_multiplier"),
            256,
        )?,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        window: Some(512),
        eos_segments: true,
        differential: None,
        variant: None,
    })
}

/// Names of tensors that only models with a token width of its own have; not supported.
pub(super) const TOKEN_PROJECTIONS: [&str; 2] = [
    "local_encoder.token_embedding_projection.weight",
    "local_decoder.token_embedding_projection.weight",
];

/// The name table: where the file has the tensor that we call `name`. The entropy model is a file of its own.
///
/// `tied_entropy`: the entropy model may have one tensor for input and output embeddings.
pub(super) fn source(name: &str, tied_entropy: bool) -> Source {
    if name == "entropy.output" && tied_entropy {
        return Source::either("output.weight", "tok_embeddings.weight");
    }
    let parts: Vec<&str> = name.split('.').collect();
    let part = match parts[0] {
        "entropy" => "",
        "encoder" => "local_encoder.",
        "global" => "global_transformer.",
        _ => "local_decoder.",
    };
    let leaf = match parts[1..] {
        ["hash_embeddings", table] => {
            return Source::named(format!("encoder_hash_tok_embedding.{table}.weight"));
        }
        ["patch_projection"] => "patch_embedding_projection".to_string(),
        ["input_projection"] => "token_embedding_projection".to_string(),
        ["layers", l, w @ ("wq" | "wk" | "wv" | "wo")] => format!("layers.{l}.attention.{w}"),
        ["layers", l, w @ ("w1" | "w2" | "w3")] => format!("layers.{l}.feed_forward.{w}"),
        ["cross", l, "norm_q"] => format!("cross_attn_layers.{l}.cross_attn_norm_q"),
        ["cross", l, "norm_kv"] => format!("cross_attn_layers.{l}.cross_attn_norm_kv"),
        ["cross", l, w] => format!("cross_attn_layers.{l}.{w}"),
        // tok_embeddings, norm, output, layers.L.attention_norm, layers.L.ffn_norm
        _ => parts[1..].join("."),
    };
    Source::named(format!("{part}{leaf}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({
            "vocab_size": 260, "attn_impl": "xformers", "attn_bias_type": "block_causal",
            "cross_attn_encoder": true, "cross_attn_decoder": true, "cross_attn_k": 2,
            "cross_attn_nheads": 8, "cross_attn_init_by_pooling": true,
            "use_local_encoder_transformer": true, "local_attention_window_len": 512,
            "ffn_dim_multiplier": 1.0,
        })
    }

    fn read(value: &Value, patcher: Option<&Value>) -> Result<Config> {
        let args = Object::root(value)?;
        let train = patcher.map(|args| json!({"data": {"patcher_args": args}}));
        let patcher = match &train {
            Some(train) => patcher_args(&Object::root(train)?)?,
            None => None,
        };
        config(&args, patcher)
    }

    #[test]
    fn feed_forward_widths_follow_the_rule() {
        for (dim, expected) in [
            (768, 2048),
            (1024, 2816),
            (1280, 3584),
            (2048, 5632),
            (4096, 11008),
        ] {
            assert_eq!(hidden_dim(dim, Some(1.0), "m", 256).unwrap(), expected);
            assert_eq!(hidden_dim(dim, None, "m", 256).unwrap(), expected);
        }
        assert_eq!(hidden_dim(1024, Some(1.3), "m", 256).unwrap(), 3584);
        assert!(hidden_dim(1024, Some(-1.0), "m", 256).is_err());
        assert!(hidden_dim(1024, Some(f32::NAN), "m", 256).is_err());
        assert!(hidden_dim(1024, Some(f32::MAX), "m", 256).is_err());
        assert!(hidden_dim(1024, None, "m", 0).is_err());
        assert!(hidden_dim(usize::MAX, None, "m", 256).is_err());
    }

    #[test]
    fn hash_sizes_are_a_list_a_string_or_nothing() {
        for (v, expected) in [
            (json!([3, 5]), vec![3, 5]),
            (json!("3,5, 8"), vec![3, 5, 8]),
            (json!(""), vec![]),
            (Value::Null, vec![]),
        ] {
            let mut value = sample();
            value["encoder_hash_byte_group_size"] = v.clone();
            assert_eq!(
                read(&value, None).unwrap().hash.group_sizes,
                expected,
                "{v}"
            );
        }
        let mut value = sample();
        value["encoder_hash_byte_group_size"] = json!("3;4");
        assert!(read(&value, None).is_err());
    }

    #[test]
    fn the_patcher_arguments_win_over_the_models() {
        let mut value = sample();
        value["patching_threshold"] = json!(1.0);
        value["patching_mode"] = json!("space");
        let c = read(&value, None).unwrap();
        assert_eq!(
            (c.patcher.mode, c.patcher.threshold),
            (PatchingMode::Space, 1.0)
        );
        let args = json!({"patching_mode": "entropy", "threshold": 2.5, "threshold_add": -0.5});
        let c = read(&value, Some(&args)).unwrap();
        assert_eq!(
            (c.patcher.mode, c.patcher.threshold),
            (PatchingMode::Entropy, 2.5)
        );
        assert_eq!(c.patcher.threshold_add, Some(-0.5));
        assert_eq!(
            read(&value, Some(&json!({}))).unwrap().patcher.threshold,
            DEFAULT_THRESHOLD
        );
    }

    #[test]
    fn segments_need_xformers_and_in_the_global_part_block_causal() {
        let cases = [
            ("xformers", "block_causal", true, true),
            ("xformers", "causal", true, false),
            ("flex_attention", "block_causal", false, false),
        ];
        for (attn_impl, bias, local, global) in cases {
            let mut value = sample();
            value["attn_impl"] = json!(attn_impl);
            value["attn_bias_type"] = json!(bias);
            let c = read(&value, None).unwrap();
            assert_eq!(c.encoder.eos_segments, local, "{attn_impl} {bias}");
            assert_eq!(c.decoder.eos_segments, local, "{attn_impl} {bias}");
            assert_eq!(c.global.eos_segments, global, "{attn_impl} {bias}");
        }
    }

    #[test]
    fn faults_and_unsupported_variants_name_the_key() {
        let cases = [
            ("vocab_size", json!(257)),
            ("vocab_size", Value::Null),
            ("cross_attn_k", json!("two")),
            ("cross_attn_k", json!(0)),
            ("cross_attn_nheads", json!(0)),
            ("cross_attn_nheads", json!(7)),
            ("n_heads_global", json!(0)),
            ("cross_attn_encoder", json!(false)),
            ("cross_attn_decoder", json!("yes")),
            ("use_rope", json!(false)),
            ("downsampling_by_pooling", json!("mean")),
            ("attn_bias_type", json!("local_block_causal")),
            ("patching_mode", json!("bpe_patcher")),
            ("patching_mode", json!("words")),
            ("patching_threshold", Value::Null),
            ("patching_threshold", json!("nan")),
            ("encoder_enable_byte_ngrams", json!(true)),
            ("ffn_dim_multiplier", json!(0)),
        ];
        for (key, v) in cases {
            let mut value = sample();
            value[key] = v.clone();
            let message = read(&value, None).expect_err(key).to_string();
            assert!(message.contains(key), "{key} = {v}: {message}");
        }
        let size = json!({"patching_mode": "static", "patch_size": 4.5});
        assert!(
            read(&sample(), Some(&size))
                .unwrap_err()
                .to_string()
                .contains("patch_size")
        );
    }

    #[test]
    fn the_params_form_of_the_entropy_model_fixes_all_but_the_sizes() {
        let value = json!({"dim": 768, "n_layers": 14, "n_heads": 12, "vocab_size": 260,
            "rope_theta": 5.0, "norm_eps": 1.0, "sliding_window": 7, "multiple_of": 32});
        let o = Object::root(&value).unwrap();
        let c = entropy_from_params(&o).unwrap();
        assert_eq!(
            (c.rope_theta, c.norm_eps, c.window, c.hidden_dim),
            (1e4, 1e-5, Some(512), 2048)
        );
        assert!(c.eos_segments);
        let c = entropy_from_hub(&o).unwrap();
        assert_eq!((c.rope_theta, c.norm_eps, c.window), (5.0, 1.0, Some(7)));
        assert!(!c.eos_segments);
    }
}
