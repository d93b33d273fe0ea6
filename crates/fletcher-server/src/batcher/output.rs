//! Where a request's vectors come together, block by block.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::Computed;
use crate::error::ItemError;

/// Where a request's vectors are put together.
pub(super) struct Output(Mutex<Option<Assembly>>);

struct Assembly {
    computed: Computed,
    left: usize,
    enqueued: Instant,
    started: Option<Instant>,
    done: oneshot::Sender<Computed>,
}

impl Output {
    /// For so many rows.
    pub(super) fn new(computed: Computed, rows: usize, done: oneshot::Sender<Computed>) -> Self {
        let enqueued = Instant::now();
        let assembly = Assembly { computed, left: rows, enqueued, started: None, done };
        Self(Mutex::new(Some(assembly)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Assembly>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first block with rows of the request begins.
    pub(super) fn start(&self, now: Instant) {
        if let Some(assembly) = self.lock().as_mut() {
            assembly.started.get_or_insert(now);
        }
    }

    /// Puts vectors in their places, and hands the whole over when it is complete.
    pub(super) fn put(
        &self,
        results: impl Iterator<Item = (usize, Result<Vec<f32>, ItemError>)>,
        dim: usize,
    ) {
        let mut slot = self.lock();
        let Some(assembly) = slot.as_mut() else { return };
        for (row, result) in results {
            assembly.left -= 1;
            match result {
                Ok(v) => assembly.computed.values[row * dim..(row + 1) * dim].copy_from_slice(&v),
                Err(error) => assembly.computed.errors.push((row, error)),
            }
        }
        if assembly.left > 0 {
            return;
        }
        if let Some(mut assembly) = slot.take() {
            let started = assembly.started.unwrap_or(assembly.enqueued);
            assembly.computed.queued = started.duration_since(assembly.enqueued);
            assembly.computed.computed = started.elapsed();
            // Nobody waits any more if this fails, which is the client's right.
            let _ = assembly.done.send(assembly.computed);
        }
    }
}
