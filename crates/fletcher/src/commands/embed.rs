//! `fletcher embed`: rows in, the same rows with vectors out.
//!
//! Three stages run at once, joined by short queues so that memory stays bounded: a thread reads
//! chunks, lanes embed one each with the engine's workers, and a thread writes. Both of these have
//! helpers of their own in `fletcher-io`. A lane takes a chunk as soon as it is free and one is
//! there, whatever becomes of those before; this thread puts them back in order. The stop signal
//! is looked at between chunks; a sink dropped before it is finished leaves nothing at the output
//! path.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fletcher_core::embedder::{EmbedOptions, Embedder};
use fletcher_io::{Chunk, ChunkLimits, OnError, Sink, SinkError, Source, SourceError, Vectors};

use crate::args::{EmbedArgs, OnErrorArg};
use crate::config::{self, ModelConfig};
use crate::failure::Failure;
use crate::model;
use crate::progress::EmbedBar;
use crate::signals;

mod ends;
use ends::{check_output, create_sink, open_source};

/// Chunks waiting between two stages: enough to hide a slow read, few enough to bound memory.
const QUEUE: usize = 2;
/// How often a stage that waits looks at the stop signal.
const STOP_POLL: Duration = Duration::from_millis(50);

pub(crate) fn run(args: EmbedArgs) -> Result<(), Failure> {
    let config = ModelConfig::resolve(&args.model);
    let options = config::embed_options(&args.text);
    let on_error = match args.on_error {
        OnErrorArg::Fail => OnError::Fail,
        OnErrorArg::Skip => OnError::Skip,
    };
    // The input is opened first: a mistyped path should not wait for a model to load.
    let mut source = open_source(&args, on_error)?;
    check_output(&args)?;
    let embedder = model::load(&config)?;
    tell_choice(&config, &embedder);
    // From here on there is an unfinished output to remove; before, a signal may simply end us.
    let stop = stop_signal()?;
    let sink = create_sink(&args, on_error, source.as_ref(), &embedder)?;
    // What was written to a pipe or a device stays there.
    let streams = args.output == Path::new("-")
        || std::fs::metadata(&args.output).is_ok_and(|output| !output.is_file());
    let total = source.total_rows().or(source.total_bytes());
    let mut bar = EmbedBar::new(total);

    let by_rows = source.total_rows().is_some();
    let pace = Pace::of(&embedder);
    source.set_limits(pace.limits);
    let (chunks, reader) = spawn_reader(source)?;
    let (done, writer) = spawn_writer(sink)?;
    let embed = Embed { embedder: &embedder, options: &options, on_error };
    let lanes = Lanes { count: pace.lanes, embed: &|chunk| embed.chunk(chunk), stop: &stop };
    // The chunks' receiver goes with this, so that a reader that waits to send gives up.
    let result = lanes.drive(chunks, done, |progress| {
        let position = if by_rows { progress.rows_done } else { progress.bytes_read };
        bar.advance(position, progress.rows, progress.tokens);
    });
    bar.finish();
    model::tell_lost_devices(&embedder);
    match result {
        Ok(()) => {
            join(reader)?;
            Ok(join(writer)??)
        }
        // The writer's own failure is the cause when it has gone away; it also removes the
        // unfinished output, which must not outlive this process.
        Err(failure) => match (join(writer)?, failure) {
            (Err(error), Failure::ClosedPipe) => Err(error.into()),
            (_, Failure::Interrupted { signal, .. }) => {
                Err(Failure::Interrupted { signal, in_part: streams })
            }
            (_, failure) => Err(failure),
        },
    }
}

/// How many rows are embedded at once.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    limits: ChunkLimits,
    /// Chunks that are embedded at the same time.
    lanes: usize,
}

impl Pace {
    /// Two chunks in flight are enough where every worker encodes: those that are done with one
    /// begin the next. Where some workers only tokenise, for a device that needs few to drive it,
    /// they should have more to run ahead with, and a chunk should fill the device several times
    /// over even if its texts are short.
    fn of(embedder: &Embedder) -> Self {
        let at_once = embedder.block_tokens() * embedder.concurrent_blocks();
        let encode_all = embedder.concurrent_blocks() >= embedder.threads();
        Self::new(at_once, encode_all, embedder.dim())
    }

