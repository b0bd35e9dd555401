//! What models of the Bolmo family have that BLT has not.

use std::sync::Arc;

use super::{Config, TransformerConfig, positive, size};
use crate::error::{Error, Result};
use crate::subwords::SubwordTable;
use crate::vocab::{Choices, Id, VOCAB_SIZE};

/// The parts of a Bolmo model (arXiv 2512.15586) beside those in [`Config`].
///
/// Its local layers ([`Config::encoder`], [`Config::decoder`]) are mLSTM cells: `n_heads` heads of width `head_dim`, with
/// keys half as wide. They have no window, no rotary positions and no cross-attention, and `n_kv_heads` is `n_heads`.
#[derive(Debug, Clone, PartialEq)]
pub struct BolmoConfig {
    /// Epsilon of the two norms between local and global networks; every other norm has that of its stack.
    pub join_norm_eps: f32,
    /// The subwords whose embeddings are added to those of bytes; `None`: there are none.
    pub subwords: Option<Subwords>,
    /// Ids, without the patch-end flag, that end a generation.
    pub stop_ids: Vec<Id>,
    /// The repository of the tokenizer whose subwords those are.
    pub tokenizer: String,
}

/// The subwords of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Subwords {
    /// Rows of the table of embeddings; not all of them need an entry.
    pub n_rows: usize,
    /// The entries.
    pub table: Arc<SubwordTable>,
}

/// How a transformer layer differs from Llama's. The rotary pairs are halves of a head, not neighbours.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerVariant {
    /// Whether the two norms of a layer are applied to what attention and feed-forward give (OLMo 2), instead of to
    /// what they are given.
    pub norm_after: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Whether the four attention matrices have biases.
    pub attention_bias: bool,
    /// Keys a query sees, itself included, for each layer; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// How the rotary frequencies of layers without a window are changed.
    pub rope_scaling: RopeScaling,
}

/// What a norm of queries and keys covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// All heads of a position together.
    Row,
    /// Each head by itself.
    Head,
}

/// How rotary frequencies are stretched for texts longer than a model was first trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// What they are divided by.
        factor: f32,
    },
    /// Low frequencies by a factor, high ones not at all, those between by interpolation.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f32,
        /// Turns in the original context below which a frequency is low.
        low_freq_factor: f32,
        /// Turns in the original context above which a frequency is high.
        high_freq_factor: f32,
        /// The original context.
        original_positions: f32,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// What low frequencies are divided by.
        factor: f32,
        /// Turns in the original context above which a frequency is high.
        beta_fast: f32,
        /// Turns in the original context below which a frequency is low.
        beta_slow: f32,
        /// The original context.
        original_positions: f32,
        /// What cosines and sines are multiplied by.
        attention_factor: f32,
        /// Whether the bounds between low and high are rounded to whole pairs.
        truncate: bool,
    },
}

impl BolmoConfig {
    pub(super) fn validate(&self, config: &Config) -> Result<()> {
        let dim = config.encoder.dim;
        for (part, stack) in [
            ("local_encoder", &config.encoder),
            ("local_decoder", &config.decoder),
        ] {
            let found = (
                stack.n_heads,
                stack.n_kv_heads,
                stack.n_heads * stack.head_dim,
            );
            if found != (stack.n_heads, stack.n_heads, dim) || !stack.head_dim.is_multiple_of(2) {
                return Err(Error::config(
                    format!("{part}.n_heads"),
                    format!(
                        "expected heads of even widths that add up to {dim}, found {} of {}",
                        stack.n_heads, stack.head_dim
                    ),
                ));
            }
        }
        if config.global.dim != dim {
            return Err(Error::config(
                "global_transformer.dim",
                format!(
                    "expected the local width {dim}, found {}",
                    config.global.dim
                ),
            ));
        }
        if config.cross_attn_k != 1 || config.hash.n_tables() > 0 || config.entropy.is_some() {
            return Err(Error::config(
                "bolmo",
                "expected no entropy model, hash tables or cross-attention, found one",
            ));
        }
        if let Some(Subwords { n_rows, table }) = &self.subwords {
            size("subword_vocab_size", *n_rows, 1 << 31)?;
            let last = table.last_row();
            if last as usize >= *n_rows {
                return Err(Error::config(
                    "subword_vocab_size",
                    format!("expected a row for each subword, found {n_rows} and subword {last}"),
                ));
            }
        }
        if let Some(id) = self
            .stop_ids
            .iter()
            .find(|&&id| usize::from(id) >= VOCAB_SIZE)
        {
            return Err(Error::config(
                "eos_token_id",
                format!("expected ids below 260, found {id}"),
            ));
        }
        positive("local_rms_norm_eps", self.join_norm_eps)
    }
}

impl LayerVariant {
    pub(super) fn validate(&self, stack: &TransformerConfig) -> Result<()> {
        if self.windows.len() != stack.n_layers {
            return Err(Error::config(
                "layer_types",
                format!(
                    "expected one for each of {} layers, found {}",
                    stack.n_layers,
                    self.windows.len()
                ),
            ));
        }
        let mut windows = self.windows.iter().flatten();
        let first = windows.next();
        if windows.any(|window| Some(window) != first) {
            return Err(Error::config(
                "sliding_window",
                "expected one window for all layers that have one, found several",
            ));
        }
        if self.windows.contains(&Some(0)) {
            return Err(Error::config(
                "sliding_window",
                "expected at least 1, found 0",
            ));
        }
        let numbers: &[(&str, f32)] = match &self.rope_scaling {
            RopeScaling::None => &[],
            RopeScaling::Linear { factor } => &[("factor", *factor)],
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            } => &[
                ("factor", *factor),
                ("low_freq_factor", *low_freq_factor),
                ("high_freq_factor", *high_freq_factor),
                ("original_max_position_embeddings", *original_positions),
            ],
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_positions,
                attention_factor,
                ..
            } => &[
                ("factor", *factor),
                ("beta_fast", *beta_fast),
                ("beta_slow", *beta_slow),
                ("original_max_position_embeddings", *original_positions),
                ("attention_factor", *attention_factor),
            ],
        };
        for (key, value) in numbers {
            positive(&format!("rope_scaling.{key}"), *value)?;
        }
        Ok(())
    }
}

impl Config {
    /// The ids that the model chooses among.
    pub fn choices(&self) -> Choices {
        match &self.bolmo {
            Some(bolmo) => Choices::with_flags(&bolmo.stop_ids),
            None => Choices::default(),
        }
    }

    /// Columns of the decoder's output: an id each.
    pub fn n_logits(&self) -> usize {
        self.choices().n_ids()
    }
}
