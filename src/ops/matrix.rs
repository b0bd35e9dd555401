//! A weight matrix.

use blt_kernels::{Terms, Weights};

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A row-major weight matrix (out, in), or a table of rows, in the element type of its file.
#[derive(Debug, Clone)]
pub struct Matrix {
    tensor: Tensor,
    rows: usize,
    cols: usize,
    terms: Terms,
}

impl Matrix {
    /// A two-dimensional tensor as a matrix.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the tensor does not have two dimensions.
    pub fn new(name: &str, tensor: Tensor) -> Result<Self> {
        let &[rows, cols] = tensor.shape() else {
            return Err(Error::tensor(
                name,
                format!("expected two dimensions, found {:?}", tensor.shape()),
            ));
        };
        Ok(Matrix {
            tensor,
            rows,
            cols,
            terms: Terms::One,
        })
    }

    /// Uses two terms for the activations if the weights are quantised: 15 bits instead of 8. That costs next to nothing
    /// for a single row, and twice the time for many rows.
    pub fn with_two_terms(self) -> Self {
        let terms = Terms::Two;
        Matrix { terms, ..self }
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The weights in the form that the kernels take.
    pub(super) fn weights(&self) -> Weights<'_> {
        let bytes = self.tensor.bytes();
        match self.tensor.dtype() {
            DType::F32 => Weights::F32(bytes),
            DType::F16 => Weights::F16(bytes),
            DType::Bf16 => Weights::Bf16(bytes),
            DType::Bf12 => Weights::Bf12(bytes),
            DType::Tiles(format) | DType::Table(format) => Weights::Blocks(format, bytes),
        }
    }

    /// Terms of the activations, if the weights are quantised.
    pub(super) fn terms(&self) -> Terms {
        self.terms
    }
}
