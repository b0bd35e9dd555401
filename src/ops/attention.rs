//! Softmax attention of query rows over ranges of keys.
//!
//! The order of every sum is fixed by the key range alone: scores stand in position order, the
//! softmax sums them in that order, and the values are added one position after the other. In which
//! tile or slot of a ring a key lies, and what other rows are computed beside it, changes nothing.

use std::ops::Range;

use blt_kernels::{Isa, StridedRows, Vectors, View, ViewMut};

use super::Compute;
use crate::few::Few;

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
    pub k: Vectors<'a>,
    /// Values, laid out like the keys.
    pub v: Vectors<'a>,
    /// Distance between consecutive positions.
    pub row_stride: usize,
    /// Distance between heads.
    pub head_stride: usize,
}

/// Where keys and values are found.
pub trait Keys: Sync {
    /// The tile that holds a position, from that position on.
    fn tile(&self, position: usize) -> KvTile<'_>;
}

/// One tile by itself.
impl Keys for KvTile<'_> {
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

/// Query rows that are taken together: their keys and values come from memory once.
const ROWS: usize = 32;

/// Attention: q (n, n_heads * head_dim), out of the same shape.
///
/// The rows are runs, each with keys of its own, for which it is stated what each row sees: some
/// positions, which neither begin nor end before those that the row before it sees.
///
/// With a `lambda`, this is differential attention: each head's queries and keys are two halves, and its
/// values are weighted by `softmax(first halves) - lambda * softmax(second halves)`.
pub fn attention<K: Keys>(
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
    // A task is some rows of some heads; each thread gets as many.
    let n_heads = match n_tasks {
        1 => heads.n_heads,
        n => (heads.n_heads).div_ceil(n.next_multiple_of(compute.n_threads())),
    };
    let size = (ROWS, n_heads * heads.head_dim);
    let mut left = out;
    let mut outputs: Few<ViewMut<'_, f32>> = (runs.iter())
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
        let mut p = compute.buffer(n * span.len()); // (n, span)
        let mut p2 = compute.buffer(lambda.map_or(0, |_| p.len()));
        for (i, head) in (col..col + width).step_by(heads.head_dim).enumerate() {
            let kv_head = head / heads.head_dim / (heads.n_heads / heads.n_kv_heads);
            let has_next = head + heads.head_dim < col + width;
            let seen = Seen {
                isa: compute.isa(),
                keys,
                kv_head,
                next_head: if has_next {
                    kv_head + 1
                } else {
                    heads.n_kv_heads
                },
                visible,
                span: span.clone(),
            };
            let at = (before + row) * dim + head;
            let q = |from, width| View::strided(&q[at + from..], n, width, dim);
            match lambda {
                None => seen.probabilities(q(0, heads.head_dim), 0, &mut p),
                Some(lambda) => {
                    let half = heads.head_dim / 2;
                    seen.probabilities(q(0, half), 0, &mut p);
                    seen.probabilities(q(half, half), half, &mut p2);
                    for (p, p2) in p.iter_mut().zip(&*p2) {
                        *p -= lambda * p2;
                    }
                }
            }
            seen.weighted_sums(&p, out.columns(i * heads.head_dim, heads.head_dim));
        }
    });
}

/// The keys and values that one head of some rows sees.
struct Seen<'t, K> {
    isa: Isa,
    keys: &'t K,
    kv_head: usize,
    /// The head whose keys will be needed next, or the number of heads.
    next_head: usize,
    /// What each row sees.
    visible: &'t [Range<usize>],
    /// From what the first row sees to what the last one sees.
    span: Range<usize>,
}

impl<K: Keys> Seen<'_, K> {
    /// The tiles with some of `positions`, each with where this head's first row of them begins, and
    /// which positions of the span it has.
    fn parts(
        &self,
        positions: Range<usize>,
    ) -> impl Iterator<Item = (KvTile<'_>, usize, Range<usize>)> {
        let mut from = positions.start;
        std::iter::from_fn(move || {
            (from < positions.end).then(|| {
                let tile = self.keys.tile(from);
                let to = positions.end.min(tile.first + tile.n);
                let offset =
                    self.kv_head * tile.head_stride + (from - tile.first) * tile.row_stride;
                let at = from - self.span.start..to - self.span.start;
                from = to;
                (tile, offset, at)
            })
        })
    }

    /// Softmax, over what each row sees, of the scaled products of the rows of q with as many elements
    /// of each key, from `first` on: p (n, span).
    fn probabilities(&self, q: View<'_, f32>, first: usize, p: &mut [f32]) {
        let ((n, d), width) = (q.shape(), self.span.len());
        let scale = 1.0 / (d as f32).sqrt();
        for (tile, offset, at) in self.parts(self.span.clone()) {
            let keys = StridedRows {
                values: tile.k.slice(offset + first..tile.k.len()),
                stride: tile.row_stride,
                next: tile.v.slice(offset..tile.v.len()),
            };
            let p = ViewMut::strided(&mut p[at.start..], n, at.len(), width);
            blt_kernels::dot_rows(self.isa, q, keys, scale, p);
        }
        for (p, visible) in p.chunks_exact_mut(width).zip(self.visible) {
            let seen = visible.start - self.span.start..visible.end - self.span.start;
            blt_kernels::softmax(self.isa, &mut p[seen]);
        }
    }

    /// The sums of the values weighted by p (n, span): out (n, head_dim).
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
        let width = self.span.len();
        for (tile, offset, at) in self.parts(positions) {
            let next = offset + (self.next_head - self.kv_head) * tile.head_stride;
            let values = StridedRows {
                values: tile.v.slice(offset..tile.v.len()),
                stride: tile.row_stride,
                next: tile.k.slice(next.min(tile.k.len())..tile.k.len()),
            };
            let p = &p[rows.start * width + at.start..];
            let p = View::strided(p, rows.len(), at.len(), width);
            let out = out.rows(rows.clone());
            blt_kernels::weighted_sum(self.isa, p, values, out);
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
            k: Vectors::F32(k),
            v: Vectors::F32(v),
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
