//! Local layers with a memory instead of windowed attention: RMSNorm, mLSTM cell, RMSNorm, SwiGLU.
//!
//! Pre-norm. A layer reads a byte at a fixed cost, however long the text is.

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::config::TransformerConfig;
use crate::error::Result;
use crate::model::weights::{matrix, vector};
use crate::ops::{self, Compute, Matrix, MlstmHeads, MlstmSteps};
use crate::recurrence::Recurrence;

/// Epsilon of the norm of each head's output.
const HEAD_NORM_EPS: f32 = 1e-6;

/// A stack of mLSTM layers with one shape.
#[derive(Debug)]
pub struct MlstmStack {
    /// Shape of the layers: see [`BolmoConfig`](crate::config::BolmoConfig).
    pub config: TransformerConfig,
    layers: Vec<Layer>,
}

/// One layer. Matrices are row-major (out, in); keys are half as wide as values.
#[derive(Debug)]
struct Layer {
    cell_norm: Vec<f32>, // (dim)
    wq: Matrix,          // (dim / 2, dim)
    wk: Matrix,          // (dim / 2, dim)
    wv: Matrix,          // (dim, dim)
    wg: Matrix,          // (dim, dim), the output gate
    wi: Matrix,          // (n_heads, dim), the input gates
    bi: Vec<f32>,        // (n_heads)
    wf: Matrix,          // (n_heads, dim), the forget gates
    bf: Vec<f32>,        // (n_heads)
    head_norm: Vec<f32>, // (dim)
    wo: Matrix,          // (dim, dim)
    ffn_norm: Vec<f32>,  // (dim)
    w1: Matrix,          // (hidden_dim, dim)
    w2: Matrix,          // (dim, hidden_dim)
    w3: Matrix,          // (hidden_dim, dim)
}

impl MlstmStack {
    /// Takes the layers `{part}.layers.*` from a checkpoint.
    pub fn load(checkpoint: &Checkpoint, part: &str, config: &TransformerConfig) -> Result<Self> {
        let load = |l| Layer::load(checkpoint, &format!("{part}.layers.{l}"), config);
        Ok(MlstmStack {
            config: config.clone(),
            layers: (0..config.n_layers).map(load).collect::<Result<_>>()?,
        })
    }

    /// Shape of the heads.
    pub fn heads(&self) -> MlstmHeads {
        MlstmHeads {
            n_heads: self.config.n_heads,
            key_dim: self.config.head_dim / 2,
            value_dim: self.config.head_dim,
        }
    }

    /// The recurrent states before the first step.
    pub fn new_recurrence(&self) -> Recurrence {
        Recurrence::new(self.heads(), self.layers.len())
    }

    /// Runs the layers on x (n, dim) in place. Each run is the number of rows of a sequence, in order, and its recurrence.
    pub fn forward(&self, compute: &Compute, runs: &mut [(usize, &mut Recurrence)], x: &mut [f32]) {
        if x.is_empty() {
            return;
        }
        runs.iter_mut()
            .for_each(|(_, recurrence)| recurrence.snapshot());
        for (number, layer) in self.layers.iter().enumerate() {
            layer.read(compute, self, number, runs, x);
            layer.feed_forward(compute, self.config.norm_eps, x);
        }
        for (n, recurrence) in runs {
            recurrence.advance(*n);
        }
    }
}

impl Layer {
    fn load(checkpoint: &Checkpoint, at: &str, config: &TransformerConfig) -> Result<Self> {
        let &TransformerConfig {
            dim,
            hidden_dim,
            n_heads,
            ..
        } = config;
        let matrix =
            |name: &str, rows, cols| matrix(checkpoint, &format!("{at}.{name}"), rows, cols);
        let vector = |name: &str, dim| vector(checkpoint, &format!("{at}.{name}"), dim);
        Ok(Layer {
            cell_norm: vector("cell_norm", dim)?,
            wq: matrix("wq", dim / 2, dim)?,
            wk: matrix("wk", dim / 2, dim)?,
            wv: matrix("wv", dim, dim)?,
            wg: matrix("wg", dim, dim)?,
            wi: matrix("wi", n_heads, dim)?,
            bi: vector("bi", n_heads)?,
            wf: matrix("wf", n_heads, dim)?,
            bf: vector("bf", n_heads)?,
            head_norm: vector("head_norm", dim)?,
            wo: matrix("wo", dim, dim)?,
            ffn_norm: vector("ffn_norm", dim)?,
            w1: matrix("w1", hidden_dim, dim)?,
            w2: matrix("w2", dim, hidden_dim)?,
            w3: matrix("w3", hidden_dim, dim)?,
        })
    }

