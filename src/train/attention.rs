//! Softmax attention, forward and backward.
//!
//! Two forms. [`Causal`] is self-attention: each row sees a run of rows that ends with itself; it
//! is computed in tiles of queries as matrix products. [`Ranged`] is cross-attention: each query sees a
//! short run of other rows; it is computed row by row.
//!
//! ```text
//! forward    P = softmax(scale Q K^T)   O = P V
//! backward   dV = P^T dO   dP = dO V^T   dS = P (dP - rowsum(dO O))   dQ = scale dS K   dK = scale dS^T Q
//! ```
//!
//! The causal form keeps only the logarithm of each softmax's denominator and computes P again in
//! the backward pass: keeping P would move more memory than the product costs.

use std::ops::Range;

use super::float::{Float, axpy, dot, max_of, sum_of, vectorized};
use super::matmul::{Accumulate, MatmulOptions, Precision, View, ViewMut, matmul};
use super::pooled_vec::PooledVec;
use crate::ops::Heads;

/// Query rows per tile.
const TILE: usize = 64;

/// Self-attention over the rows of several sequences laid out one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Causal<'a> {
    /// Head counts and width.
    pub heads: Heads,
    /// Softmaxes of a head, each of which compares its share of the head's queries and keys and has
    /// an output of its own: 1, or 2 with differential attention.
    pub shares: usize,
    /// The rows of each sequence.
    pub sequences: &'a [Range<usize>],
    /// The first row each row sees; rises within a sequence.
    pub visible_from: &'a [usize],
    /// Precision of the products.
    pub precision: Precision,
}

/// One tile of one head.
struct Tile<'a> {
    queries: Range<usize>,
    keys: Range<usize>,
    visible_from: &'a [usize], // of the queries
    q: Columns,
    k: Columns,
    v: Columns,
    o: Columns,
    options: MatmulOptions,
}

/// What one head has of some rows.
#[derive(Debug, Clone, Copy)]
struct Columns {
    at: usize,   // first element of the first row
    rows: usize, // how many
    n: usize,    // elements of each row
    dim: usize,  // width of a whole row
}

impl Columns {
    fn new(rows: &Range<usize>, first: usize, n: usize, dim: usize) -> Self {
        Columns {
            at: rows.start * dim + first,
            rows: rows.len(),
            n,
            dim,
        }
    }

    fn of<F>(self, x: &[F]) -> View<'_, F> {
        View::strided(&x[self.at..], self.rows, self.n, self.dim)
    }

    fn of_mut<F>(self, x: &mut [F]) -> ViewMut<'_, F> {
        ViewMut::strided(&mut x[self.at..], self.rows, self.n, self.dim)
    }
}

