//! Hyper-parameters of the model and its parts; [`Config::validate`] proves every shape before use.
//!
//! [`Config`] is the only description of the architecture. Each checkpoint layout translates its own keys
//! into it (`checkpoint/hf.rs`, `checkpoint/meta.rs`); the native file stores it as it is.

pub(crate) mod arch;
mod bolmo;

pub use bolmo::{BolmoConfig, LayerVariant, QkNorm, RopeScaling, Subwords};

use crate::error::{Error, Result};
use crate::vocab::VOCAB_SIZE;

/// Largest width, head count or table size that is accepted; far above any real model, low enough that
/// products of three cannot overflow 64 bits.
const MAX_SIZE: usize = 1 << 20;

/// One stack of transformer layers (paper section 3; Llama-style, pre-norm, SwiGLU, no biases).
#[derive(Debug, Clone, PartialEq)]
pub struct TransformerConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub hidden_dim: usize,
    /// Epsilon of RMSNorm.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Keys a query sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Whether an EOS ends a segment across which nothing attends (Meta) or not (HF).
    pub eos_segments: bool,
    /// Differential attention instead of plain softmax attention; no published layout has it.
    pub differential: Option<DifferentialConfig>,
    /// How the layers differ from Llama's.
    pub variant: Option<Box<LayerVariant>>,
}

/// Differential attention (arXiv 2410.05258): each head's queries and keys are two halves, and what
/// the second half attends to is subtracted from what the first does.
///
/// ```text
/// lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init
/// A = softmax(Q1 K1^T / sqrt(d)) - lambda softmax(Q2 K2^T / sqrt(d))    d = head_dim / 2
/// O = (1 - lambda_init) norm(A V)                                       head by head
/// ```
///
/// Matrices have the shapes of plain attention; in each head's rows of `wq` and `wk` the first half
/// comes first, and rotary positions turn each half as a head of its own. The four vectors (d) and
/// the norm's gain (head_dim) are a layer's, shared by its heads; the norm's epsilon is the layers'.
#[derive(Debug, Clone, PartialEq)]
pub struct DifferentialConfig {
    /// Whether each head's output goes through an RMSNorm; the factor `1 - lambda_init` is there
    /// with it or without.
    pub head_norm: bool,
}

impl DifferentialConfig {
    /// What lambda is without its learned part in layer `layer`, counted from 0 in its own stack.
    pub fn lambda_init(layer: usize) -> f64 {
        0.8 - 0.6 * (-0.3 * layer as f64).exp()
    }
}

/// One kind of cross-attention between bytes and patches (paper sections 3.2.2 and 3.3.1).
#[derive(Debug, Clone, PartialEq)]
pub struct CrossAttentionConfig {
    /// Number of query heads; `n_heads * head_dim` is the local width.
    pub n_heads: usize,
    /// Number of key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of the two RMSNorms.
    pub norm_eps: f32,
    /// Encoder: after every layer, not only the last. Decoder: before every layer, not only the first.
    pub all_layers: bool,
    /// How many patches are seen, the own one included; `None`: just the own one.
    pub window: Option<usize>,
    /// Encoder with `all_layers`: each layer pools again and the last one counts (HF), instead of
    /// refining the same patch vectors (Meta).
    pub pool_each_layer: bool,
}

/// Hashed n-gram embeddings added to each byte's embedding (paper section 3.2.1).
#[derive(Debug, Clone, PartialEq)]
pub struct HashConfig {
    /// Lengths of the n-grams, in table order; empty: no hash embeddings.
    pub group_sizes: Vec<usize>,
    /// Rows of each table.
    pub vocab: usize,
    /// Hash functions per n-gram length.
    pub n_functions: usize,
}

impl HashConfig {
    /// Number of tables: function-major, n-gram lengths in order within a function.
    pub fn n_tables(&self) -> usize {
        self.group_sizes.len() * self.n_functions
    }
}

/// How bytes are cut into patches (paper section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchingMode {
    /// Where the entropy model finds the next byte hard to predict.
    Entropy,
    /// After spaces and other bytes that end a word.
    Space,
    /// Every `patch_size` bytes.
    Static,
    /// Every byte is a patch.
    Byte,
    /// After the BPE delimiter id.
    Bpe,
}

impl PatchingMode {
    /// All modes, in the order they are listed to people.
    pub const ALL: [PatchingMode; 5] = [
        PatchingMode::Entropy,
        PatchingMode::Space,
        PatchingMode::Static,
        PatchingMode::Byte,
        PatchingMode::Bpe,
    ];

