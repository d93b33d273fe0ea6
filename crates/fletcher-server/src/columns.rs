//! Record batches in, the same batches with a column of vectors out. Other columns are not touched
//! and rows stay in order.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use fletcher_core::embedder::Prompt;
use fletcher_core::text::Overlong;
use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

use crate::answer::Answer;
use crate::error::RequestError;
use crate::inputs::{Inputs, TextColumn};
use crate::service::{RequestOptions, Service};

/// Rows of one call to the engine: a larger batch is taken in parts, so that its memory and its
/// stay in the queue are bounded.
const PART_ROWS: usize = 4096;

/// What a client can say about its batches.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct ColumnOptions {
    /// The column of texts [default: `text`].
    column: Option<String>,
    /// The name of the new column [default: `vector`].
    vector_column: Option<String>,
    prompt_name: Option<String>,
    truncate: Option<Flag>,
    normalize: Option<Flag>,
    dimensions: Option<Number>,
    on_error: Option<OnError>,
}

/// A boolean, as JSON writes it or as a query string does.
#[derive(Debug, Clone, Copy)]
struct Flag(bool);

/// A number, as JSON writes it or as a query string does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number(pub(crate) usize);

/// Takes either from its own kind of value or from a text that spells it.
macro_rules! spelt {
    ($name:ident, $expected:literal, $visit:ident: $kind:ty) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Spelt;
                impl Visitor<'_> for Spelt {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn $visit<E: de::Error>(self, value: $kind) -> Result<$name, E> {
                        self.visit_str(&value.to_string())
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        let bad = |_| E::invalid_value(Unexpected::Str(text), &self);
                        text.parse().map($name).map_err(bad)
                    }
                }
                deserializer.deserialize_any(Spelt)
            }
        }
    };
}

spelt!(Flag, "true or false", visit_bool: bool);
spelt!(Number, "a whole number from 0", visit_u64: u64);

/// What becomes of a row without a vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnError {
    /// It fails the batch.
    #[default]
    Fail,
    /// It keeps its place with a null vector, and a message in the column `error`.
    Null,
}

/// How the batches of one schema are embedded.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The schema of what comes out.
    pub(crate) schema: SchemaRef,
    /// For the engine.
    pub(crate) options: RequestOptions,
    text: usize,
    text_name: String,
    vectors: FieldRef,
    errors: Option<FieldRef>,
    on_error: OnError,
}

/// A batch with its vectors, and which columns are what.
#[derive(Debug, Clone)]
pub(crate) struct Embedded {
    pub(crate) batch: RecordBatch,
    pub(crate) text_column: String,
    pub(crate) vector_column: String,
}

impl ColumnOptions {
    /// Parses the JSON that Flight clients send along.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, RequestError> {
        crate::json::parse("the message of options", json)
    }

    /// Checks the options against a schema.
    pub(crate) fn plan(&self, service: &Service, schema: &Schema) -> Result<Plan, RequestError> {
        let text_name = self.column.as_deref().unwrap_or("text").to_owned();
        let text = schema.index_of(&text_name).map_err(|_| {
            let names: Vec<&str> = schema.fields().iter().map(|field| &field.name()[..]).collect();
            RequestError::invalid(format!(
                "there is no column `{text_name}`; there are: {}",
                names.join(", ")
            ))
        })?;
        if schema.fields().iter().filter(|field| *field.name() == text_name).count() > 1 {
            let message = format!("there are two columns `{text_name}`; rename one");
            return Err(RequestError::invalid(message));
        }
        let options = RequestOptions {
            prompt: self.prompt_name.clone().map(Prompt::Named),
            overlong: self.truncate.map(|Flag(truncate)| match truncate {
                true => Overlong::Truncate,
                false => Overlong::Error,
            }),
            normalize: self.normalize.map(|Flag(normalize)| normalize),
            dimensions: self.dimensions.map(|Number(dimensions)| dimensions),
            ..RequestOptions::default()
        };
        let dim = service.dim_for(&options)?;
        let on_error = self.on_error.unwrap_or_default();
        let vectors: FieldRef =
            vector_field(self.vector_column.as_deref().unwrap_or("vector"), dim).into();
        let errors: Option<FieldRef> =
            (on_error == OnError::Null).then(|| Field::new("error", DataType::Utf8, true).into());
        let mut fields: Vec<FieldRef> = schema.fields().to_vec();
        for field in [Some(&vectors), errors.as_ref()].into_iter().flatten() {
            if schema.column_with_name(field.name()).is_some() {
                let message = format!("there is a column `{}` already", field.name());
                return Err(RequestError::invalid(message));
            }
            fields.push(field.clone());
        }
        let mut metadata = schema.metadata().clone();
        metadata.extend(service.schema_metadata(dim, service.is_normalized(&options)));
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        Ok(Plan { schema, options, text, text_name, vectors, errors, on_error })
    }
}

