//! Record batches as chunks: what Parquet, Arrow and CSV share.

use std::collections::VecDeque;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::chunk::{Chunk, Payload, RowError, RowLocation, RowProblem};
use crate::error::SourceError;
use crate::source::SourceContext;

/// Index of the text column.
///
/// # Errors
/// The column is missing, repeated, or no text.
pub(super) fn text_index(schema: &Schema, context: &SourceContext) -> Result<usize, SourceError> {
    let (file, column) = (context.file.clone(), context.text_column.clone());
    let mut found = schema.fields().iter().enumerate().filter(|(_, f)| *f.name() == column);
    let Some((index, field)) = found.next() else {
        let available = schema.fields().iter().map(|f| f.name().clone()).collect();
        return Err(SourceError::MissingColumn { file, column, available });
    };
    if found.next().is_some() {
        return Err(SourceError::DuplicateColumn { file, column });
    }
    if !is_text(field.data_type()) {
        return Err(SourceError::NotText { file, column, found: field.data_type().to_string() });
    }
    Ok(index)
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Cuts record batches into chunks within the limits. Cutting copies no column but the text.
pub(super) struct Batches {
    text_index: usize,
    next_row: u64,
    /// What is left of the batches read.
    pending: VecDeque<RecordBatch>,
}

impl Batches {
    pub(super) fn new(text_index: usize) -> Self {
        Self { text_index, next_row: 0, pending: VecDeque::new() }
    }

    /// Takes a batch as read from the file.
    pub(super) fn push(&mut self, batch: RecordBatch) {
        if batch.num_rows() > 0 {
            self.pending.push_back(batch);
        }
    }

    /// The next chunk of the batches pushed; `None` when more must be read.
    pub(super) fn next_chunk(
        &mut self,
        context: &SourceContext,
    ) -> Result<Option<Chunk>, SourceError> {
        let Some(batch) = self.pending.pop_front() else { return Ok(None) };
        let rows = chunk_rows(&batch, context);
        let head = batch.slice(0, rows);
        if rows < batch.num_rows() {
            self.pending.push_front(batch.slice(rows, batch.num_rows() - rows));
        }
        let first_row = self.next_row;
        self.next_row += rows as u64;
        let texts = strings(head.column(self.text_index))
            .map_err(|e| context.corrupt("columnar", e))?
            .into_iter()
            .zip(first_row + 1..)
            .map(|(text, row)| {
                context.admit(text.ok_or_else(|| RowError {
                    location: RowLocation::Row(row),
                    problem: RowProblem::NullText { column: context.text_column.clone() },
                    raw: None,
                }))
            })
            .collect::<Result<_, _>>()?;
        Ok(Some(Chunk { first_row, texts, payload: Payload::Columns(head) }))
    }
}

/// How many of a batch's first rows fit one chunk, by the mean size of its rows; at least one.
fn chunk_rows(batch: &RecordBatch, context: &SourceContext) -> usize {
    let bytes: usize = batch
        .columns()
        .iter()
        .map(|column| {
            column
                .to_data()
                .get_slice_memory_size()
                .unwrap_or_else(|_| column.get_array_memory_size())
        })
        .sum();
    let row_bytes = bytes.div_ceil(batch.num_rows().max(1)).max(1);
    (context.limits.bytes / row_bytes).min(context.limits.rows).clamp(1, batch.num_rows().max(1))
}

/// The strings of a text column, whichever way Arrow lays them out.
pub(crate) fn strings(column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().map(owned).collect(),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().map(owned).collect(),
        DataType::Utf8View => column.as_string_view().iter().map(owned).collect(),
        _ => strings(&cast(column, &DataType::LargeUtf8)?)?,
    })
}
