//! The boundary itself: arguments checked on the way in, panics caught on the way out.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, Once, TryLockError};

use super::status::{Failure, blt_status, set_last_error};

pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Runs a call, and turns a failure or a panic into a status and a message.
pub(super) fn guard(call: impl FnOnce() -> Result<()>) -> blt_status {
    silence_panics();
    let depth = DEPTH.get();
    DEPTH.set(depth + 1);
    // A panic leaves half-done state behind a mutex, which it poisons.
    let result = catch_unwind(AssertUnwindSafe(call));
    DEPTH.set(depth);
    let failure = match result {
        Ok(Ok(())) => return blt_status::BLT_OK,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let text = (payload.downcast_ref::<String>().map(String::as_str))
                .or_else(|| payload.downcast_ref::<&str>().copied());
            Failure {
                status: blt_status::BLT_ERROR_PANICKED,
                message: format!(
                    "a bug in libblt {}: {}",
                    env!("CARGO_PKG_VERSION"),
                    text.unwrap_or("no message").replace('\n', " ")
                ),
            }
        }
    };
    set_last_error(&failure.message);
    failure.status
}

thread_local! {
    /// Calls of this library that are running on this thread.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Keeps Rust from printing panics of this library's calls and threads to standard error. Other panics
/// of the process are still printed.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let name = std::thread::current().name().map(str::to_owned);
            let ours = DEPTH.try_with(Cell::get).unwrap_or(0) > 0
                || name.is_some_and(|name| name.starts_with("blt-"));
            if !ours {
                before(info);
            }
        }));
    });
}

/// Locks a handle.
pub(super) fn lock<'a, T>(name: &str, mutex: &'a Mutex<T>) -> Result<MutexGuard<'a, T>> {
    mutex.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Failure {
            status: blt_status::BLT_ERROR_BUSY,
            message: format!("{name}: another call is running on it"),
        },
        TryLockError::Poisoned(_) => Failure {
            status: blt_status::BLT_ERROR_PANICKED,
            message: format!("{name}: unusable after a bug in the library; it can only be freed"),
        },
    })
}

fn null(name: &str) -> Failure {
    Failure::argument(name, "expected a pointer, found NULL")
}

/// Dereferences a handle.
///
/// # Safety
/// `handle` is NULL or points to a live `T`.
pub(super) unsafe fn handle<'a, T>(name: &str, handle: *const T) -> Result<&'a T> {
    // SAFETY: not NULL, so the caller guarantees that it is live.
    unsafe { handle.as_ref() }.ok_or_else(|| null(name))
}

/// Dereferences a handle that may be NULL.
///
/// # Safety
/// `handle` is NULL or points to a live `T`.
pub(super) unsafe fn optional<'a, T>(handle: *const T) -> Option<&'a T> {
    // SAFETY: not NULL, so the caller guarantees that it is live.
    unsafe { handle.as_ref() }
}

/// Frees a handle; does nothing for NULL.
///
/// # Safety
/// `handle` is NULL, or comes from `Box::into_raw` and is not used again.
pub(super) unsafe fn free<T>(handle: *mut T) {
    guard(|| {
        if let Some(handle) = NonNull::new(handle) {
            // SAFETY: it comes from a box, and the caller gives up ownership.
            drop(unsafe { Box::from_raw(handle.as_ptr()) });
        }
        Ok(())
    });
}

/// The bytes that a caller points to.
///
/// # Safety
/// `bytes` is NULL or points to `n` bytes that stay as they are for `'a`.
pub(super) unsafe fn bytes<'a>(name: &str, bytes: *const c_void, n: usize) -> Result<&'a [u8]> {
    match NonNull::new(bytes.cast_mut()) {
        None if n == 0 => Ok(&[]),
        None => Err(Failure::argument(
            name,
            format!("expected {n} bytes, found NULL"),
        )),
        Some(_) if n > isize::MAX as usize => Err(Failure::argument(
            name,
            format!("expected at most {} bytes, found {n}", isize::MAX),
        )),
        // SAFETY: not NULL, at most `isize::MAX` bytes, and the caller guarantees them.
        Some(start) => Ok(unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), n) }),
    }
}

