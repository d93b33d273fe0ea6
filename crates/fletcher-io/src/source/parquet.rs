//! Parquet: rows are decoded a chunk at a time, so that a row group's size does not matter.

use std::fs::File;

use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

use crate::chunk::{Chunk, ChunkLimits};
use crate::error::SourceError;
use crate::guard::guarded;
use crate::source::bytes::Bytes;
use crate::source::columns::{Batches, text_index};
use crate::source::{Source, SourceContext, SourceSchema};

const FORMAT: &str = "Parquet";

pub(super) struct Parquet {
    reader: ParquetRecordBatchReader,
    total_rows: u64,
    batches: Batches,
    context: SourceContext,
    schema: SourceSchema,
}

impl Parquet {
    pub(super) fn open(bytes: Bytes, context: SourceContext) -> Result<Self, SourceError> {
        let file: File = bytes.into_file().map_err(|e| context.io(e))?;
        let corrupt = |e: ParquetError| context.corrupt(FORMAT, e);
        let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file), panicked)
            .map_err(corrupt)?;
        let schema = builder.schema().clone();
        let batches = Batches::new(text_index(&schema, &context)?);
        let total_rows =
            u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default();
        let rows = batch_rows(builder.metadata(), context.limits);
        let builder = builder.with_batch_size(rows);
        let reader = guarded(|| builder.build(), panicked).map_err(corrupt)?;
        let schema = SourceSchema::Columns { schema, one_dictionary: false };
        Ok(Self { reader, total_rows, batches, context, schema })
    }
}

impl Source for Parquet {
    fn schema(&self) -> &SourceSchema {
        &self.schema
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        loop {
            if let Some(chunk) = self.batches.next_chunk(&self.context)? {
                return Ok(Some(chunk));
            }
            let batch = guarded(|| self.reader.next().transpose(), ArrowError::ParquetError);
            match batch.map_err(|e| read_error(&self.context, e))? {
                Some(batch) => self.batches.push(batch, &self.context)?,
                None => return Ok(None),
            }
        }
    }

    fn total_rows(&self) -> Option<u64> {
        Some(self.total_rows)
    }
}

/// Rows to decode at once, by the mean size of a row in the row group with the largest rows.
fn batch_rows(metadata: &ParquetMetaData, limits: ChunkLimits) -> usize {
    let row_bytes = metadata
        .row_groups()
        .iter()
        .filter(|group| group.num_rows() > 0)
        .map(|group| {
            // Encoded, a value that repeats takes next to nothing; some writers say what it takes.
            let columns = group.columns().iter();
            let plain = columns.filter_map(|column| column.unencoded_byte_array_data_bytes()).sum();
            group.total_byte_size().max(plain).max(0) / group.num_rows()
        })
        .max()
        .unwrap_or_default();
    let row_bytes = usize::try_from(row_bytes).unwrap_or(usize::MAX).max(1);
    (limits.bytes / row_bytes).clamp(1, limits.rows.max(1))
}

fn panicked(message: String) -> ParquetError {
    ParquetError::General(message)
}

fn read_error(context: &SourceContext, error: ArrowError) -> SourceError {
    match error {
        ArrowError::IoError(_, source) => context.io(source),
        other => context.corrupt(FORMAT, other),
    }
}
