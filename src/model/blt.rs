//! The networks of a Byte Latent Transformer. `forward.rs` and `draft.rs` have their passes.

use super::block::Stack;
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::entropy::EntropyModel;
use super::global::Global;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::Result;
use crate::ops::Compute;

/// The weights of a BLT, and the threads and instructions that compute with them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blt<'m> {
    pub weights: &'m BltWeights,
    pub compute: &'m Compute,
}

/// The weights of a BLT.
#[derive(Debug)]
pub(crate) struct BltWeights {
    pub config: Config,
    pub entropy: Option<EntropyModel>,
    pub encoder: Encoder,
    pub global: Global,
    pub decoder: Decoder,
    pub network_bytes: NetworkBytes,
}

/// Bytes of each network's layers, which are nearly all its weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkBytes {
    pub entropy: f64,
    pub encoder: f64,
    pub global: f64,
    pub decoder: f64,
}

impl NetworkBytes {
    pub(super) fn new(
        entropy: Option<&Stack>,
        encoder: &Stack,
        global: &Stack,
        decoder: &Stack,
    ) -> Self {
        let n_bytes = |stack: &Stack| stack.n_bytes() as f64;
        NetworkBytes {
            entropy: entropy.map_or(0.0, n_bytes),
            encoder: n_bytes(encoder),
            global: n_bytes(global),
            decoder: n_bytes(decoder),
        }
    }
}

impl BltWeights {
    /// Takes the weights of an open checkpoint.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] if a tensor is missing or has the wrong shape.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let entropy = (config.entropy.as_ref())
            .map(|entropy| EntropyModel::load(checkpoint, entropy))
            .transpose()?;
        let encoder = Encoder::load(checkpoint, config)?;
        let global = Global::load(checkpoint, config)?;
        let decoder = Decoder::load(checkpoint, config)?;
        Ok(BltWeights {
            network_bytes: NetworkBytes::new(
                entropy.as_ref().map(|e| &e.layers),
                &encoder.layers,
                &global.layers,
                &decoder.layers,
            ),
            entropy,
            encoder,
            global,
            decoder,
            config: config.clone(),
        })
    }
}
