//! Quantised matrices times 8-bit activations, written once over [`Int8`].
//!
//! ```text
//! for TILES tiles of 16 rows, for a slice of columns of which the tiles stay in the first-level cache:
//!     for a group of INPUTS inputs:
//!         acc[TILES][INPUTS] = 0, or what was kept of the slice before        one lane a row
//!         for a chunk of columns: Format::accumulate
//!     out[i][tiles] = acc
//! ```
//!
//! 1. No sum crosses lanes, and sums are kept as they are from slice to slice: see `block` for the order.
//! 2. Two tiles share each broadcast of four activations, six inputs each load of weights: as many sums
//!    of integers and of floats as there are registers for. On Zen 5 that reaches 0.72 (q8_0) and 0.64
//!    (q4_k) of the peak of the dot products; a loop of nothing but the format's instructions 0.75.
//! 3. Only the first inputs ask for weights ahead: for later ones the requests take loads' turns.
//! 4. Activations in two steps are two inputs each, whose sums are added when they are stored.
//! 5. For one input memory is a single stream of tile after tile, asked for ahead, past the caches: on Zen 5
//!    it comes at 1.0 to 1.1 of the rate of a plain read, two streams at 0.75 to 0.9.
//! 6. Formats fill arrays in loops: a closure in `map` may become a function without the instructions.

use core::ops::Range;

