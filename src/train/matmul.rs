//! Matrix products: the kernels' matmul, split over threads, with a count of operations.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use blt_kernels::{Accumulate, Precision, View, ViewMut};

use super::float::Float;

static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations in all products so far.
pub fn flops() -> u64 {
    FLOPS.load(Relaxed)
}

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatmulOptions {
    /// Threads of the current pool that one product may use. The result does not depend on it.
    pub threads: usize,
    /// What factors are rounded to; f64 is never rounded.
    pub precision: Precision,
}

impl Default for MatmulOptions {
    fn default() -> Self {
        MatmulOptions {
            threads: 1,
            precision: Precision::F32,
        }
    }
}

/// `c = scale * a b`, or `c += scale * a b`.
///
/// # Panics
/// If the shapes do not fit, or the CPU lacks the precision.
pub fn matmul<F: Float>(
    accumulate: Accumulate,
    c: ViewMut<'_, F>,
    scale: F,
    a: View<'_, F>,
    b: View<'_, F>,
    options: MatmulOptions,
) {
    let ((rows, cols), depth) = (c.shape(), a.shape().1);
    FLOPS.fetch_add(2 * (rows * cols * depth) as u64, Relaxed);
    share_out(accumulate, c, scale, a, b, options);
}

fn share_out<F: Float>(
    accumulate: Accumulate,
    c: ViewMut<'_, F>,
    scale: F,
    a: View<'_, F>,
    b: View<'_, F>,
    options: MatmulOptions,
) {
    let half = c.shape().0 / 2;
    if options.threads < 2 || half == 0 {
        return F::matmul(options.precision, accumulate, c, scale, a, b);
    }
    let (c, c_below) = c.split_rows(half);
    let (a, a_below) = a.split_rows(half);
    let with = |threads| MatmulOptions { threads, ..options };
    rayon::join(
        || share_out(accumulate, c, scale, a, b, with(options.threads / 2)),
        || {
            share_out(
                accumulate,
                c_below,
                scale,
                a_below,
                b,
                with(options.threads - options.threads / 2),
            )
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_products_and_f32_products_on_any_threads_agree() {
        let a: Vec<f32> = (0..15).map(|x| x as f32).collect(); // (3, 4) in rows of 5
        let b: Vec<f32> = (0..8).map(|x| x as f32).collect(); // (2, 4)
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let mut c64 = vec![1.0; 10]; // (3, 2) in rows of 4
        let (a64, b64) = (wide(&a), wide(&b));
        let (va, vb) = (View::strided(&a64, 3, 4, 5), View::dense(&b64, 4).t());
        let vc = ViewMut::strided(&mut c64, 3, 2, 4);
        matmul(Accumulate::Add, vc, 2.0, va, vb, MatmulOptions::default());
        for i in 0..3 {
            for j in 0..2 {
                let sum: f64 = (0..4).map(|k| a64[i * 5 + k] * b64[j * 4 + k]).sum();
                assert_eq!(c64[i * 4 + j], 1.0 + 2.0 * sum);
            }
        }
        for threads in 0..5 {
            let mut c = vec![1.0; 10];
            let options = MatmulOptions {
                threads,
                ..MatmulOptions::default()
            };
            let (va, vb) = (View::strided(&a, 3, 4, 5), View::dense(&b, 4).t());
            matmul(
                Accumulate::Add,
                ViewMut::strided(&mut c, 3, 2, 4),
                2.0,
                va,
                vb,
                options,
            );
            assert_eq!(wide(&c), c64, "{threads} threads");
        }
    }
}
