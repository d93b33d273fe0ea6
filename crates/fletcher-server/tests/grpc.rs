//! tei.v1, health, reflection and Flight on loopback: the vectors are the engine's.

mod common;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array as _, ArrayRef, AsArray, DictionaryArray, Int64Array, LargeStringArray, RecordBatch,
    StringArray, StringViewArray,
};
use arrow::datatypes::{Float32Type, Int32Type};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightClient, FlightData, FlightDescriptor, Ticket};
use bytes::Bytes;
use common::{Running, Setup, vectors};
use fletcher_backend::DeviceChoice;
use fletcher_core::embedder::EmbedOptions;
use fletcher_core::text::Overlong;
use fletcher_server::auth::ApiKeys;
use fletcher_server::grpc::proto;
use fletcher_server::{ServerConfig, ServiceConfig};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tonic::transport::Channel;
use tonic::{Code, Request};

const TEXTS: [&str; 3] = ["The quick brown fox", "jumps", "日本語 and a longer text"];

fn with_keys(change: impl FnOnce(&mut ServerConfig)) -> Setup {
    let mut setup = Setup::default();
    change(&mut setup.server);
    setup
}

async fn channel(server: &Running) -> Channel {
    Channel::from_shared(server.grpc()).unwrap().connect().await.unwrap()
}

fn text(inputs: &str) -> proto::EmbedRequest {
    proto::EmbedRequest { inputs: inputs.into(), truncate: true, ..Default::default() }
}

#[test]
fn tei_v1() {
    let server = Setup::default().start();
    let expected = server.vectors(&TEXTS);
    server.runtime().block_on(async {
        let channel = channel(&server).await;
        let mut embed = proto::embed_client::EmbedClient::new(channel.clone());
        let answer = embed.embed(text(TEXTS[0])).await.unwrap();
        let fingerprint = answer.metadata().get("x-fletcher-fingerprint").unwrap();
        assert_eq!(fingerprint.to_str().unwrap(), server.service.fingerprint());
        let answer = answer.into_inner();
        assert_eq!(answer.embeddings, expected[0]);
        assert!(answer.metadata.unwrap().compute_tokens > 2);

        let texts: Vec<proto::EmbedRequest> = (0..1000).map(|i| text(TEXTS[i % 3])).collect();
        let answers = embed.embed_stream(stream::iter(texts)).await.unwrap().into_inner();
        let answers: Vec<_> = answers.try_collect().await.unwrap();
        assert_eq!(answers.len(), 1000);
        for (i, answer) in answers.iter().enumerate() {
            assert_eq!(answer.embeddings, expected[i % 3]);
        }
        let raw =
            proto::EmbedRequest { normalize: Some(false), dimensions: Some(4), ..text(TEXTS[0]) };
        assert_eq!(embed.embed(raw).await.unwrap().into_inner().embeddings.len(), 4);

        let all = proto::EmbedAllRequest { inputs: TEXTS[1].into(), ..Default::default() };
        let all = embed.embed_all(all).await.unwrap().into_inner();
        let mut tokenize = proto::tokenize_client::TokenizeClient::new(channel.clone());
        let encode = proto::EncodeRequest {
            inputs: TEXTS[1].into(),
            add_special_tokens: true,
            ..Default::default()
        };
        let tokens = tokenize.tokenize(encode).await.unwrap().into_inner().tokens;
        assert_eq!(all.token_embeddings.len(), tokens.len());
        assert!(tokens[0].special && tokens[0].text == "[CLS]" && tokens[0].start.is_none());
        let found = &tokens[1..tokens.len() - 1];
        assert_eq!(found.iter().map(|token| &token.text[..]).collect::<String>(), "jumps");
        assert_eq!((found[0].start, found[found.len() - 1].stop), (Some(0), Some(5)));
        let ids = tokens.iter().map(|token| token.id).collect();
        let decode = proto::DecodeRequest { ids, skip_special_tokens: true };
        assert_eq!(tokenize.decode(decode).await.unwrap().into_inner().text, "jumps");

        let mut info = proto::info_client::InfoClient::new(channel.clone());
        let info = info.info(proto::InfoRequest {}).await.unwrap().into_inner();
        assert_eq!(
            (info.max_input_length, info.model_sha.as_deref()),
            (64, Some(server.service.fingerprint()))
        );

        // An over-long text ends a stream at its place, and a single call.
        let long = proto::EmbedRequest { inputs: "w ".repeat(200), ..Default::default() };
        let texts = vec![text(TEXTS[0]), long.clone(), text(TEXTS[1])];
        let mut answers = embed.embed_stream(stream::iter(texts)).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().embeddings, expected[0]);
        assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(embed.embed(long).await.unwrap_err().code(), Code::InvalidArgument);
        let mut hurried = Request::new(text(TEXTS[0]));
        hurried.metadata_mut().insert("x-fletcher-deadline-ms", "0".parse().unwrap());
        assert_eq!(embed.embed(hurried).await.unwrap_err().code(), Code::DeadlineExceeded);
    });
}

