//! Stopping a session's call from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stops the calls of one [`Session`](crate::Session); got from
/// [`Session::canceller`](crate::Session::canceller). Clones stop the same session.
#[derive(Debug, Clone)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Makes the call that is reading bytes, or else the next one that does, end with
    /// [`Error::Cancelled`](crate::Error::Cancelled) before its next pass of at most
    /// [`BYTES_PER_PASS`](crate::session::BYTES_PER_PASS) bytes. One request stops one call.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Withdraws a request that has stopped nothing yet. Returns whether there was one.
    pub fn withdraw(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// The flag that a session's [`Canceller`]s set. A clone, in a fork, is a flag of its own.
#[derive(Debug, Default)]
pub(crate) struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Whether a request is pending.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// A handle on this flag.
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::clone(&self.0))
    }
}

impl Clone for CancelFlag {
    fn clone(&self) -> Self {
        CancelFlag::default()
    }
}
