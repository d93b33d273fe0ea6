//! The command line as the user types it. No meaning here: `config.rs` gives it one.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{
    NonEmptyStringValueParser, PossibleValuesParser, RangedU64ValueParser, TypedValueParser,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fletcher_backend::DeviceChoice;
use fletcher_core::backend::Precision;
use fletcher_io::{SinkFormat, SourceFormat};

/// Text in, vectors out: a text-embedding engine in one self-contained binary.
#[derive(Debug, Parser)]
#[command(name = "fletcher", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Embed texts, files or standard input
    Embed(EmbedArgs),
    /// Say what this machine, this binary and a model are
    Info(InfoArgs),
    /// Compare a model's vectors with stored reference vectors
    Verify(VerifyArgs),
    /// Measure throughput, latency and memory
    Bench(BenchArgs),
    /// Serve vectors: OpenAI, TEI, Cohere and Ollama over HTTP, Arrow Flight and tei.v1 over gRPC
    Serve(Box<ServeArgs>),
}

/// Which model, and how to run it.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// `default` (inside the binary), a model folder, or org/name[@revision] on the hub
    #[arg(short, long, default_value = "default", env = "FLETCHER_MODEL")]
    pub(crate) model: String,

    /// Where to compute
    #[arg(long, default_value_t = DeviceChoice::Auto, env = "FLETCHER_DEVICE", value_name = "DEVICE",
        help = format!("Where to compute: {}", DeviceChoice::NAMES))]
    pub(crate) device: DeviceChoice,

    /// Number format of the arithmetic
    ///
    /// f32 is exact; `auto` on the CPU is f32. bf16 and int8 are about two and three times as fast
    /// on a CPU with instructions for them, and change vectors a little (cosine to f32's on
    /// all-MiniLM-L6-v2: bf16 above 0.9999, int8 above 0.99). A format that the device has not is
    /// an error.
    #[arg(long, default_value = Precision::Auto.name(), env = "FLETCHER_PRECISION", value_parser = precision())]
    pub(crate) precision: Precision,

    /// Most MiB to take of a GPU's memory [default: what is free]
    #[arg(long, value_name = "MIB", env = "FLETCHER_DEVICE_MEMORY", value_parser = at_least_one)]
    pub(crate) device_memory: Option<usize>,

    /// Worker threads [default: what the cgroup quota and the CPU set allow]
    #[arg(long, value_name = "N", env = "FLETCHER_THREADS", value_parser = threads())]
    pub(crate) threads: Option<usize>,

    /// Tokens that one worker takes through the encoder at a time [default: fitted to the cache]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) batch_tokens: Option<usize>,

    /// How token states become one vector
    #[arg(long, value_enum, default_value_t = PoolingArg::Auto)]
    pub(crate) pooling: PoolingArg,

    /// Leave the vectors at the length the model gives them
    #[arg(long)]
    pub(crate) no_normalize: bool,

    /// Keep only the first N dimensions (Matryoshka models), normalised again
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) dimensions: Option<usize>,
}

/// What is done to each text before the model sees it.
#[derive(Debug, Args)]
pub(crate) struct TextArgs {
    /// Put the model's prompt of this name before each text
    #[arg(long, value_name = "NAME", conflicts_with = "prefix")]
    pub(crate) prompt: Option<String>,

    /// Put this text before each text, instead of the model's default prompt
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,

    /// What to do with a text that is longer than the model allows
    #[arg(long, value_enum, default_value_t = OverlongArg::Truncate)]
    pub(crate) overlong: OverlongArg,
}

