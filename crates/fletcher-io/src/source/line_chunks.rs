//! Chunks of line-based files: lines are cut in order, blocks of them parsed by several threads.

use crate::chunk::{Chunk, ChunkLimits, Payload};
use crate::error::SourceError;
use crate::source::bytes::Bytes;
use crate::source::line_blocks::{Block, BlockReader};
use crate::source::{Source, SourceContext, SourceSchema};
use crate::texts::Texts;
use crate::threads::Ahead;

/// What a format makes of a block of lines.
pub(super) type Parse = fn(&Block, &SourceContext) -> Result<(Texts, Payload), SourceError>;

/// A source of a format whose rows are lines.
pub(super) struct LineChunks {
    reading: Reading,
    parse: Parse,
    total_bytes: Option<u64>,
    bytes_read: u64,
    next_row: u64,
    context: SourceContext,
    schema: SourceSchema,
}

enum Reading {
    /// By the caller: the first chunk, and all where there is one thread.
    Here(BlockReader),
    Ahead(Ahead<Parsed>),
    Done,
}

/// A block's rows, which may be none, and the bytes read up to its end.
type Parsed = Result<(Texts, Payload, u64), SourceError>;

impl LineChunks {
    pub(super) fn new(
        bytes: Bytes,
        context: SourceContext,
        schema: SourceSchema,
        parse: Parse,
    ) -> Self {
        let total_bytes = bytes.len();
        let reader = BlockReader::new(bytes.into_reader(), context.limits.row_bytes);
        let reading = Reading::Here(reader);
        Self { reading, parse, total_bytes, bytes_read: 0, next_row: 0, context, schema }
    }

    /// The next block's rows.
    fn next(&mut self) -> Option<Parsed> {
        let (parse, context) = (self.parse, self.context.clone());
        match std::mem::replace(&mut self.reading, Reading::Done) {
            Reading::Here(reader) if self.next_row > 0 && context.threads > 1 => {
                match read_ahead(reader, parse, context) {
                    Ok(ahead) => self.reading = Reading::Ahead(ahead),
                    Err(error) => return Some(Err(error)),
                }
                self.next()
            }
            Reading::Here(mut reader) => {
                let limits = match self.next_row {
                    0 => first_limits(context.limits),
                    _ => context.limits,
                };
                let block = reader.next_block(limits.rows, limits.bytes).transpose()?;
                let parsed = parsed(block, parse, &context);
                self.reading = Reading::Here(reader);
                Some(parsed)
            }
            Reading::Ahead(mut ahead) => {
                let parsed = ahead.next();
                self.reading = Reading::Ahead(ahead);
                parsed
            }
            Reading::Done => None,
        }
    }
}

/// A sink finds the columns of JSON objects in the first chunk, so that is the same whatever limits
/// a device makes the others have.
fn first_limits(limits: ChunkLimits) -> ChunkLimits {
    let usual = ChunkLimits::default();
    let (rows, bytes) = (limits.rows.min(usual.rows), limits.bytes.min(usual.bytes));
    ChunkLimits { rows, bytes, ..limits }
}

fn read_ahead(
    mut reader: BlockReader,
    parse: Parse,
    context: SourceContext,
) -> Result<Ahead<Parsed>, SourceError> {
    let (limits, of_threads) = (context.limits, context.clone());
    let mut failed = false;
    let take = move || {
        let block = reader.next_block(limits.rows, limits.bytes).transpose().filter(|_| !failed);
        failed |= matches!(block, Some(Err(_)));
        block
    };
    let work = move |block| parsed(block, parse, &of_threads);
    Ahead::start(context.threads, take, work).map_err(|e| context.io(e))
}

fn parsed(block: std::io::Result<Block>, parse: Parse, context: &SourceContext) -> Parsed {
    let block = block.map_err(|e| context.io(e))?;
    let (texts, payload) = parse(&block, context)?;
    Ok((texts, payload, block.bytes_read))
}

impl Source for LineChunks {
    fn schema(&self) -> &SourceSchema {
        &self.schema
    }

    fn set_limits(&mut self, limits: ChunkLimits) {
        self.context.limits = limits;
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        while let Some(parsed) = self.next() {
            let (texts, payload, bytes_read) = parsed.inspect_err(|_| {
                self.reading = Reading::Done;
            })?;
            self.bytes_read = bytes_read;
            if !texts.is_empty() {
                let first_row = self.next_row;
                self.next_row += texts.len() as u64;
                return Ok(Some(Chunk { first_row, texts, payload }));
            }
        }
        Ok(None)
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}
