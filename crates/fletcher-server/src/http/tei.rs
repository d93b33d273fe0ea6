//! Text Embeddings Inference's routes, with its error words and its `x-compute-*` headers.
//!
//! As there, vectors are given unit length unless `normalize` is false, token ids are taken as they
//! are, and `POST /` is `/embed` (or `/similarity`, by the shape of its inputs).

use std::ops::Range;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use fletcher_core::embedder::Prompt;
use fletcher_core::text::{Overlong, TextToken};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rows::{Rows, write_floats};
use super::{App, Call, json as respond, or_default};
use crate::answer::{Answer, Timings};
use crate::error::{ItemError, RequestError};
use crate::inputs::{Input, Inputs, Item, JsonInput};
use crate::service::{RequestOptions, Service, blocking};

// The text parameters stand here once more: an error in what serde flattens does not say where.
#[derive(Debug, Deserialize)]
struct EmbedRequest {
    inputs: JsonInput,
    truncate: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    truncation_direction: Direction,
    prompt_name: Option<String>,
    normalize: Option<bool>,
    dimensions: Option<usize>,
}

impl EmbedRequest {
    fn split(self) -> (JsonInput, TextParameters, Option<bool>, Option<usize>) {
        let Self { truncate, truncation_direction, prompt_name, .. } = self;
        let text = TextParameters { truncate, truncation_direction, prompt_name };
        (self.inputs, text, self.normalize, self.dimensions)
    }
}

#[derive(Debug, Default, Deserialize)]
struct TextParameters {
    truncate: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    truncation_direction: Direction,
    prompt_name: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Direction {
    #[default]
    #[serde(alias = "right")]
    Right,
    #[serde(alias = "left")]
    Left,
}

/// What TEI's truncation parameters mean; with neither said, the server's choice.
pub(crate) fn overlong(truncate: Option<bool>, direction: Direction) -> Option<Overlong> {
    match (truncate, direction) {
        (Some(false), _) => Some(Overlong::Error),
        (_, Direction::Left) => Some(Overlong::TruncateBeginning),
        (Some(true), Direction::Right) => Some(Overlong::Truncate),
        (None, Direction::Right) => None,
    }
}

impl TextParameters {
    fn apply(self, options: RequestOptions) -> RequestOptions {
        RequestOptions {
            overlong: overlong(self.truncate, self.truncation_direction),
            prompt: self.prompt_name.map(Prompt::Named),
            ..options
        }
    }
}

pub(super) async fn root(app: App, call: Call) -> Result<Response, RequestError> {
    #[derive(Deserialize)]
    struct Shape {
        inputs: Value,
    }
    match call.json::<Shape>()?.inputs.is_object() {
        true => similarity(app, call).await,
        false => embed(app, call).await,
    }
}

pub(super) async fn embed(app: App, call: Call) -> Result<Response, RequestError> {
    let (inputs, text, normalize, dimensions) = call.json::<EmbedRequest>()?.split();
    let inputs = inputs.into_inputs("inputs")?;
    let options = RequestOptions {
        normalize: Some(normalize.unwrap_or(true)),
        dimensions,
        ..text.apply(call.options()?)
    };
    let answer = app.service.embed(inputs, options).await?.strict()?;
    let (characters, tokens, timings) = (answer.characters, answer.tokens(), answer.timings);
    let write = |answer: &Answer, row: usize, text: &mut Vec<u8>| {
        write_floats(answer.vector(row).unwrap_or_default(), text);
    };
    let rows = Rows { before: "[".into(), write, after: "]".into() };
    Ok(with_timings(&app, rows.respond(answer), characters, tokens, timings))
}

fn with_timings(
    app: &App,
    mut response: Response,
    characters: usize,
    tokens: usize,
    timings: Timings,
) -> Response {
    let headers = response.headers_mut();
    if let Ok(device) = HeaderValue::from_str(&app.service.config().device) {
        headers.insert("x-compute-type", device);
    }
    let millis = |duration: std::time::Duration| duration.as_millis() as u64;
    for (name, value) in [
        ("x-compute-time", millis(timings.total)),
        ("x-compute-characters", characters as u64),
        ("x-compute-tokens", tokens as u64),
        ("x-total-time", millis(timings.total)),
        ("x-tokenization-time", millis(timings.tokenize)),
        ("x-queue-time", millis(timings.queue)),
        ("x-inference-time", millis(timings.inference)),
    ] {
        headers.insert(name, HeaderValue::from(value));
    }
    response
}

pub(super) async fn embed_all(app: App, call: Call) -> Result<Response, RequestError> {
    // Token states have neither unit length nor fewer dimensions, here as in TEI.
    let (inputs, text, _, _) = call.json::<EmbedRequest>()?.split();
    let inputs = inputs.into_inputs("inputs")?;
    let characters = inputs.texts().map(|text| text.chars().count()).sum();
    let hidden = app.service.hidden(inputs, text.apply(call.options()?)).await?;
    let tokens = hidden.states.iter().map(|(tokens, _)| tokens).sum();
    let mut text = Vec::from(b"[");
    for (index, (_, states)) in hidden.states.iter().enumerate() {
        text.extend_from_slice(if index > 0 { b",[" } else { b"[" });
        for (token, state) in states.chunks_exact(hidden.width).enumerate() {
            if token > 0 {
                text.push(b',');
            }
            write_floats(state, &mut text);
        }
        text.push(b']');
    }
    text.push(b']');
    let response = super::typed(StatusCode::OK, "application/json", text);
    Ok(with_timings(&app, response, characters, tokens, hidden.timings))
}

pub(super) async fn similarity(app: App, call: Call) -> Result<Response, RequestError> {
    #[derive(Deserialize)]
    struct SimilarityRequest {
        inputs: Pair,
        #[serde(default, deserialize_with = "or_default")]
        parameters: TextParameters,
    }
    #[derive(Deserialize)]
    struct Pair {
        source_sentence: String,
        sentences: Vec<String>,
    }
    let request: SimilarityRequest = call.json()?;
    if request.inputs.sentences.is_empty() {
        return Err(RequestError::Empty { key: "sentences".into() });
    }
    let mut texts = vec![request.inputs.source_sentence];
    texts.extend(request.inputs.sentences);
    let options =
        RequestOptions { normalize: Some(true), ..request.parameters.apply(call.options()?) };
    let answer = app.service.embed(texts.into(), options).await?.strict()?;
    let source = answer.vector(0).unwrap_or_default();
    let cosine = |row| {
        let other = answer.vector(row).unwrap_or_default();
        source.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
    };
    let cosines: Vec<f32> = (1..answer.rows.len()).map(cosine).collect();
    let response = respond(StatusCode::OK, &cosines);
    Ok(with_timings(&app, response, answer.characters, answer.tokens(), answer.timings))
}

/// A token as TEI describes it: its part of the text, prompt included, and where that begins and
/// ends in bytes. Where that is not known it is the vocabulary's piece, as for a special token.
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) text: String,
    pub(crate) special: bool,
    pub(crate) bytes: Option<Range<usize>>,
}

