//! Parquet: zstd, vectors byte-stream-split, row groups bounded in bytes as well as in rows.

use std::collections::VecDeque;
use std::io;
use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};

use arrow::array::{Array as _, ArrayRef};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use crate::error::SinkError;
use crate::guard::guarded;
use crate::sink::columns::BatchWriter;
use crate::sink::output::{Output, io_error};
use crate::threads;

/// Rows in a row group, at most: the custom of Parquet writers.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// Bytes of columns in memory that make a row group. It bounds the writer's memory: a group that
/// is collected, and for each thread one that is encoded.
const ROW_GROUP_BYTES: usize = 32 << 20;

pub(super) fn open(
    output: Output,
    schema: &SchemaRef,
    vector_column: &str,
    threads: usize,
) -> Result<Box<Writer>, SinkError> {
    let name = output.name().to_owned();
    let open = || {
        ArrowWriter::try_new(output, schema.clone(), Some(properties(schema, vector_column)))
            .and_then(ArrowWriter::into_serialized_writer)
    };
    // It panics on unions.
    let opened = guarded(open, ParquetError::General);
    let (writer, columns) = opened.map_err(|e| write_error(&name, e))?;
    Ok(Box::new(Writer {
        name,
        writer,
        columns,
        group: Group::default(),
        group_bytes: ROW_GROUP_BYTES,
        groups: 0,
        encoding: VecDeque::new(),
        threads,
    }))
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
        .set_column_dictionary_enabled(vectors.clone(), false)
        .set_column_encoding(vectors.clone(), Encoding::BYTE_STREAM_SPLIT)
        .set_column_statistics_enabled(vectors, EnabledStatistics::None)
        .set_key_value_metadata(Some(metadata))
        .build()
}

/// Writes row groups in order while others are encoded by threads of their own.
pub(super) struct Writer {
    name: String,
    writer: SerializedFileWriter<Output>,
    columns: ArrowRowGroupWriterFactory,
    /// What waits to become a row group.
    group: Group,
    group_bytes: usize,
    /// Groups begun so far.
    groups: usize,
    encoding: VecDeque<JoinHandle<Result<Vec<ArrowColumnChunk>, ParquetError>>>,
    /// Groups that may be encoded at the same time.
    threads: usize,
}

impl BatchWriter for Writer {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        self.group.rows += batch.num_rows();
        self.group.bytes += batch.columns().iter().map(bytes).sum::<usize>();
        self.group.batches.push(batch.clone());
        match self.group.rows >= ROW_GROUP_ROWS || self.group.bytes >= self.group_bytes {
            true => self.encode_group().map_err(|e| write_error(&self.name, e)),
            false => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<(), SinkError> {
        let finish = |writer: &mut Self| {
            writer.encode_group()?;
            while !writer.encoding.is_empty() {
                writer.append_group()?;
            }
            Ok(())
        };
        finish(&mut self).map_err(|e| write_error(&self.name, e))?;
        let Self { name, writer, .. } = *self;
        guarded(|| writer.into_inner(), ParquetError::General)
            .map_err(|e| write_error(&name, e))?
            .commit()
    }
}

impl Writer {
    /// Gives the collected rows to a thread, first waiting for the oldest if all are busy.
    fn encode_group(&mut self) -> Result<(), ParquetError> {
        if self.group.rows == 0 {
            return Ok(());
        }
        if self.encoding.len() >= self.threads {
            self.append_group()?;
        }
        let group = std::mem::take(&mut self.group);
        let writers = self.columns.create_column_writers(self.groups)?;
        self.groups += 1;
        let encode = move || guarded(|| group.encode(writers), ParquetError::General);
        self.encoding.push_back(threads::named("fletcher-write").spawn(encode)?);
        Ok(())
    }

