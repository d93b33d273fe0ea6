//! `fletcher bench`: how fast this machine runs a model, and in how much memory.

use std::io::{BufWriter, stdin, stdout};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use fletcher_backend::{DeviceChoice, registry};
use fletcher_core::backend::Precision;
use fletcher_core::embedder::{EmbedOptions, Embedder};
use fletcher_io::{ChunkLimits, OnError, SourceInput, SourceOptions, SourceSchema};

use crate::args::BenchArgs;
use crate::bench::machine::{Machine, Memory, today};
use crate::bench::report::{Device, ModelFacts, Peak, Report, Sizes};
use crate::bench::workload::Workload;
use crate::bench::{page, pair, table};
use crate::config::{self, ModelConfig};
use crate::failure::Failure;
use crate::model;
use crate::output::print;

/// What is run if nothing is asked for.
const DEFAULT_SIZES: [usize; 2] = [5_000, 20_000];
/// Tokens of single texts, if none are asked for.
const LATENCY_TOKENS: [usize; 3] = [16, 128, 512];

#[expect(clippy::print_stderr, reason = "a person is told what is being measured")]
pub(crate) fn run(args: BenchArgs) -> Result<(), Failure> {
    let start = Instant::now();
    // Not to be found out after minutes of measuring.
    args.json.iter().chain(&args.html).try_for_each(|path| check_report(path))?;
    let config = ModelConfig::resolve(&args.model);
    let mut embedder = model::load_to_wait(&config)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let idle = Memory::now();
    embedder.set_clock(nanoseconds);
    let (embedder, options) = (&embedder, EmbedOptions::default());
    check_lengths(&args, embedder)?;
    let peak = if args.pair { None } else { peak(&config, embedder.threads()) };
    let workload = Workload {
        embedder,
        batch_rows: args.batch_size,
        tokens: args.seq_len,
        peak_gops: peak.map(|peak| peak.gops),
    };
    if args.pair {
        return pair::serve(&workload, &options, stdin().lock(), BufWriter::new(stdout().lock()));
    }
    let all = args.sizes.is_empty() && args.text.is_none() && !args.latency && args.soak.is_none();
    let sizes = match (&args.sizes[..], all) {
        ([], true) => &DEFAULT_SIZES[..],
        (sizes, _) => sizes,
    };
    let tell = |what: &str| {
        if config::is_interactive() {
            eprintln!("{what} …");
        }
    };
    let mut report = Report {
        fletcher: env!("CARGO_PKG_VERSION"),
        date: today(),
        command: config::command_line(),
        machine: Machine::detect(),
        model: facts(embedder),
        device: registry::resolve(config.device).to_string(),
        precision: config.precision.name().to_owned(),
        threads: embedder.threads(),
        peak,
        load_ms,
        idle,
        devices: Vec::new(),
        sizes: None,
        text: None,
        latency: Vec::new(),
        soak: None,
    };
    if !sizes.is_empty() {
        tell("sizes");
        report.sizes = Some(Sizes {
            batch_size: args.batch_size,
            seq_len: args.seq_len,
            flop_per_sequence: embedder.model().flops(args.seq_len),
            runs: workload.sizes(sizes)?,
        });
    }
    if let Some(path) = &args.text {
        tell("texts");
        let texts = read_texts(path, args.column.as_deref())?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        report.text = Some(workload.texts(file, &texts, &options, args.rounds)?);
    }
    if args.latency || all {
        tell("latency");
        for tokens in latency_tokens(&args, embedder) {
            report.latency.push(workload.latency(tokens)?);
        }
    }
    if let Some(duration) = args.soak {
        tell("soak");
        report.soak = Some(workload.soak(duration)?);
    }
    report.devices = embedder.devices().into_iter().map(Device::from).collect();
    model::tell_lost_devices(embedder);
    // The files first: whoever reads the table may leave early.
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::work(format!("the report: {error}")))?;
        write(path, &(json + "\n"))?;
    }
    if let Some(path) = &args.html {
        write(path, &page::html(&report))?;
    }
    print(&table::print(&report))
}

/// Nanoseconds since the first call.
fn nanoseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn check_lengths(args: &BenchArgs, embedder: &Embedder) -> Result<(), Failure> {
    let limit = embedder.model().max_tokens();
    let lengths = args.latency_tokens.iter().map(|tokens| ("--latency-tokens", *tokens));
    let mut lengths = lengths.chain([("--seq-len", args.seq_len)]);
    match lengths.find(|(_, tokens)| *tokens > limit) {
        None => Ok(()),
        Some((option, tokens)) => Err(Failure::input(format!(
            "{option} {tokens}: the model takes at most {limit} tokens"
        ))),
    }
}

/// The lengths whose latency is measured: those asked for, or of the usual ones what fits.
fn latency_tokens(args: &BenchArgs, embedder: &Embedder) -> Vec<usize> {
    match &args.latency_tokens[..] {
        [] => {
            let limit = embedder.model().max_tokens();
            LATENCY_TOKENS.into_iter().filter(|tokens| *tokens <= limit).collect()
        }
        asked => asked.to_vec(),
    }
}

/// The CPU's arithmetic peak in the format asked for; other devices' peaks are not measured.
fn peak(config: &ModelConfig, threads: usize) -> Option<Peak> {
    let precision = match config.precision {
        Precision::Auto => Precision::F32,
        named => named,
    };
    match registry::resolve(config.device) {
        DeviceChoice::Cpu => {
            let gops = fletcher_backend::cpu::peak(precision, threads)?;
            Some(Peak { gops, format: precision.name() })
        }
        _ => None,
    }
}

fn facts(embedder: &Embedder) -> ModelFacts {
    let model = embedder.model();
    // A record is read elsewhere: of a folder only its name means anything there.
    let name = Path::new(model.name()).file_name().unwrap_or_default().to_string_lossy();
    ModelFacts {
        name: name.into_owned(),
        architecture: model.architecture(),
        parameters: model.parameters(),
        dimensions: embedder.dim(),
        max_tokens: model.max_tokens(),
    }
}

/// All texts of a file, in memory, so that reading is not measured.
fn read_texts(path: &Path, column: Option<&str>) -> Result<Vec<String>, Failure> {
    let mut source = fletcher_io::open_source(SourceOptions {
        input: SourceInput::Path(path.to_owned()),
        format: None,
        text_column: column.unwrap_or("text").to_owned(),
        on_error: OnError::Fail,
        limits: ChunkLimits::default(),
        threads: 0,
    })?;
    if let (Some(column), SourceSchema::Texts) = (column, source.schema()) {
        return Err(Failure::input(format!(
            "--column {column}: {} is read as plain texts, without columns",
            path.display()
        )));
    }
    let mut texts = Vec::new();
    while let Some(chunk) = source.next_chunk()? {
        texts.extend(chunk.texts.iter().filter_map(Result::ok).map(str::to_owned));
    }
    match texts.is_empty() {
        true => Err(Failure::input(format!("{}: no texts", path.display()))),
        false => Ok(texts),
    }
}

/// Refuses a place where no file can be written.
fn check_report(path: &Path) -> Result<(), Failure> {
    let name = path.display();
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        _ if path.is_dir() => {
            Err(Failure::input(format!("{name}: it is a folder; name a file in it")))
        }
        Some(folder) if !folder.is_dir() => {
            Err(Failure::input(format!("{name}: there is no folder {}", folder.display())))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, content: &str) -> Result<(), Failure> {
    std::fs::write(path, content)
        .map_err(|error| Failure::work(format!("cannot write {}: {error}", path.display())))
}