impl Plan {
    /// Embeds one batch.
    pub(crate) async fn embed(
        &self,
        service: &Service,
        batch: RecordBatch,
        mut options: RequestOptions,
    ) -> Result<Embedded, RequestError> {
        let text = batch
            .columns()
            .get(self.text)
            .ok_or_else(|| RequestError::invalid("a batch has fewer columns than its schema"))?;
        let (mut values, mut failures) = (Vec::new(), Vec::new());
        for start in (0..batch.num_rows()).step_by(PART_ROWS) {
            let part = text.slice(start, PART_ROWS.min(batch.num_rows() - start));
            let inputs = Inputs::Column(TextColumn::new(&self.text_name, &part)?);
            let answer = service.embed(inputs, options.clone()).await?;
            options.patient = true;
            for (row, outcome) in answer.rows.iter().enumerate() {
                let Err(error) = outcome else { continue };
                if self.on_error == OnError::Fail {
                    return Err(RequestError::Item { index: start + row, error: error.clone() });
                }
                failures.push((start + row, error.to_string()));
            }
            match values.is_empty() {
                true => values = answer.values,
                false => values.extend_from_slice(&answer.values),
            }
        }
        let mut columns = batch.columns().to_vec();
        let rows = batch.num_rows();
        columns.push(vectors(&self.vectors, values, &failures, rows)?);
        if self.errors.is_some() {
            let by_row: HashMap<usize, String> = failures.into_iter().collect();
            let message = |row: usize| by_row.get(&row).map(String::as_str);
            columns.push(Arc::new((0..rows).map(message).collect::<StringArray>()));
        }
        let built = RecordBatch::try_new(self.schema.clone(), columns);
        let bad = |error: arrow::error::ArrowError| RequestError::invalid(error.to_string());
        Ok(Embedded {
            batch: built.map_err(bad)?,
            text_column: self.text_name.clone(),
            vector_column: self.vectors.name().clone(),
        })
    }
}

/// A column of vectors of one length.
pub(crate) fn vector_field(name: &str, dim: usize) -> Field {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    Field::new(name, DataType::FixedSizeList(item, dim as i32), true)
}

fn vectors(
    field: &Field,
    values: Vec<f32>,
    failures: &[(usize, String)],
    rows: usize,
) -> Result<ArrayRef, RequestError> {
    let DataType::FixedSizeList(item, dim) = field.data_type() else {
        return Err(RequestError::Engine { message: "the vectors' field is no list".into() });
    };
    let nulls = (!failures.is_empty()).then(|| {
        let mut valid = vec![true; rows];
        failures.iter().for_each(|(row, _)| valid[*row] = false);
        NullBuffer::from(valid)
    });
    let values = Arc::new(Float32Array::from(values));
    let list = FixedSizeListArray::try_new(item.clone(), *dim, values, nulls);
    let bad = |error: arrow::error::ArrowError| RequestError::Engine { message: error.to_string() };
    Ok(Arc::new(list.map_err(bad)?))
}

/// A batch of texts and their vectors, for storing what came without columns.
pub(crate) fn from_texts(
    service: &Service,
    texts: Vec<String>,
    answer: &Answer,
    options: &RequestOptions,
) -> Result<Embedded, RequestError> {
    let field = vector_field("vector", answer.dim);
    let failed = |row: usize| answer.rows[row].as_ref().err().map(|e| (row, e.to_string()));
    let failures: Vec<(usize, String)> = (0..texts.len()).filter_map(failed).collect();
    if let Some((index, _)) = failures.first() {
        let error = answer.rows[*index].clone().err();
        return Err(error
            .map_or(RequestError::Deadline, |error| RequestError::Item { index: *index, error }));
    }
    let column = vectors(&field, answer.values.clone(), &failures, texts.len())?;
    let fields = vec![Field::new("text", DataType::Utf8, true), field];
    let metadata = service.schema_metadata(answer.dim, service.is_normalized(options));
    let schema = Schema::new_with_metadata(fields, HashMap::from(metadata));
    let texts: ArrayRef = Arc::new(StringArray::from(texts));
    let bad = |error: arrow::error::ArrowError| RequestError::Engine { message: error.to_string() };
    let batch = RecordBatch::try_new(Arc::new(schema), vec![texts, column]).map_err(bad)?;
    let (text_column, vector_column) = ("text".to_owned(), "vector".to_owned());
    Ok(Embedded { batch, text_column, vector_column })
}
