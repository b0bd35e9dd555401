//! Sessions' states: to and from files and buffers.

use std::ffi::{c_char, c_void};

use super::guard::{Out, OutSlice, Result, bytes, guard, handle, optional, path};
use super::model::blt_model;
use super::options::{Settings, blt_options};
use super::session::{Talk, blt_session, talk};
use super::status::blt_status;
use crate::session::Session;

/// Writes what the session has read, and its settings, to a file, which appears only when complete.
/// Sampling options are not saved.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_save(
    session: *const blt_session,
    state_path: *const c_char,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (talk, path) = unsafe { (talk(session)?, path("state_path", state_path)?) };
        Ok(talk.session.save(path)?)
    })
}

/// Like blt_session_save, to a buffer with room for capacity bytes; n receives their number. With out
/// NULL and capacity 0 they are only counted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_save_memory(
    session: *const blt_session,
    out: *mut u8,
    capacity: usize,
    n: *mut usize,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (talk, out) = unsafe { (talk(session)?, OutSlice::new(out, capacity, n)?) };
        if out.only_counts() {
            out.set_count(talk.session.saved_bytes());
            return Ok(());
        }
        let mut state = Vec::with_capacity(talk.session.saved_bytes());
        let written = talk.session.save_to(&mut state);
        written.expect("writing to memory does not fail");
        out.set(&state)
    })
}

/// Makes a session that continues from a state that blt_session_save wrote. The model must be the
/// same. Of options (may be NULL) only those of sampling are used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_load(
    model: *const blt_model,
    options: *const blt_options,
    state_path: *const c_char,
    out: *mut *mut blt_session,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (blt_model(model), options, path, out) = unsafe {
            (
                handle("model", model)?,
                Settings::of(optional(options))?,
                path("state_path", state_path)?,
                Out::new("out", out)?,
            )
        };
        give(Session::load(model, path)?, options, out)
    })
}

/// Like blt_session_load, from a buffer, which is not needed afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_load_memory(
    model: *const blt_model,
    options: *const blt_options,
    state: *const c_void,
    n_bytes: usize,
    out: *mut *mut blt_session,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (blt_model(model), options, state, out) = unsafe {
            (
                handle("model", model)?,
                Settings::of(optional(options))?,
                bytes("state", state, n_bytes)?,
                Out::new("out", out)?,
            )
        };
        give(Session::load_from(model, state)?, options, out)
    })
}

fn give(session: Session, options: Settings, out: Out<*mut blt_session>) -> Result<()> {
    out.set(Talk::new(session, options.generate)?.into_handle());
    Ok(())
}
