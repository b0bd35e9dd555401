//! Converts Byte Latent Transformer checkpoints to the native file, quantised or not, and back to
//! the Hugging Face layout.
//!
//! `policy` decides which tensor gets which type, `calibrate` which weights matter most, `convert`
//! streams the file, `evaluate` compares the result with the original on a text, `report` prints
//! tables. `blt-kernels` encodes blocks and `blt::checkpoint` lays files out; this crate only decides.

#![forbid(unsafe_code)]

pub mod calibrate;
pub mod convert;
pub mod evaluate;
pub mod export;
pub mod merge;
pub mod policy;
pub mod report;
pub mod stream;
