//! HTTP: one file per dialect; this one routes, reads bodies and words what they have in common.

mod body;
mod cohere;
mod encode;
mod observe;
mod ollama;
mod openai;
mod pages;
mod rows;
mod status;
pub(crate) mod tei;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{MethodRouter, get, on};
use bytes::Bytes;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::auth::ApiKeys;
use crate::batcher::Lane;
use crate::context::Context;
use crate::datasets::Datasets;
use crate::error::{ErrorKind, RequestError};
use crate::json::{in_json_words, parse};
use crate::service::{RequestOptions, Service};
use crate::trace::Tracer;

pub(crate) use body::{PACE, UNIT};
pub(crate) use observe::observe;

/// Limits and manners of the HTTP side.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Largest body of a request.
    pub body_bytes: usize,
    /// Bytes of all bodies being read or served at once.
    pub bodies_bytes: usize,
    /// How long a body may pause.
    pub body_pause: Duration,
    /// Origins whose pages may ask; `*` for any, none for none.
    pub cors_origins: Vec<String>,
    /// Serve `/metrics` and `/stats` without a key.
    pub public_metrics: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            bodies_bytes: 512 << 20,
            body_pause: Duration::from_secs(15),
            cors_origins: Vec::new(),
            public_metrics: false,
        }
    }
}

/// What handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) service: Service,
    pub(crate) keys: ApiKeys,
    pub(crate) config: Arc<HttpConfig>,
    pub(crate) datasets: Datasets,
    /// In units of [`body::UNIT`] bytes.
    pub(crate) bodies: Arc<Semaphore>,
    pub(crate) tracer: Option<Tracer>,
}

impl App {
    pub(crate) fn new(
        service: Service,
        keys: ApiKeys,
        config: HttpConfig,
        datasets: Datasets,
        tracer: Option<Tracer>,
    ) -> Self {
        let bodies = Arc::new(Semaphore::new(config.bodies_bytes.div_ceil(body::UNIT)));
        Self { service, keys, config: Arc::new(config), datasets, bodies, tracer }
    }
}

/// Whose way of asking and answering a route follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Tei,
    Cohere,
    Ollama,
    Own,
    Grpc,
}

