//! Record batches as chunks: what Parquet, Arrow and CSV share.

use std::ops::Range;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, LargeBinaryArray, LargeStringArray,
    StringArray, StringViewArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;

use crate::chunk::{Chunk, Payload, RowError, RowLocation, RowProblem};
use crate::error::SourceError;
use crate::source::SourceContext;
use crate::texts::{Strings, Texts};

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

/// Bytes count as text, row by row if they are UTF-8: some writers of Parquet do not say which of
/// their byte arrays are strings.
fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Cuts record batches into chunks within the limits. Cutting copies no column, but for texts that
/// a dictionary or views hold.
pub(super) struct Batches {
    text_index: usize,
    next_row: u64,
    /// What is left of the batch last read.
    pending: Option<Pending>,
}

struct Pending {
    batch: RecordBatch,
    texts: TextColumn,
    /// Rows of the batch that have gone.
    taken: usize,
    /// Mean size of a row, without its text.
    row_bytes: usize,
}

impl Batches {
    pub(super) fn new(text_index: usize) -> Self {
        Self { text_index, next_row: 0, pending: None }
    }

    /// The number of the next row, from 0, where it does not follow the last one's.
    pub(super) fn set_next_row(&mut self, row: u64) {
        self.next_row = row;
    }

    /// Takes a batch as read from the file, the last one being used up.
    pub(super) fn push(
        &mut self,
        batch: RecordBatch,
        context: &SourceContext,
    ) -> Result<(), SourceError> {
        let texts = TextColumn::new(batch.column(self.text_index))
            .ok_or_else(|| context.corrupt("text", "the text column has changed its type"))?;
        let others = batch.columns().iter().enumerate().filter(|(i, _)| *i != self.text_index);
        let bytes: usize = others.map(|(_, column)| column_bytes(column)).sum();
        let row_bytes = bytes.div_ceil(batch.num_rows().max(1));
        self.pending = Some(Pending { batch, texts, taken: 0, row_bytes });
        Ok(())
    }

    /// The next chunk of the batch pushed; `None` when another must be read.
    pub(super) fn next_chunk(
        &mut self,
        context: &SourceContext,
    ) -> Result<Option<Chunk>, SourceError> {
        let Some(pending) = &mut self.pending else { return Ok(None) };
        let (first_row, start) = (self.next_row, pending.taken);
        let mut errors = Vec::new();
        let (mut rows, mut bytes) = (0, 0);
        while rows < context.limits.rows.max(1)
            && bytes < context.limits.bytes.max(1)
            && start + rows < pending.batch.num_rows()
        {
            let text = pending.texts.get(start + rows);
            bytes += pending.row_bytes + text.as_ref().map_or(0, |text| text.len());
            let text = text.map_err(|none| RowError {
                location: RowLocation::Row(first_row + rows as u64 + 1),
                problem: none.problem(&context.text_column),
                raw: None,
            });
            if let Err(error) = context.admit(text)? {
                errors.push((rows, error));
            }
            rows += 1;
        }
        if rows == 0 {
            self.pending = None;
            return Ok(None);
        }
        let texts = pending.texts.rows(start..start + rows, errors);
        let batch = pending.batch.slice(start, rows);
        pending.taken += rows;
        self.next_row += rows as u64;
        Ok(Some(Chunk { first_row, texts, payload: Payload::Columns(batch) }))
    }
}

/// What a column's rows take; a dictionary's values, which rows share, do not count.
fn column_bytes(column: &ArrayRef) -> usize {
    let rows = match column.as_any_dictionary_opt() {
        Some(dictionary) => dictionary.keys().to_data(),
        None => column.to_data(),
    };
    rows.get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
}

/// Strings, whichever way Arrow lays them out, or bytes that may be some.
enum TextColumn {
    Small(StringArray),
    Large(LargeStringArray),
    View(StringViewArray),
    Bytes(BinaryArray),
    LargeBytes(LargeBinaryArray),
    BytesView(BinaryViewArray),
    Dictionary {
        /// Per row the index of its value.
        keys: Vec<usize>,
        nulls: Option<NullBuffer>,
        values: Box<TextColumn>,
    },
}

/// Why a row has no text.
#[derive(Debug, PartialEq)]
enum NoText {
    Null,
    /// The bytes before this one are UTF-8.
    Invalid(usize),
}

impl NoText {
    fn problem(self, column: &str) -> RowProblem {
        match self {
            Self::Null => RowProblem::NullText { column: column.to_owned() },
            Self::Invalid(valid_up_to) => {
                RowProblem::InvalidUtf8 { place: format!("column {column:?}"), valid_up_to }
            }
        }
    }
}

