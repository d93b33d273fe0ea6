//! Requests as spans at a collector. Its messages are read by a description of OTLP of the test's
//! own.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::response::Response;
use common::Setup;
use fletcher_server::grpc::proto;
use fletcher_server::{TraceConfig, TraceProtocol};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use serde_json::json;

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resources>,
}

#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<Scopes>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Scopes {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

/// A collector: the heads and bodies of what it was sent.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            loop {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if reader.read_line(&mut head).unwrap_or(0) == 0 {
                        break;
                    }
                }
                let head = head.to_ascii_lowercase();
                let Some(length) = head.split("content-length: ").nth(1) else { break };
                let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                reader
                    .get_mut()
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .unwrap();
                if sender.send((head, body)).is_err() {
                    return;
                }
            }
        }
    });
    (address, receiver)
}

/// A collector that speaks gRPC: what stood in the header `authorization`, and the message.
fn grpc_collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = channel();
    let take = move |headers: HeaderMap, body: Bytes| async move {
        let key = headers["authorization"].to_str().unwrap().to_owned();
        // Behind a byte for compression and four for the length.
        let _ = sender.send((key, body[5..].to_vec()));
        let end = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(end)];
        let frames = futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>));
        let body = Body::new(StreamBody::new(frames));
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    };
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let routes = axum::Router::new().route(path, axum::routing::post(take));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let connections = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_routes(routes.into());
            server.serve_with_incoming(connections).await.unwrap();
        });
    });
    (address, receiver)
}

