//! What travels between a source, the engine and a sink: rows, their errors and their vectors.

use arrow::record_batch::RecordBatch;

use crate::texts::{Objects, Texts};

/// How much one [`Chunk`] may hold; a chunk ends at whichever limit it meets first.
///
/// A chunk holds at least one row, so its size is at most `bytes` plus one row, and a row is at
/// most [`ChunkLimits::row_bytes`] in the text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// The most rows in a chunk.
    pub rows: usize,
    /// The bytes of input after which a chunk ends.
    pub bytes: usize,
    /// The longest line (lines, JSONL) or record (CSV) that is read; a longer one is an error, so
    /// that a file without line ends cannot exhaust memory.
    pub row_bytes: usize,
}

impl Default for ChunkLimits {
    /// 4,096 rows keep a device busy for many batches; 8 MiB keeps long documents from adding up.
    fn default() -> Self {
        Self { rows: 4096, bytes: 8 << 20, row_bytes: 64 << 20 }
    }
}

/// What to do with a row that cannot be embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// End the run with an error that names the row.
    #[default]
    Fail,
    /// Keep the row in its place, with a null vector and a message in an `error` column.
    Skip,
}

/// Consecutive rows of one source.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Number of the first row, from 0 over the whole source.
    pub first_row: u64,
    /// Per row the text, or why there is none. Never `Err` with [`OnError::Fail`].
    pub texts: Texts,
    /// All that the source holds for the same rows, for the sink to write back untouched.
    pub payload: Payload,
}

impl Chunk {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there is no row; a source never yields such a chunk.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}

/// The other columns of a chunk, in the form in which the source holds them.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Bare texts: there is no other column.
    Texts,
    /// Per row the JSON object exactly as it was written.
    Objects(Objects),
    /// A record batch with one row per text, the text column included.
    Columns(RecordBatch),
}

/// Where a row stands in its file, counted from 1 as editors and people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowLocation {
    /// Line of a text file, from 1.
    Line(u64),
    /// Row of a columnar file, from 1.
    Row(u64),
}

impl std::fmt::Display for RowLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// Why one row has no text to embed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {problem}")]
pub struct RowError {
    /// Where the row stands.
    pub location: RowLocation,
    /// What is wrong with it.
    #[source]
    pub problem: RowProblem,
    /// The row as it was written, where the payload cannot hold it (invalid bytes replaced).
    pub raw: Option<String>,
}

/// What can be wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// The text is null.
    #[error("the text in column {column:?} is null")]
    NullText {
        /// The text column.
        column: String,
    },
    /// A JSON object without the text key.
    #[error("the object has no key {column:?}")]
    MissingText {
        /// The text column.
        column: String,
    },
    /// A JSON value that is not a string.
    #[error("the value of {column:?} is {found}, not a string")]
    WrongType {
        /// The text column.
        column: String,
        /// What is there instead, with its article.
        found: &'static str,
    },
    /// A line that is JSON, but not an object.
    #[error("the line is {found}, not a JSON object")]
    NotAnObject {
        /// What is there instead, with its article.
        found: &'static str,
    },
    /// A line that is not JSON.
    #[error("the line is not valid JSON: {message}")]
    MalformedJson {
        /// The parser's complaint, with the column.
        message: String,
    },
    /// A CSV record with more or fewer fields than the header.
    #[error("the record has {found} fields where the header has {expected}")]
    FieldCount {
        /// Fields in the header.
        expected: usize,
        /// Fields in the record.
        found: usize,
    },
    /// Bytes that are not UTF-8.
    #[error("invalid UTF-8 after byte {valid_up_to} of {place}; convert the file to UTF-8")]
    InvalidUtf8 {
        /// The column, or the line.
        place: String,
        /// Bytes before the first invalid one.
        valid_up_to: usize,
    },
    /// A line beyond [`ChunkLimits::row_bytes`].
    #[error("the line is longer than {limit_bytes} bytes")]
    TooLong {
        /// The limit.
        limit_bytes: usize,
    },
}

/// The vectors of one chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Numbers in one vector; the same for every chunk of a run.
    pub dim: usize,
    /// Row-major `[rows × dim]`. A row with an error has its `dim` places too; they are ignored.
    pub values: Vec<f32>,
    /// Per row why there is no vector; empty when every row that has a text has a vector. A row
    /// whose text is an error in the chunk counts as an error whatever stands here.
    pub errors: Vec<Option<String>>,
}
