//! `fletcher embed`: rows in, the same rows with vectors out.
//!
//! Three stages run at once, joined by short queues so that memory stays bounded: a thread reads
//! chunks, this one embeds them with the engine's workers, and a thread writes. Order is that of
//! the queues. The stop signal is looked at between chunks; a sink dropped before it is finished
//! leaves nothing at the output path.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fletcher_core::embedder::{EmbedOptions, Embedder};
use fletcher_io::{
    Chunk, ChunkLimits, OnError, Sink, SinkError, SinkFormat, SinkOptions, SinkTarget, Source,
    SourceError, SourceInput, SourceOptions, VectorsView,
};

use crate::args::{EmbedArgs, OnErrorArg};
use crate::config::{self, ModelConfig};
use crate::failure::Failure;
use crate::model;
use crate::progress::EmbedBar;

/// Chunks waiting between two stages: enough to hide a slow read, few enough to bound memory.
const QUEUE: usize = 2;
/// Chunks that are embedded at the same time.
const IN_FLIGHT: usize = 2;
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
    let source = open_source(&args, on_error)?;
    let embedder = model::load(&config)?;
    tell_choice(&config, &embedder);
    // From here on there is an unfinished output to remove; before, a signal may simply end us.
    let stop = stop_signal()?;
    let sink = create_sink(&args, on_error, source.as_ref(), &embedder)?;
    let total = source.total_rows().or(source.total_bytes());
    let mut bar = EmbedBar::new(total);

    let by_rows = source.total_rows().is_some();
    let (chunks, reader) = spawn_reader(source);
    let (done, writer) = spawn_writer(sink);
    let stages = Stages { embedder: &embedder, options: &options, on_error, stop: &stop };
    let result = stages.drive(&chunks, done, |progress| {
        let position = if by_rows { progress.rows_done } else { progress.bytes_read };
        bar.advance(position, progress.rows, progress.tokens);
    });
    bar.finish();
    model::tell_lost_devices(&embedder);
    // Receivers go first, so that a reader that waits to send gives up.
    drop(chunks);
    match result {
        Ok(()) => {
            join(reader)?;
            Ok(join(writer)??)
        }
        // The writer's own failure is the cause when it has gone away; it also removes the
        // unfinished output, which must not outlive this process.
        Err(failure) => match join(writer)? {
            Err(error) if matches!(failure, Failure::ClosedPipe) => Err(error.into()),
            _ => Err(failure),
        },
    }
}

/// What to do with each chunk between reader and writer.
struct Stages<'a> {
    embedder: &'a Embedder,
    options: &'a EmbedOptions,
    on_error: OnError,
    stop: &'a AtomicUsize,
}

/// A chunk with its vectors, on the way to the writer. `None` ends the output well.
type Finished = Option<(Chunk, Vectors)>;

struct Vectors {
    dim: usize,
    values: Vec<f32>,
    errors: Vec<Option<String>>,
}

/// One chunk's share of the work done.
struct Progress {
    rows: u64,
    tokens: u64,
    rows_done: u64,
    bytes_read: u64,
}

