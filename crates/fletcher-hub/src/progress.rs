//! What a download tells its caller, so that the program can draw a bar and a test can watch.

/// Receives the progress of downloads, one file after another.
pub trait Progress: Send + Sync {
    /// A file begins. `total_bytes` is absent where the server does not say. Called again for the
    /// same file when the server cannot resume and the file begins anew.
    fn start(&self, file: &str, total_bytes: Option<u64>);
    /// So many more bytes of the current file are on disk, those of an earlier run included.
    fn advance(&self, bytes: u64);
    /// The current file is complete and checked.
    fn finish(&self);
    /// Something that a person would want to know and that is no failure: a retry, a wait for
    /// another process, a fall-back to the cache.
    fn notice(&self, message: &str);
}

/// A [`Progress`] that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _file: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn notice(&self, _message: &str) {}
}
