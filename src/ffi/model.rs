//! Models: opened from a file or from memory, asked about, freed.

use std::ffi::{c_char, c_int, c_void};
use std::ops::ControlFlow;

use super::guard::{Out, Result, bytes, free, guard, handle, optional, path};
use super::options::{Settings, blt_options};
use super::status::{Failure, blt_status};
use crate::error::Error;
use crate::model::Model;
use crate::session::memory::check;
use crate::tensor::Storage;

/// Memory that opening a model needs beside its file: headers, tables, threads.
const OPENING: usize = 16 << 20;

/// A model: its weights, which never change, and its threads.
pub struct blt_model(pub(super) Model);

/// Called while a model is opened, with the bytes of weights read so far and in all. Returns 0 to
/// continue; any other value ends the call with BLT_ERROR_CANCELLED.
pub type blt_progress =
    Option<unsafe extern "C" fn(user: *mut c_void, n_done: u64, n_total: u64) -> c_int>;

/// Keys of blt_model_info. Numbers are never reused.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum blt_model_key {
    /// Number of weights, tables and entropy model included.
    BLT_MODEL_PARAMETERS = 1,
    /// Bytes of the weights as stored.
    BLT_MODEL_WEIGHT_BYTES = 2,
    /// Maximum byte positions of the model.
    BLT_MODEL_MAX_BYTES = 3,
    /// Maximum patches of the model.
    BLT_MODEL_MAX_PATCHES = 4,
    /// 1 if it has an entropy model, else 0.
    BLT_MODEL_HAS_ENTROPY_MODEL = 5,
    /// Number of threads.
    BLT_MODEL_THREADS = 6,
    /// A number that identifies the model; saved sessions store it.
    BLT_MODEL_FINGERPRINT = 7,
}

/// Opens a model: a file or a folder in any of the known layouts. The weights are mapped, not read,
/// unless BLT_OPTION_PRELOAD is set. The file must not change while the model is open, unless BLT_OPTION_LOAD is "read".
///
/// options and progress may be NULL; user is passed to progress.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_model_open(
    model_path: *const c_char,
    options: *const blt_options,
    progress: blt_progress,
    user: *mut c_void,
    out: *mut *mut blt_model,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (path, options, out) = unsafe {
            (
                path("model_path", model_path)?,
                Settings::of(optional(options))?,
                Out::new("out", out)?,
            )
        };
        check(OPENING)?;
        let progress = |n_done, n_total| tell(progress, user, n_done, n_total);
        let model = options.model.open_with(path, progress)?;
        out.set(Box::into_raw(Box::new(blt_model(model))));
        Ok(())
    })
}

/// Opens a native model file whose bytes are in memory. They are not copied unless BLT_OPTION_COPY
/// is set, and must not change until the model and every session made with it are freed.
///
/// options and progress may be NULL; user is passed to progress.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_model_open_memory(
    model: *const c_void,
    n_bytes: usize,
    options: *const blt_options,
    progress: blt_progress,
    user: *mut c_void,
    out: *mut *mut blt_model,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules. They include that the bytes outlive the model, which is all
        // that the engine needs of `'static`.
        let (bytes, options, out): (&'static [u8], _, _) = unsafe {
            (
                bytes("model", model, n_bytes)?,
                Settings::of(optional(options))?,
                Out::new("out", out)?,
            )
        };
        let storage = match options.copy {
            true => {
                let mut copy = Vec::new();
                let needed = bytes.len();
                (copy.try_reserve_exact(needed)).map_err(|_| Error::Memory { needed })?;
                copy.extend_from_slice(bytes);
                Storage::from(copy)
            }
            false => Storage::Static(bytes),
        };
        check(OPENING)?;
        let progress = |n_done, n_total| tell(progress, user, n_done, n_total);
        let model = options.model.open_bytes(storage, progress)?;
        out.set(Box::into_raw(Box::new(blt_model(model))));
        Ok(())
    })
}

fn tell(progress: blt_progress, user: *mut c_void, n: usize, n_total: usize) -> ControlFlow<()> {
    // SAFETY: the caller's own function with the caller's own pointer.
    match progress.map_or(0, |progress| unsafe {
        progress(user, n as u64, n_total as u64)
    }) {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

/// Writes a number about a model to out; key is a blt_model_key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_model_info(
    model: *const blt_model,
    key: c_int,
    out: *mut u64,
) -> blt_status {
    use blt_model_key::*;
    guard(|| {
        // SAFETY: the header's rules.
        let (blt_model(model), out) = unsafe { (handle("model", model)?, Out::new("out", out)?) };
        let is = |k: blt_model_key| k as c_int == key;
        out.set(if is(BLT_MODEL_PARAMETERS) {
            model.n_parameters() as u64
        } else if is(BLT_MODEL_WEIGHT_BYTES) {
            model.weight_bytes() as u64
        } else if is(BLT_MODEL_MAX_BYTES) {
            model.config().max_bytes as u64
        } else if is(BLT_MODEL_MAX_PATCHES) {
            model.config().max_patches as u64
        } else if is(BLT_MODEL_HAS_ENTROPY_MODEL) {
            model.has_entropy_model().into()
        } else if is(BLT_MODEL_THREADS) {
            model.compute().n_threads() as u64
        } else if is(BLT_MODEL_FINGERPRINT) {
            model.fingerprint()
        } else {
            return wrong_key("blt_model_key", key);
        });
        Ok(())
    })
}

pub(super) fn wrong_key(kind: &str, found: c_int) -> Result<()> {
    Err(Failure::argument(
        "key",
        format!("expected a {kind}, found {found}"),
    ))
}

/// Frees a model. Sessions made with it stay valid; the last of them frees the weights.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_model_free(model: *mut blt_model) {
    // SAFETY: the header's rules.
    unsafe { free(model) };
}