impl Stages<'_> {
    /// Embeds chunk after chunk until the source ends, a stage fails or the user stops it.
    ///
    /// Two chunks are in flight, so that workers that are done with one begin the next; but a
    /// finished chunk never waits for the source.
    fn drive(
        &self,
        chunks: &Chunks,
        done: SyncSender<Finished>,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), Failure> {
        let (mut rows_done, mut ended) = (0, false);
        std::thread::scope(|scope| {
            let mut in_flight = VecDeque::new();
            loop {
                while !ended && in_flight.len() < IN_FLIGHT {
                    let read = match in_flight.is_empty() {
                        true => next(chunks, self.stop)?,
                        false => match chunks.try_recv() {
                            Ok(read) => read?,
                            Err(_) => break,
                        },
                    };
                    let Some(Read { chunk, bytes_read }) = read else {
                        ended = true;
                        break;
                    };
                    in_flight.push_back(scope.spawn(move || {
                        let found = self.embed(&chunk)?;
                        Ok::<_, Failure>((chunk, bytes_read, found))
                    }));
                }
                let Some(first) = in_flight.pop_front() else { break };
                let (chunk, bytes_read, (vectors, tokens)) =
                    first.join().map_err(|_| stage_panicked())??;
                let rows = chunk.len() as u64;
                rows_done += rows;
                // The writer has gone away only if it failed; it tells why when it is joined.
                let sent = done.send(Some((chunk, vectors)));
                sent.map_err(|_| Failure::ClosedPipe)?;
                progress(Progress { rows, tokens, rows_done, bytes_read });
                stopped(self.stop)?;
            }
            done.send(None).map_err(|_| Failure::ClosedPipe)
        })
    }

    /// Vectors for a chunk's rows, in place, and the number of tokens that took.
    fn embed(&self, chunk: &Chunk) -> Result<(Vectors, u64), Failure> {
        let good: Vec<usize> = (0..chunk.len()).filter(|&row| chunk.texts[row].is_ok()).collect();
        let texts: Vec<&str> = chunk.texts.iter().filter_map(|text| text.as_deref().ok()).collect();
        let embeddings = self.embedder.embed(&texts, self.options)?;
        let dim = embeddings.dim;
        let mut errors: Vec<Option<String>> = vec![None; chunk.len()];
        let mut tokens = 0;
        for (result, &row) in embeddings.rows.iter().zip(&good) {
            match result {
                Ok(embedding) => tokens += embedding.tokens as u64,
                Err(error) if self.on_error == OnError::Fail => {
                    let number = chunk.first_row + row as u64 + 1;
                    return Err(Failure::Input {
                        message: format!("row {number}: {error}"),
                        hint: Some("--on-error skip keeps such rows without a vector".into()),
                    });
                }
                Err(error) => errors[row] = Some(error.to_string()),
            }
        }
        let values = match good.len() == chunk.len() {
            true => embeddings.values,
            false => {
                let mut values = vec![0.0; chunk.len() * dim];
                for (vector, &row) in embeddings.values.chunks_exact(dim).zip(&good) {
                    values[row * dim..(row + 1) * dim].copy_from_slice(vector);
                }
                values
            }
        };
        Ok((Vectors { dim, values, errors }, tokens))
    }
}

/// The next chunk, `None` at the end of the input; fails when the user stops the run.
fn next(chunks: &Chunks, stop: &AtomicUsize) -> Result<Option<Read>, Failure> {
    loop {
        stopped(stop)?;
        match chunks.recv_timeout(STOP_POLL) {
            Ok(read) => return Ok(read?),
            Err(RecvTimeoutError::Timeout) => {}
            // Without the end mark the rest of the input is missing, so this is no end.
            Err(RecvTimeoutError::Disconnected) => return Err(stage_panicked()),
        }
    }
}

/// Fails if the user has stopped the run.
fn stopped(stop: &AtomicUsize) -> Result<(), Failure> {
    match stop.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Failure::Interrupted { signal: signal as i32 }),
    }
}

/// A chunk as the reader hands it over.
struct Read {
    chunk: Chunk,
    bytes_read: u64,
}

/// `None` marks the end of the input.
type Chunks = Receiver<Result<Option<Read>, SourceError>>;

