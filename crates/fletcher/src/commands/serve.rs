//! `fletcher serve`: the model behind every protocol, until a signal.

use std::path::Path;
use std::time::Duration;

use fletcher_backend::{DeviceChoice, registry};
use fletcher_core::backend::Precision;
use fletcher_server::auth::ApiKeys;
use fletcher_server::tls::TlsFiles;
use fletcher_server::{
    Address, ConnectionLimits, ForwardConfig, HttpConfig, ServeError, Server, ServerConfig,
    Service, ServiceConfig, TraceConfig, TraceProtocol,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use crate::args::{LogFormatArg, LogLevelArg, OnDeviceFailureArg, ServeArgs, TextArgs};
use crate::config::{self, ModelConfig};
use crate::failure::Failure;
use crate::model;
use crate::output::print;

/// Threads that move bytes; the engine has its own.
const IO_THREADS: (usize, usize) = (2, 8);
/// Who was not asked anything for this long is waiting again.
const QUIET: Duration = Duration::from_secs(60);
/// Threads for what blocks: tokenising, files.
const BLOCKING_THREADS: usize = 32;

pub(crate) fn run(args: ServeArgs) -> Result<(), Failure> {
    if args.print_config {
        return print(&args.in_effect);
    }
    log_to_stderr(&args);
    let mut model_config = ModelConfig::resolve(&args.model);
    model_config.embedder.urgent = true;
    let config = server_config(&args)?;
    let embedder = model::load_with_fingerprint(&model_config)?;
    let text = config::embed_options(&args.text);
    let device = registry::resolve(model_config.device);
    let service = Service::start(
        embedder,
        ServiceConfig {
            queue_tokens: args.max_queue_tokens,
            deadline: Duration::from_secs(args.deadline),
            cache_bytes: (args.cache_mb as u64) << 20,
            interactive_rows: args.interactive_rows,
            max_rows: args.max_rows,
            overlong: text.overlong,
            prompt: text.prompt,
            served_name: args.served_name.clone(),
            aliases: args.alias.clone(),
            device: device.to_string(),
            dtype: dtype(device, model_config.precision).into(),
        },
    );
    let threads = config::threads().clamp(IO_THREADS.0, IO_THREADS.1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("fletcher-io")
        .enable_all()
        .build()
        .map_err(|error| Failure::work(format!("cannot start threads: {error}")))?;
    runtime.block_on(serve(service, config, args.on_device_failure))
}

/// The format that a model is computed in, in the words of PyTorch and TEI.
fn dtype(device: DeviceChoice, precision: Precision) -> &'static str {
    match (precision, device) {
        (Precision::F16, _) | (Precision::Auto, DeviceChoice::Cuda { .. }) => "float16",
        (Precision::Bf16, _) => "bfloat16",
        (Precision::Int8, _) => "int8",
        (Precision::F32 | Precision::Auto, _) => "float32",
    }
}

async fn serve(
    service: Service,
    config: ServerConfig,
    on_device_failure: OnDeviceFailureArg,
) -> Result<(), Failure> {
    let server = Server::bind(service.clone(), config).await?;
    for address in server.addresses() {
        tracing::info!(%address, "listening");
    }
    let stop = stop_signal()?;
    let probe = async {
        service.probe().await?;
        let (model, fingerprint) = (service.name(), service.fingerprint());
        // What starting needed leaves memory; what a request needs comes back with the first.
        fletcher_hub::release_unused();
        tokio::spawn(release_when_quiet(service.clone()));
        tracing::info!(model, fingerprint, device = service.config().device, "ready");
        Ok::<_, ServeError>(())
    };
    // Liveness is answered while the probe runs; a failed probe stops the server.
    let mut outcome: Result<(), Failure> = Ok(());
    let failure = async {
        match on_device_failure {
            OnDeviceFailureArg::Serve => std::future::pending().await,
            OnDeviceFailureArg::Exit => service.device_failure().await,
        }
    };
    let stop = async {
        outcome = probe.await.map_err(Failure::from);
        if outcome.is_ok() {
            tokio::select! {
                () = stop => {}
                why = failure => outcome = Err(Failure::work(format!("the device failed: {why}"))),
            }
        }
    };
    server.run(stop).await;
    outcome
}

/// Gives memory back whenever requests have come and then none for a while.
async fn release_when_quiet(service: Service) {
    let mut work = Work::new(service.metrics().tokens.get());
    loop {
        tokio::time::sleep(QUIET).await;
        let idle = service.metrics().busy_workers.get() == 0;
        if work.has_ended(service.metrics().tokens.get(), idle) {
            // A refusal to start a thread leaves the memory where it is.
            let _ = tokio::task::spawn_blocking(fletcher_hub::release_unused).await;
        }
    }
}

/// Tokens that were computed, at the times when memory was last given back and last looked at.
struct Work {
    released: u64,
    seen: u64,
}

impl Work {
    fn new(tokens: u64) -> Self {
        Self { released: tokens, seen: tokens }
    }

    /// Whether something was computed since memory was given back, and nothing since the last look.
    fn has_ended(&mut self, tokens: u64, idle: bool) -> bool {
        let ended = idle && tokens == self.seen && tokens != self.released;
        self.seen = tokens;
        if ended {
            self.released = tokens;
        }
        ended
    }
}

/// Completes at the first SIGTERM or SIGINT; a second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let watch = |kind| {
        signal(kind).map_err(|error| Failure::work(format!("cannot watch for signals: {error}")))
    };
    let (mut terminate, mut interrupt) =
        (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    // A lost terminal must not end a server; certificates are watched without it.
    let mut hangup = watch(SignalKind::hangup())?;
    tokio::spawn(async move { while hangup.recv().await.is_some() {} });
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

fn server_config(args: &ServeArgs) -> Result<ServerConfig, Failure> {
    let mut keys = args.api_key.clone();
    if let Some(file) = &args.api_key_file {
        keys.extend(key_lines(file)?);
    }
    let http = match (args.http.is_empty(), args.flight.is_empty()) {
        (true, true) => vec![Address::Tcp("127.0.0.1:8080".into())],
        _ => args.http.clone(),
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: args.tls_client_ca.clone(),
        }),
        (None, None) => None,
        _ => return Err(Failure::input("--tls-cert and --tls-key belong together")),
    };
    check_pairs(args)?;
    Ok(ServerConfig {
        http,
        grpc: args.flight.clone(),
        limits: HttpConfig {
            body_bytes: args.max_body_mb << 20,
            bodies_bytes: args.max_bodies_mb << 20,
            cors_origins: args.cors_origin.clone(),
            public_metrics: args.public_metrics,
            ..HttpConfig::default()
        },
        connections: ConnectionLimits {
            connections: args.max_connections,
            ..ConnectionLimits::default()
        },
        keys: ApiKeys::new(keys)?,
        tls,
        drain: Duration::from_secs(args.drain),
        datasets_bytes: args.datasets_mb << 20,
        forward: forward_config(args),
        traces: trace_config(args)?,
    })
}