    /// The name used in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            PatchingMode::Entropy => "entropy",
            PatchingMode::Space => "space",
            PatchingMode::Static => "static",
            PatchingMode::Byte => "byte",
            PatchingMode::Bpe => "bpe",
        }
    }
}

impl std::fmt::Display for PatchingMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for PatchingMode {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|m| m.name() == s)
            .ok_or_else(|| {
                Error::config(
                    "patching_mode",
                    format!("expected entropy, space, static, byte or bpe, found \"{s}\""),
                )
            })
    }
}

/// Settings of the patcher.
#[derive(Debug, Clone, PartialEq)]
pub struct PatcherConfig {
    /// The rule.
    pub mode: PatchingMode,
    /// Entropy in nats above which the next byte starts a patch.
    pub threshold: f32,
    /// If set, the entropy must also have risen by more than this since the byte before.
    pub threshold_add: Option<f32>,
    /// A patch starts where the entropy rises by more than `threshold`; wins over `threshold_add`.
    pub monotonicity: bool,
    /// A patch is closed when it has this many bytes.
    pub max_patch_length: Option<usize>,
    /// Bytes per patch in static mode.
    pub patch_size: usize,
}

/// The whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The byte model that cuts the patches; `None` if the checkpoint has none.
    pub entropy: Option<TransformerConfig>,
    /// The local encoder's self-attention layers.
    pub encoder: TransformerConfig,
    /// The local encoder's cross-attention: patches query their bytes.
    pub encoder_cross: CrossAttentionConfig,
    /// The global transformer over patches.
    pub global: TransformerConfig,
    /// The local decoder's self-attention layers.
    pub decoder: TransformerConfig,
    /// The local decoder's cross-attention: bytes query a patch.
    pub decoder_cross: CrossAttentionConfig,
    /// Vectors each patch is given in cross-attention.
    pub cross_attn_k: usize,
    /// Hashed n-gram embeddings.
    pub hash: HashConfig,
    /// The patcher; of no effect in a Bolmo model.
    pub patcher: PatcherConfig,
    /// The parts of a Bolmo model, which has none of BLT's cross-attention, hash tables and entropy model.
    pub bolmo: Option<BolmoConfig>,
    /// Byte positions the model was made for (BOS included).
    pub max_bytes: usize,
    /// Patch positions the model was made for.
    pub max_patches: usize,
}

impl Config {
    /// Checks that every size is in range and that the parts fit together, so that no later
    /// arithmetic on shapes can overflow or divide by zero.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first key that is wrong.
    pub fn validate(&self) -> Result<()> {
        if let Some(entropy) = &self.entropy {
            entropy.validate("entropy_model")?;
        }
        self.encoder.validate("local_encoder")?;
        self.global.validate("global_transformer")?;
        self.decoder.validate("local_decoder")?;
        self.encoder_cross.validate("local_encoder.cross_attn")?;
        self.decoder_cross.validate("local_decoder.cross_attn")?;
        size("cross_attn_k", self.cross_attn_k, 64)?;
        size("max_bytes", self.max_bytes, 1 << 31)?;
        size("max_patches", self.max_patches, 1 << 31)?;
        if self.encoder.dim != self.decoder.dim {
            return Err(Error::config(
                "dim_local_decoder",
                format!(
                    "expected the encoder's width {}, found {}; the decoder starts from the \
                     encoder's output",
                    self.encoder.dim, self.decoder.dim
                ),
            ));
        }
        for (name, cross) in [
            ("local_encoder.cross_attn", &self.encoder_cross),
            ("local_decoder.cross_attn", &self.decoder_cross),
        ] {
            if cross.n_heads * cross.head_dim != self.encoder.dim {
                return Err(Error::config(
                    format!("{name}.n_heads"),
                    format!(
                        "expected heads whose widths add up to {}, found {} x {}",
                        self.encoder.dim, cross.n_heads, cross.head_dim
                    ),
                ));
            }
        }
        if let Some(bolmo) = &self.bolmo {
            bolmo.validate(self)?;
        }
        self.hash.validate()?;
        self.patcher.validate()
    }

    /// The name of the first part that has differential attention.
    pub fn differential_part(&self) -> Option<&'static str> {
        let parts = [
            ("entropy model", self.entropy.as_ref()),
            ("local encoder", Some(&self.encoder)),
            ("global transformer", Some(&self.global)),
            ("local decoder", Some(&self.decoder)),
        ];
        let has = |(_, stack): &(_, Option<&TransformerConfig>)| {
            stack.is_some_and(|s| s.differential.is_some())
        };
        parts.into_iter().find(has).map(|(name, _)| name)
    }

    /// Width of the vectors the encoder makes of a patch: `cross_attn_k` local widths.
    pub fn patch_dim(&self) -> usize {
        self.cross_attn_k * self.encoder.dim
    }

    /// Whether a projection stands between the encoder and the global transformer.
    pub fn has_global_projection(&self) -> bool {
        self.patch_dim() != self.global.dim
    }
}

