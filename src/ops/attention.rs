//! Softmax attention of query rows over ranges of keys.
//!
//! The order of every sum is fixed by the key range alone: scores stand in position order, the
//! softmax sums them in that order, and the values are added one position after the other. In which
//! tile or slot of a ring a key lies, and what other rows are computed beside it, changes nothing.

use std::ops::Range;

use blt_kernels::{Isa, Vectors};

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
    pub k: Vectors<'a>,
    /// Values, laid out like the keys.
    pub v: Vectors<'a>,
    /// Distance between consecutive positions.
    pub row_stride: usize,
    /// Distance between heads.
    pub head_stride: usize,
}

/// The keys and values that one row sees. Rows of different sequences see different tiles.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// Cover all positions seen, in increasing order without gaps.
    pub tiles: &'a [KvTile<'a>],
    /// Not empty.
    pub positions: Range<usize>,
}

/// Attention: q (n, n_heads * head_dim), out of the same shape; row `i` sees `seen[i]`.
pub fn attention(compute: &Compute, heads: Heads, q: &[f32], seen: &[Seen<'_>], out: &mut [f32]) {
    attend(compute, heads, None, q, seen, out);
}

/// Differential attention: the same, but each head's queries and keys are two halves, and its values
/// are weighted by `softmax(first halves) - lambda * softmax(second halves)`.
pub fn differential_attention(
    compute: &Compute,
    heads: Heads,
    lambda: f32,
    q: &[f32],
    seen: &[Seen<'_>],
    out: &mut [f32],
) {
    attend(compute, heads, Some(lambda), q, seen, out);
}

fn attend(
    compute: &Compute,
    heads: Heads,
    lambda: Option<f32>,
    q: &[f32],
    seen: &[Seen<'_>],
    out: &mut [f32],
) {
    let dim = heads.n_heads * heads.head_dim;
    let n = seen.len();
    assert_eq!(q.len(), n * dim);
    assert_eq!(out.len(), n * dim);
    let n_scores: usize = seen.iter().map(|s| s.positions.len()).sum();
    let n_tasks = compute.n_tasks(2 * n_scores * dim);
    // A task is a run of (row, head) pairs, so that one row's heads are shared out too.
    let pairs = (n * heads.n_heads).div_ceil(n_tasks).max(1);
    let tasks: Vec<(usize, &mut [f32])> = out
        .chunks_mut(pairs * heads.head_dim)
        .enumerate()
        .map(|(i, part)| (i * pairs, part))
        .collect();
    compute.for_each(tasks, |(first, part)| {
        let (mut p, mut p2) = (Vec::new(), Vec::new()); // (visible)
        for (i, out) in part.chunks_exact_mut(heads.head_dim).enumerate() {
            let (row, head) = ((first + i) / heads.n_heads, (first + i) % heads.n_heads);
            let q = &q[row * dim + head * heads.head_dim..][..heads.head_dim];
            let keys = Keys {
                isa: compute.isa(),
                tiles: seen[row].tiles,
                kv_head: head / (heads.n_heads / heads.n_kv_heads),
                visible: &seen[row].positions,
            };
            match lambda {
                None => keys.probabilities(q, 0, &mut p),
                Some(lambda) => {
                    let half = heads.head_dim / 2;
                    keys.probabilities(&q[..half], 0, &mut p);
                    keys.probabilities(&q[half..], half, &mut p2);
                    for (p, p2) in p.iter_mut().zip(&p2) {
                        *p -= lambda * p2;
                    }
                }
            }
            keys.weighted_sum(&p, out);
        }
    });
}

/// The keys and values that one head of one row sees.
struct Keys<'a> {
    isa: Isa,
    tiles: &'a [KvTile<'a>],
    kv_head: usize,
    visible: &'a Range<usize>,
}

impl Keys<'_> {
    /// The tiles that are seen, each with where its first visible row begins, and which of the
    /// visible positions it has.
    fn parts(&self) -> impl Iterator<Item = (&KvTile<'_>, usize, Range<usize>)> {
        let visible = self.visible;
        let after = (self.tiles).partition_point(|t| t.first + t.n <= visible.start);
        self.tiles[after..].iter().map_while(|tile| {
            let from = visible.start.max(tile.first);
            let to = visible.end.min(tile.first + tile.n);
            let offset = self.kv_head * tile.head_stride + (from - tile.first) * tile.row_stride;
            (from < to).then_some((tile, offset, from - visible.start..to - visible.start))
        })
    }

    /// Softmax of the scaled products of q with as many elements of each key, from `first` on.
    fn probabilities(&self, q: &[f32], first: usize, p: &mut Vec<f32>) {
        let scale = 1.0 / (q.len() as f32).sqrt();
        p.clear();
        p.resize(self.visible.len(), 0.0);
        for (tile, offset, at) in self.parts() {
            let keys = tile.k.slice(offset + first..tile.k.len());
            blt_kernels::dot_rows(self.isa, q, keys, tile.row_stride, scale, &mut p[at]);
        }
        blt_kernels::softmax(self.isa, p);
    }

    /// The sum of the values weighted by p, into out (head_dim).
    fn weighted_sum(&self, p: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        for (tile, offset, at) in self.parts() {
            let values = tile.v.slice(offset..tile.v.len());
            blt_kernels::weighted_sum(self.isa, &p[at], values, tile.row_stride, out);
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
        let compute = Compute::new(Some(1), None).unwrap();
        let tile = |k, v| KvTile {
            first: 0,
            n,
            k: Vectors::F32(k),
            v: Vectors::F32(v),
            row_stride: kv,
            head_stride: n * kv,
        };
        fn seen<'a>(tiles: &'a [KvTile<'a>]) -> Vec<Seen<'a>> {
            let row = |i| Seen {
                tiles,
                positions: i / 2..i + 1,
            };
            (0..tiles[0].n).map(row).collect()
        }
        let differential = |lambda| {
            let mut out = vec![0.0; n * 16];
            let tiles = [tile(&k, &v)];
            differential_attention(&compute, heads(2, 8), lambda, &q, &seen(&tiles), &mut out);
            out
        };
        let found = differential(0.0);
        assert_ne!(found, differential(0.3));
        let first_halves: Vec<f32> = (q.chunks(8)).flat_map(|q| &q[..4]).copied().collect();
        for half in 0..2 {
            let mut plain = vec![0.0; n * 8]; // (n, 2 heads of 4)
            let tiles = [tile(&k, &v[half * 4..])];
            attention(
                &compute,
                heads(2, 4),
                &first_halves,
                &seen(&tiles),
                &mut plain,
            );
            for (found, plain) in found.chunks(8).zip(plain.chunks(4)) {
                assert_eq!(&found[half * 4..][..4], plain);
            }
        }
    }
}
