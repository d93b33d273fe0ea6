//! Ollama's `/api/embed`, the older `/api/embeddings`, and what its clients ask besides.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use fletcher_core::text::Overlong;
use serde::Deserialize;
use serde_json::json;

use super::rows::{Rows, write_floats};
use super::{App, Call, json as respond};
use crate::answer::Answer;
use crate::error::RequestError;
use crate::inputs::JsonInput;
use crate::service::RequestOptions;

pub(super) async fn embed(app: App, call: Call) -> Result<Response, RequestError> {
    #[derive(Deserialize)]
    struct EmbedRequest {
        model: Option<String>,
        input: JsonInput,
        truncate: Option<bool>,
        dimensions: Option<usize>,
    }
    let request: EmbedRequest = call.json()?;
    app.service.check_model(request.model.as_deref())?;
    let overlong = request.truncate.map(|truncate| match truncate {
        true => Overlong::Truncate,
        false => Overlong::Error,
    });
    // Some clients send 0 for "all of them".
    let dimensions = request.dimensions.filter(|dimensions| *dimensions > 0);
    let options = RequestOptions { overlong, dimensions, ..call.options()? };
    let answer = app.service.embed(request.input.into_inputs("input")?, options).await?.strict()?;
    let name = json!(request.model.as_deref().unwrap_or(app.service.name()));
    let (nanos, tokens) = (answer.timings.total.as_nanos(), answer.tokens());
    let write = |answer: &Answer, row: usize, text: &mut Vec<u8>| {
        write_floats(answer.vector(row).unwrap_or_default(), text);
    };
    let rows = Rows {
        before: format!(r#"{{"model":{name},"embeddings":["#),
        write,
        after: format!(
            r#"],"total_duration":{nanos},"load_duration":0,"prompt_eval_count":{tokens}}}"#
        ),
    };
    Ok(rows.respond(answer))
}

pub(super) async fn embeddings(app: App, call: Call) -> Result<Response, RequestError> {
    #[derive(Deserialize)]
    struct EmbeddingsRequest {
        model: Option<String>,
        prompt: String,
    }
    let request: EmbeddingsRequest = call.json()?;
    app.service.check_model(request.model.as_deref())?;
    let answer = app.service.embed(vec![request.prompt].into(), call.options()?).await?.strict()?;
    let write = |answer: &Answer, row: usize, text: &mut Vec<u8>| {
        write_floats(answer.vector(row).unwrap_or_default(), text);
    };
    Ok(Rows { before: r#"{"embedding":"#.into(), write, after: "}".into() }.respond(answer))
}

pub(super) async fn tags(State(app): State<App>) -> Response {
    let model = app.service.embedder().model();
    let family = model.architecture();
    let described = json!({
        "name": app.service.name(),
        "model": app.service.name(),
        "modified_at": "1970-01-01T00:00:00Z",
        "size": 4 * model.parameters(),
        "digest": app.service.fingerprint(),
        "details": {
            "parent_model": "", "format": "safetensors", "family": family, "families": [family],
            "parameter_size": model.parameters().to_string(), "quantization_level": "F32",
        },
    });
    respond(StatusCode::OK, &json!({ "models": [described] }))
}

pub(super) async fn version() -> Response {
    respond(StatusCode::OK, &json!({ "version": env!("CARGO_PKG_VERSION") }))
}
