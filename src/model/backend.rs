//! The backends of a model: the CPU, or a device with its own memory.
//!
//! A model decides which bytes are read and where patches start; its backend does the arithmetic in between. A
//! device implements [`Backend`] and [`DeviceCaches`] (`src/cuda/model`), and `src/open.rs` picks it.

use std::fmt;

use super::blt::Blt;
use super::device_caches::DeviceCaches;
use super::sequence::{Failure, Outputs, SequenceInput};
use crate::cache::KvType;
use crate::error::Result;

/// Computes the passes of a model.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Decides where the ids start patches and computes the logits that each sequence requests. The texts have the
    /// ids already. On an error the texts may have new boundaries, which the caller undoes.
    ///
    /// # Errors
    /// [`Failure::Sequence`] if a number of one sequence is not finite; [`Failure::Device`] if the device fails.
    fn forward<'m>(
        &self,
        blt: Blt<'m>,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<Outputs<'m>, Failure>;

    /// Empty caches of a new sequence, keys and values stored as `kv`; `None` on the CPU, whose caches [`State`] has.
    fn new_caches(&self, _kv: KvType) -> Option<Box<dyn DeviceCaches>> {
        None
    }

    /// The name of the GPU; `None` on the CPU.
    fn gpu_name(&self) -> Option<&str> {
        None
    }

    /// Kernels started so far: all, and those for closed patches; `None` on the CPU.
    fn gpu_kernels(&self) -> Option<(usize, usize)> {
        None
    }

    /// Bytes per second that the GPU reads and writes together when it copies; `None` on the CPU.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no room for the buffers.
    fn gpu_bandwidth(&self) -> Result<Option<f64>> {
        Ok(None)
    }
}

/// The CPU.
#[derive(Debug)]
pub(super) struct Cpu;

impl Backend for Cpu {
    fn forward<'m>(
        &self,
        blt: Blt<'m>,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<Outputs<'m>, Failure> {
        blt.forward(inputs)
    }
}
