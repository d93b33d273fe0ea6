//! Sources: one trait, one file a format.

use std::io;
use std::path::PathBuf;

use ::arrow::datatypes::SchemaRef;

use crate::chunk::{Chunk, ChunkLimits, OnError, RowError};
use crate::error::SourceError;
use crate::format::SourceFormat;
use crate::source::bytes::Bytes;
use crate::threads;

mod arrow;
mod bytes;
mod columns;
mod csv;
mod first_bytes;
mod ipc_reader;
mod jsonl;
mod line_blocks;
mod line_chunks;
mod lines;
mod parquet;
mod record_reader;
mod texts;

/// Rows of texts, read a bounded chunk at a time.
pub trait Source: Send {
    /// What a sink needs to know of the rows before it sees one.
    fn schema(&self) -> &SourceSchema;

    /// The next rows in file order; `None` at the end. A chunk is never empty.
    ///
    /// # Errors
    /// A row that cannot be embedded with [`OnError::Fail`]; a damaged file or a failing read
    /// whatever the policy. After an error the source is spent.
    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError>;

    /// Other limits than those that it was opened with; to be set before the first chunk is read.
    fn set_limits(&mut self, limits: ChunkLimits);

    /// All rows, where the source knows without reading them.
    fn total_rows(&self) -> Option<u64> {
        None
    }

    /// All bytes, where progress is measured in [`Source::bytes_read`].
    fn total_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes read so far; 0 where [`Source::total_rows`] is the better measure.
    fn bytes_read(&self) -> u64 {
        0
    }
}

/// The shape of a source's rows.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceSchema {
    /// Bare texts: a sink numbers them from 0 in `id` and calls the text `text`.
    Texts,
    /// JSON objects, each with keys of its own.
    Objects {
        /// The key of the text.
        text_column: String,
    },
    /// Columns of one schema.
    Columns {
        /// The schema, metadata included.
        schema: SchemaRef,
        /// Whether a dictionary column has one dictionary throughout, as in an Arrow IPC file. Not
        /// so in Parquet and in Arrow IPC streams, where each batch may bring its own.
        one_dictionary: bool,
    },
}

/// Where texts come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceInput {
    /// A file.
    Path(PathBuf),
    /// Standard input; formats that must seek are first copied to an unnamed temporary file.
    Stdin,
    /// Texts in memory, e.g. from the command line.
    Texts(Vec<String>),
}

impl SourceInput {
    /// The name that errors give it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Stdin => "standard input".to_owned(),
            Self::Texts(_) => "the arguments".to_owned(),
        }
    }
}

/// What to read and how.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Where the texts come from.
    pub input: SourceInput,
    /// The format; by default what a path's extension says, and lines on standard input.
    pub format: Option<SourceFormat>,
    /// The column or key that holds the text, `text` by custom; unused with bare texts.
    pub text_column: String,
    /// What to do with a row that cannot be embedded.
    pub on_error: OnError,
    /// How much a chunk may hold.
    pub limits: ChunkLimits,
    /// Threads that make chunks ahead of whoever takes them, where the format allows it; 1 has the
    /// caller make them, and 0 lets the machine decide: a quarter of its cores, four at most.
    pub threads: usize,
}

/// What every source keeps of its options.
#[derive(Debug, Clone)]
struct SourceContext {
    /// The path, or "standard input".
    file: String,
    text_column: String,
    on_error: OnError,
    limits: ChunkLimits,
    threads: usize,
}

impl SourceContext {
    /// Applies the policy to one row's outcome.
    fn admit<T>(&self, text: Result<T, RowError>) -> Result<Result<T, RowError>, SourceError> {
        match (text, self.on_error) {
            (Err(row), OnError::Fail) => Err(SourceError::Row { file: self.file.clone(), row }),
            (text, _) => Ok(text),
        }
    }

    /// A failing read.
    fn io(&self, source: io::Error) -> SourceError {
        SourceError::Io { file: self.file.clone(), source }
    }

    /// A damaged file.
    fn corrupt(&self, format: &'static str, message: impl ToString) -> SourceError {
        SourceError::Corrupt { file: self.file.clone(), format, message: message.to_string() }
    }
}

/// Opens a source; formats with a schema have it read and the text column checked by then.
///
/// # Errors
/// A file that cannot be opened, an unknown extension, a damaged header, a text column that is
/// missing or does not hold text.
pub fn open_source(options: SourceOptions) -> Result<Box<dyn Source>, SourceError> {
    let SourceOptions { input, format, text_column, on_error, limits, threads } = options;
    let threads = threads::resolve(threads);
    let context = SourceContext { file: input.name(), text_column, on_error, limits, threads };
    let (bytes, format) = match input {
        SourceInput::Texts(texts) => return Ok(Box::new(texts::Texts::new(texts, limits))),
        SourceInput::Path(path) => {
            // Of a file that is not there, or is a folder, the format is no matter.
            let bytes = Bytes::open(&path).map_err(|e| context.io(e))?;
            (bytes, format.map_or_else(|| SourceFormat::from_path(&path), Ok))
        }
        SourceInput::Stdin => {
            (Bytes::Stream(Box::new(io::stdin())), Ok(format.unwrap_or(SourceFormat::Lines)))
        }
    };
    let (head, bytes) = bytes.peek_some(first_bytes::COUNT).map_err(|e| context.io(e))?;
    let file = || context.file.clone();
    if let Some((found, remedy)) = first_bytes::foreign(&head, format.as_ref().ok().copied()) {
        return Err(SourceError::Foreign { file: file(), found, remedy });
    }
    let format = format.map_err(|problem| SourceError::Format { file: file(), problem })?;
    Ok(match format {
        SourceFormat::Lines => Box::new(lines::open(bytes, context)),
        SourceFormat::Jsonl => Box::new(jsonl::open(bytes, context)),
        SourceFormat::Csv => Box::new(csv::Csv::open(bytes, b',', context)?),
        SourceFormat::Tsv => Box::new(csv::Csv::open(bytes, b'\t', context)?),
        SourceFormat::Parquet => Box::new(parquet::Parquet::open(bytes, context)?),
        SourceFormat::Arrow => Box::new(arrow::Arrow::open(bytes, context)?),
    })
}