    fn new(tokens_at_once: usize, encode_all: bool, dim: usize) -> Self {
        /// Times that a chunk fills the device.
        const FILLINGS: usize = 2;
        /// Tokens of a short text.
        const SHORT: usize = 16;
        /// Bytes of a chunk's vectors, so that many dimensions do not add up.
        const VECTORS_BYTES: usize = 16 << 20;
        let usual = ChunkLimits::default();
        let most = VECTORS_BYTES / (size_of::<f32>() * dim.max(1));
        let rows = (FILLINGS * tokens_at_once / SHORT).min(most).max(usual.rows);
        Self { limits: ChunkLimits { rows, ..usual }, lanes: if encode_all { 2 } else { 4 } }
    }
}

/// A chunk with its vectors, on the way to the writer. `None` ends the output well.
type Finished = Option<(Chunk, Vectors)>;

/// One chunk's share of the work done.
struct Progress {
    rows: u64,
    tokens: u64,
    rows_done: u64,
    bytes_read: u64,
}

/// Vectors of a chunk, and the tokens that they took.
type Embedded = Result<(Vectors, u64), Failure>;

/// Chunks between reader and writer.
struct Lanes<'a> {
    count: usize,
    embed: &'a (dyn Fn(&Chunk) -> Embedded + Sync),
    stop: &'a AtomicUsize,
}

/// What lanes take chunks from, one lane at a time.
struct Queue {
    chunks: Chunks,
    /// Where each chunk's outcome will arrive, in order. Its bound is that of the chunks in flight.
    order: SyncSender<Receiver<Outcome>>,
    ended: bool,
}

/// A chunk that a lane is done with; `None` at the end of the input.
type Outcome = Result<Option<(Read, Vectors, u64)>, Failure>;

impl Lanes<'_> {
    /// Embeds chunk after chunk until the source ends, a stage fails or the user stops it.
    fn drive(
        &self,
        chunks: Chunks,
        done: SyncSender<Finished>,
        progress: impl FnMut(Progress),
    ) -> Result<(), Failure> {
        // The oldest is out of the queue and awaited.
        let (sender, order) = sync_channel(self.count.saturating_sub(1).max(1));
        let queue = Mutex::new(Queue { chunks, order: sender, ended: false });
        let abandoned = AtomicBool::new(false);
        thread::scope(|scope| {
            let start = |_| {
                let lane = || self.lane(&queue, &abandoned);
                thread::Builder::new().name("fletcher-lane".to_owned()).spawn_scoped(scope, lane)
            };
            let lanes: Vec<_> = (0..self.count).map(start).collect();
            let started = match lanes.iter().any(Result::is_ok) {
                true => Ok(()),
                false => Err(Failure::work("no thread can be started")),
            };
            let result = started.and_then(|()| self.deliver(order, done, progress));
            abandoned.store(true, Ordering::Relaxed);
            // A lane that panics loses its chunk, which was an error above.
            lanes.into_iter().flatten().for_each(|lane| drop(lane.join()));
            result
        })
    }

    /// Takes chunks from the queue and embeds them.
    fn lane(&self, queue: &Mutex<Queue>, abandoned: &AtomicBool) {
        loop {
            let (read, outcome) = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.ended {
                    return;
                }
                let Some(read) = next(&queue.chunks, self.stop, abandoned) else { return };
                queue.ended = !matches!(read, Ok(Some(_)));
                let (outcome, place) = sync_channel(1);
                // Nobody takes it where the run has failed.
                if queue.order.send(place).is_err() {
                    return;
                }
                (read, outcome)
            };
            let embed = |read: Read| {
                let (vectors, tokens) = (self.embed)(&read.chunk)?;
                Ok((read, vectors, tokens))
            };
            let embedded = read.and_then(|read| read.map(embed).transpose());
            if outcome.send(embedded).is_err() {
                return;
            }
        }
    }

    /// Hands what the lanes made to the writer, in order.
    fn deliver(
        &self,
        order: Receiver<Receiver<Outcome>>,
        done: SyncSender<Finished>,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), Failure> {
        let mut rows_done = 0;
        loop {
            let place = order.recv().map_err(|_| stage_panicked())?;
            let embedded = place.recv().map_err(|_| stage_panicked())??;
            // The writer has gone away only if it failed; it tells why when it is joined.
            let Some((Read { chunk, bytes_read }, vectors, tokens)) = embedded else {
                return done.send(None).map_err(|_| Failure::ClosedPipe);
            };
            let rows = chunk.len() as u64;
            rows_done += rows;
            done.send(Some((chunk, vectors))).map_err(|_| Failure::ClosedPipe)?;
            progress(Progress { rows, tokens, rows_done, bytes_read });
            stopped(self.stop)?;
        }
    }
}

