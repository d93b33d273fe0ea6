//! CSV and TSV with a header: every column is kept as the strings that were written.
//!
//! Quoted fields may hold line ends; blank lines between records are no rows. A record with more
//! or fewer fields than the header is a row error. A quote that is never closed would swallow the
//! rows after it, so it is an error of the file.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::chunk::{Chunk, ChunkLimits, Payload, RowError, RowLocation, RowProblem};
use crate::error::SourceError;
use crate::source::bytes::Bytes;
use crate::source::columns::text_index;
use crate::source::record_reader::{RecordError, RecordReader};
use crate::source::{Source, SourceContext, SourceSchema};
use crate::texts::TextsBuilder;

const FORMAT: &str = "CSV";

pub(super) struct Csv {
    reader: RecordReader,
    delimiter: u8,
    text_index: usize,
    columns: SchemaRef,
    total_bytes: Option<u64>,
    next_row: u64,
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
        let limit = context.limits.row_bytes;
        let mut reader = RecordReader::new(bytes.into_reader(), delimiter, limit);
        reader.next_record().map_err(|e| read_error(&context, e))?;
        let columns = Arc::new(header_schema(&reader, &context)?);
        let text_index = text_index(&columns, &context)?;
        let schema = SourceSchema::Columns { schema: columns.clone(), one_dictionary: false };
        Ok(Self {
            reader,
            delimiter,
            text_index,
            columns,
            total_bytes,
            next_row: 0,
            context,
            schema,
        })
    }

    /// The text of the record last read, or what is wrong with it.
    fn text(&self, line: u64) -> Result<&str, RowError> {
        let location = RowLocation::Line(line);
        let expected = self.columns.fields().len();
        let found = self.reader.fields().len();
        if found != expected {
            let problem = RowProblem::FieldCount { expected, found };
            let delimiter = char::from(self.delimiter).to_string();
            let fields: Vec<_> = self.reader.fields().map(String::from_utf8_lossy).collect();
            return Err(RowError { location, problem, raw: Some(fields.join(&delimiter)) });
        }
        let mut text = "";
        let fields = self.columns.fields().iter().zip(self.reader.fields());
        for (index, (field, bytes)) in fields.enumerate() {
            match std::str::from_utf8(bytes) {
                Ok(found) if index == self.text_index => text = found,
                Ok(_) => {}
                Err(e) => {
                    let place = format!("column {:?}", field.name());
                    let problem = RowProblem::InvalidUtf8 { place, valid_up_to: e.valid_up_to() };
                    return Err(RowError { location, problem, raw: None });
                }
            }
        }
        Ok(text)
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
        let mut texts = TextsBuilder::default();
        let mut bytes = 0;
        while texts.len() < limits.rows.max(1) && bytes < limits.bytes.max(1) {
            let line = self.reader.next_record().map_err(|e| read_error(&self.context, e))?;
            let Some(line) = line else { break };
            texts.push(self.context.admit(self.text(line))?);
            // A short record leaves nulls; a long one keeps its surplus in its error alone.
            let mut fields = self.reader.fields();
            for builder in &mut builders {
                let field = fields.next();
                bytes += field.map_or(0, <[u8]>::len);
                builder.append_option(field.map(String::from_utf8_lossy));
            }
        }
        let texts = texts.finish();
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

    fn set_limits(&mut self, limits: ChunkLimits) {
        self.context.limits = limits;
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    fn bytes_read(&self) -> u64 {
        self.reader.bytes_read()
    }
}

/// The header's names as string columns.
fn header_schema(reader: &RecordReader, context: &SourceContext) -> Result<Schema, SourceError> {
    let mut fields: Vec<Field> = Vec::with_capacity(reader.fields().len());
    for name in reader.fields() {
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

fn read_error(context: &SourceContext, error: RecordError) -> SourceError {
    match error {
        RecordError::Io(e) => context.io(e),
        other => context.corrupt(FORMAT, other),
    }
}
