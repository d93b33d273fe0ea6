//! Cohere's `/v2/embed`.
//!
//! `input_type` picks the model's prompt of that purpose, if it has one. The integer types are made
//! from one vector alone, so that they do not depend on what else is in the request: int8 scales
//! the vector's largest component to 127, uint8 is int8 plus 128; ubinary packs the signs, first
//! component in the highest bit, and binary is ubinary minus 128.

use axum::response::Response;
use fletcher_core::text::Overlong;
use serde::Deserialize;
use serde_json::json;

use super::rows::{Rows, write_base64, write_floats};
use super::{App, Call, or_default};
use crate::answer::Answer;
use crate::error::RequestError;
use crate::inputs::Inputs;
use crate::service::RequestOptions;

#[derive(Debug, Deserialize)]
struct EmbedRequest {
    model: Option<String>,
    input_type: Option<InputType>,
    texts: Option<Vec<String>>,
    inputs: Option<Vec<Content>>,
    images: Option<serde::de::IgnoredAny>,
    max_tokens: Option<u32>,
    output_dimension: Option<usize>,
    embedding_types: Option<Vec<EmbeddingType>>,
    #[serde(default, deserialize_with = "or_default")]
    truncate: Truncate,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum InputType {
    SearchDocument,
    SearchQuery,
    Classification,
    Clustering,
    Image,
}

#[derive(Debug, Deserialize)]
struct Content {
    content: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    text: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EmbeddingType {
    Float,
    Int8,
    Uint8,
    Binary,
    Ubinary,
    Base64,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Truncate {
    None,
    Start,
    #[default]
    End,
}

impl EmbedRequest {
    fn texts(&mut self) -> Result<Vec<String>, RequestError> {
        if self.images.is_some() {
            return Err(RequestError::invalid("`images`: this model embeds texts only"));
        }
        let texts = match (self.texts.take(), self.inputs.take()) {
            (Some(texts), None) => texts,
            (None, Some(inputs)) => {
                let text = |part: Part| {
                    let missing = "`inputs`: this model embeds parts of type `text` only";
                    part.text.ok_or_else(|| RequestError::invalid(missing))
                };
                let joined = |input: Content| {
                    let parts: Result<Vec<_>, _> = input.content.into_iter().map(text).collect();
                    parts.map(|parts| parts.join("\n"))
                };
                inputs.into_iter().map(joined).collect::<Result<_, _>>()?
            }
            _ => return Err(RequestError::invalid("one of `texts` and `inputs` must be given")),
        };
        match texts.is_empty() {
            true => Err(RequestError::Empty { key: "texts".into() }),
            false => Ok(texts),
        }
    }
}

pub(super) async fn embed(app: App, call: Call) -> Result<Response, RequestError> {
    let mut request: EmbedRequest = call.json()?;
    app.service.check_model(request.model.as_deref())?;
    if request.max_tokens.is_some() {
        return Err(RequestError::invalid("`max_tokens` is not supported; use `truncate`"));
    }
    let purposes: &[&str] = match request.input_type {
        None => &[],
        Some(InputType::SearchQuery) => &["search_query", "query"],
        Some(InputType::SearchDocument) => &["search_document", "document", "passage"],
        Some(InputType::Classification) => &["classification", "Classification"],
        Some(InputType::Clustering) => &["clustering", "Clustering"],
        Some(InputType::Image) => {
            return Err(RequestError::invalid("`input_type`: this model embeds texts only"));
        }
    };
    let options = RequestOptions {
        prompt: app.service.prompt_for(purposes),
        overlong: Some(match request.truncate {
            Truncate::None => Overlong::Error,
            Truncate::Start => Overlong::TruncateBeginning,
            Truncate::End => Overlong::Truncate,
        }),
        dimensions: request.output_dimension,
        ..call.options()?
    };
    let texts = request.texts()?;
    let echo = json!(texts).to_string();
    let answer = app.service.embed(Inputs::from(texts), options).await?.strict()?;
    let types = request.embedding_types.unwrap_or_else(|| vec![EmbeddingType::Float]);
    if types.is_empty() {
        return Err(RequestError::Empty { key: "embedding_types".into() });
    }
    let meta = json!({
        "api_version": { "version": "2" },
        "billed_units": { "input_tokens": answer.tokens() },
    });
    let id = format!("{:016x}", crate::hash::hash64(echo.as_bytes()));
    let after =
        format!(r#"}},"texts":{echo},"meta":{meta},"response_type":"embeddings_by_type"}}"#);
    Ok(respond(types, format!(r#"{{"id":"{id}","embeddings":{{"#), after, answer))
}

/// Each type's list of vectors, one after the other. A row of the answer here is one vector in one
/// type, so that long answers are made as they are sent.
fn respond(types: Vec<EmbeddingType>, before: String, after: String, answer: Answer) -> Response {
    if let [only] = types[..] {
        let rows = Rows {
            before: format!("{before}\"{}\":[", only.name()),
            write: move |answer: &Answer, row: usize, text: &mut Vec<u8>| {
                only.write(answer.vector(row).unwrap_or_default(), text);
            },
            after: format!("]{after}"),
        };
        return rows.respond(answer);
    }
    let mut text = before.into_bytes();
    for (index, kind) in types.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        text.extend_from_slice(format!("{comma}\"{}\":[", kind.name()).as_bytes());
        for row in 0..answer.rows.len() {
            if row > 0 {
                text.push(b',');
            }
            kind.write(answer.vector(row).unwrap_or_default(), &mut text);
        }
        text.push(b']');
    }
    text.extend_from_slice(after.as_bytes());
    super::typed(axum::http::StatusCode::OK, "application/json", text)
}

impl EmbeddingType {
    fn name(self) -> &'static str {
        match self {
            EmbeddingType::Float => "float",
            EmbeddingType::Int8 => "int8",
            EmbeddingType::Uint8 => "uint8",
            EmbeddingType::Binary => "binary",
            EmbeddingType::Ubinary => "ubinary",
            EmbeddingType::Base64 => "base64",
        }
    }

    fn write(self, vector: &[f32], text: &mut Vec<u8>) {
        let integers: Vec<i16> = match self {
            EmbeddingType::Float => return write_floats(vector, text),
            EmbeddingType::Base64 => return write_base64(vector, text),
            EmbeddingType::Int8 => int8(vector).collect(),
            EmbeddingType::Uint8 => int8(vector).map(|value| value + 128).collect(),
            EmbeddingType::Ubinary => signs(vector).collect(),
            EmbeddingType::Binary => signs(vector).map(|value| value - 128).collect(),
        };
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(text, &integers);
    }
}

fn int8(vector: &[f32]) -> impl Iterator<Item = i16> {
    let largest = vector.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    vector.iter().map(move |value| (value * scale).round() as i16)
}

fn signs(vector: &[f32]) -> impl Iterator<Item = i16> {
    vector.chunks(8).map(|bits| {
        let bit = |(place, value): (usize, &f32)| i16::from(*value > 0.0) << (7 - place);
        bits.iter().enumerate().map(bit).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_types() {
        let vector = [0.5, -0.25, 0.0, 0.1, -0.5, 0.2, 0.3, -0.1, 0.4];
        let text = |kind: EmbeddingType| {
            let mut text = Vec::new();
            kind.write(&vector, &mut text);
            String::from_utf8(text).unwrap()
        };
        assert_eq!(text(EmbeddingType::Int8), "[127,-64,0,25,-127,51,76,-25,102]");
        assert_eq!(text(EmbeddingType::Uint8), "[255,64,128,153,1,179,204,103,230]");
        // 1001 0110 and 1: what numpy.packbits(v > 0) gives.
        assert_eq!(text(EmbeddingType::Ubinary), "[150,128]");
        assert_eq!(text(EmbeddingType::Binary), "[22,0]");
        assert_eq!(int8(&[0.0]).collect::<Vec<_>>(), [0]);
    }
}
