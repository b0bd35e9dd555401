//! Softmax attention of query rows over ranges of keys.
//!
//! The order of every sum is fixed by the key range alone: scores stand in position order, the
//! softmax sums them in that order, and the values are added one position after the other. In which
//! tile or slot of a ring a key lies, and what other rows are computed beside it, changes nothing.

use std::ops::Range;

use blt_kernels::{FloatSlice, Isa, StridedRows, View, ViewMut};

use smallvec::SmallVec;

use super::Compute;

/// Head counts and width of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; each serves `n_heads / n_kv_heads` query heads in a row.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Keys and values of a run of consecutive positions.
#[derive(Debug, Clone, Copy)]
pub struct KvTile<'a> {
    /// Position of the first key.
    pub first: usize,
    /// Number of positions.
    pub n: usize,
    /// Keys; key `i` of head `h` begins at `h * head_stride + i * row_stride`.
    pub k: FloatSlice<'a>,
    /// Values, laid out like the keys.
    pub v: FloatSlice<'a>,
    /// Distance between consecutive positions.
    pub row_stride: usize,
    /// Distance between heads.
    pub head_stride: usize,
}

/// Where keys and values are found.
pub trait KvTiles: Sync {
    /// The tile that holds a position, from that position on.
    fn tile(&self, position: usize) -> KvTile<'_>;
}

/// One tile by itself.
impl KvTiles for KvTile<'_> {
    fn tile(&self, position: usize) -> KvTile<'_> {
        let skip = position - self.first;
        let values = skip * self.row_stride;
        KvTile {
            first: position,
            n: self.n - skip,
            k: self.k.slice(values..self.k.len()),
            v: self.v.slice(values..self.v.len()),
            ..*self
        }
    }
}

/// Query rows of a head, or heads of a query row, that are taken together: their keys and values come from
/// memory once, in long runs.
const ROWS: usize = 32;

/// Bytes of keys or values that a single row meets at a time: as far ahead memory is asked for.
const PREFETCH_BYTES: usize = 8 * 1024;

/// Attention: q (n, n_heads * head_dim), out of the same shape.
///
/// The rows are runs, each with keys of its own, for which it is stated what each row sees: some
/// positions, which neither begin nor end before those that the row before it sees.
///
/// With a `lambda`, this is differential attention: each head's queries and keys are two halves, and its
/// values are weighted by `softmax(first halves) - lambda * softmax(second halves)`.
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
    // A task is some rows of some heads; each thread gets as many. Single rows wait for memory, which is
    // read best in long runs.
    let n_tasks = match n_tasks {
        1 => 1,
        _ if n == runs.len() => (2 * compute.n_threads()).div_ceil(n),
        many => many.next_multiple_of(compute.n_threads()),
    };
    let n_heads = heads.n_heads.div_ceil(n_tasks);
    let size = (ROWS, n_heads * heads.head_dim);
    let mut left = out;
    let mut outputs: SmallVec<[ViewMut<'_, f32>; 1]> = (runs.iter())
        .map(|(_, visible)| {
            let (of_run, others) = std::mem::take(&mut left).split_at_mut(visible.len() * dim);
            left = others;
            ViewMut::strided(of_run, visible.len(), dim, dim)
        })
        .collect();
    compute.parts(&mut outputs, size, |run, row, col, mut out| {
        let before: usize = runs[..run].iter().map(|(_, visible)| visible.len()).sum();
        let (keys, visible) = &runs[run];
        let (n, width) = out.shape();
        let visible = &visible[row..row + n];
        let span = visible[0].start..visible[n - 1].end;
        let q = &q[(before + row) * dim..];
        let n_heads = width / heads.head_dim;
        let together = n_heads.min(ROWS / n);
        let mut p = compute.buffer(together * n * span.len()); // (heads, n, span)
        let mut p2 = compute.buffer(lambda.map_or(0, |_| p.len()));
        for first in (0..n_heads).step_by(together) {
            let seen = Seen {
                isa: compute.isa(),
                keys,
                heads,
                first_head: col / heads.head_dim + first,
                n_heads: together.min(n_heads - first),
                visible,
                span: span.clone(),
            };
            let p = &mut p[..seen.n_heads * n * span.len()];
            match lambda {
                None => seen.probabilities(q, 0..heads.head_dim, p),
                Some(lambda) => {
                    let half = heads.head_dim / 2;
                    let p2 = &mut p2[..p.len()];
                    seen.probabilities(q, 0..half, p);
                    seen.probabilities(q, half..2 * half, p2);
                    for (p, p2) in p.iter_mut().zip(p2) {
                        *p -= lambda * *p2;
                    }
                }
            }
            let width = seen.n_heads * heads.head_dim;
            seen.weighted_sums(p, out.columns(first * heads.head_dim, width));
        }
    });
}

/// The keys and values that some rows see in some heads.
struct Seen<'t, K> {
    isa: Isa,
    keys: &'t K,
    heads: Heads,
    first_head: usize,
    n_heads: usize,
    /// What each row sees.
    visible: &'t [Range<usize>],
    /// From what the first row sees to what the last one sees.
    span: Range<usize>,
}