/// How a chunk is embedded.
struct Embed<'a> {
    embedder: &'a Embedder,
    options: &'a EmbedOptions,
    on_error: OnError,
}

impl Embed<'_> {
    /// Vectors for a chunk's rows, in place, and the number of tokens that took.
    fn chunk(&self, chunk: &Chunk) -> Embedded {
        let texts: Vec<&str> = chunk.texts.iter().filter_map(Result::ok).collect();
        let embeddings = self.embedder.embed(&texts, self.options)?;
        let (dim, rows) = (embeddings.dim, chunk.len());
        // The rows that the vectors belong to.
        let bad = chunk.texts.errors();
        let good = (0..rows).filter(|row| bad.binary_search_by_key(row, |(row, _)| *row).is_err());
        let (mut errors, mut tokens) = (Vec::new(), 0);
        for (result, row) in embeddings.rows.iter().zip(good.clone()) {
            match result {
                Ok(embedding) => tokens += embedding.tokens as u64,
                Err(error) if self.on_error == OnError::Fail => {
                    let number = chunk.first_row + row as u64 + 1;
                    return Err(Failure::Input {
                        message: format!("row {number}: {error}"),
                        hint: Some("--on-error skip keeps such rows without a vector".into()),
                    });
                }
                Err(error) => {
                    errors.resize(rows, None);
                    errors[row] = Some(error.to_string());
                }
            }
        }
        let values = match bad.is_empty() {
            true => embeddings.values,
            false => {
                let mut values = vec![0.0; rows * dim];
                for (vector, row) in embeddings.values.chunks_exact(dim).zip(good) {
                    values[row * dim..(row + 1) * dim].copy_from_slice(vector);
                }
                values
            }
        };
        Ok((Vectors { dim, values, errors }, tokens))
    }
}

/// The next chunk, with `None` for the end of the input; fails when the user stops the run. Nothing
/// when the run has been abandoned.
fn next(
    chunks: &Chunks,
    stop: &AtomicUsize,
    abandoned: &AtomicBool,
) -> Option<Result<Option<Read>, Failure>> {
    loop {
        if let Err(failure) = stopped(stop) {
            return Some(Err(failure));
        }
        match chunks.recv_timeout(STOP_POLL) {
            Ok(read) => return Some(read.map_err(Failure::from)),
            Err(RecvTimeoutError::Timeout) if abandoned.load(Ordering::Relaxed) => return None,
            Err(RecvTimeoutError::Timeout) => {}
            // Without the end mark the rest of the input is missing, so this is no end.
            Err(RecvTimeoutError::Disconnected) => return Some(Err(stage_panicked())),
        }
    }
}

/// Fails if the user has stopped the run.
fn stopped(stop: &AtomicUsize) -> Result<(), Failure> {
    match stop.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Failure::Interrupted { signal: signal as i32, in_part: false }),
    }
}

/// A chunk as the reader hands it over.
struct Read {
    chunk: Chunk,
    bytes_read: u64,
}

/// `None` marks the end of the input.
type Chunks = Receiver<Result<Option<Read>, SourceError>>;