fn traced(endpoint: String, ratio: f64) -> Setup {
    let mut setup = Setup::default();
    let headers = vec!["authorization=Bearer%20abc".to_owned()];
    let (service, protocol) = ("test".to_owned(), TraceProtocol::HttpProtobuf);
    setup.server.traces = Some(TraceConfig { endpoint, protocol, service, headers, ratio });
    setup
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn hex(bytes: &[u8]) -> String {
    fletcher_core::fingerprint::hex(bytes)
}

#[test]
fn stages_are_spans_below_the_request() {
    let (endpoint, sent) = collector();
    let mut server = traced(endpoint, 1.0).start();
    let body = json!({ "input": ["a", "b"] }).to_string();
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let with = [("traceparent", &traceparent[..]), ("x-request-id", "mine")];
    server.post_with("/v1/embeddings", &with, body.as_bytes()).ok();
    // A caller that is not sampled is not traced here either.
    let unsampled = format!("00-{}-{PARENT}-00", TRACE.replace('0', "1"));
    server.post_with("/embed", &[("traceparent", &unsampled)], b"{\"inputs\":\"a\"}").ok();
    server.runtime().block_on(async {
        let channel = tonic::transport::Channel::from_shared(server.grpc()).unwrap();
        let channel = channel.connect().await.unwrap();
        let mut embed = proto::embed_client::EmbedClient::new(channel);
        let text = || proto::EmbedRequest { inputs: "a".into(), ..Default::default() };
        let mut call = tonic::Request::new(futures_util::stream::iter([text(), text()]));
        let traceparent = format!("00-{}-{PARENT}-01", TRACE.replace('a', "b"));
        call.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
        let answers = embed.embed_stream(call).await.unwrap().into_inner();
        let answers: Vec<_> = futures_util::TryStreamExt::try_collect(answers).await.unwrap();
        assert_eq!(answers.len(), 2);
    });
    // Stopping sends what waits for company.
    server.signal_stop();
    server.wait();
    let mut spans = Vec::new();
    while let Ok((head, body)) = sent.recv_timeout(Duration::from_millis(500)) {
        assert!(head.starts_with("post /v1/traces "), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        assert!(head.contains("authorization: bearer abc"), "{head}");
        let export = Export::decode(&body[..]).unwrap();
        for resources in export.resources {
            let service = &resources.resource.unwrap().attributes[0];
            assert_eq!(service.key, "service.name");
            assert_eq!(service.value.as_ref().unwrap().text.as_deref(), Some("test"));
            spans.extend(resources.scopes.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let of = |trace: &str| -> Vec<&Span> {
        spans.iter().filter(|span| hex(&span.trace) == trace).collect()
    };
    let http = of(TRACE);
    let request = http.iter().find(|span| span.kind == 2).unwrap();
    assert_eq!((&request.name[..], hex(&request.parent)), ("POST /v1/embeddings", PARENT.into()));
    let attribute = |key: &str| {
        let found = request.attributes.iter().find(|attribute| attribute.key == key);
        found.and_then(|attribute| attribute.value.clone()).unwrap()
    };
    assert_eq!(attribute("http.response.status_code").number, Some(200));
    assert_eq!(attribute("fletcher.rows").number, Some(2));
    assert_eq!(attribute("fletcher.request_id").text.as_deref(), Some("mine"));
    let mut stages: Vec<&&Span> = http.iter().filter(|span| span.kind == 1).collect();
    stages.sort_by_key(|span| span.start);
    let names: Vec<&str> = stages.iter().map(|span| &span.name[..]).collect();
    assert_eq!(names, ["tokenise", "queue", "encode", "answer"]);
    for stage in &stages {
        assert_eq!(stage.parent, request.id);
        assert!(
            stage.start >= request.start && stage.end <= request.end && stage.start < stage.end
        );
    }
    assert!(stages.windows(2).all(|pair| pair[0].end <= pair[1].start));

    let grpc = of(&TRACE.replace('a', "b"));
    let count = |name: &str| grpc.iter().filter(|span| span.name == name).count();
    assert_eq!((count("tei.v1.Embed/EmbedStream"), count("tokenise"), count("encode")), (1, 2, 2));
    assert!(of(&TRACE.replace('0', "1")).is_empty(), "a caller that is not sampled");
    let mut ids: Vec<&[u8]> = spans.iter().map(|span| &span.id[..]).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "every span has an id of its own");
}

#[test]
fn a_collector_may_speak_grpc() {
    let (endpoint, sent) = grpc_collector();
    let mut setup = traced(endpoint, 1.0);
    setup.server.traces.as_mut().unwrap().protocol = TraceProtocol::Grpc;
    let mut server = setup.start();
    // The second comes after the first has been sent: on a connection of its own.
    for _ in 0..2 {
        server.post("/embed", &json!({ "inputs": "a" })).ok();
        let (key, message) = sent.recv_timeout(Duration::from_secs(20)).expect("spans");
        assert_eq!(key, "Bearer abc");
        let export = Export::decode(&message[..]).unwrap();
        let spans: Vec<&Span> =
            export.resources.iter().flat_map(|r| &r.scopes).flat_map(|s| &s.spans).collect();
        let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
        assert_eq!((count("POST /embed"), count("encode")), (1, 1));
    }
    let metrics = server.get("/metrics").ok().text();
    let sent = metrics.lines().find(|line| line.contains("spans") && line.contains("\"sent\""));
    assert!(sent.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
    server.signal_stop();
    server.wait();
}

/// Nobody listens, or somebody listens and never answers: requests are served all the same.
#[test]
fn a_collector_that_is_down_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = silent.local_addr().unwrap();
    let (http, grpc) = (TraceProtocol::HttpProtobuf, TraceProtocol::Grpc);
    for (address, protocol) in [(closed, http), (silent, http), (closed, grpc), (silent, grpc)] {
        let mut setup = traced(format!("http://{address}"), 1.0);
        setup.server.traces.as_mut().unwrap().protocol = protocol;
        let server = setup.start();
        let begin = std::time::Instant::now();
        for _ in 0..1000 {
            server.get("/livez").ok();
        }
        for _ in 0..3 {
            let body = json!({ "inputs": vec!["a"; 200] });
            server.post("/embed", &body).ok();
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_share_of_nothing_is_nothing() {
    let (endpoint, sent) = collector();
    let mut server = traced(endpoint, 0.0).start();
    server.post("/embed", &json!({ "inputs": "a" })).ok();
    server.signal_stop();
    server.wait();
    assert!(sent.recv_timeout(Duration::from_millis(300)).is_err());
}
