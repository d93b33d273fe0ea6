//! Arrow IPC, file or stream; the first bytes tell which, not the file's name.

use arrow::error::ArrowError;

use crate::chunk::{Chunk, ChunkLimits};
use crate::error::SourceError;
use crate::guard::guarded;
use crate::source::bytes::Bytes;
use crate::source::columns::{Batches, text_index};
use crate::source::ipc_reader::IpcReader;
use crate::source::{Source, SourceContext, SourceSchema};

const FORMAT: &str = "Arrow IPC";

/// Rows of either kind. Memory is bounded by the file's own record batches: IPC has no smaller
/// unit.
pub(super) struct Arrow {
    reader: IpcReader,
    total_bytes: Option<u64>,
    batches: Batches,
    context: SourceContext,
    schema: SourceSchema,
}

impl Arrow {
    pub(super) fn open(bytes: Bytes, context: SourceContext) -> Result<Self, SourceError> {
        let total_bytes = bytes.len();
        let reader = guarded(|| IpcReader::open(bytes), ArrowError::IpcError)
            .map_err(|e| read_error(&context, e))?;
        let schema = reader.schema().clone();
        let batches = Batches::new(text_index(&schema, &context)?);
        let schema = SourceSchema::Columns { schema, one_dictionary: reader.is_file() };
        Ok(Self { reader, total_bytes, batches, context, schema })
    }
}

impl Source for Arrow {
    fn schema(&self) -> &SourceSchema {
        &self.schema
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        loop {
            if let Some(chunk) = self.batches.next_chunk(&self.context)? {
                return Ok(Some(chunk));
            }
            let batch = guarded(|| self.reader.next_batch(), ArrowError::IpcError);
            match batch.map_err(|e| read_error(&self.context, e))? {
                Some(batch) => self.batches.push(batch, &self.context)?,
                None => return Ok(None),
            }
        }
    }

    fn set_limits(&mut self, limits: ChunkLimits) {
        self.context.limits = limits;
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    fn bytes_read(&self) -> u64 {
        self.reader.bytes_read()
    }
}

fn read_error(context: &SourceContext, error: ArrowError) -> SourceError {
    match error {
        ArrowError::IoError(_, source) => context.io(source),
        ArrowError::IpcError(message) => context.corrupt(FORMAT, message),
        other => context.corrupt(FORMAT, other),
    }
}