impl TextColumn {
    /// `None` where the column holds no text.
    fn new(column: &ArrayRef) -> Option<Self> {
        Some(match column.data_type() {
            DataType::Utf8 => Self::Small(column.as_string().clone()),
            DataType::LargeUtf8 => Self::Large(column.as_string().clone()),
            DataType::Utf8View => Self::View(column.as_string_view().clone()),
            DataType::Binary => Self::Bytes(column.as_binary().clone()),
            DataType::LargeBinary => Self::LargeBytes(column.as_binary().clone()),
            DataType::BinaryView => Self::BytesView(column.as_binary_view().clone()),
            DataType::Dictionary(..) => {
                let dictionary = column.as_any_dictionary();
                // A dictionary of no values has only null rows, and no indices to compute.
                let keys = match dictionary.values().is_empty() {
                    true => vec![0; column.len()],
                    false => dictionary.normalized_keys(),
                };
                let values = Box::new(Self::new(dictionary.values())?);
                Self::Dictionary { keys, nulls: column.nulls().cloned(), values }
            }
            _ => return None,
        })
    }

    /// Some rows' texts; `errors` has those that have none, counted from the first of the range.
    fn rows(&self, range: Range<usize>, errors: Vec<(usize, RowError)>) -> Texts {
        let (start, rows) = (range.start, range.len());
        match self {
            Self::Small(texts) => Texts::new(Strings::Small(texts.slice(start, rows)), errors),
            Self::Large(texts) => Texts::new(Strings::Large(texts.slice(start, rows)), errors),
            _ => {
                let mut errors = errors.into_iter().peekable();
                let text = |row| match errors.next_if(|(at, _)| start + at == row) {
                    Some((_, error)) => Err(error),
                    None => Ok(self.get(row).unwrap_or_default()),
                };
                range.map(text).collect()
            }
        }
    }

    /// The text of a row within the column.
    fn get(&self, row: usize) -> Result<&str, NoText> {
        let decoded = |bytes| {
            std::str::from_utf8(bytes).map_err(|error| NoText::Invalid(error.valid_up_to()))
        };
        let present = |valid: bool| if valid { Ok(()) } else { Err(NoText::Null) };
        match self {
            Self::Small(texts) => present(texts.is_valid(row)).map(|()| texts.value(row)),
            Self::Large(texts) => present(texts.is_valid(row)).map(|()| texts.value(row)),
            Self::View(texts) => present(texts.is_valid(row)).map(|()| texts.value(row)),
            Self::Bytes(texts) => {
                present(texts.is_valid(row)).and_then(|()| decoded(texts.value(row)))
            }
            Self::LargeBytes(texts) => {
                present(texts.is_valid(row)).and_then(|()| decoded(texts.value(row)))
            }
            Self::BytesView(texts) => {
                present(texts.is_valid(row)).and_then(|()| decoded(texts.value(row)))
            }
            Self::Dictionary { keys, nulls, values } => {
                present(nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)))?;
                values.get(keys[row])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{DictionaryArray, Int8Array};
    use arrow::datatypes::Int8Type;
    use std::sync::Arc;

    #[test]
    fn every_layout_gives_its_texts() {
        let want = [Some("a"), None, Some(""), Some("a")];
        let nowhere = StringArray::from(Vec::<&str>::new());
        let in_values = StringArray::from(vec![Some("a"), None]);
        let bytes = want.map(|text| text.map(str::as_bytes));
        let cases: [(ArrayRef, [Option<&str>; 4]); 10] = [
            (Arc::new(BinaryArray::from_iter(bytes)), want),
            (Arc::new(LargeBinaryArray::from_iter(bytes)), want),
            (Arc::new(BinaryViewArray::from_iter(bytes)), want),
            (
                Arc::new(DictionaryArray::new(
                    Int8Array::from(vec![Some(0), None, Some(1), Some(0)]),
                    Arc::new(BinaryArray::from_vec(vec![b"a", b""])),
                )),
                want,
            ),
            (Arc::new(StringArray::from_iter(want)), want),
            (Arc::new(LargeStringArray::from_iter(want)), want),
            (Arc::new(StringViewArray::from_iter(want)), want),
            (Arc::new(want.into_iter().collect::<DictionaryArray<Int8Type>>()), want),
            (
                Arc::new(DictionaryArray::new(
                    Int8Array::from(vec![0, 1, 1, 0]),
                    Arc::new(in_values),
                )),
                [Some("a"), None, None, Some("a")],
            ),
            (Arc::new(DictionaryArray::new(Int8Array::new_null(4), Arc::new(nowhere))), [None; 4]),
        ];
        for (column, want) in cases {
            for (offset, length) in [(0, 4), (1, 3), (4, 0)] {
                let texts = TextColumn::new(&column.slice(offset, length)).unwrap();
                let got: Vec<_> = (0..length).map(|row| texts.get(row).ok()).collect();
                assert_eq!(got, want[offset..], "{:?}", column.data_type());
            }
        }
    }

    #[test]
    fn a_row_without_text_says_why() {
        let column = BinaryArray::from(vec![Some(&b"good"[..]), Some(b"bad\xff"), None]);
        let texts = TextColumn::new(&(Arc::new(column) as ArrayRef)).unwrap();
        let got: Vec<_> = (0..3).map(|row| texts.get(row)).collect();
        assert_eq!(got, [Ok("good"), Err(NoText::Invalid(3)), Err(NoText::Null)]);
    }
}
