//! A guard around readers that panic on damaged files.
//!
//! The readers of the `parquet` and `arrow` crates answer most damage with an error, but some with
//! a failed assertion (e.g. `parquet` 59 on a bit width above 32 in a dictionary page). A damaged
//! file must not end a program that way, so their panics become errors here. Nothing of a reader
//! is used after its panic.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a reader whose panic will become a [`SourceError`].
///
/// A program's panic hook asks this to keep quiet about a panic that is reported as an error.
///
/// [`SourceError`]: crate::SourceError
pub fn is_panic_expected() -> bool {
    READING.get()
}

/// Runs a reader; a panic of it becomes an error made of the panic's message.
pub(super) fn guarded<T, E>(
    read: impl FnOnce() -> Result<T, E>,
    panicked: impl FnOnce(String) -> E,
) -> Result<T, E> {
    let before = READING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    READING.set(before);
    result.unwrap_or_else(|panic| Err(panicked(message(panic.as_ref()))))
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the reader gave up").to_owned()
}
