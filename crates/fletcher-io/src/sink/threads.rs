//! Threads beside the one that writes.
//!
//! One thread makes a hundred thousand rows a second of Parquet or JSON, where a GPU makes a
//! million vectors. So what can be made of rows without knowing those before is made by several
//! threads, and one puts it in order.

use std::num::NonZero;

/// Threads that make lines or column chunks at the same time. A machine of few cores gets one: the
/// encoder has more use for the others.
pub(super) fn helpers() -> usize {
    const MOST: usize = 4;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (cores / 4).clamp(1, MOST)
}
