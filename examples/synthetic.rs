//! Writes a native checkpoint of random weights at a published shape, for measurements.
//!
//! cargo run --release --example synthetic -- OUT.safetensors [1b|7b|small]
//!
//! Streams: the 9 GB of the 1b shape need a few megabytes of memory. Matrices are scaled so that
//! activations stay of order one; the entropy model is as uncertain as random weights are, so force
//! the patch length when measuring (`blt-bench --patch-length 4`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use blt::checkpoint::{SafetensorsWriter, TensorSpec, expected_tensors, native_metadata};
use blt::config::{
    Config, CrossAttentionConfig, HashConfig, PatcherConfig, PatchingMode, TransformerConfig,
};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(out), shape) = (args.next(), args.next().unwrap_or("1b".into())) else {
        eprintln!("usage: synthetic OUT.safetensors [1b|7b|small]");
        return ExitCode::from(2);
    };
    let Some(config) = config(&shape) else {
        eprintln!("synthetic: shape: expected 1b, 7b or small, found {shape}");
        return ExitCode::from(2);
    };
    match write(&PathBuf::from(out), &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synthetic: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The shapes of `facebook/blt-1b` and `facebook/blt-7b` (spec section 11), and one for quick looks.
fn config(shape: &str) -> Option<Config> {
    let (local, encoder_layers, decoder_layers, global, global_layers, k, hash_vocab) = match shape
    {
        "1b" => (1024, 1, 9, 2048, 25, 2, 500_002),
        "7b" => (1280, 1, 6, 4096, 32, 4, 500_002),
        "small" => (128, 1, 2, 256, 4, 2, 8_191),
        _ => return None,
    };
    let head_dim = if shape == "small" { 32 } else { 64 };
    let stack = |dim: usize, n_layers, head_dim, rope_theta, window| TransformerConfig {
        dim,
        n_layers,
        n_heads: dim / head_dim,
        n_kv_heads: dim / head_dim,
        head_dim,
        hidden_dim: (8 * dim / 3).next_multiple_of(256),
        norm_eps: 1e-5,
        rope_theta,
        window,
        eos_segments: true,
        differential: None,
    };
    let cross = |all_layers| CrossAttentionConfig {
        n_heads: local / head_dim,
        n_kv_heads: local / head_dim,
        head_dim,
        norm_eps: 1e-5,
        all_layers,
        window: None,
        pool_each_layer: false,
    };
    let entropy = match shape {
        "small" => stack(192, 3, 32, 1e4, Some(64)),
        _ => stack(768, 14, 64, 1e4, Some(512)),
    };
    Some(Config {
        entropy: Some(entropy),
        encoder: stack(local, encoder_layers, head_dim, 5e5, Some(512)),
        encoder_cross: cross(false),
        global: stack(global, global_layers, 128.min(2 * head_dim), 5e5, None),
        decoder: stack(local, decoder_layers, head_dim, 5e5, Some(512)),
        decoder_cross: cross(true),
        cross_attn_k: k,
        hash: HashConfig {
            group_sizes: vec![3, 4, 5, 6, 7, 8],
            vocab: hash_vocab,
            n_functions: 1,
        },
        patcher: PatcherConfig {
            mode: PatchingMode::Entropy,
            threshold: 1.335_442_1,
            threshold_add: None,
            monotonicity: false,
            max_patch_length: None,
            patch_size: 4,
        },
        max_bytes: 24_576,
        max_patches: 4096,
    })
}

fn write(path: &std::path::Path, config: &Config) -> blt::Result<()> {
    let tensors = expected_tensors(config);
    let specs = tensors.iter().map(|(name, shape)| TensorSpec {
        name: name.clone(),
        dtype: "BF16".into(),
        shape: shape.clone(),
        n_bytes: 2 * shape.iter().product::<usize>() as u64,
    });
    let total: usize = tensors
        .iter()
        .map(|(_, s)| 2 * s.iter().product::<usize>())
        .sum();
    let mut writer = SafetensorsWriter::create(path, &native_metadata(config), specs.collect())?;
    let (start, mut written, mut said) = (Instant::now(), 0, 0);
    let mut random = 1u64;
    let mut buffer = Vec::new();
    for (name, shape) in &tensors {
        let n: usize = shape.iter().product();
        let scale = 1.0 / (*shape.last().unwrap() as f32).sqrt();
        let mut left = n;
        while left > 0 {
            let now = left.min(1 << 20);
            buffer.clear();
            for _ in 0..now {
                let value = match shape.len() {
                    1 => 1.0, // norms
                    _ => uniform(&mut random) * 1.732 * scale,
                };
                buffer.extend_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
            }
            writer.write(name, &buffer)?;
            left -= now;
            written += buffer.len();
            if written >= said + (1 << 30) || written == total {
                said = written;
                let rate = written as f64 / start.elapsed().as_secs_f64();
                let eta = (total - written) as f64 / rate;
                eprintln!(
                    "{:.1} of {:.1} GB, {:.0} MB/s, {eta:.0} s left",
                    written as f64 / 1e9,
                    total as f64 / 1e9,
                    rate / 1e6
                );
            }
        }
    }
    writer.finish()
}

/// Uniform in -1..1 (xorshift: speed matters more than quality here).
fn uniform(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
}
