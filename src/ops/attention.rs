//! Softmax attention of query rows over ranges of keys.
//!
//! The order of every sum is fixed by the key range alone: scores stand in position order, the
//! softmax sums them in that order, and the values are added one position after the other. In which
//! tile or slot of a ring a key lies, and what other rows are computed beside it, changes nothing.

use std::ops::Range;

use blt_kernels::Vectors;

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

/// Attention: q (n, n_heads * head_dim), out of the same shape.
///
/// Row `i` sees the positions `visible[i]`, which must not be empty; `tiles` cover all of them in
/// increasing order without gaps.
pub fn attention(
    compute: &Compute,
    heads: Heads,
    q: &[f32],
    tiles: &[KvTile<'_>],
    visible: &[Range<usize>],
    out: &mut [f32],
) {
    let dim = heads.n_heads * heads.head_dim;
    let n = visible.len();
    assert_eq!(q.len(), n * dim);
    assert_eq!(out.len(), n * dim);
    let n_scores: usize = visible.iter().map(|r| r.len()).sum();
    let n_tasks = compute.n_tasks(2 * n_scores * dim);
    // A task is a run of (row, head) pairs, so that one row's heads are shared out too.
    let pairs = (n * heads.n_heads).div_ceil(n_tasks).max(1);
    let tasks: Vec<(usize, &mut [f32])> = out
        .chunks_mut(pairs * heads.head_dim)
        .enumerate()
        .map(|(i, part)| (i * pairs, part))
        .collect();
    compute.for_each(tasks, |(first, part)| {
        let mut scores = Vec::new();
        for (i, out) in part.chunks_exact_mut(heads.head_dim).enumerate() {
            let (row, head) = ((first + i) / heads.n_heads, (first + i) % heads.n_heads);
            let q = &q[row * dim + head * heads.head_dim..][..heads.head_dim];
            let kv_head = head / (heads.n_heads / heads.n_kv_heads);
            one_head(
                compute,
                heads.head_dim,
                kv_head,
                q,
                tiles,
                &visible[row],
                &mut scores,
                out,
            );
        }
    });
}

/// One head of one row: q and out (head_dim); `scores` is scratch.
#[allow(clippy::too_many_arguments)]
fn one_head(
    compute: &Compute,
    head_dim: usize,
    kv_head: usize,
    q: &[f32],
    tiles: &[KvTile<'_>],
    visible: &Range<usize>,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let isa = compute.isa();
    let scale = 1.0 / (head_dim as f32).sqrt();
    scores.clear();
    scores.resize(visible.len(), 0.0);
    let parts = || {
        let after = tiles.partition_point(|t| t.first + t.n <= visible.start);
        tiles[after..].iter().map_while(move |tile| {
            let from = visible.start.max(tile.first);
            let to = visible.end.min(tile.first + tile.n);
            let offset =
                kv_head * tile.head_stride + (from.max(tile.first) - tile.first) * tile.row_stride;
            (from < to).then_some((tile, offset, from - visible.start..to - visible.start))
        })
    };
    for (tile, offset, at) in parts() {
        blt_kernels::dot_rows(
            isa,
            q,
            tile.k.slice(offset..tile.k.len()),
            tile.row_stride,
            scale,
            &mut scores[at],
        );
    }
    blt_kernels::softmax(isa, scores);
    out.fill(0.0);
    for (tile, offset, at) in parts() {
        let rows = tile.v.slice(offset..tile.v.len());
        blt_kernels::weighted_sum(isa, &scores[at], rows, tile.row_stride, out);
    }
}
