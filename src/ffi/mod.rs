//! The C interface: pointers in, calls to the engine, status codes out; feature `capi`.
//!
//! `blt.h` beside this file is made from it by cbindgen (`.ci/steps/header`), its rules from
//! `cbindgen.toml`. Nothing is computed here.
//!
//! # Safety
//! All functions have the same requirements, which are the rules of the header. A handle is NULL, or
//! comes from this library and has not been freed. A pointer to `n` elements points to `n` elements
//! (NULL counts as none). Text is NUL-terminated. An output pointer points to room for the output or
//! is NULL. NULL where a value is required is an error, not undefined behaviour.

#![allow(non_camel_case_types)] // the names are C's
#![allow(clippy::missing_safety_doc)] // said once, above

mod guard;
mod model;
mod options;
mod session;
mod state;
mod status;
