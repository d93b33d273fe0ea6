//! Whether the server lives, whether it is ready, and what it counts.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::{App, json as respond, typed};
use crate::metrics::CONTENT_TYPE;

/// The process answers: an orchestrator need not restart it.
pub(super) async fn live() -> Response {
    typed(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")
}

/// The model is loaded, a text was embedded, and the server is not stopping.
pub(super) async fn ready(State(app): State<App>) -> Response {
    match app.service.is_ready() {
        true => typed(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
        false => typed(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", "not ready\n"),
    }
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let metrics = app.service.metrics();
    metrics.devices(&app.service.embedder().devices());
    typed(StatusCode::OK, CONTENT_TYPE, metrics.render())
}

/// The few numbers that the page at `/` draws.
pub(super) async fn stats(State(app): State<App>) -> Response {
    let metrics = app.service.metrics();
    let model = app.service.embedder().model();
    respond(
        StatusCode::OK,
        &json!({
            "model": app.service.name(),
            "fingerprint": app.service.fingerprint(),
            "architecture": model.architecture(),
            "parameters": model.parameters(),
            "dimensions": app.service.embedder().dim(),
            "max_tokens": model.max_tokens(),
            "workers": app.service.embedder().concurrent_blocks(),
            "queue_limit_tokens": app.service.config().queue_tokens,
            "tokens": metrics.tokens.get(),
            "rows": metrics.rows_done(),
            "refused": metrics.overloads(),
            "queue_tokens": metrics.queue_tokens.get(),
            "queue_requests": metrics.queue_requests.get(),
            "busy_workers": metrics.busy_workers.get(),
            "busy_seconds": metrics.busy_seconds.get(),
            "connections": metrics.connections.get(),
            "cache_hits": metrics.cache_hits.get(),
            "cache_misses": metrics.cache_misses.get(),
        }),
    )
}
