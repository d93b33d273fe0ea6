//! Where the time of a call goes.
//!
//! The engine has no clock of its own, so whoever wants to know hands one in; without one nothing
//! is measured. With one, it is read twice per stage of a block or of a slice of texts, never per
//! token.

use std::sync::atomic::{AtomicU64, Ordering};

/// Reads a clock that never goes back, in nanoseconds.
pub type Clock = fn() -> u64;

/// Time spent in each stage, summed over the threads, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Text to token ids.
    pub tokenise: u64,
    /// Rows to packed blocks.
    pub pack: u64,
    /// The encoder and pooling.
    pub encode: u64,
    /// What stands behind pooling: Dense, normalisation, dimensions.
    pub head: u64,
}

impl StageTimes {
    /// What was spent between two readings.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            tokenise: self.tokenise - earlier.tokenise,
            pack: self.pack - earlier.pack,
            encode: self.encode - earlier.encode,
            head: self.head - earlier.head,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    Tokenise,
    Pack,
    Encode,
    Head,
}

/// A clock, if there is one, and what it has measured.
#[derive(Debug, Default)]
pub(super) struct StageClock {
    clock: Option<Clock>,
    totals: [AtomicU64; 4],
}

impl StageClock {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock: Some(clock), totals: Default::default() }
    }

    pub(super) fn measure<R>(&self, stage: Stage, work: impl FnOnce() -> R) -> R {
        let Some(clock) = self.clock else { return work() };
        let start = clock();
        let done = work();
        self.totals[stage as usize].fetch_add(clock().saturating_sub(start), Ordering::Relaxed);
        done
    }

    pub(super) fn times(&self) -> StageTimes {
        let total = |stage: Stage| self.totals[stage as usize].load(Ordering::Relaxed);
        StageTimes {
            tokenise: total(Stage::Tokenise),
            pack: total(Stage::Pack),
            encode: total(Stage::Encode),
            head: total(Stage::Head),
        }
    }
}
