//! What threads need for tokenising, kept between calls.
//!
//! A scratch knows the words that it met, so it is worth more the more it was used: each goes to
//! whichever thread begins to tokenise, and comes back when that thread is done. There are as many
//! as threads have tokenised at the same time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::text::TextScratch;

/// The scratches that no thread has.
#[derive(Debug, Default)]
pub(super) struct Scratches(Mutex<Vec<Box<TextScratch>>>);

impl Scratches {
    /// Lends one for the time of `work`. If that panics, the scratch is lost and no more.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut TextScratch) -> R) -> R {
        let mut scratch = self.lock().pop().unwrap_or_default();
        let done = work(&mut scratch);
        self.lock().push(scratch);
        done
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Box<TextScratch>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
