//! q6_k: `w = d * s * (q - 32)`; 256 columns share `d` (f16), 16 share `s` (-128..=127), `q` is 0..=63.
//!
//! A chunk is 256 columns, 3392 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 0..32 | `d`: f16 \[16 rows] |
//! | 32..64 | zero |
//! | 64..320 | `s`: i8 \[16 blocks of 16]\[16 rows] |
//! | 320..2368 | lower 4 bits of `q`: \[8 blocks of 32] of 256 bytes, each as in [`super::q4_0`] |
//! | 2368..3392 | upper 2 bits of `q`: \[8 blocks of 32]\[2 halves]\[16 rows]\[4 columns] bytes; columns `k`, `k + 4`, `k + 8`, `k + 12` of a half start at bits 0, 2, 4, 6 |
//!
//! Per block of 32, with halves `a` and `b` of 16: `t = fma((q - 32) . b, s(b), (q - 32) . a * s(a))`, then
//! `acc = fma(t, d * scale(x), acc)`.

use super::activations::{ActivationBlock, BLOCK};
use super::format::{Format, TILE_ROWS, half_at, int_dot, put_half};
use super::q4_0::{QUANTS, nibble_at, put_nibble};
use super::search::{nearest, symmetric_scale};
use crate::vector::{Int8, Prefetch, Simd};

pub(crate) enum Q6K {}

const BLOCKS: usize = 8;
const HALF: usize = BLOCK / 2;
const SCALES: usize = 64;
const LOWER: usize = SCALES + 2 * BLOCKS * TILE_ROWS;
const UPPER: usize = LOWER + BLOCKS * QUANTS;
/// Bytes of the upper bits of 32 columns.
const UPPER_BYTES: usize = BLOCK / 4 * TILE_ROWS;

/// Byte and shift of the upper bits of column `k` of a block of 32.
fn upper(block: usize, row: usize, k: usize) -> (usize, usize) {
    let byte = (k / HALF * TILE_ROWS + row) * 4 + k % 4;
    (UPPER + block * UPPER_BYTES + byte, k % HALF / 4 * 2)
}

fn scale_position(row: usize, half: usize) -> usize {
    SCALES + half * TILE_ROWS + row
}

/// `q - 32` of column `k` of a block of 32.
fn quant(chunk: &[u8], block: usize, row: usize, k: usize) -> i32 {
    let (byte, shift) = upper(block, row, k);
    let low = nibble_at(&chunk[LOWER + block * QUANTS..], row, k);
    low + ((chunk[byte] >> shift & 3) as i32 * 16) - 32
}

impl Format for Q6K {
    const COLS: usize = BLOCKS * BLOCK;
    const CHUNK: usize = UPPER + BLOCKS * UPPER_BYTES;

    fn encode(rows: &[f32], importance: &[f32], chunk: &mut [u8]) {
        chunk.fill(0);
        for (row, x) in rows.chunks_exact(Self::COLS).enumerate() {
            let halves = x.chunks_exact(HALF).zip(importance.chunks_exact(HALF));
            let mut ideal = [0.0; 2 * BLOCKS];
            for (ideal, (x, importance)) in ideal.iter_mut().zip(halves) {
                *ideal = symmetric_scale::<HALF>(x, importance, 32);
            }
            let largest = ideal.iter().fold(0.0f32, |a, s| a.max(s.abs()));
            let d = put_half(chunk, row * 2, largest / 127.0);
            for (half, (x, ideal)) in x.chunks_exact(HALF).zip(ideal).enumerate() {
                let s = nearest(ideal / d, -127, 127);
                chunk[scale_position(row, half)] = s as i8 as u8;
                let (block, first) = (half / 2, half % 2 * HALF);
                for (k, x) in (first..).zip(x) {
                    let q = nearest(x / (d * s as f32), -32, 31) + 32;
                    put_nibble(&mut chunk[LOWER + block * QUANTS..], row, k, q & 15);
                    let (byte, shift) = upper(block, row, k);
                    chunk[byte] |= ((q >> 4) << shift) as u8;
                }
            }
        }
    }

    fn decode(chunk: &[u8], row: usize, out: &mut [f32]) {
        let d = half_at(chunk, row * 2);
        for (half, out) in out.chunks_exact_mut(HALF).enumerate() {
            let scale = d * (chunk[scale_position(row, half)] as i8) as f32;
            let (block, first) = (half / 2, half % 2 * HALF);
            for (k, out) in (first..).zip(out) {
                *out = scale * quant(chunk, block, row, k) as f32;
            }
        }
    }

    fn dot(chunk: &[u8], row: usize, x: &[ActivationBlock], acc: f32) -> f32 {
        let d = half_at(chunk, row * 2);
        (0..BLOCKS).fold(acc, |acc, block| {
            let x = &x[block];
            let scale = |half| (chunk[scale_position(row, 2 * block + half)] as i8) as f32;
            let w = |k| quant(chunk, block, row, k);
            let t = int_dot(x, 0..HALF, w) * scale(0);
            let t = int_dot(x, HALF..BLOCK, w).mul_add(scale(1), t);
            t.mul_add(d * x.scale, acc)
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
            for line in (0..LOWER).step_by(64) {
                prefetch.issue(s, chunk.wrapping_add(line));
            }
        }
        // SAFETY: the caller guarantees chunks and for `BLOCKS` blocks of every input.
        unsafe {
            let mut d = [s.splat(0.0); TILES];
            for t in 0..TILES {
                d[t] = s.load_f16(chunks[t]);
            }
            for block in 0..BLOCKS {
                let x = x.map(|x| &*x.add(block));
                // Minus 32 times the sums of the activations.
                let (mut a, mut b) = (
                    [[q.start::<0>(0); INPUTS]; TILES],
                    [[q.start::<0>(0); INPUTS]; TILES],
                );
                for t in 0..TILES {
                    for (i, x) in x.iter().enumerate() {
                        a[t][i] = q.start::<5>(x.neg_halves[0]);
                        b[t][i] = q.start::<5>(x.neg_halves[1]);
                    }
                }
                for group in 0..4 {
                    for t in 0..TILES {
                        let lower = chunks[t].add(LOWER + block * QUANTS);
                        let upper = chunks[t].add(UPPER + block * UPPER_BYTES);
                        let bytes = q.load_and_prefetch(lower.add(group * 64), prefetch);
                        // Prefetch each once.
                        let upper = match group {
                            0 => [
                                q.load_and_prefetch(upper, prefetch),
                                q.load_and_prefetch(upper.add(64), prefetch),
                            ],
                            _ => [q.load(upper), q.load(upper.add(64))],
                        };
                        let first = q.or(q.low4(bytes), q.upper2(upper[0], group));
                        let second = q.or(q.high4(bytes), q.upper2(upper[1], group));
                        for (i, x) in x.iter().enumerate() {
                            a[t][i] = q.dot(a[t][i], first, x.q[group]);
                            b[t][i] = q.dot(b[t][i], second, x.q[group + 4]);
                        }
                    }
                }
                for tile in 0..TILES {
                    let scales = chunks[tile].add(scale_position(0, 2 * block));
                    let (scale_a, scale_b) = (q.load_i8(scales), q.load_i8(scales.add(TILE_ROWS)));
                    for (i, x) in x.iter().enumerate() {
                        let t = s.mul(q.to_f32(a[tile][i]), scale_a);
                        let t = s.fma(q.to_f32(b[tile][i]), scale_b, t);
                        let scale = s.mul(d[tile], s.splat(x.scale));
                        acc[tile][i] = s.fma(t, scale, acc[tile][i]);
                    }
                }
            }
        }
    }
}
