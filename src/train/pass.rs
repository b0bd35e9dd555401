//! What every part of a forward or backward pass needs, and the linear layers, with or without an adapter.

use super::float::Float;
use super::grads::Grads;
use super::matmul::{Accumulate, MatmulOptions, View, ViewMut, matmul};
use super::ops::{Dropout, rms_norm_backward};
use super::params::{ParamId, Params};
use super::pooled_vec::PooledVec;

/// What every part of a pass needs.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a, F> {
    /// The weights.
    pub params: &'a Params<F>,
    /// How its products are computed.
    pub options: MatmulOptions,
    /// Off when validating.
    pub dropout: Option<Dropout>,
}

impl<F: Float> Pass<'_, F> {
    /// `y = x W^T`: x (n, in), y (n, out).
    pub(super) fn linear(&self, w: ParamId, x: &[F]) -> PooledVec<F> {
        let (params, options) = (self.params, self.options);
        let param = params.get(w);
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let n = x.len() / cols;
        let mut y = PooledVec::any(n * rows);
        let weights = param.value.values();
        let (w, x) = (View::dense(&weights, cols).t(), View::dense(x, cols));
        matmul(
            Accumulate::Overwrite,
            ViewMut::dense(&mut y, rows),
            F::ONE,
            x,
            w,
            options,
        );
        if let Some(adapter) = param.adapter {
            let a = params.get(adapter.a).value.values();
            let b = params.get(adapter.b).value.values();
            let rank = a.len() / cols;
            let mut h = PooledVec::any(n * rank);
            let view = ViewMut::dense(&mut h, rank);
            matmul(
                Accumulate::Overwrite,
                view,
                F::ONE,
                x,
                View::dense(&a, cols).t(),
                options,
            );
            matmul(
                Accumulate::Add,
                ViewMut::dense(&mut y, rows),
                F::of(adapter.scale),
                View::dense(&h, rank),
                View::dense(&b, rank).t(),
                options,
            );
        }
        y
    }

    /// Backward pass of [`Pass::linear`]: adds to the gradients of the weights, and sets `dx` (n, in) or
    /// adds to it.
    pub(super) fn linear_backward(
        &self,
        w: ParamId,
        x: &[F],
        dy: &[F],
        dx: Option<(Accumulate, &mut [F])>,
        grads: &mut Grads<F>,
    ) {
        let (params, options) = (self.params, self.options);
        let param = params.get(w);
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let n = x.len() / cols;
        let (x, dy) = (View::dense(x, cols), View::dense(dy, rows));
        if param.trained {
            let dw = ViewMut::dense(grads.dense(w, param), cols);
            matmul(Accumulate::Add, dw, F::ONE, dy.t(), x, options);
        }
        let mut dh = PooledVec::default(); // (n, rank)
        if let Some(adapter) = param.adapter {
            let (a, b) = (params.get(adapter.a), params.get(adapter.b));
            let rank = a.shape[0];
            let scale = F::of(adapter.scale);
            let mut h = PooledVec::any(n * rank);
            let a_values = a.value.values();
            let a_view = View::dense(&a_values, cols);
            matmul(
                Accumulate::Overwrite,
                ViewMut::dense(&mut h, rank),
                F::ONE,
                x,
                a_view.t(),
                options,
            );
            let db = ViewMut::dense(grads.dense(adapter.b, b), rank);
            matmul(
                Accumulate::Add,
                db,
                scale,
                dy.t(),
                View::dense(&h, rank),
                options,
            );
            dh = h;
            let b_values = b.value.values();
            let b_view = View::dense(&b_values, rank);
            matmul(
                Accumulate::Overwrite,
                ViewMut::dense(&mut dh, rank),
                scale,
                dy,
                b_view,
                options,
            );
            let da = ViewMut::dense(grads.dense(adapter.a, a), cols);
            matmul(
                Accumulate::Add,
                da,
                F::ONE,
                View::dense(&dh, rank).t(),
                x,
                options,
            );
        }
        if let Some((into, dx)) = dx {
            let weights = param.value.values();
            let w = View::dense(&weights, cols);
            matmul(into, ViewMut::dense(dx, cols), F::ONE, dy, w, options);
            if let Some(adapter) = param.adapter {
                let a = params.get(adapter.a).value.values();
                let (dh, a) = (View::dense(&dh, a.len() / cols), View::dense(&a, cols));
                matmul(
                    Accumulate::Add,
                    ViewMut::dense(dx, cols),
                    F::ONE,
                    dh,
                    a,
                    options,
                );
            }
        }
    }

    pub(super) fn dropout(&self, site: u64, x: &mut [F]) {
        if let Some(dropout) = self.dropout {
            dropout.apply(site, x);
        }
    }

    pub(super) fn norm_backward(
        &self,
        w: ParamId,
        x: &[F],
        inv: &[F],
        dy: &[F],
        dx: &mut [F],
        grads: &mut Grads<F>,
    ) {
        let param = self.params.get(w);
        let dw = param.trained.then(|| grads.dense(w, param));
        rms_norm_backward(x, &param.value.values(), inv, dy, dx, dw);
    }
}