use super::{Prefetch, Simd};
use crate::ViewMut;
use crate::block::activations::{
    ActivationBlock, BLOCK, QuantizedActivations, Terms, scale_and_factor,
};
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
    /// [`Int8::load`], asking for what lies ahead.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    #[inline(always)]
    unsafe fn fetch(self, p: *const u8, prefetch: Prefetch) -> Self::B {
        prefetch.issue(self.floats(), p);
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { self.load(p) }
    }
    /// [`Int8::load_signed`], asking for what lies ahead.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    #[inline(always)]
    unsafe fn fetch_signed(self, p: *const u8, prefetch: Prefetch) -> Self::B {
        prefetch.issue(self.floats(), p);
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

/// Bytes ahead that weights are asked for by a single input: of 0.5 to 16 KiB the best for all formats.
const PREFETCH_BYTES: usize = 8 * 1024;

/// Bytes of weights that stay in the first-level cache while input after input meets them.
const SLICE_BYTES: usize = 20 * 1024;

/// Inputs whose sums wait in the caches while they meet slice after slice.
const PANEL: usize = 128;

/// See [`crate::linear_quantized`]; `TILES x MAX_INPUTS` tiles and inputs (at most 6) are taken together.
#[inline(always)]
pub(crate) fn linear_quantized<Q: Int8, F: Format, const TILES: usize, const MAX_INPUTS: usize>(
    q: Q,
    w: &[u8],
    x: &QuantizedActivations,
    out: &mut ViewMut<'_, f32>,
) {
    let (n_inputs, rows) = out.shape();
    let tiles = rows.div_ceil(TILE_ROWS);
    let tile_bytes = x.cols.div_ceil(F::COLS) * F::CHUNK;
    assert!(w.len() == tiles * tile_bytes && x.n == n_inputs);
    let per_row = x.blocks_per_row();
    assert!(x.blocks.len() >= x.n * x.terms.count() * per_row);
    assert!(per_row * BLOCK >= x.cols.next_multiple_of(F::COLS));
    // SAFETY: the matrix has `tiles` tiles, and `x` has rows of `per_row` blocks, which cover the padded
    // columns, one or two for each input.
    unsafe {
        match (n_inputs, x.terms) {
            (0, _) => (),
            (1, Terms::One) => stream::<Q, F, 1>(q, w, tile_bytes, x, out),
            (1, Terms::Two) => stream::<Q, F, 2>(q, w, tile_bytes, x, out),
            _ => {
                let mut sums = [[q.floats().splat(0.0); TILES]; PANEL];
                let mut tile = 0;
                while tile + TILES <= tiles {
                    panels::<Q, F, TILES, MAX_INPUTS>(q, w, tile_bytes, x, out, tile, &mut sums);
                    tile += TILES;
                }
                let mut sums = [[q.floats().splat(0.0); 1]; PANEL];
                for tile in tile..tiles {
                    panels::<Q, F, 1, MAX_INPUTS>(q, w, tile_bytes, x, out, tile, &mut sums);
                }
            }
        }
    }
}

/// `TILES` tiles times all inputs. `sums` is memory.
///
/// # Safety
/// `w` has the tiles; the blocks of `x` cover the padded columns.
#[inline(always)]
unsafe fn panels<Q: Int8, F: Format, const TILES: usize, const MAX_INPUTS: usize>(
    q: Q,
    w: &[u8],
    tile_bytes: usize,
    x: &QuantizedActivations,
    out: &mut ViewMut<'_, f32>,
    tile: usize,
    sums: &mut [[Q::V; TILES]; PANEL],
) {
    let w = w[tile * tile_bytes..][..TILES * tile_bytes].as_ptr();
    let n_chunks = tile_bytes / F::CHUNK;
    // From here on each step of an input counts as one; groups and panels of two are even.
    let n = x.n * x.terms.count();
    let n_slices = match n {
        n if n <= MAX_INPUTS => 1,
        _ => (TILES * tile_bytes)
            .div_ceil(SLICE_BYTES)
            .min(n_chunks)
            .max(1),
    };
    for first in (0..n).step_by(PANEL) {
        let inputs = first..n.min(first + PANEL);
        for slice in 0..n_slices {
            let at = |slice| n_chunks * slice / n_slices;
            let group = Group {
                w,
                tile_bytes,
                chunks: at(slice)..at(slice + 1),
                tile,
                is_first: slice == 0,
                is_last: slice + 1 == n_slices,
            };
            let mut input = inputs.start;
            while input < inputs.end {
                let n = match (inputs.end - input).min(MAX_INPUTS) {
                    6.. => 6,
                    4.. => 4,
                    2.. => 2,
                    _ => 1,
                };
                let sums = &mut sums[input - inputs.start..][..n];
                // The first inputs ask for the same slice of the next tiles. A last pair asks again, which is
                // not worth another copy of the loop.
                let prefetch = Prefetch::Temporal(TILES * tile_bytes);
                // SAFETY: the caller vouches for tiles and inputs.
                unsafe {
                    match (n, input) {
                        (6, 0) => group.add::<Q, F, TILES, 6>(q, x, input, prefetch, sums, out),
                        (6, _) => {
                            group.add::<Q, F, TILES, 6>(q, x, input, Prefetch::None, sums, out)
                        }
                        (4, 0) => group.add::<Q, F, TILES, 4>(q, x, input, prefetch, sums, out),
                        (4, _) => {
                            group.add::<Q, F, TILES, 4>(q, x, input, Prefetch::None, sums, out)
                        }
                        (2, _) => group.add::<Q, F, TILES, 2>(q, x, input, prefetch, sums, out),
                        _ => group.add::<Q, F, TILES, 1>(q, x, input, Prefetch::None, sums, out),
                    }
                }
                input += n;
            }
        }
    }
}

/// A slice of some tiles.
struct Group {
    /// Where the tiles begin.
    w: *const u8,
    tile_bytes: usize,
    chunks: Range<usize>,
    /// Number of the first tile.
    tile: usize,
    is_first: bool,
    is_last: bool,
}

impl Group {
    /// Adds the slice's products with `INPUTS` inputs to `sums`, or to `out` if it is the last.
    ///
    /// # Safety
    /// There are `TILES` tiles and, from `input` on, `INPUTS` inputs.
    #[inline(always)]
    unsafe fn add<Q: Int8, F: Format, const TILES: usize, const INPUTS: usize>(
        &self,
        q: Q,
        x: &QuantizedActivations,
        input: usize,
        prefetch: Prefetch,
        sums: &mut [[Q::V; TILES]],
        out: &mut ViewMut<'_, f32>,
    ) {
        let s = q.floats();
        let sums: &mut [[Q::V; TILES]; INPUTS] = sums.try_into().unwrap();
        let mut acc = [[s.splat(0.0); INPUTS]; TILES];
        if !self.is_first {
            for t in 0..TILES {
                for i in 0..INPUTS {
                    acc[t][i] = sums[i][t];
                }
            }
        }
        let per_row = x.blocks_per_row();
        let (start, terms) = (x.blocks.as_ptr(), x.terms);
        let mut x: [*const ActivationBlock; INPUTS] = core::array::from_fn(|i| {
            start.wrapping_add((input + i) * per_row + self.chunks.start * (F::COLS / BLOCK))
        });
        for chunk in self.chunks.clone() {
            let at = chunk * F::CHUNK;
            let chunks = core::array::from_fn(|t| self.w.wrapping_add(t * self.tile_bytes + at));
            // SAFETY: the caller vouches for tiles and inputs.
            unsafe { F::accumulate::<Q, TILES, INPUTS>(q, chunks, prefetch, x, &mut acc) };
            x = x.map(|x| x.wrapping_add(F::COLS / BLOCK));
        }
        for t in 0..TILES {
            for i in 0..INPUTS {
                match (self.is_last, terms) {
                    (true, Terms::One) => store(s, out.row(input + i), self.tile + t, acc[t][i]),
                    (true, Terms::Two) if i % 2 == 1 => {
                        let both = s.add(acc[t][i - 1], acc[t][i]);
                        store(s, out.row((input + i) / 2), self.tile + t, both);
                    }
                    (true, Terms::Two) => {}
                    (false, _) => sums[i][t] = acc[t][i],
                }
            }
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

/// All tiles times the only input, in `INPUTS` terms.
///
/// # Safety
/// `w` has whole tiles; the blocks of `x` cover the padded columns, `INPUTS` times.
#[inline(always)]
unsafe fn stream<Q: Int8, F: Format, const INPUTS: usize>(
    q: Q,
    w: &[u8],
    tile_bytes: usize,
    x: &QuantizedActivations,
    out: &mut ViewMut<'_, f32>,
) {
    let s = q.floats();
    for i in 0..out.shape().1.div_ceil(TILE_ROWS) {
        let tile = &w[i * tile_bytes..][..tile_bytes];
        let mut acc = [[s.splat(0.0); INPUTS]];
        let start = x.blocks.as_ptr();
        let mut x = core::array::from_fn(|i| start.wrapping_add(i * x.blocks_per_row()));
        for chunk in tile.chunks_exact(F::CHUNK) {
            // SAFETY: the caller vouches for the blocks.
            unsafe {
                F::accumulate(
                    q,
                    [chunk.as_ptr()],
                    Prefetch::Streaming(PREFETCH_BYTES),
                    x,
                    &mut acc,
                )
            };
            x = x.map(|x| x.wrapping_add(F::COLS / BLOCK));
        }
        let sum = acc[0][1..].iter().fold(acc[0][0], |a, b| s.add(a, *b));
        store(s, out.row(0), i, sum);
    }
}

/// See [`crate::quantize_activations`]; `blocks` has as many blocks as cover a row of `x`, padded.
#[inline(always)]
pub(crate) fn quantize_row<Q: Int8>(q: Q, terms: Terms, x: &[f32], blocks: &mut [ActivationBlock]) {
    let (first, second) = blocks.split_at_mut(blocks.len() / terms.count());
    let (whole, last) = x.as_chunks::<BLOCK>();
    for (i, x) in whole.iter().enumerate() {
        quantize_steps(q, x, &mut first[i], second.get_mut(i));
    }
    if !last.is_empty() {
        let mut padded = [0.0; BLOCK];
        padded[..last.len()].copy_from_slice(last);
        let i = whole.len();
        quantize_steps(q, &padded, &mut first[i], second.get_mut(i));
    }
    let filled = x.len().div_ceil(BLOCK);
    for blocks in [first, second] {
        if let Some(padding) = blocks.get_mut(filled..) {
            padding.fill(ActivationBlock::default());
        }
    }
}

/// One block, and what rounding leaves of it into another if there is one.
#[inline(always)]
fn quantize_steps<Q: Int8>(
    q: Q,
    x: &[f32; BLOCK],
    first: &mut ActivationBlock,
    second: Option<&mut ActivationBlock>,
) {
    let s = q.floats();
    let (halves, _) = x.as_chunks::<LANES>();
    let mut x = [s.load_array(&halves[0]), s.load_array(&halves[1])];
    quantize_block(q, x, first);
    if let Some(second) = second {
        let minus = s.splat(-first.scale);
        let (kept, _) = first.q.as_flattened().as_chunks::<LANES>();
        for i in 0..2 {
            // SAFETY: an array of 16 bytes.
            let kept = unsafe { q.load_i8(kept[i].as_ptr().cast()) };
            x[i] = s.fma(kept, minus, x[i]);
        }
        quantize_block(q, x, second);
    }
}

/// [`ActivationBlock::quantize`] in vectors.
#[inline(always)]
fn quantize_block<Q: Int8>(q: Q, x: [Q::V; 2], block: &mut ActivationBlock) {
    let s = q.floats();
    let (scale, factor) = scale_and_factor(q.largest_magnitude(x));
    let factor = s.splat(factor);
    let (out, _) = block.q.as_flattened_mut().as_chunks_mut::<LANES>();
    let out: &mut [[i8; LANES]; 2] = out.try_into().unwrap();
    q.store_i8(s.mul(x[0], factor), &mut out[0]);
    q.store_i8(s.mul(x[1], factor), &mut out[1]);
    let sums = q.half_sums(out);
    block.finish(scale, sums);
}

/// Instantiates the algorithms for one token type: `int8_entry_points!(Token, attributes, tile size)`.
macro_rules! int8_entry_points {
    ($token:ty, { $(#[$attr:meta])* }, tile $tiles:literal x $inputs:literal) => {
        $crate::vector::int8_entry_points! { @each $token, { $(#[$attr])* }, [$tiles, $inputs],
            linear_q8_0: q8_0::Q8_0, linear_q4_0: q4_0::Q4_0,
            linear_q4_k: q4_k::Q4K, linear_q6_k: q6_k::Q6K
        }
        $(#[$attr])*
        pub(crate) fn quantize_row(
            q: $token,
            terms: $crate::block::Terms,
            x: &[f32],
            blocks: &mut [$crate::block::activations::ActivationBlock],
        ) {
            $crate::vector::quantize_row(q, terms, x, blocks)
        }
    };
    (@each $token:ty, $attrs:tt, $size:tt, $($name:ident: $module:ident::$format:ident),*) => {
        $($crate::vector::int8_entry_points! { @one $token, $attrs, $size, $name, $module, $format })*
    };
    (@one $token:ty, { $(#[$attr:meta])* }, [$tiles:literal, $inputs:literal], $name:ident, $module:ident, $format:ident) => {
        $(#[$attr])*
        pub(crate) fn $name(
            q: $token,
            w: &[u8],
            x: &$crate::block::QuantizedActivations,
            out: &mut $crate::ViewMut<'_, f32>,
        ) {
            $crate::vector::linear_quantized::<_, $crate::block::$module::$format, $tiles, $inputs>(q, w, x, out)
        }
    };
}
pub(crate) use int8_entry_points;
