//! A stack of transformer layers, forward and backward: `model/block.rs` for training.

use std::ops::Range;

use super::attention::Causal;
use super::differential::{Differential, DifferentialTape};
use super::float::{Float, add_assign};
use super::grads::Grads;
use super::matmul::{Accumulate, MatmulOptions};
use super::ops::{Angles, rms_norm, rms_norm_again, swiglu, swiglu_backward};
use super::params::{ParamId, Params};
use super::pass::Pass;
use super::pooled_vec::PooledVec;
use crate::config::TransformerConfig;
use crate::ops::Heads;

/// The rows of some sequences, one after the other, as a stack sees them.
#[derive(Debug)]
pub struct AttentionRows<F> {
    /// The rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    positions: Vec<u32>,      // of each row, within its sequence
    visible_from: Vec<usize>, // the first row each row sees
    angles: Angles<F>,
}

impl<F: Float> AttentionRows<F> {
    /// Sequences of these lengths. Row `i` of sequence `s` sees back to the window's edge or to row
    /// `barrier(s, i)` of its sequence, whichever is later.
    pub fn new(
        config: &TransformerConfig,
        lengths: &[usize],
        barrier: impl Fn(usize, usize) -> usize,
    ) -> Self {
        let window = config.window.unwrap_or(usize::MAX);
        let mut rows = AttentionRows {
            sequences: Vec::with_capacity(lengths.len()),
            positions: Vec::new(),
            visible_from: Vec::new(),
            angles: Angles::new(
                lengths.iter().copied().max().unwrap_or(0),
                config.key_dim(),
                config.rope_theta,
            ),
        };
        let mut first = 0;
        for (s, &n) in lengths.iter().enumerate() {
            rows.sequences.push(first..first + n);
            for i in 0..n {
                rows.positions.push(i as u32);
                let from = (i + 1).saturating_sub(window).max(barrier(s, i));
                rows.visible_from.push(first + from);
            }
            first += n;
        }
        rows
    }

    /// Number of rows.
    pub fn n(&self) -> usize {
        self.positions.len()
    }
}

/// Where the tensors of one layer are.
#[derive(Debug, Clone)]
struct Block {
    attention_norm: ParamId,
    wq: ParamId,
    wk: ParamId,
    wv: ParamId,
    wo: ParamId,
    ffn_norm: ParamId,
    w1: ParamId,
    w2: ParamId,
    w3: ParamId,
    differential: Option<Differential>,
}

/// Layers of one shape.
#[derive(Debug, Clone)]
pub struct Stack {
    config: TransformerConfig,
    blocks: Vec<Block>,
    site: u64,
}

/// Values of one layer that its backward pass needs. n rows.
#[derive(Debug)]
pub struct BlockTape<F: Float> {
    x: PooledVec<F>,    // (n, dim)
    inv1: PooledVec<F>, // (n)
    q: PooledVec<F>,    // (n, n_heads * head_dim), turned
    k: PooledVec<F>,    // (n, n_kv_heads * head_dim), turned
    v: PooledVec<F>,    // (n, n_kv_heads * head_dim)
    o: PooledVec<F>,    // (n, n_heads * head_dim), what goes into wo
    lse: PooledVec<F>,  // (n, softmaxes)
    differential: Option<DifferentialTape<F>>,
    x2: PooledVec<F>,   // (n, dim)
    inv2: PooledVec<F>, // (n)
    gate: PooledVec<F>, // (n, hidden_dim)
    up: PooledVec<F>,   // (n, hidden_dim)
}

impl Stack {
    /// The layers `{part}.layers.*`. `site` identifies its dropout among the stacks.
    pub fn new<F: Float>(
        params: &Params<F>,
        part: &str,
        config: &TransformerConfig,
        site: u64,
    ) -> Self {
        let block = |l: usize| {
            let prefix = format!("{part}.layers.{l}");
            let id = |name: &str| params.id(&format!("{prefix}.{name}"));
            Block {
                differential: Differential::new(params, &prefix, l, config),
                attention_norm: id("attention_norm"),
                wq: id("wq"),
                wk: id("wk"),
                wv: id("wv"),
                wo: id("wo"),
                ffn_norm: id("ffn_norm"),
                w1: id("w1"),
                w2: id("w2"),
                w3: id("w3"),
            }
        };
        Stack {
            config: config.clone(),
            blocks: (0..config.n_layers).map(block).collect(),
            site,
        }
    }

