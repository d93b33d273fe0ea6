//! What can go wrong with a whole file, as against one row (`RowError`).

use std::io;
use std::path::PathBuf;

use crate::chunk::RowError;
use crate::format::UnknownFormat;

/// A source that cannot be opened or read on. All but `Io` are the input's fault.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Opening or reading failed.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The path, or "standard input".
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The extension says nothing and no format was given.
    #[error("{file}: {problem}; name the input format")]
    Format {
        /// The path, or "standard input".
        file: String,
        /// The unknown name.
        #[source]
        problem: UnknownFormat,
    },
    /// The first bytes are those of something that is not read as it is.
    #[error("{file} is {found}; {remedy}")]
    Foreign {
        /// The path, or "standard input".
        file: String,
        /// What it is, with its article.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The text column is not there.
    #[error(
        "{file} has no column {column:?}; its columns are {}; name the text column",
        list(available)
    )]
    MissingColumn {
        /// The path, or "standard input".
        file: String,
        /// The column looked for.
        column: String,
        /// The columns that are there.
        available: Vec<String>,
    },
    /// The text column does not hold text.
    #[error("{file}: column {column:?} holds {found}, not text; name another text column")]
    NotText {
        /// The path, or "standard input".
        file: String,
        /// The text column.
        column: String,
        /// Its Arrow type.
        found: String,
    },
    /// Two columns of one name.
    #[error("{file} has two columns named {column:?}; rename one")]
    DuplicateColumn {
        /// The path, or "standard input".
        file: String,
        /// The name.
        column: String,
    },
    /// A row cannot be embedded, and the policy is to fail.
    #[error("{file}, {row}; correct it, or keep such rows without a vector (on-error skip)")]
    Row {
        /// The path, or "standard input".
        file: String,
        /// The row and its problem.
        #[source]
        row: RowError,
    },
    /// The file is damaged or not of its format: nothing after this point can be read.
    #[error("{file} is damaged, or not {format}: {message}; write it anew")]
    Corrupt {
        /// The path, or "standard input".
        file: String,
        /// The format that was expected.
        format: &'static str,
        /// What the reader met, and where.
        message: String,
    },
    /// A reference row without a usable vector.
    #[error("{file}, row {row}: {message}")]
    Reference {
        /// The path.
        file: String,
        /// The row, from 1.
        row: u64,
        /// What is wrong with its vector.
        message: String,
    },
}

/// `"a", "b"`, or a word for none.
fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none at all".to_owned();
    }
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// A sink that cannot be opened, written or finished.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Whoever read our standard output (or named pipe) has gone; a program ends quietly then.
    #[error("the reader of the output has closed it")]
    ClosedPipe,
    /// Creating, writing, syncing or renaming failed.
    #[error("cannot write {file}: {source}")]
    Io {
        /// The path, or "standard output".
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The extension says nothing and no format was given.
    #[error("{file}: {problem}; name the output format")]
    Format {
        /// The path, or "standard output".
        file: String,
        /// The unknown name.
        #[source]
        problem: UnknownFormat,
    },
    /// Output and input are the same file.
    #[error("{} is both input and output; name another output", path.display())]
    OutputIsInput {
        /// The path.
        path: PathBuf,
    },
    /// The input already has a column that the sink must add.
    #[error(
        "the input already has a column {column:?}{}; {remedy}",
        row.map(|row| format!(" (row {row})")).unwrap_or_default()
    )]
    ColumnClash {
        /// The name.
        column: String,
        /// The first row that has it, from 1, where rows differ in their columns.
        row: Option<u64>,
        /// What to do.
        remedy: &'static str,
    },
    /// npy has no null, hence no way to keep a row without a vector.
    #[error("npy cannot hold a row without a vector; write parquet, arrow or jsonl to skip errors")]
    NpyCannotSkip,
    /// A row without a vector came although the policy is to fail.
    #[error("row {row}: {message}; correct it, or keep such rows without a vector (on-error skip)")]
    RowError {
        /// The row, from 1.
        row: u64,
        /// Why it has no vector.
        message: String,
    },
    /// A JSON object that does not fit the columns found in the first rows.
    #[error(
        "line {line} does not fit the columns found in the first rows: {message}; write jsonl, \
         which needs no common columns, or keep such rows without a vector (on-error skip)"
    )]
    Misfit {
        /// The line, from 1.
        line: u64,
        /// The field and what it holds.
        message: String,
    },
    /// The output format cannot hold this.
    #[error("{file}: {message}")]
    Unsupported {
        /// The path, or "standard output".
        file: String,
        /// What cannot be held, and what to do.
        message: String,
    },
    /// Vectors and rows do not match: the caller's fault.
    #[error("{values} values and {errors} errors given for {rows} rows of dimension {dim}")]
    Shape {
        /// Rows in the chunk.
        rows: usize,
        /// Numbers in a vector, as the sink was made for.
        dim: usize,
        /// Values given.
        values: usize,
        /// Errors given.
        errors: usize,
    },
}
