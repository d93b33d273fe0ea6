//! Sinks: one trait, one file a format.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::chunk::{Chunk, OnError, Vectors};
use crate::error::SinkError;
use crate::format::SinkFormat;
use crate::source::SourceSchema;
use crate::threads;

mod arrow;
mod columns;
mod exact;
mod jsonl;
mod npy;
mod objects;
mod output;
mod parquet;
mod shapes;

/// Takes rows with their vectors, in order, and writes them.
///
/// Dropping a sink before [`Sink::finish`] leaves nothing at the output path and removes the
/// temporary file; that is how a run is abandoned.
pub trait Sink: Send {
    /// Writes the rows of one chunk, which must follow those of the last. Threads may still be at
    /// work on them when this returns, so an error may be that of an earlier chunk.
    ///
    /// # Errors
    /// [`SinkError::ClosedPipe`] when standard output is closed; a failing write; a row without a
    /// vector with [`OnError::Fail`]; rows that do not fit the output's columns.
    fn write(&mut self, chunk: Chunk, vectors: Vectors) -> Result<(), SinkError>;

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
    /// Threads that make lines, record batches or row groups, each of them, at the same time; 1 has
    /// the caller make them, and 0 lets the machine decide: a quarter of its cores, four at most.
    pub threads: usize,
}

/// What every sink keeps of its options.
#[derive(Debug, Clone)]
struct SinkContext {
    /// The path, or "standard output".
    file: String,
    dim: usize,
    vector_column: String,
    on_error: OnError,
    threads: usize,
}

/// Name of the column that says why a row has no vector.
const ERROR_COLUMN: &str = "error";

/// Name of the column that numbers bare texts.
const ID_COLUMN: &str = "id";

/// Name of the column that holds bare texts.
const TEXT_COLUMN: &str = "text";

/// Creates a sink for the rows of a source.
///
/// # Errors
/// An unknown extension; an output that is the input or cannot be created; a column of the input
/// whose name the sink needs; npy with [`OnError::Skip`].
pub fn create_sink(
    options: SinkOptions,
    source: &SourceSchema,
) -> Result<Box<dyn Sink>, SinkError> {
    let SinkOptions { target, format, dim, vector_column, on_error, metadata, input, .. } = options;
    let file = match &target {
        SinkTarget::Path(path) => path.display().to_string(),
        SinkTarget::Stdout => "standard output".to_owned(),
    };
    let format = match (&target, format) {
        (SinkTarget::Stdout, None) => SinkFormat::Jsonl,
        // A pipe cannot be read from its end, where the file format keeps its index.
        (SinkTarget::Stdout, Some(SinkFormat::Arrow)) => SinkFormat::ArrowStream,
        (_, Some(format)) => format,
        (SinkTarget::Path(path), None) => SinkFormat::from_path(path)
            .map_err(|problem| SinkError::Format { file: file.clone(), problem })?,
    };
    let default_column = if format == SinkFormat::Jsonl { "embedding" } else { "vector" };
    let vector_column = vector_column.unwrap_or_else(|| default_column.to_owned());
    let threads = threads::resolve(options.threads);
    let context = SinkContext { file, dim, vector_column, on_error, threads };
    if format == SinkFormat::Npy {
        if on_error == OnError::Skip {
            return Err(SinkError::NpyCannotSkip);
        }
    } else {
        context.check_names(source)?;
    }
    let output = output::Output::create(&target, input.as_deref(), &context.file)?;
    Ok(match format {
        SinkFormat::Jsonl => Box::new(jsonl::Jsonl::new(output, context)),
        SinkFormat::Npy => Box::new(npy::Npy::new(output, context)?),
        SinkFormat::Arrow | SinkFormat::ArrowStream | SinkFormat::Parquet => {
            let columns = columns::Columns::new(format, source, context, metadata);
            Box::new(columns::Columnar::new(format, output, columns))
        }
    })
}

impl SinkContext {
    /// The names of the columns that the sink adds.
    fn added_columns(&self) -> impl Iterator<Item = &str> {
        let error = (self.on_error == OnError::Skip).then_some(ERROR_COLUMN);
        std::iter::once(self.vector_column.as_str()).chain(error)
    }

    /// Refuses an added column whose name is taken.
    fn check_names(&self, source: &SourceSchema) -> Result<(), SinkError> {
        if self.added_columns().skip(1).any(|name| name == self.vector_column) {
            return Err(self.clash(ERROR_COLUMN, None));
        }
        let taken = |name: &str| match source {
            SourceSchema::Texts => name == ID_COLUMN || name == TEXT_COLUMN,
            SourceSchema::Objects { text_column } => name == text_column,
            SourceSchema::Columns { schema, .. } => schema.column_with_name(name).is_some(),
        };
        match self.added_columns().find(|name| taken(name)) {
            Some(name) => Err(self.clash(name, None)),
            None => Ok(()),
        }
    }

    /// The input has a column of a name that the sink needs.
    fn clash(&self, column: &str, row: Option<u64>) -> SinkError {
        let remedy = if column == self.vector_column {
            "choose another name for the vectors (vector column)"
        } else {
            "rename it in the input, or fail on errors instead of skipping them"
        };
        SinkError::ColumnClash { column: column.to_owned(), row, remedy }
    }

    /// A failing write.
    fn io(&self, error: std::io::Error) -> SinkError {
        output::io_error(&self.file, error)
    }

    /// Checks that rows and vectors match.
    fn check_shape(&self, chunk: &Chunk, vectors: &Vectors) -> Result<(), SinkError> {
        let rows = chunk.len();
        let errors_match = vectors.errors.is_empty() || vectors.errors.len() == rows;
        if vectors.dim != self.dim || vectors.values.len() != rows * self.dim || !errors_match {
            let (values, errors) = (vectors.values.len(), vectors.errors.len());
            return Err(SinkError::Shape { rows, dim: self.dim, values, errors });
        }
        Ok(())
    }

    /// Checks the shapes, and says per row why there is no vector.
    ///
    /// # Errors
    /// Shapes that do not match; with [`OnError::Fail`] the first row without a vector.
    fn row_errors(
        &self,
        chunk: &Chunk,
        vectors: &Vectors,
    ) -> Result<Vec<Option<String>>, SinkError> {
        self.check_shape(chunk, vectors)?;
        let mut errors = match vectors.errors.is_empty() {
            true => vec![None; chunk.len()],
            false => vectors.errors.clone(),
        };
        for (row, error) in chunk.texts.errors() {
            errors[*row] = Some(error.to_string());
        }
        let first = errors.iter().zip(chunk.first_row + 1..).find(|(error, _)| error.is_some());
        match first {
            Some((Some(message), row)) if self.on_error == OnError::Fail => {
                Err(SinkError::RowError { row, message: message.clone() })
            }
            _ => Ok(errors),
        }
    }
}
