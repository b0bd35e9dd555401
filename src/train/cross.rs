//! Cross-attention between bytes and patches, forward and backward: `model/cross.rs` for training.
//! A query row x becomes `2 x + Wo attention`.

use std::ops::Range;

use super::attention::Ranged;
use super::float::{Float, vectorized};
use super::grads::Grads;
use super::matmul::Accumulate;
use super::ops::{rms_norm, rms_norm_again};
use super::params::{ParamId, Params};
use super::pass::Pass;
use super::pooled_vec::PooledVec;
use crate::config::CrossAttentionConfig;
use crate::ops::Heads;

/// Where the tensors of one cross-attention are.
#[derive(Debug, Clone)]
pub struct CrossAttention {
    config: CrossAttentionConfig,
    norm_q: ParamId,
    norm_kv: ParamId,
    wq: ParamId,
    wk: ParamId,
    wv: ParamId,
    wo: ParamId,
}

/// Values that the backward pass needs. n queries, m attended rows.
#[derive(Debug)]
pub struct CrossTape<F: Float> {
    x: PooledVec<F>,      // (n, dim)
    inv_q: PooledVec<F>,  // (n)
    inv_kv: PooledVec<F>, // (m)
    q: PooledVec<F>,      // (n, n_heads * head_dim)
    k: PooledVec<F>,      // (m, n_kv_heads * head_dim)
    v: PooledVec<F>,      // (m, n_kv_heads * head_dim)
    o: PooledVec<F>,      // (n, n_heads * head_dim)
    probabilities: PooledVec<F>,
}

impl CrossAttention {
    /// The tensors `{at}.*`.
    pub fn new<F: Float>(params: &Params<F>, at: &str, config: &CrossAttentionConfig) -> Self {
        let id = |name: &str| params.id(&format!("{at}.{name}"));
        CrossAttention {
            config: config.clone(),
            norm_q: id("norm_q"),
            norm_kv: id("norm_kv"),
            wq: id("wq"),
            wk: id("wk"),
            wv: id("wv"),
            wo: id("wo"),
        }
    }

    fn ranged<'a>(&self, visible: &'a [Range<usize>]) -> Ranged<'a> {
        Ranged {
            heads: Heads {
                n_heads: self.config.n_heads,
                n_kv_heads: self.config.n_kv_heads,
                head_dim: self.config.head_dim,
            },
            visible,
        }
    }

    /// Queries x (n, dim) on the rows `kv` (m, dim); query i sees the rows `visible[i]`.
    pub fn forward<F: Float>(
        &self,
        pass: Pass<'_, F>,
        x: PooledVec<F>,
        kv: &[F],
        visible: &[Range<usize>],
    ) -> (PooledVec<F>, CrossTape<F>) {
        let eps = self.config.norm_eps;
        let norm = |id| pass.params.get(id).value.values();
        let (b, inv_kv) = rms_norm(kv, &norm(self.norm_kv), eps);
        let k = pass.linear(self.wk, &b);
        let v = pass.linear(self.wv, &b);
        let (a, inv_q) = rms_norm(&x, &norm(self.norm_q), eps);
        let q = pass.linear(self.wq, &a);
        let (o, probabilities) = self.ranged(visible).forward(&q, &k, &v);
        let mut y = pass.linear(self.wo, &o);
        vectorized(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x.iter()) {
                    *y += x + x;
                }
            },
        );
        let tape = CrossTape {
            x,
            inv_q,
            inv_kv,
            q,
            k,
            v,
            o,
            probabilities,
        };
        (y, tape)
    }

    /// Backward pass: the gradient d (n, dim) of the output becomes that of the queries, and that
    /// of the attended rows is added to `d_kv` (m, dim).
    #[allow(clippy::too_many_arguments)]
    pub fn backward<F: Float>(
        &self,
        pass: Pass<'_, F>,
        tape: CrossTape<F>,
        kv: &[F],
        visible: &[Range<usize>],
        d: &mut [F],
        d_kv: &mut [F],
        grads: &mut Grads<F>,
    ) {
        let norm = |id| pass.params.get(id).value.values();
        let mut d_o = PooledVec::any(tape.o.len());
        pass.linear_backward(
            self.wo,
            &tape.o,
            d,
            Some((Accumulate::Overwrite, &mut d_o)),
            grads,
        );
        let mut dk = PooledVec::zeros(tape.k.len());
        let mut dv = PooledVec::zeros(tape.v.len());
        let dq = self.ranged(visible).backward(
            &tape.q,
            &tape.k,
            &tape.v,
            &tape.probabilities,
            &d_o,
            &mut dk,
            &mut dv,
        );
        vectorized(
            #[inline(always)]
            || d.iter_mut().for_each(|d| *d += *d),
        );
        let a = rms_norm_again(&tape.x, &norm(self.norm_q), &tape.inv_q);
        let mut da = PooledVec::any(a.len());
        pass.linear_backward(
            self.wq,
            &a,
            &dq,
            Some((Accumulate::Overwrite, &mut da)),
            grads,
        );
        pass.norm_backward(self.norm_q, &tape.x, &tape.inv_q, &da, d, grads);

        let b = rms_norm_again(kv, &norm(self.norm_kv), &tape.inv_kv);
        let mut db = PooledVec::any(b.len());
        pass.linear_backward(
            self.wk,
            &b,
            &dk,
            Some((Accumulate::Overwrite, &mut db)),
            grads,
        );
        pass.linear_backward(self.wv, &b, &dv, Some((Accumulate::Add, &mut db)), grads);
        pass.norm_backward(self.norm_kv, kv, &tape.inv_kv, &db, d_kv, grads);
    }
}
