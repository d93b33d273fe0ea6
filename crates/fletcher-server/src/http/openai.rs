//! OpenAI's `/v1/embeddings` and `/v1/models`.
//!
//! Beyond OpenAI: `"on_error": "item"` answers a text that cannot be embedded with
//! `"embedding": null` and an `error` beside the others' vectors, and adds `tokens` and `truncated`
//! to each item; without it such a text fails the request, as OpenAI's clients expect.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::rows::{Rows, write_base64, write_floats};
use super::{App, Call, Dialect, json as respond, or_default};
use crate::answer::Answer;
use crate::error::RequestError;
use crate::inputs::JsonInput;
use crate::service::RequestOptions;

#[derive(Debug, Deserialize)]
struct EmbeddingsRequest {
    input: JsonInput,
    model: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
    #[serde(default, deserialize_with = "or_default")]
    on_error: OnError,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnError {
    #[default]
    Fail,
    Item,
}

pub(super) async fn embeddings(app: App, call: Call) -> Result<Response, RequestError> {
    let request: EmbeddingsRequest = call.json()?;
    app.service.check_model(request.model.as_deref())?;
    let inputs = request.input.into_inputs("input")?;
    let options = RequestOptions { dimensions: request.dimensions, ..call.options()? };
    let answer = app.service.embed(inputs, options).await?;
    let per_item = request.on_error == OnError::Item;
    let answer = if per_item { answer } else { answer.strict()? };
    let tokens = answer.tokens();
    let tail = json!({
        "model": app.service.name(),
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    let format = request.encoding_format;
    let rows = Rows {
        before: r#"{"object":"list","data":["#.into(),
        write: move |answer: &Answer, row: usize, text: &mut Vec<u8>| {
            text.extend_from_slice(br#"{"object":"embedding","index":"#);
            text.extend_from_slice(row.to_string().as_bytes());
            text.extend_from_slice(br#","embedding":"#);
            match (answer.vector(row), format) {
                (None, _) => text.extend_from_slice(b"null"),
                (Some(vector), EncodingFormat::Float) => write_floats(vector, text),
                (Some(vector), EncodingFormat::Base64) => write_base64(vector, text),
            }
            if per_item {
                let fields = match &answer.rows[row] {
                    Ok(row) => json!({ "tokens": row.tokens, "truncated": row.truncated }),
                    Err(error) => json!({ "error": error.to_string() }),
                };
                text.push(b',');
                // The object's own closing bracket ends the item.
                text.extend_from_slice(&fields.to_string().as_bytes()[1..]);
                return;
            }
            text.push(b'}');
        },
        after: format!("],{}", tail.to_string().trim_start_matches('{')),
    };
    Ok(rows.respond(answer))
}

fn description(app: &App) -> serde_json::Value {
    json!({ "id": app.service.name(), "object": "model", "created": 0, "owned_by": "fletcher" })
}

pub(super) async fn models(State(app): State<App>) -> Response {
    respond(StatusCode::OK, &json!({ "object": "list", "data": [description(&app)] }))
}

pub(super) async fn model(State(app): State<App>, Path(name): Path<String>) -> Response {
    match app.service.check_model(Some(&name)) {
        Ok(()) => respond(StatusCode::OK, &description(&app)),
        Err(error) => Dialect::OpenAi.refuse(&error),
    }
}
