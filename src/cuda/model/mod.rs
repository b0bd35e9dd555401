//! The model on a GPU: a [`Backend`](crate::model::backend::Backend).
//!
//! `src/model` decides what the model is, which rows see what, where patches start and how a session rewinds. Here
//! are the weights in device memory (this file), the memory of a sequence (`caches.rs`), and what a pass does:
//! `pass.rs` is the order, `inputs.rs` the numbers that change from pass to pass, `launches.rs` the kernels, and
//! `scratch.rs` the buffers.

mod caches;
mod inputs;
mod launches;
mod pass;
mod scratch;

use std::sync::{Arc, Mutex};

use crate::cuda::{Gpu, Linear, MAX_HEAD_DIM, MAX_TABLES, MAX_VOCAB, Norm, Ops, SplitSums, Tables};
use crate::device::{GpuOptions, TablePlace};
use crate::error::{Error, Result};
use crate::model::block::{Block, Stack};
use crate::model::blt::BltWeights;
use crate::model::cross::CrossAttention;
use crate::model::entropy::EntropyModel;
use crate::ops::{Heads, Matrix};
use crate::vocab::VOCAB_SIZE;

use scratch::Scratch;

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    wqkv: Linear,
    wo: Linear,
    ffn_norm: Norm,
    /// w1, then w3.
    gate_up: Linear,
    w2: Linear,
}

