//! Arrow IPC messages from clients, out of an HTTP body or Flight's frames.
//!
//! The readers of the `arrow` crate allocate what a message says it holds before they look whether
//! it does: one damaged byte makes them ask for petabytes, which ends the process. This one slices
//! what is there. What can make the crate panic in other ways is caught and becomes an error.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{self, MessageHeader, root_as_message};
use bytes::Bytes;

use crate::guard::quietly;

/// What stands before a message's length since version 0.15 of the format.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// How much smaller than its content a compressed buffer can be: zstd's limit, rounded up.
const MAX_EXPANSION: u64 = 1 << 16;
/// Most bytes that one message's compressed buffers may hold.
const DECOMPRESSED_MAX: u64 = 1 << 30;

/// Turns messages into batches; remembers the schema and the dictionaries.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    schema: Option<SchemaRef>,
    /// Whether a column has a union somewhere.
    has_unions: bool,
    dictionaries: HashMap<i64, ArrayRef>,
}

impl Decoder {
    /// The schema, once its message came.
    pub(crate) fn schema(&self) -> Option<&SchemaRef> {
        self.schema.as_ref()
    }

    /// Takes a message; gives the batch if it holds one.
    pub(crate) fn message(
        &mut self,
        metadata: &[u8],
        body: Bytes,
    ) -> Result<Option<RecordBatch>, ArrowError> {
        let body = match self.has_unions {
            // A union's offsets must be aligned, or `arrow` panics; other buffers that frames have
            // left unaligned it copies itself.
            true => Buffer::from_slice_ref(&body[..]),
            false => Buffer::from(body),
        };
        let outcome = quietly(|| self.decode(metadata, &body));
        outcome.unwrap_or_else(|| Err(damage("it is damaged")))
    }

    fn decode(
        &mut self,
        metadata: &[u8],
        body: &Buffer,
    ) -> Result<Option<RecordBatch>, ArrowError> {
        let message = root_as_message(metadata)
            .map_err(|error| damage(format!("a message's metadata is broken ({error})")))?;
        let version = message.version();
        let missing = || damage("a message lacks its header");
        let schema = || self.schema.clone().ok_or_else(|| damage("the first message is no schema"));
        match message.header_type() {
            MessageHeader::Schema => {
                let schema = message.header_as_schema().ok_or_else(missing)?;
                if self.schema.is_some() {
                    return Err(damage("there is a second schema"));
                }
                if !schema.endianness().equals_to_target_endianness() {
                    return Err(damage("its byte order is not this machine's"));
                }
                let schema = fb_to_schema(schema);
                let is_union = |field: &&Field| matches!(field.data_type(), DataType::Union(..));
                self.has_unions = schema.flattened_fields().iter().any(is_union);
                self.schema = Some(Arc::new(schema));
                Ok(None)
            }
            MessageHeader::RecordBatch => {
                let batch = message.header_as_record_batch().ok_or_else(missing)?;
                check_expansion(&batch, body)?;
                let dictionaries = &self.dictionaries;
                read_record_batch(body, batch, schema()?, dictionaries, None, &version).map(Some)
            }
            MessageHeader::DictionaryBatch => {
                let batch = message.header_as_dictionary_batch().ok_or_else(missing)?;
                check_expansion(&batch.data().ok_or_else(missing)?, body)?;
                let schema = schema()?;
                read_dictionary(body, batch, &schema, &mut self.dictionaries, &version)?;
                Ok(None)
            }
            MessageHeader::NONE => Ok(None),
            other => Err(damage(format!("a message of type {other:?} is unexpected"))),
        }
    }
}

/// Reads a whole stream.
pub(crate) fn read_stream(mut bytes: Bytes) -> Result<(SchemaRef, Vec<RecordBatch>), ArrowError> {
    let (mut decoder, mut batches) = (Decoder::default(), Vec::new());
    while let Some(length) = next_length(&mut bytes)? {
        let metadata = take(&mut bytes, length)?;
        let body = root_as_message(&metadata).map(|message| message.bodyLength());
        let body =
            body.map_err(|error| damage(format!("a message's metadata is broken ({error})")))?;
        let body = u64::try_from(body).map_err(|_| damage("a message has a negative length"))?;
        batches.extend(decoder.message(&metadata, take(&mut bytes, body)?)?);
    }
    if !bytes.is_empty() {
        return Err(damage("data stand behind the stream's end; send one stream a request"));
    }
    let schema = decoder.schema.ok_or_else(|| damage("it is empty"))?;
    Ok((schema, batches))
}

