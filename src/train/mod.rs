//! Training: gradients, optimiser, data. Nothing else in the crate imports it.
//!
//! The model is the one that inference runs: it shares `config`, the tensor names of
//! `checkpoint::expected_tensors`, the patcher and the n-gram hash. This module has its forward and backward passes
//! over whole batches, derived by hand. They are generic over f32, which trains, and f64, in which `tests/grad.rs`
//! compares them with finite differences.

#![deny(clippy::undocumented_unsafe_blocks)]

pub mod adamw;
pub mod attention;
pub mod batch;
pub mod block;
pub mod blt;
pub mod byte_model;
pub mod cross;
pub mod data;
pub mod differential;
pub mod export;
pub mod float;
pub mod grads;
pub mod init;
pub mod matmul;
pub mod memory;
pub mod ops;
pub mod params;
pub mod pass;
pub mod plot;
pub mod pooled_vec;
pub mod presets;
pub mod schedule;
pub mod settings;
pub mod state;
pub mod step;
pub mod trainer;
