//! What threads need for tokenising, kept between calls.
//!
//! A scratch knows the words that it met, so it is worth more the more it was used, and most in the
//! core whose cache holds it. So each worker has its own; other threads share some, as many as have
//! tokenised at the same time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::text::TextScratch;

/// The scratches of an embedder.
#[derive(Debug)]
pub(super) struct Scratches {
    of_workers: Vec<Mutex<Box<TextScratch>>>,
    /// Those that no other thread has now.
    others: Mutex<Vec<Box<TextScratch>>>,
}

impl Scratches {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            of_workers: std::iter::repeat_with(Mutex::default).take(workers).collect(),
            others: Mutex::default(),
        }
    }

    /// Lends this thread one for the time of `work`. Of a worker in which that panics the scratch
    /// is not used again: it takes shared ones then.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut TextScratch) -> R) -> R {
        let own = rayon::current_thread_index().and_then(|worker| self.of_workers.get(worker));
        if let Some(Ok(mut scratch)) = own.map(Mutex::try_lock) {
            return work(&mut scratch);
        }
        let mut scratch = self.others().pop().unwrap_or_default();
        let done = work(&mut scratch);
        self.others().push(scratch);
        done
    }

    fn others(&self) -> MutexGuard<'_, Vec<Box<TextScratch>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
