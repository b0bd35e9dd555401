//! What the programs share. Nothing here knows what a program is for.

// No single program uses all of it, and each is a crate of its own.
#![allow(dead_code)]

pub mod args;
pub mod interrupt;
pub mod memory;
pub mod model;
pub mod output;
pub mod progress;
pub mod terminal;
pub mod units;
pub mod weights;
