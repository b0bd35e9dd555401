//! Quantised matrices times 8-bit activations, written once over [`Int8`].
//!
//! ```text
//! for TILES tiles of 16 rows, for a slice of columns short enough for the tiles to stay in the first-level cache:
//!     for a group of INPUTS inputs:
//!         acc[TILES][INPUTS] = 0, or the sums after the previous slice        one lane per row
//!         for a chunk of columns: Format::accumulate
//!     out[i][tiles] = acc
//! ```
//!
//! 1. No sum crosses lanes, and sums are carried over from slice to slice unreduced: see `block` for the order.
//! 2. Two tiles share each broadcast of four activations, and six inputs share each load of weights: the sums of
//!    integers and of floats fill the registers. On Zen 5 that reaches 0.72 (q8_0) and 0.64 (q4_k) of the peak of
//!    the dot products; a loop of only the format's instructions reaches 0.75.
//! 3. Only the first inputs prefetch weights: for later inputs the prefetches would take slots from loads.
//! 4. Activations in two terms are two inputs each, whose sums are added when they are stored.
//! 5. For one input, memory is a single stream of tile after tile, prefetched past the caches. On Zen 5 it reaches
//!    1.0 to 1.1 of the rate of a plain read; two streams reach 0.75 to 0.9.
//! 6. Formats fill arrays in loops: a closure in `map` may be compiled as a function without the instructions.

use core::ops::Range;

use super::simd::{Int8, Prefetch, Simd};
use crate::block::activations::{
    ActivationBlock, BLOCK, QuantizedActivations, Terms, scale_and_factor,
};
use crate::block::{Format, TILE_ROWS};
use crate::scalar::LANES;
use crate::view::ViewMut;

/// How far ahead a single input prefetches weights: the best of 0.5 to 16 KiB for all formats.
const PREFETCH_BYTES: usize = 8 * 1024;

/// Bytes of weights that stay in the first-level cache while they are multiplied with one input after the other.
const SLICE_BYTES: usize = 20 * 1024;

/// Inputs whose sums are carried over from slice to slice at a time.
const INPUT_BLOCK: usize = 128;

/// See [`crate::linear_quantized`]. Up to `TILES` tiles and `MAX_INPUTS` inputs (at most 6) are taken together.
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
    // SAFETY: the matrix has `tiles` tiles. `x` has one or two rows of `per_row` blocks for each input, which
    // cover the padded columns.
    unsafe {
        match (n_inputs, x.terms) {
            (0, _) => (),
            (1, Terms::One) => stream::<Q, F, 1>(q, w, tile_bytes, x, out),
            (1, Terms::Two) => stream::<Q, F, 2>(q, w, tile_bytes, x, out),
            _ => {
                let mut sums = [[q.floats().splat(0.0); TILES]; INPUT_BLOCK];
                let mut tile = 0;
                while tile + TILES <= tiles {
                    input_blocks::<Q, F, TILES, MAX_INPUTS>(
                        q, w, tile_bytes, x, out, tile, &mut sums,
                    );
                    tile += TILES;
                }
                let mut sums = [[q.floats().splat(0.0); 1]; INPUT_BLOCK];
                for tile in tile..tiles {
                    input_blocks::<Q, F, 1, MAX_INPUTS>(q, w, tile_bytes, x, out, tile, &mut sums);
                }
            }
        }
    }
}

