//! Good requests of every dialect: what fuzzing begins with.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket};
use fletcher_server::grpc::proto;
use futures_util::{TryStreamExt as _, stream};
use prost::Message;
use serde_json::json;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a dialect's requests travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Http,
    /// Frames of HTTP/2, each with five bytes in front.
    Grpc,
}

/// A dialect with its good requests: path, media type and body.
pub(crate) struct Dialect {
    pub(crate) name: &'static str,
    pub(crate) way: Way,
    pub(crate) requests: Vec<(&'static str, &'static str, Vec<u8>)>,
}

/// All dialects.
pub(crate) async fn all() -> Result<Vec<Dialect>, Failure> {
    const JSON: &str = "application/json";
    let json =
        |path: &'static str, value: serde_json::Value| (path, JSON, value.to_string().into());
    let http = |name, requests| Dialect { name, way: Way::Http, requests };
    let grpc = |name, requests| Dialect { name, way: Way::Grpc, requests };
    let arrow = [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)];
    let arrow =
        arrow.map(|compression| arrow_stream(compression).map(|body| ("/encode/arrow", "", body)));
    let cbor = |texts: &[&str]| {
        let mut body = Vec::new();
        ciborium::into_writer(texts, &mut body).map(|()| ("/encode", "application/cbor", body))
    };
    Ok(vec![
        http(
            "openai",
            vec![
                json("/v1/embeddings", json!({ "input": ["a fox", "日本語"], "model": "default" })),
                json("/v1/embeddings", json!({ "input": [[1, 2, 3], [4]], "dimensions": 2 })),
                json(
                    "/v1/embeddings",
                    json!({ "input": "x", "encoding_format": "base64", "on_error": "item", "user": "u" }),
                ),
            ],
        ),
        http(
            "tei",
            vec![
                json(
                    "/embed",
                    json!({ "inputs": ["a", "b"], "truncate": true, "normalize": false }),
                ),
                json(
                    "/",
                    json!({ "inputs": "a", "truncation_direction": "Left", "dimensions": 3 }),
                ),
                json("/embed_all", json!({ "inputs": "some words" })),
                json(
                    "/similarity",
                    json!({ "inputs": { "source_sentence": "a", "sentences": ["b", "c"] } }),
                ),
                json("/tokenize", json!({ "inputs": "some words", "add_special_tokens": false })),
                json("/decode", json!({ "ids": [[1, 2, 3]], "skip_special_tokens": true })),
            ],
        ),
        http(
            "cohere",
            vec![
                json(
                    "/v2/embed",
                    json!({ "texts": ["a", "b"], "model": "default", "input_type": "search_query",
                        "embedding_types": ["float", "int8", "ubinary"], "truncate": "START" }),
                ),
                json(
                    "/v2/embed",
                    json!({ "inputs": [{ "content": [{ "type": "text", "text": "a" }] }],
                        "input_type": "classification", "output_dimension": 4 }),
                ),
            ],
        ),
        http(
            "ollama",
            vec![
                json(
                    "/api/embed",
                    json!({ "model": "default", "input": ["a", "b"], "truncate": true }),
                ),
                json("/api/embeddings", json!({ "model": "default", "prompt": "a" })),
            ],
        ),
        http("cbor", vec![cbor(&["a", "b c"])?, cbor(&["日本語"])?]),
        http("arrow", arrow.into_iter().collect::<Result<_, _>>()?),
        grpc("grpc", tei_v1()),
        grpc("flight", flight().await?),
    ])
}

/// A message with its five bytes in front.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

