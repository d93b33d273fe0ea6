//! Arrow IPC messages, read in order.
//!
//! An IPC file is an IPC stream between a magic number and an index, so that one reader does for
//! both, needs no seeking, and reads a file from a pipe. The readers of the `arrow` crate allocate
//! what a message says it holds before they read it: one damaged byte makes them ask for petabytes,
//! which ends the process. This one allocates no more than the input turns out to hold.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{self, Message, MessageHeader, root_as_message};
use arrow::record_batch::RecordBatch;

/// First and last bytes of an Arrow IPC file (Feather version 2 is one).
const FILE_MAGIC: &[u8] = b"ARROW1";

/// The first magic number is padded with zeros to a multiple of this: some writers pad to 8 bytes,
/// others to 64.
const MAGIC_UNIT_BYTES: u64 = 8;

/// First bytes of Feather version 1, which is another format.
const FEATHER_1_MAGIC: &[u8] = b"FEA1";

/// What stands before a message's length since version 0.15 of the format.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// How much smaller than its content a compressed buffer can be: zstd's limit, rounded up.
const MAX_EXPANSION: u64 = 1 << 16;

/// Reads the record batches of an IPC file or stream.
pub(super) struct IpcReader {
    reader: BufReader<Box<dyn Read + Send>>,
    /// Bytes looked at to tell a file from a stream, not yet read.
    head: io::Cursor<Vec<u8>>,
    bytes_read: u64,
    is_file: bool,
    schema: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
    finished: bool,
}

impl IpcReader {
    /// Reads up to the schema.
    pub(super) fn open(reader: Box<dyn Read + Send>) -> Result<Self, ArrowError> {
        let mut ipc = Self {
            reader: BufReader::with_capacity(256 << 10, reader),
            head: io::Cursor::default(),
            bytes_read: 0,
            is_file: false,
            schema: SchemaRef::new(Schema::empty()),
            dictionaries: HashMap::new(),
            finished: false,
        };
        ipc.skip_magic()?;
        let (metadata, _) = ipc.next_message()?.ok_or_else(|| damage("it is empty"))?;
        let schema = message(&metadata)?
            .header_as_schema()
            .ok_or_else(|| damage("its first message is no schema"))?;
        if !schema.endianness().equals_to_target_endianness() {
            return Err(damage("its byte order is not this machine's"));
        }
        ipc.schema = Arc::new(fb_to_schema(schema));
        Ok(ipc)
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Whether it is a file, in which each column has one dictionary.
    pub(super) fn is_file(&self) -> bool {
        self.is_file
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The next record batch; `None` at the end.
    pub(super) fn next_batch(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        while let Some((metadata, body)) = self.next_message()? {
            let message = message(&metadata)?;
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
        Ok(None)
    }

    /// Tells a file from a stream, and comes to the first message of either.
    fn skip_magic(&mut self) -> Result<(), ArrowError> {
        let mut head = self.read_up_to(MAGIC_UNIT_BYTES)?;
        if head.starts_with(FEATHER_1_MAGIC) {
            return Err(damage("it is Feather version 1; convert it to version 2 or to Parquet"));
        }
        self.is_file = head.starts_with(FILE_MAGIC);
        if self.is_file {
            head = self.read_up_to(MAGIC_UNIT_BYTES)?;
            while head == [0; MAGIC_UNIT_BYTES as usize] {
                head = self.read_up_to(MAGIC_UNIT_BYTES)?;
            }
        }
        // What was looked at is still to be read.
        self.bytes_read -= head.len() as u64;
        self.head = io::Cursor::new(head);
        Ok(())
    }

    /// The metadata and the body of the next message; `None` at the end.
    fn next_message(&mut self) -> Result<Option<(Vec<u8>, Buffer)>, ArrowError> {
        if self.finished {
            return Ok(None);
        }
        let mut prefix = self.read_up_to(4)?;
        if prefix == CONTINUATION {
            prefix = self.read_up_to(4)?;
        } else if prefix.is_empty() && !self.is_file {
            // A stream may end without a mark.
            self.finished = true;
            return Ok(None);
        }
        let prefix = <[u8; 4]>::try_from(prefix).map_err(|_| cut_short())?;
        let metadata_bytes = u32::from_le_bytes(prefix).into();
        if metadata_bytes == 0 {
            self.finished = true;
            return self.check_end().map(|()| None);
        }
        let metadata = self.read_exactly(metadata_bytes)?;
        let body_bytes = u64::try_from(message(&metadata)?.bodyLength())
            .map_err(|_| damage("a message has a negative length"))?;
        let body = self.read_exactly(body_bytes)?;
        Ok(Some((metadata, Buffer::from_vec(body))))
    }

    /// Checks that a file ends as it began; its index in between is not needed.
    fn check_end(&mut self) -> Result<(), ArrowError> {
        if !self.is_file {
            return Ok(());
        }
        let mut last = Vec::new();
        loop {
            let part = self.read_up_to(64 << 10)?;
            if part.is_empty() {
                break;
            }
            last.drain(..last.len().saturating_sub(FILE_MAGIC.len()));
            last.extend(part);
        }
        if last.ends_with(FILE_MAGIC) { Ok(()) } else { Err(cut_short()) }
    }

    fn read_exactly(&mut self, bytes: u64) -> Result<Vec<u8>, ArrowError> {
        let read = self.read_up_to(bytes)?;
        if (read.len() as u64) < bytes { Err(cut_short()) } else { Ok(read) }
    }

    /// Reads so many bytes, or all up to the end; allocates as it reads.
    fn read_up_to(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        self.head.by_ref().take(bytes).read_to_end(&mut read)?;
        let rest = bytes - read.len() as u64;
        self.reader.by_ref().take(rest).read_to_end(&mut read)?;
        self.bytes_read += read.len() as u64;
        Ok(read)
    }
}

fn message(metadata: &[u8]) -> Result<Message<'_>, ArrowError> {
    root_as_message(metadata).map_err(|e| damage(format!("a message's metadata is broken ({e})")))
}

/// Refuses a compressed buffer that claims more content than compression can have hidden in it.
fn check_expansion(batch: &ipc::RecordBatch<'_>, body: &[u8]) -> Result<(), ArrowError> {
    if batch.compression().is_none() {
        return Ok(());
    }
    for buffer in batch.buffers().iter().flatten() {
        // Each begins with the length of its content; -1 stands for no compression.
        let claimed = usize::try_from(buffer.offset())
            .ok()
            .and_then(|start| body.get(start..)?.first_chunk::<8>())
            .map_or(0, |bytes| i64::from_le_bytes(*bytes));
        let length = u64::try_from(buffer.length()).unwrap_or_default();
        if u64::try_from(claimed).is_ok_and(|claimed| claimed / MAX_EXPANSION > length) {
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
