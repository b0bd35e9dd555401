//! Small tables that the host sends again and again: copied from memory that the driver has pinned, so that the
//! host does not wait for the copy.

use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Buffer, Gpu};
use crate::error::Result;

/// Pinned memory of the host that one table at a time is copied from. It grows to what is asked of it.
#[derive(Debug)]
pub struct Staging {
    /// Null until there is a table; of `n` numbers.
    memory: *mut u32,
    n: usize,
    /// Passed when the last copy has been made.
    copied: sys::CUevent,
    gpu: Arc<Gpu>,
}

// SAFETY: the memory and the event are its own, and any thread may use them once the context is its own, which
// every method sees to.
unsafe impl Send for Staging {}

impl Staging {
    /// With nothing in it.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Staging> {
        gpu.make_current()?;
        let mut copied = std::ptr::null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current; the event is given back by `drop`.
        let result = unsafe { sys::cuEventCreate(&mut copied, flags) };
        gpu.check(result, "an event")?;
        Ok(Staging {
            memory: std::ptr::null_mut(),
            n: 0,
            copied,
            gpu: Arc::clone(gpu),
        })
    }

    /// Has numbers written to the start of a buffer, after all work so far. Waits only if the copy before this one
    /// has not been made.
    ///
    /// # Errors
    /// [`crate::Error::Device`], also for whatever went wrong in work before.
    pub fn write(&mut self, to: &Buffer, values: &[u32]) -> Result<()> {
        let n_bytes = size_of_val(values);
        assert!(n_bytes <= to.n_bytes(), "write past the end of a buffer");
        if values.is_empty() {
            return Ok(());
        }
        self.wait()?;
        if self.n < values.len() {
            self.free();
            let n = values.len().next_power_of_two();
            let mut memory = std::ptr::null_mut();
            // SAFETY: the context is current; the memory is given back by `free`.
            let result = unsafe { sys::cuMemAllocHost_v2(&mut memory, n * 4) };
            self.gpu.check(result, "pinned memory for it")?;
            (self.memory, self.n) = (memory.cast(), n);
        }
        let stream = self.gpu.stream();
        // SAFETY: both planes have that many bytes, and no copy reads the memory any more, for it was waited for
        // above. It stays as it is until this copy has been made: `write` and `drop` wait for the event. If there is
        // none, for want of a working device, all work is waited for here.
        unsafe {
            (self.memory).copy_from_nonoverlapping(values.as_ptr(), values.len());
            let copied =
                sys::cuMemcpyHtoDAsync_v2(to.address(), self.memory.cast(), n_bytes, stream);
            let result = self.gpu.check(copied, "copy to it");
            let recorded = sys::cuEventRecord(self.copied, stream);
            result
                .and(self.gpu.check(recorded, "an event"))
                .inspect_err(|_| {
                    let _ = sys::cuStreamSynchronize(stream);
                })
        }
    }

    /// Until the last copy has been made.
    fn wait(&self) -> Result<()> {
        self.gpu.make_current()?;
        // SAFETY: the event is there; one that was never recorded is passed.
        let result = unsafe { sys::cuEventSynchronize(self.copied) };
        self.gpu.check(result, "work on it")
    }

    /// Gives the memory back, of which no copy is under way.
    fn free(&mut self) {
        if !self.memory.is_null() {
            // SAFETY: allocated by `write`, and given back once.
            let _ = unsafe { sys::cuMemFreeHost(self.memory.cast()) };
        }
        (self.memory, self.n) = (std::ptr::null_mut(), 0);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // An error is that of a device that is lost, and copies nothing any more.
        let _ = self.wait();
        self.free();
        // SAFETY: made by `new`, and given back once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.copied) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::ops::testing::device;

    /// The emulated driver copies as late as it may.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_table_is_what_it_was_when_it_was_written() {
        let gpu = device();
        let mut staging = Staging::new(&gpu).unwrap();
        let all = gpu.alloc(5 * 4 * 4).unwrap();
        let to = gpu.alloc(16).unwrap();
        let tables: [&[u32]; 5] = [&[1, 2], &[3, 4], &[5], &[6, 7, 8, 9], &[10, 11, 12]];
        for (i, table) in tables.iter().enumerate() {
            staging.write(&to, table).unwrap();
            gpu.copy((&to, 0), (&all, 16 * i), 16).unwrap();
        }
        drop(staging);
        let found = gpu.read_u32s(&all, 20).unwrap();
        for (found, table) in found.chunks(4).zip(tables) {
            assert_eq!(&found[..table.len()], table);
        }
    }
}