/// What belongs together, wherever it was said: the file's values are defaults to the command
/// line's grammar, which asks nothing of defaults.
fn check_pairs(args: &ServeArgs) -> Result<(), Failure> {
    let problem = match args {
        ServeArgs { tls_client_ca: Some(_), tls_cert: None, .. } => {
            "--tls-client-ca: without --tls-cert and --tls-key no client would have to show a \
             certificate"
        }
        ServeArgs { forward: Some(_), dataset: None, .. }
        | ServeArgs { forward: None, dataset: Some(_), .. } => {
            "--forward and --dataset belong together"
        }
        ServeArgs { text: TextArgs { prompt: Some(_), prefix: Some(_), .. }, .. } => {
            "--prompt and --prefix exclude each other"
        }
        _ if args.max_body_mb > args.max_bodies_mb => {
            let (one, all) = (args.max_body_mb, args.max_bodies_mb);
            return Err(Failure::input(format!(
                "--max-body-mb {one}: such a body would never fit in the memory for all bodies, \
                 --max-bodies-mb {all}; set both"
            )));
        }
        _ => return Ok(()),
    };
    Err(Failure::input(problem))
}

fn forward_config(args: &ServeArgs) -> Option<ForwardConfig> {
    let (target, dataset) = args.forward.clone().zip(args.dataset.clone())?;
    Some(ForwardConfig {
        target,
        dataset,
        vector_column: args.forward_vector_column.clone(),
        spill: args.spill.clone(),
        spill_bytes: (args.spill_mb as u64) << 20,
        ca: args.forward_ca.clone(),
        token: args.forward_token.clone(),
        ack_timeout: Duration::from_secs(args.forward_timeout),
    })
}

fn trace_config(args: &ServeArgs) -> Result<Option<TraceConfig>, Failure> {
    let Some(endpoint) = args.otlp_endpoint.clone().filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    // Only now: the variable may be set for everything that runs on a machine.
    let given = &args.otlp_protocol[..];
    let known = TraceProtocol::NAMES.into_iter().find(|(name, _)| *name == given);
    let (_, protocol) = known.ok_or_else(|| {
        let names = TraceProtocol::NAMES.map(|(name, _)| name).join(" or ");
        Failure::input(format!("--otlp-protocol {given}: traces are sent by {names}"))
    })?;
    Ok(Some(TraceConfig {
        endpoint,
        protocol,
        service: args.otlp_service.clone(),
        headers: args.otlp_headers.clone(),
        ratio: args.otlp_ratio,
    }))
}

fn key_lines(file: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::input(format!("{}: {error}", file.display())))?;
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    // An empty file must not open the server to everybody.
    match keys.is_empty() {
        true => Err(Failure::input(format!("{}: holds no key", file.display()))),
        false => Ok(keys),
    }
}

fn log_to_stderr(args: &ServeArgs) {
    let level = match args.log_level {
        LogLevelArg::Error => LevelFilter::ERROR,
        LogLevelArg::Warn => LevelFilter::WARN,
        LogLevelArg::Info => LevelFilter::INFO,
        LogLevelArg::Debug => LevelFilter::DEBUG,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false);
    match args.log_format {
        LogFormatArg::Text => log.with_ansi(false).init(),
        LogFormatArg::Json => log.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_work() {
        let mut work = Work::new(3);
        assert!(!work.has_ended(3, true), "nothing was done since the start");
        assert!(!work.has_ended(9, true), "something was done since the last look");
        assert!(!work.has_ended(9, false), "a long request is being computed");
        assert!(work.has_ended(9, true));
        assert!(!work.has_ended(9, true), "nothing was done since");
        assert!(!work.has_ended(12, true));
        assert!(work.has_ended(12, true));
    }
}
