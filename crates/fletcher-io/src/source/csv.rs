//! CSV and TSV with a header: every column is kept as the strings that were written.
//!
//! Quoted fields may hold line ends; blank lines between records are no rows. A record with more
//! or fewer fields than the header is a row error. A quote that is never closed would swallow the
//! rest of the file, so it is an error of the file: at the end of input, or once a record has
//! grown beyond the limit.

use std::io::{self, Read};
use std::sync::Arc;

use arrow::array::{ArrayRef, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use csv::ByteRecord;

use crate::chunk::{Chunk, Payload, RowError, RowLocation, RowProblem};
use crate::error::SourceError;
use crate::source::columns::text_index;
use crate::source::{Bytes, Source, SourceContext, SourceSchema};

const FORMAT: &str = "CSV";

pub(super) struct Csv {
    reader: csv::Reader<Metered>,
    delimiter: u8,
    text_index: usize,
    columns: SchemaRef,
    total_bytes: Option<u64>,
    next_row: u64,
    record: ByteRecord,
    context: SourceContext,
    schema: SourceSchema,
}

impl Csv {
    pub(super) fn open(
        bytes: Bytes,
        delimiter: u8,
        context: SourceContext,
    ) -> Result<Self, SourceError> {
        let total_bytes = bytes.len();
        let metered = Metered {
            reader: bytes.into_reader(),
            budget: 0,
            limit: context.limits.row_bytes,
            bytes_read: 0,
            last_byte: 0,
        };
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .flexible(true)
            .buffer_capacity(READ_BYTES)
            .from_reader(metered);
        reader.get_mut().start_record();
        let header = reader.byte_headers().map_err(|e| read_error(&context, e, 1))?.clone();
        let columns = Arc::new(header_schema(&header, &context)?);
        let text_index = text_index(&columns, &context)?;
        let schema = SourceSchema::Columns { schema: columns.clone(), one_dictionary: false };
        Ok(Self {
            reader,
            delimiter,
            text_index,
            columns,
            total_bytes,
            next_row: 0,
            record: ByteRecord::new(),
            context,
            schema,
        })
    }

    /// Reads the next record into `self.record`; its line, or `None` at the end.
    fn next_record(&mut self) -> Result<Option<u64>, SourceError> {
        let line = self.reader.position().line();
        self.reader.get_mut().start_record();
        let found = self
            .reader
            .read_byte_record(&mut self.record)
            .map_err(|e| read_error(&self.context, e, line))?;
        if !found {
            return Ok(None);
        }
        let line = self.record.position().map_or(line, csv::Position::line);
        if self.swallowed_the_rest() {
            let message = format!("the quote opened in the record of line {line} is never closed");
            return Err(self.context.corrupt(FORMAT, message));
        }
        Ok(Some(line))
    }

    /// Whether the record just read is the last and its last field, being full of line ends, has
    /// no closing quote. The parser itself forgives this.
    fn swallowed_the_rest(&self) -> bool {
        let last = self.record.get(self.record.len().saturating_sub(1)).unwrap_or_default();
        let at_end = self.reader.get_ref().bytes_read == self.reader.position().byte();
        at_end && last.contains(&b'\n') && self.reader.get_ref().last_byte != b'"'
    }

    /// The text of `self.record`, or what is wrong with the record.
    fn text(&self, line: u64) -> Result<String, RowError> {
        let location = RowLocation::Line(line);
        let expected = self.columns.fields().len();
        if self.record.len() != expected {
            let problem = RowProblem::FieldCount { expected, found: self.record.len() };
            let delimiter = char::from(self.delimiter).to_string();
            let fields: Vec<_> = self.record.iter().map(String::from_utf8_lossy).collect();
            return Err(RowError { location, problem, raw: Some(fields.join(&delimiter)) });
        }
        for (field, bytes) in self.columns.fields().iter().zip(self.record.iter()) {
            if let Err(e) = std::str::from_utf8(bytes) {
                let place = format!("column {:?}", field.name());
                let problem = RowProblem::InvalidUtf8 { place, valid_up_to: e.valid_up_to() };
                return Err(RowError { location, problem, raw: None });
            }
        }
        let bytes = self.record.get(self.text_index).unwrap_or_default();
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

impl Source for Csv {
    fn schema(&self) -> &SourceSchema {
        &self.schema
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        let limits = self.context.limits;
        let mut builders: Vec<_> =
            self.columns.fields().iter().map(|_| StringBuilder::new()).collect();
        let mut texts = Vec::new();
        let mut bytes = 0;
        while texts.len() < limits.rows.max(1) && bytes < limits.bytes.max(1) {
            let Some(line) = self.next_record()? else { break };
            texts.push(self.context.admit(self.text(line))?);
            bytes += self.record.as_slice().len();
            for (index, builder) in builders.iter_mut().enumerate() {
                builder.append_option(self.record.get(index).map(String::from_utf8_lossy));
            }
        }
        if texts.is_empty() {
            return Ok(None);
        }
        let arrays = builders.iter_mut().map(|b| Arc::new(b.finish()) as ArrayRef).collect();
        let batch = RecordBatch::try_new(self.columns.clone(), arrays)
            .map_err(|e| self.context.corrupt(FORMAT, e))?;
        let first_row = self.next_row;
        self.next_row += texts.len() as u64;
        Ok(Some(Chunk { first_row, texts, payload: Payload::Columns(batch) }))
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    fn bytes_read(&self) -> u64 {
        self.reader.get_ref().bytes_read
    }
}

/// The header's names as string columns.
fn header_schema(header: &ByteRecord, context: &SourceContext) -> Result<Schema, SourceError> {
    let mut fields: Vec<Field> = Vec::with_capacity(header.len());
    for name in header {
        let name = std::str::from_utf8(name)
            .map_err(|_| context.corrupt(FORMAT, "the header is not UTF-8"))?;
        if fields.iter().any(|field| field.name() == name) {
            let (file, column) = (context.file.clone(), name.to_owned());
            return Err(SourceError::DuplicateColumn { file, column });
        }
        fields.push(Field::new(name, DataType::Utf8, true));
    }
    Ok(Schema::new(fields))
}

fn read_error(context: &SourceContext, error: csv::Error, line: u64) -> SourceError {
    match error.into_kind() {
        csv::ErrorKind::Io(e) if e.get_ref().is_some_and(|e| e.is::<RecordTooLong>()) => {
            let limit = context.limits.row_bytes;
            let message = format!(
                "the record of line {line} is longer than {limit} bytes; a quote may be unclosed"
            );
            context.corrupt(FORMAT, message)
        }
        csv::ErrorKind::Io(e) => context.io(e),
        other => context.corrupt(FORMAT, format!("line {line}: {other:?}")),
    }
}

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Counts bytes and ends a record that grows without end.
struct Metered {
    reader: Box<dyn Read + Send>,
    /// Bytes that may still be read for the current record.
    budget: usize,
    /// The longest record, in bytes.
    limit: usize,
    bytes_read: u64,
    /// The last byte that is no line end.
    last_byte: u8,
}

/// A record has outgrown its budget.
#[derive(Debug, thiserror::Error)]
#[error("the record is too long")]
struct RecordTooLong;

impl Metered {
    fn start_record(&mut self) {
        self.budget = self.limit;
    }
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget == 0 {
            return Err(io::Error::other(RecordTooLong));
        }
        let read = self.reader.read(buffer)?;
        self.budget = self.budget.saturating_sub(read);
        self.bytes_read += read as u64;
        let last = buffer[..read].iter().rev().find(|byte| !matches!(byte, b'\n' | b'\r'));
        self.last_byte = last.copied().unwrap_or(self.last_byte);
        Ok(read)
    }
}
