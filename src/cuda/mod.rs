//! NVIDIA GPUs: device memory, and one function per kernel on plain buffers. Knows no model.
//!
//! Only the driver's library is used, and it is loaded only when a program asks for a GPU. All work of a [`Gpu`] goes through one stream, in order.

mod attention;
mod driver;
mod embedding;
mod graph;
mod linear;
mod ops;
mod rope;
mod rows;
mod sample;
mod staging;
mod store;

pub use attention::{Attention, MAX_HEAD_DIM, splits};
pub use driver::{Buffer, DeviceInfo, Gpu, devices};
pub use embedding::{MAX_TABLES, Tables};
pub use graph::Graph;
pub use linear::{Linear, Mode, NARROW_ROWS, Norm, SplitSums};
pub use ops::{At, Ops};
pub use sample::{Choice, MAX_VOCAB};
pub use staging::Staging;
pub use store::{Row, Store};
