//! JSONL: the input's object as it was written, with the vector put before its closing brace.

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;

use arrow::array::timezone::Tz;
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Schema};
use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::record_batch::RecordBatch;

use crate::chunk::{Chunk, Payload, RowError, Vectors};
use crate::error::SinkError;
use crate::guard::guarded;
use crate::sink::output::Output;
use crate::sink::{ERROR_COLUMN, ID_COLUMN, Sink, SinkContext, TEXT_COLUMN};
use crate::threads;

/// Name of the key that keeps a row which is no object of its own.
const RAW_COLUMN: &str = "raw";

/// Rows that are worth a thread of their own: some milliseconds' work at small dimensions.
const ROWS_PER_THREAD: usize = 512;

pub(super) struct Jsonl {
    output: Output,
    context: SinkContext,
}

/// What a line gets beside its own columns.
struct Added<'a> {
    vector: &'a [f32],
    error: Option<&'a str>,
    raw: Option<&'a str>,
}

impl Jsonl {
    pub(super) fn new(output: Output, context: SinkContext) -> Self {
        Self { output, context }
    }

    /// Appends an object with the vector and the error added. `open` is the object without its
    /// closing brace.
    fn add_line(&self, open: &[u8], added: &Added<'_>, lines: &mut Vec<u8>) -> io::Result<()> {
        let start = lines.len();
        lines.extend_from_slice(open);
        let key = |lines: &mut Vec<u8>, name: &str| -> io::Result<()> {
            if lines[start..].trim_ascii_end().last() != Some(&b'{') {
                lines.push(b',');
            }
            serde_json::to_writer(&mut *lines, name)?;
            lines.push(b':');
            Ok(())
        };
        key(lines, &self.context.vector_column)?;
        match added.error {
            None => serde_json::to_writer(&mut *lines, added.vector)?,
            Some(error) => {
                lines.extend_from_slice(b"null");
                key(lines, ERROR_COLUMN)?;
                serde_json::to_writer(&mut *lines, error)?;
            }
        }
        if let Some(raw) = added.raw {
            key(lines, RAW_COLUMN)?;
            serde_json::to_writer(&mut *lines, raw)?;
        }
        lines.extend_from_slice(b"}\n");
        Ok(())
    }

    /// The lines of some of a chunk's rows.
    fn lines(&self, rows: &Rows<'_>, range: Range<usize>) -> Result<Vec<u8>, SinkError> {
        let Rows { chunk, vectors, errors, columns, raw_is_free } = rows;
        // A number of a vector and its comma take about a dozen bytes.
        let mut lines = Vec::with_capacity(range.len() * self.context.dim * 12);
        for index in range {
            let row = chunk.first_row + index as u64;
            let start = index * self.context.dim;
            let raw = chunk.texts.get(index).err().and_then(|error| error.raw.as_deref());
            let added = Added {
                vector: &vectors.values[start..start + self.context.dim],
                error: errors[index].as_deref(),
                raw: raw.filter(|_| *raw_is_free),
            };
            let own;
            let object: &[u8] = match &chunk.payload {
                Payload::Texts => {
                    own = numbered(row, chunk.texts.get(index)).map_err(|e| self.context.io(e))?;
                    &own
                }
                Payload::Objects(objects) => match objects.get(index) {
                    Some(object) => {
                        self.check_keys(object, row + 1)?;
                        object.trim_ascii().as_bytes()
                    }
                    None => b"{}",
                },
                Payload::Columns(_) => columns.get(index).copied().unwrap_or(b"{}"),
            };
            let open = object.strip_suffix(b"}").unwrap_or(object);
            self.add_line(open, &added, &mut lines).map_err(|e| self.context.io(e))?;
        }
        Ok(lines)
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

/// A chunk on its way to lines.
struct Rows<'a> {
    chunk: &'a Chunk,
    vectors: &'a Vectors,
    errors: Vec<Option<String>>,
    /// Each row of the input's columns as an object; empty if the input has none.
    columns: Vec<&'a [u8]>,
    /// Whether a broken row may be kept in a key of its own.
    raw_is_free: bool,
}

impl Sink for Jsonl {
    fn write(&mut self, chunk: Chunk, vectors: Vectors) -> Result<(), SinkError> {
        let (chunk, vectors) = (&chunk, &vectors);
        let errors = self.context.row_errors(chunk, vectors)?;
        let columns = match &chunk.payload {
            Payload::Columns(batch) => self.batch_lines(batch)?,
            Payload::Texts | Payload::Objects(_) => Vec::new(),
        };
        // Columns have no broken row but a record of too many fields, which may have a field `raw`.
        let raw_is_free = self.context.vector_column != RAW_COLUMN && !has_raw(&chunk.payload);
        let columns = columns.split(|byte| *byte == b'\n').collect();
        let rows = Rows { chunk, vectors, errors, columns, raw_is_free };
        let threads = self.context.threads.min(chunk.len() / ROWS_PER_THREAD).max(1);
        let part = chunk.len().div_ceil(threads);
        let parts = (0..threads).map(|n| n * part..((n + 1) * part).min(chunk.len()));
        let (sink, rows) = (&*self, &rows);
        let lines: Result<Vec<_>, _> = match threads {
            1 => parts.map(|range| sink.lines(rows, range)).collect(),
            _ => std::thread::scope(|scope| {
                let spawn = |range| {
                    let lines = move || sink.lines(rows, range);
                    threads::named("fletcher-write").spawn_scoped(scope, lines)
                };
                let threads: Vec<_> = parts.map(spawn).collect();
                let join = |thread: io::Result<ScopedJoinHandle<'_, _>>| {
                    let thread = thread.map_err(|e| sink.context.io(e))?;
                    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
                };
                threads.into_iter().map(join).collect()
            }),
        };
        for lines in lines? {
            self.output.write_all(&lines).map_err(|e| self.context.io(e))?;
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
        let write = || {
            writer.write(at_offsets(batch)?.as_ref())?;
            writer.finish()
        };
        guarded(write, ArrowError::JsonError).map_err(|e| SinkError::Unsupported {
            file: self.context.file.clone(),
            message: format!("a column cannot be written as JSON ({e}); write parquet or arrow"),
        })?;
        Ok(writer.into_inner())
    }
}

/// The same instants with an offset wherever a zone is named: as JSON, a time is written with its
/// offset, and `arrow` knows no names without a table of all zones. They are written in UTC.
fn at_offsets(batch: &RecordBatch) -> Result<Cow<'_, RecordBatch>, ArrowError> {
    let schema = batch.schema_ref();
    let types: Vec<_> = schema.fields().iter().map(|f| offset_type(f.data_type())).collect();
    if types.iter().all(Option::is_none) {
        return Ok(Cow::Borrowed(batch));
    }
    let columns = types.iter().zip(batch.columns()).map(|(data_type, column)| match data_type {
        Some(data_type) => cast(column, data_type),
        None => Ok(column.clone()),
    });
    let fields = types.iter().zip(schema.fields()).map(|(data_type, field)| match data_type {
        Some(data_type) => field.as_ref().clone().with_data_type(data_type.clone()).into(),
        None => field.clone(),
    });
    let schema = Schema::new(fields.collect::<Vec<FieldRef>>());
    RecordBatch::try_new(schema.into(), columns.collect::<Result<_, _>>()?).map(Cow::Owned)
}