fn spawn_reader(mut source: Box<dyn Source>) -> (Chunks, JoinHandle<()>) {
    let (sender, receiver) = sync_channel(QUEUE);
    let thread = std::thread::spawn(move || {
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
    (receiver, thread)
}

type Writer = JoinHandle<Result<(), SinkError>>;

fn spawn_writer(mut sink: Box<dyn Sink>) -> (SyncSender<Finished>, Writer) {
    let (sender, receiver) = sync_channel::<Finished>(QUEUE);
    let thread = std::thread::spawn(move || {
        while let Ok(finished) = receiver.recv() {
            let Some((chunk, vectors)) = finished else { return sink.finish() };
            let Vectors { dim, values, errors } = &vectors;
            sink.write(&chunk, VectorsView { dim: *dim, values, errors })?;
        }
        // The sender is gone without the end mark: the run was abandoned, and so is the output.
        Ok(())
    });
    (sender, thread)
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
        // In this order: the first signal finds `again` unset and sets it.
        flag::register_conditional_shutdown(signal, 128 + signal, again.clone())
            .and_then(|_| flag::register(signal, again.clone()))
            .and_then(|_| flag::register_usize(signal, stop.clone(), signal as usize))
            .map_err(|e| Failure::work(format!("cannot watch for signal {signal}: {e}")))?;
    }
    Ok(stop)
}

fn open_source(args: &EmbedArgs, on_error: OnError) -> Result<Box<dyn Source>, Failure> {
    let format = args.input_format;
    let input = match (&args.input, args.texts.is_empty()) {
        (Some(path), _) if path != Path::new("-") => SourceInput::Path(path.clone()),
        (None, false) => SourceInput::Texts(args.texts.clone()),
        _ if format.is_none() && std::io::stdin().is_terminal() => {
            return Err(Failure::Input {
                message: "no texts given".into(),
                hint: Some("fletcher embed \"a text\", or -i FILE, or pipe lines in".into()),
            });
        }
        _ => SourceInput::Stdin,
    };
    let text_column = args.column.clone();
    let limits = ChunkLimits::default();
    Ok(fletcher_io::open_source(SourceOptions { input, format, text_column, on_error, limits })?)
}

fn create_sink(
    args: &EmbedArgs,
    on_error: OnError,
    source: &dyn Source,
    embedder: &Embedder,
) -> Result<Box<dyn Sink>, Failure> {
    let target = match args.output == Path::new("-") {
        true => SinkTarget::Stdout,
        false => SinkTarget::Path(args.output.clone()),
    };
    let format = args.output_format;
    let model = embedder.model();
    let mut metadata = std::collections::BTreeMap::from([
        ("fletcher.model".to_owned(), model.name().to_owned()),
        ("fletcher.dim".to_owned(), embedder.dim().to_string()),
        ("fletcher.normalized".to_owned(), model.head().normalized().to_string()),
    ]);
    // The fingerprint reads every weight, so it is taken only where there is a place for it.
    let columnar = match (format, &target) {
        (Some(format), _) => !matches!(format, SinkFormat::Jsonl | SinkFormat::Npy),
        (None, SinkTarget::Stdout) => false,
        (None, SinkTarget::Path(path)) => {
            !matches!(SinkFormat::from_path(path), Ok(SinkFormat::Jsonl | SinkFormat::Npy) | Err(_))
        }
    };
    if columnar {
        metadata.insert("fletcher.fingerprint".to_owned(), model.fingerprint().to_owned());
    }
    let options = SinkOptions {
        target,
        format,
        dim: embedder.dim(),
        vector_column: args.vector_column.clone(),
        on_error,
        metadata,
        input: args.input.clone().filter(|path: &PathBuf| path != Path::new("-")),
    };
    Ok(fletcher_io::create_sink(options, source.schema())?)
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
    use super::*;

    /// A reader that dies must not look like the end of the input: the output would be cut.
    #[test]
    fn a_lost_reader_is_no_end() {
        let stop = AtomicUsize::new(0);
        let (sender, chunks) = sync_channel(1);
        sender.send(Ok(None)).unwrap();
        assert!(matches!(next(&chunks, &stop), Ok(None)));
        drop(sender);
        assert!(matches!(next(&chunks, &stop), Err(Failure::Work { .. })));
        stop.store(2, Ordering::Relaxed);
        assert!(matches!(next(&chunks, &stop), Err(Failure::Interrupted { signal: 2 })));
    }
}
