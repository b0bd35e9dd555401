//! The transformer layer that all four networks share: RMSNorm, attention, RMSNorm, SwiGLU.
//!
//! Spec section 2. Pre-norm, no biases, rotary positions on interleaved pairs. A stack may have
//! differential attention (spec appendix A).

use std::ops::Range;

use smallvec::SmallVec;

use crate::cache::{KvCache, KvType};
use crate::checkpoint::Checkpoint;
use crate::config::TransformerConfig;
use crate::error::Result;
use crate::model::differential::Differential;
use crate::model::weights::{matrix, vector};
use crate::ops::{self, Angles, Compute, Heads, Matrix, Rope, ScratchVec};

/// A stack of layers with one shape.
#[derive(Debug)]
pub struct Stack {
    /// Shape of the layers.
    pub config: TransformerConfig,
    rope: Rope,
    pub(crate) blocks: Vec<Block>,
}

/// One layer. Matrices are row-major (out, in).
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: Vec<f32>, // (dim)
    pub(crate) wq: Matrix,               // (n_heads * head_dim, dim)
    pub(crate) wk: Matrix,               // (n_kv_heads * head_dim, dim)
    pub(crate) wv: Matrix,               // (n_kv_heads * head_dim, dim)
    pub(crate) wo: Matrix,               // (dim, n_heads * head_dim)
    pub(crate) ffn_norm: Vec<f32>,       // (dim)
    pub(crate) w1: Matrix,               // (hidden_dim, dim)
    pub(crate) w2: Matrix,               // (dim, hidden_dim)
    pub(crate) w3: Matrix,               // (hidden_dim, dim)
    pub(super) differential: Option<Differential>,
}

/// Where the rows of one forward pass stand: one run after the other.
#[derive(Debug)]
pub struct Rows<'c> {
    /// Positions of the rows of each sequence.
    pub runs: ScratchVec<'c, Range<usize>>,
    /// The positions each row sees, its own the last.
    pub visible: ScratchVec<'c, Range<usize>>,
    /// Rotary angles of each row.
    pub angles: Angles<'c>,
}

impl Rows<'_> {
    /// Number of rows.
    pub fn n(&self) -> usize {
        self.visible.len()
    }

    /// What the rows of each run see.
    pub fn visible_by_run(&self) -> impl Iterator<Item = &[Range<usize>]> {
        let mut left = &*self.visible;
        self.runs.iter().map(move |run| {
            let (of_run, others) = left.split_at(run.len());
            left = others;
            of_run
        })
    }
}

impl Stack {
    /// Takes the layers `{part}.layers.*` from a checkpoint.
    pub fn load(checkpoint: &Checkpoint, part: &str, config: &TransformerConfig) -> Result<Self> {
        let load = |l| Block::load(checkpoint, &format!("{part}.layers.{l}"), l, config);
        Ok(Stack {
            config: config.clone(),
            rope: Rope::new(config.key_dim(), config.rope_theta),
            blocks: (0..config.n_layers).map(load).collect::<Result<_>>()?,
        })
    }

    /// Multiplies activations of 15 bits with quantised weights: [`Matrix::with_two_terms`].
    pub fn with_two_terms(self) -> Self {
        let of = |b: Block| Block {
            wq: b.wq.with_two_terms(),
            wk: b.wk.with_two_terms(),
            wv: b.wv.with_two_terms(),
            wo: b.wo.with_two_terms(),
            w1: b.w1.with_two_terms(),
            w2: b.w2.with_two_terms(),
            w3: b.w3.with_two_terms(),
            ..b
        };
        let blocks = self.blocks.into_iter().map(of).collect();
        Stack { blocks, ..self }
    }

