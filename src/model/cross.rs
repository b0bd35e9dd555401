//! Cross-attention between bytes and patches, with the double residual of the released models.
//!
//! Spec sections 6 and 7: the module adds its input to its output, and its caller adds it again, so
//! a query row x becomes `2 x + Wo attention`. No rotary positions.

use std::ops::Range;

use blt_kernels::FloatSlice;

use crate::checkpoint::Checkpoint;
use crate::config::CrossAttentionConfig;
use crate::error::Result;
use crate::model::weights::{matrix, vector};
use crate::ops::{self, Compute, Heads, KvTile, Matrix, ScratchVec};

/// One cross-attention. Matrices are row-major (out, in); both sides have width `dim`.
#[derive(Debug)]
pub struct CrossAttention {
    pub(crate) config: CrossAttentionConfig,
    pub(crate) norm_q: Vec<f32>,  // (dim)
    pub(crate) norm_kv: Vec<f32>, // (dim)
    pub(crate) wq: Matrix,        // (n_heads * head_dim, dim)
    pub(crate) wk: Matrix,        // (n_kv_heads * head_dim, dim)
    pub(crate) wv: Matrix,        // (n_kv_heads * head_dim, dim)
    pub(crate) wo: Matrix,        // (dim, n_heads * head_dim)
}

impl CrossAttention {
    /// Takes the tensors `{prefix}.*`.
    pub fn load(
        checkpoint: &Checkpoint,
        prefix: &str,
        dim: usize,
        config: &CrossAttentionConfig,
    ) -> Result<Self> {
        let q_dim = config.n_heads * config.head_dim;
        let kv_dim = config.n_kv_heads * config.head_dim;
        let matrix =
            |name: &str, rows, cols| matrix(checkpoint, &format!("{prefix}.{name}"), rows, cols);
        let norm = |name: &str| vector(checkpoint, &format!("{prefix}.{name}"), dim);
        Ok(CrossAttention {
            config: config.clone(),
            norm_q: norm("norm_q")?,
            norm_kv: norm("norm_kv")?,
            wq: matrix("wq", q_dim, dim)?,
            wk: matrix("wk", kv_dim, dim)?,
            wv: matrix("wv", kv_dim, dim)?,
            wo: matrix("wo", dim, q_dim)?,
        })
    }

    /// Shape of the heads.
    pub fn heads(&self) -> Heads {
        Heads {
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// Width of a key or value row.
    pub fn kv_dim(&self) -> usize {
        self.wk.rows()
    }

    /// Keys and values (n, kv_dim) of the attended rows x (n, dim).
    pub fn keys_values<'c>(
        &self,
        compute: &'c Compute,
        x: &[f32],
    ) -> (ScratchVec<'c, f32>, ScratchVec<'c, f32>) {
        let n = x.len() / self.norm_kv.len();
        let mut a = compute.buffer(x.len());
        ops::rms_norm(compute, x, &self.norm_kv, self.config.norm_eps, &mut a);
        let mut k = compute.buffer(n * self.kv_dim());
        let mut v = compute.buffer(n * self.kv_dim());
        let kv = [(&self.wk, &mut k[..]), (&self.wv, &mut v[..])];
        ops::linear_many(compute, &a, kv);
        (k, v)
    }

    /// Keys and values (n, kv_dim) of the positions from `first` on.
    pub fn tile<'a>(&self, first: usize, k: &'a [f32], v: &'a [f32]) -> KvTile<'a> {
        KvTile {
            first,
            n: k.len() / self.kv_dim(),
            k: FloatSlice::F32(k),
            v: FloatSlice::F32(v),
            row_stride: self.kv_dim(),
            head_stride: self.config.head_dim,
        }
    }

    /// `x = 2 x + Wo attention` for query rows x (n, dim). Each run has its own keys, and
    /// each row the range of keys that it sees.
    pub fn forward(
        &self,
        compute: &Compute,
        runs: &[(KvTile<'_>, &[Range<usize>])],
        x: &mut [f32],
    ) {
        let n = x.len() / self.norm_q.len();
        let mut a = compute.buffer(x.len());
        ops::rms_norm(compute, x, &self.norm_q, self.config.norm_eps, &mut a);
        let mut q = compute.buffer(n * self.wq.rows());
        ops::linear(compute, &self.wq, &a, &mut q);
        let mut o = compute.buffer(q.len());
        ops::attention(compute, self.heads(), None, &q, runs, &mut o);
        ops::linear(compute, &self.wo, &o, &mut a);
        ops::double_add(compute, x, &a);
    }
}
