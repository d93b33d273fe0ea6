//! The workloads: what is run, and what is measured of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fletcher_core::embedder::{EmbedOptions, Embedder, Embeddings, StageTimes};
use serde::Serialize;

use crate::bench::machine::Memory;
use crate::bench::windows::{Timeline, Windows, quantile};
use crate::failure::Failure;

/// Sequences that the synthetic workload draws from, again and again.
const POOL_ROWS: usize = 4096;
/// Rows of a chunk of texts, as in a bulk run.
const TEXT_ROWS: usize = 4096;
/// A latency is measured at least this often,
const LATENCY_RUNS_MIN: usize = 20;
/// and at most this often,
const LATENCY_RUNS_MAX: usize = 5_000;
/// or for about this long.
const LATENCY_TIME: Duration = Duration::from_secs(3);

/// Where the workers' time went, as shares that sum to 1.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Shares {
    pub(crate) tokenise: f64,
    pub(crate) pack: f64,
    pub(crate) encode: f64,
    pub(crate) head: f64,
    /// In none of the stages: waiting, handing over, assembling.
    pub(crate) other: f64,
}

impl Shares {
    fn of(times: StageTimes, seconds: f64, threads: usize) -> Self {
        let all = seconds * threads as f64;
        let share = |nanoseconds: u64| nanoseconds as f64 / 1e9 / all;
        let (tokenise, pack) = (share(times.tokenise), share(times.pack));
        let (encode, head) = (share(times.encode), share(times.head));
        let other = (1.0 - tokenise - pack - encode - head).max(0.0);
        Self { tokenise, pack, encode, head, other }
    }
}

/// One size of the synthetic workload, or a soak.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SizeRun {
    pub(crate) rows: usize,
    pub(crate) seconds: f64,
    pub(crate) vectors_per_second: f64,
    pub(crate) windows: Option<Windows>,
    /// Rates of the 1-second windows in order.
    pub(crate) rates: Vec<f64>,
    pub(crate) share_of_peak: Option<f64>,
    pub(crate) stages: Shares,
    pub(crate) memory: Option<Memory>,
}

/// A file of texts, end to end.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TextRun {
    pub(crate) file: String,
    pub(crate) rounds: usize,
    pub(crate) texts: usize,
    pub(crate) tokens: usize,
    /// Medians over the rounds.
    pub(crate) seconds: f64,
    pub(crate) texts_per_second: f64,
    pub(crate) tokens_per_second: f64,
    /// Tokens a second of one thread that does nothing but tokenise.
    pub(crate) tokeniser_tokens_per_second: f64,
    pub(crate) stages: Shares,
    pub(crate) memory: Option<Memory>,
}

/// One text at a time.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LatencyRun {
    pub(crate) tokens: usize,
    pub(crate) runs: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// What the machine's peak would need.
    pub(crate) bound_ms: Option<f64>,
}

/// A long run and what it did to the memory.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SoakRun {
    pub(crate) run: SizeRun,
    /// Resident MiB once a second.
    pub(crate) resident_mib: Vec<f64>,
    /// From the end of the first tenth to the end, in MiB.
    pub(crate) growth_mib: f64,
}

/// An embedder to be measured, and the shape of its synthetic input.
pub(crate) struct Workload<'a> {
    pub(crate) embedder: &'a Embedder,
    pub(crate) batch_rows: usize,
    pub(crate) tokens: usize,
    /// Billions of operations a second.
    pub(crate) peak_gops: Option<f64>,
}

/// When a stream of batches ends.
#[derive(Debug, Clone, Copy)]
enum Until {
    Rows(usize),
    Time(Duration),
}

