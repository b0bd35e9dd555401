//! Fetching weights from a checkpoint: matrices as they are stored, vectors widened to f32.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::ops::Matrix;
use crate::tensor::DType;

/// The matrix `name`, (rows, cols), to be multiplied with.
pub fn matrix(checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
    let tensor = checkpoint.tensor(name, &[rows, cols])?;
    if let DType::Table(_) = tensor.dtype() {
        return Err(Error::tensor(
            name,
            "expected a matrix to multiply with (arrangement \"tiles\"), found a table",
        ));
    }
    Matrix::new(name, tensor)
}

/// The table `name`, (rows, cols), of which rows are looked up.
pub fn table(checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
    Matrix::new(name, checkpoint.tensor(name, &[rows, cols])?)
}

/// The vector `name`, such as the gain of a norm, (dim). A few kilobytes, so it is copied, and
/// checked.
pub fn vector(checkpoint: &Checkpoint, name: &str, dim: usize) -> Result<Vec<f32>> {
    let values = checkpoint.tensor(name, &[dim])?.to_f32_vec();
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(values),
        Some(v) => Err(Error::tensor(
            name,
            format!("expected finite numbers, found {v}"),
        )),
    }
}
