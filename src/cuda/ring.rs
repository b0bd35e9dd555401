//! The memory of one sequence in a stack of layers: rings of rows on the device.

use std::ops::Range;
use std::sync::Arc;

use super::driver::{Buffer, Gpu};
use crate::cache::KvType;
use crate::error::Result;

/// `planes` rings of `capacity` rows each; the row of position p is row `p % capacity`.
#[derive(Debug)]
pub struct GpuRing {
    buffer: Buffer, // (planes, capacity, dim)
    kv: KvType,
    planes: usize,
    dim: usize,
    capacity: usize,
    /// Rows beyond this are never asked for: positions wrap around.
    limit: Option<usize>,
}

/// Where a row of a pass stands; the same structure in kernels/cuda/common.cuh.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    memory: u64,
    capacity: u32,
    position: u32,
    from: u32,
    to: u32,
    is_half: bool,
}

impl Row {
    /// Four-byte numbers of a row.
    pub const UNITS: usize = 8;

    /// How many positions it sees.
    pub fn n_seen(self) -> usize {
        (self.to - self.from) as usize
    }

    /// As the kernels read it.
    pub fn units(self) -> [u32; Row::UNITS] {
        [
            self.memory as u32,
            (self.memory >> 32) as u32,
            self.capacity,
            self.position,
            self.from,
            self.to,
            self.is_half.into(),
            0, // structures of 8 bytes
        ]
    }
}

impl GpuRing {
    /// No rows; at most `limit` positions are kept.
    pub fn new(
        gpu: &Arc<Gpu>,
        kv: KvType,
        (planes, dim): (usize, usize),
        limit: Option<usize>,
    ) -> Result<GpuRing> {
        let capacity = limit.unwrap_or(64).min(64);
        Ok(GpuRing {
            buffer: gpu.alloc(planes * capacity * dim * kv.n_bytes())?,
            kv,
            planes,
            dim,
            capacity,
            limit,
        })
    }

    /// Makes room for the positions below `end`.
    pub fn reserve(&mut self, end: usize) -> Result<()> {
        if end <= self.capacity || self.limit == Some(self.capacity) {
            return Ok(());
        }
        let capacity = (end.next_power_of_two()).min(self.limit.unwrap_or(usize::MAX));
        let gpu = Arc::clone(self.buffer.gpu());
        let row = self.dim * self.kv.n_bytes();
        let larger = gpu.alloc(self.planes * capacity * row)?;
        // Nothing has wrapped yet: before the limit is reached every position has its own row.
        let (old, new) = (self.capacity * row, capacity * row);
        for plane in 0..self.planes {
            gpu.copy((&self.buffer, plane * old), (&larger, plane * new), old)?;
        }
        self.buffer = larger;
        self.capacity = capacity;
        Ok(())
    }

    /// The same rows, in memory of their own.
    pub fn copied(&self) -> Result<GpuRing> {
        let gpu = Arc::clone(self.buffer.gpu());
        let buffer = gpu.alloc(self.n_bytes())?;
        gpu.copy((&self.buffer, 0), (&buffer, 0), self.n_bytes())?;
        Ok(GpuRing { buffer, ..*self })
    }

    /// The row at `position`, which sees `seen`: both below what was reserved.
    pub fn row(&self, position: usize, seen: Range<usize>) -> Row {
        let n = |n: usize| u32::try_from(n).expect("positions fit 32 bits");
        let all_held = self.limit.is_some() || position.max(seen.end) <= self.capacity;
        assert!(seen.start < seen.end && all_held, "rows of a sequence");
        Row {
            memory: self.buffer.address(),
            capacity: n(self.capacity),
            position: n(position),
            from: n(seen.start),
            to: n(seen.end),
            is_half: self.kv == KvType::F16,
        }
    }

    /// Bytes of device memory.
    pub fn n_bytes(&self) -> usize {
        self.planes * self.capacity * self.dim * self.kv.n_bytes()
    }
}