impl Workload<'_> {
    /// Sequences of random ids, the same on every run.
    fn sequences(&self) -> Vec<Vec<u32>> {
        let vocabulary = self.embedder.model().spec().vocabulary as u64;
        let mut state = 11u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % vocabulary) as u32
        };
        (0..POOL_ROWS).map(|_| (0..self.tokens).map(|_| next()).collect()).collect()
    }

    /// Runs sizes from the smallest to the largest, after a warm-up that is not counted.
    pub(crate) fn sizes(&self, sizes: &[usize]) -> Result<Vec<SizeRun>, Failure> {
        let sequences = self.sequences();
        let clients = self.clients();
        self.stream(&sequences, (Until::Rows(4 * self.batch_rows), clients), |_| {})?;
        sizes
            .iter()
            .map(|&rows| self.stream(&sequences, (Until::Rows(rows), clients), |_| {}))
            .collect()
    }

    /// Runs for a time and watches the memory.
    pub(crate) fn soak(&self, duration: Duration) -> Result<SoakRun, Failure> {
        let sequences = self.sequences();
        let mut resident_mib = Vec::new();
        let run = self.stream(&sequences, (Until::Time(duration), self.clients()), |second| {
            if second > resident_mib.len() {
                resident_mib.extend(Memory::now().map(|memory| memory.resident_mib));
            }
        })?;
        let settled = resident_mib.get(resident_mib.len() / 10);
        let growth_mib = match (settled, resident_mib.last()) {
            (Some(from), Some(to)) => to - from,
            _ => 0.0,
        };
        Ok(SoakRun { run, resident_mib, growth_mib })
    }

    /// Hands batches over, several at a time, so that the workers never wait for the next one.
    /// `each_second` is told, after each batch, the seconds since the start.
    fn stream(
        &self,
        sequences: &[Vec<u32>],
        (until, clients): (Until, usize),
        each_second: impl FnMut(usize) + Send,
    ) -> Result<SizeRun, Failure> {
        let before = self.embedder.stage_times();
        let start = Instant::now();
        let next = AtomicUsize::new(0);
        let done = Mutex::new((Timeline::new(start), 0usize, each_second));
        let client = || -> Result<(), Failure> {
            loop {
                let first = next.fetch_add(self.batch_rows, Ordering::Relaxed);
                let rows = match until {
                    Until::Rows(rows) => self.batch_rows.min(rows.saturating_sub(first)),
                    Until::Time(time) if start.elapsed() < time => self.batch_rows,
                    Until::Time(_) => 0,
                };
                if rows == 0 {
                    return Ok(());
                }
                let batch: Vec<&[u32]> = (first..first + rows)
                    .map(|row| &sequences[row % sequences.len()][..])
                    .collect();
                let from = Instant::now();
                all_finite(&self.embedder.embed_ids(&batch).map_err(Failure::from)?)?;
                let to = Instant::now();
                let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                done.0.add(rows, from, to);
                done.1 += rows;
                (done.2)(start.elapsed().as_secs() as usize);
            }
        };
        in_parallel(clients, &client)?;
        let seconds = start.elapsed().as_secs_f64();
        let (timeline, rows, _) =
            done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let vectors_per_second = rows as f64 / seconds;
        let gops = self.embedder.model().flops(self.tokens) / 1e9;
        let times = self.embedder.stage_times().since(before);
        Ok(SizeRun {
            rows,
            seconds,
            vectors_per_second,
            windows: timeline.windows(),
            rates: timeline.rates(),
            share_of_peak: self.peak_gops.map(|peak| vectors_per_second * gops / peak),
            stages: Shares::of(times, seconds, self.embedder.threads()),
            memory: Memory::now(),
        })
    }

    /// Enough batches in flight for all workers: one for each, so that none waits for the next
    /// batch of another, or what their blocks take.
    fn clients(&self) -> usize {
        let threads = self.embedder.threads();
        let needed = threads * self.embedder.block_tokens();
        // More threads than these would only wait: a GPU's blocks are thousands of rows.
        let most = 2 * threads + 1;
        (needed.div_ceil(self.batch_rows * self.tokens) + 1).max(threads).min(most)
    }

    /// Texts end to end: in chunks as in a bulk run, two in flight.
    pub(crate) fn texts(
        &self,
        file: String,
        texts: &[String],
        options: &EmbedOptions,
        rounds: usize,
    ) -> Result<TextRun, Failure> {
        self.chunks(&texts[..texts.len().min(256)], options)?;
        let mut seconds = Vec::new();
        let mut tokens = 0;
        let before = self.embedder.stage_times();
        for _ in 0..rounds {
            let start = Instant::now();
            tokens = self.chunks(texts, options)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let times = self.embedder.stage_times().since(before);
        let total: f64 = seconds.iter().sum();
        let tokenising = times.tokenise as f64 / 1e9 / rounds as f64;
        seconds.sort_by(f64::total_cmp);
        let median = quantile(&seconds, 0.5);
        Ok(TextRun {
            file,
            rounds,
            texts: texts.len(),
            tokens,
            seconds: median,
            texts_per_second: texts.len() as f64 / median,
            tokens_per_second: tokens as f64 / median,
            tokeniser_tokens_per_second: tokens as f64 / tokenising,
            stages: Shares::of(times, total, self.embedder.threads()),
            memory: Memory::now(),
        })
    }

    /// Embeds the caller's sequences once, in batches.
    pub(crate) fn batches(
        &self,
        sequences: &[Vec<u32>],
        clients: Option<usize>,
    ) -> Result<(), Failure> {
        let clients = clients.unwrap_or_else(|| self.clients()).max(1);
        self.stream(sequences, (Until::Rows(sequences.len()), clients), |_| {})?;
        Ok(())
    }

    /// Embeds all texts and returns their number of tokens.
    pub(crate) fn chunks(
        &self,
        texts: &[String],
        options: &EmbedOptions,
    ) -> Result<usize, Failure> {
        let chunks: Vec<&[String]> = texts.chunks(TEXT_ROWS).collect();
        let (next, tokens) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let client = || -> Result<(), Failure> {
            while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let found = self.embedder.embed(chunk, options).map_err(Failure::from)?;
                tokens.fetch_add(all_finite(&found)?, Ordering::Relaxed);
            }
            Ok(())
        };
        in_parallel(2, &client)?;
        Ok(tokens.into_inner())
    }

    /// One text after the other, tokenising included, as a user waits for it.
    pub(crate) fn latency(&self, tokens: usize) -> Result<LatencyRun, Failure> {
        let text = self.text_of(tokens)?;
        let options = EmbedOptions::default();
        let mut found = 0;
        let mut one = || -> Result<f64, Failure> {
            let start = Instant::now();
            found = all_finite(&self.embedder.embed(&[&text], &options).map_err(Failure::from)?)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        for _ in 0..LATENCY_RUNS_MIN {
            one()?;
        }
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < LATENCY_RUNS_MIN
            || (times.len() < LATENCY_RUNS_MAX && start.elapsed() < LATENCY_TIME)
        {
            times.push(one()?);
        }
        times.sort_by(f64::total_cmp);
        Ok(LatencyRun {
            tokens: found,
            runs: times.len(),
            p50_ms: quantile(&times, 0.5),
            p90_ms: quantile(&times, 0.9),
            p99_ms: quantile(&times, 0.99),
            max_ms: quantile(&times, 1.0),
            bound_ms: self.peak_gops.map(|peak| self.embedder.model().flops(found) / (1e6 * peak)),
        })
    }

    /// A text of this many tokens, as near as the model's tokenizer lets one come.
    fn text_of(&self, tokens: usize) -> Result<String, Failure> {
        const WORDS: [&str; 12] = [
            "the", "time", "of", "water", "and", "house", "in", "people", "city", "is", "good",
            "day",
        ];
        let encoder = self.embedder.model().text();
        let count = |text: &str| {
            let ids = encoder.encode(text, "", Default::default());
            ids.map(|ids| ids.ids.len()).map_err(|error| Failure::work(error.to_string()))
        };
        let mut text = String::new();
        for word in WORDS.iter().cycle().take(tokens) {
            // Where a word of several tokens is too long, a letter or a full stop may fit.
            for part in [word, "a", "."] {
                let longer = format!("{text}{}{part}", if text.is_empty() { "" } else { " " });
                if count(&longer)? <= tokens {
                    text = longer;
                    break;
                }
            }
        }
        Ok(text)
    }
}

/// Runs `client` on this many threads; the first failure of one.
fn in_parallel(
    threads: usize,
    client: &(dyn Fn() -> Result<(), Failure> + Sync),
) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..threads).map(|_| scope.spawn(client)).collect();
        let mut ends = clients.into_iter().map(|client| client.join());
        ends.try_for_each(|end| end.map_err(|_| Failure::work("a worker panicked"))?)
    })
}

/// The number of tokens; fails if a row has no vector.
fn all_finite(found: &Embeddings) -> Result<usize, Failure> {
    found.rows.iter().enumerate().try_fold(0, |tokens, (row, result)| match result {
        Ok(embedding) => Ok(tokens + embedding.tokens),
        Err(error) => Err(Failure::input(format!("row {}: {error}", row + 1))),
    })
}
