//! Arrow IPC messages, out of a file or a stream.
//!
//! The readers of the `arrow` crate allocate what a message says it holds before they read it: one
//! damaged byte makes them ask for petabytes, which ends the process. This one allocates no more
//! than the input turns out to hold.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{read_dictionary, read_footer_length, read_record_batch};
use arrow::ipc::{self, Block, MessageHeader, root_as_footer, root_as_message};
use arrow::record_batch::RecordBatch;

use crate::source::bytes::Bytes;

/// First and last bytes of an Arrow IPC file (Feather version 2 is one).
const FILE_MAGIC: &[u8] = b"ARROW1";

/// What ends a file: the length of its footer, and the magic number again.
const FILE_END_BYTES: u64 = 10;

/// First bytes of Feather version 1, which is another format.
const FEATHER_1_MAGIC: &[u8] = b"FEA1";

/// What stands before a message's length since version 0.15 of the format.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// How much smaller than its content a compressed buffer can be: zstd's limit, rounded up.
const MAX_EXPANSION: u64 = 1 << 16;

/// Reads the record batches of an IPC file or stream in order.
pub(super) struct IpcReader {
    messages: Messages,
    schema: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
}

/// Where messages come from.
enum Messages {
    File(FileMessages),
    Stream(StreamMessages),
}

/// Messages found by the index at a file's end, dictionaries first.
struct FileMessages {
    file: File,
    file_bytes: u64,
    blocks: std::vec::IntoIter<Block>,
    bytes_read: u64,
}

/// Messages one after the other.
struct StreamMessages {
    reader: BufReader<Box<dyn Read + Send>>,
    bytes_read: u64,
    finished: bool,
}

/// One message: what it is, and the buffers that it describes.
struct Message {
    metadata: Buffer,
    body: Buffer,
}

impl IpcReader {
    /// Reads up to the schema.
    pub(super) fn open(bytes: Bytes) -> Result<Self, ArrowError> {
        let (head, bytes) = bytes.peek(FILE_MAGIC.len() as u64)?;
        if head.starts_with(FEATHER_1_MAGIC) {
            return Err(damage("it is Feather version 1; convert it to version 2 or to Parquet"));
        }
        let (messages, schema) = if head.starts_with(FILE_MAGIC) {
            let (messages, schema) = FileMessages::open(bytes.into_file()?)?;
            (Messages::File(messages), schema)
        } else {
            let (messages, schema) = StreamMessages::open(bytes.into_reader())?;
            (Messages::Stream(messages), schema)
        };
        Ok(Self { messages, schema, dictionaries: HashMap::new() })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Whether it is a file, in which each column has one dictionary.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.messages, Messages::File(_))
    }

    pub(super) fn bytes_read(&self) -> u64 {
        match &self.messages {
            Messages::File(file) => file.bytes_read,
            Messages::Stream(stream) => stream.bytes_read,
        }
    }

    /// The next record batch; `None` at the end.
    pub(super) fn next_batch(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        loop {
            let message = match &mut self.messages {
                Messages::File(file) => file.next_message()?,
                Messages::Stream(stream) => stream.next_message()?,
            };
            let Some(Message { metadata, body }) = message else { return Ok(None) };
            let message = parse(&metadata)?;
            let version = message.version();
            let missing = || damage("a message lacks its header");
            match message.header_type() {
                MessageHeader::RecordBatch => {
                    let batch = message.header_as_record_batch().ok_or_else(missing)?;
                    check_expansion(&batch, &body)?;
                    let (schema, dictionaries) = (self.schema.clone(), &self.dictionaries);
                    return read_record_batch(&body, batch, schema, dictionaries, None, &version)
                        .map(Some);
                }
                MessageHeader::DictionaryBatch => {
                    let batch = message.header_as_dictionary_batch().ok_or_else(missing)?;
                    check_expansion(&batch.data().ok_or_else(missing)?, &body)?;
                    let dictionaries = &mut self.dictionaries;
                    read_dictionary(&body, batch, &self.schema, dictionaries, &version)?;
                }
                MessageHeader::NONE => {}
                other => return Err(damage(format!("a message of type {other:?} is unexpected"))),
            }
        }
    }
}

impl FileMessages {
    /// Reads the footer: the schema and the places of all messages.
    fn open(mut file: File) -> Result<(Self, SchemaRef), ArrowError> {
        let file_bytes = file.metadata()?.len();
        let footer_end = file_bytes.checked_sub(FILE_END_BYTES).ok_or_else(cut_short)?;
        let mut end = [0; FILE_END_BYTES as usize];
        file.seek(SeekFrom::Start(footer_end))?;
        file.read_exact(&mut end)?;
        let footer_start = footer_end
            .checked_sub(read_footer_length(end)? as u64)
            .ok_or_else(|| damage("its footer is longer than the file"))?;
        file.seek(SeekFrom::Start(footer_start))?;
        let footer = read_up_to(&mut file, footer_end - footer_start)?;
        let footer =
            root_as_footer(&footer).map_err(|e| damage(format!("its footer is broken ({e})")))?;
        let schema = footer.schema().ok_or_else(|| damage("its footer has no schema"))?;
        let blocks: Vec<Block> = footer
            .dictionaries()
            .iter()
            .flatten()
            .chain(footer.recordBatches().iter().flatten())
            .copied()
            .collect();
        let schema = native_schema(schema)?;
        Ok((Self { file, file_bytes, blocks: blocks.into_iter(), bytes_read: 0 }, schema))
    }