/// Keys and values of consecutive positions for one head.
struct Piece<'t> {
    tile: KvTile<'t>,
    /// The query head, counted from the first.
    head: usize,
    /// Its keys and values in the tile, up to where the next row would begin.
    place: Range<usize>,
    /// The positions, counted from the start of the span.
    at: Range<usize>,
}

impl<'t> Piece<'t> {
    /// The keys, from their element `first` on.
    fn keys(&self, first: usize) -> FloatSlice<'t> {
        let Range { start, end } = self.place;
        (self.tile.k).slice(start + first..end.min(self.tile.k.len()))
    }

    fn values(&self) -> FloatSlice<'t> {
        let Range { start, end } = self.place;
        self.tile.v.slice(start..end.min(self.tile.v.len()))
    }
}

impl<K: KvTiles> Seen<'_, K> {
    /// What there is of `positions`, in the order in which it is read: tile by tile, head by head. A
    /// single row takes pieces of [`PREFETCH_BYTES`] bytes.
    fn pieces(&self, positions: Range<usize>) -> impl Iterator<Item = Piece<'_>> {
        let mut from = positions.start;
        let tiles = std::iter::from_fn(move || {
            (from < positions.end).then(|| {
                let tile = self.keys.tile(from);
                from = positions.end.min(tile.first + tile.n);
                (tile, tile.first..from)
            })
        });
        let per_kv_head = self.heads.n_heads / self.heads.n_kv_heads;
        tiles.flat_map(move |(tile, positions)| {
            let most = match self.visible.len() {
                1 => PREFETCH_BYTES / (self.heads.head_dim * tile.k.value_bytes()),
                _ => positions.len(),
            };
            (0..self.n_heads).flat_map(move |head| {
                let of_head = (self.first_head + head) / per_kv_head * tile.head_stride;
                let end = positions.end;
                positions.clone().step_by(most.max(1)).map(move |from| {
                    let to = end.min(from + most.max(1));
                    let at = |position| of_head + (position - tile.first) * tile.row_stride;
                    Piece {
                        tile,
                        head,
                        place: at(from)..at(to),
                        at: from - self.span.start..to - self.span.start,
                    }
                })
            })
        })
    }

    /// Softmax, over what each row sees, of the scaled products of some elements of each row's heads, q
    /// (n, dim), with those of the keys: p (heads, n, span).
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
            let p = &mut p[piece.head * n * width + piece.at.start..];
            let p = ViewMut::strided(p, n, piece.at.len(), width);
            blt_kernels::dot_rows(self.isa, q, keys, scale, p);
        }
        for (p, visible) in (p.chunks_exact_mut(width)).zip(self.visible.iter().cycle()) {
            let seen = visible.start - self.span.start..visible.end - self.span.start;
            blt_kernels::softmax(self.isa, &mut p[seen]);
        }
    }

    /// The sums of the values weighted by p (heads, n, span): out (n, heads * head_dim).
    fn weighted_sums(&self, p: &[f32], mut out: ViewMut<'_, f32>) {
        let n = out.shape().0;
        (0..n).for_each(|i| out.row(i).fill(0.0));
        // What all rows see, they take together; each takes alone what comes before and after that.
        let (first, last) = (&self.visible[0], &self.visible[n - 1]);
        let common = last.start..first.end.max(last.start);
        for i in 0..n {
            let before = self.visible[i].start..common.start.min(self.visible[i].end);
            self.add_weighted(p, i..i + 1, before, &mut out);
        }
        self.add_weighted(p, 0..n, common.clone(), &mut out);
        for i in 0..n {
            let after = common.end..self.visible[i].end;
            self.add_weighted(p, i..i + 1, after, &mut out);
        }
    }

    /// Adds the values at `positions` to the sums of some rows.
    fn add_weighted(
        &self,
        p: &[f32],
        rows: Range<usize>,
        positions: Range<usize>,
        out: &mut ViewMut<'_, f32>,
    ) {
        let (n, width, head_dim) = (self.visible.len(), self.span.len(), self.heads.head_dim);
        let mut pieces = self.pieces(positions).peekable();
        while let Some(piece) = pieces.next() {
            let next = pieces.peek().map(|piece| piece.values());
            let values = StridedRows {
                values: piece.values(),
                stride: piece.tile.row_stride,
                next: next.unwrap_or(FloatSlice::F32(&[])),
            };
            let p = &p[(piece.head * n + rows.start) * width + piece.at.start..];
            let p = View::strided(p, rows.len(), piece.at.len(), width);
            let mut out = out.columns(piece.head * head_dim, head_dim);
            blt_kernels::weighted_sum(self.isa, p, values, out.rows(rows.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern.
    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let of = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) % 2003;
        (0..n as u32).map(|i| of(i) as f32 / 1000.0 - 1.0).collect()
    }

    #[test]
    fn with_a_lambda_of_0_only_the_first_halves_count() {
        // Two query heads of 8 on one key head: that is plain attention with keys of 4 and values of
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
