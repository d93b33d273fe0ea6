//! Parquet: rows are decoded a batch at a time, so that a row group's size does not matter, and by
//! several threads where there are many cores.
//!
//! Each thread has a reader of its own and goes through the whole file, but decodes only every
//! n-th batch: pages without a row of these are passed over by their headers, those at the seams
//! are decompressed by two threads. This is independent of how large row groups are, and needs no
//! index of pages. (Pages of lists by the first version of the format do not say how many rows they
//! have, so every thread looks into all of these: it costs processor time, but no more of the clock
//! than one thread would take.)

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes as Buffer;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder, RowSelection, RowSelectionPolicy, RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};

use crate::chunk::{Chunk, ChunkLimits};
use crate::error::SourceError;
use crate::guard::guarded;
use crate::source::bytes::Bytes;
use crate::source::columns::{Batches, text_index};
use crate::source::{Source, SourceContext, SourceSchema};
use crate::threads;

const FORMAT: &str = "Parquet";

pub(super) struct Parquet {
    file: SharedFile,
    metadata: ArrowReaderMetadata,
    text_index: usize,
    total_rows: u64,
    reading: Option<Reading>,
    context: SourceContext,
    schema: SourceSchema,
}

enum Reading {
    /// By the caller.
    Here(Box<Decoder>),
    /// By threads, each of which makes every n-th batch.
    Ahead(Ahead),
}

impl Parquet {
    pub(super) fn open(bytes: Bytes, context: SourceContext) -> Result<Self, SourceError> {
        let file = bytes.into_file().and_then(SharedFile::new).map_err(|e| context.io(e))?;
        let load = || ArrowReaderMetadata::load(&file, ArrowReaderOptions::default());
        let metadata = guarded(load, panicked).map_err(|e| context.corrupt(FORMAT, e))?;
        let schema = metadata.schema().clone();
        let text_index = text_index(&schema, &context)?;
        let groups = metadata.metadata().row_groups().iter();
        let total_rows = groups.map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum();
        let schema = SourceSchema::Columns { schema, one_dictionary: false };
        Ok(Self { file, metadata, text_index, total_rows, reading: None, context, schema })
    }

    fn start(&self) -> Result<Reading, SourceError> {
        let batch_rows = batch_rows(self.metadata.metadata(), self.context.limits);
        let batches = self.total_rows.div_ceil(batch_rows as u64);
        let threads = (self.context.threads as u64).min(batches).max(1);
        let decoder = |first| Decoder::new(self, Share { batch_rows, first, threads });
        if threads == 1 {
            return Ok(Reading::Here(Box::new(decoder(0)?)));
        }
        let decoders = (0..threads).map(decoder).collect::<Result<Vec<_>, _>>()?;
        Ahead::start(decoders, self.total_rows).map(Reading::Ahead).map_err(|e| self.context.io(e))
    }
}

impl Source for Parquet {
    fn schema(&self) -> &SourceSchema {
        &self.schema
    }

    fn set_limits(&mut self, limits: ChunkLimits) {
        self.context.limits = limits;
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        let reading = match self.reading.take() {
            Some(reading) => reading,
            None => self.start()?,
        };
        match self.reading.insert(reading) {
            Reading::Here(decoder) => decoder.next_chunk(),
            Reading::Ahead(ahead) => ahead.next_chunk(),
        }
    }

    fn total_rows(&self) -> Option<u64> {
        Some(self.total_rows)
    }
}

/// Which batches of a file's rows a decoder makes: number `first` and each `threads`-th from there.
#[derive(Clone, Copy)]
struct Share {
    batch_rows: usize,
    first: u64,
    threads: u64,
}

impl Share {
    fn selection(self, total_rows: u64) -> RowSelection {
        let rows = self.batch_rows as u64;
        let mut selectors = vec![RowSelector::skip(to_usize(self.first * rows))];
        let mut start = self.first * rows;
        while start < total_rows {
            let others = ((self.threads - 1) * rows).min(total_rows.saturating_sub(start + rows));
            selectors.push(RowSelector::select(to_usize(rows.min(total_rows - start))));
            selectors.push(RowSelector::skip(to_usize(others)));
            start += rows + others;
        }
        selectors.into()
    }
}

/// Rows are counted in `usize` by the library.
fn to_usize(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}

/// Makes chunks of its share of the batches.
struct Decoder {
    reader: ParquetRecordBatchReader,
    share: Share,
    /// Number of the next batch.
    next: u64,
    total_rows: u64,
    batches: Batches,
    context: SourceContext,
}

impl Decoder {
    fn new(source: &Parquet, share: Share) -> Result<Self, SourceError> {
        let build = || {
            let (file, metadata) = (source.file.clone(), source.metadata.clone());
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
                .with_batch_size(share.batch_rows);
            match share.threads {
                1 => builder.build(),
                _ => builder
                    .with_row_selection(share.selection(source.total_rows))
                    .with_row_selection_policy(RowSelectionPolicy::Selectors)
                    .build(),
            }
        };
        let reader = guarded(build, panicked).map_err(|e| source.context.corrupt(FORMAT, e))?;
        Ok(Self {
            reader,
            share,
            next: share.first,
            total_rows: source.total_rows,
            batches: Batches::new(source.text_index),
            context: source.context.clone(),
        })
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        loop {
            if let Some(chunk) = self.batches.next_chunk(&self.context)? {
                return Ok(Some(chunk));
            }
            if !self.next_batch()? {
                return Ok(None);
            }
        }
    }

