//! How the positions that a row attends to are split, and what blocks that share a row exchange: attention.cu.

use std::sync::Arc;

use super::driver::{Buffer, Gpu};
use crate::error::Result;

/// Widest head of the attention kernel.
pub const MAX_HEAD_DIM: usize = 256;

/// Fewest keys of a split, and most splits; the same in attention.cu.
const SPLIT_KEYS: usize = 128;
pub(super) const MAX_SPLITS: usize = 16;
/// From this many heads of rows on, a block for each keeps a GPU busy; fewer share up to this many blocks.
pub(super) const MAX_SHARED: usize = 512;
/// Bytes of `Partial` in attention.cu.
pub(super) const PARTIAL_BYTES: usize = 12;

/// Number of blocks that have a split where a row attends to at most `longest` positions, rounded up to a power of
/// two so that there are few graphs.
pub fn splits(longest: usize) -> usize {
    (longest / SPLIT_KEYS)
        .clamp(1, MAX_SPLITS)
        .next_power_of_two()
}

/// Partial results of blocks that share the head of a row, for the last of them to merge.
#[derive(Debug)]
pub(super) struct Partials {
    /// (heads of rows, [`MAX_SPLITS`], head_dim, [`PARTIAL_BYTES`])
    pub parts: Buffer,
    /// How many blocks have written theirs; 0 between launches. (heads of rows)
    pub arrivals: Buffer,
}

impl Partials {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Partials> {
        let n = MAX_SHARED / 2; // at least two blocks share each
        Ok(Partials {
            parts: gpu.alloc(n * MAX_SPLITS * MAX_HEAD_DIM * PARTIAL_BYTES)?,
            arrivals: gpu.upload(&vec![0; n * 4])?,
        })
    }
}
