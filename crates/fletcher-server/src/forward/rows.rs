//! Batches in the shape that a store searches: `id`, `text`, `vector`, then every other column.
//!
//! Ids are what make sending twice harmless. A client's own `id` column is kept; without one the id
//! is a hash of the text, so that the same text has the same id after any crash and retry.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};

use crate::columns::Embedded;
use crate::error::RequestError;
use crate::hash::hash64;

/// The batch as it is sent.
pub(super) fn shape(embedded: &Embedded, vector_column: &str) -> Result<RecordBatch, RequestError> {
    let batch = &embedded.batch;
    let internal =
        |error: arrow::error::ArrowError| RequestError::Engine { message: error.to_string() };
    let column = |name: &str| {
        let missing = || RequestError::invalid(format!("there is no column `{name}`"));
        batch.column_by_name(name).ok_or_else(missing)
    };
    let vectors = column(&embedded.vector_column)?;
    if let Some(row) = (0..vectors.len()).find(|row| vectors.is_null(*row)) {
        let message = format!("row {row} has no vector, so it cannot be forwarded");
        return Err(RequestError::invalid(message));
    }
    let texts = cast(column(&embedded.text_column)?, &DataType::Utf8).map_err(internal)?;
    let ids = match batch.column_by_name("id") {
        Some(ids) => client_ids(ids)?,
        None => {
            let texts = texts.as_string::<i32>();
            // Positive, because stores take ids for unsigned numbers.
            let id = |text: &str| (hash64(text.as_bytes()) >> 1) as i64;
            Arc::new(Int64Array::from_iter_values(
                texts.iter().map(|text| id(text.unwrap_or_default())),
            ))
        }
    };
    let schema = batch.schema();
    let (_, vector_field) = schema
        .column_with_name(&embedded.vector_column)
        .ok_or_else(|| RequestError::Engine { message: "the vectors are gone".into() })?;
    let mut fields: Vec<FieldRef> = vec![
        Field::new("id", ids.data_type().clone(), false).into(),
        Field::new("text", DataType::Utf8, true).into(),
        Arc::new(vector_field.clone().with_name(vector_column)),
    ];
    let mut columns = vec![ids, texts, vectors.clone()];
    let taken = ["id", embedded.text_column.as_str(), embedded.vector_column.as_str()];
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if taken.contains(&field.name().as_str()) {
            continue;
        }
        if fields.iter().any(|other| other.name() == field.name()) {
            let message =
                format!("there are two columns for `{}` in the forwarded rows", field.name());
            return Err(RequestError::invalid(message));
        }
        fields.push(field.clone());
        columns.push(column.clone());
    }
    let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
    RecordBatch::try_new(Arc::new(schema), columns).map_err(internal)
}

/// A client's ids: whole numbers as i64 (u64 where they are that), texts as they are.
fn client_ids(ids: &ArrayRef) -> Result<ArrayRef, RequestError> {
    if ids.null_count() > 0 {
        return Err(RequestError::invalid("column `id` has a null"));
    }
    match ids.data_type() {
        DataType::Int64 | DataType::UInt64 | DataType::Utf8 => Ok(ids.clone()),
        kind if kind.is_integer() => cast(ids, &DataType::Int64)
            .map_err(|error| RequestError::Engine { message: error.to_string() }),
        kind => Err(RequestError::invalid(format!(
            "column `id` is {kind}, but must hold whole numbers or texts"
        ))),
    }
}
