//! Byte Latent Transformers (BLT, arXiv 2412.09871) on the CPU, one byte at a time.
//!
//! A BLT is a language model without a tokenizer. A small byte model cuts the text into patches
//! where the next byte is hard to predict, and a big transformer runs once per patch. This crate opens
//! the published checkpoints as they are and maps them into memory. A new byte costs one byte of work,
//! and the result equals reading the whole text again, bit for bit.
//!
//! ```
//! use std::io::Write;
//!
//! use blt::{GenerateOptions, Model, Session, SessionOptions};
//!
//! let model = Model::open("models/default.safetensors")?;
//! let mut session = Session::new(&model, SessionOptions::new())?;
//! session.feed(b"Once upon a time")?;
//! let options = GenerateOptions::new().max_bytes(20);
//! for text in session.generate(&options)?.strings() {
//!     print!("{}", text?);
//!     std::io::stdout().flush()?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Loading
//!
//! [`Model::open`] takes a file or folder in any published layout; [`Model::options`] sets threads,
//! the device, a separate configuration or entropy model, and more. Weights are neither copied nor
//! converted: memory grows with what is used. Another process that writes to the file while it is
//! mapped changes the model; replace files by renaming.
//!
//! # Sessions
//!
//! A [`Session`] is one text and its caches. Bytes can be fed in pieces of any size,
//! [`Session::rewind`] goes back, and `clone` forks. Logits, entropies and patch boundaries are the
//! same bits however the text was read, with any number of threads ([`ops::Compute`]) and on every
//! instruction set but the portable one, which cannot rely on fused multiply-add.
//!
//! # Several sessions
//!
//! [`batch`] lets sessions of one model read and generate together. Weights are read once for all of
//! them, and each session gets the bits it would get alone.
//!
//! # Threads
//!
//! A [`Model`] is `Send + Sync` and cheap to clone. It has its own threads and does not use the global
//! pool of its host. A [`Session`] is used from one thread at a time.
//!
//! # Hostile files
//!
//! A checkpoint is data from strangers. Opening one reads headers only, checks every size before
//! using it, and runs no code from it: the pickle reader knows a fixed list of operations and refuses
//! all others by name. A damaged or malicious file gives an [`Error`]; weights that make the
//! arithmetic overflow give [`Error::NonFinite`]. A hostile file can still be slow, or be a model that
//! writes nonsense. `SECURITY.md` has the details.
//!
//! # Features
//!
//! - `cli` (default): the programs. Turn it off to use the library alone.
//! - `train` (default): training, in the module `train`, and the program blt-train.
//! - `cuda`: NVIDIA GPUs, see [`Model::on_device`]. `docs/gpu.md` says what was checked.
//! - `capi`: the C functions of libblt.
//!
//! # Architecture
//!
//! There are four floors, and none knows the floor above it: programs, model, operations, hardware.
//! From the ground up:
//!
//! | where | what |
//! |---|---|
//! | `kernels/` (crate `blt-kernels`) | inner loops on slices, one module per instruction set; block formats; CUDA sources |
//! | `error`, `config`, `vocab` | the error type; hyper-parameters, validated; bytes and ids |
//! | `output_file` | files that appear under their names when they are complete |
//! | `tensor` | element types, shapes, and who owns the bytes: mapped file, memory or device |
//! | `checkpoint` | files in every layout, served as tensors under one set of names |
//! | `ops` | operations on rows: linear layers, attention, norms, RoPE; threads |
//! | `cache` | keys and values in pages that sessions share |
//! | `model` | the networks: encoder, global transformer, decoder, entropy model, patcher. `model/forward.rs` is the path of a byte from top to bottom, `model/pass.rs` has the passes that sessions ask for |
//! | `sampler`, `generate` | the choice of the next byte; a generation with its stop strings and UTF-8 |
//! | `session`, `batch` | one text, and the bytes drafted ahead of it (`session/speculate`); several texts that read together |
//! | `train` | gradients, optimiser, data, runs |
//! | `ffi`, `cli`, `src/bin` | the C interface; what programs share; the programs |
//!
//! The path of a byte: its id is embedded, with the hashes of the n-grams that end at it. The local
//! encoder turns it into a byte state. The entropy model predicts the next byte; if the entropy is
//! above the threshold, the next byte starts a patch and the current patch is closed. A closed patch
//! is pooled from its byte states (maximum, then cross-attention) and read by the global transformer.
//! The local decoder attends to the last closed patch and gives the logits of the next byte.
//!
//! Two rules carry everything else. A decided boundary never changes, and nothing reads a patch before
//! it is closed, so caches are exact. And every sum has one order, whatever the number of rows or
//! threads: dot products run along 16 lanes and one tree, threads divide outputs but never a sum, and
//! attention adds positions in order.

pub mod batch;
mod cache;
pub mod checkpoint;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
pub mod documents;
pub mod error;
#[cfg(feature = "capi")]
pub mod ffi;
pub mod generate;
pub mod grammar;
mod input;
pub mod model;
mod open;
pub mod ops;
pub mod output_file;
pub mod random;
mod recurrence;
pub mod sampler;
pub mod session;
pub mod subwords;
pub mod tensor;
#[cfg(test)]
#[path = "../tests/common/folder.rs"]
mod test_folder;
#[cfg(feature = "train")]
pub mod train;
pub mod vocab;
mod wire;

pub use cache::KvType;
#[cfg(feature = "cuda")]
pub use cuda::{DeviceInfo, devices};
pub use device::{Device, GpuOptions, TablePlace};
pub use error::{Error, Result};
pub use generate::{FinishReason, GenerateOptions, Generator, Strings};
pub use model::Model;
pub use open::ModelOptions;
pub use ops::Profile;
pub use session::{Canceller, DraftCounts, Overflow, Score, Session, SessionOptions};

// Weights are shared between threads; a session is moved between them.
const _: () = {
    const fn shared<T: Send + Sync + Clone>() {}
    const fn moved<T: Send>() {}
    shared::<Model>();
    shared::<Canceller>();
    moved::<Session>();
    moved::<Error>();
};

/// Runs the README's Rust snippets.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
