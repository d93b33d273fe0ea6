//! Arrow IPC, as a file or as a stream.

use std::io::{self, Write};

use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::{FileWriter, StreamWriter};
use arrow::record_batch::RecordBatch;

use crate::error::SinkError;
use crate::guard::guarded;
use crate::sink::columns::BatchWriter;
use crate::sink::output::{Output, io_error};

/// An IPC file: a stream with an index at its end.
pub(super) fn open_file(
    output: Output,
    schema: &SchemaRef,
) -> Result<Box<dyn BatchWriter>, SinkError> {
    Ok(Box::new(File {
        name: output.name().to_owned(),
        writer: open(output, schema, FileWriter::try_new)?,
    }))
}

/// An IPC stream, which a reader can follow while it is written.
pub(super) fn open_stream(
    output: Output,
    schema: &SchemaRef,
) -> Result<Box<dyn BatchWriter>, SinkError> {
    Ok(Box::new(Stream {
        name: output.name().to_owned(),
        writer: open(output, schema, StreamWriter::try_new)?,
    }))
}

fn open<W>(
    output: Output,
    schema: &SchemaRef,
    make: impl FnOnce(Output, &Schema) -> Result<W, ArrowError>,
) -> Result<W, SinkError> {
    let name = output.name().to_owned();
    make(output, schema).map_err(|e| write_error(&name, e))
}

struct File {
    name: String,
    writer: FileWriter<Output>,
}

impl BatchWriter for File {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        guarded(|| self.writer.write(batch), ArrowError::IpcError)
            .map_err(|e| write_error(&self.name, e))
    }

    fn finish(self: Box<Self>) -> Result<(), SinkError> {
        self.writer.into_inner().map_err(|e| write_error(&self.name, e))?.commit()
    }
}

struct Stream {
    name: String,
    writer: StreamWriter<Output>,
}

impl BatchWriter for Stream {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        guarded(|| self.writer.write(batch), ArrowError::IpcError)
            .map_err(|e| write_error(&self.name, e))?;
        self.writer.get_mut().flush().map_err(|e| io_error(&self.name, e))
    }

    fn finish(self: Box<Self>) -> Result<(), SinkError> {
        self.writer.into_inner().map_err(|e| write_error(&self.name, e))?.commit()
    }
}

fn write_error(file: &str, error: ArrowError) -> SinkError {
    match error {
        ArrowError::IoError(_, source) => io_error(file, source),
        ArrowError::ExternalError(source) => match source.downcast::<io::Error>() {
            Ok(source) => io_error(file, *source),
            Err(other) => unsupported(file, other),
        },
        other => unsupported(file, other),
    }
}

fn unsupported(file: &str, error: impl std::fmt::Display) -> SinkError {
    let message = format!("the columns cannot be written as Arrow IPC ({error})");
    SinkError::Unsupported { file: file.to_owned(), message }
}