    /// The cell: `x += Wo (sigmoid(gate) * norm(cell(norm(x))))`.
    fn read(
        &self,
        compute: &Compute,
        stack: &MlstmStack,
        number: usize,
        runs: &mut [(usize, &mut Recurrence)],
        x: &mut [f32],
    ) {
        let (dim, n_heads) = (stack.config.dim, stack.config.n_heads);
        let (n, heads) = (x.len() / dim, stack.heads());
        let mut a = compute.buffer(n * dim);
        ops::rms_norm(compute, x, &self.cell_norm, stack.config.norm_eps, &mut a);
        let mut q = compute.buffer(n * dim / 2); // (n, n_heads * key_dim)
        let mut k = compute.buffer(n * dim / 2); // (n, n_heads * key_dim)
        let mut v = compute.buffer(n * dim); // (n, n_heads * value_dim)
        let mut gate = compute.buffer(n * dim); // (n, n_heads * value_dim)
        let mut input = compute.buffer(n * n_heads);
        let mut forget = compute.buffer(n * n_heads);
        let products = [
            (&self.wq, &mut q[..]),
            (&self.wk, &mut k[..]),
            (&self.wv, &mut v[..]),
            (&self.wg, &mut gate[..]),
            (&self.wi, &mut input[..]),
            (&self.wf, &mut forget[..]),
        ];
        ops::linear_many(compute, &a, products);
        ops::add_bias(compute, &mut input, &self.bi);
        ops::add_bias(compute, &mut forget, &self.bf);

        let mut first = 0;
        let mut states = Vec::with_capacity(runs.len());
        for (n_rows, recurrence) in runs.iter_mut() {
            let rows = first..first + *n_rows;
            let steps = MlstmSteps {
                q: rows_of(&q, &rows, dim / 2),
                k: rows_of(&k, &rows, dim / 2),
                v: rows_of(&v, &rows, dim),
                input: rows_of(&input, &rows, n_heads),
                forget: rows_of(&forget, &rows, n_heads),
            };
            states.push((*n_rows, recurrence.begin_layer(number, steps)));
            first += *n_rows;
        }
        let steps = MlstmSteps {
            q: &q,
            k: &k,
            v: &v,
            input: &input,
            forget: &forget,
        };
        ops::mlstm(compute, heads, &mut states, steps, &mut a);
        ops::gated_norm(
            compute,
            heads,
            &mut a,
            &self.head_norm,
            &gate,
            HEAD_NORM_EPS,
        );
        ops::linear(compute, &self.wo, &a, &mut gate);
        ops::add_assign(compute, x, &gate);
    }

    /// The feed-forward half: `x += W2 (silu(W1 norm(x)) * W3 norm(x))`.
    fn feed_forward(&self, compute: &Compute, eps: f32, x: &mut [f32]) {
        let n = x.len() / self.ffn_norm.len();
        let mut a = compute.buffer(x.len());
        ops::rms_norm(compute, x, &self.ffn_norm, eps, &mut a);
        let mut gate = compute.buffer(n * self.w1.rows()); // (n, hidden_dim)
        let mut up = compute.buffer(n * self.w3.rows()); // (n, hidden_dim)
        ops::linear_many(
            compute,
            &a,
            [(&self.w1, &mut gate[..]), (&self.w3, &mut up[..])],
        );
        ops::swiglu(compute, &mut gate, &up);
        ops::linear(compute, &self.w2, &gate, &mut a);
        ops::add_assign(compute, x, &a);
    }
}

/// Rows of x (.., width).
fn rows_of<'a>(x: &'a [f32], rows: &Range<usize>, width: usize) -> &'a [f32] {
    &x[rows.start * width..rows.end * width]
}