#[test]
fn health_and_reflection() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let mut server = Setup::default().start();
    server.runtime().block_on(async {
        let channel = channel(&server).await;
        let mut health = HealthClient::new(channel.clone());
        for service in ["", "tei.v1.Embed", "arrow.flight.protocol.FlightService"] {
            let mut status = 0;
            for _ in 0..50 {
                let asked = health.check(HealthCheckRequest { service: service.into() }).await;
                status = asked.unwrap().into_inner().status;
                if status == 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(status, 1, "{service}");
        }
        let mut reflection = ServerReflectionClient::new(channel);
        let list = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers =
            reflection.server_reflection_info(stream::iter([list])).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("no list")
        };
        let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        for name in ["tei.v1.Embed", "tei.v1.Info", "tei.v1.Tokenize", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
        }
    });
    server.signal_stop();
    server.wait();
}

fn batch(texts: &[Option<&str>], first: i64) -> RecordBatch {
    let ids = Int64Array::from_iter_values(first..first + texts.len() as i64);
    let kinds: DictionaryArray<Int32Type> = texts.iter().map(|_| Some("kind")).collect();
    RecordBatch::try_from_iter([
        ("id", Arc::new(ids) as ArrayRef),
        ("text", Arc::new(StringArray::from(texts.to_vec())) as ArrayRef),
        ("kind", Arc::new(kinds) as ArrayRef),
    ])
    .unwrap()
}

/// The frames of batches under a path.
async fn frames(path: &[&str], batches: Vec<RecordBatch>) -> Vec<FlightData> {
    let descriptor = FlightDescriptor::new_path(path.iter().map(ToString::to_string).collect());
    FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(descriptor))
        .with_dictionary_handling(arrow_flight::encode::DictionaryHandling::Resend)
        .build(stream::iter(batches.into_iter().map(Ok)))
        .try_collect()
        .await
        .unwrap()
}

fn check_vectors(batch: &RecordBatch, row: usize, expected: &[f32]) {
    let vectors = batch.column_by_name("vector").unwrap().as_fixed_size_list();
    assert_eq!(vectors.value(row).as_primitive::<Float32Type>().values(), expected);
}

