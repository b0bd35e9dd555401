//! Signals that end a program: Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a terminal that goes away.
//!
//! The first signal asks the program to end: the work that checks [`requested`] stops and saves. The second ends the
//! program at once. The exit code is 128 and the signal's number: 130, 143, 129.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::failure::Failure;

/// The signal that was received; 0: none.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// Whether the next signal ends the program at once.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on a signal sets what [`requested`] reads, instead of ending the program.
pub fn watch() -> Result<(), Failure> {
    let watch = |signal: i32| {
        // In this order: the first signal finds the flag unset and sets it for the second.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&AT_ONCE))?;
        flag::register(signal, Arc::clone(&AT_ONCE))?;
        flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize)
    };
    let watched = signals().into_iter().try_for_each(|s| watch(s).map(|_| ()));
    watched.map_err(|e| Failure::failed(format!("cannot watch for Ctrl-C: {e}")))
}

/// The signals to watch for.
fn signals() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !is_ignored(signal_hook::consts::SIGHUP) {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

/// Whether the parent process made this program ignore a signal, as `nohup` does with SIGHUP.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Whether a signal was received.
pub fn requested() -> bool {
    signal().is_some()
}

/// The signal that was received.
pub fn signal() -> Option<u8> {
    u8::try_from(SIGNAL.load(SeqCst)).ok().filter(|&s| s > 0)
}

/// Whether the whole program should end. Ctrl-C ends only the current piece of work.
pub fn is_final() -> bool {
    signal().is_some_and(|s| i32::from(s) != SIGINT)
}

/// Forgets a signal.
pub fn clear() {
    AT_ONCE.store(false, SeqCst);
    SIGNAL.store(0, SeqCst);
}

/// Runs `wait`, in which nothing checks for signals: one ends the program at once.
pub fn while_idle<T>(wait: impl FnOnce() -> T) -> T {
    AT_ONCE.store(true, SeqCst);
    if let Some(signal) = signal() {
        std::process::exit(128 + i32::from(signal));
    }
    let result = wait();
    AT_ONCE.store(false, SeqCst);
    result
}