/// `TILES` tiles times all inputs. `sums` is scratch memory.
///
/// # Safety
/// `w` has the tiles; the blocks of `x` cover the padded columns.
#[inline(always)]
unsafe fn input_blocks<Q: Int8, F: Format, const TILES: usize, const MAX_INPUTS: usize>(
    q: Q,
    w: &[u8],
    tile_bytes: usize,
    x: &QuantizedActivations,
    out: &mut ViewMut<'_, f32>,
    tile: usize,
    sums: &mut [[Q::V; TILES]; INPUT_BLOCK],
) {
    let w = w[tile * tile_bytes..][..TILES * tile_bytes].as_ptr();
    let n_chunks = tile_bytes / F::CHUNK;
    // From here on each term of an input counts as one input. Groups and blocks have even sizes.
    let n = x.n * x.terms.count();
    let n_slices = match n {
        n if n <= MAX_INPUTS => 1,
        _ => (TILES * tile_bytes)
            .div_ceil(SLICE_BYTES)
            .min(n_chunks)
            .max(1),
    };
    for first in (0..n).step_by(INPUT_BLOCK) {
        let inputs = first..n.min(first + INPUT_BLOCK);
        for slice in 0..n_slices {
            let first_chunk = |slice| n_chunks * slice / n_slices;
            let group = TileSlice {
                w,
                tile_bytes,
                chunks: first_chunk(slice)..first_chunk(slice + 1),
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
                // The first inputs prefetch the same slice of the next tiles. A last pair prefetches it again,
                // because it is not worth another copy of the loop.
                let prefetch = Prefetch::Temporal(TILES * tile_bytes);
                // SAFETY: the caller guarantees tiles and inputs.
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

/// A slice of the columns of neighbouring tiles.
struct TileSlice {
    /// The first tile.
    w: *const u8,
    tile_bytes: usize,
    chunks: Range<usize>,
    /// The number of the first tile.
    tile: usize,
    is_first: bool,
    is_last: bool,
}

impl TileSlice {
    /// Adds the products of the slice with `INPUTS` inputs to `sums`. The last slice stores the sums in `out`.
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
            let offset = chunk * F::CHUNK;
            let chunks =
                core::array::from_fn(|t| self.w.wrapping_add(t * self.tile_bytes + offset));
            // SAFETY: the caller guarantees tiles and inputs.
            unsafe { F::accumulate::<Q, TILES, INPUTS>(q, chunks, prefetch, x, &mut acc) };
            x = x.map(|x| x.wrapping_add(F::COLS / BLOCK));
        }
        for t in 0..TILES {
            for i in 0..INPUTS {
                match (self.is_last, terms) {
                    (true, Terms::One) => store(s, out.row(input + i), self.tile + t, acc[t][i]),
                    (true, Terms::Two) if i % 2 == 1 => {
                        let sum = s.add(acc[t][i - 1], acc[t][i]);
                        store(s, out.row((input + i) / 2), self.tile + t, sum);
                    }
                    (true, Terms::Two) => {}
                    (false, _) => sums[i][t] = acc[t][i],
                }
            }
        }
    }
}

/// Stores the rows of a tile, except the padding.
#[inline(always)]
fn store<S: Simd>(s: S, out: &mut [f32], tile: usize, acc: S::V) {
    let out = &mut out[tile * TILE_ROWS..];
    match out.first_chunk_mut::<LANES>() {
        // SAFETY: an array of 16 values.
        Some(out) => unsafe { s.store(out.as_mut_ptr(), acc) },
        None => s.store_first(out, acc),
    }
}

/// All tiles times a single input in `TERMS` terms.
///
/// # Safety
/// `w` has whole tiles. The blocks of `x` cover the padded columns for each term.
#[inline(always)]
unsafe fn stream<Q: Int8, F: Format, const TERMS: usize>(
    q: Q,
    w: &[u8],
    tile_bytes: usize,
    x: &QuantizedActivations,
    out: &mut ViewMut<'_, f32>,
) {
    let s = q.floats();
    for i in 0..out.shape().1.div_ceil(TILE_ROWS) {
        let tile = &w[i * tile_bytes..][..tile_bytes];
        let mut acc = [[s.splat(0.0); TERMS]];
        let start = x.blocks.as_ptr();
        let mut x = core::array::from_fn(|i| start.wrapping_add(i * x.blocks_per_row()));
        for chunk in tile.chunks_exact(F::CHUNK) {
            // SAFETY: the caller guarantees the blocks.
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

/// See [`crate::quantize_activations`]. `blocks` has the blocks of one padded row.
#[inline(always)]
pub(crate) fn quantize_row<Q: Int8>(q: Q, terms: Terms, x: &[f32], blocks: &mut [ActivationBlock]) {
    let (first, second) = blocks.split_at_mut(blocks.len() / terms.count());
    let (whole, last) = x.as_chunks::<BLOCK>();
    for (i, x) in whole.iter().enumerate() {
        quantize_terms(q, x, &mut first[i], second.get_mut(i));
    }
    if !last.is_empty() {
        let mut padded = [0.0; BLOCK];
        padded[..last.len()].copy_from_slice(last);
        let i = whole.len();
        quantize_terms(q, &padded, &mut first[i], second.get_mut(i));
    }
    let filled = x.len().div_ceil(BLOCK);
    for blocks in [first, second] {
        if let Some(padding) = blocks.get_mut(filled..) {
            padding.fill(ActivationBlock::default());
        }
    }
}

/// Quantises a block, and its rounding error into `second` if there are two terms.
#[inline(always)]
fn quantize_terms<Q: Int8>(
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
        let (first_term, _) = first.q.as_flattened().as_chunks::<LANES>();
        for i in 0..2 {
            // SAFETY: an array of 16 bytes.
            let quantized = unsafe { q.load_i8(first_term[i].as_ptr().cast()) };
            x[i] = s.fma(quantized, minus, x[i]);
        }
        quantize_block(q, x, second);
    }
}

/// [`ActivationBlock::quantize`] with vectors.
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

/// Compiles the algorithms for one token type: `int8_entry_points!(Token, attributes, tile TILES x INPUTS)`.
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