    /// Decodes the next batch of the share, if there is one. It has the rows that it should have,
    /// or else the others' rows would not be those that they are taken for.
    fn next_batch(&mut self) -> Result<bool, SourceError> {
        let read = guarded(|| self.reader.next().transpose(), ArrowError::ParquetError);
        let batch = read.map_err(|e| read_error(&self.context, e))?;
        let start = self.next * self.share.batch_rows as u64;
        let wanted = self.total_rows.saturating_sub(start).min(self.share.batch_rows as u64);
        let found = batch.as_ref().map_or(0, RecordBatch::num_rows) as u64;
        if found != wanted {
            let message = format!("{found} rows after row {start} where {wanted} should be");
            return Err(self.context.corrupt(FORMAT, message));
        }
        let Some(batch) = batch else { return Ok(false) };
        self.batches.set_next_row(start);
        self.next += self.share.threads;
        self.batches.push(batch, &self.context).map(|()| true)
    }

    /// Sends what it makes, a message for each batch; stops when nobody takes it.
    fn run(mut self, sender: &SyncSender<Made>) {
        loop {
            let mut chunks = Vec::new();
            let outcome = self.next_batch().and_then(|more| {
                while let Some(chunk) = self.batches.next_chunk(&self.context)? {
                    chunks.push(Ok(chunk));
                }
                Ok(more)
            });
            let more = matches!(outcome, Ok(true));
            chunks.extend(outcome.err().map(Err));
            if sender.send(chunks.into_iter()).is_err() || !more {
                return;
            }
        }
    }
}

/// The chunks of one batch; an error is the last.
type Made = std::vec::IntoIter<Result<Chunk, SourceError>>;

/// Decoders in threads of their own. Each has a batch in the making and one that waits.
struct Ahead {
    receivers: Vec<Receiver<Made>>,
    /// Whose turn it is.
    turn: usize,
    current: Made,
    /// Rows that are still to come.
    rows_left: u64,
}

impl Ahead {
    fn start(decoders: Vec<Decoder>, rows: u64) -> io::Result<Self> {
        let receivers = decoders.into_iter().map(|decoder| {
            let (sender, receiver) = sync_channel(1);
            threads::named("fletcher-read").spawn(move || decoder.run(&sender))?;
            Ok(receiver)
        });
        let receivers = receivers.collect::<io::Result<Vec<_>>>()?;
        Ok(Self { receivers, turn: 0, current: Vec::new().into_iter(), rows_left: rows })
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        while self.rows_left > 0 {
            match self.current.next() {
                Some(Ok(chunk)) => {
                    self.rows_left -= chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Some(Err(error)) => {
                    self.rows_left = 0;
                    return Err(error);
                }
                None => {
                    let made = self.receivers[self.turn].recv();
                    self.current =
                        made.unwrap_or_else(|_| panic!("a thread that decodes panicked"));
                    self.turn = (self.turn + 1) % self.receivers.len();
                }
            }
        }
        Ok(None)
    }
}

/// A file that is read at places, not from one that all its readers move: threads share it.
#[derive(Clone)]
struct SharedFile {
    file: Arc<File>,
    len: u64,
}

impl SharedFile {
    fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), len })
    }
}

impl Length for SharedFile {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for SharedFile {
    type T = BufReader<FileFrom>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(FileFrom { file: self.file.clone(), place: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Buffer, ParquetError> {
        // A damaged file may claim any length.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            let message = format!("{length} bytes at {start} are more than the file has");
            return Err(ParquetError::EOF(message));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// The file's bytes from a place on.
struct FileFrom {
    file: Arc<File>,
    place: u64,
}

impl Read for FileFrom {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.place)?;
        self.place += read as u64;
        Ok(read)
    }
}

/// Rows to decode at once, by the mean size of a row in the row group with the largest rows.
fn batch_rows(metadata: &ParquetMetaData, limits: ChunkLimits) -> usize {
    let row_bytes = metadata
        .row_groups()
        .iter()
        .filter(|group| group.num_rows() > 0)
        .map(|group| {
            // Encoded, a value that repeats takes next to nothing; some writers say what it takes.
            let columns = group.columns().iter();
            let plain = columns.filter_map(|column| column.unencoded_byte_array_data_bytes()).sum();
            group.total_byte_size().max(plain).max(0) / group.num_rows()
        })
        .max()
        .unwrap_or_default();
    let row_bytes = usize::try_from(row_bytes).unwrap_or(usize::MAX).max(1);
    (limits.bytes / row_bytes).clamp(1, limits.rows.max(1))
}

fn panicked(message: String) -> ParquetError {
    ParquetError::General(message)
}

fn read_error(context: &SourceContext, error: ArrowError) -> SourceError {
    match error {
        ArrowError::IoError(_, source) => context.io(source),
        other => context.corrupt(FORMAT, other),
    }
}