fn spawn_reader(mut source: Box<dyn Source>) -> Result<(Chunks, JoinHandle<()>), Failure> {
    let (sender, receiver) = sync_channel(QUEUE);
    let thread = spawn("fletcher-read", move || {
        loop {
            let next = source.next_chunk();
            let bytes_read = source.bytes_read();
            let last = !matches!(next, Ok(Some(_)));
            let read = next.map(|chunk| chunk.map(|chunk| Read { chunk, bytes_read }));
            // Sending fails when the run was stopped; reading on would serve nobody.
            if sender.send(read).is_err() || last {
                return;
            }
        }
    });
    Ok((receiver, thread?))
}

type Writer = JoinHandle<Result<(), SinkError>>;

fn spawn_writer(mut sink: Box<dyn Sink>) -> Result<(SyncSender<Finished>, Writer), Failure> {
    let (sender, receiver) = sync_channel::<Finished>(QUEUE);
    let thread = spawn("fletcher-write", move || {
        while let Ok(finished) = receiver.recv() {
            let Some((chunk, vectors)) = finished else { return sink.finish() };
            sink.write(chunk, vectors)?;
        }
        // The sender is gone without the end mark: the run was abandoned, and so is the output.
        Ok(())
    });
    Ok((sender, thread?))
}

fn spawn<R: Send + 'static>(
    name: &str,
    stage: impl FnOnce() -> R + Send + 'static,
) -> Result<JoinHandle<R>, Failure> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(stage);
    started.map_err(|error| Failure::work(format!("a thread cannot be started: {error}")))
}

fn join<R>(thread: JoinHandle<R>) -> Result<R, Failure> {
    thread.join().map_err(|_| stage_panicked())
}

fn stage_panicked() -> Failure {
    Failure::work("a stage panicked; this is a bug in Fletcher")
}

/// Set to the number of the signal that asked us to stop; a second one stops at once, which
/// matters when whoever reads our output has stalled.
fn stop_signal() -> Result<Arc<AtomicUsize>, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag;
    let (stop, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if signal == SIGHUP && signals::is_ignored(signal) {
            continue;
        }
        // In this order: the first signal finds `again` unset and sets it.
        flag::register_conditional_shutdown(signal, 128 + signal, again.clone())
            .and_then(|_| flag::register(signal, again.clone()))
            .and_then(|_| flag::register_usize(signal, stop.clone(), signal as usize))
            .map_err(|e| Failure::work(format!("cannot watch for signal {signal}: {e}")))?;
    }
    Ok(stop)
}

