//! Arrow IPC, file or stream; the first bytes tell which, not the file's name.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek};

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::record_batch::RecordBatch;

use crate::chunk::Chunk;
use crate::error::SourceError;
use crate::source::columns::{Batches, text_index};
use crate::source::guard::guarded;
use crate::source::{Bytes, Source, SourceContext, SourceSchema, spool};

const FORMAT: &str = "Arrow IPC";

/// First bytes of an Arrow IPC file (Feather version 2 is one).
const FILE_MAGIC: &[u8] = b"ARROW1";

/// First bytes of Feather version 1, which is another format.
const FEATHER_1_MAGIC: &[u8] = b"FEA1";

/// Opens either kind. Memory is bounded by the file's own record batches: IPC has no smaller unit.
pub(super) fn open(bytes: Bytes, context: SourceContext) -> Result<Box<dyn Source>, SourceError> {
    let (head, bytes) = peek(bytes).map_err(|e| context.io(e))?;
    if head.starts_with(FEATHER_1_MAGIC) {
        let message = "it is Feather version 1; convert it to version 2 or to Parquet";
        return Err(context.corrupt(FORMAT, message));
    }
    if head.starts_with(FILE_MAGIC) {
        let file = bytes.into_file(head).map_err(|e| context.io(e))?;
        let reader = guarded(|| FileReader::try_new_buffered(file, None), ArrowError::IpcError)
            .map_err(|e| read_error(&context, e))?;
        let schema = reader.schema();
        return Ok(Box::new(Arrow::new(reader, schema, true, context)?));
    }
    let bytes = BufReader::new(bytes.into_reader(head));
    let reader = guarded(|| StreamReader::try_new(bytes, None), ArrowError::IpcError)
        .map_err(|e| read_error(&context, e))?;
    let schema = reader.schema();
    Ok(Box::new(Arrow::new(reader, schema, false, context)?))
}

struct Arrow<R> {
    reader: R,
    batches: Batches,
    context: SourceContext,
    schema: SourceSchema,
}

impl<R: Iterator<Item = Result<RecordBatch, ArrowError>>> Arrow<R> {
    fn new(
        reader: R,
        schema: SchemaRef,
        one_dictionary: bool,
        context: SourceContext,
    ) -> Result<Self, SourceError> {
        let batches = Batches::new(text_index(&schema, &context)?);
        let schema = SourceSchema::Columns { schema, one_dictionary };
        Ok(Self { reader, batches, context, schema })
    }
}

impl<R: Iterator<Item = Result<RecordBatch, ArrowError>> + Send> Source for Arrow<R> {
    fn schema(&self) -> &SourceSchema {
        &self.schema
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        loop {
            if let Some(chunk) = self.batches.next_chunk(&self.context)? {
                return Ok(Some(chunk));
            }
            let batch = guarded(|| self.reader.next().transpose(), ArrowError::IpcError);
            match batch.map_err(|e| read_error(&self.context, e))? {
                Some(batch) => self.batches.push(batch),
                None => return Ok(None),
            }
        }
    }
}

/// An input whose first bytes have been looked at.
enum Peeked {
    /// A file, back at its start.
    File(File),
    /// A stream, past the bytes looked at.
    Stream(Box<dyn Read + Send>),
}

/// The first bytes (fewer at the end of the input).
fn peek(bytes: Bytes) -> io::Result<(Vec<u8>, Peeked)> {
    let take = FILE_MAGIC.len() as u64;
    let mut head = Vec::new();
    match bytes {
        Bytes::File(mut file) if file.metadata()?.is_file() => {
            file.by_ref().take(take).read_to_end(&mut head)?;
            file.rewind()?;
            Ok((head, Peeked::File(file)))
        }
        other => {
            let mut reader = other.into_reader();
            reader.by_ref().take(take).read_to_end(&mut head)?;
            Ok((head, Peeked::Stream(reader)))
        }
    }
}

impl Peeked {
    fn into_file(self, head: Vec<u8>) -> io::Result<File> {
        match self {
            Self::File(file) => Ok(file),
            Self::Stream(rest) => spool(Cursor::new(head).chain(rest)),
        }
    }

    fn into_reader(self, head: Vec<u8>) -> Box<dyn Read + Send> {
        match self {
            Self::File(file) => Box::new(file),
            Self::Stream(rest) => Box::new(Cursor::new(head).chain(rest)),
        }
    }
}

/// An end in mid-record is damage; other failures of reading are the system's.
fn read_error(context: &SourceContext, error: ArrowError) -> SourceError {
    match error {
        ArrowError::IoError(message, e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            context.corrupt(FORMAT, message)
        }
        ArrowError::IoError(_, source) => context.io(source),
        other => context.corrupt(FORMAT, other),
    }
}