impl Causal<'_> {
    /// Calls `f` for every tile of every softmax, which are numbered head by head.
    fn for_each_tile(&self, mut f: impl FnMut(usize, Tile<'_>)) {
        let &Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        } = &self.heads;
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let key_dim = head_dim / self.shares;
        for sequence in self.sequences {
            for first in sequence.clone().step_by(TILE) {
                let queries = first..(first + TILE).min(sequence.end);
                let keys = self.visible_from[first]..queries.end;
                for softmax in 0..n_heads * self.shares {
                    let (head, share) = (softmax / self.shares, softmax % self.shares);
                    let kv_head = head / (n_heads / n_kv_heads);
                    let (kv_at, part) = (kv_head * head_dim, share * key_dim);
                    let (o_at, o_dim) = (softmax * head_dim, self.shares * q_dim);
                    let tile = Tile {
                        visible_from: &self.visible_from[queries.clone()],
                        q: Columns::new(&queries, head * head_dim + part, key_dim, q_dim),
                        k: Columns::new(&keys, kv_at + part, key_dim, kv_dim),
                        v: Columns::new(&keys, kv_at, head_dim, kv_dim),
                        o: Columns::new(&queries, o_at, head_dim, o_dim),
                        queries: queries.clone(),
                        keys: keys.clone(),
                        options: MatmulOptions {
                            threads: 1,
                            precision: self.precision,
                        },
                    };
                    f(softmax, tile);
                }
            }
        }
    }

    /// Attention of q (n, n_heads * head_dim) over k and v (n, n_kv_heads * head_dim). Returns the
    /// output (n, n_heads * shares * head_dim) and ln of the softmax denominators
    /// (n, n_heads * shares).
    pub fn forward<F: Float>(&self, q: &[F], k: &[F], v: &[F]) -> (PooledVec<F>, PooledVec<F>) {
        let n_softmaxes = self.heads.n_heads * self.shares;
        let mut o = PooledVec::any(q.len() * self.shares);
        let mut lse = PooledVec::any(self.visible_from.len() * n_softmaxes);
        let mut p = Vec::new();
        let mut scales = [F::ZERO; TILE]; // of the tile's rows: 1 / denominator
        self.for_each_tile(|softmax, tile| {
            tile.scores(q, k, &mut p);
            let n_keys = tile.keys.len();
            vectorized(
                #[inline(always)]
                || {
                    for (i, row) in p.chunks_exact_mut(n_keys).enumerate() {
                        let seen = tile.seen(i);
                        let (before, rest) = row.split_at_mut(seen.start);
                        let (row, after) = rest.split_at_mut(seen.len());
                        before.fill(F::ZERO);
                        after.fill(F::ZERO);
                        let max = max_of(row);
                        row.iter_mut().for_each(|s| *s = (*s - max).exp());
                        let sum = sum_of(row.len(), |j| row[j]);
                        scales[i] = F::ONE / sum;
                        let index = (tile.queries.start + i) * n_softmaxes + softmax;
                        lse[index] = max + F::of(sum.f64().ln());
                    }
                },
            );
            let rows = tile.o.of_mut(&mut o);
            let p = View::dense(&p, n_keys);
            matmul(
                Accumulate::Overwrite,
                rows,
                F::ONE,
                p,
                tile.v.of(v),
                tile.options,
            );
            let mut rows = tile.o.of_mut(&mut o);
            for (i, &scale) in scales[..tile.queries.len()].iter().enumerate() {
                rows.row(i).iter_mut().for_each(|o| *o *= scale);
            }
        });
        (o, lse)
    }

    /// Backward pass, from the output `o`, `lse` and the output's gradient: gradients of q, k, v.
    #[allow(clippy::too_many_arguments)]
    pub fn backward<F: Float>(
        &self,
        q: &[F],
        k: &[F],
        v: &[F],
        o: &[F],
        lse: &[F],
        d_o: &[F],
    ) -> (PooledVec<F>, PooledVec<F>, PooledVec<F>) {
        let n_softmaxes = self.heads.n_heads * self.shares;
        let mut dq = PooledVec::any(q.len());
        let mut dk = PooledVec::zeros(k.len());
        let mut dv = PooledVec::zeros(v.len());
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        let scale = scale(self.heads.head_dim / self.shares);
        self.for_each_tile(|softmax, tile| {
            let n_keys = tile.keys.len();
            tile.scores(q, k, &mut p);
            dp.resize(p.len(), F::ZERO);
            let d_out = tile.o.of(d_o);
            let dp_view = ViewMut::dense(&mut dp, n_keys);
            matmul(
                Accumulate::Overwrite,
                dp_view,
                F::ONE,
                d_out,
                tile.v.of(v).t(),
                tile.options,
            );
            vectorized(
                #[inline(always)]
                || {
                    let rows = p.chunks_exact_mut(n_keys).zip(dp.chunks_exact_mut(n_keys));
                    for (i, (p, dp)) in rows.enumerate() {
                        let seen = tile.seen(i);
                        p[..seen.start].fill(F::ZERO);
                        dp[..seen.start].fill(F::ZERO);
                        p[seen.end..].fill(F::ZERO);
                        dp[seen.end..].fill(F::ZERO);
                        let lse = lse[(tile.queries.start + i) * n_softmaxes + softmax];
                        let start = tile.o.at + i * tile.o.dim;
                        let mean = dot(&d_o[start..][..tile.o.n], &o[start..][..tile.o.n]);
                        let both = p[seen.clone()].iter_mut().zip(&mut dp[seen]);
                        for (p, dp) in both {
                            *p = (*p - lse).exp();
                            *dp = *p * (*dp - mean) * scale;
                        }
                    }
                },
            );
            let (p, ds) = (View::dense(&p, n_keys), View::dense(&dp, n_keys));
            let dv_rows = tile.v.of_mut(&mut dv);
            matmul(Accumulate::Add, dv_rows, F::ONE, p.t(), d_out, tile.options);
            let dq_rows = tile.q.of_mut(&mut dq);
            matmul(
                Accumulate::Overwrite,
                dq_rows,
                F::ONE,
                ds,
                tile.k.of(k),
                tile.options,
            );
            let dk_rows = tile.k.of_mut(&mut dk);
            matmul(
                Accumulate::Add,
                dk_rows,
                F::ONE,
                ds.t(),
                tile.q.of(q),
                tile.options,
            );
        });
        (dq, dk, dv)
    }
}

