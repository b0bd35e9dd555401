//! Products of two matrices of activations, as training needs them: views on slices, and what to do
//! with the result.

use core::cell::Cell;

#[cfg(target_arch = "aarch64")]
use crate::aarch64;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::x86;
use crate::{portable, scalar};

/// A read-only matrix: element (i, j) is at `i * row_stride + j * col_stride`, one of which is 1.
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

/// Elements between the first and one past the last of a matrix laid out row after row.
fn extent(rows: usize, cols: usize, row_stride: usize) -> Option<usize> {
    match rows == 0 || cols == 0 {
        true => Some(0),
        false => (rows - 1).checked_mul(row_stride)?.checked_add(cols),
    }
}

impl<'a, F> View<'a, F> {
    /// `rows` rows of `cols` values, `row_stride` apart.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn strided(data: &'a [F], rows: usize, cols: usize, row_stride: usize) -> Self {
        let extent = extent(rows, cols, row_stride);
        assert!(
            extent.is_some_and(|e| e <= data.len()),
            "a view beyond its slice"
        );
        View {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// A whole slice as (`len / cols`, `cols`).
    ///
    /// # Panics
    /// If it is not a whole number of rows.
    pub fn dense(data: &'a [F], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0, "rows");
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

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The first `at` rows, and the others.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows, "rows");
        let rest = (at * self.row_stride).min(self.data.len());
        let below = View {
            data: &self.data[rest..],
            rows: self.rows - at,
            ..self
        };
        (View { rows: at, ..self }, below)
    }

    /// Whether the values of a row follow each other.
    pub(crate) fn has_dense_rows(&self) -> bool {
        self.col_stride == 1
    }

    /// Up to `n` values of row `i` from column `j` on; fewer at the end of the row, none beyond it or
    /// below the last row. The rows are dense.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize, j: usize, n: usize) -> &'a [F] {
        debug_assert!(self.has_dense_rows());
        match i < self.rows && j < self.cols {
            true => &self.data[i * self.row_stride + j..][..n.min(self.cols - j)],
            false => &[],
        }
    }
}

impl<F: Copy> View<'_, F> {
    /// The element in row `i` and column `j`.
    pub fn get(&self, i: usize, j: usize) -> F {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

impl<'a, F> ViewMut<'a, F> {
    /// `rows` rows of `cols` values, `row_stride` apart.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap.
    pub fn strided(data: &'a mut [F], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(cols <= row_stride || rows <= 1, "rows overlap");
        let extent = extent(rows, cols, row_stride);
        assert!(
            extent.is_some_and(|e| e <= data.len()),
            "a view beyond its slice"
        );
        ViewMut {
            data,
            rows,
            cols,
            row_stride,
        }
    }

    /// A whole slice as (`len / cols`, `cols`).
    ///
    /// # Panics
    /// If it is not a whole number of rows.
    pub fn dense(data: &'a mut [F], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0, "rows");
        let rows = data.len() / cols;
        Self::strided(data, rows, cols, cols)
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The first `at` rows, and the others.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows, "rows");
        let rest = (at * self.row_stride).min(self.data.len());
        let (above, below) = self.data.split_at_mut(rest);
        let of = |data, rows| ViewMut {
            data,
            rows,
            cols: self.cols,
            row_stride: self.row_stride,
        };
        (of(above, at), of(below, self.rows - at))
    }

    /// Row `i`.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [F] {
        &mut self.data[i * self.row_stride..][..self.cols]
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

/// What the factors of a product are rounded to; sums are kept in f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// bfloat16, for CPUs with instructions for it: half the time.
    Bf16,
}

impl Precision {
    /// Whether [`product`] can do this on a path.
    pub fn is_available(self, isa: Isa) -> bool {
        match (self, isa) {
            (Precision::F32, _) => true,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx512(token)) => token.has_bf16(),
            _ => false,
        }
    }
}

/// Operands in the order in which the kernel reads them; kept by each thread for its next product.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
}

thread_local! {
    static PACKED: Cell<Packed> = const { Cell::new(Packed { a: Vec::new(), b: Vec::new() }) };
}

/// `c = scale * a b`, or `c += scale * a b`.
///
/// With [`Precision::F32`], an element is the sum over blocks of up to 256 `k` of `scale` times the
/// block's dot product, and that is accumulated in increasing `k` by fused multiply-add, whatever the
/// place of the element in the matrix.
///
/// # Panics
/// If the shapes do not fit, or the precision is not available.
pub fn product(
    isa: Isa,
    precision: Precision,
    into: Into,
    mut c: ViewMut<'_, f32>,
    scale: f32,
    a: View<'_, f32>,
    b: View<'_, f32>,
) {
    assert_eq!((a.rows, a.cols, b.cols), (c.rows, b.rows, c.cols), "shapes");
    assert!(
        precision.is_available(isa),
        "products in {precision:?} on {}",
        isa.name()
    );
    if a.cols == 0 && into == Into::Set {
        (0..c.rows).for_each(|i| c.row(i).fill(0.0));
    }
    if a.cols == 0 || c.cols == 0 {
        return;
    }
    let mut packed = PACKED.take();
    let (p, c) = (&mut packed, &mut c);
    match (precision, isa) {
        #[cfg(target_arch = "x86_64")]
        (Precision::Bf16, Isa::Avx512(token)) => {
            let words = x86::avx512::bf16::Bf16::new(token).expect("checked above");
            // SAFETY: the tokens prove that the CPU has the features.
            unsafe {
                x86::avx512::product::product_bf16(token, words, into, c, scale, a, b, p);
            }
        }
        _ => dispatch!(
            isa,
            scalar::product(into, c, scale, a, b),
            product(into, c, scale, a, b, p)
        ),
    }
    PACKED.set(packed);
}

/// Runs `f` compiled for the instructions of a path. What `f` calls must be inlined into it to profit.
pub fn vectorized<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    dispatch!(isa, f(), run(f))
}
