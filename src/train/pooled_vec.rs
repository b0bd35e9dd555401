//! Memory for activations and gradients, kept for the next step.
//!
//! A step needs the same hundreds of buffers as the one before. Giving them back to the system and
//! getting them again, page by page and cleared, took a tenth of the time.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::float::Float;

/// Numbers whose memory is kept for reuse.
#[derive(Debug, Default)]
pub struct PooledVec<F: Float>(Vec<F>);

/// Shorter ones are left to the allocator.
const KEPT_FROM: usize = 1 << 12;

/// Nothing in the list can be left half done, so a panic elsewhere does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Float> PooledVec<F> {
    /// `n` zeros.
    pub fn zeros(n: usize) -> Self {
        let mut buffer = Self::take(n);
        buffer.fill(F::ZERO);
        buffer
    }

    /// `n` numbers that are all about to be overwritten: leftovers, or NaN in a debug build.
    pub fn any(n: usize) -> Self {
        let mut buffer = Self::take(n);
        if cfg!(debug_assertions) {
            buffer.fill(F::of(f64::NAN));
        }
        buffer
    }

    fn take(n: usize) -> Self {
        if n < KEPT_FROM {
            return PooledVec(vec![F::ZERO; n]);
        }
        let kept = {
            let mut kept = lock(F::kept());
            let sizes = kept.iter().map(Vec::capacity).enumerate();
            let fitting = sizes.filter(|(_, size)| (n..=2 * n).contains(size));
            let best = fitting.min_by_key(|(_, size)| *size);
            best.map(|(at, _)| kept.swap_remove(at))
        };
        // Lengths vary a little from step to step.
        let mut v = kept.unwrap_or_else(|| Vec::with_capacity(n + n / 8));
        v.resize(n, F::ZERO);
        PooledVec(v)
    }
}

impl<F: Float> From<&[F]> for PooledVec<F> {
    fn from(x: &[F]) -> Self {
        let mut buffer = Self::take(x.len());
        buffer.copy_from_slice(x);
        buffer
    }
}

impl<F: Float> Clone for PooledVec<F> {
    fn clone(&self) -> Self {
        PooledVec::from(&self[..])
    }
}

impl<F: Float> Drop for PooledVec<F> {
    fn drop(&mut self) {
        if self.0.capacity() >= KEPT_FROM {
            lock(F::kept()).push(std::mem::take(&mut self.0));
        }
    }
}

impl<F: Float> Deref for PooledVec<F> {
    type Target = [F];
    fn deref(&self) -> &[F] {
        &self.0
    }
}

impl<F: Float> DerefMut for PooledVec<F> {
    fn deref_mut(&mut self) -> &mut [F] {
        &mut self.0
    }
}
