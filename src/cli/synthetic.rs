//! Native checkpoints of random weights at the published shapes, for measurements without the models.
//!
//! Matrices are scaled so that activations stay of order one. The entropy model is as uncertain as random
//! weights are, so force the patch length when measuring (`blt-bench --patch-length 4`). Rows repeat after a while, which
//! makes no product faster, but lets gigabytes be generated as fast as they are written.

mod bolmo;

use std::path::Path;

use blt_kernels::BlockFormat;

use crate::checkpoint::{
    Component, ModelTensor, Role, SafetensorsWriter, expected_tensors, native_file,
};
use crate::config::{
    Config, CrossAttentionConfig, HashConfig, PatcherConfig, PatchingMode, TransformerConfig,
};
use crate::error::{Error, Result};
use crate::random::SplitMix64;
use crate::tensor::{DType, Tensor};

/// Rows of a matrix that are made; a multiple of the rows of a tile.
const DIFFERENT_ROWS: usize = 64;

/// The shapes of `facebook/blt-1b` and `facebook/blt-7b` (spec section 11), and one for quick looks:
/// `1b`, `7b` or `small`; those of the Bolmo family: `bolmo-1b`, `bolmo-7b` or `bwen-8b`.
///
/// # Errors
/// [`Error::Argument`] for another name.
pub fn config(shape: &str) -> Result<Config> {
    if let Some(config) = bolmo::config(shape) {
        return Ok(config);
    }
    let (local, encoder_layers, decoder_layers, global, global_layers, k, hash_vocab) = match shape
    {
        "1b" => (1024, 1, 9, 2048, 25, 2, 500_002),
        "7b" => (1280, 1, 6, 4096, 32, 4, 500_002),
        "small" => (128, 1, 2, 256, 4, 2, 8_191),
        _ => {
            let message =
                format!("expected 1b, 7b, small, bolmo-1b, bolmo-7b or bwen-8b, found \"{shape}\"");
            return Err(Error::argument("shape", message));
        }
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
        variant: None,
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
    Ok(Config {
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
        bolmo: None,
        max_bytes: 24_576,
        max_patches: 4096,
    })
}

/// Writes random weights of that shape in a type: `f32`, `f16`, `bf16` or the name of a block format.
/// `told` is called with the bytes written so far and in all.
///
/// # Errors
/// [`Error::Argument`] for another shape or type; those of writing.
pub fn write(path: &Path, shape: &str, dtype: &str, mut told: impl FnMut(u64, u64)) -> Result<()> {
    let config = config(shape)?;
    let dtype_of = types(dtype)?;
    let tensors = expected_tensors(&config);
    let typed = tensors
        .iter()
        .map(|t| (t.name.clone(), dtype_of(t.role), t.shape.clone()));
    let (metadata, specs) = native_file(&config, typed)?;
    let sizes: Vec<(String, u64)> = (specs.iter())
        .map(|spec| (spec.name.clone(), spec.n_bytes))
        .collect();
    let total: u64 = sizes.iter().map(|(_, n)| n).sum();
    let mut writer = SafetensorsWriter::create(path, &metadata, specs)?;
    let (mut random, mut written) = (SplitMix64(1), 0);
    for (name, n_bytes) in sizes {
        let tensor = (tensors.iter().find(|t| t.name == name)).expect("a tensor of this list");
        let cols = tensor.shape.last().copied().unwrap_or(1);
        let (rows, scale) = match tensor.role.is_vector() {
            true => (1, None), // norms
            false => (
                DIFFERENT_ROWS,
                Some(size(tensor) * 1.732 / (cols as f32).sqrt()),
            ),
        };
        let constant = match (tensor.role, tensor.leaf()) {
            (Role::Bias, "bf") => 3.0, // the memory of a recurrence keeps most of what it holds
            (Role::Bias, _) => 0.0,
            _ => 1.0,
        };
        let value = |_| scale.map_or(constant, |scale| random.signed() as f32 * scale);
        let values: Vec<f32> = (0..rows * cols).map(value).collect();
        let unit_shape = match scale {
            None => vec![cols],
            Some(_) => vec![rows, cols],
        };
        let unit = Tensor::from_values(dtype_of(tensor.role), unit_shape, &values)?;
        let mut left = n_bytes;
        while left > 0 {
            let n = left.min(unit.bytes().len() as u64);
            writer.write(&name, &unit.bytes()[..n as usize])?;
            left -= n;
            written += n;
            told(written, total);
        }
    }
    writer.finish()
}

/// The type of each tensor of a model in the type of that name.
fn types(name: &str) -> Result<impl Fn(Role) -> DType> {
    let mut floats = DType::FLOATS.into_iter().chain([DType::Bf12]);
    let float = floats.find(|d| d.name().eq_ignore_ascii_case(name));
    let format = BlockFormat::ALL.into_iter().find(|f| f.name() == name);
    if float.is_none() && format.is_none() {
        let message = format!("expected f32, f16, bf16, bf12 or a block format, found \"{name}\"");
        return Err(Error::argument("type", message));
    }
    Ok(move |role: Role| match (float, format) {
        (Some(DType::Bf12), _) if role.is_vector() => DType::F32,
        (Some(float), _) => float,
        (_, Some(format)) if role.is_table() => DType::Table(format),
        (_, Some(format)) if role.is_multiplied() => DType::Tiles(format),
        _ => DType::F32,
    })
}

/// The scale of a matrix's weights, relative to weights that keep activations of order one. The spread of the logits is
/// that of a trained model. Patches influence the decoder so little that drafts (self-speculation) are accepted about as
/// often as with trained models; `blt-bench` prints how often.
fn size(tensor: &ModelTensor) -> f32 {
    match (tensor.component, tensor.role) {
        (Component::Decoder, Role::Head) => 4.0,
        (Component::Decoder, Role::Residual) if tensor.is_cross => 0.01,
        _ => 1.0,
    }
}
