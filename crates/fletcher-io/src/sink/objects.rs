//! JSON objects as columns.
//!
//! The columns are those of the first chunk's objects, in order of appearance, all nullable:
//! `Boolean`, `Int64` (`UInt64` where a number needs it), `Float64`, `Utf8`, `List`, `Struct`.
//! Whole and broken numbers together are `Float64` if it holds them all; different scalars,
//! numbers without a type that holds them all, and keys that are always null, are `Utf8`, which
//! takes any scalar as it is written. Of a key that an object repeats the last value counts, as for
//! Python's `json`, pandas and jq, but all of them must fit. A later object with another key, or
//! with a value that its column cannot hold as it is, does not fit: it is an error that names the
//! line and the field or, when errors are skipped, a row that keeps only the fields that fit.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::chunk::OnError;
use crate::error::SinkError;
use crate::sink::exact;
use crate::sink::shapes::{Entries, Shape, nullable};
use crate::texts::Objects;

pub(super) struct ObjectColumns {
    text_column: String,
    /// The columns; `None` before the first chunk.
    schema: Option<SchemaRef>,
}

/// What a row without an object becomes: null in every column.
const EMPTY: &str = "{}";

impl ObjectColumns {
    pub(super) fn new(text_column: &str) -> Self {
        Self { text_column: text_column.to_owned(), schema: None }
    }

    /// The columns found; before the first chunk the text alone.
    pub(super) fn fields(&self) -> Vec<FieldRef> {
        match &self.schema {
            Some(schema) => schema.fields().to_vec(),
            None => vec![Arc::new(Field::new(&self.text_column, DataType::Utf8, true))],
        }
    }

    /// Takes the columns from the first rows.
    pub(super) fn learn(&mut self, rows: &Objects) {
        self.schema.get_or_insert_with(|| Arc::new(infer(rows, &self.text_column)));
    }

    /// A key of the objects whose name is to be added by the sink, and its row, from 1.
    pub(super) fn find_clash(
        &self,
        rows: &Objects,
        reserved: &[&str],
        first_row: u64,
    ) -> Option<(String, u64)> {
        if self.schema.is_some() {
            // Later objects with such a key do not fit the columns, and say so themselves.
            return None;
        }
        rows.iter().zip(first_row + 1..).find_map(|(object, row)| {
            let keys: HashMap<String, IgnoredAny> = serde_json::from_str(object?).ok()?;
            let name = reserved.iter().find(|name| keys.contains_key(**name))?;
            Some(((*name).to_owned(), row))
        })
    }

    /// The rows' columns, one array per field. A row that does not fit gets an entry in `errors`.
    pub(super) fn columns(
        &self,
        rows: &Objects,
        on_error: OnError,
        errors: &mut [Option<String>],
    ) -> Result<Vec<ArrayRef>, SinkError> {
        let schema = match &self.schema {
            Some(schema) => schema.clone(),
            None => Arc::new(infer(rows, &self.text_column)),
        };
        let objects: Vec<Cow<'_, str>> =
            rows.iter().map(|object| object.unwrap_or(EMPTY).into()).collect();
        if let Ok(batch) = decode(&schema, &objects) {
            return Ok(batch.columns().to_vec());
        }
        // Some row does not fit; one by one they tell which.
        let mut fitting = Vec::with_capacity(objects.len());
        for ((row, object), error) in objects.into_iter().enumerate().zip(errors) {
            match decode(&schema, std::slice::from_ref(&object)) {
                Ok(_) => fitting.push(object),
                Err(e) => {
                    let (line, message) = (rows.line(row), message(&e));
                    if on_error == OnError::Fail {
                        return Err(SinkError::Misfit { line, message });
                    }
                    error.get_or_insert_with(|| {
                        format!("line {line} does not fit the columns of the first rows: {message}")
                    });
                    fitting.push(fitting_part(&schema, &object).into());
                }
            }
        }
        let batch = decode(&schema, &fitting)
            .map_err(|e| SinkError::Misfit { line: rows.line(0), message: message(&e) })?;
        Ok(batch.columns().to_vec())
    }
}

/// Arrow's message without its kind.
fn message(error: &ArrowError) -> String {
    match error {
        ArrowError::JsonError(message) => message.clone(),
        other => other.to_string(),
    }
}

/// Objects to record batch; nothing of an object is passed over or changed in silence.
fn decode(schema: &SchemaRef, objects: &[Cow<'_, str>]) -> Result<RecordBatch, ArrowError> {
    if schema.fields().iter().any(|field| exact::has_numbers(field.data_type())) {
        for object in objects {
            exact::check(schema, object).map_err(ArrowError::JsonError)?;
        }
    }
    let mut decoder = ReaderBuilder::new(schema.clone())
        .with_batch_size(objects.len().max(1))
        .with_coerce_primitive(true)
        .with_strict_mode(true)
        .build_decoder()?;
    for object in objects {
        decoder.decode(object.as_bytes())?;
        decoder.decode(b"\n")?;
    }
    let batch = decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone()));
    if batch.num_rows() != objects.len() {
        let message = format!("{} rows for {} objects", batch.num_rows(), objects.len());
        return Err(ArrowError::JsonError(message));
    }
    Ok(batch)
}

/// The object with only the keys that fit the columns each by itself.
fn fitting_part(schema: &SchemaRef, object: &str) -> String {
    let Ok(entries) = serde_json::from_str::<Entries<'_>>(object) else { return EMPTY.to_owned() };
    let fits = |(name, value): &(Cow<'_, str>, &RawValue)| {
        let name = serde_json::to_string(name).ok()?;
        let entry = format!("{name}:{}", value.get());
        decode(schema, &[format!("{{{entry}}}").into()]).ok().map(|_| entry)
    };
    format!("{{{}}}", entries.0.iter().filter_map(fits).collect::<Vec<_>>().join(","))
}

/// The columns of some objects. The text column is `Utf8` whatever stands in it.
fn infer(rows: &Objects, text_column: &str) -> Schema {
    let shapes = rows.iter().flatten().filter_map(Shape::of);
    let all = shapes.fold(Shape::Object(Vec::new()), Shape::and);
    let DataType::Struct(fields) = all.data_type() else { return Schema::empty() };
    let mut fields: Vec<FieldRef> = fields
        .iter()
        .map(|field| match field.name() == text_column {
            true => nullable(text_column, DataType::Utf8),
            false => field.clone(),
        })
        .collect();
    if fields.iter().all(|field| field.name() != text_column) {
        fields.push(nullable(text_column, DataType::Utf8));
    }
    Schema::new(fields)
}
