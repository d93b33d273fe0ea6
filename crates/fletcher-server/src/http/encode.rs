//! Binary bodies: `/encode` takes CBOR, `/encode/arrow` an Arrow IPC stream.
//!
//! `?dataset=NAME` stores what was embedded, in memory or at the forwarding target; the answer then
//! comes after it is stored.

use arrow::ipc::writer::StreamWriter;
use axum::http::StatusCode;
use axum::response::Response;
use fletcher_core::embedder::Prompt;
use serde::{Deserialize, Serialize};

use super::{App, Call, typed};
use crate::columns::{self, ColumnOptions, Number};
use crate::error::RequestError;
use crate::ipc;
use crate::json::in_json_words;
use crate::service::{RequestOptions, blocking};

#[derive(Debug, Deserialize)]
struct CborQuery {
    /// The model's prompt of this name.
    task: Option<String>,
    dimensions: Option<Number>,
    dataset: Option<String>,
}

/// One entry per text in every list.
#[derive(Serialize)]
struct CborAnswer<'a> {
    model: &'a str,
    fingerprint: &'a str,
    vectors: Vec<Option<&'a [f32]>>,
    tokens: Vec<usize>,
    truncated: Vec<bool>,
    errors: Vec<Option<String>>,
}

pub(super) async fn cbor(app: App, call: Call) -> Result<Response, RequestError> {
    let query: CborQuery = call.query()?;
    let texts: Vec<String> = ciborium::from_reader(&call.body[..]).map_err(not_cbor)?;
    if texts.is_empty() {
        return Err(RequestError::Empty { key: "the list".into() });
    }
    let options = RequestOptions {
        prompt: query.task.map(Prompt::Named),
        dimensions: query.dimensions.map(|Number(dimensions)| dimensions),
        ..call.options()?
    };
    let kept = query.dataset.as_ref().map(|_| texts.clone());
    let answer = app.service.embed(texts.into(), options.clone()).await?;
    if let (Some(dataset), Some(texts)) = (query.dataset, kept) {
        let embedded = columns::from_texts(&app.service, texts, &answer, &options)?;
        app.datasets.append(&dataset, embedded).await?;
    }
    let rows = answer.rows.iter();
    let encoded = CborAnswer {
        model: app.service.name(),
        fingerprint: app.service.fingerprint(),
        vectors: (0..rows.len()).map(|row| answer.vector(row)).collect(),
        tokens: rows.clone().map(|row| row.as_ref().map_or(0, |row| row.tokens)).collect(),
        truncated: rows.clone().map(|row| row.as_ref().is_ok_and(|row| row.truncated)).collect(),
        errors: rows.map(|row| row.as_ref().err().map(ToString::to_string)).collect(),
    };
    let mut bytes = Vec::new();
    let failed =
        |error: ciborium::ser::Error<_>| RequestError::Engine { message: error.to_string() };
    ciborium::into_writer(&encoded, &mut bytes).map_err(failed)?;
    Ok(typed(StatusCode::OK, "application/cbor", bytes))
}

/// Beside [`ColumnOptions`], which are asked for by themselves: an error in what serde flattens
/// does not say where.
#[derive(Debug, Deserialize)]
struct ArrowQuery {
    dataset: Option<String>,
}

pub(super) async fn arrow(app: App, call: Call) -> Result<Response, RequestError> {
    let (query, columns) = (call.query::<ArrowQuery>()?, call.query::<ColumnOptions>()?);
    let body = call.body.clone();
    let (schema, batches) = blocking(move || ipc::read_stream(body)).await?.map_err(malformed)?;
    let plan = columns.plan(&app.service, &schema)?;
    let mut options = plan.options.clone();
    let headers = call.options()?;
    (options.lane, options.deadline) = (headers.lane, headers.deadline);
    options.context = headers.context;
    let mut embedded = Vec::with_capacity(batches.len());
    for batch in batches {
        let done = plan.embed(&app.service, batch, options.clone()).await?;
        embedded.push(done);
        // The rest of an admitted request waits for room instead of being refused half-way.
        options.patient = true;
    }
    if let Some(dataset) = query.dataset {
        for embedded in &embedded {
            app.datasets.append(&dataset, embedded.clone()).await?;
        }
    }
    let schema = plan.schema.clone();
    let bytes = blocking(move || {
        let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
        embedded.iter().try_for_each(|embedded| writer.write(&embedded.batch))?;
        writer.into_inner()
    });
    let failed =
        |error: arrow::error::ArrowError| RequestError::Engine { message: error.to_string() };
    let bytes = bytes.await?.map_err(failed)?;
    Ok(typed(StatusCode::OK, "application/vnd.apache.arrow.stream", bytes))
}

/// ciborium's own messages are Rust's way of printing its error type.
fn not_cbor(error: ciborium::de::Error<std::io::Error>) -> RequestError {
    use ciborium::de::Error;
    let problem = match error {
        Error::Io(error) => format!("it ends too early ({error})"),
        Error::Syntax(at) => format!("byte {at} is not CBOR"),
        Error::Semantic(_, message) => in_json_words(&message),
        Error::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    };
    RequestError::invalid(format!("the body must be CBOR: a list of texts; {problem}"))
}

fn malformed(error: arrow::error::ArrowError) -> RequestError {
    RequestError::invalid(format!("the body must be an Arrow IPC stream: {error}"))
}
