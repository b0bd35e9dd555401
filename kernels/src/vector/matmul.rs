//! The product of two matrices: operands packed block by block, and one register tile.
//!
//! ```text
//! for a block of columns of b, for a block of k:
//!     pack that part of b: panels of up to NR * 16 columns, k after k
//!     for a block of rows of a:
//!         pack that part of a, unless its words can be read where they are
//!         for 6 rows (12 if b is narrow), for a panel:
//!             acc[6][NR] = 0                     in registers
//!             for k: acc[i][v] += a[i][k] * b[k][v]
//!             c = scale * acc, or c += scale * acc
//! ```
//!
//! The packed block of b (512 KiB) stays in the second-level cache, six packed rows of a in the
//! first. What is packed are words of 32 bits: an f32, or two bf16 that follow each other in k.

use core::hint::black_box;
use core::ops::Range;

use super::Simd;
use crate::matmul::{Accumulate, Packed};
use crate::scalar::LANES;
use crate::view::{View, ViewMut};

/// Rows of a tile: with four vectors, 24 sums; enough to hide the latency of multiply-add, and few
/// enough for 32 registers.
const MR_WIDE: usize = 6;
/// Rows of a tile where b is one or two vectors wide and there are 32 registers.
const MR_SLIM: usize = 12;
/// Words of k in a block.
pub(crate) const KC: usize = 256;
/// Columns of b in a block.
const NC: usize = 512;
/// Rows of a in a block.
const MC: usize = 96;

