//! Quantised matrices times 8-bit activations, written once over [`Int8`].
//!
//! ```text
//! for a block of tiles that stays in the cache, for a group of N inputs, for a tile of 16 rows:
//!     acc[N] = 0                           one lane a row
//!     for a chunk of columns: Format::accumulate
//!     out[i][tile] = acc[i]
//! ```
//!
//! No sum crosses lanes, and the columns are never split: see `block` for the order of sums.

use super::Simd;
use crate::block::activations::{ActivationBlock, BLOCK, QuantizedActivations, scale_and_factor};
use crate::block::{Format, TILE_ROWS};
use crate::scalar::LANES;

/// 64 bytes of weights, 16 lanes of i32, and the floats they end in. A value of the implementing type
/// proves that the CPU has the instructions.
pub(crate) trait Int8: Copy {
    /// The floats.
    type S: Simd<V = Self::V>;
    /// 16 lanes of f32.
    type V: Copy;
    /// 64 bytes: 4 for each of 16 rows.
    type B: Copy;
    /// 16 lanes of i32.
    type I: Copy;

    fn floats(self) -> Self::S;

    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load(self, p: *const u8) -> Self::B;
    /// [`Int8::load`], asking for the bytes `ahead` further on.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    #[inline(always)]
    unsafe fn fetch(self, p: *const u8, ahead: usize) -> Self::B {
        self.floats().prefetch(p.wrapping_add(ahead));
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { self.load(p) }
    }
    /// [`Int8::load_signed`], asking for the bytes `ahead` further on.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    #[inline(always)]
    unsafe fn fetch_signed(self, p: *const u8, ahead: usize) -> Self::B {
        self.floats().prefetch(p.wrapping_add(ahead));
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { self.load_signed(p) }
    }
    /// The lower 4 bits of each byte.
    fn low4(self, b: Self::B) -> Self::B;
    /// The upper 4 bits of each byte, moved down.
    fn high4(self, b: Self::B) -> Self::B;
    /// Bits `2 * i` and `2 * i + 1` of each byte, moved to bits 4 and 5.
    fn upper2(self, b: Self::B, i: usize) -> Self::B;
    fn or(self, a: Self::B, b: Self::B) -> Self::B;

    /// `x << SHIFT` in every lane.
    fn start<const SHIFT: u32>(self, x: i32) -> Self::I;
    /// Adds the products of each row's 4 bytes (0..=127) with `x`.
    fn dot(self, acc: Self::I, w: Self::B, x: [i8; 4]) -> Self::I;

    /// [`Int8::load`] of bytes that stand for themselves minus 128.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load_signed(self, p: *const u8) -> Self::B;
    /// Where sums of [`Int8::dot_signed`] start, if `neg_sum` is minus the sum of all its `x`.
    fn start_signed(self, neg_sum: i32) -> Self::I;
    /// Adds the products of each row's 4 bytes minus 128 with `x`.
    fn dot_signed(self, acc: Self::I, w: Self::B, x: [i8; 4]) -> Self::I;

    fn to_f32(self, i: Self::I) -> Self::V;
    /// 16 signed bytes.
    /// # Safety
    /// `p` is valid for reading 16 bytes.
    unsafe fn load_i8(self, p: *const u8) -> Self::V;
    /// Four times 16 6-bit numbers out of 48 bytes: see `block::q4_k`.
    /// # Safety
    /// `p` is valid for reading 48 bytes.
    unsafe fn load_sixes(self, p: *const u8) -> [Self::V; 4];
    /// Rounds to integers, ties to even, and stores them as bytes. The values are within -127.5..127.5,
    /// or the result does not matter.
    fn store_i8(self, v: Self::V, out: &mut [i8; LANES]);
    /// The largest magnitude of 32 values; NaN if any is.
    fn largest_magnitude(self, x: [Self::V; 2]) -> f32;
    /// The sums of the first and of the last 16.
    fn half_sums(self, q: &[[i8; LANES]; 2]) -> [i32; 2];
}

/// Bytes ahead that weights are asked for.
const PREFETCH: usize = 8192;

/// Bytes of weights that a block of tiles may take: see `vector::linear`.
const BLOCK_BYTES: usize = 256 * 1024;