#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// Texts to embed; without any, and without --input, lines are read from standard input
    #[arg(conflicts_with = "input")]
    pub(crate) texts: Vec<String>,

    /// File to read; `-` is standard input
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,

    /// Format of the input [default: from the extension; lines for standard input]
    #[arg(long, value_name = "FORMAT", value_parser = source_format(), conflicts_with = "texts")]
    pub(crate) input_format: Option<SourceFormat>,

    /// Column (or JSON key) that holds the text [default: text]
    #[arg(long, value_name = "NAME", conflicts_with = "texts")]
    pub(crate) column: Option<String>,

    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "PATH", default_value = "-")]
    pub(crate) output: PathBuf,

    /// Format of the output [default: from the extension; jsonl for standard output]
    #[arg(long, value_name = "FORMAT", value_parser = sink_format())]
    pub(crate) output_format: Option<SinkFormat>,

    /// Name of the vector's column or key [default: vector; embedding in jsonl]
    #[arg(long, value_name = "NAME")]
    pub(crate) vector_column: Option<String>,

    /// `skip` keeps a bad row with a null vector and an `error` column; `fail` stops at it
    #[arg(long, value_enum, default_value_t = OnErrorArg::Fail)]
    pub(crate) on_error: OnErrorArg,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Describe this model too
    #[arg(short, long, env = "FLETCHER_MODEL")]
    pub(crate) model: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Texts with their vectors: JSONL, Parquet or Arrow with `text` and `embedding` or `vector`
    #[arg(long, value_name = "FILE")]
    pub(crate) reference: PathBuf,

    /// Greatest absolute difference that passes
    #[arg(long, value_name = "X", default_value_t = 1e-5, value_parser = number)]
    pub(crate) tolerance: f64,

    /// Least cosine that passes
    #[arg(long, value_name = "X", default_value_t = 0.999_999, value_parser = number)]
    pub(crate) min_cosine: f64,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Every option may also stand in the `--config` file under its long name.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// TOML file of options by their long names; flags and environment come before it
    #[arg(long, value_name = "FILE", env = "FLETCHER_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Print the options as they are in effect, as TOML, and end
    #[arg(long)]
    pub(crate) print_config: bool,

    /// Serve HTTP here: HOST:PORT or unix:PATH [default: 127.0.0.1:8080 unless --flight is given]
    #[arg(long, value_name = "ADDR", env = "FLETCHER_HTTP", value_delimiter = ',')]
    pub(crate) http: Vec<fletcher_server::Address>,

    /// Serve gRPC here: Arrow Flight, tei.v1, health, reflection
    #[arg(long, value_name = "ADDR", env = "FLETCHER_FLIGHT", value_delimiter = ',')]
    pub(crate) flight: Vec<fletcher_server::Address>,

    /// Name of the model in answers [default: as given to --model]
    #[arg(long, value_name = "NAME", env = "FLETCHER_SERVED_NAME")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) served_name: Option<String>,

    /// Other names that requests may use for the model; `*` for any
    #[arg(long, value_name = "NAME", env = "FLETCHER_ALIAS", value_delimiter = ',')]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) alias: Vec<String>,

    /// Keys of which requests must bring one, each plain or as sha256:HEX
    #[arg(long, value_name = "KEY", env = "FLETCHER_API_KEY", value_delimiter = ',')]
    #[arg(hide_env_values = true)]
    pub(crate) api_key: Vec<String>,

    /// File of such keys, one a line
    #[arg(long, value_name = "FILE", env = "FLETCHER_API_KEY_FILE")]
    pub(crate) api_key_file: Option<PathBuf>,

    /// Serve /metrics and /stats without a key
    #[arg(long, env = "FLETCHER_PUBLIC_METRICS")]
    pub(crate) public_metrics: bool,

    /// Certificate chain in PEM: serve TLS; read again when it changes
    #[arg(long, value_name = "FILE", env = "FLETCHER_TLS_CERT", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key in PEM
    #[arg(long, value_name = "FILE", env = "FLETCHER_TLS_KEY", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Authorities of client certificates in PEM: clients must have one
    #[arg(long, value_name = "FILE", env = "FLETCHER_TLS_CLIENT_CA", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,

    /// Origins whose web pages may ask; `*` for any
    #[arg(long, value_name = "ORIGIN", env = "FLETCHER_CORS_ORIGIN", value_delimiter = ',')]
    #[arg(value_parser = origin)]
    pub(crate) cors_origin: Vec<String>,

    /// Tokens that may wait; beyond them requests are refused with 429
    #[arg(long, value_name = "N", default_value_t = 1_048_576, value_parser = at_least_one)]
    #[arg(env = "FLETCHER_MAX_QUEUE_TOKENS")]
    pub(crate) max_queue_tokens: usize,

    /// Most texts of a request
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = at_least_one)]
    #[arg(env = "FLETCHER_MAX_ROWS")]
    pub(crate) max_rows: usize,

    /// Requests of up to N texts overtake larger ones
    #[arg(long, value_name = "N", default_value_t = 8, env = "FLETCHER_INTERACTIVE_ROWS")]
    pub(crate) interactive_rows: usize,

    /// Largest body of a request
    #[arg(long, value_name = "MB", default_value_t = 64, value_parser = megabytes(1))]
    #[arg(env = "FLETCHER_MAX_BODY_MB")]
    pub(crate) max_body_mb: usize,

    /// Memory for the bodies of all requests together
    #[arg(long, value_name = "MB", default_value_t = 512, value_parser = megabytes(1))]
    #[arg(env = "FLETCHER_MAX_BODIES_MB")]
    pub(crate) max_bodies_mb: usize,

    /// Most connections at once; more wait
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    #[arg(env = "FLETCHER_MAX_CONNECTIONS")]
    pub(crate) max_connections: usize,

    /// How long a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds(1))]
    #[arg(env = "FLETCHER_DEADLINE")]
    pub(crate) deadline: u64,

    /// How long open requests may go on after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds(0))]
    #[arg(env = "FLETCHER_DRAIN")]
    pub(crate) drain: u64,

    /// Keep vectors of texts that were embedded before; 0 for no cache
    #[arg(long, value_name = "MB", default_value_t = 0, value_parser = megabytes(0))]
    #[arg(env = "FLETCHER_CACHE_MB")]
    pub(crate) cache_mb: usize,

    /// Memory for datasets that clients store
    #[arg(long, value_name = "MB", default_value_t = 256, value_parser = megabytes(0))]
    #[arg(env = "FLETCHER_DATASETS_MB")]
    pub(crate) datasets_mb: usize,

    /// Send one dataset on to a Flight store: grpc://HOST:PORT or grpc+tls://HOST:PORT
    #[arg(long, value_name = "URL", env = "FLETCHER_FORWARD", requires = "dataset")]
    pub(crate) forward: Option<String>,

    /// Name of the dataset that is sent on
    #[arg(long, value_name = "NAME", env = "FLETCHER_DATASET", requires = "forward")]
    pub(crate) dataset: Option<String>,

    /// Folder in which rows are safe until the store has acknowledged them
    #[arg(long, value_name = "DIR", default_value = "fletcher-spill", env = "FLETCHER_SPILL")]
    pub(crate) spill: PathBuf,

    /// Most that may wait there; beyond it rows are refused
    #[arg(long, value_name = "MB", default_value_t = 4096, value_parser = megabytes(1))]
    #[arg(env = "FLETCHER_SPILL_MB")]
    pub(crate) spill_mb: usize,

    /// Name of the column of vectors at the store
    #[arg(long, value_name = "NAME", default_value = "vector")]
    #[arg(env = "FLETCHER_FORWARD_VECTOR_COLUMN")]
    pub(crate) forward_vector_column: String,

    /// Authorities to trust for grpc+tls, in PEM
    #[arg(long, value_name = "FILE", env = "FLETCHER_FORWARD_CA")]
    pub(crate) forward_ca: Option<PathBuf>,

    /// Bearer token for the store
    #[arg(long, value_name = "TOKEN", env = "FLETCHER_FORWARD_TOKEN", hide_env_values = true)]
    pub(crate) forward_token: Option<String>,

    /// How long the store may take to acknowledge a batch
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds(1))]
    #[arg(env = "FLETCHER_FORWARD_TIMEOUT")]
    pub(crate) forward_timeout: u64,

    /// Send traces to this collector, by OTLP: http://HOST:4318
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,

    /// Protocol to the collector: http/protobuf, or grpc (http://HOST:4317, not encrypted)
    #[arg(long, value_name = "NAME", default_value = "http/protobuf")]
    #[arg(env = "OTEL_EXPORTER_OTLP_PROTOCOL")]
    pub(crate) otlp_protocol: String,

    /// Headers for the collector; in values, %20 is a space
    #[arg(long, value_name = "NAME=VALUE", env = "OTEL_EXPORTER_OTLP_HEADERS")]
    #[arg(value_delimiter = ',', hide_env_values = true)]
    pub(crate) otlp_headers: Vec<String>,

    /// Name of this service in traces
    #[arg(long, value_name = "NAME", default_value = "fletcher", env = "OTEL_SERVICE_NAME")]
    pub(crate) otlp_service: String,

    /// Share of the requests to trace, of those whose caller says nothing
    #[arg(long, value_name = "0..1", default_value_t = 1.0, env = "FLETCHER_OTLP_RATIO")]
    #[arg(value_parser = share)]
    pub(crate) otlp_ratio: f64,

    /// What to do when the device fails, besides answering the requests it failed with an error
    #[arg(long, value_enum, default_value_t = OnDeviceFailureArg::Serve)]
    #[arg(env = "FLETCHER_ON_DEVICE_FAILURE")]
    pub(crate) on_device_failure: OnDeviceFailureArg,

    /// Log as lines of text or of JSON, to standard error
    #[arg(long, value_enum, default_value_t = LogFormatArg::Text, env = "FLETCHER_LOG_FORMAT")]
    pub(crate) log_format: LogFormatArg,

    /// What to log
    #[arg(long, value_enum, default_value_t = LogLevelArg::Info, env = "FLETCHER_LOG_LEVEL")]
    pub(crate) log_level: LogLevelArg,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// The options in effect, for `--print-config`.
    #[arg(skip)]
    pub(crate) in_effect: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnDeviceFailureArg {
    /// Go on: the next request may succeed
    Serve,
    /// Drain and exit with 1, for a supervisor to start it again
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormatArg {
    /// For people
    Text,
    /// For machines
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevelArg {
    /// Only what is broken
    Error,
    /// And what an operator should look at
    Warn,
    /// And a line for each request that embeds
    Info,
    /// And everything else
    Debug,
}

/// Without a workload, a short run of sizes and latencies.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Sequences of random tokens to embed, one run for each size
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = at_least_one)]
    pub(crate) sizes: Vec<usize>,

    /// Sequences that are handed to the engine at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub(crate) batch_size: usize,

    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub(crate) seq_len: usize,

    /// Embed this file's texts end to end (any format that `embed` reads)
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,

    /// Column (or JSON key) that holds the text [default: text]
    #[arg(long, value_name = "NAME")]
    pub(crate) column: Option<String>,

    /// How often to embed the file
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub(crate) rounds: usize,

    /// Measure how long one text takes
    #[arg(long)]
    pub(crate) latency: bool,

    /// Tokens of the texts for --latency [default: of 16, 128 and 512 what the model takes]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = at_least_one)]
    pub(crate) latency_tokens: Vec<usize>,

    /// Embed for this long (`90s`, `10m`, `2h`) and watch memory and throughput
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) soak: Option<Duration>,

    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Answer requests on standard input instead, for side-by-side runs (bench/compare)
    #[arg(long, conflicts_with_all = ["sizes", "text", "latency", "soak", "json", "html"])]
    pub(crate) pair: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PoolingArg {
    /// As the model folder says
    Auto,
    /// The mean over tokens
    Mean,
    /// The first token
    Cls,
    /// The last token
    Last,
    /// The maximum over tokens
    Max,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverlongArg {
    /// Cut to the model's maximum
    Truncate,
    /// Treat the row as an error
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnErrorArg {
    /// Stop with a message that names the row
    Fail,
    /// Keep the row, with a null vector and a message
    Skip,
}

fn precision() -> impl TypedValueParser<Value = Precision> {
    let find = |name: String| Precision::ALL.into_iter().find(|precision| precision.name() == name);
    PossibleValuesParser::new(Precision::ALL.map(Precision::name))
        .try_map(move |name| find(name).ok_or("not a number format"))
}

fn source_format() -> impl TypedValueParser<Value = SourceFormat> {
    PossibleValuesParser::new(SourceFormat::NAMES).try_map(|name| name.parse::<SourceFormat>())
}

fn sink_format() -> impl TypedValueParser<Value = SinkFormat> {
    PossibleValuesParser::new(SinkFormat::NAMES).try_map(|name| name.parse::<SinkFormat>())
}

fn at_least_one(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("must be a whole number from 1".to_owned()),
    }
}

/// Sixteen terabytes are more than any machine has, and few enough to be counted in bytes.
fn megabytes(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=1 << 24)
}

/// Up to a year, which can be added to any time of the clock.
fn seconds(least: u64) -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(least..=365 * 24 * 3600)
}

/// A mistyped number of threads must not take the machine down; no machine has that many cores.
fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=4096)
}

/// A number to compare with: nothing is greater than NaN.
fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if !number.is_nan() => Ok(number),
        _ => Err("must be a number".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

/// What browsers send as `Origin`: a scheme and a host, perhaps a port, and no path. Anything else
/// would never be found equal to it.
fn origin(text: &str) -> Result<String, String> {
    let host = text.split_once("://").map(|(_, host)| host);
    let plain =
        |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    match text == "*" || text == "null" || host.is_some_and(plain) {
        true => Ok(text.to_owned()),
        false => Err("must be `*` or an origin such as https://example.org:8443".to_owned()),
    }
}

/// A whole number of seconds, minutes or hours.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "must be a number with `s`, `m` or `h` behind it, such as 90s".to_owned();
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let number: u64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(bad()),
    };
    match number.checked_mul(seconds) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "s", "0s", "5", "1.5m", "5d", "5é", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
