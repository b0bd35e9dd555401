//! Softmax attention of query rows over ranges of keys.
//!
//! The key range alone fixes the order of every sum: the softmax adds the scores in position order, and the values are
//! added one position after the other. The tile or ring slot that holds a key, and the other rows of the call, do not
//! change the result.

use std::ops::Range;

use blt_kernels::{FloatSlice, Isa, StridedRows, View, ViewMut};

use smallvec::SmallVec;

use super::Compute;

/// Head counts and width of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; each serves `n_heads / n_kv_heads` consecutive query heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Keys and values of consecutive positions.
#[derive(Debug, Clone, Copy)]
pub struct KvTile<'a> {
    /// Position of the first key.
    pub first: usize,
    /// Number of positions.
    pub n: usize,
    /// Keys; key `i` of head `h` starts at `h * head_stride + i * row_stride`.
    pub k: FloatSlice<'a>,
    /// Values, in the layout of the keys.
    pub v: FloatSlice<'a>,
    /// Distance between consecutive positions.
    pub row_stride: usize,
    /// Distance between heads.
    pub head_stride: usize,
}

/// A source of keys and values.
pub trait KvTiles: Sync {
    /// The tile that holds a position, from that position on.
    fn tile(&self, position: usize) -> KvTile<'_>;
}

/// A single tile.
impl KvTiles for KvTile<'_> {
    fn tile(&self, position: usize) -> KvTile<'_> {
        let skip = position - self.first;
        let start = skip * self.row_stride;
        KvTile {
            first: position,
            n: self.n - skip,
            k: self.k.slice(start..self.k.len()),
            v: self.v.slice(start..self.v.len()),
            ..*self
        }
    }
}

/// The number of query rows of a head, or heads of a query row, that are taken together, so that their keys and values
/// are read from memory once, in long runs.
const ROWS: usize = 32;

/// Bytes of keys or values in a piece for a single row, which is how far ahead the next piece is prefetched.
const PREFETCH_BYTES: usize = 8 * 1024;

/// Attention: q (n, n_heads * head_dim), out of the same shape.
///
/// The rows are split into runs. Each run has its own keys and, for each row, the range of positions that the row sees.
/// Within a run, these ranges neither start nor end before the range of the previous row.
///
/// With a `lambda`, this is differential attention: the queries and keys of a head have two halves, and its values are
/// weighted by `softmax(first halves) - lambda * softmax(second halves)`.
pub fn attention<K: KvTiles>(
    compute: &Compute,
    heads: Heads,
    lambda: Option<f32>,
    q: &[f32],
    runs: &[(K, &[Range<usize>])],
    out: &mut [f32],
) {
    let dim = heads.n_heads * heads.head_dim;
    let n: usize = runs.iter().map(|(_, visible)| visible.len()).sum();
    assert_eq!(q.len(), n * dim);
    assert_eq!(out.len(), n * dim);
    let visible = || runs.iter().flat_map(|(_, visible)| *visible);
    let n_scores: usize = visible().map(|r| r.len()).sum();
    let n_tasks = compute.n_tasks(2 * n_scores * dim);
    // A task is a few rows of a few heads, and each thread gets the same number of tasks. Single rows wait for memory,
    // which is read fastest in long runs.
    let n_tasks = match n_tasks {
        1 => 1,
        _ if n == runs.len() => (2 * compute.n_threads()).div_ceil(n),
        n_tasks => n_tasks.next_multiple_of(compute.n_threads()),
    };
    let task_heads = heads.n_heads.div_ceil(n_tasks);
    let size = (ROWS, task_heads * heads.head_dim);
    let mut rest = out;
    let mut outputs: SmallVec<[ViewMut<'_, f32>; 1]> = (runs.iter())
        .map(|(_, visible)| {
            let (run, later) = std::mem::take(&mut rest).split_at_mut(visible.len() * dim);
            rest = later;
            ViewMut::strided(run, visible.len(), dim, dim)
        })
        .collect();
    compute.parts(&mut outputs, size, |run, row, col, mut out| {
        let first_row: usize = runs[..run].iter().map(|(_, visible)| visible.len()).sum();
        let (keys, visible) = &runs[run];
        let (n, width) = out.shape();
        let visible = &visible[row..row + n];
        let span = visible[0].start..visible[n - 1].end;
        let q = &q[(first_row + row) * dim..];
        let n_heads = width / heads.head_dim;
        let group_size = n_heads.min(ROWS / n);
        let mut p = compute.buffer(group_size * n * span.len()); // (heads, n, span)
        let mut p2 = compute.buffer(lambda.map_or(0, |_| p.len()));
        for first in (0..n_heads).step_by(group_size) {
            let group = HeadGroup {
                isa: compute.isa(),
                keys,
                heads,
                first_head: col / heads.head_dim + first,
                n_heads: group_size.min(n_heads - first),
                visible,
                span: span.clone(),
            };
            let p = &mut p[..group.n_heads * n * span.len()];
            match lambda {
                None => group.probabilities(q, 0..heads.head_dim, p),
                Some(lambda) => {
                    let half = heads.head_dim / 2;
                    let p2 = &mut p2[..p.len()];
                    group.probabilities(q, 0..half, p);
                    group.probabilities(q, half..2 * half, p2);
                    for (p, p2) in p.iter_mut().zip(p2) {
                        *p -= lambda * *p2;
                    }
                }
            }
            let width = group.n_heads * heads.head_dim;
            group.weighted_sums(p, out.columns(first * heads.head_dim, width));
        }
    });
}

/// A few heads of a few query rows, and the keys and values that they see.
struct HeadGroup<'t, K> {
    isa: Isa,
    keys: &'t K,
    heads: Heads,
    first_head: usize,
    n_heads: usize,
    /// The positions that each row sees.
    visible: &'t [Range<usize>],
    /// From the first position that the first row sees to the end of what the last row sees.
    span: Range<usize>,
}