/// Says what `auto` chose, to a person only.
#[expect(clippy::print_stderr, reason = "told to the person at standard error")]
fn tell_choice(config: &ModelConfig, embedder: &Embedder) {
    if config::is_interactive() {
        let device = fletcher_backend::registry::resolve(config.device);
        eprintln!("{} on {device}, {} threads", embedder.model().name(), embedder.threads());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;

    use fletcher_io::{SourceInput, SourceOptions};

    use super::*;

    /// A reader that dies must not look like the end of the input: the output would be cut.
    #[test]
    fn a_lost_reader_is_no_end() {
        let (stop, abandoned) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (sender, chunks) = sync_channel(1);
        sender.send(Ok(None)).unwrap();
        assert!(matches!(next(&chunks, &stop, &abandoned), Some(Ok(None))));
        drop(sender);
        assert!(matches!(next(&chunks, &stop, &abandoned), Some(Err(Failure::Work { .. }))));
        stop.store(2, Ordering::Relaxed);
        let stopped = next(&chunks, &stop, &abandoned);
        assert!(matches!(stopped, Some(Err(Failure::Interrupted { signal: 2, .. }))));
    }

    fn read(row: u64) -> Read {
        let lines = "a\n".repeat(2);
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, lines).unwrap();
        let options = SourceOptions {
            input: SourceInput::Path(path.path().to_owned()),
            format: Some(fletcher_io::SourceFormat::Lines),
            text_column: String::new(),
            on_error: OnError::Fail,
            limits: ChunkLimits::default(),
            threads: 1,
        };
        let chunk = fletcher_io::open_source(options).unwrap().next_chunk().unwrap().unwrap();
        Read { chunk: Chunk { first_row: row, ..chunk }, bytes_read: 0 }
    }

    fn made(chunk: &Chunk) -> Embedded {
        let values = vec![chunk.first_row as f32; chunk.len()];
        Ok((Vectors { dim: 1, values, errors: Vec::new() }, 0))
    }

    /// Runs lanes over what comes from `chunks`; the first rows that were written, and the end.
    fn drive(
        count: usize,
        chunks: Chunks,
        embed: &(dyn Fn(&Chunk) -> Embedded + Sync),
    ) -> (Vec<u64>, Result<(), Failure>) {
        let (done, written) = sync_channel::<Finished>(100);
        let lanes = Lanes { count, embed, stop: &AtomicUsize::new(0) };
        let result = lanes.drive(chunks, done, |_| {});
        let rows = written.iter().flatten().map(|(chunk, vectors)| {
            assert_eq!(vectors.values[0], chunk.first_row as f32);
            chunk.first_row
        });
        (rows.collect(), result)
    }

    /// The second chunk comes only when the first is being embedded, and the first is done only
    /// when the second is.
    #[test]
    fn a_late_chunk_does_not_wait_for_the_one_before() {
        let (sender, chunks) = sync_channel(0);
        let (begun, changed) = (Mutex::new(0), Condvar::new());
        let patience = Duration::from_secs(20);
        let embed = |chunk: &Chunk| {
            *begun.lock().unwrap() += 1;
            changed.notify_all();
            let wait = changed.wait_timeout_while(begun.lock().unwrap(), patience, |n| *n < 2);
            assert!(!wait.unwrap().1.timed_out(), "the second chunk was not begun");
            made(chunk)
        };
        let (rows, result) = thread::scope(|scope| {
            scope.spawn(|| {
                sender.send(Ok(Some(read(0)))).unwrap();
                drop(changed.wait_timeout_while(begun.lock().unwrap(), patience, |n| *n < 1));
                sender.send(Ok(Some(read(2)))).unwrap();
                sender.send(Ok(None)).unwrap();
            });
            drive(2, chunks, &embed)
        });
        assert!(result.is_ok());
        assert_eq!(rows, [0, 2]);
    }

    #[test]
    fn chunks_stay_in_order_and_an_error_ends_them_there() {
        let chunk_rows = |fails: u64| {
            let (sender, chunks) = sync_channel(100);
            (0..20).for_each(|n| sender.send(Ok(Some(read(2 * n)))).unwrap());
            sender.send(Ok(None)).unwrap();
            drive(4, chunks, &move |chunk| {
                // The first of each four takes longest.
                thread::sleep(Duration::from_micros(500 * (4 - chunk.first_row / 2 % 4)));
                match chunk.first_row == fails {
                    true => Err(Failure::work("as expected")),
                    false => made(chunk),
                }
            })
        };
        let (rows, result) = chunk_rows(u64::MAX);
        assert!(result.is_ok());
        assert_eq!(rows, (0..20).map(|n| 2 * n).collect::<Vec<_>>());
        let (rows, result) = chunk_rows(14);
        assert!(matches!(result, Err(Failure::Work { .. })));
        assert_eq!(rows, (0..7).map(|n| 2 * n).collect::<Vec<_>>());
    }

    #[test]
    fn a_chunk_fills_the_device_but_not_the_memory() {
        let pace = |tokens, encode_all, dim| {
            let Pace { limits, lanes } = Pace::new(tokens, encode_all, dim);
            assert_eq!(limits.bytes, ChunkLimits::default().bytes);
            (limits.rows, lanes)
        };
        // Two cores; a card that one kernel fills; wide vectors; as many workers as cores.
        assert_eq!(pace(2 * 1024, true, 128), (4096, 2));
        assert_eq!(pace(8 * 65536, false, 128), (32768, 4));
        assert_eq!(pace(8 * 65536, false, 1024), (4096, 4));
        assert_eq!(pace(16 * 16384, true, 384), (10922, 2));
    }
}
