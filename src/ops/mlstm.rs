//! The mLSTM cell over rows of several sequences: steps one after the other, heads on all threads.

use blt_kernels::{MlstmGates, MlstmHead, gated_norm as gated_norm_kernel, mlstm_step};

use super::Compute;

/// Shape of the heads of an mLSTM layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlstmHeads {
    /// Number of heads.
    pub n_heads: usize,
    /// Width of a query and a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

/// What a layer is given for each of n rows. Heads follow each other in a row.
#[derive(Debug, Clone, Copy)]
pub struct MlstmSteps<'a> {
    /// Queries, (n, n_heads * key_dim).
    pub q: &'a [f32],
    /// Keys, (n, n_heads * key_dim).
    pub k: &'a [f32],
    /// Values, (n, n_heads * value_dim).
    pub v: &'a [f32],
    /// Input gates before their activation, (n, n_heads).
    pub input: &'a [f32],
    /// Forget gates before their activation, (n, n_heads).
    pub forget: &'a [f32],
}

impl MlstmHeads {
    /// Values that one head carries from step to step: its memory, its normalizer, its maximum and padding.
    fn head_len(self) -> usize {
        (self.key_dim * self.value_dim + self.key_dim + 1).next_multiple_of(16)
    }

    /// Values that a layer carries from step to step, all zero at first.
    pub fn state_len(self) -> usize {
        self.n_heads * self.head_len()
    }

    /// A head's parts.
    fn head(self, state: &mut [f32]) -> MlstmHead<'_> {
        let (memory, rest) = state.split_at_mut(self.key_dim * self.value_dim);
        let (normalizer, rest) = rest.split_at_mut(self.key_dim);
        MlstmHead {
            memory,
            normalizer,
            max: &mut rest[0],
        }
    }
}

/// The steps of one head in one sequence.
struct Task<'a> {
    first: usize,
    n_rows: usize,
    head: usize,
    state: &'a mut [f32],
    out: &'a mut [f32], // (n_rows, value_dim)
}

impl Task<'_> {
    fn run(&mut self, compute: &Compute, heads: MlstmHeads, steps: &MlstmSteps<'_>) {
        let MlstmHeads {
            n_heads,
            key_dim,
            value_dim,
        } = heads;
        for (row, out) in (self.first..).zip(self.out.chunks_exact_mut(value_dim)) {
            let head = row * n_heads + self.head;
            let gates = MlstmGates {
                input: steps.input[head],
                forget: steps.forget[head],
            };
            let (q, k) = (
                &steps.q[head * key_dim..][..key_dim],
                &steps.k[head * key_dim..][..key_dim],
            );
            let v = &steps.v[head * value_dim..][..value_dim];
            mlstm_step(compute.isa(), heads.head(self.state), gates, q, k, v, out);
        }
    }
}

/// Runs the cell over the rows of some sequences: a number of rows of each, in order, with the state that it carries
/// ([`MlstmHeads::state_len`] values). Writes what the heads read from their memories to out (n, n_heads * value_dim).
pub fn mlstm(
    compute: &Compute,
    heads: MlstmHeads,
    runs: &mut [(usize, &mut [f32])],
    steps: MlstmSteps<'_>,
    out: &mut [f32],
) {
    let MlstmHeads {
        n_heads,
        key_dim,
        value_dim,
    } = heads;
    let n: usize = runs.iter().map(|(n_rows, _)| n_rows).sum();
    assert_eq!(out.len(), n * n_heads * value_dim, "outputs");
    let most = runs.iter().map(|(n_rows, _)| *n_rows).max().unwrap_or(0);
    let mut cells = compute.buffer(out.len()); // of each sequence (n_heads, n_rows, value_dim)
    let (mut rest, mut first) = (&mut cells[..], 0);
    let mut tasks = Vec::with_capacity(runs.len() * n_heads);
    for (n_rows, state) in runs.iter_mut() {
        assert_eq!(state.len(), heads.state_len(), "state");
        for (head, state) in state.chunks_exact_mut(heads.head_len()).enumerate() {
            let (cells, others) = rest.split_at_mut(*n_rows * value_dim);
            rest = others;
            tasks.push(Task {
                first,
                n_rows: *n_rows,
                head,
                state,
                out: cells,
            });
        }
        first += *n_rows;
    }
    compute.each(&mut tasks, most * 2 * key_dim * value_dim, |_, task| {
        task.run(compute, heads, &steps)
    });
    for task in tasks {
        debug_assert_eq!(task.out.len(), task.n_rows * value_dim);
        for (row, cell) in (task.first..).zip(task.out.chunks_exact(value_dim)) {
            out[(row * n_heads + task.head) * value_dim..][..value_dim].copy_from_slice(cell);
        }
    }
}

/// The norm of each head and its output gate, in place: x, gate (n, n_heads * value_dim), weight (n_heads * value_dim).
pub fn gated_norm(
    compute: &Compute,
    heads: MlstmHeads,
    x: &mut [f32],
    weight: &[f32],
    gate: &[f32],
    eps: f32,
) {
    let (dim, value_dim) = (weight.len(), heads.value_dim);
    assert_eq!(x.len(), gate.len());
    compute.rows(x, dim, 16, |first, rows| {
        for (row, x) in (first..).zip(rows.chunks_exact_mut(dim)) {
            let gate = &gate[row * dim..][..dim];
            let heads = x
                .chunks_exact_mut(value_dim)
                .zip(weight.chunks_exact(value_dim));
            for ((x, weight), gate) in heads.zip(gate.chunks_exact(value_dim)) {
                gated_norm_kernel(compute.isa(), x, weight, gate, eps);
            }
        }
    });
}