    /// Bytes of its matrices.
    pub fn n_bytes(&self) -> usize {
        let matrices = |b: &Block| {
            let all = [&b.wq, &b.wk, &b.wv, &b.wo, &b.w1, &b.w2, &b.w3];
            all.map(|m| m.tensor().bytes().len()).iter().sum::<usize>()
        };
        self.blocks.iter().map(matrices).sum()
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    /// Shape of the heads.
    pub fn heads(&self) -> Heads {
        Heads {
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// An empty cache for this stack. With a window it allows `slack` positions to be appended or
    /// taken back at a time.
    pub fn new_cache(&self, kv: KvType, slack: usize) -> KvCache {
        KvCache::new(kv, self.n_layers(), self.heads(), self.config.window, slack)
    }

    /// No rows yet, with room for `n`.
    pub fn rows<'c>(&self, compute: &'c Compute, n: usize) -> Rows<'c> {
        Rows {
            runs: compute.empty(1),
            visible: compute.empty(n),
            angles: self.rope.angles(compute, n),
        }
    }

    /// Adds a run of rows at `positions` which see back to the window's edge or to `barrier(i)` (the
    /// start of row i's segment), whichever is later. Rotary angles count from `origin`.
    pub fn add_run(
        &self,
        rows: &mut Rows<'_>,
        positions: Range<usize>,
        origin: impl Fn(usize) -> usize,
        barrier: impl Fn(usize) -> usize,
    ) {
        let window = self.config.window.unwrap_or(usize::MAX);
        let from = |p: usize| (p + 1).saturating_sub(window).max(barrier(p));
        rows.runs.extend([positions.clone()]);
        (rows.visible).extend(positions.clone().map(|p| from(p)..p + 1));
        let angles = positions.map(|p| p - origin(p));
        self.rope.add_angles(angles, &mut rows.angles);
    }

    /// Runs layer `layer` on x (n, dim) in place, appending to the caches, of which there is one per
    /// run. The matrices are multiplied with the rows of all runs at once.
    pub fn forward_layer(
        &self,
        compute: &Compute,
        layer: usize,
        rows: &Rows<'_>,
        caches: &mut [&mut KvCache],
        x: &mut [f32],
    ) {
        let block = &self.blocks[layer];
        let eps = self.config.norm_eps;
        let n = rows.n();

        let mut a = compute.buffer(x.len()); // (n, dim)
        ops::rms_norm(compute, x, &block.attention_norm, eps, &mut a);
        let mut q = compute.buffer(n * block.wq.rows()); // (n, n_heads * head_dim)
        let mut k = compute.buffer(n * block.wk.rows()); // (n, n_kv_heads * head_dim)
        let mut v = compute.buffer(n * block.wv.rows()); // (n, n_kv_heads * head_dim)
        let qkv = [
            (&block.wq, &mut q[..]),
            (&block.wk, &mut k[..]),
            (&block.wv, &mut v[..]),
        ];
        ops::linear_many(compute, &a, qkv);
        rows.angles.apply(compute, &mut q);
        rows.angles.apply(compute, &mut k);
        let mut done = 0;
        for (run, cache) in rows.runs.iter().zip(&mut *caches) {
            let of_run = done..done + run.len() * block.wk.rows();
            done = of_run.end;
            cache.append(compute, layer, run.start, &k[of_run.clone()], &v[of_run]);
        }
        let seen: SmallVec<[_; 1]> = (rows.visible_by_run().zip(&*caches))
            .map(|(visible, cache)| (cache.layer(layer), visible))
            .collect();
        let mut o = compute.buffer(q.len()); // (n, n_heads * head_dim)
        let lambda = block.differential.as_ref().map(|d| d.lambda);
        ops::attention(compute, self.heads(), lambda, &q, &seen, &mut o);
        if let Some(differential) = &block.differential {
            o = differential.finish(compute, o);
        }
        ops::linear(compute, &block.wo, &o, &mut a);
        ops::add_assign(compute, x, &a);

        ops::rms_norm(compute, x, &block.ffn_norm, eps, &mut a);
        let mut gate = compute.buffer(n * block.w1.rows()); // (n, hidden_dim)
        let mut up = compute.buffer(n * block.w3.rows()); // (n, hidden_dim)
        let gate_up = [(&block.w1, &mut gate[..]), (&block.w3, &mut up[..])];
        ops::linear_many(compute, &a, gate_up);
        ops::swiglu(compute, &mut gate, &up);
        ops::linear(compute, &block.w2, &gate, &mut a);
        ops::add_assign(compute, x, &a);
    }
}

impl Block {
    fn load(
        checkpoint: &Checkpoint,
        at: &str,
        layer: usize,
        config: &TransformerConfig,
    ) -> Result<Self> {
        let &TransformerConfig {
            dim, hidden_dim, ..
        } = config;
        let q_dim = config.n_heads * config.head_dim;
        let kv_dim = config.n_kv_heads * config.head_dim;
        let matrix =
            |name: &str, rows, cols| matrix(checkpoint, &format!("{at}.{name}"), rows, cols);
        let norm = |name: &str| vector(checkpoint, &format!("{at}.{name}"), dim);
        Ok(Block {
            attention_norm: norm("attention_norm")?,
            wq: matrix("wq", q_dim, dim)?,
            wk: matrix("wk", kv_dim, dim)?,
            wv: matrix("wv", kv_dim, dim)?,
            wo: matrix("wo", dim, q_dim)?,
            ffn_norm: norm("ffn_norm")?,
            w1: matrix("w1", hidden_dim, dim)?,
            w2: matrix("w2", dim, hidden_dim)?,
            w3: matrix("w3", hidden_dim, dim)?,
            differential: Differential::load(checkpoint, at, layer, config)?,
        })
    }
}
