//! Sinks: one trait, one file a format.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::chunk::{Chunk, OnError, VectorsView};
use crate::error::SinkError;
use crate::format::SinkFormat;
use crate::source::SourceSchema;

mod arrow;
mod columns;
mod jsonl;
mod npy;
mod objects;
mod output;
mod parquet;

/// Takes rows with their vectors, in order, and writes them.
///
/// Dropping a sink before [`Sink::finish`] leaves nothing at the output path and removes the
/// temporary file; that is how a run is abandoned.
pub trait Sink: Send {
    /// Writes the rows of one chunk, which must follow those of the last.
    ///
    /// # Errors
    /// [`SinkError::ClosedPipe`] when standard output is closed; a failing write; a row without a
    /// vector with [`OnError::Fail`]; rows that do not fit the output's columns.
    fn write(&mut self, chunk: &Chunk, vectors: VectorsView<'_>) -> Result<(), SinkError>;

    /// Completes the output: only now does a file appear at the output path, synced to disk.
    ///
    /// # Errors
    /// As [`Sink::write`]; then, too, nothing appears at the output path.
    fn finish(self: Box<Self>) -> Result<(), SinkError>;
}

/// Where the output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkTarget {
    /// A file, replaced at once when the output is complete. A path that exists and is no regular
    /// file (a device, a named pipe) is written in place.
    Path(PathBuf),
    /// Standard output.
    Stdout,
}

/// What to write and how.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// Where the output goes.
    pub target: SinkTarget,
    /// The format; by default what a path's extension says, and JSONL on standard output.
    pub format: Option<SinkFormat>,
    /// Numbers in one vector.
    pub dim: usize,
    /// Name of the column to add; by default `embedding` in JSONL and `vector` elsewhere.
    pub vector_column: Option<String>,
    /// Whether rows without a vector may come, and an `error` column is needed for them.
    pub on_error: OnError,
    /// Schema metadata for Arrow and Parquet, added to the input's (and stronger than it).
    pub metadata: BTreeMap<String, String>,
    /// The input's path, so that it is not overwritten.
    pub input: Option<PathBuf>,
}