/// How operands are packed into words of 32 bits, and how these are multiplied.
pub(crate) trait Packing<S: Simd>: Copy {
    /// Values of k in a word.
    const PER_WORD: usize;
    /// Words from 16 or 32 values that follow each other in k.
    fn pack_k(self, s: S, first: S::V, second: S::V) -> S::V;
    /// Words from the values of one k, or of two that follow each other.
    fn pack_n(self, s: S, first: S::V, second: S::V) -> S::V;
    /// `acc + a * b`, over all values of a word.
    fn multiply_add(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V;
}

/// A word is an f32.
#[derive(Clone, Copy)]
pub(crate) struct F32Packing;

impl<S: Simd> Packing<S> for F32Packing {
    const PER_WORD: usize = 1;
    #[inline(always)]
    fn pack_k(self, _s: S, first: S::V, _second: S::V) -> S::V {
        first
    }
    #[inline(always)]
    fn pack_n(self, _s: S, first: S::V, _second: S::V) -> S::V {
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
struct Block {
    first: usize,
    k: usize,
    n_words: usize,
}

/// Up to 16 values of a row from `at` on, padded with zeros; none beyond its end.
#[inline(always)]
fn piece<S: Simd>(s: S, row: &[f32], at: usize) -> S::V {
    load(s, &row[at.min(row.len())..(at + LANES).min(row.len())])
}

#[inline(always)]
fn put<S: Simd>(s: S, out: &mut [f32], v: S::V) {
    let out: &mut [f32; LANES] = out.first_chunk_mut().expect("room for 16 words");
    // SAFETY: an array of 16 values.
    unsafe { s.store(out.as_mut_ptr(), v) }
}

/// The 16 words along k from word `word` of a row on.
#[inline(always)]
fn words_k<S: Simd, W: Packing<S>>(s: S, w: W, row: &[f32], word: usize) -> S::V {
    let at = word * W::PER_WORD;
    let first = piece(s, row, at);
    match W::PER_WORD {
        1 => w.pack_k(s, first, first),
        _ => w.pack_k(s, first, piece(s, row, at + LANES)),
    }
}

/// Packs the words of a k: row `k` of `x` (k, outer), and the next one if a word is a pair, from
/// column `col` on, as many as `out` holds.
#[inline(always)]
fn pack_words_n<S: Simd, W: Packing<S>>(
    s: S,
    w: W,
    x: View<'_, f32>,
    k: usize,
    col: usize,
    out: &mut [f32],
) {
    let first = x.row(k, col, out.len());
    let second = match W::PER_WORD {
        1 => first,
        _ => x.row(k + 1, col, out.len()),
    };
    for (i, out) in out.chunks_exact_mut(LANES).enumerate() {
        let (first, second) = (piece(s, first, i * LANES), piece(s, second, i * LANES));
        put(s, out, w.pack_n(s, first, second));
    }
}

/// Packs rows of a. Returns the distances of neighbouring rows and words in `out`.
#[inline(always)]
fn pack_a<S: Simd, W: Packing<S>>(
    s: S,
    w: W,
    a: View<'_, f32>,
    part: Block,
    n_rows: usize,
    out: &mut Vec<f32>,
) -> (usize, usize) {
    let (n_words, room) = (part.n_words, n_rows.next_multiple_of(MR_SLIM * LANES));
    if a.has_dense_rows() {
        let stride = n_words.next_multiple_of(LANES);
        out.resize(room * stride, 0.0);
        for (i, out) in out.chunks_exact_mut(stride).take(n_rows).enumerate() {
            let row = a.row(part.first + i, part.k, n_words * W::PER_WORD);
            for (i, out) in out.chunks_exact_mut(LANES).enumerate() {
                put(s, out, words_k(s, w, row, i * LANES));
            }
        }
        (stride, 1)
    } else {
        out.resize(room * n_words, 0.0);
        let used = n_rows.next_multiple_of(LANES);
        for (word, out) in out.chunks_exact_mut(room).enumerate() {
            let k = part.k + word * W::PER_WORD;
            pack_words_n(s, w, a.t(), k, part.first, &mut out[..used]);
        }
        (1, room)
    }
}

/// Where panels of up to `most` vectors, as equal as they can be, begin and end.
struct PanelEdges {
    edges: [usize; NC / LANES + 1],
    n: usize,
}

impl PanelEdges {
    /// Of `room` columns, a whole number of vectors.
    #[inline(always)]
    fn new(room: usize, most: usize) -> Self {
        let n_vectors = room / LANES;
        let n = n_vectors.div_ceil(most);
        let mut edges = [0; NC / LANES + 1];
        for (panel, edge) in edges.iter_mut().enumerate().take(n + 1) {
            *edge = n_vectors * panel / n * LANES;
        }
        PanelEdges { edges, n }
    }

    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.edges[..=self.n].windows(2).map(|e| e[0]..e[1])
    }
}

/// Packs columns of b into panels.
#[inline(always)]
fn pack_b<S: Simd, W: Packing<S>>(
    s: S,
    w: W,
    b: View<'_, f32>,
    part: Block,
    panels: &PanelEdges,
    out: &mut Vec<f32>,
) {
    let n_words = part.n_words;
    out.resize(panels.edges[panels.n] * n_words, 0.0);
    for panel in panels.iter() {
        let out = &mut out[panel.start * n_words..panel.end * n_words];
        if b.has_dense_rows() {
            for (word, out) in out.chunks_exact_mut(panel.len()).enumerate() {
                let k = part.k + word * W::PER_WORD;
                pack_words_n(s, w, b, k, part.first + panel.start, out);
            }
            continue;
        }
        for col in (0..panel.len()).step_by(LANES) {
            let mut rows = [&[][..]; LANES];
            #[allow(clippy::needless_range_loop)] // a closure might not be inlined, here and below
            for j in 0..LANES {
                let outer = part.first + panel.start + col + j;
                rows[j] = b.t().row(outer, part.k, n_words * W::PER_WORD);
            }
            for word in (0..n_words).step_by(LANES) {
                let mut v = [s.splat(0.0); LANES];
                #[allow(clippy::needless_range_loop)]
                for j in 0..LANES {
                    v[j] = words_k(s, w, rows[j], word);
                }
                let v = s.transpose(v);
                for i in 0..LANES.min(n_words - word) {
                    put(s, &mut out[(word + i) * panel.len() + col..], v[i]);
                }
            }
        }
    }
}

/// Where the packed operands of a tile are.
#[derive(Clone, Copy)]
struct Tile<'a> {
    a: &'a [f32],
    row_stride: usize,
    word_stride: usize,
    b: &'a [f32], // words after words, `NR * 16` wide
    n_words: usize,
}

/// The sums of a tile, put or added to row `i` of c from column `j` on; rows and columns beyond c's end are
/// dropped.
#[inline(always)]
#[allow(clippy::too_many_arguments, clippy::needless_range_loop)] // indices keep sums in registers
fn tile<S: Simd, W: Packing<S>, const MR: usize, const NR: usize>(
    s: S,
    w: W,
    tile: Tile<'_>,
    accumulate: Accumulate,
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
    assert!(n_words > 0 && (MR - 1) * row_stride + (n_words - 1) * word_stride < a.len());
    assert!(n_words * NR * LANES <= b.len());
    let mut acc = [[s.splat(0.0); NR]; MR];
    let (mut pa, mut pb) = (a.as_ptr(), b.as_ptr());
    for _ in 0..n_words {
        let mut bv = [s.splat(0.0); NR];
        for v in 0..NR {
            // SAFETY: word `n` of b is `NR * 16` values at `n * NR * 16`; all fit, see above.
            bv[v] = unsafe { s.load(pb.add(v * LANES)) };
        }
        for r in 0..MR {
            // SAFETY: the last word of the last row is inside `a`, see above.
            let av = s.splat(unsafe { *pa.add(r * row_stride) });
            for v in 0..NR {
                acc[r][v] = w.multiply_add(s, av, bv[v], acc[r][v]);
            }
        }
        pa = pa.wrapping_add(word_stride);
        pb = pb.wrapping_add(NR * LANES);
    }
    let (n_rows, n_cols) = c.shape();
    for r in 0..MR.min(n_rows - i) {
        let row = &mut c.row(i + r)[j..n_cols.min(j + NR * LANES)];
        let mut rest = row;
        for v in 0..NR {
            let n = rest.len().min(LANES);
            let (some, later) = rest.split_at_mut(n);
            rest = later;
            let sum = match accumulate {
                Accumulate::Overwrite => s.mul(scale, acc[r][v]),
                Accumulate::Add => s.fma(scale, acc[r][v], load(s, some)),
            };
            match n {
                LANES => put(s, some, sum),
                _ => s.store_first(some, sum),
            }
        }
    }
}

/// `rounds` times the multiply-adds of a word of the largest tile, in registers alone. Returns how many
/// operations that was, and what came of them.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices keep sums in registers
pub(crate) fn multiply_adds<S: Simd, W: Packing<S>, const NR: usize>(
    s: S,
    w: W,
    rounds: usize,
) -> (u64, f32) {
    let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
    let mut acc = [[s.splat(0.0); NR]; MR_WIDE];
    for r in 0..MR_WIDE {
        for v in 0..NR {
            acc[r][v] = s.splat(black_box(0.0));
        }
    }
    for _ in 0..rounds {
        for r in 0..MR_WIDE {
            for v in 0..NR {
                acc[r][v] = w.multiply_add(s, a, b, acc[r][v]);
            }
        }
    }
    let sum = (acc.iter().flatten()).fold(0.0, |sum, &acc| sum + s.sum(acc));
    (
        (2 * rounds * MR_WIDE * NR * LANES * W::PER_WORD) as u64,
        sum,
    )
}

/// `c = scale * a b` or `c += scale * a b`, with tiles of up to `NR` (at most 4) vectors.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn matmul<S: Simd, W: Packing<S>, const NR: usize>(
    s: S,
    w: W,
    accumulate: Accumulate,
    c: &mut ViewMut<'_, f32>,
    scale: f32,
    a: View<'_, f32>,
    b: View<'_, f32>,
    packed: &mut Packed,
) {
    let ((n_rows, n_cols), k) = (c.shape(), a.shape().1);
    let scale = s.splat(scale);
    // Words that are values of a row-major a need not be packed.
    let in_place = W::PER_WORD == 1 && a.has_dense_rows();
    let n_words = k.div_ceil(W::PER_WORD);
    let block = n_words.div_ceil(n_words.div_ceil(KC)); // blocks of equal size
    let mut first_col = 0;
    while first_col < n_cols {
        let cols = NC.min(n_cols - first_col);
        let room = cols.next_multiple_of(LANES);
        let panels = PanelEdges::new(room, NR);
        let slim = NR >= 4 && room <= 2 * LANES;
        let step = if slim { MR_SLIM } else { MR_WIDE };
        let mut word = 0;
        while word < n_words {
            let accumulate = if word == 0 {
                accumulate
            } else {
                Accumulate::Add
            };
            let mut part = Block {
                first: first_col,
                k: word * W::PER_WORD,
                n_words: block.min(n_words - word),
            };
            let n_words = part.n_words;
            pack_b(s, w, b, part, &panels, &mut packed.b);
            let mut first_row = 0;
            while first_row < n_rows {
                let rows = MC.min(n_rows - first_row);
                let unpacked = if in_place { rows - rows % step } else { 0 };
                let (mut row_stride, mut word_stride) = (0, 0);
                if unpacked < rows {
                    part.first = first_row + unpacked;
                    (row_stride, word_stride) =
                        pack_a(s, w, a, part, rows - unpacked, &mut packed.a);
                }
                let mut i = 0;
                while i < rows {
                    let (a, row_stride, word_stride) = match i < unpacked {
                        true => (a.rows_from(first_row + i, part.k), a.row_stride(), 1),
                        false => {
                            let at = (i - unpacked) * row_stride;
                            (&packed.a[at..], row_stride, word_stride)
                        }
                    };
                    for panel in panels.iter() {
                        let t = Tile {
                            a,
                            row_stride,
                            word_stride,
                            b: &packed.b[panel.start * n_words..],
                            n_words,
                        };
                        let (i, j) = (first_row + i, first_col + panel.start);
                        match (panel.len() / LANES, slim) {
                            (2, true) => tile::<S, W, 12, 2>(s, w, t, accumulate, c, scale, i, j),
                            (_, true) => tile::<S, W, 12, 1>(s, w, t, accumulate, c, scale, i, j),
                            (4, _) if NR >= 4 => {
                                tile::<S, W, 6, 4>(s, w, t, accumulate, c, scale, i, j)
                            }
                            (3, _) if NR >= 3 => {
                                tile::<S, W, 6, 3>(s, w, t, accumulate, c, scale, i, j)
                            }
                            (2, _) if NR >= 2 => {
                                tile::<S, W, 6, 2>(s, w, t, accumulate, c, scale, i, j)
                            }
                            _ => tile::<S, W, 6, 1>(s, w, t, accumulate, c, scale, i, j),
                        }
                    }
                    i += step;
                }
                first_row += MC;
            }
            word += block;
        }
        first_col += NC;
    }
}
