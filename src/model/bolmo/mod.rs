//! Models of the Bolmo family (arXiv 2512.15586): the parts that differ from BLT's.
//!
//! | | BLT | Bolmo |
//! |---|---|---|
//! | local layers | windowed attention | mLSTM cells ([`MlstmStack`](super::mlstm)) |
//! | a byte's embedding | hashed n-grams | the longest subword that ends there |
//! | who ends a patch | the entropy before its first byte | while reading, a predictor that sees one byte more; while writing, the decoder with each byte |
//! | a patch is | the maximum over its bytes, then cross-attention | its last byte |
//! | a patch comes back | by cross-attention | added to its last byte and those of the next patch |
//!
//! The last byte of a text read is *pending*: whether it ends a patch depends on the byte after it. See `forward.rs`.

mod boundary;
mod decoder;
mod encoder;
mod forward;
mod rewind;
mod state;
mod state_file;
#[cfg(test)]
mod tests;

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::Result;
use crate::model::block::Stack;

pub use state::State;

use boundary::Boundary;
use decoder::Decoder;
use encoder::Encoder;

/// The weights of the four parts.
#[derive(Debug)]
pub struct Bolmo {
    pub encoder: Encoder,
    boundary: Boundary,
    pub global: Stack,
    pub decoder: Decoder,
}

impl Bolmo {
    /// Takes the weights of an open checkpoint.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        Ok(Bolmo {
            encoder: Encoder::load(checkpoint, config)?,
            boundary: Boundary::load(checkpoint, config.encoder.dim)?,
            global: Stack::load(checkpoint, "global", &config.global)?,
            decoder: Decoder::load(checkpoint, config)?,
        })
    }
}
