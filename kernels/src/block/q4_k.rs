//! q4_k: `w = d * s * q - dmin * m`; 256 columns share `d` and `dmin` (f16), 32 share `s` and `m`
//! (0..=63), `q` is 0..=15.
//!
//! A chunk is 256 columns, 2304 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 0..32 | `d`: f16 \[16 rows] |
//! | 32..64 | `dmin`: f16 \[16 rows] |
//! | 64..160 | `s`: \[2]\[3]\[16 rows] bytes; four 6-bit numbers per row in three bytes, see [`six`] |
//! | 160..256 | `m`: the same layout |
//! | 256..2304 | `q`: \[8 blocks] of 256 bytes, each as in [`super::q4_0`] |
//!
//! Per block of 32: `acc = fma(q . x, (d * s) * scale(x), acc)`, then
//! `acc = fma(-(dmin * m), scale(x) * sum(x), acc)`.

use super::activations::{ActivationBlock, BLOCK};
use super::format::{Format, TILE_ROWS, half_at, int_dot, put_half};
use super::q4_0::{QUANTS, dot_nibbles, nibble_at, put_nibble};
use super::search::{nearest, scale_and_minimum};
use crate::vector::{Int8, Prefetch, Simd};

pub(crate) enum Q4K {}

const BLOCKS: usize = 8;
const MINIMUM: usize = 2 * TILE_ROWS;
const SIXES: usize = 4 * TILE_ROWS;
/// Bytes of the 6-bit numbers of four blocks.
const FOUR_SIXES: usize = 3 * TILE_ROWS;
const INTS: usize = SIXES + 4 * FOUR_SIXES;

/// The 6-bit number of a row for block `block`. Of four numbers, three are the lower bits of three bytes, 16 apart. The
/// fourth consists of the upper two bits of each of those bytes. Blocks 0..8 are the scales, 8..16 the minimums.
fn six(chunk: &[u8], row: usize, block: usize) -> u8 {
    let bytes = &chunk[SIXES + block / 4 * FOUR_SIXES + row..];
    match block % 4 {
        3 => bytes[0] >> 6 | bytes[TILE_ROWS] >> 6 << 2 | bytes[2 * TILE_ROWS] >> 6 << 4,
        i => bytes[i * TILE_ROWS] & 63,
    }
}

/// Writes the number that [`six`] reads. The bits must be zero.
fn put_six(chunk: &mut [u8], row: usize, block: usize, value: u8) {
    let bytes = &mut chunk[SIXES + block / 4 * FOUR_SIXES + row..];
    match block % 4 {
        3 => (0..3).for_each(|i| bytes[i * TILE_ROWS] |= (value >> (2 * i) & 3) << 6),
        i => bytes[i * TILE_ROWS] |= value,
    }
}

/// `d * s` and `dmin * m` of a row and block. Both products are exact.
fn scales(chunk: &[u8], row: usize, block: usize) -> (f32, f32) {
    let (d, dmin) = (half_at(chunk, row * 2), half_at(chunk, MINIMUM + row * 2));
    let (s, m) = (six(chunk, row, block), six(chunk, row, block + BLOCKS));
    (d * s as f32, dmin * m as f32)
}

fn quants(chunk: &[u8], block: usize) -> &[u8] {
    &chunk[INTS + block * QUANTS..][..QUANTS]
}

impl Format for Q4K {
    const COLS: usize = BLOCKS * BLOCK;
    const CHUNK: usize = INTS + BLOCKS * QUANTS;

    fn encode(rows: &[f32], importance: &[f32], chunk: &mut [u8]) {
        chunk.fill(0);
        for (row, x) in rows.chunks_exact(Self::COLS).enumerate() {
            let blocks = x.chunks_exact(BLOCK).zip(importance.chunks_exact(BLOCK));
            let mut ideal = [(0.0, 0.0); BLOCKS];
            for (ideal, (x, importance)) in ideal.iter_mut().zip(blocks) {
                *ideal = scale_and_minimum::<BLOCK>(x, importance, 15);
            }
            let largest = |f: fn(&(f32, f32)) -> f32| ideal.iter().map(f).fold(0.0, f32::max);
            let d = put_half(chunk, row * 2, largest(|i| i.0) / 63.0);
            let dmin = put_half(chunk, MINIMUM + row * 2, largest(|i| i.1) / 63.0);
            for (block, (x, (scale, minimum))) in x.chunks_exact(BLOCK).zip(ideal).enumerate() {
                put_six(chunk, row, block, nearest(scale / d, 0, 63) as u8);
                put_six(
                    chunk,
                    row,
                    block + BLOCKS,
                    nearest(minimum / dmin, 0, 63) as u8,
                );
                let (scale, minimum) = scales(chunk, row, block);
                let quants = &mut chunk[INTS + block * QUANTS..];
                for (k, x) in x.iter().enumerate() {
                    put_nibble(quants, row, k, nearest((x + minimum) / scale, 0, 15));
                }
            }
        }
    }

    fn decode(chunk: &[u8], row: usize, out: &mut [f32]) {
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let (scale, minimum) = scales(chunk, row, block);
            for (k, out) in out.iter_mut().enumerate() {
                *out = scale * nibble_at(quants(chunk, block), row, k) as f32 - minimum;
            }
        }
    }

    fn dot(chunk: &[u8], row: usize, x: &[ActivationBlock], acc: f32) -> f32 {
        (0..BLOCKS).fold(acc, |acc, block| {
            let (scale, minimum) = scales(chunk, row, block);
            let x = &x[block];
            let w = |k| nibble_at(quants(chunk, block), row, k);
            let acc = int_dot(x, 0..BLOCK, w).mul_add(scale * x.scale, acc);
            (-minimum).mul_add(x.weighted_sum, acc)
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
            for line in (0..INTS).step_by(64) {
                prefetch.issue(s, chunk.wrapping_add(line));
            }
        }
        // SAFETY: the caller guarantees chunks and for `BLOCKS` blocks of every input.
        unsafe {
            let zero = s.splat(0.0);
            let (mut d, mut neg_dmin) = ([zero; TILES], [zero; TILES]);
            for t in 0..TILES {
                d[t] = s.load_f16(chunks[t]);
                neg_dmin[t] = s.sub(s.splat(-0.0), s.load_f16(chunks[t].add(MINIMUM)));
            }
            for half in 0..2 {
                let (mut scales, mut minimums) = ([[zero; 4]; TILES], [[zero; 4]; TILES]);
                for t in 0..TILES {
                    let sixes = chunks[t].add(SIXES + half * FOUR_SIXES);
                    scales[t] = q.load_sixes(sixes);
                    minimums[t] = q.load_sixes(sixes.add(2 * FOUR_SIXES));
                }
                for four in 0..4 {
                    let block = half * 4 + four;
                    let x = x.map(|x| &*x.add(block));
                    let quants = chunks.map(|chunk| chunk.add(INTS + block * QUANTS));
                    let ints = dot_nibbles(q, quants, prefetch, x, [q.start::<0>(0); INPUTS]);
                    for t in 0..TILES {
                        let scale = s.mul(d[t], scales[t][four]);
                        let neg_minimum = s.mul(neg_dmin[t], minimums[t][four]);
                        for (i, x) in x.iter().enumerate() {
                            let scale = s.mul(scale, s.splat(x.scale));
                            let sum = s.fma(q.to_f32(ints[t][i]), scale, acc[t][i]);
                            acc[t][i] = s.fma(neg_minimum, s.splat(x.weighted_sum), sum);
                        }
                    }
                }
            }
        }
    }
}
