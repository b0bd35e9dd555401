//! Importance of a matrix's columns: the mean square of the activations they are multiplied with while the model
//! reads a text. An error in a weight shows in the output in proportion to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use blt::checkpoint::Checkpoint;
use blt::error::{Error, Result};
use blt::ops::{Compute, Matrix};
use blt::{Model, Session, SessionOptions};

use crate::convert::Importance;

/// Bytes that each session reads.
const WINDOW: usize = 512;

/// A column never weighs less than this share of the mean: a text of moderate length says little of
/// columns that it hardly uses.
const LEAST: f32 = 0.05;

#[derive(Default)]
struct Sums {
    n_rows: u64,
    squares: Vec<f64>, // (cols)
}

/// Mean squares of the inputs of every matrix, scaled to a mean of 1, by the matrix's name.
///
/// # Errors
/// As running the model; [`Error::Argument`] for an empty text.
pub fn importance(
    checkpoint: &Checkpoint,
    text: &[u8],
    threads: usize,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<Importance> {
    if text.is_empty() {
        return Err(Error::argument(
            "calibrate",
            "expected a text, found an empty file",
        ));
    }
    // A matrix is known by where its bytes are.
    let address = |bytes: &[u8]| bytes.as_ptr() as usize;
    let sums: Arc<Mutex<HashMap<usize, Sums>>> = Arc::default();
    let shared = Arc::clone(&sums);
    let observe = move |w: &Matrix, x: &[f32]| {
        let Ok(mut sums) = shared.lock() else { return };
        let sums = sums.entry(address(w.tensor().bytes())).or_default();
        sums.squares.resize(w.cols(), 0.0);
        for row in x.chunks_exact(w.cols()) {
            sums.n_rows += 1;
            for (sum, x) in sums.squares.iter_mut().zip(row) {
                *sum += f64::from(x * x);
            }
        }
    };
    let compute = Compute::new(Some(threads), None)?.observed(observe);
    let model = Model::load(checkpoint, compute)?;
    let window = WINDOW
        .min(model.config().max_bytes.saturating_sub(1))
        .max(1);
    let options = SessionOptions {
        entropies: model.has_entropy_model(),
        ..SessionOptions::default()
    };
    let mut done = 0;
    for piece in text.chunks(window) {
        let mut session = Session::new(&model, options.clone())?;
        session.feed(piece)?;
        done += piece.len() as u64;
        progress(done)?;
    }

    let sums = sums
        .lock()
        .map_err(|_| Error::argument("calibrate", "a thread failed"))?;
    let scaled = |sums: &Sums| -> Option<Vec<f32>> {
        let mean = sums.squares.iter().sum::<f64>() / sums.squares.len() as f64;
        let weight = |&s: &f64| ((s / mean) as f32).max(LEAST);
        (mean > 0.0 && mean.is_finite()).then(|| sums.squares.iter().map(weight).collect())
    };
    Ok((checkpoint.model_tensors())
        .filter(|(of, _)| of.role.is_multiplied())
        .filter_map(|(of, tensor)| {
            let sums = sums.get(&address(tensor.bytes()))?;
            Some((of.name.clone(), scaled(sums)?))
        })
        .collect())
}
