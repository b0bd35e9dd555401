//! Checkpoints through the public interface: every published layout opens and serves the same
//! tensors under our names (`layouts`), and whatever is damaged or hostile is refused (`hostile`).

mod hostile;
mod layouts;
mod support;
