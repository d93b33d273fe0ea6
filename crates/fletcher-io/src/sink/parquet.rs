//! Parquet: zstd, vectors byte-stream-split, row groups bounded in bytes as well as in rows.

use std::io;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::error::SinkError;
use crate::guard::guarded;
use crate::sink::columns::BatchWriter;
use crate::sink::output::{Output, io_error};

/// Rows in a row group, at most: the custom of Parquet writers.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// Encoded bytes in a row group, at most. The writer holds one group: this bounds its memory.
const ROW_GROUP_BYTES: usize = 64 << 20;

pub(super) fn open(
    output: Output,
    schema: &SchemaRef,
    vector_column: &str,
) -> Result<Box<dyn BatchWriter>, SinkError> {
    let name = output.name().to_owned();
    let writer =
        ArrowWriter::try_new(output, schema.clone(), Some(properties(schema, vector_column)))
            .map_err(|e| write_error(&name, e))?;
    Ok(Box::new(Writer { name, writer }))
}

/// Vectors are noise to a dictionary and to statistics. With their bytes split by significance
/// the exponents, which are alike, compress; zstd's first level costs little beside that.
fn properties(schema: &SchemaRef, vector_column: &str) -> WriterProperties {
    let vectors = ColumnPath::new(vec![vector_column.into(), "list".into(), "item".into()]);
    let mut metadata: Vec<_> = schema
        .metadata()
        .iter()
        .map(|(key, value)| KeyValue::new(key.clone(), value.clone()))
        .collect();
    metadata.sort_by(|a, b| a.key.cmp(&b.key));
    WriterProperties::builder()
        .set_created_by(concat!("fletcher ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_column_dictionary_enabled(vectors.clone(), false)
        .set_column_encoding(vectors.clone(), Encoding::BYTE_STREAM_SPLIT)
        .set_column_statistics_enabled(vectors, EnabledStatistics::None)
        .set_key_value_metadata(Some(metadata))
        .build()
}

struct Writer {
    name: String,
    writer: ArrowWriter<Output>,
}

impl BatchWriter for Writer {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        guarded(|| self.writer.write(batch), ParquetError::General)
            .map_err(|e| write_error(&self.name, e))
    }

    fn finish(self: Box<Self>) -> Result<(), SinkError> {
        let Self { name, writer } = *self;
        guarded(|| writer.into_inner(), ParquetError::General)
            .map_err(|e| write_error(&name, e))?
            .commit()
    }
}

fn write_error(file: &str, error: ParquetError) -> SinkError {
    let message =
        format!("the columns cannot be written as Parquet ({error}); write arrow or jsonl");
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(source) => io_error(file, *source),
            Err(_) => SinkError::Unsupported { file: file.to_owned(), message },
        },
        _ => SinkError::Unsupported { file: file.to_owned(), message },
    }
}
