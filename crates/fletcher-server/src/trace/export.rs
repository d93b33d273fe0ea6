//! The thread that hands spans to the collector, in batches.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use axum::http::uri::PathAndQuery;
use prost::Message as _;
use tokio::runtime::Runtime;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use super::wire::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use super::{Span, TraceConfig, TraceProtocol, wire};
use crate::error::ServeError;
use crate::metrics::Metrics;

/// Spans that may wait; as many as the SDKs of OpenTelemetry keep.
const QUEUE_SPANS: usize = 2048;
/// Spans of one request, and how long the first of them waits for others.
const BATCH: (usize, Duration) = (512, Duration::from_secs(1));
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two warnings that the collector does not answer.
const WARN_EVERY: Duration = Duration::from_secs(60);

enum Message {
    Span(Box<Span>),
    /// Send what there is and say so.
    Flush(SyncSender<()>),
}

pub(super) struct Exporter {
    queue: SyncSender<Message>,
    metrics: Arc<Metrics>,
}

/// How the collector is reached.
enum Way {
    Http { agent: ureq::Agent, url: String, headers: Vec<(String, String)> },
    Grpc { runtime: Runtime, endpoint: Box<Endpoint>, headers: Vec<Pair> },
}

type Pair = (AsciiMetadataKey, AsciiMetadataValue);

/// What OTLP calls its one method.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

struct Collector {
    way: Way,
    url: String,
    service: String,
    metrics: Arc<Metrics>,
    warned: Option<Instant>,
}

impl Exporter {
    pub(super) fn start(config: &TraceConfig, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        let bad = |message: String| ServeError::Config { message };
        let endpoint = config.endpoint.trim_end_matches('/');
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let message = format!("the collector's address `{endpoint}` is no http(s) URL");
            return Err(bad(message));
        }
        if !(0.0..=1.0).contains(&config.ratio) {
            return Err(bad(format!("{} is no share of the traces: 0 to 1 is", config.ratio)));
        }
        let header = |text: &String| {
            let (name, value) = text
                .split_once('=')
                .ok_or_else(|| bad("a header for the collector is not NAME=VALUE".into()))?;
            let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8_lossy();
            Ok::<_, ServeError>((name.trim().to_owned(), value.into_owned()))
        };
        let headers = config.headers.iter().map(header).collect::<Result<Vec<_>, _>>()?;
        let way = match config.protocol {
            TraceProtocol::HttpProtobuf => {
                let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
                Way::Http { agent: agent.into(), url: format!("{endpoint}/v1/traces"), headers }
            }
            TraceProtocol::Grpc => grpc(endpoint, &headers).map_err(bad)?,
        };
        let collector = Collector {
            way,
            url: endpoint.to_owned(),
            service: config.service.clone(),
            metrics: metrics.clone(),
            warned: None,
        };
        let (queue, spans) = sync_channel(QUEUE_SPANS);
        let thread = std::thread::Builder::new().name("fletcher-traces".into());
        thread
            .spawn(move || collector.run(&spans))
            .map_err(|error| bad(format!("no thread for traces: {error}")))?;
        Ok(Self { queue, metrics })
    }

    pub(super) fn send(&self, span: Span) {
        match self.queue.try_send(Message::Span(Box::new(span))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.metrics.spans("dropped", 1);
            }
        }
    }

    pub(super) fn flush(&self, patience: Duration) {
        let (done, wait) = sync_channel(1);
        // With a full queue there is nobody to wait for: the collector is down.
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(patience);
        }
    }
}

impl Collector {
    /// Until the last sender is gone.
    fn run(mut self, queue: &Receiver<Message>) {
        let mut batch = Vec::new();
        let mut due = Instant::now();
        loop {
            let message = match batch.is_empty() {
                true => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(Message::Span(span)) => {
                    if batch.is_empty() {
                        due = Instant::now() + BATCH.1;
                    }
                    batch.push(*span);
                    if batch.len() < BATCH.0 {
                        continue;
                    }
                }
                Ok(Message::Flush(done)) => {
                    self.send(std::mem::take(&mut batch));
                    // Whoever asked may have lost patience.
                    let _ = done.send(());
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.send(batch),
            }
            self.send(std::mem::take(&mut batch));
        }
    }

    fn send(&mut self, spans: Vec<Span>) {
        let count = spans.len();
        if count == 0 {
            return;
        }
        match self.way.send(wire::request(&self.service, spans)) {
            Ok(()) => self.metrics.spans("sent", count),
            Err(error) => {
                self.metrics.spans("failed", count);
                if self.warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    tracing::warn!(error, url = self.url, "the collector does not take traces");
                }
            }
        }
    }
}

/// Prepares calls; says what is wrong.
fn grpc(url: &str, headers: &[(String, String)]) -> Result<Way, String> {
    if !url.starts_with("http://") {
        return Err(format!(
            "traces over gRPC are not encrypted: `{url}` must be http://HOST:PORT"
        ));
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| format!("`{url}`: {e}"))?;
    let pair = |(name, value): &(String, String)| {
        let key = name.to_ascii_lowercase().parse::<AsciiMetadataKey>();
        let key = key.map_err(|_| format!("`{name}` cannot be a header's name"))?;
        let value = value.parse().map_err(|_| format!("{name}: that cannot be its value"))?;
        Ok::<Pair, String>((key, value))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(Way::Grpc {
        runtime: runtime.map_err(|error| format!("no runtime for traces: {error}"))?,
        endpoint: Box::new(endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT)),
        headers: headers.iter().map(pair).collect::<Result<_, _>>()?,
    })
}

impl Way {
    fn send(&self, message: ExportTraceServiceRequest) -> Result<(), String> {
        match self {
            Way::Http { agent, url, headers } => {
                let mut request = agent.post(url).content_type("application/x-protobuf");
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                request.send(message.encode_to_vec()).map(drop).map_err(|error| error.to_string())
            }
            Way::Grpc { runtime, endpoint, headers } => {
                let sent = runtime.block_on(call(endpoint, headers, message));
                sent.map_err(|error| error.to_string())
            }
        }
    }
}

/// A connection for each batch, at most one a second: nobody would see to an idle one's pings.
async fn call(
    endpoint: &Endpoint,
    headers: &[Pair],
    message: ExportTraceServiceRequest,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    let mut request = tonic::Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(name.clone(), value.clone());
    }
    let codec = ProstCodec::<_, ExportTraceServiceResponse>::default();
    client.unary(request, PathAndQuery::from_static(EXPORT), codec).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grpc_cannot_do_is_told_at_the_start() {
        let wrong = |url: &str, name: &str| grpc(url, &[(name.into(), "x".into())]).err().unwrap();
        assert!(wrong("https://collector:4317", "a").contains("not encrypted"));
        assert!(wrong("http://collector:4317", "a b").contains("`a b` cannot be"));
        assert!(grpc("http://collector:4317", &[("Key".into(), "x".into())]).is_ok());
    }
}
