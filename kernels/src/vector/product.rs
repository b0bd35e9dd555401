//! The product of two matrices: operands packed block by block, and one register tile.
//!
//! ```text
//! for a block of columns of b, for a block of k:
//!     pack that part of b: panels of VECS * 16 columns, k after k
//!     for a block of rows of a:
//!         pack that part of a
//!         for 6 rows, for a panel:
//!             acc[6][VECS] = 0                     in registers
//!             for k: acc[i][v] += a[i][k] * b[k][v]
//!             c = scale * acc, or c += scale * acc
//! ```
//!
//! The packed block of b (512 KiB) stays in the second-level cache, six packed rows of a in the
//! first. What is packed are words of 32 bits: an f32, or two bf16 that follow each other in k.

use super::Simd;
use crate::product::{Into, Packed};
use crate::scalar::LANES;
use crate::view::{View, ViewMut};

/// Rows of a tile: with four vectors, 24 sums; enough to hide the latency of multiply-add, and few
/// enough for 32 registers.
const ROWS: usize = 6;
/// Words of k in a block.
pub(crate) const BLOCK_WORDS: usize = 256;
/// Columns of b in a block.
const BLOCK_COLS: usize = 512;
/// Rows of a in a block.
const BLOCK_ROWS: usize = 96;

/// How operands are packed into words of 32 bits, and how these are multiplied.
pub(crate) trait Words<S: Simd>: Copy {
    /// Values of k in a word.
    const PER_WORD: usize;
    /// Words from 16 or 32 values that follow each other in k.
    fn along(self, s: S, first: S::V, second: S::V) -> S::V;
    /// Words from the values of one k, or of two that follow each other.
    fn across(self, s: S, first: S::V, second: S::V) -> S::V;
    /// `acc + a * b`, over all values of a word.
    fn multiply_add(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V;
}

/// A word is an f32.
#[derive(Clone, Copy)]
pub(crate) struct Whole;

impl<S: Simd> Words<S> for Whole {
    const PER_WORD: usize = 1;
    #[inline(always)]
    fn along(self, _s: S, first: S::V, _second: S::V) -> S::V {
        first
    }
    #[inline(always)]
    fn across(self, _s: S, first: S::V, _second: S::V) -> S::V {
        first
    }
    #[inline(always)]
    fn multiply_add(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V {
        s.fma(a, b, acc)
    }
}

/// Up to 16 values, padded with zeros.
#[inline(always)]
fn load<S: Simd>(s: S, x: &[f32]) -> S::V {
    match x.first_chunk() {
        Some(x) => s.load_array(x),
        None => s.load_padded(x, 0.0),
    }
}

/// A part of an operand: `outer` (rows of a, columns of b) from `first` on, and `n_words` of k from `k`
/// on.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    k: usize,
    n_words: usize,
}

/// 16 words along k of one row of `x` (outer, k), from word `word` of the part on.
#[inline(always)]
fn words_along<S: Simd, W: Words<S>>(s: S, w: W, x: View<'_, f32>, outer: usize, k: usize) -> S::V {
    let first = load(s, x.row(outer, k, LANES));
    match W::PER_WORD {
        1 => w.along(s, first, first),
        _ => w.along(s, first, load(s, x.row(outer, k + LANES, LANES))),
    }
}

/// The words of 16 columns of `x` (k, outer) at `k`.
#[inline(always)]
fn words_across<S: Simd, W: Words<S>>(
    s: S,
    w: W,
    x: View<'_, f32>,
    outer: usize,
    k: usize,
) -> S::V {
    let first = load(s, x.row(k, outer, LANES));
    match W::PER_WORD {
        1 => w.across(s, first, first),
        _ => w.across(s, first, load(s, x.row(k + 1, outer, LANES))),
    }
}

#[inline(always)]
fn put<S: Simd>(s: S, out: &mut [f32], v: S::V) {
    let out: &mut [f32; LANES] = out.first_chunk_mut().expect("room for 16 words");
    // SAFETY: an array of 16 values.
    unsafe { s.store(out.as_mut_ptr(), v) }
}

/// Packs rows of a. Returns the distances of neighbouring rows and words in `out`.
#[inline(always)]
fn pack_rows<S: Simd, W: Words<S>>(
    s: S,
    w: W,
    a: View<'_, f32>,
    part: Part,
    n_rows: usize,
    out: &mut Vec<f32>,
) -> (usize, usize) {
    let (n_words, room) = (part.n_words, n_rows.next_multiple_of(ROWS * LANES));
    if a.has_dense_rows() {
        let stride = n_words.next_multiple_of(LANES);
        out.resize(room * stride, 0.0);
        for i in 0..n_rows {
            let mut word = 0;
            while word < n_words {
                let v = words_along(s, w, a, part.first + i, part.k + word * W::PER_WORD);
                put(s, &mut out[i * stride + word..], v);
                word += LANES;
            }
        }
        (stride, 1)
    } else {
        let a = a.t();
        out.resize(room * n_words, 0.0);
        for word in 0..n_words {
            let mut i = 0;
            while i < n_rows {
                let v = words_across(s, w, a, part.first + i, part.k + word * W::PER_WORD);
                put(s, &mut out[word * room + i..], v);
                i += LANES;
            }
        }
        (1, room)
    }
}

/// Packs columns of b into panels of `width` columns; the last one is as wide as it must be.
#[inline(always)]
fn pack_cols<S: Simd, W: Words<S>>(
    s: S,
    w: W,
    b: View<'_, f32>,
    part: Part,
    n_cols: usize,
    width: usize,
    out: &mut Vec<f32>,
) {
    let n_words = part.n_words;
    let room = n_cols.next_multiple_of(LANES);
    out.resize(room * n_words, 0.0);
    let mut col = 0;
    while col < room {
        let panel_at = col - col % width;
        let panel_width = width.min(room - panel_at);
        let at = panel_at * n_words + col % width;
        if b.has_dense_rows() {
            for word in 0..n_words {
                let k = part.k + word * W::PER_WORD;
                let v = words_across(s, w, b, part.first + col, k);
                put(s, &mut out[at + word * panel_width..], v);
            }
        } else {
            let b = b.t();
            let mut word = 0;
            while word < n_words {
                let k = part.k + word * W::PER_WORD;
                let mut v = [s.splat(0.0); LANES];
                #[allow(clippy::needless_range_loop)] // a closure might not be inlined
                for j in 0..LANES {
                    v[j] = words_along(s, w, b, part.first + col + j, k);
                }
                let v = s.transpose(v);
                for i in 0..LANES.min(n_words - word) {
                    put(s, &mut out[at + (word + i) * panel_width..], v[i]);
                }
                word += LANES;
            }
        }
        col += LANES;
    }
}

/// Where the packed operands of a tile are.
#[derive(Clone, Copy)]
struct Tile<'a> {
    a: &'a [f32],
    row_stride: usize,
    word_stride: usize,
    b: &'a [f32], // words after words, `V * 16` wide
    n_words: usize,
}

