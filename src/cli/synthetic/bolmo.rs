//! The shapes of the Bolmo family, and subwords of the right number for their tables.

use std::sync::Arc;

use crate::config::{
    BolmoConfig, Config, CrossAttentionConfig, HashConfig, LayerVariant, PatcherConfig,
    PatchingMode, QkNorm, RopeScaling, Subwords, TransformerConfig,
};
use crate::subwords::{Subword, SubwordTable};

/// The configuration of `bolmo-1b`, `bolmo-7b` or `bwen-8b`; `None` for another name.
pub fn config(shape: &str) -> Option<Config> {
    let is_bwen = shape == "bwen-8b";
    let (dim, n_layers, n_heads, n_kv_heads, hidden_dim, local_hidden_dim, theta, n_rows) =
        match shape {
            "bolmo-1b" => (2048, 16, 16, 16, 8192, 2816, 5e5, 100_278),
            "bolmo-7b" => (4096, 32, 32, 32, 11_008, 5504, 5e5, 100_278),
            "bwen-8b" => (4096, 36, 32, 8, 12_288, 5504, 1e6, 151_936),
            _ => return None,
        };
    let norm_eps = 1e-6;
    let window = |layer: usize| (shape == "bolmo-7b" && layer % 4 != 3).then_some(4096);
    let local = |n_layers| TransformerConfig {
        dim,
        n_layers,
        n_heads: 16,
        n_kv_heads: 16,
        head_dim: dim / 16,
        hidden_dim: local_hidden_dim,
        norm_eps,
        rope_theta: 1e4,
        window: None,
        eos_segments: false,
        differential: None,
        variant: None,
    };
    let cross = CrossAttentionConfig {
        n_heads: 16,
        n_kv_heads: 16,
        head_dim: dim / 16,
        norm_eps,
        all_layers: false,
        window: None,
        pool_each_layer: false,
    };
    Some(Config {
        entropy: None,
        encoder: local(1),
        encoder_cross: cross.clone(),
        global: TransformerConfig {
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim: 128,
            hidden_dim,
            rope_theta: theta,
            variant: Some(Box::new(LayerVariant {
                norm_after: !is_bwen,
                qk_norm: Some(if is_bwen { QkNorm::Head } else { QkNorm::Row }),
                attention_bias: false,
                windows: (0..n_layers).map(window).collect(),
                rope_scaling: RopeScaling::None,
            })),
            ..local(n_layers)
        },
        decoder: local(4),
        decoder_cross: cross,
        cross_attn_k: 1,
        hash: HashConfig {
            group_sizes: Vec::new(),
            vocab: 1,
            n_functions: 1,
        },
        patcher: PatcherConfig {
            mode: PatchingMode::Byte,
            threshold: 0.0,
            threshold_add: None,
            monotonicity: false,
            max_patch_length: None,
            patch_size: 1,
        },
        bolmo: Some(BolmoConfig {
            join_norm_eps: 1e-5,
            subwords: Some(Subwords {
                n_rows,
                table: Arc::new(subwords(n_rows as u32)),
            }),
            stop_ids: vec![1],
            tokenizer: "synthetic".into(),
        }),
        max_bytes: 1 << 19,
        max_patches: 1 << 16,
    })
}

/// All bytes, the start of a text, and words of two letters and more: the rest of the rows.
fn subwords(n_rows: u32) -> SubwordTable {
    let single = (0..=255u8).map(|byte| (Subword::Bytes(vec![byte]), u32::from(byte)));
    let words = (257..n_rows).map(|row| {
        // Digits to base 26, as letters, at least two of them.
        let (mut rest, mut word) = (row - 257, Vec::new());
        while rest > 0 || word.len() < 2 {
            word.push(b'a' + (rest % 26) as u8);
            rest /= 26;
        }
        (Subword::Bytes(word), row)
    });
    let bos = [(Subword::Special(1), 256)];
    SubwordTable::new(single.chain(bos).chain(words))
        .expect("every byte and the start of a text are there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_valid_and_have_the_published_sizes() {
        for (shape, millions) in [("bolmo-1b", 1469), ("bolmo-7b", 7633), ("bwen-8b", 8314)] {
            let config = config(shape).unwrap();
            config.validate().unwrap();
            let tensors = crate::checkpoint::expected_tensors(&config);
            let n: usize = tensors
                .iter()
                .map(|t| t.shape.iter().product::<usize>())
                .sum();
            assert_eq!((n + 500_000) / 1_000_000, millions, "{shape}");
        }
        assert!(config("bolmo-2b").is_none());
    }
}
