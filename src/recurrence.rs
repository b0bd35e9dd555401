//! The recurrent states of a stack of mLSTM layers, and how they go back.
//!
//! A recurrence cannot run backwards. So some earlier states of the layers are kept (*snapshots*), and the inputs of every
//! layer since then (the *log*): going back restores a snapshot and repeats the steps after it, which gives the same
//! bits. The log reaches back one to two intervals. Older snapshots are far apart and have no log: the caller runs the
//! layers again from one of them.

use std::io::{self, Write};
use std::sync::Arc;

use crate::cache::RowStore;
use crate::ops::{self, Compute, MlstmHeads, MlstmSteps};
use crate::wire::{ReadError, Reader, Writer};

/// Steps between snapshots with a log, at least. At the released shapes a snapshot takes as much memory as the log of 42
/// (width 2048) or 85 steps (4096).
const INTERVAL: usize = 64;

/// Steps between older snapshots, at least.
const FAR_INTERVAL: usize = 1024;

/// The states of a stack's layers. A clone shares them until one side takes another step.
#[derive(Debug, Clone)]
pub struct Recurrence {
    heads: MlstmHeads,
    n_steps: usize,
    /// The state of each layer: [`MlstmHeads::state_len`] values.
    layers: Vec<Arc<Vec<f32>>>,
    /// In ascending order of steps.
    snapshots: Vec<Snapshot>,
    /// The inputs of each layer: a row of keys, values, input gates and forget gates for each step.
    log: Vec<RowStore>,
}

/// The layers' states after `n_steps`.
#[derive(Debug, Clone)]
struct Snapshot {
    n_steps: usize,
    layers: Vec<Arc<Vec<f32>>>,
    /// Whether it was made for one step that may be undone, and is dropped once that is decided.
    is_brief: bool,
}

impl Recurrence {
    /// The states before the first step.
    pub fn new(heads: MlstmHeads, n_layers: usize) -> Self {
        let MlstmHeads {
            n_heads,
            key_dim,
            value_dim,
        } = heads;
        let zeros = Arc::new(vec![0.0; heads.state_len()]);
        let log_dim = n_heads * (key_dim + value_dim + 2);
        Recurrence {
            heads,
            n_steps: 0,
            layers: vec![zeros; n_layers],
            snapshots: Vec::new(),
            log: vec![RowStore::new(log_dim); n_layers],
        }
    }

    /// Steps taken.
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// The first step in the log: [`Recurrence::rewind`] reaches back to the snapshot there.
    pub fn oldest(&self) -> usize {
        self.log.first().map_or(0, RowStore::first)
    }

    /// Keeps the present states as a snapshot if the last one is old. Called before each pass.
    pub fn snapshot(&mut self) {
        let last = self.lasting().next_back();
        if last.is_none_or(|last| self.n_steps >= last + INTERVAL) {
            self.push_snapshot(false);
        }
    }

    /// Keeps the present states until [`Recurrence::release`], so that [`Recurrence::rewind`] undoes the next steps at
    /// once. Called before a step that may have to be undone.
    pub fn mark(&mut self) {
        self.push_snapshot(true);
    }

    /// Drops the states that [`Recurrence::mark`] kept. Called once the marked steps are undone or certain.
    pub fn release(&mut self) {
        self.snapshots.retain(|s| !s.is_brief);
    }

    fn push_snapshot(&mut self, is_brief: bool) {
        self.snapshots.push(Snapshot {
            n_steps: self.n_steps,
            layers: self.layers.clone(),
            is_brief,
        });
    }

    /// Steps of the snapshots that stay.
    fn lasting(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.snapshots
            .iter()
            .filter(|s| !s.is_brief)
            .map(|s| s.n_steps)
    }

    /// A layer's state, for the caller to update with these steps, which are added to the log.
    pub fn begin_layer(&mut self, layer: usize, steps: MlstmSteps<'_>) -> &mut [f32] {
        let MlstmHeads {
            n_heads,
            key_dim,
            value_dim,
        } = self.heads;
        let log = &mut self.log[layer];
        for row in 0..steps.input.len() / n_heads {
            let (keys, values) = (n_heads * key_dim, n_heads * value_dim);
            log.push_pieces(&[
                &steps.k[row * keys..][..keys],
                &steps.v[row * values..][..values],
                &steps.input[row * n_heads..][..n_heads],
                &steps.forget[row * n_heads..][..n_heads],
            ]);
        }
        Arc::make_mut(&mut self.layers[layer]).as_mut_slice()
    }

    /// Counts `n` more steps, which every layer has taken.
    pub fn advance(&mut self, n: usize) {
        self.n_steps += n;
        debug_assert!(self.log.iter().all(|log| log.end() == self.n_steps));
    }