/// The sums of a tile, put or added to row `i` of c from column `j` on; rows and columns beyond c's end are
/// dropped.
#[inline(always)]
#[allow(clippy::too_many_arguments, clippy::needless_range_loop)] // indices keep sums in registers
fn tile<S: Simd, W: Words<S>, const V: usize>(
    s: S,
    w: W,
    tile: Tile<'_>,
    into: Into,
    c: &mut ViewMut<'_, f32>,
    scale: S::V,
    i: usize,
    j: usize,
) {
    let Tile {
        a,
        row_stride,
        word_stride,
        b,
        n_words,
    } = tile;
    assert!(n_words > 0 && (ROWS - 1) * row_stride + (n_words - 1) * word_stride < a.len());
    assert!(n_words * V * LANES <= b.len());
    let mut acc = [[s.splat(0.0); V]; ROWS];
    let (mut pa, mut pb) = (a.as_ptr(), b.as_ptr());
    for _ in 0..n_words {
        let mut bv = [s.splat(0.0); V];
        for v in 0..V {
            // SAFETY: word `n` of b is `V * 16` values at `n * V * 16`; all fit, see above.
            bv[v] = unsafe { s.load(pb.add(v * LANES)) };
        }
        for r in 0..ROWS {
            // SAFETY: the last word of the last row is inside `a`, see above.
            let av = s.splat(unsafe { *pa.add(r * row_stride) });
            for v in 0..V {
                acc[r][v] = w.multiply_add(s, av, bv[v], acc[r][v]);
            }
        }
        pa = pa.wrapping_add(word_stride);
        pb = pb.wrapping_add(V * LANES);
    }
    let (n_rows, n_cols) = c.shape();
    for r in 0..ROWS.min(n_rows - i) {
        let row = &mut c.row(i + r)[j..n_cols.min(j + V * LANES)];
        let mut rest = row;
        for v in 0..V {
            let n = rest.len().min(LANES);
            let (some, later) = rest.split_at_mut(n);
            rest = later;
            let sum = match into {
                Into::Set => s.mul(scale, acc[r][v]),
                Into::Add => s.fma(scale, acc[r][v], load(s, some)),
            };
            match n {
                LANES => put(s, some, sum),
                _ => s.store_first(some, sum),
            }
        }
    }
}

