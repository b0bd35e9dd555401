//! NVIDIA GPUs: device memory, one function per kernel on plain buffers, and in `model/` the model on top of them.
//!
//! Only the driver's library is used, and it is loaded only when a program asks for a GPU. All work of a [`Gpu`] goes
//! through one stream, in order.

mod attention;
mod driver;
mod embedding;
mod graph;
mod linear;
mod model;
mod ops;
mod ring;
mod rope;
mod rows;
mod sample;
mod splits;
mod staging;

pub use attention::Attention;
pub use driver::{Buffer, DeviceInfo, Gpu, devices};
pub use embedding::{MAX_TABLES, Tables};
pub use graph::Graph;
pub use linear::{Linear, MATVEC_ROWS, Mode, Norm, SplitSums};
pub use model::GpuModel;
pub use ops::{Ops, Slice};
pub use ring::{GpuRing, Row};
pub use sample::{MAX_VOCAB, choice_units};
pub use splits::{MAX_HEAD_DIM, splits};
pub use staging::Staging;
