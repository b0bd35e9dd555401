//! What the programs share, those of other packages too. Nothing here knows what a program is for.
//! No part of the library's interface: it changes without notice.

pub mod args;
pub mod interrupt;
pub mod memory;
pub mod model;
pub mod output;
pub mod progress;
pub mod synthetic;
pub mod terminal;
pub mod units;
pub mod weights;