#[test]
fn exchange() {
    let server = Setup::default().start();
    let expected = server.vectors(&TEXTS);
    let long = "w ".repeat(200);
    server.runtime().block_on(async {
        let mut client = FlightClient::new(channel(&server).await);
        let texts: Vec<Option<&str>> = TEXTS.iter().map(|text| Some(*text)).collect();
        let batches: Vec<RecordBatch> =
            (0..20).map(|i| batch(&texts[..1 + i % 3], 10 * i as i64)).collect();
        let model = server.service.name();
        for path in [&["embed"][..], &["embed", model]] {
            let sent = frames(path, batches.clone()).await;
            let answer = client.do_exchange(stream::iter(sent.into_iter().map(Ok))).await.unwrap();
            let found: Vec<RecordBatch> = answer.try_collect().await.unwrap();
            assert_eq!(found.len(), batches.len());
            let schema = found[0].schema();
            assert_eq!(schema.metadata()["fletcher.fingerprint"], server.service.fingerprint());
            for (found, sent) in found.iter().zip(&batches) {
                assert_eq!(found.columns()[..3], sent.columns()[..]);
                (0..sent.num_rows()).for_each(|row| check_vectors(found, row, &expected[row]));
            }
        }
        // Options, and app metadata that comes back.
        let options = r#"{"column":"body","vector_column":"v","dimensions":4,"on_error":"null","truncate":false}"#;
        let columns: [(&str, ArrayRef); 3] = [
            ("body", Arc::new(StringViewArray::from(vec![Some("a"), None, Some(&long)]))),
            ("body", Arc::new(LargeStringArray::from(vec![Some("a"), None, Some(&long)]))),
            ("body", Arc::new(vec![Some("a"), None, Some(&long[..])].into_iter().collect::<DictionaryArray<Int32Type>>())),
        ];
        for column in columns {
            let one = (column.0, column.1.clone(), true);
            let one = RecordBatch::try_from_iter_with_nullable([one]).unwrap();
            let mut sent = frames(&["embed", options], vec![one]).await;
            sent.last_mut().unwrap().app_metadata = Bytes::from_static(b"seven");
            let mut raw = FlightServiceClient::new(channel(&server).await);
            let answer = raw.do_exchange(stream::iter(sent)).await.unwrap().into_inner();
            let received: Vec<FlightData> = answer.try_collect().await.unwrap();
            assert_eq!(&received.last().unwrap().app_metadata[..], b"seven");
            let decoded = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(
                stream::iter(received.into_iter().map(Ok)),
            );
            let found: Vec<RecordBatch> = decoded.try_collect().await.unwrap();
            assert_eq!(found[0].column_by_name("body").unwrap(), &column.1);
            let vectors = found[0].column_by_name("v").unwrap().as_fixed_size_list();
            assert_eq!((vectors.value_length(), vectors.null_count()), (4, 2));
            let errors = found[0].column_by_name("error").unwrap().as_string::<i32>();
            assert_eq!(errors.value(1), "the text is null");
            assert!(errors.value(2).contains("at most 64"));
        }
        for (path, code) in [
            (&["embed", "other-model"][..], Code::NotFound),
            (&["ingest", "x"], Code::InvalidArgument),
            (&["embed", r#"{"column":"nope"}"#], Code::InvalidArgument),
            (&["embed", r#"{"column":3}"#], Code::InvalidArgument),
            (&["embed", r#"{"column":"id"}"#], Code::InvalidArgument),
        ] {
            let sent = frames(path, batches[..1].to_vec()).await;
            let mut raw = FlightServiceClient::new(channel(&server).await);
            let refused = match raw.do_exchange(stream::iter(sent)).await {
                Err(status) => status,
                Ok(answer) => answer.into_inner().try_collect::<Vec<_>>().await.unwrap_err(),
            };
            assert_eq!(refused.code(), code, "{path:?}: {refused}");
        }
        // A bad row ends the stream where the client has not asked otherwise, after what was good.
        let sent = frames(&["embed"], vec![batch(&texts, 0), batch(&[None], 9)]).await;
        let answer = client.do_exchange(stream::iter(sent.into_iter().map(Ok))).await.unwrap();
        let found: Vec<_> = answer.collect().await;
        assert!(found.len() == 2 && found[0].is_ok() && found[1].is_err());
    });
}

#[test]
fn damaged_frames_are_the_clients_fault() {
    let server = Setup::default().start();
    server.runtime().block_on(async {
        let good = frames(&["embed"], vec![batch(&[Some("a"), Some("b")], 0)]).await;
        let channel = channel(&server).await;
        let (mut refused, mut answered) = (0, 0);
        let mut seed = 1u64;
        for round in 0..600 {
            let mut sent = good.clone();
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let frame = &mut sent[(seed >> 60) as usize % good.len()];
            let part = if round % 3 == 0 { &mut frame.data_body } else { &mut frame.data_header };
            let mut bytes = part.to_vec();
            if bytes.is_empty() {
                continue;
            }
            let place = (seed >> 20) as usize % bytes.len();
            match round % 7 {
                0 => bytes.truncate(place),
                _ => bytes[place] ^= (seed >> 50) as u8 | 1,
            }
            *part = bytes.into();
            let mut client = FlightServiceClient::new(channel.clone());
            let outcome = match client.do_exchange(stream::iter(sent)).await {
                Err(status) => Err(status),
                Ok(answer) => answer.into_inner().try_collect::<Vec<_>>().await,
            };
            match outcome {
                Ok(_) => answered += 1,
                Err(status) => {
                    refused += 1;
                    assert_eq!(status.code(), Code::InvalidArgument, "{round}: {status}");
                }
            }
        }
        assert!(refused > 50 && answered > 5, "{refused} refused, {answered} answered");
    });
    server.get("/readyz").ok();
    assert!(server.get("/metrics").text().contains("fletcher_panics_total 0"));
}

#[test]
fn datasets() {
    let server = Setup::default().start();
    let expected = server.vectors(&TEXTS);
    let texts: Vec<Option<&str>> = TEXTS.iter().map(|text| Some(*text)).collect();
    server.runtime().block_on(async {
        let mut client = FlightClient::new(channel(&server).await);
        let sent = frames(&["books"], vec![batch(&texts, 0), batch(&texts, 3)]).await;
        let acks = client.do_put(stream::iter(sent.into_iter().map(Ok))).await.unwrap();
        let acks: Vec<String> = acks
            .map_ok(|ack| String::from_utf8(ack.app_metadata.to_vec()).unwrap())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(
            acks,
            [
                r#"{"status":"acked","batch_id":1,"rows":3}"#,
                r#"{"status":"acked","batch_id":2,"rows":3}"#
            ]
        );

        let info =
            client.get_flight_info(FlightDescriptor::new_path(vec!["books".into()])).await.unwrap();
        assert_eq!(info.total_records, 6);
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let stored: Vec<RecordBatch> =
            client.do_get(ticket).await.unwrap().try_collect().await.unwrap();
        let rows: usize = stored.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, 6);
        check_vectors(&stored[0], 1, &expected[1]);
        let list: Vec<_> = client.list_flights("").await.unwrap().try_collect().await.unwrap();
        assert_eq!(list.len(), 1);

        let other = RecordBatch::try_from_iter([(
            "text",
            Arc::new(StringArray::from(vec!["a"])) as ArrayRef,
        )])
        .unwrap();
        let sent = frames(&["books"], vec![other]).await;
        let refused = client
            .do_put(stream::iter(sent.into_iter().map(Ok)))
            .await
            .unwrap()
            .next()
            .await
            .unwrap();
        assert!(refused.unwrap_err().to_string().contains("another schema"));

        let action =
            |kind: &str, body: &str| Action { r#type: kind.into(), body: body.to_owned().into() };
        let models: Vec<Bytes> =
            client.do_action(action("models", "")).await.unwrap().try_collect().await.unwrap();
        let models: serde_json::Value = serde_json::from_slice(&models[0]).unwrap();
        assert_eq!(models[0]["dimensions"], 32);
        let dropped = client.do_action(action("drop_dataset", "books")).await.unwrap();
        assert_eq!(dropped.try_collect::<Vec<Bytes>>().await.unwrap().len(), 1);
        assert!(client.do_get(Ticket::new("books")).await.is_err());
        assert!(client.do_action(action("explode", "")).await.is_err());
        assert_eq!(
            client.list_actions().await.unwrap().try_collect::<Vec<_>>().await.unwrap().len(),
            3
        );

        // Memory for datasets is bounded.
        let texts = vec![Some("some text"); 4000];
        let batches: Vec<RecordBatch> = (0..40).map(|i| batch(&texts, i * 4000)).collect();
        let sent = frames(&["large"], batches).await;
        let mut raw = FlightServiceClient::new(channel(&server).await);
        let acks = raw.do_put(stream::iter(sent)).await.unwrap().into_inner();
        let acks: Vec<_> = acks.collect().await;
        assert_eq!(acks.last().unwrap().as_ref().unwrap_err().code(), Code::ResourceExhausted);
    });
    // What CBOR and Arrow bodies store is found here too.
    let mut body = Vec::new();
    ciborium::into_writer(&TEXTS, &mut body).unwrap();
    server.post_with("/encode?dataset=notes", &[], &body).ok();
    server.runtime().block_on(async {
        let mut client = FlightClient::new(channel(&server).await);
        let stored: Vec<RecordBatch> =
            client.do_get(Ticket::new("notes")).await.unwrap().try_collect().await.unwrap();
        check_vectors(&stored[0], 2, &expected[2]);
    });
}

#[test]
fn no_key_no_vectors_over_grpc_either() {
    let server = with_keys(|config| config.keys = ApiKeys::new(["secret"]).unwrap()).start();
    server.runtime().block_on(async {
        let channel = channel(&server).await;
        let with = |key: Option<&str>, mut request: Request<proto::EmbedRequest>| {
            if let Some(key) = key {
                request
                    .metadata_mut()
                    .insert("authorization", format!("Bearer {key}").parse().unwrap());
            }
            request
        };
        let mut embed = proto::embed_client::EmbedClient::new(channel.clone());
        for key in [None, Some("wrong"), Some("")] {
            let refused = embed.embed(with(key, Request::new(text("a")))).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{key:?}");
        }
        embed.embed(with(Some("secret"), Request::new(text("a")))).await.unwrap();
        for path in ["embed", "books"] {
            let sent = frames(&[path], vec![batch(&[Some("a")], 0)]).await;
            let mut client = FlightServiceClient::new(channel.clone());
            let refused = client.do_exchange(stream::iter(sent.clone())).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated);
            let refused = client.do_put(stream::iter(sent)).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated);
        }
        let mut client = FlightClient::new(channel.clone());
        assert!(client.list_flights("").await.is_err());
        assert!(client.handshake(Bytes::new()).await.is_err());
        let mut client = FlightClient::new(channel.clone());
        // base64 of user:secret
        client.add_header("authorization", "Basic dXNlcjpzZWNyZXQ=").unwrap();
        client.handshake(Bytes::new()).await.unwrap();
        assert_eq!(
            client.list_flights("").await.unwrap().try_collect::<Vec<_>>().await.unwrap().len(),
            0
        );
    });
}

/// A stream is held back by its own flow control where a single call is refused.
#[test]
fn streams_wait_where_calls_are_refused() {
    let server = Setup {
        device: DeviceChoice::Reference,
        service: ServiceConfig { queue_tokens: 200, ..ServiceConfig::default() },
        ..Setup::default()
    }
    .start();
    let texts: Vec<String> = (0..300).map(|i| format!("{i} ").repeat(30)).collect();
    let options = EmbedOptions { overlong: Overlong::Truncate, ..Default::default() };
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = vectors(&server.embedder, &borrowed, &options);
    server.runtime().block_on(async {
        let channel = channel(&server).await;
        let stream_of = texts.iter().map(|t| text(t)).collect::<Vec<_>>();
        let mut embed = proto::embed_client::EmbedClient::new(channel.clone());
        let answers = embed.embed_stream(stream::iter(stream_of)).await.unwrap().into_inner();
        let single = async {
            let mut refused = 0;
            for _ in 0..40 {
                let mut embed = proto::embed_client::EmbedClient::new(channel.clone());
                match embed.embed(text("hello")).await {
                    Err(status) if status.code() == Code::ResourceExhausted => refused += 1,
                    other => drop(other.unwrap()),
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            refused
        };
        let (answers, refused) = tokio::join!(answers.try_collect::<Vec<_>>(), single);
        let answers = answers.unwrap();
        assert_eq!(answers.len(), 300);
        for (answer, expected) in answers.iter().zip(&expected) {
            assert_eq!(&answer.embeddings, expected);
        }
        assert!(refused > 0, "the queue was never full");
    });
}

/// What gRPC's messages hold counts with the bodies of HTTP, and is given back.
#[test]
fn messages_share_the_memory_for_bodies() {
    let server = with_keys(|config| {
        config.limits.bodies_bytes = 1 << 20;
        config.limits.body_pause = Duration::from_millis(500);
    })
    .start();
    server.runtime().block_on(async {
        let channel = channel(&server).await;
        let url = format!("{}/tei.v1.Embed/Embed", server.grpc());
        let call = |body: tonic::body::Body| {
            let request =
                axum::http::Request::post(&url).header("content-type", "application/grpc");
            tower::ServiceExt::oneshot(channel.clone(), request.body(body).unwrap())
        };
        // A message of 900 kB of which the last byte does not come.
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(4);
        let frames = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let frames =
            frames.map(|data| Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(data)));
        let slow = tonic::body::Body::new(http_body_util::StreamBody::new(frames));
        let mut start = vec![0];
        start.extend_from_slice(&900_000u32.to_be_bytes());
        start.resize(890_000, b'x');
        sender.send(start.into()).await.unwrap();
        let slow = tokio::spawn(call(slow));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut embed = proto::embed_client::EmbedClient::new(channel.clone());
        let large = proto::EmbedRequest { truncate: true, ..text(&"word ".repeat(60_000)) };
        let refused = embed.embed(large.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.metadata().contains_key("retry-after"));
        // HTTP feels it too.
        let body = vec![b' '; 300_000];
        let post = || server.post_with("/embed", &[], &body);
        let http = tokio::task::block_in_place(post);
        assert_eq!(http.status, 429, "{}", http.text());
        // The message that does not go on is given up, and its memory with it.
        let given_up = slow.await.unwrap().unwrap();
        assert_eq!(given_up.headers()["grpc-status"], "4");
        drop(sender);
        embed.embed(large.clone()).await.unwrap();
        // Many more bytes than the share pass through a stream, a few messages at a time.
        let texts: Vec<Option<&str>> = vec![Some("word"); 200];
        let mut batches = Vec::new();
        for at in 0..30 {
            let pad: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(500); 200]));
            let plain = batch(&texts, at * 200);
            let mut columns: Vec<(String, ArrayRef)> = Vec::new();
            for (field, column) in plain.schema().fields().iter().zip(plain.columns()) {
                columns.push((field.name().clone(), column.clone()));
            }
            columns.push(("pad".into(), pad));
            batches.push(RecordBatch::try_from_iter(columns).unwrap());
        }
        let sent = self::frames(&["embed"], batches).await;
        let mut client = FlightServiceClient::new(channel.clone());
        let answers = client.do_exchange(stream::iter(sent)).await.unwrap().into_inner();
        // The schema and a dictionary are frames too.
        assert_eq!(answers.try_collect::<Vec<_>>().await.unwrap().len(), 32);
        // Nothing is left over.
        for _ in 0..20 {
            embed.embed(large.clone()).await.unwrap();
        }
    });
}
