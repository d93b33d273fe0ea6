//! Vectors that were computed before: bounded, and each text computed once however many ask.
//!
//! A key is a hash over the prompt, the options and the text (the server has one model, so its
//! fingerprint is the cache's, not the key's). Who finds a key missing computes it; others who want
//! it meanwhile wait, and take over when that computation fails or is given up. Nobody waits while
//! it holds a computation of its own, so two requests cannot wait for each other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use fletcher_core::embedder::Embedding;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult, PlaceholderGuard};
use sha2::{Digest, Sha256};

use crate::metrics::Metrics;

/// What one entry costs besides its vector: the key, the counters and the tables' slots.
const ENTRY_BYTES: u64 = 128;

/// A hash that stands for a text with everything that shapes its vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Each part is preceded by its length, so that no two lists of parts are alike.
    pub(crate) fn new(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize().into())
    }
}

/// A stored vector.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) vector: Arc<[f32]>,
    pub(crate) embedding: Embedding,
}

/// Weighs entries in bytes.
#[derive(Clone)]
pub(crate) struct Bytes;

impl Weighter<Key, Stored> for Bytes {
    fn weight(&self, _: &Key, stored: &Stored) -> u64 {
        ENTRY_BYTES + 4 * stored.vector.len() as u64
    }
}

type State = std::hash::RandomState;
type Lifecycle = DefaultLifecycle<Key, Stored>;
/// The duty to compute a key. Dropped without an answer, it passes to whoever waits.
pub(crate) type Duty<'a> = PlaceholderGuard<'a, Key, Stored, Bytes, State, Lifecycle>;

/// The cache of one server.
pub(crate) struct VectorCache {
    cache: Cache<Key, Stored, Bytes, State, Lifecycle>,
    metrics: Arc<Metrics>,
}

/// What a request finds.
pub(crate) struct Lookup<'a> {
    /// Vectors by row.
    pub(crate) found: Vec<(usize, Stored)>,
    /// Rows to compute, each with the duty to store its vector.
    pub(crate) duties: Vec<(usize, Duty<'a>)>,
    /// Rows that somebody else computes now.
    pub(crate) elsewhere: Vec<usize>,
    /// Rows that have the same key as an earlier row: `(row, earlier row)`.
    pub(crate) repeated: Vec<(usize, usize)>,
}

impl VectorCache {
    /// A cache of at most so many bytes, for vectors of this length.
    pub(crate) fn new(bytes: u64, dim: usize, metrics: Arc<Metrics>) -> Self {
        let entries = (bytes / (ENTRY_BYTES + 4 * dim as u64)).max(1) as usize;
        let cache = Cache::with(entries, bytes, Bytes, State::default(), Lifecycle::default());
        Self { cache, metrics }
    }

    /// Looks every row up once, without waiting.
    pub(crate) fn look_up(&self, rows: &[usize], keys: &[Key]) -> Lookup<'_> {
        let mut lookup = Lookup {
            found: Vec::new(),
            duties: Vec::new(),
            elsewhere: Vec::new(),
            repeated: Vec::new(),
        };
        let mut first = HashMap::with_capacity(rows.len());
        for &row in rows {
            match first.entry(keys[row]) {
                Entry::Occupied(earlier) => {
                    lookup.repeated.push((row, *earlier.get()));
                    continue;
                }
                Entry::Vacant(vacant) => vacant.insert(row),
            };
            match self.cache.get_value_or_guard(&keys[row], Some(Duration::ZERO)) {
                GuardResult::Value(stored) => lookup.found.push((row, stored)),
                GuardResult::Guard(duty) => lookup.duties.push((row, duty)),
                GuardResult::Timeout => lookup.elsewhere.push(row),
            }
        }
        self.metrics.cache_hits.inc_by(lookup.found.len() as u64);
        self.metrics.cache_misses.inc_by(lookup.duties.len() as u64);
        lookup
    }

    /// Waits for somebody else's computation of a key; gets the duty if they give up.
    pub(crate) async fn wait(&self, key: &Key) -> Result<Stored, Duty<'_>> {
        let outcome = self.cache.get_value_or_guard_async(key).await;
        if outcome.is_ok() {
            self.metrics.cache_shared.inc();
        }
        outcome
    }

    /// Publishes the cache's size.
    pub(crate) fn publish(&self) {
        self.metrics.cache_bytes.set(self.cache.weight() as i64);
    }
}
