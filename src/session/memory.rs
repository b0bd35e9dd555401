//! Whether the system has the memory that a call needs, before the call.
//!
//! A Rust program ends when memory runs out in the middle of a calculation, and a library must not end its host. So a pass
//! first asks for the most that it can need, as one piece, and gives it back unused: the system counts address space at
//! once and pages only when they are written. Another thread can take the memory in between; then the process ends.

use super::Session;
use crate::config::TransformerConfig;
use crate::error::{Error, Result};

/// For what the estimates leave out: lists, messages, what the allocator adds.
const MARGIN: usize = 1 << 20;

/// Positions that caches grow by.
const PAGE: usize = 64;

/// Checks that the system gives this much memory.
///
/// # Errors
/// [`Error::Memory`].
pub(crate) fn check(needed: usize) -> Result<()> {
    let mut trial: Vec<u8> = Vec::new();
    let result = trial.try_reserve_exact(needed);
    // Seen from outside, so that the allocation is made although nothing uses it.
    std::hint::black_box(&trial);
    result.map_err(|_| Error::Memory { needed })
}

impl Session {
    /// Checks that there is memory for a pass of `n` ids.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn check_memory(&self, n: usize) -> Result<()> {
        let config = self.model.config();
        let kv = self.options.kv.unwrap_or_default();
        // Pages that are begun, and copies of those shared with a fork.
        let n_kept = (n / PAGE + 2) * PAGE;
        let of_stack = |c: &TransformerConfig| {
            let kept = 2 * c.n_layers * c.n_kv_heads * c.head_dim * kv.n_bytes() + 4 * c.dim;
            let rows = 4 * (4 * c.hidden_dim + 12 * c.dim);
            let state = match config.bolmo {
                Some(_) => 4 * 4 * c.n_layers * c.n_heads * c.head_dim * c.head_dim,
                None => 0,
            };
            n_kept * kept + n.max(PAGE) * rows + state
        };
        let logits = 4 * n * config.n_logits();
        let stacks = [&config.encoder, &config.global, &config.decoder];
        let stacks = stacks.into_iter().chain(&config.entropy);
        check(stacks.map(of_stack).sum::<usize>() + logits + MARGIN)
    }

    /// Checks that there is memory for a clone, whose caches are shared.
    ///
    /// # Errors
    /// [`Error::Memory`].
    #[cfg(feature = "capi")]
    pub(crate) fn check_memory_of_clone(&self) -> Result<()> {
        let states = match self.model.config().bolmo {
            Some(_) => self.cache_bytes(), // recurrent states are copied
            None => 0,
        };
        check(64 * self.len() + states + MARGIN)
    }
}
