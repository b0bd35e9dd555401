//! Checkpoints through the public interface: every published layout opens and serves the same
//! tensors under our names (`layouts`), as do the forms in which people have them (`variants`), and whatever is damaged or
//! hostile is refused (`hostile`).

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod layouts;
mod support;
mod variants;
