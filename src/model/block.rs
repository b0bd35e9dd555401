//! The transformer layer that all four networks share: RMSNorm, attention, RMSNorm, SwiGLU.
//!
//! Spec section 2. Pre-norm, no biases, rotary positions on interleaved pairs. A stack may have differential attention
//! (spec appendix A) or be of another family: see [`LayerVariant`](crate::config::LayerVariant).

use std::ops::Range;

use smallvec::SmallVec;

use crate::cache::{KvCache, KvType};
use crate::checkpoint::Checkpoint;
use crate::config::{QkNorm, RopeScaling, TransformerConfig};
use crate::error::Result;
use crate::model::differential::Differential;
use crate::model::split::split;
use crate::model::weights::{matrix, vector};
use crate::ops::{self, Angles, Compute, Heads, Matrix, Rope, ScratchVec};

/// A stack of layers with one shape.
#[derive(Debug)]
pub struct Stack {
    /// Shape of the layers.
    pub config: TransformerConfig,
    rope: Rope,
    /// The window of some layers and their rotary frequencies, if the others have none.
    sliding: Option<(usize, Rope)>,
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
    qk_norm: Option<[Vec<f32>; 2]>, // (n_heads * head_dim) and (n_kv_heads * head_dim), or (head_dim) each
    bias: Option<[Vec<f32>; 4]>,    // of wq, wk, wv and wo
    /// Whether the outputs of attention and feed-forward are normed instead of their inputs.
    norm_after: bool,
    is_sliding: bool,
}

/// The positions of the rows of one forward pass: one run after the other.
#[derive(Debug)]
pub struct Rows<'c> {
    /// Positions of the rows of each sequence.
    pub runs: ScratchVec<'c, Range<usize>>,
    /// The positions that each row sees. The last one is its own.
    pub visible: ScratchVec<'c, Range<usize>>,
    /// Rotary angles of each row.
    pub angles: Angles<'c>,
    /// Visible positions and angles for the layers with a window, if the others have none.
    sliding: Option<(ScratchVec<'c, Range<usize>>, Angles<'c>)>,
}

impl Rows<'_> {
    /// Number of rows.
    pub fn n(&self) -> usize {
        self.visible.len()
    }

    /// The rows of each run among `data` (n, width).
    pub fn by_run<'a, T>(&'a self, data: &'a [T]) -> impl Iterator<Item = &'a [T]> {
        let width = data.len().checked_div(self.n()).unwrap_or(0);
        split(data, self.runs.iter().map(move |run| run.len() * width))
    }

    /// The positions that the rows of each run see.
    pub fn visible_by_run(&self, is_sliding: bool) -> impl Iterator<Item = &[Range<usize>]> {
        self.by_run(match &self.sliding {
            Some((visible, _)) if is_sliding => visible,
            _ => &self.visible,
        })
    }
}

impl<'c> Rows<'c> {
    fn angles(&self, is_sliding: bool) -> &Angles<'c> {
        match &self.sliding {
            Some((_, angles)) if is_sliding => angles,
            _ => &self.angles,
        }
    }
}

impl Stack {
    /// Takes the layers `{part}.layers.*` from a checkpoint.
    pub fn load(checkpoint: &Checkpoint, part: &str, config: &TransformerConfig) -> Result<Self> {
        let load = |l| Block::load(checkpoint, &format!("{part}.layers.{l}"), l, config);
        Ok(Stack {
            config: config.clone(),
            rope: match &config.variant {
                None => Rope::new(config.key_dim(), config.rope_theta),
                Some(v) => Rope::of_halves(config.head_dim, config.rope_theta, v.rope_scaling),
            },
            sliding: (config.variant.as_ref())
                .and_then(|v| v.windows.iter().find_map(|window| *window))
                .map(|window| {
                    (
                        window,
                        Rope::of_halves(config.head_dim, config.rope_theta, RopeScaling::None),
                    )
                }),
            blocks: (0..config.n_layers).map(load).collect::<Result<_>>()?,
        })
    }

    /// Multiplies activations of 15 bits with quantised weights: [`Matrix::with_two_terms`].
    pub fn with_two_terms(self) -> Self {
        let with_terms = |b: Block| Block {
            wq: b.wq.with_two_terms(),
            wk: b.wk.with_two_terms(),
            wv: b.wv.with_two_terms(),
            wo: b.wo.with_two_terms(),
            w1: b.w1.with_two_terms(),
            w2: b.w2.with_two_terms(),
            w3: b.w3.with_two_terms(),
            ..b
        };
        let blocks = self.blocks.into_iter().map(with_terms).collect();
        Stack { blocks, ..self }
    }

    /// Bytes of all matrices.
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

    /// An empty cache for this stack. With a window, `slack` positions can be appended at a time, or
    /// rewound.
    pub fn new_cache(&self, kv: KvType, slack: usize) -> KvCache {
        KvCache::new(kv, self.n_layers(), self.heads(), self.config.window, slack)
    }