fn tei_v1() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let inputs = || "a fox and 日本語".to_owned();
    let embed = proto::EmbedRequest {
        inputs: inputs(),
        truncate: true,
        normalize: Some(false),
        dimensions: Some(3),
        ..Default::default()
    };
    let all = proto::EmbedAllRequest { inputs: inputs(), ..Default::default() };
    let tokens =
        proto::EncodeRequest { inputs: inputs(), add_special_tokens: true, ..Default::default() };
    let ids = proto::DecodeRequest { ids: vec![1, 2, 3], skip_special_tokens: false };
    let embed = framed(&embed.encode_to_vec());
    vec![
        ("/tei.v1.Embed/EmbedStream", "", [&embed[..], &embed, &embed].concat()),
        ("/tei.v1.Embed/Embed", "", embed),
        ("/tei.v1.Embed/EmbedAll", "", framed(&all.encode_to_vec())),
        ("/tei.v1.Tokenize/Tokenize", "", framed(&tokens.encode_to_vec())),
        ("/tei.v1.Tokenize/Decode", "", framed(&ids.encode_to_vec())),
        ("/tei.v1.Info/Info", "", framed(&[])),
    ]
}

fn batch() -> Result<RecordBatch, Failure> {
    let texts: ArrayRef =
        StringArray::from(vec![Some("a fox"), Some("日本語"), Some("")]).slice(0, 3).into_arc();
    let ids: ArrayRef = Int64Array::from(vec![Some(1), None, Some(3)]).into_arc();
    Ok(RecordBatch::try_from_iter([("id", ids), ("text", texts)])?)
}

/// Arrays as shared ones.
trait IntoArc {
    fn into_arc(self) -> ArrayRef;
}

impl<A: arrow::array::Array + 'static> IntoArc for A {
    fn into_arc(self) -> ArrayRef {
        std::sync::Arc::new(self)
    }
}

fn arrow_stream(compression: Option<CompressionType>) -> Result<Vec<u8>, Failure> {
    let options = IpcWriteOptions::default().try_with_compression(compression)?;
    let batch = batch()?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options)?;
    writer.write(&batch)?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

async fn flight() -> Result<Vec<(&'static str, &'static str, Vec<u8>)>, Failure> {
    let stream = async |path: &[&str]| {
        let path = path.iter().map(ToString::to_string).collect();
        let encoded = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(FlightDescriptor::new_path(path)))
            .build(stream::iter([batch(), batch()].map(|batch| {
                Ok(batch.unwrap_or_else(|_| {
                    RecordBatch::new_empty(arrow::datatypes::Schema::empty().into())
                }))
            })));
        let frames: Vec<FlightData> = encoded.try_collect().await?;
        Ok::<_, Failure>(frames.iter().flat_map(|frame| framed(&frame.encode_to_vec())).collect())
    };
    let action = |kind: &str| Action { r#type: kind.into(), body: "set".into() };
    let descriptor = FlightDescriptor::new_path(vec!["set".into()]);
    let ticket = Ticket { ticket: "set".into() };
    let name = |call: &'static str| call;
    Ok(vec![
        (name("/arrow.flight.protocol.FlightService/DoExchange"), "", stream(&["embed"]).await?),
        (
            "/arrow.flight.protocol.FlightService/DoExchange",
            "",
            stream(&["embed", "{\"on_error\":\"null\",\"dimensions\":3}"]).await?,
        ),
        ("/arrow.flight.protocol.FlightService/DoPut", "", stream(&["set"]).await?),
        ("/arrow.flight.protocol.FlightService/DoGet", "", framed(&ticket.encode_to_vec())),
        (
            "/arrow.flight.protocol.FlightService/GetFlightInfo",
            "",
            framed(&descriptor.encode_to_vec()),
        ),
        (
            "/arrow.flight.protocol.FlightService/DoAction",
            "",
            framed(&action("drop_dataset").encode_to_vec()),
        ),
        (
            "/arrow.flight.protocol.FlightService/DoAction",
            "",
            framed(&action("models").encode_to_vec()),
        ),
        ("/arrow.flight.protocol.FlightService/ListFlights", "", framed(&[])),
        ("/arrow.flight.protocol.FlightService/ListActions", "", framed(&[])),
    ])
}