/// The tokens of each input, untruncated.
pub(crate) async fn tokens(
    service: &Service,
    inputs: Inputs,
    special: bool,
    prompt: Option<String>,
) -> Result<Vec<Vec<Token>>, RequestError> {
    let service = service.clone();
    blocking(move || {
        let model = service.embedder().model();
        let prompt = prompt.map_or(service.config().prompt.clone(), Prompt::Named);
        let prompt = service.embedder().prompt_text(&prompt)?;
        let describe = |TextToken { id, added, bytes }: TextToken, text: &str| {
            let found = bytes.as_ref().and_then(|bytes| text.get(bytes.clone()));
            let piece = || model.text().token(id).unwrap_or_default();
            let is_special = || model.text().special_ids().binary_search(&id).is_ok();
            Token {
                id,
                text: found.map_or_else(piece, str::to_owned),
                // One that the text spells out is part of the text.
                special: added || bytes.is_none() && is_special(),
                bytes,
            }
        };
        let one = |index: usize| {
            let failed = |error| RequestError::Item { index, error: ItemError::from(error) };
            let (text, tokens) = match inputs.get(index) {
                Input::Text(text) => {
                    let text = [prompt, text].concat();
                    let tokens = model.text().all_tokens(&text, special).map_err(failed)?;
                    (text, tokens)
                }
                Input::Ids(ids) => {
                    let token = |&id| TextToken { id, added: false, bytes: None };
                    (String::new(), ids.iter().map(token).collect())
                }
                Input::Null => (String::new(), Vec::new()),
            };
            Ok(tokens.into_iter().map(|token| describe(token, &text)).collect())
        };
        (0..inputs.len()).map(one).collect()
    })
    .await?
}