    /// An empty set of rows with room for `n`.
    pub fn rows<'c>(&self, compute: &'c Compute, n: usize) -> Rows<'c> {
        Rows {
            runs: compute.empty(1),
            visible: compute.empty(n),
            angles: self.rope.angles(compute, n),
            sliding: (self.sliding.as_ref())
                .map(|(_, rope)| (compute.empty(n), rope.angles(compute, n))),
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
        let angles = positions.clone().map(|p| p - origin(p));
        self.rope.add_angles(angles, &mut rows.angles);
        if let (Some((window, rope)), Some((visible, angles))) = (&self.sliding, &mut rows.sliding)
        {
            let from = |p: usize| (p + 1).saturating_sub(*window).max(barrier(p));
            visible.extend(positions.clone().map(|p| from(p)..p + 1));
            rope.add_angles(positions.map(|p| p - origin(p)), angles);
        }
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
        block.norm_input(compute, x, &block.attention_norm, eps, &mut a);
        let mut q = compute.buffer(n * block.wq.rows()); // (n, n_heads * head_dim)
        let mut k = compute.buffer(n * block.wk.rows()); // (n, n_kv_heads * head_dim)
        let mut v = compute.buffer(n * block.wv.rows()); // (n, n_kv_heads * head_dim)
        let qkv = [
            (&block.wq, &mut q[..]),
            (&block.wk, &mut k[..]),
            (&block.wv, &mut v[..]),
        ];
        ops::linear_many(compute, &a, qkv);
        if let Some([bq, bk, bv, _]) = &block.bias {
            let biased = [(&mut q, bq), (&mut k, bk), (&mut v, bv)];
            biased
                .into_iter()
                .for_each(|(x, bias)| ops::add_bias(compute, x, bias));
        }
        if let Some([norm_q, norm_k]) = &block.qk_norm {
            for (x, norm) in [(&mut q, norm_q), (&mut k, norm_k)] {
                let mut normed = compute.buffer(x.len());
                ops::rms_norm(compute, x, norm, eps, &mut normed);
                *x = normed;
            }
        }
        let angles = rows.angles(block.is_sliding);
        angles.apply(compute, &mut q);
        angles.apply(compute, &mut k);
        let keys_values = rows.by_run(&k).zip(rows.by_run(&v));
        for ((run, cache), (k, v)) in rows.runs.iter().zip(&mut *caches).zip(keys_values) {
            cache.append(compute, layer, run.start, k, v);
        }
        let seen: SmallVec<[_; 1]> = (rows.visible_by_run(block.is_sliding).zip(&*caches))
            .map(|(visible, cache)| (cache.layer(layer), visible))
            .collect();
        let mut o = compute.buffer(q.len()); // (n, n_heads * head_dim)
        let lambda = block.differential.as_ref().map(|d| d.lambda);
        ops::attention(compute, self.heads(), lambda, &q, &seen, &mut o);
        if let Some(differential) = &block.differential {
            o = differential.finish(compute, o);
        }
        ops::linear(compute, &block.wo, &o, &mut a);
        if let Some([.., bo]) = &block.bias {
            ops::add_bias(compute, &mut a, bo);
        }
        block.add_output(compute, &block.attention_norm, eps, &a, x);

        block.norm_input(compute, x, &block.ffn_norm, eps, &mut a);
        let mut gate = compute.buffer(n * block.w1.rows()); // (n, hidden_dim)
        let mut up = compute.buffer(n * block.w3.rows()); // (n, hidden_dim)
        let gate_up = [(&block.w1, &mut gate[..]), (&block.w3, &mut up[..])];
        ops::linear_many(compute, &a, gate_up);
        ops::swiglu(compute, &mut gate, &up);
        ops::linear(compute, &block.w2, &gate, &mut a);
        block.add_output(compute, &block.ffn_norm, eps, &a, x);
    }
}

impl Block {
    /// The input of attention or feed-forward for x (n, dim).
    fn norm_input(&self, compute: &Compute, x: &[f32], norm: &[f32], eps: f32, out: &mut [f32]) {
        match self.norm_after {
            true => out.copy_from_slice(x),
            false => ops::rms_norm(compute, x, norm, eps, out),
        }
    }

    /// Adds the output of attention or feed-forward (n, dim) to x.
    fn add_output(&self, compute: &Compute, norm: &[f32], eps: f32, output: &[f32], x: &mut [f32]) {
        if !self.norm_after {
            return ops::add_assign(compute, x, output);
        }
        let mut normed = compute.buffer(output.len());
        ops::rms_norm(compute, output, norm, eps, &mut normed);
        ops::add_assign(compute, x, &normed);
    }

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
        let vector = |name: &str, dim| vector(checkpoint, &format!("{at}.{name}"), dim);
        let norm = |name: &str| vector(name, dim);
        let variant = config.variant.as_deref();
        let qk_norm = variant.and_then(|v| v.qk_norm).map(|norm| match norm {
            QkNorm::Row => [("norm_q", q_dim), ("norm_k", kv_dim)],
            QkNorm::Head => [("norm_q", config.head_dim), ("norm_k", config.head_dim)],
        });
        let bias = variant.filter(|v| v.attention_bias);
        let bias = bias.map(|_| [("bq", q_dim), ("bk", kv_dim), ("bv", kv_dim), ("bo", dim)]);
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
            qk_norm: match qk_norm {
                Some([(q, q_dim), (k, k_dim)]) => Some([vector(q, q_dim)?, vector(k, k_dim)?]),
                None => None,
            },
            bias: match bias {
                Some([(q, q_dim), (k, k_dim), (v, v_dim), (o, o_dim)]) => Some([
                    vector(q, q_dim)?,
                    vector(k, k_dim)?,
                    vector(v, v_dim)?,
                    vector(o, o_dim)?,
                ]),
                None => None,
            },
            norm_after: variant.is_some_and(|v| v.norm_after),
            is_sliding: variant.is_some_and(|v| v.windows[layer].is_some()),
        })
    }
}
