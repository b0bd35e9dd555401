//! Views of slices as matrices: to be read, and to be written in parts by several threads.

use core::marker::PhantomData;
use core::ops::Range;

/// A read-only matrix: element (i, j) is at `i * row_stride + j * col_stride`, one of which is 1.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, F> {
    data: &'a [F],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A matrix to be written, laid out row after row. Parts of it can be lent to several threads.
#[derive(Debug)]
pub struct ViewMut<'a, F> {
    start: *mut F,
    rows: usize,
    cols: usize,
    row_stride: usize,
    data: PhantomData<&'a mut [F]>,
}

// SAFETY: a view stands for a mutable borrow of its elements, and of no others.
unsafe impl<F: Send> Send for ViewMut<'_, F> {}
// SAFETY: nothing can be read or written through a shared view.
unsafe impl<F: Sync> Sync for ViewMut<'_, F> {}

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

    /// Where row `i` begins, and the distance between rows; the rows are dense.
    #[inline(always)]
    pub(crate) fn row_start(&self, i: usize) -> (*const F, usize) {
        debug_assert!(self.has_dense_rows() && i < self.rows);
        let start = self.data.as_ptr().wrapping_add(i * self.row_stride);
        (start, self.row_stride)
    }

    /// Elements from one row to the next.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Everything from column `j` of row `i` on. The rows are dense.
    #[inline(always)]
    pub(crate) fn rows_from(&self, i: usize, j: usize) -> &'a [F] {
        debug_assert!(self.has_dense_rows());
        &self.data[i * self.row_stride + j..]
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
            start: data.as_mut_ptr(),
            rows,
            cols,
            row_stride,
            data: PhantomData,
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
        let below = ViewMut {
            start: self.start.wrapping_add(at * self.row_stride),
            rows: self.rows - at,
            ..self
        };
        (ViewMut { rows: at, ..self }, below)
    }

    /// Row `i`.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [F] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row is inside what the view borrows, whose parts do not overlap.
        unsafe {
            let start = self.start.add(i * self.row_stride);
            core::slice::from_raw_parts_mut(start, self.cols)
        }
    }

    /// Some rows, while this is not used.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows(&mut self, rows: Range<usize>) -> ViewMut<'_, F> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows");
        // SAFETY: `self` is borrowed as long.
        unsafe { self.part(rows.start, rows.len(), 0, self.cols) }
    }

    /// `n` columns from `first` on, while this is not used.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn columns(&mut self, first: usize, n: usize) -> ViewMut<'_, F> {
        assert!(first <= self.cols && n <= self.cols - first, "columns");
        // SAFETY: `self` is borrowed as long.
        unsafe { self.part(0, self.rows, first, n) }
    }

    /// Up to `n_rows` rows from `row` on of up to `n_cols` columns from `col` on, without giving up the
    /// whole.
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