    /// Goes back to `n_steps`. Called when the sequence goes back. Returns `false`, leaving everything as it is, if
    /// the log does not reach back that far.
    pub fn rewind(&mut self, compute: &Compute, n_steps: usize) -> bool {
        assert!(n_steps <= self.n_steps, "steps ahead");
        if n_steps == self.n_steps {
            return true;
        }
        let logged = self.oldest();
        let reaches =
            |snapshot: &Snapshot| snapshot.n_steps <= n_steps && snapshot.n_steps >= logged;
        let Some(snapshot) = self.snapshots.iter().rev().find(|s| reaches(s)) else {
            return false;
        };
        let from = snapshot.n_steps;
        self.layers.clone_from(&snapshot.layers);
        self.truncate(n_steps);
        for (state, log) in self.layers.iter_mut().zip(&self.log) {
            if from < n_steps {
                repeat(
                    compute,
                    self.heads,
                    Arc::make_mut(state).as_mut_slice(),
                    log.rows(from..n_steps),
                );
            }
        }
        true
    }

    /// Goes back to the latest snapshot of at most `n_steps`, or to the start, and returns its number of steps. Called
    /// when [`Recurrence::rewind`] cannot reach `n_steps`.
    pub fn rewind_to_snapshot(&mut self, n_steps: usize) -> usize {
        let snapshot = self.snapshots.iter().rev().find(|s| s.n_steps <= n_steps);
        let from = snapshot.map_or(0, |s| s.n_steps);
        match snapshot {
            Some(snapshot) => self.layers.clone_from(&snapshot.layers),
            None => *self = Recurrence::new(self.heads, self.layers.len()),
        }
        self.truncate(from);
        from
    }

    /// Drops everything after `n_steps`.
    fn truncate(&mut self, n_steps: usize) {
        self.n_steps = n_steps;
        self.snapshots.retain(|s| s.n_steps <= n_steps);
        for log in &mut self.log {
            match log.first() <= n_steps {
                true => log.rewind(n_steps),
                false => log.clear(n_steps),
            }
        }
    }

    /// Drops what going back does not need: a few hundred steps at once, further by running the layers again. Called
    /// after each pass.
    pub fn evict(&mut self) {
        let Some(kept_from) = self.lasting().rev().nth(1) else {
            return;
        };
        for log in &mut self.log {
            log.evict(kept_from);
        }
        let mut last_kept = None;
        self.snapshots.retain(|s| {
            let keep = s.is_brief
                || s.n_steps >= kept_from
                || last_kept.is_none_or(|last| s.n_steps >= last + FAR_INTERVAL);
            if keep {
                last_kept = Some(s.n_steps);
            }
            keep
        });
    }

    /// Bytes of memory, including what forks share.
    pub fn n_bytes(&self) -> usize {
        let state = self.layers.len() * self.heads.state_len() * size_of::<f32>();
        let log: usize = self.log.iter().map(RowStore::n_bytes).sum();
        (1 + self.snapshots.len()) * state + log
    }

    /// Writes the present states.
    pub fn save(&self, out: &mut Writer<impl Write>) -> io::Result<()> {
        self.layers.iter().try_for_each(|state| out.f32s(state))
    }

    /// Reads the output of [`Recurrence::save`], the states after `n_steps`.
    ///
    /// # Errors
    /// If the input is short or a value is not finite.
    pub fn load(&mut self, n_steps: usize, input: &mut Reader<'_>) -> Result<(), ReadError> {
        for state in &mut self.layers {
            let values = input.f32s("recurrent state", self.heads.state_len())?;
            if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
                return Err(format!(
                    "recurrent state: expected finite numbers, found {bad}"
                ));
            }
            *state = Arc::new(values);
        }
        self.snapshots.clear();
        self.truncate(n_steps);
        self.log.iter_mut().for_each(|log| log.clear(n_steps));
        self.snapshot();
        Ok(())
    }
}

