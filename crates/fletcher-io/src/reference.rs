//! Reference files: texts with the vectors that another implementation gave them.

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use arrow::record_batch::RecordBatch;
use serde::Deserialize;

use crate::chunk::{Chunk, ChunkLimits, OnError, Payload};
use crate::error::SourceError;
use crate::format::SourceFormat;
use crate::source::{SourceInput, SourceOptions, open_source};

/// A text and the vector that it should give.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceRow {
    /// The text, without any prompt.
    pub text: String,
    /// Its vector; the same length in every row of a file.
    pub vector: Vec<f32>,
}

/// The columns that may hold the vector, in order of preference.
const VECTOR_COLUMNS: [&str; 2] = ["embedding", "vector"];

/// Reads a reference file (JSONL, Parquet or Arrow) with a column `text` and a column `embedding`
/// or `vector` of numbers. All of it is held in memory.
///
/// # Errors
/// As [`open_source`]; a row without a vector, or with one of another length, by its row.
pub fn read_reference(
    input: SourceInput,
    format: Option<SourceFormat>,
) -> Result<Vec<ReferenceRow>, SourceError> {
    let file = input.name();
    let mut source = open_source(SourceOptions {
        input,
        format,
        text_column: "text".to_owned(),
        on_error: OnError::Fail,
        limits: ChunkLimits::default(),
        threads: 0,
    })?;
    let mut rows: Vec<ReferenceRow> = Vec::new();
    while let Some(chunk) = source.next_chunk()? {
        for (row, vector) in (chunk.first_row + 1..).zip(vectors(&chunk)) {
            let error = |message| SourceError::Reference { file: file.clone(), row, message };
            let vector = vector.map_err(error)?;
            if let Some(first) = rows.first().filter(|first| first.vector.len() != vector.len()) {
                let (expected, found) = (first.vector.len(), vector.len());
                let message = format!("the vector has {found} numbers, the first has {expected}");
                return Err(error(message));
            }
            rows.push(ReferenceRow { text: String::new(), vector });
        }
        let first = rows.len() - chunk.len();
        for (row, text) in rows[first..].iter_mut().zip(chunk.texts.iter().flatten()) {
            row.text = text.to_owned();
        }
    }
    Ok(rows)
}

/// One vector per row of a chunk.
fn vectors(chunk: &Chunk) -> Vec<Result<Vec<f32>, String>> {
    match &chunk.payload {
        Payload::Texts => {
            let message = "the format holds no vectors; use jsonl, parquet or arrow";
            vec![Err(message.to_owned()); chunk.len()]
        }
        Payload::Objects(objects) => objects.iter().map(json_vector).collect(),
        Payload::Columns(batch) => match batch_vectors(batch) {
            Ok(vectors) => vectors,
            Err(message) => vec![Err(message); chunk.len()],
        },
    }
}

/// The vector of a JSON object; other keys are not looked at.
fn json_vector(object: Option<&str>) -> Result<Vec<f32>, String> {
    #[derive(Deserialize)]
    struct Vectors {
        embedding: Option<Vec<f32>>,
        vector: Option<Vec<f32>>,
    }
    let vectors: Vectors = serde_json::from_str(object.unwrap_or("{}"))
        .map_err(|e| format!("the vector is not a list of numbers: {e}"))?;
    vectors.embedding.or(vectors.vector).ok_or_else(|| {
        format!("the object has no key {:?} or {:?}", VECTOR_COLUMNS[0], VECTOR_COLUMNS[1])
    })
}

/// The vectors of a record batch: a list column of any float type.
fn batch_vectors(batch: &RecordBatch) -> Result<Vec<Result<Vec<f32>, String>>, String> {
    let column =
        VECTOR_COLUMNS.iter().find_map(|name| batch.column_by_name(name)).ok_or_else(|| {
            format!("there is no column {:?} or {:?}", VECTOR_COLUMNS[0], VECTOR_COLUMNS[1])
        })?;
    let not_numbers = || format!("the vectors are {}, not lists of numbers", column.data_type());
    let lists = cast(column, &DataType::new_large_list(DataType::Float32, true))
        .map_err(|_| not_numbers())?;
    let lists = lists.as_list_opt::<i64>().ok_or_else(not_numbers)?;
    Ok(lists
        .iter()
        .map(|list| {
            let list = list.ok_or("the vector is null")?;
            let numbers = list.as_primitive_opt::<Float32Type>().ok_or_else(not_numbers)?;
            match numbers.null_count() {
                0 => Ok(numbers.values().to_vec()),
                _ => Err("the vector holds a null".to_owned()),
            }
        })
        .collect())
}
