//! What one request is about, for those who watch it: made by the outermost layer, filled in by the
//! service, read when the last byte of the answer is handed over.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::trace::Trace;

/// One request, an HTTP call or a stream over gRPC.
#[derive(Debug, Default)]
pub(crate) struct Context {
    /// Its span, if it is traced.
    pub(crate) trace: Option<Trace>,
    rows: AtomicUsize,
    tokens: AtomicUsize,
}

impl Context {
    pub(crate) fn new(trace: Option<Trace>) -> Self {
        Self { trace, ..Self::default() }
    }

    /// Texts were embedded for it.
    pub(crate) fn add(&self, rows: usize, tokens: usize) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Texts embedded so far, and their tokens.
    pub(crate) fn done(&self) -> (usize, usize) {
        (self.rows.load(Ordering::Relaxed), self.tokens.load(Ordering::Relaxed))
    }
}