/// Takes the steps of a layer again: `rows` of its log.
fn repeat(compute: &Compute, heads: MlstmHeads, state: &mut [f32], rows: &[f32]) {
    let MlstmHeads {
        n_heads,
        key_dim,
        value_dim,
    } = heads;
    let widths = [n_heads * key_dim, n_heads * value_dim, n_heads, n_heads];
    let n = rows.len() / widths.iter().sum::<usize>();
    let mut columns = widths.map(|width| compute.empty(n * width));
    let mut rest = rows;
    for _ in 0..n {
        for (column, width) in columns.iter_mut().zip(widths) {
            let (values, others) = rest.split_at(width);
            column.extend(values.iter().copied());
            rest = others;
        }
    }
    let [k, v, input, forget] = &columns;
    let steps = MlstmSteps {
        q: k, // what is read has no effect
        k,
        v,
        input,
        forget,
    };
    let mut out = compute.buffer(v.len());
    ops::mlstm(compute, heads, &mut [(n, state)], steps, &mut out);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: MlstmHeads = MlstmHeads {
        n_heads: 3,
        key_dim: 4,
        value_dim: 8,
    };

    fn compute() -> Compute {
        Compute::new(Some(2), None).unwrap().split_everything()
    }

    /// Inputs of the steps `from..to`, the same for each position whatever the range.
    fn step(r: &mut Recurrence, compute: &Compute, from: usize, to: usize) {
        let values = |seed: usize, width: usize| -> Vec<f32> {
            let value = |p: usize, c: usize| {
                (((p * 31 + c * 17 + seed * 7) % 97) as f32 / 48.5 - 1.0) * 3.0
            };
            (from..to)
                .flat_map(|p| (0..width).map(move |c| value(p, c)))
                .collect()
        };
        r.snapshot();
        for layer in 0..r.layers.len() {
            let (q, k) = (values(layer, 12), values(layer + 10, 12));
            let (v, input, forget) = (
                values(layer + 20, 24),
                values(layer + 30, 3),
                values(layer + 40, 3),
            );
            let steps = MlstmSteps {
                q: &q,
                k: &k,
                v: &v,
                input: &input,
                forget: &forget,
            };
            let mut out = vec![0.0; v.len()];
            let state = r.begin_layer(layer, steps);
            ops::mlstm(compute, HEADS, &mut [(to - from, state)], steps, &mut out);
        }
        r.advance(to - from);
        r.evict();
    }

    fn states(r: &Recurrence) -> Vec<u32> {
        r.layers
            .iter()
            .flat_map(|state| state.iter().map(|v| v.to_bits()))
            .collect()
    }

    #[test]
    fn going_back_gives_the_bits_of_a_fresh_run() {
        let compute = compute();
        let mut straight = vec![states(&Recurrence::new(HEADS, 2))];
        let mut fresh = Recurrence::new(HEADS, 2);
        for p in 0..700 {
            step(&mut fresh, &compute, p, p + 1);
            straight.push(states(&fresh));
        }
        for chunk in [1, 7, 64, 100, 256] {
            let mut r = Recurrence::new(HEADS, 2);
            let run = |r: &mut Recurrence, to: usize| {
                while r.n_steps() < to {
                    let end = to.min(r.n_steps() + chunk);
                    step(r, &compute, r.n_steps(), end);
                }
            };
            run(&mut r, 700);
            assert_eq!(states(&r), straight[700], "chunks of {chunk}");
            for back in [699, 690, 650, 640, 636] {
                let mut fork = r.clone();
                assert!(
                    fork.rewind(&compute, back),
                    "chunks of {chunk}, back to {back}"
                );
                assert_eq!(
                    states(&fork),
                    straight[back],
                    "chunks of {chunk}, back to {back}"
                );
                run(&mut fork, 700);
                assert_eq!(
                    states(&fork),
                    straight[700],
                    "chunks of {chunk}, back to {back} and on"
                );
            }
            assert_eq!(states(&r), straight[700], "forks leave it alone");
            let from = r.rewind_to_snapshot(500);
            assert!(from <= 500, "{from}");
            assert_eq!(states(&r), straight[from]);
            run(&mut r, 700);
            assert_eq!(
                states(&r),
                straight[700],
                "chunks of {chunk}, from a snapshot without a log"
            );
        }
    }

    #[test]
    fn brief_snapshots_leave_the_others_alone() {
        let compute = compute();
        let mut r = Recurrence::new(HEADS, 2);
        for p in 0..300 {
            step(&mut r, &compute, p, p + 1);
            let before = states(&r);
            r.mark();
            step(&mut r, &compute, p + 1, p + 2);
            assert!(r.rewind(&compute, p + 1));
            r.release();
            assert_eq!(states(&r), before, "step {p}");
        }
        let log = r.log[0].end() - r.log[0].first();
        assert!(
            (INTERVAL..=2 * INTERVAL).contains(&log),
            "a log of {log} steps"
        );
        assert_eq!(r.snapshots.iter().filter(|s| s.is_brief).count(), 0);
    }

    #[test]
    fn memory_does_not_grow_with_every_step() {
        let compute = compute();
        let mut r = Recurrence::new(HEADS, 2);
        for p in 0..5000 {
            step(&mut r, &compute, p, p + 1);
        }
        assert!(
            r.snapshots.len() <= 5000 / FAR_INTERVAL + 3,
            "{} snapshots",
            r.snapshots.len()
        );
        let log = r.log[0].end() - r.log[0].first();
        assert!(
            (INTERVAL..=2 * INTERVAL).contains(&log),
            "a log of {log} steps"
        );
    }
}