/// The path that a caller points to.
///
/// # Safety
/// `path` is NULL or NUL-terminated.
pub(super) unsafe fn path(name: &str, path: *const c_char) -> Result<PathBuf> {
    if path.is_null() {
        return Err(null(name));
    }
    // SAFETY: the caller guarantees that it is terminated.
    let text = unsafe { CStr::from_ptr(path) };
    if text.is_empty() {
        return Err(Failure::argument(name, "expected a path, found none"));
    }
    path_of_bytes(name, text.to_bytes())
}

/// A path from bytes: any bytes on Unix, UTF-8 elsewhere.
pub(super) fn path_of_bytes(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    #[cfg(unix)]
    {
        let _ = name; // any bytes are a path
        use std::os::unix::ffi::OsStrExt;
        Ok(std::ffi::OsStr::from_bytes(bytes).into())
    }
    #[cfg(not(unix))]
    std::str::from_utf8(bytes)
        .map(PathBuf::from)
        .map_err(|e| Failure::argument(name, format!("expected UTF-8, found {e}")))
}

/// A place for an output, written once, on success.
pub(super) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// # Safety
    /// `place` is NULL or points to room for a `T`, which may hold anything.
    pub unsafe fn new(name: &str, place: *mut T) -> Result<Self> {
        NonNull::new(place).map(Out).ok_or_else(|| null(name))
    }

    pub fn set(self, value: T) {
        // SAFETY: the caller of `new` guaranteed room for it.
        unsafe { self.0.write(value) };
    }
}

/// A place for several elements: a buffer, which may be NULL, and their count `n`.
pub(super) struct OutSlice<T> {
    buffer: *mut T,
    capacity: usize,
    n: Out<usize>,
}

impl<T: Copy> OutSlice<T> {
    /// # Safety
    /// `buffer` is NULL or points to room for `capacity` elements, `n` as for [`Out::new`].
    pub unsafe fn new(buffer: *mut T, capacity: usize, n: *mut usize) -> Result<Self> {
        if buffer.is_null() && capacity > 0 {
            return Err(null("out"));
        }
        Ok(OutSlice {
            buffer,
            capacity,
            // SAFETY: as required above.
            n: unsafe { Out::new("n", n)? },
        })
    }

    /// Whether the caller wants only the count.
    pub fn only_counts(&self) -> bool {
        self.buffer.is_null()
    }

    /// Writes the count alone.
    pub fn set_count(self, n: usize) {
        self.n.set(n);
    }

    /// Copies the elements.
    pub fn set(self, values: &[T]) -> Result<()> {
        if !self.only_counts() {
            if values.len() > self.capacity {
                return Err(Failure {
                    status: blt_status::BLT_ERROR_BUFFER,
                    message: format!(
                        "out: expected room for {}, found {}",
                        values.len(),
                        self.capacity
                    ),
                });
            }
            // SAFETY: there is room for `capacity` elements, and the caller's memory does not overlap
            // the engine's.
            unsafe {
                self.buffer
                    .copy_from_nonoverlapping(values.as_ptr(), values.len())
            };
        }
        self.n.set(values.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::status::blt_last_error;

    #[test]
    fn a_panic_becomes_a_status_and_the_handle_unusable() {
        let handle = Mutex::new(1);
        let status = guard(|| {
            let _held = lock("session", &handle)?;
            panic!("seven is {}", 7);
        });
        assert_eq!(status, blt_status::BLT_ERROR_PANICKED);
        // SAFETY: no call on this thread fails in between.
        let text = unsafe { CStr::from_ptr(blt_last_error()) }
            .to_str()
            .unwrap();
        assert!(text.ends_with("seven is 7"), "{text}");
        let status = guard(|| lock("session", &handle).map(|_| ()));
        assert_eq!(status, blt_status::BLT_ERROR_PANICKED);
    }

    #[test]
    fn a_handle_in_use_is_busy() {
        let handle = Mutex::new(1);
        let status = guard(|| {
            let _held = lock("session", &handle)?;
            assert_eq!(
                guard(|| lock("session", &handle).map(|_| ())),
                blt_status::BLT_ERROR_BUSY
            );
            Ok(())
        });
        assert_eq!(status, blt_status::BLT_OK);
    }
}
