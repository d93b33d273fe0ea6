//! Traces: each request is a span, its stages are spans below it, and a collector gets them by
//! OTLP.
//!
//! ```text
//! POST /v1/embeddings ┬ tokenise   texts to token ids
//!                     ├ queue      the wait for the first block
//!                     ├ encode     from the first block to the last
//!                     └ answer     words for the vectors, until the last byte is handed over
//! ```
//!
//! A request's parent comes from `traceparent`, over gRPC too; a parent that is not sampled is not
//! traced here either. A span that finds the queue to the exporter full is dropped and counted:
//! traces never hold an answer up.

mod export;
mod wire;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;

use self::export::Exporter;
use crate::error::ServeError;
use crate::metrics::Metrics;

/// How OTLP's messages travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TraceProtocol {
    /// Protocol buffers over HTTP, usually to port 4318.
    #[default]
    HttpProtobuf,
    /// gRPC without TLS, usually to port 4317.
    Grpc,
}

impl TraceProtocol {
    /// All, as `OTEL_EXPORTER_OTLP_PROTOCOL` names them.
    pub const NAMES: [(&'static str, Self); 2] =
        [("http/protobuf", Self::HttpProtobuf), ("grpc", Self::Grpc)];
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceConfig {
    /// The collector's URL; over HTTP `/v1/traces` is appended.
    pub endpoint: String,
    /// How they get there.
    pub protocol: TraceProtocol,
    /// `service.name` of every span.
    pub service: String,
    /// Headers for the collector: `name=value`, as in `OTEL_EXPORTER_OTLP_HEADERS`.
    pub headers: Vec<String>,
    /// Share of the requests without a parent that are traced.
    pub ratio: f64,
}

/// Makes traces. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tracer(Arc<Inner>);

struct Inner {
    exporter: Exporter,
    ratio: f64,
    /// Makes ids that nobody can foresee and that no other server makes.
    seed: RandomState,
    next: AtomicU64,
}

/// A finished span.
#[derive(Debug)]
pub(crate) struct Span {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent: Option<[u8; 8]>,
    name: String,
    is_request: bool,
    failed: bool,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<(&'static str, Value)>,
}

/// What an attribute can be.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Int(i64),
}

/// The span of one request, while it goes on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Trace(Arc<Open>);

struct Open {
    tracer: Tracer,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent: Option<[u8; 8]>,
    start: SystemTime,
    /// The end of the last stage: the answer begins there.
    last: Mutex<Option<SystemTime>>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trace({})", fletcher_core::fingerprint::hex(&self.0.trace_id))
    }
}

impl Tracer {
    /// Checks the configuration and starts the exporter's thread.
    pub(crate) fn start(config: &TraceConfig, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        let exporter = Exporter::start(config, metrics)?;
        let (seed, next) = (RandomState::new(), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { exporter, ratio: config.ratio, seed, next })))
    }

    /// Begins a request's span, if it is to be traced.
    pub(crate) fn begin(&self, headers: &HeaderMap) -> Option<Trace> {
        let (trace_id, parent) = match parent(headers) {
            Some(Parent { is_sampled: false, .. }) => return None,
            Some(Parent { trace_id, span_id, .. }) => (trace_id, Some(span_id)),
            None => {
                let (high, low) = (self.id(), self.id());
                if (low as f64 / u64::MAX as f64) >= self.0.ratio {
                    return None;
                }
                let mut id = [0; 16];
                id[..8].copy_from_slice(&high.to_be_bytes());
                id[8..].copy_from_slice(&low.to_be_bytes());
                (id, None)
            }
        };
        let (tracer, span_id) = (self.clone(), self.id().to_be_bytes());
        let (start, last) = (SystemTime::now(), Mutex::default());
        Some(Trace(Arc::new(Open { tracer, trace_id, span_id, parent, start, last })))
    }

    /// Sends what is left, for so long at most.
    pub(crate) fn flush(&self, patience: Duration) {
        self.0.exporter.flush(patience);
    }

    /// A number that is never 0, which would mean no id.
    fn id(&self) -> u64 {
        self.0.seed.hash_one(self.0.next.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

impl Trace {
    /// Writes a stage of the request down; what took no time was none.
    pub(crate) fn stage(
        &self,
        name: &str,
        start: SystemTime,
        took: Duration,
        attributes: Vec<(&'static str, Value)>,
    ) {
        if took.is_zero() {
            return;
        }
        let end = start + took;
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.0.tracer.0.exporter.send(Span {
            trace_id: self.0.trace_id,
            span_id: self.0.tracer.id().to_be_bytes(),
            parent: Some(self.0.span_id),
            name: name.to_owned(),
            is_request: false,
            failed: false,
            start,
            end,
            attributes,
        });
    }

    /// Ends the request's span, and with it the answer.
    pub(crate) fn end(&self, name: String, failed: bool, attributes: Vec<(&'static str, Value)>) {
        let now = SystemTime::now();
        let last = *self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last {
            self.stage("answer", last, now.duration_since(last).unwrap_or_default(), Vec::new());
        }
        self.0.tracer.0.exporter.send(Span {
            trace_id: self.0.trace_id,
            span_id: self.0.span_id,
            parent: self.0.parent,
            name,
            is_request: true,
            failed,
            start: self.0.start,
            end: now,
            attributes,
        });
    }
}

/// What `traceparent` says.
#[derive(Debug, PartialEq, Eq)]
struct Parent {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    is_sampled: bool,
}

/// The caller's span. A header that is not as W3C's Trace Context says is as if it were not there.
fn parent(headers: &HeaderMap) -> Option<Parent> {
    let text = headers.get("traceparent")?.to_str().ok()?.trim();
    let mut parts = text.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let [version] = hex::<1>(version)?;
    // Version 0 has these four parts; later ones may have more, and ff none at all.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let (trace_id, span_id, [flags]) = (hex(trace)?, hex(span)?, hex::<1>(flags)?);
    if trace_id == [0; 16] || span_id == [0; 8] {
        return None;
    }
    Some(Parent { trace_id, span_id, is_sampled: flags & 1 == 1 })
}

fn hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.bytes().all(digit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents() {
        let of = |text: &str| {
            parent(&HeaderMap::from_iter([("traceparent".parse().unwrap(), text.parse().unwrap())]))
        };
        let id = "0af7651916cd43dd8448eb211c80319c";
        let good = of(&format!("00-{id}-b7ad6b7169203331-01")).unwrap();
        assert!(good.is_sampled && good.trace_id[0] == 0x0a && good.span_id[7] == 0x31);
        assert!(!of(&format!("00-{id}-b7ad6b7169203331-00")).unwrap().is_sampled);
        assert!(of(&format!("01-{id}-b7ad6b7169203331-01-more")).is_some());
        for bad in [
            "",
            "00",
            &format!("00-{id}-b7ad6b7169203331"),
            &format!("00-{id}-b7ad6b7169203331-01-more"),
            &format!("ff-{id}-b7ad6b7169203331-01"),
            &format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            &format!("00-{id}-0000000000000000-01"),
            &format!("00-{}-b7ad6b7169203331-01", id.to_uppercase()),
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
