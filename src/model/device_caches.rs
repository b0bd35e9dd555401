//! The caches of a sequence in the memory of a device.

use std::any::Any;
use std::fmt;

/// One sequence's keys, values and byte states in the memory of a device.
pub(crate) trait DeviceCaches: Any + fmt::Debug + Send + Sync {
    /// Caches for a fork of the sequence. Both may share memory until one of them reads more.
    fn fork(&self) -> Box<dyn DeviceCaches>;

    /// Whether the text can go back to its first `n_bytes`, with `n_patches` closed patches: whether everything that
    /// the next byte reads is still there.
    fn can_rewind(&self, n_bytes: usize, n_patches: usize) -> bool;

    /// Bytes of memory.
    fn n_bytes(&self) -> usize;
}

impl Clone for Box<dyn DeviceCaches> {
    fn clone(&self) -> Self {
        self.fork()
    }
}
