//! Run Byte Latent Transformers (BLT, arXiv 2412.09871) on the CPU, one byte at a time.
//!
//! A BLT is a language model without a tokenizer. A small byte model cuts the text into patches
//! where the next byte is hard to predict; a big transformer runs once per patch. This crate opens
//! the published checkpoints as they are, maps them into memory, and computes each new byte with one
//! byte's work, bit for bit equal to reading the whole text again.
//!
//! ```no_run
//! use blt::{GenerateOptions, Model, Session, SessionOptions};
//!
//! let model = Model::open("path/to/checkpoint")?;
//! let mut session = Session::new(&model, SessionOptions::default())?;
//! session.feed(b"Once upon a time")?;
//! let options = GenerateOptions { max_bytes: Some(200), ..Default::default() };
//! for byte in session.generate(&options)? {
//!     print!("{}", byte? as char);
//! }
//! # Ok::<(), blt::Error>(())
//! ```
//!
//! # Loading
//!
//! [`Model::open`] takes a file or folder in any published layout; [`checkpoint::Checkpoint::open`]
//! has the options (a configuration or entropy model that lies apart). Weights are not copied or
//! converted: memory grows with what is touched. Another process that writes to the file while it
//! is mapped changes the model under us; replace files by renaming.
//!
//! # Sessions
//!
//! A [`Session`] is one text and its caches. Bytes can be fed in any pieces; [`Session::rewind`]
//! goes back, `clone` forks. Logits, entropies and patch boundaries are the same bits whatever way
//! the text came, on any number of threads ([`ops::Compute`]), and on every instruction set's path
//! but the portable one (which cannot rely on fused multiply-add).
//!
//! # Several sessions
//!
//! [`batch`] lets sessions of one model read and generate together: weights are read once for all, and
//! each session keeps the bits it has alone.
//!
//! # Threads
//!
//! A [`Model`] is `Send + Sync` and cheap to clone; it owns its threads and leaves the global pool
//! of its host alone. A [`Session`] is used from one thread at a time.
//!
//! # Hostile files
//!
//! A checkpoint is data from strangers. Opening one reads headers only, checks every size before it
//! is used and runs no code from it (the pickle reader knows a fixed list of operations and refuses
//! everything else by name). A damaged or malicious file gives an [`Error`]; weights that make the
//! arithmetic overflow give [`Error::NonFinite`]. What a file can do is be slow, or be a model that
//! writes nonsense.
//!
//! # Features
//!
//! - `cli` (default): the programs; turn it off to use the library alone.
//! - `cuda`: NVIDIA GPUs, see [`Model::on_device`]. Tested on an emulation, never yet run on one.
//! - `train` (default): training, in the module `train`, and the program blt-train.
//! - `capi`: the C functions of libblt.

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
pub mod error;
#[cfg(feature = "capi")]
pub mod ffi;
pub mod generate;
pub mod grammar;
pub mod model;
mod open;
pub mod ops;
pub mod random;
mod recurrence;
pub mod sampler;
pub mod session;
pub mod subwords;
pub mod tensor;
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
pub use model::{DraftCounts, Model};
pub use open::ModelOptions;
pub use ops::Profile;
pub use session::{Canceller, Overflow, Score, Session, SessionOptions};

// Weights are shared between threads; a session is moved between them.
const _: () = {
    const fn shared<T: Send + Sync + Clone>() {}
    const fn moved<T: Send>() {}
    shared::<Model>();
    shared::<Canceller>();
    moved::<Session>();
    moved::<Error>();
};
