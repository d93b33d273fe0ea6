//! Around every request: who may ask, an id, one log line, the counters, the fingerprint.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt as _;

use super::{App, Dialect};
use crate::error::{ErrorKind, RequestError};

/// Longest request id that is taken over from a client.
const REQUEST_ID_CHARS: usize = 128;

/// What a handler says about its work, for the log line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) rows: usize,
    pub(crate) tokens: usize,
}

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
pub(crate) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let dialect = Dialect::of(&path);
    let caught = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = caught.unwrap_or_else(|_| {
        app.service.metrics().panics.inc();
        let message = "the handler panicked; this is a bug in Fletcher".into();
        dialect.refuse(&RequestError::Engine { message })
    });
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", value);
    }
    if let Ok(value) = HeaderValue::from_str(app.service.fingerprint()) {
        headers.insert("x-fletcher-fingerprint", value);
    }
    let (mut status, elapsed) = (response.status().as_u16(), start.elapsed());
    let mut kind = response.extensions().get::<ErrorKind>().copied();
    // A gRPC call that is refused says so in this header; over HTTP it looks like a success.
    let code = response.headers().get("grpc-status").and_then(|value| value.to_str().ok());
    if let Some((refused, as_http)) = code.and_then(refusal) {
        (kind, status) = (Some(refused), as_http);
    }
    // An unknown path is no label: clients could make as many as they like.
    let route = route.unwrap_or_else(|| "none".into());
    app.service.metrics().request(dialect.name(), &route, status, elapsed.as_secs_f64());
    if let Some(kind) = kind {
        app.service.metrics().reject(kind.name());
    }
    let work = response.extensions().get::<Work>().copied();
    let (rows, tokens) = work.map_or((0, 0), |work| (work.rows, work.tokens));
    let (millis, error) = (elapsed.as_secs_f64() * 1e3, kind.map(ErrorKind::name));
    match status {
        500.. => {
            tracing::error!(request_id = id, %method, path, status, millis, rows, tokens, error)
        }
        _ if rows > 0 || status >= 400 => {
            tracing::info!(request_id = id, %method, path, status, millis, rows, tokens, error);
        }
        _ => tracing::debug!(request_id = id, %method, path, status, millis),
    }
    response
}

/// What a gRPC code means, and the HTTP status that stands for it in logs and counters.
fn refusal(code: &str) -> Option<(ErrorKind, u16)> {
    Some(match code {
        "3" => (ErrorKind::Invalid, 400),
        "4" => (ErrorKind::Deadline, 504),
        "5" => (ErrorKind::NotFound, 404),
        "8" => (ErrorKind::Overloaded, 429),
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
    Dialect::of(path).refuse(&RequestError::NotFound { message })
}

pub(super) async fn not_allowed(request: Request) -> Response {
    let path = request.uri().path();
    let message = format!("{path} does not take {}; /docs says what it takes", request.method());
    Dialect::of(path).word(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::Invalid, &message)
}