#[derive(Debug)]
struct Layers {
    heads: Heads,
    window: Option<usize>,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Cross {
    heads: Heads,
    norm_q: Norm,
    norm_kv: Norm,
    wq: Linear,
    wkv: Linear,
    wo: Linear,
}

/// Logits of rows: norm and output matrix.
#[derive(Debug)]
struct Head {
    norm: Norm,
    output: Linear,
}

#[derive(Debug)]
struct Entropy {
    tables: Tables,
    layers: Layers,
    head: Head,
}

/// The weights on a device.
#[derive(Debug)]
pub struct GpuModel {
    gpu: Arc<Gpu>,
    ops: Ops,
    entropy: Option<Entropy>,
    /// `None`: embeddings are gathered by the host.
    tables: Option<Tables>,
    encoder: Layers,
    /// With the layer each reads.
    encoder_cross: Vec<(usize, Cross)>,
    /// The cross-attention whose layer is pooled.
    pooled: usize,
    encoder_window: usize,
    patch_projection: Linear,
    input_projection: Option<Linear>,
    global: Layers,
    output_projection: Linear,
    decoder: Layers,
    decoder_cross: Vec<Cross>,
    decoder_window: usize,
    head: Head,
    k: usize,
    /// One pass at a time.
    scratch: Mutex<Scratch>,
}

/// Device memory that is left free when tables could fill it: for sequences and scratch.
const LEFT_FREE: usize = 2 << 30;

impl GpuModel {
    /// Copies the weights to a device.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none or its memory does not suffice;
    /// [`Error::Unsupported`] for heads wider than the kernels know.
    pub fn new(weights: &BltWeights, number: usize, options: GpuOptions) -> Result<GpuModel> {
        let gpu = Gpu::new(number)?;
        let split_sums = SplitSums::new(&gpu)?;
        let linear = |matrices: &[&Matrix]| Linear::new(&gpu, &split_sums, matrices);
        let norm = |values: &[f32], eps| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Ok::<_, Error>(Norm {
                weight: gpu.upload(&bytes)?,
                dim: values.len(),
                eps,
            })
        };
        let checked = |heads: Heads| match heads.head_dim <= MAX_HEAD_DIM {
            true => Ok(heads),
            false => Err(Error::Unsupported(format!(
                "heads on a GPU: expected a width of at most {MAX_HEAD_DIM}, found {}",
                heads.head_dim
            ))),
        };
        let layers = |stack: &Stack| {
            if stack.config.differential.is_some() {
                return Err(Error::Unsupported(
                    "differential attention does not run on a GPU yet; use the CPU".into(),
                ));
            }
            let eps = stack.config.norm_eps;
            let layer = |b: &Block| {
                Ok::<_, Error>(Layer {
                    attention_norm: norm(&b.attention_norm, eps)?,
                    wqkv: linear(&[&b.wq, &b.wk, &b.wv])?,
                    wo: linear(&[&b.wo])?,
                    ffn_norm: norm(&b.ffn_norm, eps)?,
                    gate_up: linear(&[&b.w1, &b.w3])?,
                    w2: linear(&[&b.w2])?,
                })
            };
            Ok::<_, Error>(Layers {
                heads: checked(stack.heads())?,
                window: stack.config.window,
                layers: stack.blocks.iter().map(layer).collect::<Result<_>>()?,
            })
        };
        let cross = |c: &CrossAttention| {
            Ok::<_, Error>(Cross {
                heads: checked(c.heads())?,
                norm_q: norm(&c.norm_q, c.config.norm_eps)?,
                norm_kv: norm(&c.norm_kv, c.config.norm_eps)?,
                wq: linear(&[&c.wq])?,
                wkv: linear(&[&c.wk, &c.wv])?,
                wo: linear(&[&c.wo])?,
            })
        };
        let head = |gain: &[f32], eps, output: &Matrix| {
            Ok::<_, Error>(Head {
                norm: norm(gain, eps)?,
                output: linear(&[output])?,
            })
        };
        let (encoder, global, decoder) = (&weights.encoder, &weights.global, &weights.decoder);
        let entropy = |e: &EntropyModel| {
            Ok::<_, Error>(Entropy {
                tables: Tables::new(&gpu, &e.tok_embeddings, &[])?,
                layers: layers(&e.layers)?,
                head: head(&e.norm, e.layers.config.norm_eps, &e.output)?,
            })
        };
        let pooled = (encoder.cross.iter()).position(|(layer, _)| *layer == encoder.pool_layer);
        const { assert!(VOCAB_SIZE <= MAX_VOCAB) };
        let mut model = GpuModel {
            ops: Ops::new(&gpu)?,
            entropy: weights.entropy.as_ref().map(entropy).transpose()?,
            tables: None,
            encoder: layers(&encoder.layers)?,
            encoder_cross: (encoder.cross.iter())
                .map(|(layer, c)| Ok((*layer, cross(c)?)))
                .collect::<Result<_>>()?,
            pooled: pooled.expect("the pooled layer has a cross-attention"),
            encoder_window: encoder.cross_config.n_patches_seen(),
            patch_projection: linear(&[&encoder.patch_projection])?,
            input_projection: (global.input_projection.as_ref())
                .map(|m| linear(&[m]))
                .transpose()?,
            global: layers(&global.layers)?,
            output_projection: linear(&[&decoder.patch_projection])?,
            decoder: layers(&decoder.layers)?,
            decoder_cross: decoder.cross.iter().map(cross).collect::<Result<_>>()?,
            decoder_window: decoder.cross_config.n_patches_seen(),
            head: head(
                &decoder.norm,
                decoder.layers.config.norm_eps,
                &decoder.output,
            )?,
            k: encoder.k,
            scratch: Mutex::new(Scratch::new(&gpu)?),
            gpu,
        };
        let ids = &encoder.tok_embeddings;
        // Each table of n-grams with the powers that its ids are multiplied by.
        let ngrams: Vec<(&Matrix, &[i64])> = (encoder.hash_embeddings.iter().enumerate())
            .map(|(table, matrix)| (matrix, encoder.hasher.powers(table)))
            .collect();
        let matrices = encoder.hash_embeddings.iter().chain([ids]);
        let n_bytes: usize = matrices.map(|m| m.tensor().unpacked_size()).sum();
        let fits = || Ok::<_, Error>(n_bytes + LEFT_FREE <= model.gpu.memory()?.0);
        let upload = match options.tables {
            TablePlace::Auto => ngrams.len() < MAX_TABLES && fits()?,
            TablePlace::Host => false,
            TablePlace::Device => true,
        };
        if upload && ngrams.len() >= MAX_TABLES {
            return Err(Error::Unsupported(format!(
                "n-gram tables on a GPU: expected fewer than {MAX_TABLES}, found {}",
                ngrams.len()
            )));
        }
        if upload {
            model.tables = Some(Tables::new(&model.gpu, ids, &ngrams)?);
        }
        Ok(model)
    }
}