/// See [`crate::linear_quantized`]; `M` (1, 2, 4 or 8) inputs are taken together.
#[inline(always)]
pub(crate) fn linear_quantized<Q: Int8, F: Format, const M: usize>(
    q: Q,
    w: &[u8],
    x: &QuantizedActivations,
    out: &mut [&mut [f32]],
) {
    let rows = out.first().map_or(0, |out| out.len());
    let tiles = rows.div_ceil(TILE_ROWS);
    let tile_bytes = x.cols.div_ceil(F::COLS) * F::CHUNK;
    assert!(w.len() == tiles * tile_bytes && x.n == out.len());
    assert!(out.iter().all(|out| out.len() == rows));
    let per_row = x.blocks_per_row();
    assert!(x.blocks.len() == x.n * per_row && per_row * BLOCK >= x.cols.next_multiple_of(F::COLS));
    let block = (BLOCK_BYTES / tile_bytes.max(1)).max(1);
    let mut tile = 0;
    while tile < tiles {
        let end = tiles.min(tile + block);
        let mut x = x.blocks.as_ptr();
        let mut rest = &mut out[..];
        while !rest.is_empty() {
            let n = match rest.len().min(M) {
                8.. => 8,
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            let (group, others) = rest.split_at_mut(n);
            // SAFETY: the matrix has `tiles` tiles, and `x` still has `n` rows of `per_row` blocks, which
            // cover the padded columns.
            unsafe {
                match n {
                    8 => strip::<Q, F, 8>(q, w, tile_bytes, x, per_row, group, tile..end),
                    4 => strip::<Q, F, 4>(q, w, tile_bytes, x, per_row, group, tile..end),
                    2 => strip::<Q, F, 2>(q, w, tile_bytes, x, per_row, group, tile..end),
                    _ => alone::<Q, F>(q, w, tile_bytes, x, group[0], tile..end),
                }
                x = x.add(n * per_row);
            }
            rest = others;
        }
        tile = end;
    }
}

/// Tiles taken together for one input: as many streams from memory. On Zen 4 two or four of them, with
/// requests spread between the loads (not a burst for every chunk), came closest to a plain read.
const STREAMS: usize = 2;

/// Some tiles times one input.
///
/// # Safety
/// `w` has the tiles; `x` points to the blocks of an input, which cover the padded columns.
#[inline(always)]
unsafe fn alone<Q: Int8, F: Format>(
    q: Q,
    w: &[u8],
    tile_bytes: usize,
    x: *const ActivationBlock,
    out: &mut [f32],
    tiles: std::ops::Range<usize>,
) {
    let s = q.floats();
    for first in tiles.clone().step_by(STREAMS) {
        let n = STREAMS.min(tiles.end - first);
        let w = w[first * tile_bytes..][..n * tile_bytes].as_ptr();
        let mut acc = [[s.splat(0.0)]; STREAMS];
        let mut x = x;
        for at in (0..tile_bytes).step_by(F::CHUNK) {
            for (t, acc) in acc[..n].iter_mut().enumerate() {
                let chunk = w.wrapping_add(t * tile_bytes + at);
                // One group of tiles ahead.
                let ahead = STREAMS * tile_bytes;
                // SAFETY: the slice above has `n` tiles, and the caller vouches for the blocks.
                unsafe { F::accumulate::<Q, 1>(q, chunk, ahead, [x], acc) };
            }
            x = x.wrapping_add(F::COLS / BLOCK);
        }
        for (t, [acc]) in acc[..n].iter().enumerate() {
            store(s, out, first + t, *acc);
        }
    }
}

/// Stores the rows of a tile, as far as they are not padding.
#[inline(always)]
fn store<S: Simd>(s: S, out: &mut [f32], tile: usize, acc: S::V) {
    let out = &mut out[tile * TILE_ROWS..];
    match out.first_chunk_mut::<LANES>() {
        // SAFETY: an array of 16 values.
        Some(out) => unsafe { s.store(out.as_mut_ptr(), acc) },
        None => s.store_first(out, acc),
    }
}

/// Some tiles times `N` inputs.
///
/// # Safety
/// `w` has the tiles; `x` points to `N` rows of `per_row` blocks, which cover the padded columns.
#[inline(always)]
unsafe fn strip<Q: Int8, F: Format, const N: usize>(
    q: Q,
    w: &[u8],
    tile_bytes: usize,
    x: *const ActivationBlock,
    per_row: usize,
    out: &mut [&mut [f32]],
    tiles: std::ops::Range<usize>,
) {
    let s = q.floats();
    for tile in tiles {
        let mut acc = [s.splat(0.0); N];
        let mut x: [*const ActivationBlock; N] =
            core::array::from_fn(|i| x.wrapping_add(i * per_row));
        for chunk in w[tile * tile_bytes..][..tile_bytes].chunks_exact(F::CHUNK) {
            // SAFETY: `chunk` is one, and the caller vouches for the blocks that go with it.
            unsafe { F::accumulate::<Q, N>(q, chunk.as_ptr(), PREFETCH, x, &mut acc) };
            x = x.map(|x| x.wrapping_add(F::COLS / BLOCK));
        }
        for (acc, out) in acc.into_iter().zip(out.iter_mut()) {
            store(s, out, tile, acc);
        }
    }
}

/// See [`crate::quantize_activations`]; `blocks` has as many blocks as cover a row of `x`, padded.
#[inline(always)]
pub(crate) fn quantize_row<Q: Int8>(q: Q, x: &[f32], blocks: &mut [ActivationBlock]) {
    let (whole, rest) = x.as_chunks::<BLOCK>();
    let (filled, padding) = blocks.split_at_mut(whole.len());
    for (block, x) in filled.iter_mut().zip(whole) {
        quantize_block(q, x, block);
    }
    padding.fill(ActivationBlock::default());
    if !rest.is_empty() {
        let mut padded = [0.0; BLOCK];
        padded[..rest.len()].copy_from_slice(rest);
        quantize_block(q, &padded, &mut padding[0]);
    }
}

/// [`ActivationBlock::quantize`] in vectors.
#[inline(always)]
fn quantize_block<Q: Int8>(q: Q, x: &[f32; BLOCK], block: &mut ActivationBlock) {
    let s = q.floats();
    let (halves, _) = x.as_chunks::<LANES>();
    let x = [s.load_array(&halves[0]), s.load_array(&halves[1])];
    let (scale, factor) = scale_and_factor(q.largest_magnitude(x));
    let factor = s.splat(factor);
    let (out, _) = block.q.as_flattened_mut().as_chunks_mut::<LANES>();
    let out: &mut [[i8; LANES]; 2] = out.try_into().unwrap();
    q.store_i8(s.mul(x[0], factor), &mut out[0]);
    q.store_i8(s.mul(x[1], factor), &mut out[1]);
    let sums = q.half_sums(out);
    block.finish(scale, sums);
}

/// Instantiates the algorithms for one token type: `int8_entry_points!(Token, attributes, inputs)`.
macro_rules! int8_entry_points {
    ($token:ty, { $(#[$attr:meta])* }, inputs $inputs:literal) => {
        $crate::vector::int8_entry_points! { @each $token, { $(#[$attr])* }, $inputs,
            linear_q8_0: q8_0::Q8_0, linear_q4_0: q4_0::Q4_0,
            linear_q4_k: q4_k::Q4K, linear_q6_k: q6_k::Q6K
        }
        $(#[$attr])*
        pub(crate) fn quantize_row(
            q: $token,
            x: &[f32],
            blocks: &mut [$crate::block::activations::ActivationBlock],
        ) {
            $crate::vector::quantize_row(q, x, blocks)
        }
    };
    (@each $token:ty, $attrs:tt, $inputs:literal, $($name:ident: $module:ident::$format:ident),*) => {
        $($crate::vector::int8_entry_points! { @one $token, $attrs, $inputs, $name, $module, $format })*
    };
    (@one $token:ty, { $(#[$attr:meta])* }, $inputs:literal, $name:ident, $module:ident, $format:ident) => {
        $(#[$attr])*
        pub(crate) fn $name(
            q: $token,
            w: &[u8],
            x: &$crate::block::QuantizedActivations,
            out: &mut [&mut [f32]],
        ) {
            $crate::vector::linear_quantized::<_, $crate::block::$module::$format, $inputs>(q, w, x, out)
        }
    };
}
pub(crate) use int8_entry_points;
