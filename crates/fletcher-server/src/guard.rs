//! Damaged Arrow data can make the columnar library panic. Here such a panic is an answer, not a
//! crash, and a program's panic hook may ask whether to stay silent about it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may panic on a client's data; `None` if it did.
pub(crate) fn quietly<R>(work: impl FnOnce() -> R) -> Option<R> {
    let before = EXPECTED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    outcome.ok()
}

/// Whether a panic on this thread would be caught and answered: a hook need not report it.
pub fn is_panic_expected() -> bool {
    EXPECTED.get()
}
