//! Signals that would end the program where it should not end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Makes a write beyond the limit on a file's size (`ulimit -f`) an error like that of a full disk.
/// Without a handler the signal ends the program, and an unfinished output stays behind.
pub(crate) fn outlive_full_files() {
    let unread = Arc::new(AtomicBool::new(false));
    // Where it cannot be had, such a write ends the program, as it does most others.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, unread);
}

/// Whether whoever started us wants this signal ignored, as `nohup` does with SIGHUP.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: zeroes are a valid `sigaction`, which is plain data; without a new action the call
    // only writes the present one to it.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut present) == 0
            && present.sa_sigaction == libc::SIG_IGN
    }
}
