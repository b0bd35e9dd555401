//! Memory for intermediate results, reused from operation to operation, so that a step like the previous one allocates
//! nothing.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Mutex;

/// The memory that is not in use.
#[derive(Default)]
pub struct Scratch {
    floats: Free<f32>,
    indices: Free<usize>,
    ranges: Free<Range<usize>>,
}

type Free<T> = Mutex<Vec<Vec<T>>>;

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

/// An element type of scratch memory.
pub trait Pooled: Clone + Default + 'static {
    /// The free memory of this type.
    #[doc(hidden)]
    fn free(scratch: &Scratch) -> &Free<Self>;
}

impl Pooled for f32 {
    fn free(scratch: &Scratch) -> &Free<Self> {
        &scratch.floats
    }
}

impl Pooled for usize {
    fn free(scratch: &Scratch) -> &Free<Self> {
        &scratch.indices
    }
}

impl Pooled for Range<usize> {
    fn free(scratch: &Scratch) -> &Free<Self> {
        &scratch.ranges
    }
}

/// A slice of scratch memory that returns to its pool when dropped.
#[derive(Debug)]
pub struct ScratchVec<'a, T: Pooled> {
    /// At least `n` elements. The rest keeps its old content, so that growing again does not have to fill it.
    data: Vec<T>,
    n: usize,
    home: &'a Scratch,
}

impl Scratch {
    /// `n` elements with the content of an earlier use.
    pub(super) fn lend<T: Pooled>(&self, n: usize) -> ScratchVec<'_, T> {
        let mut buffer = self.best_for(n);
        if buffer.data.len() < n {
            buffer.data.resize(n, T::default());
        }
        buffer.n = n;
        buffer
    }

    /// An empty vector with capacity for `n` elements.
    pub(super) fn lend_empty<T: Pooled>(&self, n: usize) -> ScratchVec<'_, T> {
        let mut buffer = self.best_for(n);
        buffer.data.clear();
        buffer.data.reserve(n);
        buffer
    }

    /// The smallest free memory with capacity for `n` elements, or else the largest, which will grow.
    fn best_for<T: Pooled>(&self, n: usize) -> ScratchVec<'_, T> {
        let mut free = T::free(self).lock().unwrap_or_else(|e| e.into_inner());
        let fits = |v: &Vec<T>| match v.capacity() {
            c if c >= n => (false, c),
            c => (true, usize::MAX - c),
        };
        let best = (0..free.len()).min_by_key(|&i| fits(&free[i]));
        let data = best.map_or_else(Vec::new, |i| free.swap_remove(i));
        ScratchVec {
            data,
            n: 0,
            home: self,
        }
    }
}

impl<T: Pooled> ScratchVec<'_, T> {
    /// Appends a copy of `items`.
    pub fn extend_from_slice(&mut self, items: &[T]) {
        self.data.truncate(self.n);
        self.data.extend_from_slice(items);
        self.n = self.data.len();
    }

    /// Appends `items`.
    pub fn extend(&mut self, items: impl IntoIterator<Item = T>) {
        self.data.truncate(self.n);
        self.data.extend(items);
        self.n = self.data.len();
    }
}

impl<T: Pooled> Drop for ScratchVec<'_, T> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut free = T::free(self.home).lock().unwrap_or_else(|e| e.into_inner());
        free.push(data);
    }
}

impl<T: Pooled> Deref for ScratchVec<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[..self.n]
    }
}

impl<T: Pooled> DerefMut for ScratchVec<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[..self.n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_reused() {
        let scratch = Scratch::default();
        let sizes = [100, 10, 1000];
        drop(sizes.map(|n| scratch.lend::<f32>(n)));
        let capacity = |n| scratch.lend::<f32>(n).data.capacity();
        assert_eq!(
            [5, 11, 100, 101, 900].map(capacity),
            [10, 100, 100, 1000, 1000]
        );
        assert_eq!(capacity(2000), 2000);
        assert_eq!(
            scratch.floats.lock().unwrap().len(),
            3,
            "the largest has grown"
        );
        let mut collected = scratch.lend_empty(3);
        collected.extend([3, 1, 2]);
        assert_eq!(*collected, [3, 1, 2]);
        assert_eq!(scratch.lend::<usize>(4).len(), 4);
    }
}
