//! Rows as record batches with a vector column: what Arrow and Parquet share.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::JoinHandle;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::chunk::{Chunk, OnError, Payload, Vectors};
use crate::error::SinkError;
use crate::format::SinkFormat;
use crate::sink::objects::ObjectColumns;
use crate::sink::output::Output;
use crate::sink::{ERROR_COLUMN, ID_COLUMN, Sink, SinkContext, TEXT_COLUMN, arrow as ipc, parquet};
use crate::source::SourceSchema;
use crate::threads;

/// Writes record batches of one schema.
pub(super) trait BatchWriter: Send {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError>;
    /// Completes the file and commits its output.
    fn finish(self: Box<Self>) -> Result<(), SinkError>;
}

/// A sink of record batches. The writer is made with the first rows, since JSON objects show
/// their columns only then; threads make later rows' batches while it writes those before.
pub(super) struct Columnar {
    format: SinkFormat,
    columns: Arc<Columns>,
    state: State,
    /// Batches in the making, in order.
    making: VecDeque<JoinHandle<Result<RecordBatch, SinkError>>>,
    /// Most of them at the same time; 1 has no thread made.
    threads: usize,
}

enum State {
    /// No row has come yet.
    Waiting(Output),
    Writing(Box<dyn BatchWriter>),
    /// An earlier write failed; the output is gone.
    Failed,
}

impl Columnar {
    pub(super) fn new(format: SinkFormat, output: Output, columns: Columns) -> Self {
        // Who reads along should see rows as soon as they are there.
        let threads = if output.is_stream() { 1 } else { columns.context.threads };
        let (columns, state) = (Arc::new(columns), State::Waiting(output));
        Self { format, columns, state, making: VecDeque::new(), threads }
    }

    fn append(&mut self, batch: Result<RecordBatch, SinkError>) -> Result<(), SinkError> {
        let batch = batch.inspect_err(|_| self.state = State::Failed)?;
        let mut writer = self.take_writer(batch.schema_ref())?;
        writer.write(&batch)?;
        self.state = State::Writing(writer);
        Ok(())
    }

    /// Writes the oldest of the batches in the making.
    fn append_oldest(&mut self) -> Result<(), SinkError> {
        let Some(thread) = self.making.pop_front() else { return Ok(()) };
        self.append(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Takes the writer out, making it if need be; the state is `Failed` until it is put back.
    fn take_writer(&mut self, schema: &SchemaRef) -> Result<Box<dyn BatchWriter>, SinkError> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Writing(writer) => Ok(writer),
            State::Waiting(output) => match self.format {
                SinkFormat::Parquet => {
                    let SinkContext { vector_column, threads, .. } = &self.columns.context;
                    parquet::open(output, schema, vector_column, *threads)
                        .map(|writer| -> Box<dyn BatchWriter> { writer })
                }
                SinkFormat::ArrowStream => ipc::open_stream(output, schema),
                _ => ipc::open_file(output, schema),
            },
            State::Failed => Err(SinkError::Unsupported {
                file: self.columns.context.file.clone(),
                message: "nothing can be written after an error".to_owned(),
            }),
        }
    }
}

impl Sink for Columnar {
    fn write(&mut self, chunk: Chunk, vectors: Vectors) -> Result<(), SinkError> {
        self.columns.context.check_shape(&chunk, &vectors)?;
        let first = matches!(self.state, State::Waiting(_));
        // Nothing is in the making yet, so this is the only owner.
        if let (true, Some(columns)) = (first, Arc::get_mut(&mut self.columns)) {
            columns.learn(&chunk)?;
        }
        if first || self.threads == 1 {
            return self.append(self.columns.batch(chunk, vectors));
        }
        if self.making.len() >= self.threads {
            self.append_oldest()?;
        }
        let columns = self.columns.clone();
        let thread = threads::named("fletcher-write").spawn(move || columns.batch(chunk, vectors));
        self.making.push_back(thread.map_err(|e| self.columns.context.io(e))?);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), SinkError> {
        while !self.making.is_empty() {
            self.append_oldest()?;
        }
        let schema = self.columns.output_schema();
        self.take_writer(&schema)?.finish()
    }
}

/// Makes the output's record batches of chunks and vectors.
pub(super) struct Columns {
    input: Input,
    context: SinkContext,
    metadata: BTreeMap<String, String>,
}

