//! JSON objects as columns.
//!
//! The columns are those of the first chunk's objects, in order of appearance, all nullable:
//! `Boolean`, `Int64` (`UInt64` where a number needs it), `Float64`, `Utf8`, `List`, `Struct`.
//! Whole and broken numbers together are `Float64`; different scalars, and keys that are always
//! null, are `Utf8`, which takes any scalar as it is written. A later object with another key, or
//! with a value that its column cannot hold, does not fit: it is an error that names the line and
//! the field or, when errors are skipped, a row that keeps only the fields that fit.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Number, Value};

use crate::chunk::OnError;
use crate::error::SinkError;
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

/// Objects to record batch; nothing of an object is passed over in silence.
fn decode(schema: &SchemaRef, objects: &[Cow<'_, str>]) -> Result<RecordBatch, ArrowError> {
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
    let Ok(entries) = serde_json::from_str::<Entries>(object) else { return EMPTY.to_owned() };
    let fits = |(name, value): &(String, Box<RawValue>)| {
        let name = serde_json::to_string(name).ok()?;
        let entry = format!("{name}:{}", value.get());
        decode(schema, &[format!("{{{entry}}}").into()]).ok().map(|_| entry)
    };
    format!("{{{}}}", entries.0.iter().filter_map(fits).collect::<Vec<_>>().join(","))
}

/// An object's entries as written, in order.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> serde::de::Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// The columns of some objects. The text column is `Utf8` whatever stands in it.
fn infer(rows: &Objects, text_column: &str) -> Schema {
    let mut all = DataType::Struct(Fields::empty());
    for object in rows.iter() {
        if let Some(Ok(value)) = object.map(serde_json::from_str::<Value>) {
            all = unify(all, type_of(&value));
        }
    }
    let DataType::Struct(fields) = all else { return Schema::empty() };
    let mut fields: Vec<FieldRef> = fields
        .iter()
        .map(|field| {
            let data_type = match field.name() == text_column {
                true => DataType::Utf8,
                false => settle(field.data_type()),
            };
            nullable(field.name(), data_type)
        })
        .collect();
    if fields.iter().all(|field| field.name() != text_column) {
        fields.push(nullable(text_column, DataType::Utf8));
    }
    Schema::new(fields)
}

fn nullable(name: &str, data_type: DataType) -> FieldRef {
    Arc::new(Field::new(name, data_type, true))
}

/// The type of one value; `Null` where it shows none.
fn type_of(value: &Value) -> DataType {
    match value {
        Value::Null => DataType::Null,
        Value::Bool(_) => DataType::Boolean,
        Value::Number(number) => type_of_number(number),
        Value::String(_) => DataType::Utf8,
        Value::Array(items) => {
            DataType::new_list(items.iter().map(type_of).fold(DataType::Null, unify), true)
        }
        Value::Object(entries) => DataType::Struct(
            entries.iter().map(|(name, value)| nullable(name, type_of(value))).collect(),
        ),
    }
}

fn type_of_number(number: &Number) -> DataType {
    if number.is_i64() {
        DataType::Int64
    } else if number.is_u64() {
        DataType::UInt64
    } else {
        DataType::Float64
    }
}

/// A type for the values of two. Where there is none (an object and a scalar) the first stays, and
/// the other's rows do not fit.
fn unify(a: DataType, b: DataType) -> DataType {
    use DataType::{Float64, Int64, List, Null, Struct, UInt64, Utf8};
    match (a, b) {
        (a, b) if a == b => a,
        (a, Null) => a,
        (Null, b) => b,
        (Int64 | UInt64 | Float64, Int64 | UInt64 | Float64) => Float64,
        (List(a), List(b)) => {
            DataType::new_list(unify(a.data_type().clone(), b.data_type().clone()), true)
        }
        (Struct(a), Struct(b)) => {
            let mut fields = a.to_vec();
            for field in &b {
                match fields.iter_mut().find(|known| known.name() == field.name()) {
                    Some(known) => {
                        let both = unify(known.data_type().clone(), field.data_type().clone());
                        *known = nullable(field.name(), both);
                    }
                    None => fields.push(field.clone()),
                }
            }
            Struct(fields.into())
        }
        (a @ (List(_) | Struct(_)), _) => a,
        (a, List(_) | Struct(_)) => a,
        _ => Utf8,
    }
}

/// Replaces what stayed without a type by `Utf8`.
fn settle(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::new_list(settle(item.data_type()), true),
        DataType::Struct(fields) => DataType::Struct(
            fields.iter().map(|f| nullable(f.name(), settle(f.data_type()))).collect(),
        ),
        other => other.clone(),
    }
}
