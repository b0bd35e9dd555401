//! q8_0: `w = d * q`; 32 columns share `d` (f16), `q` is -127..=127.
//!
//! A chunk is 64 columns, 1088 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 0..64 | `d`: f16 \[2 blocks]\[16 rows] |
//! | 64..1088 | `q + 128`: u8 \[2 blocks]\[8 groups]\[16 rows]\[4 columns] |
//!
//! Per block: `acc = fma(q . x, d * scale(x), acc)`.

use super::activations::{ActivationBlock, BLOCK};
use super::format::{Format, TILE_ROWS, half_at, int_dot, put_half, scale_position};
use super::search::nearest;
use crate::vector::{Int8, Prefetch, Simd};

pub(crate) enum Q8_0 {}

const BLOCKS: usize = 2;
const SCALES: usize = BLOCKS * TILE_ROWS * 2;
const QUANTS: usize = BLOCK * TILE_ROWS;

/// The byte of column `k` of a block.
fn position(block: usize, row: usize, k: usize) -> usize {
    SCALES + block * QUANTS + (k / 4 * TILE_ROWS + row) * 4 + k % 4
}

impl Format for Q8_0 {
    const COLS: usize = BLOCKS * BLOCK;
    const CHUNK: usize = SCALES + BLOCKS * QUANTS;

    fn encode(rows: &[f32], _importance: &[f32], chunk: &mut [u8]) {
        for (row, x) in rows.chunks_exact(Self::COLS).enumerate() {
            for (block, x) in x.chunks_exact(BLOCK).enumerate() {
                let amax = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                let d = put_half(chunk, scale_position(block, row), amax / 127.0);
                for (k, x) in x.iter().enumerate() {
                    chunk[position(block, row, k)] = (nearest(x / d, -127, 127) + 128) as u8;
                }
            }
        }
    }

    fn decode(chunk: &[u8], row: usize, out: &mut [f32]) {
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let d = half_at(chunk, scale_position(block, row));
            for (k, out) in out.iter_mut().enumerate() {
                *out = d * (chunk[position(block, row, k)] as f32 - 128.0);
            }
        }
    }

    fn dot(chunk: &[u8], row: usize, x: &[ActivationBlock], acc: f32) -> f32 {
        (0..BLOCKS).fold(acc, |acc, block| {
            let d = half_at(chunk, scale_position(block, row));
            let x = &x[block];
            let w = |k| chunk[position(block, row, k)] as i32 - 128;
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
                let starts = x.map(|x| q.start_signed(x.neg_sum));
                let mut ints = [starts; TILES];
                for group in 0..BLOCK / 4 {
                    let offset = SCALES + block * QUANTS + group * 64;
                    let w =
                        chunks.map(|chunk| q.load_signed_and_prefetch(chunk.add(offset), prefetch));
                    for (i, x) in x.iter().enumerate() {
                        for t in 0..TILES {
                            ints[t][i] = q.dot_signed(ints[t][i], w[t], x.q[group]);
                        }
                    }
                }
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