    /// Writes the oldest of the groups that are encoded.
    fn append_group(&mut self) -> Result<(), ParquetError> {
        let Some(thread) = self.encoding.pop_front() else { return Ok(()) };
        let columns = thread.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        let append = || {
            let mut group = self.writer.next_row_group()?;
            columns.into_iter().try_for_each(|column| column.append_to_row_group(&mut group))?;
            group.close()
        };
        guarded(append, ParquetError::General).map(drop)
    }
}

/// The rows of one row group.
#[derive(Default)]
struct Group {
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Group {
    /// The column chunks. The largest column, which the vectors mostly are, is about as much work
    /// as all others together, so it gets a thread.
    fn encode(
        &self,
        writers: Vec<ArrowColumnWriter>,
    ) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
        let Some(first) = self.batches.first() else { return Ok(Vec::new()) };
        let mut writers = writers.into_iter();
        let mut columns = Vec::new();
        for (index, field) in first.schema_ref().fields().iter().enumerate() {
            let leaves = compute_leaves(field, first.column(index))?.len();
            columns.push((index, writers.by_ref().take(leaves).collect::<Vec<_>>()));
        }
        let size =
            |index: usize| self.batches.iter().map(|b| bytes(b.column(index))).sum::<usize>();
        let Some(largest) = (0..columns.len()).max_by_key(|&index| size(index)) else {
            return Ok(Vec::new());
        };
        let behind = columns.split_off(largest + 1);
        let Some((_, largest_writers)) = columns.pop() else { return Ok(Vec::new()) };
        thread::scope(|scope| {
            let encode = || {
                let work = || self.encode_column(largest, largest_writers);
                guarded(work, ParquetError::General)
            };
            let thread = threads::named("fletcher-write").spawn_scoped(scope, encode)?;
            let rest = |columns: Vec<(usize, Vec<ArrowColumnWriter>)>| {
                let encode = |(index, writers)| self.encode_column(index, writers);
                columns.into_iter().map(encode).collect::<Result<Vec<_>, _>>()
            };
            let (before, behind) = (rest(columns), rest(behind));
            let largest = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok([before?, vec![largest?], behind?].into_iter().flatten().flatten().collect())
        })
    }

    /// One column, whose leaves the writers are for.
    fn encode_column(
        &self,
        index: usize,
        mut writers: Vec<ArrowColumnWriter>,
    ) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
        for batch in &self.batches {
            let leaves = compute_leaves(batch.schema_ref().field(index), batch.column(index))?;
            for (leaf, writer) in leaves.iter().zip(&mut writers) {
                writer.write(leaf)?;
            }
        }
        writers.into_iter().map(ArrowColumnWriter::close).collect()
    }
}

/// Bytes that a column's rows take; of views, whose text is shared, those of all they may refer to.
fn bytes(column: &ArrayRef) -> usize {
    let data = column.to_data();
    match column.data_type() {
        DataType::Utf8View | DataType::BinaryView => column.get_array_memory_size(),
        _ => data.get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow::compute::concat_batches;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::sink::SinkTarget;

    #[test]
    fn groups_stand_in_order_however_many_are_encoded_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let batch = |from: i64| {
            let numbers = Int64Array::from_iter_values(from..from + 100);
            // Shorter and shorter, so that later groups are ready before earlier ones at times.
            let texts = (from..from + 100).map(|row| "x".repeat(2000 - row as usize));
            RecordBatch::try_from_iter([
                ("number", Arc::new(numbers) as ArrayRef),
                ("text", Arc::new(StringArray::from_iter_values(texts)) as ArrayRef),
            ])
            .unwrap()
        };
        let batches: Vec<_> = (0..20).map(|n| batch(100 * n)).collect();
        for threads in [1, 3] {
            let path = folder.path().join("out.parquet");
            let output = Output::create(&SinkTarget::Path(path.clone()), None, "out").unwrap();
            let mut writer = open(output, batches[0].schema_ref(), "vector", threads).unwrap();
            writer.group_bytes = 300_000;
            for batch in &batches {
                writer.write(batch).unwrap();
            }
            writer.finish().unwrap();
            let file = std::fs::File::open(path).unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            assert!(reader.metadata().num_row_groups() > 4);
            let read: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
            let schema = read[0].schema();
            let all = concat_batches(&schema, &read).unwrap();
            let wanted = concat_batches(batches[0].schema_ref(), &batches).unwrap();
            assert_eq!(all.columns(), wanted.columns());
        }
    }
}
