//! Named model sizes.

use crate::config::{
    Config, CrossAttentionConfig, HashConfig, PatcherConfig, PatchingMode, TransformerConfig,
};
use crate::error::{Error, Result};

/// 8/3 of the width, in whole vectors.
pub(super) fn hidden_of(dim: usize) -> usize {
    (dim * 8 / 3).next_multiple_of(32)
}

fn stack(dim: usize, n_layers: usize, n_heads: usize, window: Option<usize>) -> TransformerConfig {
    TransformerConfig {
        dim,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: dim / n_heads,
        hidden_dim: hidden_of(dim),
        norm_eps: 1e-5,
        rope_theta: 500_000.0,
        window,
        eos_segments: false,
        differential: None,
        variant: None,
    }
}

/// Whether byte embedding and output are one tensor in a model of that preset.
pub(super) fn is_tied(name: &str) -> bool {
    name == "55m"
}

/// The sizes of that name. `55m` has those of a public model trained on TinyStories: 55.4 M parameters and an entropy
/// model of 1.7 M.
///
/// # Errors
/// [`Error::Config`] for any other name.
pub fn preset(name: &str) -> Result<Config> {
    // local width, heads, encoder layers, decoder layers, window; global width, heads, layers; vectors per patch;
    // hash rows, longest n-gram; entropy width, layers, heads, window.
    let (local, global, k, hash, entropy) = match name {
        "toy" => ((32, 2, 1, 1, 64), (64, 2, 1), 2, (512, 8), (32, 1, 2, 32)),
        "tiny" => (
            (64, 2, 1, 2, 128),
            (128, 4, 3),
            2,
            (2048, 8),
            (64, 2, 2, 64),
        ),
        "small" => (
            (128, 4, 1, 3, 64),
            (256, 4, 6),
            2,
            (3001, 6),
            (96, 2, 3, 64),
        ),
        "55m" => (
            (256, 4, 1, 4, 128),
            (768, 12, 6),
            3,
            (4391, 8),
            (256, 2, 4, 512),
        ),
        _ => {
            return Err(Error::config(
                "preset",
                format!("expected toy, tiny, small or 55m, found \"{name}\""),
            ));
        }
    };
    let (dim, heads, encoder_layers, decoder_layers, window) = local;
    let cross = CrossAttentionConfig {
        n_heads: heads,
        n_kv_heads: heads,
        head_dim: dim / heads,
        norm_eps: 1e-5,
        all_layers: false,
        window: None,
        pool_each_layer: true,
    };
    let config = Config {
        entropy: Some(TransformerConfig {
            rope_theta: 10_000.0,
            ..stack(entropy.0, entropy.1, entropy.2, Some(entropy.3))
        }),
        encoder: stack(dim, encoder_layers, heads, Some(window)),
        encoder_cross: cross.clone(),
        global: stack(global.0, global.2, global.1, None),
        decoder: stack(dim, decoder_layers, heads, Some(window)),
        decoder_cross: CrossAttentionConfig {
            all_layers: true,
            ..cross
        },
        cross_attn_k: k,
        hash: HashConfig {
            group_sizes: (3..=hash.1).collect(),
            vocab: hash.0,
            n_functions: 1,
        },
        patcher: PatcherConfig {
            mode: if name == "toy" {
                PatchingMode::Static
            } else {
                PatchingMode::Entropy
            },
            threshold: 1.335_442_1,
            threshold_add: None,
            monotonicity: false,
            max_patch_length: None,
            patch_size: 4,
        },
        bolmo: None,
        max_bytes: 8192,
        max_patches: 8192,
    };
    config.validate()?;
    Ok(config)
}
