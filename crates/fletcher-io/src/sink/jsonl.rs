//! JSONL: the input's object as it was written, with the vector put before its closing brace.

use std::io::{self, Write};

use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::record_batch::RecordBatch;

use crate::chunk::{Chunk, Payload, RowError, VectorsView};
use crate::error::SinkError;
use crate::guard::guarded;
use crate::sink::output::Output;
use crate::sink::{ERROR_COLUMN, ID_COLUMN, Sink, SinkContext, TEXT_COLUMN};

/// Name of the key that keeps a row which is no object of its own.
const RAW_COLUMN: &str = "raw";

pub(super) struct Jsonl {
    output: Output,
    context: SinkContext,
    /// The line in the making.
    line: Vec<u8>,
}

/// What a line gets beside its own columns.
struct Added<'a> {
    vector: &'a [f32],
    error: Option<&'a str>,
    raw: Option<&'a str>,
}

impl Jsonl {
    pub(super) fn new(output: Output, context: SinkContext) -> Self {
        Self { output, context, line: Vec::new() }
    }

    /// Writes an object with the vector and the error added. `open` is the object without its
    /// closing brace.
    fn write_line(&mut self, open: &[u8], added: &Added<'_>) -> io::Result<()> {
        let line = &mut self.line;
        line.clear();
        line.extend_from_slice(open);
        let key = |line: &mut Vec<u8>, name: &str| -> io::Result<()> {
            if line.trim_ascii_end().last() != Some(&b'{') {
                line.push(b',');
            }
            serde_json::to_writer(&mut *line, name)?;
            line.push(b':');
            Ok(())
        };
        key(line, &self.context.vector_column)?;
        match added.error {
            None => serde_json::to_writer(&mut *line, added.vector)?,
            Some(error) => {
                line.extend_from_slice(b"null");
                key(line, ERROR_COLUMN)?;
                serde_json::to_writer(&mut *line, error)?;
            }
        }
        if let Some(raw) = added.raw {
            key(line, RAW_COLUMN)?;
            serde_json::to_writer(&mut *line, raw)?;
        }
        line.extend_from_slice(b"}\n");
        self.output.write_all(line)
    }

    /// Refuses an object that already has a key which is to be added.
    fn check_keys(&self, object: &str, row: u64) -> Result<(), SinkError> {
        let suspects = |name: &str| memchr::memmem::find(object.as_bytes(), name.as_bytes());
        let escaped = suspects("\\").is_some();
        if !escaped && self.context.added_columns().all(|name| suspects(name).is_none()) {
            return Ok(());
        }
        let Ok(keys) = serde_json::from_str::<Keys>(object) else { return Ok(()) };
        match self.context.added_columns().find(|name| keys.contains_key(*name)) {
            Some(name) => Err(self.context.clash(name, Some(row))),
            None => Ok(()),
        }
    }
}

/// An object's keys; its values are not looked at.
type Keys = std::collections::HashMap<String, serde::de::IgnoredAny>;

impl Sink for Jsonl {
    fn write(&mut self, chunk: &Chunk, vectors: VectorsView<'_>) -> Result<(), SinkError> {
        let errors = self.context.row_errors(chunk, vectors)?;
        let columns = match &chunk.payload {
            Payload::Columns(batch) => self.batch_lines(batch)?,
            Payload::Texts | Payload::Objects(_) => Vec::new(),
        };
        // Columns have no broken row but a record of too many fields, which may have a field `raw`.
        let raw_is_free = self.context.vector_column != RAW_COLUMN && !has_raw(&chunk.payload);
        let mut column_lines = columns.split(|byte| *byte == b'\n');
        for (index, text) in chunk.texts.iter().enumerate() {
            let row = chunk.first_row + index as u64;
            let start = index * self.context.dim;
            let added = Added {
                vector: &vectors.values[start..start + self.context.dim],
                error: errors[index].as_deref(),
                raw: text
                    .as_ref()
                    .err()
                    .filter(|_| raw_is_free)
                    .and_then(|error| error.raw.as_deref()),
            };
            let own;
            let object: &[u8] = match &chunk.payload {
                Payload::Texts => {
                    own = numbered(row, text).map_err(|e| self.context.io(e))?;
                    &own
                }
                Payload::Objects(objects) => match &objects[index].1 {
                    Some(object) => {
                        self.check_keys(object, row + 1)?;
                        object.trim_ascii().as_bytes()
                    }
                    None => b"{}",
                },
                Payload::Columns(_) => column_lines.next().unwrap_or(b"{}"),
            };
            let open = object.strip_suffix(b"}").unwrap_or(object);
            self.write_line(open, &added).map_err(|e| self.context.io(e))?;
        }
        if self.output.is_stream() {
            self.output.flush().map_err(|e| self.context.io(e))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), SinkError> {
        self.output.commit()
    }
}

impl Jsonl {
    /// The rows of a record batch as objects, a line each, nulls included.
    fn batch_lines(&self, batch: &RecordBatch) -> Result<Vec<u8>, SinkError> {
        let mut writer =
            WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
        let write = || writer.write(batch).and_then(|()| writer.finish());
        guarded(write, ArrowError::JsonError).map_err(|e| SinkError::Unsupported {
            file: self.context.file.clone(),
            message: format!("a column cannot be written as JSON ({e}); write parquet or arrow"),
        })?;
        Ok(writer.into_inner())
    }
}

/// Whether the rows have a column of their own where a broken row would be kept.
fn has_raw(payload: &Payload) -> bool {
    match payload {
        Payload::Texts | Payload::Objects(_) => false,
        Payload::Columns(batch) => batch.column_by_name(RAW_COLUMN).is_some(),
    }
}

/// A bare text as an object.
fn numbered(row: u64, text: &Result<String, RowError>) -> io::Result<Vec<u8>> {
    let mut object = Vec::new();
    write!(object, "{{\"{ID_COLUMN}\":{row},\"{TEXT_COLUMN}\":")?;
    serde_json::to_writer(&mut object, &text.as_ref().ok())?;
    object.push(b'}');
    Ok(object)
}
