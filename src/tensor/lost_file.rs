//! What a program does when a mapped file is cut short under it.
//!
//! The library installs no signal handler: signals belong to the program.

use std::sync::OnceLock;

/// The line that the handler writes.
static MESSAGE: OnceLock<String> = OnceLock::new();

/// From now on SIGBUS, which touching the lost part of a mapped file raises, ends the process with one line on standard
/// error and exit code 1. For programs: it changes the process, and only the first call has an effect.
pub fn exit_if_lost(program: &str) {
    let message = format!(
        "{program}: a file in use was cut short or could not be read any more; do not write into files of a running \
         program, or use --load read\n"
    );
    if MESSAGE.set(message).is_err() {
        return;
    }
    #[cfg(unix)]
    // SAFETY: the structure is initialised as sigaction asks: zeros, then a handler of the signature that goes without
    // SA_SIGINFO. The handler only reads a string that is set, writes it and exits, which a signal handler may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

#[cfg(unix)]
extern "C" fn handler(_signal: libc::c_int) {
    let message = MESSAGE.get().map_or(&[][..], |m| m.as_bytes());
    // SAFETY: both are async-signal-safe; the buffer is a string that lives as long as the process.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::_exit(1);
    }
}
