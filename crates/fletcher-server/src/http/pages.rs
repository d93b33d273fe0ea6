//! The page at `/`, the API page at `/docs` and the OpenAPI document: all inside the binary, none
//! loads anything from elsewhere.

use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

use super::typed;

/// Scripts and styles are in the pages themselves, and nothing else may be loaded or framed.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every route takes and gives.
pub(super) const OPENAPI: &str = include_str!("../../assets/openapi.json");

fn page(html: &'static str) -> Response {
    let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", html);
    let headers = response.headers_mut();
    headers.insert("content-security-policy", HeaderValue::from_static(POLICY));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    response
}

pub(super) async fn start() -> Response {
    page(include_str!("../../assets/start.html"))
}

pub(super) async fn docs() -> Response {
    page(include_str!("../../assets/docs.html"))
}

pub(super) async fn openapi() -> Response {
    typed(StatusCode::OK, "application/json", OPENAPI)
}