impl Dialect {
    /// By the path alone, so that errors before routing are worded right too.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            _ if path.starts_with("/v1/") || path == "/embeddings" || path == "/models" => {
                Dialect::OpenAi
            }
            _ if path.starts_with("/v2/") => Dialect::Cohere,
            _ if path.starts_with("/api/") => Dialect::Ollama,
            "/" | "/embed" | "/embed_all" | "/similarity" | "/tokenize" | "/decode" | "/info" => {
                Dialect::Tei
            }
            _ if path.starts_with("/tei.v1.")
                || path.starts_with("/arrow.flight.")
                || path.starts_with("/grpc.") =>
            {
                Dialect::Grpc
            }
            _ => Dialect::Own,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Tei => "tei",
            Dialect::Cohere => "cohere",
            Dialect::Ollama => "ollama",
            Dialect::Own => "own",
            Dialect::Grpc => "grpc",
        }
    }

    /// The dialect's answer to a request that failed.
    fn refuse(self, error: &RequestError) -> Response {
        let kind = error.kind();
        let status = match (self, kind) {
            (_, ErrorKind::Overloaded) => StatusCode::TOO_MANY_REQUESTS,
            (_, ErrorKind::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
            (_, ErrorKind::Deadline) => StatusCode::GATEWAY_TIMEOUT,
            (_, ErrorKind::NotFound) => StatusCode::NOT_FOUND,
            (_, ErrorKind::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            (_, ErrorKind::Slow) => StatusCode::REQUEST_TIMEOUT,
            (Dialect::Tei, ErrorKind::Invalid | ErrorKind::Text) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            (_, ErrorKind::Invalid | ErrorKind::Text | ErrorKind::Empty) => StatusCode::BAD_REQUEST,
            (Dialect::Tei, ErrorKind::Engine) => StatusCode::FAILED_DEPENDENCY,
            (_, ErrorKind::Engine) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = self.word(status, kind, &error.to_string());
        if let RequestError::Overloaded { retry_after } = error {
            let seconds = HeaderValue::from(retry_after.as_secs().max(1));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
        response.extensions_mut().insert(kind);
        response
    }

    /// The answer to a request without a good key.
    pub(crate) fn unauthorized(self) -> Response {
        let message = "a valid API key is needed: Authorization: Bearer KEY, or x-api-key";
        if self == Dialect::Grpc {
            return tonic::Status::unauthenticated(message).into_http();
        }
        let mut response = match self {
            Dialect::OpenAi => {
                let error = serde_json::json!({ "error": {
                    "message": message, "type": "invalid_request_error", "param": null,
                    "code": "invalid_api_key",
                }});
                json(StatusCode::UNAUTHORIZED, &error)
            }
            _ => self.word(StatusCode::UNAUTHORIZED, ErrorKind::Invalid, message),
        };
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert("www-authenticate", scheme);
        response
    }

    /// The answer where no route is.
    fn unknown_path(self, message: &str) -> Response {
        let mut response = match self {
            Dialect::OpenAi => {
                let error = serde_json::json!({ "error": {
                    "message": message, "type": "invalid_request_error", "param": null,
                    "code": "unknown_url",
                }});
                json(StatusCode::NOT_FOUND, &error)
            }
            _ => self.word(StatusCode::NOT_FOUND, ErrorKind::NotFound, message),
        };
        response.extensions_mut().insert(ErrorKind::NotFound);
        response
    }

    fn word(self, status: StatusCode, kind: ErrorKind, message: &str) -> Response {
        use serde_json::json;
        let value = match self {
            Dialect::OpenAi => json!({ "error": {
                "message": message,
                "type": match kind {
                    ErrorKind::Overloaded => "rate_limit_error",
                    ErrorKind::Engine | ErrorKind::Unavailable | ErrorKind::Deadline => "server_error",
                    _ => "invalid_request_error",
                },
                "param": null,
                "code": match kind {
                    ErrorKind::NotFound => "model_not_found",
                    ErrorKind::Overloaded => "rate_limit_exceeded",
                    _ => kind.name(),
                },
            }}),
            Dialect::Cohere => json!({ "message": message }),
            Dialect::Ollama => json!({ "error": message }),
            Dialect::Tei => json!({ "error": message, "error_type": match kind {
                ErrorKind::Invalid | ErrorKind::TooLarge => "validation",
                ErrorKind::Text => "tokenizer",
                ErrorKind::Engine => "backend",
                ErrorKind::Unavailable => "unhealthy",
                _ => kind.name(),
            }}),
            Dialect::Own | Dialect::Grpc => json!({ "error": message, "error_type": kind.name() }),
        };
        json(status, &value)
    }
}

/// A field whose null is the same as leaving it out, as clients mean that write all they know.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A request with its body read.
pub(crate) struct Call {
    pub(crate) headers: HeaderMap,
    pub(crate) query: String,
    pub(crate) body: Bytes,
    pub(crate) context: Option<Arc<Context>>,
    /// Held until the answer is made: the body's share of [`App::bodies`].
    _share: body::Share,
}

impl Call {
    /// The body as JSON.
    fn json<T: DeserializeOwned>(&self) -> Result<T, RequestError> {
        if self.body.is_empty() {
            return Err(RequestError::invalid("the body is empty; JSON is expected"));
        }
        parse("the body", &self.body)
    }

    /// The query string's fields.
    fn query<T: DeserializeOwned>(&self) -> Result<T, RequestError> {
        let uri: axum::http::Uri = format!("/?{}", self.query)
            .parse()
            .map_err(|_| RequestError::invalid("the query string is malformed"))?;
        let parsed = axum::extract::Query::<T>::try_from_uri(&uri);
        parsed.map(|query| query.0).map_err(|error| {
            let message = error.body_text();
            let message = message.rsplit_once("query string: ").map_or(&message[..], |(_, it)| it);
            let message = match message.split_once(": ") {
                Some((field, message)) if !field.contains(' ') => {
                    format!("`{field}`: {}", in_json_words(message))
                }
                _ => in_json_words(message),
            };
            RequestError::invalid(format!("the query string: {message}"))
        })
    }

    /// What any dialect's request can say in headers.
    fn options(&self) -> Result<RequestOptions, RequestError> {
        let options = header_options(&self.headers)?;
        Ok(RequestOptions { context: self.context.clone(), ..options })
    }
}

/// `x-fletcher-lane: interactive|bulk` and `x-fletcher-deadline-ms`.
pub(crate) fn header_options(headers: &HeaderMap) -> Result<RequestOptions, RequestError> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let lane = match text("x-fletcher-lane") {
        None => None,
        Some("interactive") => Some(Lane::Interactive),
        Some("bulk") => Some(Lane::Bulk),
        Some(other) => {
            let message = format!("x-fletcher-lane is `{other}`, but must be interactive or bulk");
            return Err(RequestError::invalid(message));
        }
    };
    let deadline = match text("x-fletcher-deadline-ms").map(str::parse::<u32>) {
        None => None,
        Some(Ok(millis)) => Some(Duration::from_millis(millis.into())),
        Some(Err(_)) => {
            let message = "x-fletcher-deadline-ms must be a whole number of milliseconds";
            return Err(RequestError::invalid(message));
        }
    };
    Ok(RequestOptions { lane, deadline, ..RequestOptions::default() })
}

/// A handler behind the reading of the body and the wording of errors.
fn handle<F, R>(
    method: axum::routing::MethodFilter,
    dialect: Dialect,
    handler: F,
) -> MethodRouter<App>
where
    F: Fn(App, Call) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response, RequestError>> + Send + 'static,
{
    let answer = move |State(app): State<App>, request: Request| async move {
        let call = match body::read(&app, request).await {
            Ok(call) => call,
            Err(error) => return dialect.refuse(&error),
        };
        handler(app, call).await.unwrap_or_else(|error| dialect.refuse(&error))
    };
    on(method, answer)
}

fn embeds<F, R>(dialect: Dialect, handler: F) -> MethodRouter<App>
where
    F: Fn(App, Call) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response, RequestError>> + Send + 'static,
{
    handle(axum::routing::MethodFilter::POST, dialect, handler)
}

/// Every route of the HTTP side. `openapi.json` describes the same; a test compares them.
pub(crate) fn router(app: App) -> Router {
    use Dialect::{Cohere, Ollama, OpenAi, Own, Tei};
    let router = Router::new()
        .route("/v1/embeddings", embeds(OpenAi, openai::embeddings))
        .route("/embeddings", embeds(OpenAi, openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{model}", get(openai::model))
        .route("/", get(pages::start).merge(embeds(Tei, tei::root)))
        .route("/embed", embeds(Tei, tei::embed))
        .route("/embed_all", embeds(Tei, tei::embed_all))
        .route("/similarity", embeds(Tei, tei::similarity))
        .route("/tokenize", embeds(Tei, tei::tokenize))
        .route("/decode", embeds(Tei, tei::decode))
        .route("/info", get(tei::info))
        .route("/v2/embed", embeds(Cohere, cohere::embed))
        .route("/api/embed", embeds(Ollama, ollama::embed))
        .route("/api/embeddings", embeds(Ollama, ollama::embeddings))
        .route("/api/tags", get(ollama::tags))
        .route("/api/version", get(ollama::version))
        .route("/encode", embeds(Own, encode::cbor))
        .route("/encode/arrow", embeds(Own, encode::arrow))
        .route("/health", get(status::ready))
        .route("/livez", get(status::live))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/stats", get(status::stats))
        .route("/openapi.json", get(pages::openapi))
        .route("/docs", get(pages::docs))
        .fallback(observe::not_found)
        .method_not_allowed_fallback(observe::not_allowed);
    let router = layered(router, &app);
    router.with_state(app)
}

/// What surrounds every route, gRPC's included: the key, CORS, the request id and the counting.
pub(crate) fn layered<S: Clone + Send + Sync + 'static>(router: Router<S>, app: &App) -> Router<S> {
    let router =
        router.layer(axum::middleware::from_fn_with_state(app.clone(), observe::authorize));
    let origins = &app.config.cors_origins;
    let router = match origins.is_empty() {
        true => router,
        false => router.layer(cors(origins)),
    };
    router.layer(axum::middleware::from_fn_with_state(app.clone(), observe))
}

fn cors(origins: &[String]) -> CorsLayer {
    let allow = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok())),
    };
    // The browsers' `*` leaves `authorization` out, so the headers that are asked for are named.
    CorsLayer::new()
        .allow_origin(allow)
        .allow_methods(Any)
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any)
}

fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response {
    // Our own types and JSON values serialise.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    typed(status, "application/json", bytes)
}

fn typed(status: StatusCode, media_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
