//! A guard around readers and writers that panic.
//!
//! The readers of the `parquet` and `arrow` crates answer most damage with an error, but some with
//! a failed assertion (e.g. `parquet` 59 on a bit width above 32 in a dictionary page). A damaged
//! file must not end a program that way, nor a rare type of column that a writer has forgotten, so
//! their panics become errors here. Nothing of a reader or writer is used after its panic.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a reader or writer whose panic will become an error.
///
/// A program's panic hook asks this to keep quiet about a panic that is reported as an error.
pub fn is_panic_expected() -> bool {
    GUARDED.get()
}

/// Runs a reader or writer; a panic of it becomes an error made of the panic's message.
pub(crate) fn guarded<T, E>(
    work: impl FnOnce() -> Result<T, E>,
    panicked: impl FnOnce(String) -> E,
) -> Result<T, E> {
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    result.unwrap_or_else(|panic| Err(panicked(message(panic.as_ref()))))
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it gave up").to_owned()
}
