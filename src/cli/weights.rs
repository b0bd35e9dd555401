//! Sizes of a model's weights: parameters and bytes per part, and bytes read per byte of text.
//!
//! This counts one session: generating a byte reads every matrix on the byte's path once, every matrix on the
//! patch's path once per patch, and one row of each embedding table.

use crate::cache::KvType;
use crate::checkpoint::{Checkpoint, Component, ModelTensor, Pace, Role};
use crate::config::{Config, TransformerConfig};

/// Which part of the model a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The entropy model.
    Entropy,
    /// The hash embedding tables.
    HashTables,
    /// The subword embedding table.
    Subwords,
    /// The local encoder without these tables.
    Encoder,
    /// The global transformer.
    Global,
    /// The local decoder.
    Decoder,
}

impl Part {
    /// All parts, in the order in which a byte passes them.
    pub const ALL: [Part; 6] = [
        Part::Entropy,
        Part::HashTables,
        Part::Subwords,
        Part::Encoder,
        Part::Global,
        Part::Decoder,
    ];

    /// The part that a tensor belongs to.
    pub fn of(tensor: &ModelTensor) -> Part {
        match (tensor.component, tensor.role) {
            (_, Role::HashTable) => Part::HashTables,
            (_, Role::Subwords) => Part::Subwords,
            (Component::Entropy, _) => Part::Entropy,
            (Component::Encoder, _) => Part::Encoder,
            (Component::Global, _) => Part::Global,
            (Component::Decoder, _) => Part::Decoder,
        }
    }

    /// The name that people read.
    pub fn name(self) -> &'static str {
        match self {
            Part::Entropy => "entropy model",
            Part::HashTables => "hash tables",
            Part::Subwords => "subword table",
            Part::Encoder => "local encoder",
            Part::Global => "global transformer",
            Part::Decoder => "local decoder",
        }
    }

    /// The name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Part::Entropy => "entropy_model",
            Part::HashTables => "hash_tables",
            Part::Subwords => "subword_table",
            Part::Encoder => "local_encoder",
            Part::Global => "global_transformer",
            Part::Decoder => "local_decoder",
        }
    }
}

/// The tensors of one part.
#[derive(Debug, Clone, Default)]
pub struct PartWeights {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes they occupy.
    pub bytes: u64,
    /// Element types, each once.
    pub dtypes: Vec<String>,
}

/// The parts of a checkpoint that it has, with their weights.
pub fn by_part(checkpoint: &Checkpoint) -> Vec<(Part, PartWeights)> {
    let mut parts = Part::ALL.map(|part| (part, PartWeights::default()));
    for (facts, tensor) in checkpoint.model_tensors() {
        let part = Part::of(facts);
        for (_, weights) in parts.iter_mut().filter(|(p, _)| *p == part) {
            weights.tensors += 1;
            weights.parameters += tensor.n_elements() as u64;
            weights.bytes += tensor.bytes().len() as u64;
            let dtype = tensor.dtype().to_string();
            if !weights.dtypes.contains(&dtype) {
                weights.dtypes.push(dtype);
            }
        }
    }
    parts.into_iter().filter(|(_, w)| w.tensors > 0).collect()
}

/// Weights that generation reads, and what is computed with them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// Bytes of the weights on each path.
    pub weights: Paths,
    /// Operations of products for every byte of text: two for each number of a matrix.
    pub operations_per_byte: u64,
    /// Operations of products for every patch.
    pub operations_per_patch: u64,
}

/// A quantity for each path: those that run for every byte, and the one that runs for every patch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Paths {
    /// The entropy model.
    pub entropy: f64,
    /// The local encoder.
    pub encoder: f64,
    /// The local decoder.
    pub decoder: f64,
    /// The global transformer, and what the local networks do for each patch.
    pub patch: f64,
}

impl Paths {
    /// The sum over the paths that run for every byte.
    pub fn per_byte(&self) -> f64 {
        self.entropy + self.encoder + self.decoder
    }

    /// The sum, each path multiplied by its entry of `times`.
    pub fn total(&self, times: &Paths) -> f64 {
        self.entropy * times.entropy
            + self.encoder * times.encoder
            + self.decoder * times.decoder
            + self.patch * times.patch
    }
}

impl Traffic {
    /// The weights that generation with this model reads. The entropy model counts only if it `runs_entropy`.
    pub fn of(checkpoint: &Checkpoint, runs_entropy: bool) -> Self {
        let mut traffic = Traffic::default();
        for (facts, tensor) in checkpoint.model_tensors() {
            let unused = facts.component == Component::Entropy && !runs_entropy;
            if unused || facts.pace == Pace::Reading {
                continue;
            }
            // Rows of tables are looked up, and vectors cost next to nothing.
            let operations = match facts.role.is_multiplied() {
                true => 2 * tensor.n_elements() as u64,
                false => 0,
            };
            let bytes = match facts.role.is_table() {
                true => tensor.row_bytes(),
                false => tensor.bytes().len(),
            };
            let path = match (facts.pace, facts.component) {
                (Pace::Patch, _) => &mut traffic.weights.patch,
                (Pace::Byte, Component::Entropy) => &mut traffic.weights.entropy,
                (Pace::Byte, Component::Decoder) => &mut traffic.weights.decoder,
                (_, _) => &mut traffic.weights.encoder,
            };
            *path += bytes as f64;
            match facts.pace {
                Pace::Patch => traffic.operations_per_patch += operations,
                _ => traffic.operations_per_byte += operations,
            }
        }
        traffic
    }
}

/// Bytes of keys and values that each network reads per byte or patch, with `context` bytes of text before
/// it.
pub fn cache_traffic(config: &Config, kv: KvType, context: f64, patches_per_byte: f64) -> Paths {
    if config.bolmo.is_some() {
        // Recurrent states are read and written, whatever the context.
        let state = |c: &TransformerConfig| {
            let keys = c.head_dim / 2;
            2.0 * (c.n_layers * c.n_heads * (keys * c.head_dim + keys + 1) * size_of::<f32>())
                as f64
        };
        let positions = context * patches_per_byte;
        let global = &config.global;
        let windows = global.variant.as_ref().map_or(&[][..], |v| &v.windows);
        let seen: f64 = (windows.iter())
            .map(|w| positions.min(w.map_or(f64::INFINITY, |w| w as f64)))
            .sum();
        return Paths {
            entropy: 0.0,
            encoder: state(&config.encoder),
            decoder: state(&config.decoder),
            patch: seen * (2 * global.n_kv_heads * global.head_dim * kv.n_bytes()) as f64,
        };
    }
    let kv_bytes = |stack: &TransformerConfig, positions: f64| {
        let seen = positions.min(stack.window.map_or(f64::INFINITY, |w| w as f64));
        let values = 2 * stack.n_layers * stack.n_kv_heads * stack.head_dim;
        seen * (values * kv.n_bytes()) as f64
    };
    Paths {
        entropy: config
            .entropy
            .as_ref()
            .map_or(0.0, |e| kv_bytes(e, context)),
        encoder: kv_bytes(&config.encoder, context),
        decoder: kv_bytes(&config.decoder, context),
        patch: kv_bytes(&config.global, context * patches_per_byte),
    }
}
