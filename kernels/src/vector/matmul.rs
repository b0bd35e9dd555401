//! The product of two matrices: operands packed block by block, and one register tile of MR rows and NR vectors.
//!
//! ```text
//! for NC columns of b, for KC words of k:
//!     pack that block of b: panels of up to NR * 16 columns, one k after the other
//!     for MC rows of a:
//!         pack that block of a, unless its words can be read in place
//!         for MR rows, for a panel:
//!             acc[MR][NR] = 0                     in registers
//!             for k: acc[i][v] += a[i][k] * b[k][v]
//!             c = scale * acc, or c += scale * acc
//! ```
//!
//! The packed block of b (512 KiB) stays in the second-level cache, and six packed rows of a in the first-level
//! cache. Operands are packed as words of 32 bits: an f32, or two bfloat16 values of consecutive k.

use core::hint::black_box;
use core::ops::Range;

use super::simd::Simd;
use crate::matmul::{Accumulate, Packed};
use crate::scalar::{KC, LANES};
use crate::view::{View, ViewMut};

/// Rows of a tile. With four vectors these are 24 sums: enough to hide the latency of the multiply-add, and few
/// enough for 32 registers.
const MR_WIDE: usize = 6;
/// Rows of a tile where b is one or two vectors wide and there are 32 registers.
const MR_NARROW: usize = 12;
/// Columns of a block of b.
const NC: usize = 512;
/// Rows of a block of a.
const MC: usize = 96;

/// How operands are packed into words of 32 bits, and how the words are multiplied.
pub(crate) trait Packing<S: Simd>: Copy {
    /// Values of k in a word.
    const K_PER_WORD: usize;
    /// Packs 16 or 32 values of consecutive k into words.
    fn pack_k(self, s: S, first: S::V, second: S::V) -> S::V;
    /// Packs the values of 16 columns, for one k or for two consecutive k, into words.
    fn pack_n(self, s: S, first: S::V, second: S::V) -> S::V;
    /// `acc + a * b`, summed over the values of a word.
    fn multiply_add(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V;
}

/// A word is one f32.
#[derive(Clone, Copy)]
pub(crate) struct F32Packing;

impl<S: Simd> Packing<S> for F32Packing {
    const K_PER_WORD: usize = 1;
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

/// A block of an operand: rows of a, or columns of b, from `first` on, and `n_words` words of k from `k` on.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    k: usize,
    n_words: usize,
}

/// Up to 16 values of a row from column `col` on, padded with zeros. Columns beyond the end of the row are zero.
#[inline(always)]
fn load_columns<S: Simd>(s: S, row: &[f32], col: usize) -> S::V {
    load(s, &row[col.min(row.len())..(col + LANES).min(row.len())])
}

#[inline(always)]
fn store<S: Simd>(s: S, out: &mut [f32], v: S::V) {
    let out: &mut [f32; LANES] = out.first_chunk_mut().expect("room for 16 words");
    // SAFETY: an array of 16 values.
    unsafe { s.store(out.as_mut_ptr(), v) }
}

/// Packs 16 words of consecutive k, from word `word` of a row on.
#[inline(always)]
fn words_k<S: Simd, W: Packing<S>>(s: S, w: W, row: &[f32], word: usize) -> S::V {
    let k = word * W::K_PER_WORD;
    let first = load_columns(s, row, k);
    match W::K_PER_WORD {
        1 => w.pack_k(s, first, first),
        _ => w.pack_k(s, first, load_columns(s, row, k + LANES)),
    }
}

/// Packs the words of one k: row `k` of `x` (k, outer), and the next row if a word is a pair. Fills `out` with the
/// columns from `col` on.
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
    let second = match W::K_PER_WORD {
        1 => first,
        _ => x.row(k + 1, col, out.len()),
    };
    for (i, out) in out.chunks_exact_mut(LANES).enumerate() {
        let (first, second) = (
            load_columns(s, first, i * LANES),
            load_columns(s, second, i * LANES),
        );
        store(s, out, w.pack_n(s, first, second));
    }
}

