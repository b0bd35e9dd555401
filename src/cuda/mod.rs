//! NVIDIA GPUs: device memory, and one function per kernel on plain buffers. Knows no model.
//!
//! Only the driver's library is used, and only looked for when a GPU is asked for. All work of a
//! [`Gpu`] goes through one stream, in order.

mod driver;
mod ops;

use std::sync::Arc;

use crate::error::Result;

pub use driver::{Buffer, DeviceInfo, Gpu, devices};
pub use ops::{Attention, Linear, MAX_HEAD_DIM, Mode, Ops};

/// A buffer that grows: its rows lie one after the other.
#[derive(Debug)]
pub struct Rows {
    buffer: Buffer,
    dim: usize,
    capacity: usize,
    /// Rows beyond this are never asked for: positions wrap around.
    limit: Option<usize>,
}

impl Rows {
    /// No rows of `dim` floats; at most `limit` are kept, those with the same remainder in one
    /// place.
    pub fn new(gpu: &Arc<Gpu>, dim: usize, limit: Option<usize>) -> Result<Rows> {
        let capacity = limit.unwrap_or(64).min(64);
        Ok(Rows {
            buffer: gpu.alloc(capacity * dim * 4)?,
            dim,
            capacity,
            limit,
        })
    }

    /// Makes room for the positions below `end`.
    pub fn reserve(&mut self, end: usize) -> Result<()> {
        if end > self.capacity && self.limit != Some(self.capacity) {
            let capacity = end
                .next_power_of_two()
                .min(self.limit.unwrap_or(usize::MAX));
            let gpu = Arc::clone(self.buffer.gpu());
            let larger = gpu.alloc(capacity * self.dim * 4)?;
            // Nothing has wrapped yet: before the limit is reached every position has its own row.
            gpu.copy(&self.buffer, &larger, self.capacity * self.dim * 4)?;
            self.buffer = larger;
            self.capacity = capacity;
        }
        Ok(())
    }

    /// The same rows, in memory of their own.
    pub fn copied(&self) -> Result<Rows> {
        let gpu = Arc::clone(self.buffer.gpu());
        let buffer = gpu.alloc(self.n_bytes())?;
        gpu.copy(&self.buffer, &buffer, self.n_bytes())?;
        Ok(Rows { buffer, ..*self })
    }

    /// Bytes of device memory.
    pub fn n_bytes(&self) -> usize {
        self.capacity * self.dim * 4
    }
}

impl Rows {
    /// The memory.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Rows there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Width of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }
}
