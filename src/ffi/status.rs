//! Status codes, their names, and the text of the last error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};

use crate::error::Error;

/// Result of a call. Numbers and names are never reused; new ones may be added.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum blt_status {
    /// Success. Outputs are written only in this case.
    BLT_OK = 0,
    /// An argument is NULL, out of range or of the wrong kind.
    BLT_ERROR_ARGUMENT = 1,
    /// The system refused to open, read or write a file.
    BLT_ERROR_IO = 2,
    /// A file or buffer is damaged, truncated, of another kind, or belongs to another model.
    BLT_ERROR_FORMAT = 3,
    /// A configuration key is missing or out of range.
    BLT_ERROR_CONFIG = 4,
    /// A tensor is missing or has the wrong shape or type.
    BLT_ERROR_TENSOR = 5,
    /// The model is valid but needs something that this engine does not support.
    BLT_ERROR_UNSUPPORTED = 6,
    /// The text does not fit into the context.
    BLT_ERROR_CONTEXT_FULL = 7,
    /// The model computed a number that is not finite: its weights are damaged.
    BLT_ERROR_NON_FINITE = 8,
    /// blt_session_cancel or a progress callback stopped the call.
    BLT_ERROR_CANCELLED = 9,
    /// Another call is running on this handle.
    BLT_ERROR_BUSY = 10,
    /// A bug in the library was caught. The handle can only be freed.
    BLT_ERROR_PANICKED = 11,
    /// The output does not fit into the buffer.
    BLT_ERROR_BUFFER = 12,
    /// The system gives no more memory. The call had no effect.
    BLT_ERROR_MEMORY = 13,
}

use blt_status::*;

/// The failure of a call: its status and message.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: blt_status,
    pub message: String,
}

impl Failure {
    pub fn argument(name: &str, what: impl std::fmt::Display) -> Self {
        Failure {
            status: BLT_ERROR_ARGUMENT,
            message: format!("{name}: {what}"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Io { .. } => BLT_ERROR_IO,
            Error::Format { .. } => BLT_ERROR_FORMAT,
            Error::Config { .. } => BLT_ERROR_CONFIG,
            Error::Tensor { .. } => BLT_ERROR_TENSOR,
            Error::NonFinite { .. } => BLT_ERROR_NON_FINITE,
            Error::ContextFull { .. } => BLT_ERROR_CONTEXT_FULL,
            Error::Argument { .. } => BLT_ERROR_ARGUMENT,
            Error::Unsupported(_) | Error::Device(_) => BLT_ERROR_UNSUPPORTED,
            Error::Memory { .. } => BLT_ERROR_MEMORY,
            Error::Cancelled => BLT_ERROR_CANCELLED,
        };
        Failure {
            status,
            message: error.to_string(),
        }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Stores the message for `blt_last_error`.
pub(super) fn set_last_error(message: &str) {
    let text: Vec<u8> = message.bytes().filter(|&b| b != 0).collect();
    let text = CString::new(text).expect("the NULs are gone");
    // A thread that is ending can no longer store it.
    let _ = LAST_ERROR.try_with(|last| last.replace(Some(text)));
}

/// The release of the library, as "major.minor.patch".
#[unsafe(no_mangle)]
pub extern "C" fn blt_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version holds no NUL"),
        };
    VERSION.as_ptr()
}

/// The BLT_ABI_VERSION of the library. A program compiled with another version must stop. On systems
/// with a soname (libblt.so.N) the loader ensures this.
#[unsafe(no_mangle)]
pub extern "C" fn blt_abi_version() -> u32 {
    BLT_ABI_VERSION
}

/// Changes whenever a program compiled with an older header would break. New functions, options and
/// status codes do not change it.
pub const BLT_ABI_VERSION: u32 = 0;

/// The name of a status, such as "BLT_ERROR_IO"; "unknown status" for other numbers. Never NULL;
/// valid forever.
#[unsafe(no_mangle)]
pub extern "C" fn blt_status_name(status: c_int) -> *const c_char {
    let name = match status {
        0 => c"BLT_OK",
        1 => c"BLT_ERROR_ARGUMENT",
        2 => c"BLT_ERROR_IO",
        3 => c"BLT_ERROR_FORMAT",
        4 => c"BLT_ERROR_CONFIG",
        5 => c"BLT_ERROR_TENSOR",
        6 => c"BLT_ERROR_UNSUPPORTED",
        7 => c"BLT_ERROR_CONTEXT_FULL",
        8 => c"BLT_ERROR_NON_FINITE",
        9 => c"BLT_ERROR_CANCELLED",
        10 => c"BLT_ERROR_BUSY",
        11 => c"BLT_ERROR_PANICKED",
        12 => c"BLT_ERROR_BUFFER",
        13 => c"BLT_ERROR_MEMORY",
        _ => c"unknown status",
    };
    name.as_ptr()
}

/// The message of the last call on this thread that failed: one line of UTF-8, empty if no call has
/// failed. Never NULL; valid until another call on this thread fails or the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn blt_last_error() -> *const c_char {
    let text = |last: &RefCell<Option<CString>>| last.borrow().as_ref().map(|text| text.as_ptr());
    let text = LAST_ERROR.try_with(text).ok().flatten();
    text.unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(status: c_int) -> &'static str {
        // SAFETY: the function returns literals.
        unsafe { CStr::from_ptr(blt_status_name(status)) }
            .to_str()
            .unwrap()
    }

    #[test]
    fn every_status_has_its_own_name() {
        for status in 0..=BLT_ERROR_MEMORY as c_int {
            // SAFETY: the numbers are those of the enumeration, without gaps.
            let value: blt_status = unsafe { std::mem::transmute(status) };
            assert_eq!(name(status), format!("{value:?}"));
        }
        for status in [-1, BLT_ERROR_MEMORY as c_int + 1, c_int::MAX] {
            assert_eq!(name(status), "unknown status");
        }
    }

    #[test]
    fn the_last_error_is_of_this_thread() {
        set_last_error("here");
        std::thread::spawn(|| set_last_error("there"))
            .join()
            .unwrap();
        // SAFETY: no call on this thread fails in between.
        assert_eq!(unsafe { CStr::from_ptr(blt_last_error()) }, c"here");
        set_last_error("a\0b");
        // SAFETY: as above.
        assert_eq!(unsafe { CStr::from_ptr(blt_last_error()) }, c"ab");
    }
}
