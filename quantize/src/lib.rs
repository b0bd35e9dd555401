//! Converts Byte Latent Transformer checkpoints to the native file, quantised or not, and back to
//! the Hugging Face layout.
//!
//! `policy` decides which tensor gets which type, `calibrate` which weights matter most, `convert`
//! streams the file, `evaluate` measures what the text makes of it, `report` puts it all into a
//! table. How a block is encoded is the affair of `blt-kernels`, where tensors lie in a file that of
//! `blt::checkpoint`: here are decisions only.

#![forbid(unsafe_code)]

pub mod calibrate;
pub mod convert;
pub mod evaluate;
pub mod export;
pub mod merge;
pub mod policy;
pub mod report;
pub mod stream;
