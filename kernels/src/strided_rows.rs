//! [`StridedRows`]: the keys or values of one head, as attention reads them.

use std::ops::Range;

use half::f16;

/// A slice of f32 or f16 values.
#[derive(Clone, Copy, Debug)]
pub enum FloatSlice<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half floats.
    F16(&'a [f16]),
}

/// Rows at a fixed distance: the keys or values of one head.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    /// The values from the first row on.
    pub values: FloatSlice<'a>,
    /// The number of values from one row to the next.
    pub stride: usize,
    /// The values that will be read after these rows, at the same stride. The kernels prefetch them row by
    /// row, because attention spends most of its time waiting for memory. May be empty.
    pub next: FloatSlice<'a>,
}

impl<'a> FloatSlice<'a> {
    /// The number of values.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        match self {
            FloatSlice::F32(x) => x.len(),
            FloatSlice::F16(x) => x.len(),
        }
    }

    /// The size of a value in bytes.
    pub fn value_bytes(self) -> usize {
        match self {
            FloatSlice::F32(_) => 4,
            FloatSlice::F16(_) => 2,
        }
    }

    /// The values in `range`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            FloatSlice::F32(x) => FloatSlice::F32(&x[range]),
            FloatSlice::F16(x) => FloatSlice::F16(&x[range]),
        }
    }

    /// Value `index` as f32, exactly.
    #[inline]
    pub(crate) fn get(self, index: usize) -> f32 {
        match self {
            FloatSlice::F32(x) => x[index],
            FloatSlice::F16(x) => x[index].to_f32(),
        }
    }

    /// The values as bytes in memory order.
    #[inline(always)]
    pub(crate) fn bytes(self) -> &'a [u8] {
        let (start, len) = match self {
            FloatSlice::F32(x) => (x.as_ptr().cast(), size_of_val(x)),
            FloatSlice::F16(x) => (x.as_ptr().cast(), size_of_val(x)),
        };
        // SAFETY: the bytes of an initialised slice of numbers, with the lifetime of that slice.
        unsafe { core::slice::from_raw_parts(start, len) }
    }
}