/// Packs a block of a. Returns the distance between neighbouring rows, and between neighbouring words, in `out`.
#[inline(always)]
fn pack_a<S: Simd, W: Packing<S>>(
    s: S,
    w: W,
    a: View<'_, f32>,
    block: Block,
    n_rows: usize,
    out: &mut Vec<f32>,
) -> (usize, usize) {
    let (n_words, room) = (block.n_words, n_rows.next_multiple_of(MR_NARROW * LANES));
    if a.has_dense_rows() {
        let stride = n_words.next_multiple_of(LANES);
        out.resize(room * stride, 0.0);
        for (i, out) in out.chunks_exact_mut(stride).take(n_rows).enumerate() {
            let row = a.row(block.first + i, block.k, n_words * W::K_PER_WORD);
            for (i, out) in out.chunks_exact_mut(LANES).enumerate() {
                store(s, out, words_k(s, w, row, i * LANES));
            }
        }
        (stride, 1)
    } else {
        out.resize(room * n_words, 0.0);
        let used = n_rows.next_multiple_of(LANES);
        for (word, out) in out.chunks_exact_mut(room).enumerate() {
            let k = block.k + word * W::K_PER_WORD;
            pack_words_n(s, w, a.t(), k, block.first, &mut out[..used]);
        }
        (1, room)
    }
}

/// The edges of panels of up to `most` vectors, of nearly equal width.
struct PanelEdges {
    edges: [usize; NC / LANES + 1],
    n: usize,
}

impl PanelEdges {
    /// Panels for `room` columns, a whole number of vectors.
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

/// Packs a block of b into panels.
#[inline(always)]
fn pack_b<S: Simd, W: Packing<S>>(
    s: S,
    w: W,
    b: View<'_, f32>,
    block: Block,
    panels: &PanelEdges,
    out: &mut Vec<f32>,
) {
    let n_words = block.n_words;
    out.resize(panels.edges[panels.n] * n_words, 0.0);
    for panel in panels.iter() {
        let out = &mut out[panel.start * n_words..panel.end * n_words];
        if b.has_dense_rows() {
            for (word, out) in out.chunks_exact_mut(panel.len()).enumerate() {
                let k = block.k + word * W::K_PER_WORD;
                pack_words_n(s, w, b, k, block.first + panel.start, out);
            }
            continue;
        }
        for col in (0..panel.len()).step_by(LANES) {
            let mut rows = [&[][..]; LANES];
            #[allow(clippy::needless_range_loop)] // a closure might not be inlined, here and below
            for j in 0..LANES {
                let outer = block.first + panel.start + col + j;
                rows[j] = b.t().row(outer, block.k, n_words * W::K_PER_WORD);
            }
            for word in (0..n_words).step_by(LANES) {
                let mut v = [s.splat(0.0); LANES];
                #[allow(clippy::needless_range_loop)]
                for j in 0..LANES {
                    v[j] = words_k(s, w, rows[j], word);
                }
                let v = s.transpose(v);
                for i in 0..LANES.min(n_words - word) {
                    store(s, &mut out[(word + i) * panel.len() + col..], v[i]);
                }
            }
        }
    }
}

/// The packed operands of a tile.
#[derive(Clone, Copy)]
struct Operands<'a> {
    a: &'a [f32],
    row_stride: usize,
    word_stride: usize,
    b: &'a [f32], // (n_words, NR * 16)
    n_words: usize,
}

/// Computes the sums of a tile and stores them, or adds them, to c from row `i` and column `j` on. Rows and columns
/// beyond the end of c are dropped.
#[inline(always)]
#[allow(clippy::too_many_arguments, clippy::needless_range_loop)] // indices keep sums in registers
fn tile<S: Simd, W: Packing<S>, const MR: usize, const NR: usize>(
    s: S,
    w: W,
    operands: Operands<'_>,
    accumulate: Accumulate,
    c: &mut ViewMut<'_, f32>,
    scale: S::V,
    i: usize,
    j: usize,
) {
    let Operands {
        a,
        row_stride,
        word_stride,
        b,
        n_words,
    } = operands;
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
            let (columns, next) = rest.split_at_mut(n);
            rest = next;
            let sum = match accumulate {
                Accumulate::Overwrite => s.mul(scale, acc[r][v]),
                Accumulate::Add => s.fma(scale, acc[r][v], load(s, columns)),
            };
            match n {
                LANES => store(s, columns, sum),
                _ => s.store_first(columns, sum),
            }
        }
    }
}