/// How the input's columns are come by.
enum Input {
    Texts,
    Objects(ObjectColumns),
    Columns {
        schema: SchemaRef,
        /// The columns that are written as another type than they have.
        recast: Vec<(usize, Recast)>,
    },
}

/// How a column is written that the output cannot hold as it is.
struct Recast {
    /// Its type with dictionaries replaced by their values, where they must be.
    plain: DataType,
    /// Its type in the output.
    written: DataType,
}

impl Recast {
    /// `None` for a type that the output holds.
    fn of(data_type: &DataType, format: SinkFormat, keep: fn(&DataType) -> bool) -> Option<Self> {
        let plain = replaced(data_type, &|data_type| match data_type {
            DataType::Dictionary(_, values) if !keep(values) => Some(values.as_ref().clone()),
            _ => None,
        });
        // As Arrow's other writers do: Parquet has days, and its writer here would make plain
        // numbers of these milliseconds, which nobody would know for dates.
        let days = |data_type: &DataType| match data_type {
            DataType::Date64 if format == SinkFormat::Parquet => Some(DataType::Date32),
            _ => None,
        };
        let written = replaced(&plain, &days);
        (written != *data_type).then_some(Self { plain, written })
    }

    fn column(&self, name: &str, column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        let plain = cast(column, &self.plain)?;
        if self.written == self.plain {
            return Ok(plain);
        }
        let written = cast(&plain, &self.written)?;
        match cast(&written, &self.plain)? == plain {
            true => Ok(written),
            false => Err(ArrowError::CastError(format!(
                "column {name:?} has dates (date64) with a time of day, which Parquet has not; \
                 write arrow or jsonl, or make them timestamps"
            ))),
        }
    }
}

impl Columns {
    pub(super) fn new(
        format: SinkFormat,
        source: &SourceSchema,
        context: SinkContext,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let input = match source {
            SourceSchema::Texts => Input::Texts,
            SourceSchema::Objects { text_column } => {
                Input::Objects(ObjectColumns::new(text_column))
            }
            SourceSchema::Columns { schema, one_dictionary } => {
                let keep = match format {
                    // An Arrow IPC file holds one dictionary a column; other formats, one a batch.
                    SinkFormat::Arrow if !one_dictionary => |_: &DataType| false,
                    // The writer of the `parquet` crate panics on dictionaries of views.
                    SinkFormat::Parquet => is_no_view,
                    _ => |_: &DataType| true,
                };
                let recast = |(index, field): (usize, &FieldRef)| {
                    Some((index, Recast::of(field.data_type(), format, keep)?))
                };
                let recast = schema.fields().iter().enumerate().filter_map(recast).collect();
                Input::Columns { schema: schema.clone(), recast }
            }
        };
        Self { input, context, metadata }
    }

    /// Takes from the first rows what they alone show.
    fn learn(&mut self, chunk: &Chunk) -> Result<(), SinkError> {
        if let (Input::Objects(objects), Payload::Objects(rows)) = (&mut self.input, &chunk.payload)
        {
            let reserved: Vec<&str> = self.context.added_columns().collect();
            if let Some((name, row)) = objects.find_clash(rows, &reserved, chunk.first_row) {
                return Err(self.context.clash(&name, Some(row)));
            }
            objects.learn(rows);
        }
        Ok(())
    }

    /// One chunk's rows: the input's columns, the vectors, and the errors where they are skipped.
    fn batch(&self, chunk: Chunk, vectors: Vectors) -> Result<RecordBatch, SinkError> {
        let mut errors = self.context.row_errors(&chunk, &vectors)?;
        for (row, error) in chunk.texts.errors() {
            // These formats have no column for a row that is none; its error must show it.
            if let (Some(error), Some(raw)) = (&mut errors[*row], &error.raw) {
                *error = format!("{error}; it reads: {}", excerpt(raw));
            }
        }
        let unsupported = |e: ArrowError| SinkError::Unsupported {
            file: self.context.file.clone(),
            message: e.to_string(),
        };
        let mut columns = match (&self.input, &chunk.payload) {
            (Input::Texts, _) => text_columns(&chunk),
            (Input::Objects(objects), Payload::Objects(rows)) => {
                objects.columns(rows, self.context.on_error, &mut errors)?
            }
            (Input::Columns { schema, recast }, Payload::Columns(batch)) => {
                let mut columns = batch.columns().to_vec();
                for (index, recast) in recast {
                    let name = schema.field(*index).name();
                    columns[*index] = recast.column(name, &columns[*index]).map_err(unsupported)?;
                }
                columns
            }
            _ => {
                return Err(SinkError::Unsupported {
                    file: self.context.file.clone(),
                    message: "the chunk is not of the source that the sink was made for".to_owned(),
                });
            }
        };
        let schema = self.output_schema();
        columns.push(vector_column(&errors, vectors).map_err(unsupported)?);
        if self.context.on_error == OnError::Skip {
            columns.push(Arc::new(StringArray::from(errors)));
        }
        RecordBatch::try_new(schema, columns).map_err(unsupported)
    }