impl Tile<'_> {
    /// The keys that query `i` of the tile sees, counted from the tile's first key.
    #[inline(always)]
    fn seen(&self, i: usize) -> Range<usize> {
        self.visible_from[i] - self.keys.start..self.queries.start + i + 1 - self.keys.start
    }

    /// scale Q K^T, (queries, keys), without regard to what is visible.
    fn scores<F: Float>(&self, q: &[F], k: &[F], out: &mut Vec<F>) {
        out.resize(self.queries.len() * self.keys.len(), F::ZERO);
        let s = ViewMut::dense(out, self.keys.len());
        let (q, k) = (self.q.of(q), self.k.of(k));
        matmul(
            Accumulate::Overwrite,
            s,
            scale(self.q.n),
            q,
            k.t(),
            self.options,
        );
    }
}

fn scale<F: Float>(head_dim: usize) -> F {
    F::ONE / F::of(head_dim as f64).sqrt()
}

/// Cross-attention: query row i sees the foreign rows `visible[i]`.
#[derive(Debug, Clone, Copy)]
pub struct Ranged<'a> {
    /// Head counts and width.
    pub heads: Heads,
    /// What each query sees; not empty.
    pub visible: &'a [Range<usize>],
}

impl Ranged<'_> {
    /// Attention of q (n, n_heads * head_dim) over k and v (m, n_kv_heads * head_dim). Returns the
    /// output, shaped like q, and the probabilities: for each query and head, one per visible row.
    pub fn forward<F: Float>(&self, q: &[F], k: &[F], v: &[F]) -> (PooledVec<F>, PooledVec<F>) {
        let Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        } = self.heads;
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let scale = scale::<F>(head_dim);
        let n_seen: usize = self.visible.iter().map(|r| r.len()).sum();
        let mut o = PooledVec::zeros(q.len());
        let mut probabilities = PooledVec::any(n_seen * n_heads);
        vectorized(
            #[inline(always)]
            || {
                let mut rest = &mut probabilities[..];
                let rows = q.chunks_exact(q_dim).zip(o.chunks_exact_mut(q_dim));
                for ((q, o), visible) in rows.zip(self.visible) {
                    let heads = q.chunks_exact(head_dim).zip(o.chunks_exact_mut(head_dim));
                    for (head, (q, o)) in heads.enumerate() {
                        let (p, later) = std::mem::take(&mut rest).split_at_mut(visible.len());
                        rest = later;
                        let column = head / (n_heads / n_kv_heads) * head_dim;
                        let mut max = F::NEG_INFINITY;
                        for (p, j) in p.iter_mut().zip(visible.clone()) {
                            *p = scale * dot(q, &k[j * kv_dim + column..][..head_dim]);
                            max = max.larger(*p);
                        }
                        let mut sum = F::ZERO;
                        for p in p.iter_mut() {
                            *p = (*p - max).exp();
                            sum += *p;
                        }
                        for (p, j) in p.iter_mut().zip(visible.clone()) {
                            *p *= F::ONE / sum;
                            axpy(*p, &v[j * kv_dim + column..][..head_dim], o);
                        }
                    }
                }
            },
        );
        (o, probabilities)
    }

    /// Backward pass: the gradient of q, and those of k and v added to `dk` and `dv`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward<F: Float>(
        &self,
        q: &[F],
        k: &[F],
        v: &[F],
        probabilities: &[F],
        d_o: &[F],
        dk: &mut [F],
        dv: &mut [F],
    ) -> PooledVec<F> {
        let Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        } = self.heads;
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let scale = scale::<F>(head_dim);
        let mut dq = PooledVec::zeros(q.len());
        let mut dp = Vec::new();
        vectorized(
            #[inline(always)]
            || {
                let mut rest = probabilities;
                let rows = (q.chunks_exact(q_dim))
                    .zip(d_o.chunks_exact(q_dim))
                    .zip(dq.chunks_exact_mut(q_dim));
                for (((q, d_o), dq), visible) in rows.zip(self.visible) {
                    for head in 0..n_heads {
                        let (p, later) = rest.split_at(visible.len());
                        rest = later;
                        let column = head / (n_heads / n_kv_heads) * head_dim;
                        let own = head * head_dim..(head + 1) * head_dim;
                        let (q, d_o, dq) = (&q[own.clone()], &d_o[own.clone()], &mut dq[own]);
                        dp.clear();
                        let mut mean = F::ZERO;
                        for (&p, j) in p.iter().zip(visible.clone()) {
                            let row = j * kv_dim + column;
                            let d = dot(d_o, &v[row..][..head_dim]);
                            mean += p * d;
                            dp.push(d);
                            axpy(p, d_o, &mut dv[row..][..head_dim]);
                        }
                        for ((&p, &d), j) in p.iter().zip(&dp).zip(visible.clone()) {
                            let row = j * kv_dim + column;
                            let ds = p * (d - mean) * scale;
                            axpy(ds, &k[row..][..head_dim], dq);
                            axpy(ds, q, &mut dk[row..][..head_dim]);
                        }
                    }
                }
            },
        );
        dq
    }
}
