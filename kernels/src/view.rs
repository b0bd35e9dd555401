//! Matrix views of slices. Several threads can write to disjoint parts of one view.

use core::marker::PhantomData;
use core::ops::Range;

/// A read-only matrix. Element (i, j) is at `i * row_stride + j * col_stride`, and one of the strides is 1.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, F> {
    data: &'a [F],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A mutable row-major matrix. Several threads can borrow disjoint parts of it.
#[derive(Debug)]
pub struct ViewMut<'a, F> {
    start: *mut F,
    rows: usize,
    cols: usize,
    row_stride: usize,
    data: PhantomData<&'a mut [F]>,
}

// SAFETY: a view is a mutable borrow of its elements, and of no others.
unsafe impl<F: Send> Send for ViewMut<'_, F> {}
// SAFETY: a shared view gives no access to the elements.
unsafe impl<F: Sync> Sync for ViewMut<'_, F> {}

/// The number of elements from the first to one past the last of a row-major matrix.
fn extent(rows: usize, cols: usize, row_stride: usize) -> Option<usize> {
    match rows == 0 || cols == 0 {
        true => Some(0),
        false => (rows - 1).checked_mul(row_stride)?.checked_add(cols),
    }
}

impl<'a, F> View<'a, F> {
    /// A view of `rows` rows of `cols` values, `row_stride` apart.
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

    /// A view of a whole slice as a (`len / cols`, `cols`) matrix.
    ///
    /// # Panics
    /// If the slice is not a whole number of rows.
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

    /// The number of rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Splits the matrix after the first `n` rows.
    ///
    /// # Panics
    /// If there are fewer than `n` rows.
    pub fn split_rows(self, n: usize) -> (Self, Self) {
        assert!(n <= self.rows, "rows");
        let rest = (n * self.row_stride).min(self.data.len());
        let below = View {
            data: &self.data[rest..],
            rows: self.rows - n,
            ..self
        };
        (View { rows: n, ..self }, below)
    }

    /// Whether the values of a row are contiguous.
    pub(crate) fn has_dense_rows(&self) -> bool {
        self.col_stride == 1
    }

    /// The start of row `i` and the distance between rows. The rows must be dense.
    #[inline(always)]
    pub(crate) fn row_start(&self, i: usize) -> (*const F, usize) {
        debug_assert!(self.has_dense_rows() && i < self.rows);
        let start = self.data.as_ptr().wrapping_add(i * self.row_stride);
        (start, self.row_stride)
    }

    /// The number of elements from one row to the next.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The slice from column `j` of row `i` to the end. The rows must be dense.
    #[inline(always)]
    pub(crate) fn rows_from(&self, i: usize, j: usize) -> &'a [F] {
        debug_assert!(self.has_dense_rows());
        &self.data[i * self.row_stride + j..]
    }

    /// Up to `n` values of row `i` from column `j` on: fewer at the end of the row, and none outside the matrix. The
    /// rows must be dense.
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
    /// A view of `rows` rows of `cols` values, `row_stride` apart.
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
            start: data.as_mut_ptr(),
            rows,
            cols,
            row_stride,
            data: PhantomData,
        }
    }

    /// A view of a whole slice as a (`len / cols`, `cols`) matrix.
    ///
    /// # Panics
    /// If the slice is not a whole number of rows.
    pub fn dense(data: &'a mut [F], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0, "rows");
        let rows = data.len() / cols;
        Self::strided(data, rows, cols, cols)
    }

    /// The number of rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Splits the matrix after the first `n` rows.
    ///
    /// # Panics
    /// If there are fewer than `n` rows.
    pub fn split_rows(self, n: usize) -> (Self, Self) {
        assert!(n <= self.rows, "rows");
        let below = ViewMut {
            start: self.start.wrapping_add(n * self.row_stride),
            rows: self.rows - n,
            ..self
        };
        (ViewMut { rows: n, ..self }, below)
    }

    /// Row `i`.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [F] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row is inside the borrowed slice, and views of its parts do not overlap.
        unsafe {
            let start = self.start.add(i * self.row_stride);
            core::slice::from_raw_parts_mut(start, self.cols)
        }
    }

    /// Reborrows the rows in `rows`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn rows(&mut self, rows: Range<usize>) -> ViewMut<'_, F> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows");
        // SAFETY: `self` stays borrowed for the lifetime of the part.
        unsafe { self.part(rows.start, rows.len(), 0, self.cols) }
    }

    /// Reborrows `n` columns from `first` on.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn columns(&mut self, first: usize, n: usize) -> ViewMut<'_, F> {
        assert!(first <= self.cols && n <= self.cols - first, "columns");
        // SAFETY: `self` stays borrowed for the lifetime of the part.
        unsafe { self.part(0, self.rows, first, n) }
    }

    /// A view of up to (`n_rows`, `n_cols`) elements from `row` and `col` on, which does not borrow `self`.
    ///
    /// # Safety
    /// Parts that are used at the same time do not overlap.
    pub(crate) unsafe fn part(&self, row: usize, n_rows: usize, col: usize, n_cols: usize) -> Self {
        ViewMut {
            start: self.start.wrapping_add(row * self.row_stride + col),
            rows: n_rows.min(self.rows - row),
            cols: n_cols.min(self.cols - col),
            ..*self
        }
    }
}