/// The type with offsets for names of zones; `None` if it has no such name.
fn offset_type(data_type: &DataType) -> Option<DataType> {
    let field = |field: &FieldRef| -> Option<FieldRef> {
        let data_type = offset_type(field.data_type())?;
        Some(field.as_ref().clone().with_data_type(data_type).into())
    };
    match data_type {
        DataType::Timestamp(unit, Some(zone)) => {
            let known = zone.parse::<Tz>().is_ok();
            (!known).then(|| DataType::Timestamp(*unit, Some("+00:00".into())))
        }
        DataType::List(item) => field(item).map(DataType::List),
        DataType::LargeList(item) => field(item).map(DataType::LargeList),
        DataType::FixedSizeList(item, size) => {
            field(item).map(|item| DataType::FixedSizeList(item, *size))
        }
        DataType::Map(entries, sorted) => field(entries).map(|e| DataType::Map(e, *sorted)),
        DataType::Dictionary(key, value) => {
            offset_type(value).map(|value| DataType::Dictionary(key.clone(), value.into()))
        }
        DataType::Struct(fields) => {
            let offsets: Vec<_> = fields.iter().map(field).collect();
            offsets.iter().any(Option::is_some).then(|| {
                let kept = offsets.into_iter().zip(fields);
                DataType::Struct(
                    kept.map(|(new, old)| new.unwrap_or_else(|| old.clone())).collect(),
                )
            })
        }
        _ => None,
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
fn numbered(row: u64, text: Result<&str, &RowError>) -> io::Result<Vec<u8>> {
    let mut object = Vec::new();
    write!(object, "{{\"{ID_COLUMN}\":{row},\"{TEXT_COLUMN}\":")?;
    serde_json::to_writer(&mut object, &text.ok())?;
    object.push(b'}');
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::OnError;
    use crate::sink::SinkTarget;
    use crate::texts::ObjectsBuilder;

    #[test]
    fn lines_are_the_same_and_in_order_by_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let rows = 5 * ROWS_PER_THREAD + 3;
        let objects: Vec<_> = (0..rows).map(|row| format!("{{\"text\":\"{row}\"}}")).collect();
        let mut payload = ObjectsBuilder::default();
        objects.iter().zip(1..).for_each(|(object, line)| payload.push(line, Some(object)));
        let payload = Payload::Objects(payload.finish());
        let texts = objects.iter().map(|object| Ok(object.as_str())).collect();
        let chunk = Chunk { first_row: 0, texts, payload };
        let values: Vec<f32> = (0..rows).map(|row| row as f32).collect();
        let lines = [1, 2, 5, 8].map(|threads| {
            let path = folder.path().join(format!("{threads}.jsonl"));
            let output = Output::create(&SinkTarget::Path(path.clone()), None, "out").unwrap();
            let context = SinkContext {
                file: "out".to_owned(),
                dim: 1,
                vector_column: "embedding".to_owned(),
                on_error: OnError::Fail,
                threads,
            };
            let mut sink = Box::new(Jsonl { output, context });
            let vectors = Vectors { dim: 1, values: values.clone(), errors: Vec::new() };
            sink.write(chunk.clone(), vectors).unwrap();
            sink.finish().unwrap();
            std::fs::read_to_string(path).unwrap()
        });
        let wanted: String = (0..rows)
            .map(|row| format!("{{\"text\":\"{row}\",\"embedding\":[{row}.0]}}\n"))
            .collect();
        assert!(lines.iter().all(|lines| *lines == wanted));
    }
}
