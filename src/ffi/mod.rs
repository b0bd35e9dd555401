//! The C interface: pointers in, calls to the engine, status codes out; feature `capi`.
//!
//! `blt.h` beside this file is made from it by cbindgen (`.ci/steps/header`), its rules from
//! `cbindgen.toml`. Nothing is computed here.
//!
//! # Safety
//! All functions ask the same of their callers, and it is what the header's rules say: a handle is
//! NULL or one that this library gave out and that has not been freed; a pointer to `n` elements
//! points to as many (NULL counts as none); text is NUL-terminated; an output pointer points to room
//! for the output or is NULL. NULL where something is needed is an error, not undefined.

#![allow(non_camel_case_types)] // the names are C's
#![allow(clippy::missing_safety_doc)] // said once, above

mod guard;
mod model;
mod options;
mod session;
mod state;
mod status;