/// Runs the multiply-adds of one word of the largest tile `rounds` times, in registers. Returns the number of
/// operations and the sum of the results.
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
        (2 * rounds * MR_WIDE * NR * LANES * W::K_PER_WORD) as u64,
        sum,
    )
}

/// See [`crate::matmul`]. Tiles are up to `NR` (at most 4) vectors wide.
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
    // A row-major a whose words are f32 values is read in place.
    let in_place = W::K_PER_WORD == 1 && a.has_dense_rows();
    let n_words = k.div_ceil(W::K_PER_WORD);
    let block_words = n_words.div_ceil(n_words.div_ceil(KC)); // blocks of equal size
    let mut first_col = 0;
    while first_col < n_cols {
        let cols = NC.min(n_cols - first_col);
        let room = cols.next_multiple_of(LANES);
        let panels = PanelEdges::new(room, NR);
        let narrow = NR >= 4 && room <= 2 * LANES;
        let step = if narrow { MR_NARROW } else { MR_WIDE };
        let mut word = 0;
        while word < n_words {
            let accumulate = if word == 0 {
                accumulate
            } else {
                Accumulate::Add
            };
            let mut block = Block {
                first: first_col,
                k: word * W::K_PER_WORD,
                n_words: block_words.min(n_words - word),
            };
            let n_words = block.n_words;
            pack_b(s, w, b, block, &panels, &mut packed.b);
            let mut first_row = 0;
            while first_row < n_rows {
                let rows = MC.min(n_rows - first_row);
                let unpacked = if in_place { rows - rows % step } else { 0 };
                let (mut row_stride, mut word_stride) = (0, 0);
                if unpacked < rows {
                    block.first = first_row + unpacked;
                    (row_stride, word_stride) =
                        pack_a(s, w, a, block, rows - unpacked, &mut packed.a);
                }
                let mut i = 0;
                while i < rows {
                    let (a, row_stride, word_stride) = match i < unpacked {
                        true => (a.rows_from(first_row + i, block.k), a.row_stride(), 1),
                        false => {
                            let start = (i - unpacked) * row_stride;
                            (&packed.a[start..], row_stride, word_stride)
                        }
                    };
                    for panel in panels.iter() {
                        let operands = Operands {
                            a,
                            row_stride,
                            word_stride,
                            b: &packed.b[panel.start * n_words..],
                            n_words,
                        };
                        let (i, j) = (first_row + i, first_col + panel.start);
                        match (panel.len() / LANES, narrow) {
                            (2, true) => {
                                tile::<S, W, 12, 2>(s, w, operands, accumulate, c, scale, i, j)
                            }
                            (_, true) => {
                                tile::<S, W, 12, 1>(s, w, operands, accumulate, c, scale, i, j)
                            }
                            (4, _) if NR >= 4 => {
                                tile::<S, W, 6, 4>(s, w, operands, accumulate, c, scale, i, j)
                            }
                            (3, _) if NR >= 3 => {
                                tile::<S, W, 6, 3>(s, w, operands, accumulate, c, scale, i, j)
                            }
                            (2, _) if NR >= 2 => {
                                tile::<S, W, 6, 2>(s, w, operands, accumulate, c, scale, i, j)
                            }
                            _ => tile::<S, W, 6, 1>(s, w, operands, accumulate, c, scale, i, j),
                        }
                    }
                    i += step;
                }
                first_row += MC;
            }
            word += block_words;
        }
        first_col += NC;
    }
}
