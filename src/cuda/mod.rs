//! NVIDIA GPUs: device memory, and one function per kernel on plain buffers. Knows no model.
//!
//! Only the driver's library is used, and only looked for when a GPU is asked for. All work of a
//! [`Gpu`] goes through one stream, in order.

mod driver;
mod graph;
mod ops;
mod store;

pub use driver::{Buffer, DeviceInfo, Gpu, devices};
pub use graph::Graph;
pub use ops::{
    At, Attention, Choice, Linear, MAX_HEAD_DIM, MAX_TABLES, MAX_VOCAB, Mode, Ops, Tables,
};
pub use store::{Row, Store};