impl TransformerConfig {
    /// Width of what one query and one key are compared by, and rotary positions turn: a head, or
    /// with differential attention half of it.
    pub fn key_dim(&self) -> usize {
        match self.differential {
            Some(_) => self.head_dim / 2,
            None => self.head_dim,
        }
    }

    fn validate(&self, part: &str) -> Result<()> {
        let key = |k: &str| format!("{part}.{k}");
        size(&key("dim"), self.dim, MAX_SIZE)?;
        size(&key("n_layers"), self.n_layers, 4096)?;
        size(&key("hidden_dim"), self.hidden_dim, MAX_SIZE)?;
        heads(part, self.n_heads, self.n_kv_heads, self.head_dim)?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(
                key("head_dim"),
                format!(
                    "expected an even number (rotary pairs), found {}",
                    self.head_dim
                ),
            ));
        }
        if self.differential.is_some() && !self.head_dim.is_multiple_of(4) {
            return Err(Error::config(
                key("head_dim"),
                format!(
                    "expected a multiple of 4 (differential attention: two halves of rotary \
                     pairs), found {}",
                    self.head_dim
                ),
            ));
        }
        if self.window == Some(0) {
            return Err(Error::config(
                key("window"),
                "expected at least 1 or null, found 0",
            ));
        }
        if let Some(variant) = &self.variant {
            variant.validate(self)?;
        }
        positive(&key("norm_eps"), self.norm_eps)?;
        positive(&key("rope_theta"), self.rope_theta)
    }
}

impl CrossAttentionConfig {
    fn validate(&self, part: &str) -> Result<()> {
        heads(part, self.n_heads, self.n_kv_heads, self.head_dim)?;
        if self.window == Some(0) {
            return Err(Error::config(
                format!("{part}.window"),
                "expected at least 1 or null, found 0",
            ));
        }
        positive(&format!("{part}.norm_eps"), self.norm_eps)
    }
}

impl HashConfig {
    fn validate(&self) -> Result<()> {
        if self.group_sizes.is_empty() {
            return Ok(());
        }
        size("encoder_hash_byte_group_vocab", self.vocab, 1 << 31)?;
        size("encoder_hash_byte_group_nb_functions", self.n_functions, 64)?;
        size("encoder_hash_byte_group_size", self.group_sizes.len(), 64)?;
        for &g in &self.group_sizes {
            size("encoder_hash_byte_group_size", g, 64)?;
        }
        Ok(())
    }
}

impl PatcherConfig {
    /// Checks thresholds and lengths.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first key that is wrong.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("threshold", Some(self.threshold)),
            ("threshold_add", self.threshold_add),
        ] {
            // An infinite threshold is one that no entropy exceeds, or every one.
            if value.is_some_and(f32::is_nan) {
                return Err(Error::config(
                    format!("patcher.{key}"),
                    "expected a number of nats, found NaN",
                ));
            }
        }
        if self.max_patch_length == Some(0) {
            return Err(Error::config(
                "patcher.max_patch_length",
                "expected at least 1 or null, found 0",
            ));
        }
        size("patcher.patch_size", self.patch_size, 1 << 31)
    }
}

fn size(key: &str, value: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::config(
        key,
        format!("expected 1 to {max}, found {value}"),
    ))
}

fn positive(key: &str, value: f32) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::config(
        key,
        format!("expected a positive number, found {value}"),
    ))
}

fn heads(part: &str, n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Result<()> {
    size(&format!("{part}.n_heads"), n_heads, 4096)?;
    size(&format!("{part}.n_kv_heads"), n_kv_heads, 4096)?;
    size(&format!("{part}.head_dim"), head_dim, 1 << 16)?;
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(Error::config(
            format!("{part}.n_kv_heads"),
            format!("expected a divisor of n_heads = {n_heads}, found {n_kv_heads}"),
        ));
    }
    Ok(())
}

/// Refuses vocabularies other than the 256 bytes and 4 special ids.
///
/// # Errors
/// [`Error::Config`] if `found` is not 260.
pub fn check_vocab_size(key: &str, found: usize) -> Result<()> {
    if found == VOCAB_SIZE {
        return Ok(());
    }
    Err(Error::config(
        key,
        format!("expected {VOCAB_SIZE} (4 special ids and 256 bytes), found {found}"),
    ))
}