/// Keys and values of consecutive positions for one head.
struct Piece<'t> {
    tile: KvTile<'t>,
    /// The query head, counted from the first of the group.
    head: usize,
    /// The elements of the tile that hold this head's keys and values, up to where the next row would start.
    elements: Range<usize>,
    /// The positions, counted from the start of the span.
    columns: Range<usize>,
}

impl<'t> Piece<'t> {
    /// The keys, from their element `first` on.
    fn keys(&self, first: usize) -> FloatSlice<'t> {
        let Range { start, end } = self.elements;
        (self.tile.k).slice(start + first..end.min(self.tile.k.len()))
    }

    fn values(&self) -> FloatSlice<'t> {
        let Range { start, end } = self.elements;
        self.tile.v.slice(start..end.min(self.tile.v.len()))
    }
}

impl<K: KvTiles> HeadGroup<'_, K> {
    /// The pieces of `positions` in the order in which they are read: tile by tile, head by head. For a single row, a
    /// piece has [`PREFETCH_BYTES`] bytes.
    fn pieces(&self, positions: Range<usize>) -> impl Iterator<Item = Piece<'_>> {
        let mut next = positions.start;
        let tiles = std::iter::from_fn(move || {
            (next < positions.end).then(|| {
                let tile = self.keys.tile(next);
                next = positions.end.min(tile.first + tile.n);
                (tile, tile.first..next)
            })
        });
        let heads_per_kv_head = self.heads.n_heads / self.heads.n_kv_heads;
        tiles.flat_map(move |(tile, positions)| {
            let piece_len = match self.visible.len() {
                1 => PREFETCH_BYTES / (self.heads.head_dim * tile.k.value_bytes()),
                _ => positions.len(),
            };
            let piece_len = piece_len.max(1);
            (0..self.n_heads).flat_map(move |head| {
                let kv_head = (self.first_head + head) / heads_per_kv_head;
                let element = move |position| {
                    kv_head * tile.head_stride + (position - tile.first) * tile.row_stride
                };
                let end = positions.end;
                positions.clone().step_by(piece_len).map(move |first| {
                    let last = end.min(first + piece_len);
                    Piece {
                        tile,
                        head,
                        elements: element(first)..element(last),
                        columns: first - self.span.start..last - self.span.start,
                    }
                })
            })
        })
    }

    /// Softmax of the scaled dot products of queries, q (n, dim), and keys, over the positions that each row sees. Uses
    /// only `elements` of each head. Writes p (heads, n, span).
    fn probabilities(&self, q: &[f32], elements: Range<usize>, p: &mut [f32]) {
        let Heads {
            n_heads, head_dim, ..
        } = self.heads;
        let (n, width) = (self.visible.len(), self.span.len());
        let scale = 1.0 / (elements.len() as f32).sqrt();
        let first_values = self.pieces(self.span.clone()).next().map(|p| p.values());
        let mut pieces = self.pieces(self.span.clone()).peekable();
        while let Some(piece) = pieces.next() {
            let next = pieces.peek().map(|piece| piece.keys(elements.start));
            let keys = StridedRows {
                values: piece.keys(elements.start),
                stride: piece.tile.row_stride,
                next: next.or(first_values).unwrap_or(FloatSlice::F32(&[])),
            };
            let q = &q[(self.first_head + piece.head) * head_dim + elements.start..];
            let q = View::strided(q, n, elements.len(), n_heads * head_dim);
            let p = &mut p[piece.head * n * width + piece.columns.start..];
            let p = ViewMut::strided(p, n, piece.columns.len(), width);
            blt_kernels::dot_rows(self.isa, q, keys, scale, p);
        }
        for (p, visible) in (p.chunks_exact_mut(width)).zip(self.visible.iter().cycle()) {
            let columns = visible.start - self.span.start..visible.end - self.span.start;
            blt_kernels::softmax(self.isa, &mut p[columns]);
        }
    }

    /// The sums of the values weighted by p (heads, n, span): out (n, heads * head_dim).
    fn weighted_sums(&self, p: &[f32], mut out: ViewMut<'_, f32>) {
        let (n, width, head_dim) = (self.visible.len(), self.span.len(), self.heads.head_dim);
        (0..n).for_each(|i| out.row(i).fill(0.0));
        // The rows take the positions that all of them see together, and each row takes the positions before and after
        // those alone.
        let (first, last) = (&self.visible[0], &self.visible[n - 1]);
        let common = last.start..first.end.max(last.start);
        let before = |i: usize| {
            let visible = &self.visible[i];
            (i..i + 1, visible.start..common.start.min(visible.end))
        };
        let after = |i: usize| (i..i + 1, common.end..self.visible[i].end);
        let spans = (0..n)
            .map(before)
            .chain([(0..n, common.clone())])
            .chain((0..n).map(after));
        for (rows, positions) in spans {
            let mut pieces = self.pieces(positions).peekable();
            while let Some(piece) = pieces.next() {
                let next = pieces.peek().map(|piece| piece.values());
                let values = StridedRows {
                    values: piece.values(),
                    stride: piece.tile.row_stride,
                    next: next.unwrap_or(FloatSlice::F32(&[])),
                };
                let p = &p[(piece.head * n + rows.start) * width + piece.columns.start..];
                let p = View::strided(p, rows.len(), piece.columns.len(), width);
                let mut out = out.columns(piece.head * head_dim, head_dim);
                blt_kernels::weighted_sum(self.isa, p, values, out.rows(rows.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers in -1..1.
    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) % 2003;
        (0..n as u32)
            .map(|i| hash(i) as f32 / 1000.0 - 1.0)
            .collect()
    }

    #[test]
    fn with_a_lambda_of_0_only_the_first_halves_count() {
        // Two query heads of 8 on one key head. With a lambda of 0 this is plain attention with keys of 4 and values of
        // 8, which is plain attention with heads of 4 for each half of the values.
        let (n, kv) = (5, 8);
        let heads = |n_heads, head_dim| Heads {
            n_heads,
            n_kv_heads: 1,
            head_dim,
        };
        let (q, k, v) = (numbers(n * 16, 1), numbers(n * kv, 2), numbers(n * kv, 3));
        let visible: Vec<_> = (0..n).map(|i| i / 2..i + 1).collect();
        let compute = Compute::new(Some(1), None).unwrap();
        let tile = |k, v| KvTile {
            first: 0,
            n,
            k: FloatSlice::F32(k),
            v: FloatSlice::F32(v),
            row_stride: kv,
            head_stride: n * kv,
        };
        let differential = |lambda| {
            let mut out = vec![0.0; n * 16];
            let runs = [(tile(&k, &v), &visible[..])];
            attention(&compute, heads(2, 8), Some(lambda), &q, &runs, &mut out);
            out
        };
        let found = differential(0.0);
        assert_ne!(found, differential(0.3));
        let first_halves: Vec<f32> = (q.chunks(8)).flat_map(|q| &q[..4]).copied().collect();
        for half in 0..2 {
            let mut plain = vec![0.0; n * 8]; // (n, 2 heads of 4)
            let runs = [(tile(&k, &v[half * 4..]), &visible[..])];
            attention(
                &compute,
                heads(2, 4),
                None,
                &first_halves,
                &runs,
                &mut plain,
            );
            for (found, plain) in found.chunks(8).zip(plain.chunks(4)) {
                assert_eq!(&found[half * 4..][..4], plain);
            }
        }
    }
}