/// The length of the next message's metadata; `None` at the end.
fn next_length(bytes: &mut Bytes) -> Result<Option<u64>, ArrowError> {
    if bytes.is_empty() {
        // A stream may end without a mark.
        return Ok(None);
    }
    let mut prefix = take(bytes, 4)?;
    if prefix[..] == CONTINUATION {
        prefix = take(bytes, 4)?;
    }
    let length = u32::from_le_bytes(prefix[..].try_into().map_err(|_| cut_short())?);
    Ok((length > 0).then_some(length.into()))
}

fn take(bytes: &mut Bytes, count: u64) -> Result<Bytes, ArrowError> {
    match usize::try_from(count) {
        Ok(count) if count <= bytes.len() => Ok(bytes.split_to(count)),
        _ => Err(cut_short()),
    }
}

/// Refuses compressed buffers that claim more content than compression can have hidden in them, or
/// than anybody would send.
fn check_expansion(batch: &ipc::RecordBatch<'_>, body: &[u8]) -> Result<(), ArrowError> {
    if batch.compression().is_none() {
        return Ok(());
    }
    let mut total = 0u64;
    for buffer in batch.buffers().iter().flatten() {
        // Each begins with the length of its content, -1 for none compressed; or it is empty.
        let bytes = usize::try_from(buffer.offset())
            .ok()
            .and_then(|start| body.get(start..)?.first_chunk::<8>());
        let claimed = bytes.map_or(0, |bytes| i64::from_le_bytes(*bytes));
        let length = u64::try_from(buffer.length()).unwrap_or_default();
        let claimed = if length > 0 { u64::try_from(claimed).unwrap_or_default() } else { 0 };
        total = total.saturating_add(claimed);
        if claimed / MAX_EXPANSION > length || total > DECOMPRESSED_MAX {
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

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, Int64Array, StructArray, UnionArray};
    use arrow::datatypes::{Int64Type, UnionFields};
    use arrow::ipc::writer::StreamWriter;

    use super::*;

    /// Frames begin anywhere in the memory that they were received in.
    #[test]
    fn unions_are_read_wherever_they_lie() {
        let kinds = UnionFields::from_fields([
            Field::new("a", DataType::Int64, false),
            Field::new("b", DataType::Int64, false),
        ]);
        let children: [ArrayRef; 2] =
            [vec![1, 2], vec![3]].map(|numbers| Arc::new(Int64Array::from(numbers)) as ArrayRef);
        let (ids, offsets) = (vec![0, 1, 0].into(), vec![0, 0, 1].into());
        let union = UnionArray::try_new(kinds, ids, Some(offsets), children.into()).unwrap();
        let field = Arc::new(Field::new("u", union.data_type().clone(), false));
        let deep = StructArray::from(vec![(field, Arc::new(union.clone()) as ArrayRef)]);
        let columns: [(_, ArrayRef); 2] = [("flat", Arc::new(union)), ("deep", Arc::new(deep))];
        for column in columns {
            let batch = RecordBatch::try_from_iter([column]).unwrap();
            let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            let stream = writer.into_inner().unwrap();
            for shift in 0..8 {
                let shifted = Bytes::from([vec![0; shift], stream.clone()].concat());
                let (_, batches) = read_stream(shifted.slice(shift..)).unwrap();
                assert_eq!(batches[0].column(0).len(), 3);
                if let Some(union) = batches[0].column(0).as_union_opt() {
                    let value = |row| union.value(row).as_primitive::<Int64Type>().value(0);
                    assert_eq!([0, 1, 2].map(value), [1, 3, 2]);
                }
            }
        }
    }
}