    fn next_message(&mut self) -> Result<Option<Message>, ArrowError> {
        let Some(block) = self.blocks.next() else {
            self.bytes_read = self.file_bytes;
            return Ok(None);
        };
        let place = |number: i64| u64::try_from(number).ok();
        let (start, metadata_bytes, total_bytes) = place(block.offset())
            .zip(place(block.metaDataLength().into()))
            .zip(place(block.bodyLength()))
            .and_then(|((start, metadata), body)| {
                Some((start, metadata, metadata.checked_add(body)?))
            })
            .filter(|(start, _, total)| {
                start.checked_add(*total).is_some_and(|end| end <= self.file_bytes)
            })
            .ok_or_else(|| damage("its footer points beyond its end"))?;
        self.file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; usize::try_from(total_bytes).map_err(|_| cut_short())?];
        self.file.read_exact(&mut bytes)?;
        self.bytes_read += total_bytes;
        // The sum fits, so do its parts.
        let metadata_bytes = metadata_bytes as usize;
        let prefix = if bytes.starts_with(&CONTINUATION) { 8 } else { 4 };
        if metadata_bytes < prefix {
            return Err(damage("a message is shorter than its prefix"));
        }
        let bytes = Buffer::from_vec(bytes);
        Ok(Some(Message {
            metadata: bytes.slice_with_length(prefix, metadata_bytes - prefix),
            body: bytes.slice(metadata_bytes),
        }))
    }
}

impl StreamMessages {
    /// Reads the first message, which is the schema.
    fn open(reader: Box<dyn Read + Send>) -> Result<(Self, SchemaRef), ArrowError> {
        let reader = BufReader::with_capacity(256 << 10, reader);
        let mut messages = Self { reader, bytes_read: 0, finished: false };
        let first = messages.next_message()?.ok_or_else(|| damage("it is empty"))?;
        let schema = parse(&first.metadata)?
            .header_as_schema()
            .ok_or_else(|| damage("its first message is no schema"))?;
        Ok((messages, native_schema(schema)?))
    }

    fn next_message(&mut self) -> Result<Option<Message>, ArrowError> {
        if self.finished {
            return Ok(None);
        }
        let mut prefix = self.read_up_to(4)?;
        if prefix == CONTINUATION {
            prefix = self.read_up_to(4)?;
        } else if prefix.is_empty() {
            // A stream may end without a mark.
            self.finished = true;
            return Ok(None);
        }
        let prefix = <[u8; 4]>::try_from(prefix).map_err(|_| cut_short())?;
        let metadata_bytes = u32::from_le_bytes(prefix).into();
        if metadata_bytes == 0 {
            self.finished = true;
            // Two streams that were put together by `cat` are no stream of all their rows.
            return match self.read_up_to(1)?.is_empty() {
                true => Ok(None),
                false => {
                    Err(damage("data stand behind the stream's end; give one stream at a time"))
                }
            };
        }
        let metadata = self.read_exactly(metadata_bytes)?;
        let body_bytes = u64::try_from(parse(&metadata)?.bodyLength())
            .map_err(|_| damage("a message has a negative length"))?;
        let body = self.read_exactly(body_bytes)?;
        Ok(Some(Message { metadata, body }))
    }

    fn read_exactly(&mut self, bytes: u64) -> Result<Buffer, ArrowError> {
        let read = self.read_up_to(bytes)?;
        if (read.len() as u64) < bytes { Err(cut_short()) } else { Ok(Buffer::from_vec(read)) }
    }

    fn read_up_to(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        let read = read_up_to(&mut self.reader, bytes)?;
        self.bytes_read += read.len() as u64;
        Ok(read)
    }
}

/// Reads so many bytes, or all up to the end; allocates as it reads.
fn read_up_to(reader: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    reader.by_ref().take(bytes).read_to_end(&mut read)?;
    Ok(read)
}

fn parse(metadata: &[u8]) -> Result<ipc::Message<'_>, ArrowError> {
    root_as_message(metadata).map_err(|e| damage(format!("a message's metadata is broken ({e})")))
}

/// A schema, if its data are in this machine's byte order.
fn native_schema(schema: ipc::Schema<'_>) -> Result<SchemaRef, ArrowError> {
    if !schema.endianness().equals_to_target_endianness() {
        return Err(damage("its byte order is not this machine's"));
    }
    Ok(Arc::new(fb_to_schema(schema)))
}

/// Refuses a compressed buffer that claims more content than compression can have hidden in it.
fn check_expansion(batch: &ipc::RecordBatch<'_>, body: &[u8]) -> Result<(), ArrowError> {
    if batch.compression().is_none() {
        return Ok(());
    }
    for buffer in batch.buffers().iter().flatten() {
        // Each begins with the length of its content, -1 for none compressed; or it is empty.
        let bytes = usize::try_from(buffer.offset())
            .ok()
            .and_then(|start| body.get(start..)?.first_chunk::<8>());
        let claimed = bytes.map_or(0, |bytes| i64::from_le_bytes(*bytes));
        let length = u64::try_from(buffer.length()).unwrap_or_default();
        if length > 0 && u64::try_from(claimed).is_ok_and(|n| n / MAX_EXPANSION > length) {
            return Err(damage("a compressed buffer claims an impossible length"));
        }
    }
    Ok(())
}

fn cut_short() -> ArrowError {
    damage("it ends too early")
}

fn damage(message: impl Into<String>) -> ArrowError {
    ArrowError::IpcError(message.into())
}