    /// The input's columns followed by those that the sink adds.
    fn output_schema(&self) -> SchemaRef {
        let skip = self.context.on_error == OnError::Skip;
        let field = |name: &str, data_type, nullable| -> FieldRef {
            Arc::new(Field::new(name, data_type, nullable))
        };
        let (mut fields, mut metadata) = match &self.input {
            Input::Texts => {
                let id = field(ID_COLUMN, DataType::Int64, false);
                (vec![id, field(TEXT_COLUMN, DataType::Utf8, skip)], HashMap::new())
            }
            Input::Objects(objects) => (objects.fields(), HashMap::new()),
            Input::Columns { schema, recast } => {
                let mut fields = schema.fields().to_vec();
                for (index, Recast { written, .. }) in recast {
                    let field = fields[*index].as_ref().clone();
                    fields[*index] = Arc::new(field.with_data_type(written.clone()));
                }
                (fields, schema.metadata().clone())
            }
        };
        let vector = vector_type(self.context.dim);
        fields.push(field(&self.context.vector_column, vector, skip));
        if skip {
            fields.push(field(ERROR_COLUMN, DataType::Utf8, true));
        }
        metadata.extend(self.metadata.clone());
        Arc::new(Schema::new_with_metadata(fields, metadata))
    }
}

/// The type of the vector column. Its items are nullable only because that is what other Arrow
/// implementations make and compare with; none is ever null.
fn vector_type(dim: usize) -> DataType {
    DataType::new_fixed_size_list(DataType::Float32, dim_i32(dim), true)
}

/// Arrow counts the items of a list in an `i32`; no model comes near its end.
fn dim_i32(dim: usize) -> i32 {
    i32::try_from(dim).unwrap_or(i32::MAX)
}

/// The vectors, null where a row has an error.
fn vector_column(errors: &[Option<String>], vectors: Vectors) -> Result<ArrayRef, ArrowError> {
    let mut values = vectors.values;
    for (index, _) in errors.iter().enumerate().filter(|(_, error)| error.is_some()) {
        values[index * vectors.dim..(index + 1) * vectors.dim].fill(0.0);
    }
    let valid: Vec<bool> = errors.iter().map(Option::is_none).collect();
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    let values = Arc::new(Float32Array::from(values));
    Ok(Arc::new(FixedSizeListArray::try_new(item, dim_i32(vectors.dim), values, nulls)?))
}

/// The two columns of bare texts.
fn text_columns(chunk: &Chunk) -> Vec<ArrayRef> {
    let ids = (0..chunk.len() as u64).map(|row| (chunk.first_row + row).cast_signed());
    let texts = chunk.texts.iter().map(Result::ok);
    vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(StringArray::from_iter(texts))]
}

fn is_no_view(values: &DataType) -> bool {
    !matches!(values, DataType::Utf8View | DataType::BinaryView)
}

/// A type with others in the places of those that `replace` has something for.
fn replaced(data_type: &DataType, replace: &dyn Fn(&DataType) -> Option<DataType>) -> DataType {
    let within = |field: &FieldRef| -> FieldRef {
        let data_type = replaced(field.data_type(), replace);
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    };
    if let Some(other) = replace(data_type) {
        return replaced(&other, replace);
    }
    match data_type {
        DataType::Dictionary(key, values) => {
            DataType::Dictionary(key.clone(), replaced(values, replace).into())
        }
        DataType::List(item) => DataType::List(within(item)),
        DataType::LargeList(item) => DataType::LargeList(within(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(within(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(within).collect()),
        DataType::Map(entries, sorted) => DataType::Map(within(entries), *sorted),
        other => other.clone(),
    }
}

/// The first characters of a row that is kept in an error message.
fn excerpt(raw: &str) -> String {
    const LIMIT_CHARS: usize = 200;
    match raw.char_indices().nth(LIMIT_CHARS) {
        Some((end, _)) => format!("{}…", &raw[..end]),
        None => raw.to_owned(),
    }
}