    /// Shape of the stack.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    fn attention<'a, F>(&self, options: MatmulOptions, rows: &'a AttentionRows<F>) -> Causal<'a> {
        Causal {
            heads: Heads {
                n_heads: self.config.n_heads,
                n_kv_heads: self.config.n_kv_heads,
                head_dim: self.config.head_dim,
            },
            shares: 1 + usize::from(self.config.differential.is_some()),
            sequences: &rows.sequences,
            visible_from: &rows.visible_from,
            precision: options.precision,
        }
    }

    /// Layer `layer` on x (n, dim).
    pub fn forward<F: Float>(
        &self,
        pass: Pass<'_, F>,
        layer: usize,
        rows: &AttentionRows<F>,
        x: PooledVec<F>,
    ) -> (PooledVec<F>, BlockTape<F>) {
        let b = &self.blocks[layer];
        let eps = self.config.norm_eps;
        let site = self.site + 2 * layer as u64;

        let (a, inv1) = rms_norm(&x, &pass.params.get(b.attention_norm).value.values(), eps);
        let mut q = pass.linear(b.wq, &a);
        let mut k = pass.linear(b.wk, &a);
        let v = pass.linear(b.wv, &a);
        rows.angles.turn(&mut q, &rows.positions, false);
        rows.angles.turn(&mut k, &rows.positions, false);
        let (o, lse) = self.attention(pass.options, rows).forward(&q, &k, &v);
        let (o, differential) = match &b.differential {
            None => (o, None),
            Some(d) => {
                let (o, tape) = d.forward(pass, o);
                (o, Some(tape))
            }
        };
        let mut x2 = pass.linear(b.wo, &o);
        pass.dropout(site, &mut x2);
        add_assign(&mut x2, &x);

        let (f, inv2) = rms_norm(&x2, &pass.params.get(b.ffn_norm).value.values(), eps);
        let gate = pass.linear(b.w1, &f);
        let up = pass.linear(b.w3, &f);
        let mut y = pass.linear(b.w2, &swiglu(&gate, &up));
        pass.dropout(site + 1, &mut y);
        add_assign(&mut y, &x2);
        let tape = BlockTape {
            x,
            inv1,
            q,
            k,
            v,
            o,
            lse,
            differential,
            x2,
            inv2,
            gate,
            up,
        };
        (y, tape)
    }

    /// Backward pass: the gradient d (n, dim) of the output becomes that of the input.
    pub fn backward<F: Float>(
        &self,
        pass: Pass<'_, F>,
        layer: usize,
        rows: &AttentionRows<F>,
        tape: BlockTape<F>,
        d: &mut [F],
        grads: &mut Grads<F>,
    ) {
        let b = &self.blocks[layer];
        let site = self.site + 2 * layer as u64;
        let norm = |id| pass.params.get(id).value.values();
        // What a branch gets of the gradient: all of it, less what dropout took.
        let branch = |d: &[F], site| {
            pass.dropout
                .filter(|dropout| dropout.p > 0.0)
                .map(|dropout| {
                    let mut d = PooledVec::from(d);
                    dropout.apply(site, &mut d);
                    d
                })
        };

        // x + w2(swiglu(w1 f, w3 f)), f = norm(x2)
        let BlockTape {
            mut gate, mut up, ..
        } = tape;
        let h = swiglu(&gate, &up);
        let mut dh = PooledVec::any(h.len());
        let dropped = branch(d, site + 1);
        let dy = dropped.as_deref().unwrap_or(d);
        pass.linear_backward(b.w2, &h, dy, Some((Accumulate::Overwrite, &mut dh)), grads);
        swiglu_backward(&mut gate, &mut up, &dh);
        let f = rms_norm_again(&tape.x2, &norm(b.ffn_norm), &tape.inv2);
        let mut df = PooledVec::any(f.len());
        pass.linear_backward(
            b.w1,
            &f,
            &gate,
            Some((Accumulate::Overwrite, &mut df)),
            grads,
        );
        pass.linear_backward(b.w3, &f, &up, Some((Accumulate::Add, &mut df)), grads);
        pass.norm_backward(b.ffn_norm, &tape.x2, &tape.inv2, &df, d, grads);

        // x + wo(attention(norm(x)))
        let mut d_o = PooledVec::any(tape.o.len());
        let dropped = branch(d, site);
        let dy = dropped.as_deref().unwrap_or(d);
        pass.linear_backward(
            b.wo,
            &tape.o,
            dy,
            Some((Accumulate::Overwrite, &mut d_o)),
            grads,
        );
        let (d_o, o) = match (&b.differential, &tape.differential) {
            (Some(differential), Some(of)) => {
                (differential.backward(pass, of, d_o, grads), &of.both)
            }
            _ => (d_o, &tape.o),
        };
        let (mut dq, mut dk, dv) = (self.attention(pass.options, rows))
            .backward(&tape.q, &tape.k, &tape.v, o, &tape.lse, &d_o);
        rows.angles.turn(&mut dq, &rows.positions, true);
        rows.angles.turn(&mut dk, &rows.positions, true);
        let a = rms_norm_again(&tape.x, &norm(b.attention_norm), &tape.inv1);
        let mut da = df;
        pass.linear_backward(b.wq, &a, &dq, Some((Accumulate::Overwrite, &mut da)), grads);
        pass.linear_backward(b.wk, &a, &dk, Some((Accumulate::Add, &mut da)), grads);
        pass.linear_backward(b.wv, &a, &dv, Some((Accumulate::Add, &mut da)), grads);
        pass.norm_backward(b.attention_norm, &tape.x, &tape.inv1, &da, d, grads);
    }
}
