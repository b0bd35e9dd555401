//! The one list of the model's tensors: our names, their shapes, their order.
//!
//! Linear weights are (out, in), row-major. The layouts' name tables translate these names.

use crate::config::{Config, CrossAttentionConfig, TransformerConfig};
use crate::vocab::VOCAB_SIZE;

/// Every tensor of a model of this configuration under our name, with its shape, in canonical
/// order: entropy model, encoder, global transformer, decoder.
///
/// The configuration must be [valid](Config::validate).
pub fn expected_tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let mut list = Vec::new();
    let local = config.encoder.dim;
    let patch = config.patch_dim();
    let global = config.global.dim;
    let mut add = |name: String, shape: Vec<usize>| list.push((name, shape));

    if let Some(entropy) = &config.entropy {
        add(
            "entropy.tok_embeddings".into(),
            vec![VOCAB_SIZE, entropy.dim],
        );
        layers("entropy", entropy, &mut add);
        add("entropy.norm".into(), vec![entropy.dim]);
        add("entropy.output".into(), vec![VOCAB_SIZE, entropy.dim]);
    }

    add("encoder.tok_embeddings".into(), vec![VOCAB_SIZE, local]);
    for table in 0..config.hash.n_tables() {
        add(
            format!("encoder.hash_embeddings.{table}"),
            vec![config.hash.vocab, local],
        );
    }
    layers("encoder", &config.encoder, &mut add);
    let n_cross = config.n_encoder_cross();
    cross("encoder", &config.encoder_cross, n_cross, local, &mut add);
    add("encoder.patch_projection".into(), vec![patch, local]);

    if config.has_global_projection() {
        add("global.input_projection".into(), vec![global, patch]);
    }
    layers("global", &config.global, &mut add);

    add("decoder.patch_projection".into(), vec![patch, global]);
    let n_cross = config.n_decoder_cross();
    cross("decoder", &config.decoder_cross, n_cross, local, &mut add);
    layers("decoder", &config.decoder, &mut add);
    add("decoder.norm".into(), vec![local]);
    add("decoder.output".into(), vec![VOCAB_SIZE, local]);
    list
}

fn layers(part: &str, c: &TransformerConfig, add: &mut impl FnMut(String, Vec<usize>)) {
    let q = c.n_heads * c.head_dim;
    let kv = c.n_kv_heads * c.head_dim;
    for l in 0..c.n_layers {
        for (tensor, shape) in [
            ("attention_norm", vec![c.dim]),
            ("wq", vec![q, c.dim]),
            ("wk", vec![kv, c.dim]),
            ("wv", vec![kv, c.dim]),
            ("wo", vec![c.dim, q]),
            ("ffn_norm", vec![c.dim]),
            ("w1", vec![c.hidden_dim, c.dim]),
            ("w2", vec![c.dim, c.hidden_dim]),
            ("w3", vec![c.hidden_dim, c.dim]),
        ] {
            add(format!("{part}.layers.{l}.{tensor}"), shape);
        }
        if let Some(differential) = &c.differential {
            for vector in ["lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"] {
                add(format!("{part}.layers.{l}.{vector}"), vec![c.key_dim()]);
            }
            if differential.head_norm {
                add(format!("{part}.layers.{l}.head_norm"), vec![c.head_dim]);
            }
        }
    }
}

fn cross(
    part: &str,
    c: &CrossAttentionConfig,
    n_cross: usize,
    dim: usize,
    add: &mut impl FnMut(String, Vec<usize>),
) {
    let q = c.n_heads * c.head_dim;
    let kv = c.n_kv_heads * c.head_dim;
    for l in 0..n_cross {
        for (tensor, shape) in [
            ("norm_q", vec![dim]),
            ("norm_kv", vec![dim]),
            ("wq", vec![q, dim]),
            ("wk", vec![kv, dim]),
            ("wv", vec![kv, dim]),
            ("wo", vec![dim, q]),
        ] {
            add(format!("{part}.cross.{l}.{tensor}"), shape);
        }
    }
}