/// `c = scale * a b` or `c += scale * a b`, with tiles of up to `VECS` (at most 4) vectors.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn product<S: Simd, W: Words<S>, const VECS: usize>(
    s: S,
    w: W,
    into: Into,
    c: &mut ViewMut<'_, f32>,
    scale: f32,
    a: View<'_, f32>,
    b: View<'_, f32>,
    packed: &mut Packed,
) {
    let width = VECS * LANES;
    let ((n_rows, n_cols), k) = (c.shape(), a.shape().1);
    let scale = s.splat(scale);
    let n_words = k.div_ceil(W::PER_WORD);
    let block = n_words.div_ceil(n_words.div_ceil(BLOCK_WORDS)); // blocks of equal size
    let mut first_col = 0;
    while first_col < n_cols {
        let cols = BLOCK_COLS.min(n_cols - first_col);
        let mut word = 0;
        while word < n_words {
            let into = if word == 0 { into } else { Into::Add };
            let mut part = Part {
                first: first_col,
                k: word * W::PER_WORD,
                n_words: block.min(n_words - word),
            };
            let n_words = part.n_words;
            pack_cols(s, w, b, part, cols, width, &mut packed.b);
            let room = cols.next_multiple_of(LANES);
            let mut first_row = 0;
            while first_row < n_rows {
                let rows = BLOCK_ROWS.min(n_rows - first_row);
                part.first = first_row;
                let (row_stride, word_stride) = pack_rows(s, w, a, part, rows, &mut packed.a);
                let mut i = 0;
                while i < rows {
                    let mut col = 0;
                    while col < room {
                        let t = Tile {
                            a: &packed.a[i * row_stride..],
                            row_stride,
                            word_stride,
                            b: &packed.b[col * n_words..],
                            n_words,
                        };
                        let (i, j) = (first_row + i, first_col + col);
                        match width.min(room - col) / LANES {
                            4 if VECS >= 4 => tile::<S, W, 4>(s, w, t, into, c, scale, i, j),
                            3 if VECS >= 3 => tile::<S, W, 3>(s, w, t, into, c, scale, i, j),
                            2 if VECS >= 2 => tile::<S, W, 2>(s, w, t, into, c, scale, i, j),
                            _ => tile::<S, W, 1>(s, w, t, into, c, scale, i, j),
                        }
                        col += width;
                    }
                    i += ROWS;
                }
                first_row += BLOCK_ROWS;
            }
            word += block;
        }
        first_col += BLOCK_COLS;
    }
}
