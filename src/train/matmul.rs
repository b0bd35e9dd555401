//! Matrix products, through the `gemm` crate.
//!
//! Everything is a strided view on a slice, so that a transpose or one head of many costs nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::float::Float;

static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations in all products so far.
pub fn flops() -> u64 {
    FLOPS.load(Relaxed)
}

/// A read-only matrix: element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, F> {
    data: &'a [F],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A matrix to be written, laid out row after row.
#[derive(Debug)]
pub struct ViewMut<'a, F> {
    data: &'a mut [F],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

/// Elements between the first and one past the last of a matrix.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    match rows == 0 || cols == 0 {
        true => 0,
        false => (rows - 1) * row_stride + (cols - 1) * col_stride + 1,
    }
}

impl<'a, F> View<'a, F> {
    /// `rows` rows of `cols` values, `row_stride` apart.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn strided(data: &'a [F], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(extent(rows, cols, row_stride, 1) <= data.len());
        View {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// A whole slice as (`len / cols`, `cols`).
    pub fn dense(data: &'a [F], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0);
        Self::strided(data, data.len() / cols, cols, cols)
    }

    /// The transpose.
    pub fn t(self) -> Self {
        View {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

impl<'a, F> ViewMut<'a, F> {
    /// `rows` rows of `cols` values, `row_stride` apart.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap.
    pub fn strided(data: &'a mut [F], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(cols <= row_stride || rows <= 1);
        assert!(extent(rows, cols, row_stride, 1) <= data.len());
        ViewMut {
            data,
            rows,
            cols,
            row_stride,
        }
    }

    /// A whole slice as (`len / cols`, `cols`).
    pub fn dense(data: &'a mut [F], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0);
        let rows = data.len() / cols;
        Self::strided(data, rows, cols, cols)
    }
}

/// How a product meets what the destination holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// Replaces it.
    Set,
    /// Is added to it.
    Add,
}

/// `c = scale * a b`, or `c += scale * a b`, on up to `threads` threads of the current pool. The
/// result does not depend on their number.
///
/// # Panics
/// If the shapes do not fit.
pub fn product<F: Float>(
    into: Into,
    c: ViewMut<'_, F>,
    scale: F,
    a: View<'_, F>,
    b: View<'_, F>,
    threads: usize,
) {
    assert_eq!((a.rows, a.cols, b.cols), (c.rows, b.rows, c.cols), "shapes");
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    FLOPS.fetch_add(2 * (c.rows * c.cols * a.cols) as u64, Relaxed);
    let parallelism = match threads {
        0 | 1 => gemm::Parallelism::None,
        n => gemm::Parallelism::Rayon(n),
    };
    // SAFETY: gemm reads elements (i, j) of `a` and `b` and writes those of `c` within the shapes
    // given; the views' constructors proved that these lie inside their slices. `c` is borrowed
    // exclusively, so it overlaps neither; its rows do not overlap each other. Strides are below
    // the slices' lengths, which fit isize. Without `read_dst` the old content is not read.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            1,
            c.row_stride as isize,
            into == Into::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            F::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_views_are_right() {
        let a: Vec<f64> = (0..15).map(f64::from).collect(); // (3, 4) in rows of 5
        let b: Vec<f64> = (0..8).map(f64::from).collect(); // (2, 4)
        let mut c = vec![1.0; 10]; // (3, 2) in rows of 4
        product(
            Into::Add,
            ViewMut::strided(&mut c, 3, 2, 4),
            2.0,
            View::strided(&a, 3, 4, 5),
            View::dense(&b, 4).t(),
            1,
        );
        for i in 0..3 {
            for j in 0..2 {
                let sum: f64 = (0..4).map(|k| a[i * 5 + k] * b[j * 4 + k]).sum();
                assert_eq!(c[i * 4 + j], 1.0 + 2.0 * sum);
            }
        }
        assert_eq!((c[2], c[3]), (1.0, 1.0));
    }

    #[test]
    #[should_panic(expected = "extent")]
    fn views_beyond_their_slice_are_refused() {
        View::strided(&[0.0f32; 7], 2, 4, 4);
    }
}