pub(super) async fn tokenize(app: App, call: Call) -> Result<Response, RequestError> {
    #[derive(Deserialize)]
    struct TokenizeRequest {
        inputs: JsonInput,
        add_special_tokens: Option<bool>,
        prompt_name: Option<String>,
    }
    let request: TokenizeRequest = call.json()?;
    let inputs = request.inputs.into_inputs("inputs")?;
    let (special, prompt) = (request.add_special_tokens.unwrap_or(true), request.prompt_name);
    let tokens = tokens(&app.service, inputs, special, prompt).await?;
    let describe = |token: &Token| {
        let Token { id, text, special, bytes } = token;
        let (start, stop) = (bytes.as_ref().map(|b| b.start), bytes.as_ref().map(|b| b.end));
        json!({ "id": id, "text": text, "special": special, "start": start, "stop": stop })
    };
    let lists: Vec<Vec<Value>> =
        tokens.iter().map(|tokens| tokens.iter().map(describe).collect()).collect();
    Ok(respond(StatusCode::OK, &lists))
}

pub(super) async fn decode(app: App, call: Call) -> Result<Response, RequestError> {
    #[derive(Deserialize)]
    struct DecodeRequest {
        ids: JsonInput,
        skip_special_tokens: Option<bool>,
    }
    let request: DecodeRequest = call.json()?;
    let ids = |item: Item| match item {
        Item::Ids(ids) => Ok(ids),
        Item::Text(_) => Err(RequestError::invalid("`ids` must be token ids")),
    };
    let lists = request.ids.items.into_iter().map(ids).collect::<Result<Vec<_>, _>>()?;
    let skip = request.skip_special_tokens.unwrap_or(true);
    let texts = decode_ids(&app.service, lists, skip).await?;
    Ok(respond(StatusCode::OK, &texts))
}

/// The texts that ids stand for.
pub(crate) async fn decode_ids(
    service: &Service,
    lists: Vec<Vec<u32>>,
    skip_special: bool,
) -> Result<Vec<String>, RequestError> {
    let service = service.clone();
    blocking(move || {
        let decode = |(index, ids): (usize, &Vec<u32>)| {
            let checked =
                match ids.iter().find(|id| **id > service.embedder().model().text().largest_id()) {
                    Some(id) => Err(ItemError::Text {
                        message: format!("token id {id} is not in the vocabulary"),
                    }),
                    None => service
                        .embedder()
                        .model()
                        .text()
                        .decode_with(ids, skip_special)
                        .map_err(ItemError::from),
                };
            checked.map_err(|error| RequestError::Item { index, error })
        };
        lists.iter().enumerate().map(decode).collect()
    })
    .await?
}

pub(super) async fn info(State(app): State<App>) -> Response {
    let service = &app.service;
    let (embedder, config) = (service.embedder(), service.config());
    let model = embedder.model();
    let pooling = model.head().poolings().first().map(|pooling| match pooling {
        fletcher_core::Pooling::Cls => "cls",
        fletcher_core::Pooling::LastToken => "last_token",
        fletcher_core::Pooling::Max => "max",
        _ => "mean",
    });
    respond(
        StatusCode::OK,
        &json!({
            "model_id": service.name(),
            "model_sha": null,
            "model_dtype": config.dtype,
            "served_model_name": service.name(),
            "model_type": { "embedding": { "pooling": pooling } },
            "max_concurrent_requests": config.queue_tokens,
            "max_input_length": model.max_tokens(),
            "max_batch_tokens": embedder.block_tokens(),
            "max_batch_requests": null,
            "max_client_batch_size": config.max_rows,
            "auto_truncate": config.overlong != Overlong::Error,
            "tokenization_workers": embedder.threads(),
            "version": env!("CARGO_PKG_VERSION"),
            "sha": null,
            "docker_label": null,
            "fingerprint": service.fingerprint(),
            "dimensions": embedder.dim(),
            "normalized": model.head().normalized(),
            "prompts": model.prompts().by_name.keys().collect::<Vec<_>>(),
        }),
    )
}
