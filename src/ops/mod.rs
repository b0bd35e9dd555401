//! The arithmetic of a model, one function per operation: shape checks, threads, and the choice of kernel.
//!
//! This module does not know bytes or patches. An operation gives the same bits for a row for any other rows in the call
//! and any number of threads: threads split outputs, never a sum.

mod attention;
mod compute;
mod linear;
mod matrix;
mod mlstm;
mod rope;
mod rows;
mod scratch;

pub use attention::{Heads, KvTile, KvTiles, attention};
#[cfg(feature = "train")]
pub(crate) use compute::MAX_THREADS;
pub use compute::{Compute, Profile};
pub use linear::{linear, linear_many, linear_with_bias};
pub use matrix::Matrix;
pub use mlstm::{MlstmHeads, MlstmSteps, gated_norm, mlstm};
pub use rope::{Angles, Rope};
pub use rows::{
    add_assign, add_bias, add_table_row, dot, double_add, entropy, max_rows, rms_norm, scale,
    swiglu,
};
pub use scratch::ScratchVec;
