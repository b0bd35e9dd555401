//! q4_0: `w = d * (q - 8)`; 32 columns share `d` (f16), `q` is 0..=15.
//!
//! A chunk is 64 columns, 576 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 0..64 | `d`: f16 \[2 blocks]\[16 rows] |
//! | 64..576 | `q`: \[2 blocks]\[4 groups]\[16 rows]\[4 columns] bytes, see [`nibble`] |
//!
//! Per block: `acc = fma((q - 8) . x, d * scale(x), acc)`.

use super::activations::{ActivationBlock, BLOCK};
use super::format::{Format, TILE_ROWS, half_at, int_dot, put_half, scale_position};
use super::search::{nearest, symmetric_scale};
use crate::vector::{Int8, Prefetch, Simd};

pub(crate) enum Q4_0 {}

const BLOCKS: usize = 2;
const SCALES: usize = BLOCKS * TILE_ROWS * 2;
/// Bytes of 32 columns of 4-bit integers.
pub(super) const QUANTS: usize = BLOCK / 2 * TILE_ROWS;

/// Byte and shift of column `k` of a block of 32. A byte holds column `k` (0..16) in its lower half and column `k + 16` in
/// its upper half. Bytes are in groups of 4 columns by 16 rows.
pub(super) fn nibble(row: usize, k: usize) -> (usize, u32) {
    let byte = (k % 16 / 4 * TILE_ROWS + row) * 4 + k % 4;
    (byte, if k < 16 { 0 } else { 4 })
}

/// Reads the 4-bit integer of column `k` of a block of 32.
pub(super) fn nibble_at(quants: &[u8], row: usize, k: usize) -> i32 {
    let (byte, shift) = nibble(row, k);
    (quants[byte] >> shift & 15) as i32
}

/// Writes the 4-bit integer of column `k` of a block of 32. The bits must be zero.
pub(super) fn put_nibble(quants: &mut [u8], row: usize, k: usize, q: i32) {
    let (byte, shift) = nibble(row, k);
    quants[byte] |= (q as u8) << shift;
}

fn quants(chunk: &[u8], block: usize) -> &[u8] {
    &chunk[SCALES + block * QUANTS..][..QUANTS]
}

impl Format for Q4_0 {
    const COLS: usize = BLOCKS * BLOCK;
    const CHUNK: usize = SCALES + BLOCKS * QUANTS;

    fn encode(rows: &[f32], importance: &[f32], chunk: &mut [u8]) {
        chunk.fill(0);
        for (row, x) in rows.chunks_exact(Self::COLS).enumerate() {
            let blocks = x.chunks_exact(BLOCK).zip(importance.chunks_exact(BLOCK));
            for (block, (x, importance)) in blocks.enumerate() {
                let d = symmetric_scale::<BLOCK>(x, importance, 8);
                let d = put_half(chunk, scale_position(block, row), d);
                let quants = &mut chunk[SCALES + block * QUANTS..];
                for (k, x) in x.iter().enumerate() {
                    put_nibble(quants, row, k, nearest(x / d, -8, 7) + 8);
                }
            }
        }
    }

    fn decode(chunk: &[u8], row: usize, out: &mut [f32]) {
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let d = half_at(chunk, scale_position(block, row));
            for (k, out) in out.iter_mut().enumerate() {
                *out = d * (nibble_at(quants(chunk, block), row, k) - 8) as f32;
            }
        }
    }

    fn dot(chunk: &[u8], row: usize, x: &[ActivationBlock], acc: f32) -> f32 {
        (0..BLOCKS).fold(acc, |acc, block| {
            let d = half_at(chunk, scale_position(block, row));
            let x = &x[block];
            let w = |k| nibble_at(quants(chunk, block), row, k) - 8;
            int_dot(x, 0..BLOCK, w).mul_add(d * x.scale, acc)
        })
    }

    #[inline(always)]
    unsafe fn accumulate<Q: Int8, const TILES: usize, const INPUTS: usize>(
        q: Q,
        chunks: [*const u8; TILES],
        prefetch: Prefetch,
        x: [*const ActivationBlock; INPUTS],
        acc: &mut [[Q::V; INPUTS]; TILES],
    ) {
        let s = q.floats();
        for chunk in chunks {
            prefetch.issue(s, chunk);
        }
        for block in 0..BLOCKS {
            // SAFETY: the caller guarantees chunks and for `BLOCKS` blocks of every input.
            unsafe {
                let x = x.map(|x| &*x.add(block));
                // Minus 8 times the sum of the activations.
                let starts = x.map(|x| q.start::<3>(x.neg_sum));
                let quants = chunks.map(|chunk| chunk.add(SCALES + block * QUANTS));
                let ints = dot_nibbles(q, quants, prefetch, x, starts);
                for t in 0..TILES {
                    let d = s.load_f16(chunks[t].add(block * TILE_ROWS * 2));
                    for (i, x) in x.iter().enumerate() {
                        let scale = s.mul(d, s.splat(x.scale));
                        acc[t][i] = s.fma(q.to_f32(ints[t][i]), scale, acc[t][i]);
                    }
                }
            }
        }
    }
}

/// Adds to `starts` the products of 32 columns of 4-bit integers, 16 rows of `TILES` tiles, with `INPUTS` blocks of
/// activations.
///
/// # Safety
/// Each of `quants` is valid for reading `QUANTS` bytes.
#[inline(always)]
pub(super) unsafe fn dot_nibbles<Q: Int8, const TILES: usize, const INPUTS: usize>(
    q: Q,
    quants: [*const u8; TILES],
    prefetch: Prefetch,
    x: [&ActivationBlock; INPUTS],
    starts: [Q::I; INPUTS],
) -> [[Q::I; INPUTS]; TILES] {
    let mut ints = [starts; TILES];
    for group in 0..BLOCK / 8 {
        // SAFETY: the caller guarantees four groups of 64 bytes.
        let bytes =
            quants.map(|quants| unsafe { q.load_and_prefetch(quants.add(group * 64), prefetch) });
        let halves = [bytes.map(|b| q.low4(b)), bytes.map(|b| q.high4(b))];
        for (half, w) in halves.iter().enumerate() {
            for (i, x) in x.iter().enumerate() {
                for t in 0..TILES {
                    ints[t][i] = q.dot(ints[t][i], w[t], x.q[group + half * 4]);
                }
            }
        }
    }
    ints
}
