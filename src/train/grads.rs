//! Gradients: dense for most tensors, a few rows for the hash tables.

use rayon::prelude::*;

use super::float::{Float, add_assign, axpy, sum_of, vectorized};
use super::params::{Param, ParamId, Params};
use super::pooled_vec::PooledVec;

/// The gradient of one tensor.
#[derive(Debug, Clone)]
pub enum Grad<F: Float> {
    /// Nothing has been added.
    None,
    /// Every element.
    Dense(PooledVec<F>),
    /// Some rows.
    Sparse(RowGrad<F>),
}

/// The rows of a table that have a gradient.
#[derive(Debug, Clone, Default)]
pub struct RowGrad<F: Float> {
    /// Row numbers, ascending.
    pub rows: Vec<u32>,
    /// Their gradients, (rows, cols).
    pub values: PooledVec<F>,
}

/// Gradients of all tensors of a [`Params`].
#[derive(Debug, Clone)]
pub struct Grads<F: Float> {
    list: Vec<Grad<F>>,
}

impl<F: Float> Grads<F> {
    /// Zero, for the tensors of `params`.
    pub fn zero(params: &Params<F>) -> Self {
        Grads {
            list: (0..params.len()).map(|_| Grad::None).collect(),
        }
    }

    /// The gradient of a tensor, every element; zeros if nothing was added yet.
    pub fn dense(&mut self, id: ParamId, param: &Param<F>) -> &mut [F] {
        let grad = &mut self.list[id.0];
        if let Grad::None = grad {
            *grad = Grad::Dense(PooledVec::zeros(param.n_elements()));
        }
        match grad {
            Grad::Dense(values) => values,
            _ => panic!("{} has a sparse gradient", param.name),
        }
    }

    /// Adds the rows dx (n, cols) to the gradient of the rows `rows` (n) of a table.
    pub fn add_rows(&mut self, id: ParamId, cols: usize, rows: &[usize], dx: &[F]) {
        let mut order: Vec<(u32, u32)> = (rows.iter().zip(0..))
            .map(|(&row, i)| (row as u32, i))
            .collect();
        order.sort_unstable();
        let mut touched: Vec<u32> = order.iter().map(|&(row, _)| row).collect();
        touched.dedup();
        let mut values = PooledVec::zeros(touched.len() * cols);
        let mut sums = values.chunks_exact_mut(cols);
        for same_row in order.chunk_by(|a, b| a.0 == b.0) {
            let sum = sums.next().expect("one per row");
            for &(_, i) in same_row {
                axpy(F::ONE, &dx[i as usize * cols..][..cols], sum);
            }
        }
        let new = RowGrad {
            rows: touched,
            values,
        };
        self.list[id.0].add(Grad::Sparse(new), cols);
    }

    /// Adds all of `other`, tensor by tensor.
    pub fn add(&mut self, other: Grads<F>, params: &Params<F>) {
        let pairs: Vec<_> = self.list.iter_mut().zip(other.list).collect();
        pairs
            .into_par_iter()
            .zip(params.list())
            .for_each(|((grad, other), param)| {
                grad.add(other, param.shape.last().copied().unwrap_or(1));
            });
    }

    /// All gradients, in the order of the tensors.
    pub fn list(&self) -> &[Grad<F>] {
        &self.list
    }

    /// The square of the global norm, in f64.
    pub fn squared_norm(&self) -> f64 {
        // Summed in the order of the tensors, whatever thread did which.
        let sums: Vec<f64> = (self.list.par_iter())
            .map(|g| {
                let values = match g {
                    Grad::None => &[][..],
                    Grad::Dense(v) => v,
                    Grad::Sparse(r) => &r.values,
                };
                vectorized(
                    #[inline(always)]
                    || {
                        sum_of(values.len(), |i| {
                            let v = values[i].f64();
                            v * v
                        })
                    },
                )
            })
            .collect();
        sums.iter().sum()
    }
}

impl<F: Float> Grad<F> {
    fn add(&mut self, other: Grad<F>, cols: usize) {
        match (&mut *self, other) {
            (_, Grad::None) => {}
            (Grad::None, other) => *self = other,
            (Grad::Dense(a), Grad::Dense(b)) => add_assign(a, &b),
            (Grad::Sparse(a), Grad::Sparse(b)) => *a = merged(a, &b, cols),
            _ => panic!("a dense and a sparse gradient of one tensor"),
        }
    }
}

/// The sum of two sets of rows.
fn merged<F: Float>(a: &RowGrad<F>, b: &RowGrad<F>, cols: usize) -> RowGrad<F> {
    let mut rows = [&a.rows[..], &b.rows[..]].concat();
    rows.sort_unstable();
    rows.dedup();
    let mut values = PooledVec::zeros(rows.len() * cols);
    for part in [a, b] {
        let mut sums = rows.iter().zip(values.chunks_exact_mut(cols));
        for (row, x) in part.rows.iter().zip(part.values.chunks_exact(cols)) {
            let (_, sum) = sums.find(|(r, _)| *r == row).expect("a row of the union");
            axpy(F::ONE, x, sum);
        }
    }
    RowGrad { rows, values }
}
