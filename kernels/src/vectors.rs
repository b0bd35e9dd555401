//! [`FloatSlice`]: rows that lie some distance apart, as attention keeps its keys and values.

use std::ops::Range;

use half::f16;

/// Values of one of the types that keys and values are kept in.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum FloatSlice<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half floats.
    F16(&'a [f16]),
}

/// Rows some distance apart: keys or values of one head.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    /// From the first row on.
    pub values: FloatSlice<'a>,
    /// Values from one row to the next.
    pub stride: usize,
    /// What is read after these rows, as far apart: it is asked for row by row meanwhile, as waiting for
    /// memory is most of what attention does. May be empty.
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

    /// Bytes of a value.
    pub fn value_bytes(self) -> usize {
        match self {
            FloatSlice::F32(_) => 4,
            FloatSlice::F16(_) => 2,
        }
    }

    /// Some of the values.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            FloatSlice::F32(x) => FloatSlice::F32(&x[range]),
            FloatSlice::F16(x) => FloatSlice::F16(&x[range]),
        }
    }

    /// Value `index`, widened exactly.
    #[inline]
    pub(crate) fn at(self, index: usize) -> f32 {
        match self {
            FloatSlice::F32(x) => x[index],
            FloatSlice::F16(x) => x[index].to_f32(),
        }
    }

    /// The values as they lie in memory.
    #[inline(always)]
    pub(crate) fn bytes(self) -> &'a [u8] {
        let (start, len) = match self {
            FloatSlice::F32(x) => (x.as_ptr().cast(), size_of_val(x)),
            FloatSlice::F16(x) => (x.as_ptr().cast(), size_of_val(x)),
        };
        // SAFETY: the bytes of a slice of numbers, all of them initialised, borrowed as long.
        unsafe { core::slice::from_raw_parts(start, len) }
    }
}
