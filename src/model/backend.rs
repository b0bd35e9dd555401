//! What computes a model: the CPU, or a device with memory of its own.
//!
//! A model decides which bytes are read and where patches start; its backend does the arithmetic in between. A
//! device implements both traits here (`src/cuda/model`), and `src/device/choice.rs` picks it.

use std::any::Any;
use std::fmt;

use smallvec::SmallVec;

use super::sequence::{Failure, SequenceInput};
use super::{Model, State};
use crate::cache::KvType;
use crate::error::Result;
use crate::ops::ScratchVec;

/// Computes the passes of a model.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Appends the ids of all sequences to their texts, decides where patches start, and returns the logits that each
    /// input wants: (0, 1 or n, vocab). On an error the texts may be longer than before; the caller cuts them.
    ///
    /// # Errors
    /// [`Failure::Sequence`] if a number of one sequence is not finite; [`Failure::Device`] if the device fails.
    fn forward<'m>(
        &self,
        model: &'m Model,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<SmallVec<[ScratchVec<'m, f32>; 1]>, Failure>;

    /// Drops what the caches hold past the end of the text, after a failed pass has been undone. Nothing by default:
    /// for caches whose rows are found by position.
    fn discard_past_end(&self, _model: &Model, _state: &mut State) {}

    /// Drops what neither the next bytes nor a short rewind can need, after a pass. Nothing by default.
    fn evict(&self, _model: &Model, _state: &mut State) {}

    /// Empty caches of a new sequence, keys and values stored as `kv`; `None` on the CPU, whose caches [`State`] has.
    fn new_caches(&self, _kv: KvType) -> Option<Box<dyn BackendCaches>> {
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

/// One sequence's keys, values and byte states in the memory of a device.
pub(crate) trait BackendCaches: Any + fmt::Debug + Send + Sync {
    /// The same caches for a fork of the sequence. Both may share memory until one of them reads on.
    fn fork(&self) -> Box<dyn BackendCaches>;

    /// Whether the text can go back to its first `n_bytes`, with `n_patches` closed patches: whether all that the
    /// next byte reads is still there.
    fn can_rewind(&self, n_bytes: usize, n_patches: usize) -> bool;

    /// Bytes of memory.
    fn n_bytes(&self) -> usize;
}

impl Clone for Box<dyn BackendCaches> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// This CPU.
#[derive(Debug)]
pub(super) struct Cpu;

impl Backend for Cpu {
    fn forward<'m>(
        &self,
        model: &'m Model,
        inputs: &mut [SequenceInput<'_>],
    ) -> Result<SmallVec<[ScratchVec<'m, f32>; 1]>, Failure> {
        model.forward_on_cpu(inputs)
    }

    fn discard_past_end(&self, model: &Model, state: &mut State) {
        state.forget_beyond(model);
    }

    fn evict(&self, model: &Model, state: &mut State) {
        state.drop_unneeded(model);
    }
}
