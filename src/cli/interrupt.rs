//! Ctrl-C: the first asks the program to come to an end, the second ends it at once.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::args::Failure;

/// Exit code of a program that a signal has ended: 128 and the signal's number.
const KILLED: i32 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static IDLE: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C sets the flag that [`requested`] reads, instead of ending the program.
pub fn watch() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        if IDLE.load(Relaxed) || REQUESTED.swap(true, Relaxed) {
            eprintln!();
            std::process::exit(KILLED);
        }
    })
    .map_err(|e| Failure::Failed(format!("cannot watch for Ctrl-C: {e}")))
}

/// Whether Ctrl-C has been pressed.
pub fn requested() -> bool {
    REQUESTED.load(Relaxed)
}

/// Forgets that Ctrl-C has been pressed.
pub fn clear() {
    REQUESTED.store(false, Relaxed);
}

/// Runs `wait`, during which nothing would look at the flag: Ctrl-C ends the program at once.
pub fn while_idle<T>(wait: impl FnOnce() -> T) -> T {
    IDLE.store(true, Relaxed);
    let result = wait();
    IDLE.store(false, Relaxed);
    result
}
