//! What a block format is to the kernels, and what the formats share.

use std::ops::Range;

use half::f16;

use super::activations::ActivationBlock;
use crate::vector::{Int8, Prefetch};

/// Rows of a tile: one lane each.
pub(crate) const TILE_ROWS: usize = crate::lanes::LANES;

/// One block format.
pub(crate) trait Format {
    /// Columns of a chunk.
    const COLS: usize;
    /// Bytes of a chunk: 16 rows of `COLS` columns.
    const CHUNK: usize;

    /// Encodes 16 rows of `COLS` weights. `importance` weights the squared errors of the columns.
    fn encode(rows: &[f32], importance: &[f32], chunk: &mut [u8]);

    /// The `COLS` weights of one row of a chunk.
    fn decode(chunk: &[u8], row: usize, out: &mut [f32]);

    /// Adds the dot product of one row of a chunk with `COLS` activations to `acc`: the definition.
    fn dot(chunk: &[u8], row: usize, x: &[ActivationBlock], acc: f32) -> f32;

    /// [`Format::dot`] of one chunk of each of `TILES` tiles, all 16 rows, with `INPUTS` inputs.
    ///
    /// # Safety
    /// Each of `chunks` is valid for reading `CHUNK` bytes, each of `x` for `COLS / 32` blocks.
    unsafe fn accumulate<Q: Int8, const TILES: usize, const INPUTS: usize>(
        q: Q,
        chunks: [*const u8; TILES],
        prefetch: Prefetch,
        x: [*const ActivationBlock; INPUTS],
        acc: &mut [[Q::V; INPUTS]; TILES],
    );
}

/// The byte of the scale of a row's block, in a chunk that begins with one half float per block and row.
#[inline]
pub(super) fn scale_position(block: usize, row: usize) -> usize {
    (block * TILE_ROWS + row) * 2
}

/// The half float at byte `offset`.
#[inline]
pub(super) fn half_at(bytes: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([bytes[offset], bytes[offset + 1]]).to_f32()
}

/// Writes `x` as a half float at byte `offset` and returns the rounded value.
pub(super) fn put_half(bytes: &mut [u8], offset: usize, x: f32) -> f32 {
    // Beyond the largest half float, that value is better than infinity.
    let h = f16::from_f32(x.clamp(-65504.0, 65504.0));
    bytes[offset..offset + 2].copy_from_slice(&h.to_le_bytes());
    h.to_f32()
}

/// The exact dot product of the integers `w(k)` with the activations of a block, for `k` in `range`.
#[inline]
pub(super) fn int_dot(x: &ActivationBlock, range: Range<usize>, w: impl Fn(usize) -> i32) -> f32 {
    let q = x.q.as_flattened();
    range.map(|k| w(k) * q[k] as i32).sum::<i32>() as f32
}
