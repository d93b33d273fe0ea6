//! Around every request: who may ask, an id, one log line, the counters, the fingerprint.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Poll, ready};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{App, Dialect};
use crate::context::Context;
use crate::error::{ErrorKind, RequestError};
use crate::trace::Value;

/// Longest request id that is taken over from a client.
const REQUEST_ID_CHARS: usize = 128;
/// For logs and counters: a stream that its client left before the end.
const CLIENT_LEFT: u16 = 499;

/// Lets a request through if it has a good key or needs none.
pub(super) async fn authorize(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let free = is_public(&app, request.method(), path);
    if free || app.keys.allow(request.headers()) {
        return next.run(request).await;
    }
    app.service.metrics().reject("unauthorized");
    Dialect::of(path).unauthorized()
}

/// What an orchestrator or a browser must reach before it can have a key.
fn is_public(app: &App, method: &axum::http::Method, path: &str) -> bool {
    let get = method == axum::http::Method::GET;
    match path {
        "/health" | "/livez" | "/readyz" | "/docs" | "/openapi.json" | "/" => get,
        "/metrics" | "/stats" => app.config.public_metrics,
        // Flight clients trade a password for a bearer token here; it checks the key itself.
        "/arrow.flight.protocol.FlightService/Handshake" => true,
        "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch" => true,
        _ => false,
    }
}

/// The outermost layer.
pub(crate) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let trace = app.tracer.as_ref().and_then(|tracer| tracer.begin(request.headers()));
    let context = Arc::new(Context::new(trace));
    request.extensions_mut().insert(context.clone());
    let path = request.uri().path().to_owned();
    let dialect = Dialect::of(&path);
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut seen = Seen {
        app: app.clone(),
        context,
        start: Instant::now(),
        id: request_id(&request),
        method: request.method().clone(),
        // An unknown path is no label: clients could make as many as they like.
        route: route.unwrap_or_else(|| "none".into()),
        path,
        dialect,
        status: 0,
        kind: None,
    };
    let caught = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = caught.unwrap_or_else(|_| {
        app.service.metrics().panics.inc();
        let message = "the handler panicked; this is a bug in Fletcher".into();
        dialect.refuse(&RequestError::Engine { message })
    });
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&seen.id) {
        headers.insert("x-request-id", value);
    }
    if let Ok(value) = HeaderValue::from_str(app.service.fingerprint()) {
        headers.insert("x-fletcher-fingerprint", value);
    }
    seen.status = response.status().as_u16();
    seen.kind = response.extensions().get::<ErrorKind>().copied();
    seen.grpc(response.headers());
    // An answer of known length is whole; a stream's end is waited for.
    if response.size_hint().exact().is_some() {
        seen.end();
        return response;
    }
    response.map(|body| Body::new(Observed { body, seen: Some(seen) }))
}

/// A request with what is known of it.
struct Seen {
    app: App,
    context: Arc<Context>,
    start: Instant,
    id: String,
    method: Method,
    path: String,
    route: String,
    dialect: Dialect,
    status: u16,
    kind: Option<ErrorKind>,
}

impl Seen {
    /// A gRPC call that is refused says so in its headers or, after a stream, in its trailers; over
    /// HTTP it looks like a success.
    fn grpc(&mut self, headers: &HeaderMap) {
        let code = headers.get("grpc-status").and_then(|value| value.to_str().ok());
        if let Some((refused, as_http)) = code.and_then(refusal) {
            (self.kind, self.status) = (Some(refused), as_http);
        }
    }

    /// Counts the request, logs it and ends its span.
    fn end(self) {
        let (elapsed, status) = (self.start.elapsed(), self.status);
        let metrics = self.app.service.metrics();
        metrics.request(self.dialect.name(), &self.route, status, elapsed.as_secs_f64());
        if let Some(kind) = self.kind {
            metrics.reject(kind.name());
        }
        let (rows, tokens) = self.context.done();
        let (millis, error) = (elapsed.as_secs_f64() * 1e3, self.kind.map(ErrorKind::name));
        let Self { id: request_id, method, path, .. } = &self;
        match status {
            500.. => {
                tracing::error!(request_id, %method, path, status, millis, rows, tokens, error);
            }
            _ if rows > 0 || status >= 400 => {
                tracing::info!(request_id, %method, path, status, millis, rows, tokens, error);
            }
            _ => tracing::debug!(request_id, %method, path, status, millis),
        }
        let Some(trace) = &self.context.trace else { return };
        let mut attributes = vec![
            ("http.request.method", Value::Text(method.to_string())),
            ("http.route", Value::Text(self.route.clone())),
            ("http.response.status_code", Value::Int(status.into())),
            ("fletcher.dialect", Value::Text(self.dialect.name().into())),
            ("fletcher.request_id", Value::Text(request_id.clone())),
            ("fletcher.rows", Value::Int(rows as i64)),
            ("fletcher.tokens", Value::Int(tokens as i64)),
        ];
        attributes.extend(error.map(|error| ("error.type", Value::Text(error.into()))));
        // As OpenTelemetry's conventions name them: by service and method, or by method and route.
        let name = match self.dialect {
            Dialect::Grpc => path.trim_start_matches('/').to_owned(),
            _ => format!("{method} {}", self.route),
        };
        trace.end(name, status >= 500, attributes);
    }
}

/// A streamed answer, watched to its end.
struct Observed {
    body: Body,
    seen: Option<Seen>,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let trailers = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref());
        if let (Some(trailers), Some(seen)) = (trailers, &mut self.seen) {
            seen.grpc(trailers);
        }
        let last = frame.is_none() || trailers.is_some();
        if last && let Some(seen) = self.seen.take() {
            seen.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let Some(mut seen) = self.seen.take() else { return };
        if !self.body.is_end_stream() {
            seen.status = CLIENT_LEFT;
        }
        seen.end();
    }
}

/// What a gRPC code means, and the HTTP status that stands for it in logs and counters.
fn refusal(code: &str) -> Option<(ErrorKind, u16)> {
    Some(match code {
        "3" => (ErrorKind::Invalid, 400),
        "4" => (ErrorKind::Deadline, 504),
        "5" => (ErrorKind::NotFound, 404),
        "8" => (ErrorKind::Overloaded, 429),
        "11" => (ErrorKind::TooLarge, 413),
        "12" => (ErrorKind::NotFound, 501),
        "13" => (ErrorKind::Engine, 500),
        "14" => (ErrorKind::Unavailable, 503),
        _ => return None,
    })
}

/// The client's id if it is fit to be printed, or a new one.
fn request_id(request: &Request) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let given = request.headers().get("x-request-id").and_then(|value| value.to_str().ok());
    let fit = |id: &&str| {
        (1..=REQUEST_ID_CHARS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    given.filter(fit).map_or_else(
        || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            format!("{:x}-{:x}", now.as_micros(), NEXT.fetch_add(1, Ordering::Relaxed))
        },
        str::to_owned,
    )
}

pub(super) async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    let message = format!("there is no {path}; /docs lists what there is");
    // Not `refuse`, by which OpenAI's clients would read that a model is missing.
    Dialect::of(path).unknown_path(&message)
}

pub(super) async fn not_allowed(request: Request) -> Response {
    let path = request.uri().path();
    let message = format!("{path} does not take {}; /docs says what it takes", request.method());
    Dialect::of(path).word(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::Invalid, &message)
}
