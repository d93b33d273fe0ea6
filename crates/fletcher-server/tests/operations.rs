//! Who may ask, over what, how much, how slowly, and how it ends.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Setup, floats};
use fletcher_backend::DeviceChoice;
use fletcher_server::auth::ApiKeys;
use fletcher_server::tls::TlsFiles;
use fletcher_server::{Address, ConnectionLimits, HttpConfig, ServerConfig, ServiceConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;

fn server_config(change: impl FnOnce(&mut ServerConfig)) -> ServerConfig {
    let mut config = Setup::default().server;
    change(&mut config);
    config
}

const EMBEDS: [(&str, &str); 9] = [
    ("/v1/embeddings", r#"{"input":"a"}"#),
    ("/embeddings", r#"{"input":"a"}"#),
    ("/", r#"{"inputs":"a"}"#),
    ("/embed", r#"{"inputs":"a"}"#),
    ("/embed_all", r#"{"inputs":"a"}"#),
    ("/similarity", r#"{"inputs":{"source_sentence":"a","sentences":["b"]}}"#),
    ("/v2/embed", r#"{"texts":["a"]}"#),
    ("/api/embed", r#"{"input":"a"}"#),
    ("/encode", "\u{1}"),
];

#[test]
fn no_key_no_vectors_in_any_dialect() {
    let keys = ApiKeys::new(["one", "two"]).unwrap();
    let server = Setup { server: server_config(|c| c.keys = keys), ..Setup::default() }.start();
    for (path, body) in
        EMBEDS.into_iter().chain([("/encode/arrow", ""), ("/tokenize", ""), ("/decode", "")])
    {
        for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("x-api-key", "")]] {
            let answer = server.post_with(path, headers, body.as_bytes());
            assert_eq!(answer.status, 401, "{path}: {}", answer.text());
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        let answer = server.post_with(path, &[("authorization", "Bearer two")], body.as_bytes());
        assert_ne!(answer.status, 401, "{path}");
    }
    for path in
        ["/info", "/v1/models", "/v1/models/default", "/api/tags", "/metrics", "/stats", "/nope"]
    {
        assert_eq!(server.get(path).status, 401, "{path}");
        assert_ne!(server.get_with(path, &[("x-api-key", "one")]).status, 401, "{path}");
    }
    for path in ["/health", "/livez", "/readyz", "/docs", "/openapi.json", "/"] {
        server.get(path).ok();
    }
    let metrics = server.get_with("/metrics", &[("x-api-key", "one")]).ok().text();
    assert!(metrics.contains("fletcher_rejected_total{reason=\"unauthorized\"}"), "{metrics}");

    let keys = ApiKeys::new(["one"]).unwrap();
    let server = server_config(|c| {
        c.keys = keys;
        c.limits.public_metrics = true;
    });
    let server = Setup { server, ..Setup::default() }.start();
    server.get("/metrics").ok();
    assert_eq!(server.get("/info").status, 401);
}

/// Nothing that a client can send makes the server fail, and it serves as before afterwards.
#[test]
fn hostile_bodies() {
    let server = Setup::default().start();
    let deep = format!("{}{}", r#"{"input":"#.repeat(5000), "}".repeat(5000));
    let deep_list = format!(
        "{{\"input\":{}1{},\"inputs\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000),
        "[".repeat(100),
        "]".repeat(100)
    );
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\xff\xfe".to_vec(),
        b"{\"input\":\"\xff\",\"inputs\":\"\xc3\x28\",\"texts\":[\"\xff\"]}".to_vec(),
        br#"{"input":"\ud800","inputs":"\ud800","texts":["\udfff"]}"#.to_vec(),
        br#"{"input":1e999,"inputs":-1,"texts":3}"#.to_vec(),
        br#"{"input":[1.5],"inputs":[[-1]],"texts":[null]}"#.to_vec(),
        br#"{"input":["a"],"inputs":["a"],"texts":["a"],"dimensions":-1,"output_dimension":1e9}"#
            .to_vec(),
        br#"{"input":["a"],"inputs":["a"],"texts":["a"],"dimensions":99999999999999999999}"#
            .to_vec(),
        br#"{"input":"a","input":"b","inputs":"a","inputs":"b","texts":[],"texts":[]}"#.to_vec(),
        format!(r#"{{"input":[{0}],"inputs":[{0}],"texts":[]}}"#, "[],".repeat(3000) + "[]")
            .into_bytes(),
        deep.into_bytes(),
        deep_list.into_bytes(),
        // CBOR that claims to be larger than the memory.
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"\x7b\x00\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        [&b"\x81"[..]; 5000].concat(),
        vec![0; 1 << 20],
    ];
    let paths = EMBEDS.iter().map(|(path, _)| *path).chain([
        "/encode/arrow",
        "/tokenize",
        "/decode",
        "/api/embeddings",
    ]);
    for path in paths {
        for body in &bodies {
            let answer = server.post_with(path, &[], body);
            let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
            // Dialects without dimensions do not look at them, and no tokens are tokens too.
            if answer.status == 200 && (shown.contains("dimensions") || path == "/tokenize") {
                continue;
            }
            assert!(
                (400..500).contains(&answer.status),
                "{path} {shown}: {} {}",
                answer.status,
                answer.text()
            );
            assert!(answer.json().is_object(), "{path} {shown}: the error is worded");
        }
    }
    let mut seed = 7u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    // Good bodies with a byte changed: an answer or a refusal, never a failure.
    for (path, body) in EMBEDS {
        for _ in 0..60 {
            let mut body = body.as_bytes().to_vec();
            let place = random() % body.len();
            body[place] = random() as u8;
            assert!(server.post_with(path, &[], &body).status < 500, "{path}");
        }
    }
    server.get("/readyz").ok();
    assert!(server.get("/metrics").text().contains("fletcher_panics_total 0"));
}

#[test]
fn hostile_connections() {
    let server = server_config(|c| {
        c.connections = ConnectionLimits {
            head: Duration::from_millis(400),
            write: Duration::from_millis(600),
            ..ConnectionLimits::default()
        };
        c.limits = HttpConfig {
            body_bytes: 10_000,
            bodies_bytes: 40_000,
            body_pause: Duration::from_millis(400),
            ..HttpConfig::default()
        };
    });
    let server = Setup { server, ..Setup::default() }.start();
    let quick = |what: &str, bytes: &[u8], expect: &str| {
        let start = Instant::now();
        let said = server.raw(bytes);
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: {:?}", start.elapsed());
        assert!(said.starts_with(expect) || expect.is_empty(), "{what}: {said}");
    };
    quick("nothing at all", b"", "");
    quick("half a head", b"POST /embed HTTP/1.1\r\nhost: x\r\nx-a: ", "");
    quick("garbage", &[0x16; 600], "");
    quick("half of HTTP/2", b"PRI * HTTP/2.0\r\n\r\n", "");
    quick(
        "a slow body",
        b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        "HTTP/1.1 408",
    );
    quick(
        "a large body",
        b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 10001\r\n\r\n",
        "HTTP/1.1 413",
    );
    quick(
        "an absurd length",
        b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 400",
    );
    let chunks = [
        &b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"[..],
        &b"1000\r\n"[..],
        &[b' '; 0x1000],
        b"\r\n1000\r\n",
        &[b' '; 0x1000],
        b"\r\n1000\r\n",
        &[b' '; 0x1000],
        b"\r\n",
    ]
    .concat();
    quick("a large chunked body", &chunks, "HTTP/1.1 413");
    let headers: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    quick(
        "many headers",
        format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes(),
        "HTTP/1.1 431",
    );
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000));
    quick("a long path", long.as_bytes(), "HTTP/1.1 4");

    // A client that asks for a lot and reads nothing is let go.
    let mut silent = TcpStream::connect(server.address()).unwrap();
    let body = json!({ "inputs": vec!["a"; 2000] }).to_string();
    let request =
        format!("POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for _ in 0..8 {
        let _ = silent.write_all(request.as_bytes());
    }
    // Half-closed: taken for gone, so nothing is computed for it and its connection ends.
    let mut closed = TcpStream::connect(server.address()).unwrap();
    closed
        .write_all(
            b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{\"inputs\":\"a\"}",
        )
        .unwrap();
    closed.shutdown(std::net::Shutdown::Write).unwrap();
    closed.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    closed.read_to_end(&mut Vec::new()).unwrap();
    // Another client is not touched by that.
    let mut half = TcpStream::connect(server.address()).unwrap();
    half.write_all(b"POST /embed HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 14\r\n\r\n{\"inputs\":\"a\"}").unwrap();
    let mut said = String::new();
    half.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    half.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");

    let deadline = Instant::now() + Duration::from_secs(10);
    while !server.get("/metrics").text().contains("fletcher_connections 1\n") {
        assert!(
            Instant::now() < deadline,
            "a connection leaked: {}",
            server.get("/metrics").text()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    server.post("/embed", &json!({ "inputs": "a" })).ok();
}

#[test]
fn request_ids_and_cors() {
    let server = server_config(|c| c.limits.cors_origins = vec!["https://good.example".into()]);
    let server = Setup { server, ..Setup::default() }.start();
    let answer = server.get_with("/livez", &[("x-request-id", "abc-1")]).ok();
    assert_eq!(answer.header("x-request-id"), "abc-1");
    let answer = server.get_with("/livez", &[("x-request-id", &"a".repeat(500))]).ok();
    assert!((1..100).contains(&answer.header("x-request-id").len()));
    let good = server.get_with("/livez", &[("origin", "https://good.example")]);
    assert_eq!(good.header("access-control-allow-origin"), "https://good.example");
    // A browser asks first whether it may send a key; `*` would not mean that header.
    let asks = b"OPTIONS /v1/embeddings HTTP/1.1\r\nhost: x\r\norigin: https://good.example\r\n\
        access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n\
        connection: close\r\n\r\n";
    let said = server.raw(asks);
    assert!(said.contains("access-control-allow-headers: authorization"), "{said}");
    let bad = server.get_with("/livez", &[("origin", "https://bad.example")]);
    assert_eq!(bad.header("access-control-allow-origin"), "");
    let server = Setup::default().start();
    let none = server.get_with("/livez", &[("origin", "https://good.example")]);
    assert_eq!(none.header("access-control-allow-origin"), "");
}

/// A dashboard that asks for what is not there shows nothing, and nobody notices.
#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard = include_str!("../../../deploy/grafana/fletcher.json");
    let server = Setup::default().start();
    server.post("/embed", &json!({ "inputs": "a" })).ok();
    server.post("/embed", &json!({ "inputs": 3 }));
    let metrics = server.get("/metrics").text();
    let mut names: Vec<&str> = dashboard
        .match_indices("fletcher_")
        .filter_map(|(at, _)| {
            dashboard[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let exported = metrics
            .lines()
            .any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        assert!(exported, "{name} is not exported:\n{metrics}");
    }
}

#[test]
fn a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fletcher.sock");
    let setup = || {
        let server = server_config(|c| c.http = vec![Address::Unix(path.clone())]);
        Setup { server, ..Setup::default() }.start()
    };
    let ask = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    let mut server = setup();
    assert!(ask().starts_with("HTTP/1.1 200"));
    server.signal_stop();
    server.wait();
    assert!(!path.exists(), "the socket is removed");
    // One left over from a process that was killed is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _server = setup();
    assert!(ask().starts_with("HTTP/1.1 200"));
}

/// Nobody computes for a client that is gone, and a stream that is left is counted as left.
#[test]
fn who_goes_away_is_not_computed_for() {
    let server = Setup { device: DeviceChoice::Reference, ..Setup::default() }.start();
    let body = json!({ "inputs": vec!["word ".repeat(30); 400] }).to_string();
    let request =
        format!("POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut client = TcpStream::connect(server.address()).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.service.metrics().busy_workers.get() == 0 {
        assert!(Instant::now() < deadline, "the request never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(client);
    while server.service.metrics().queue_tokens.get() > 0 {
        assert!(Instant::now() < deadline, "its rows stay in the queue");
        std::thread::sleep(Duration::from_millis(1));
    }
    let metrics = server.get("/metrics").text();
    let cancelled = metrics.lines().find_map(|line| {
        line.strip_prefix("fletcher_rows_total{outcome=\"cancelled\"} ")?.parse::<u64>().ok()
    });
    assert!(cancelled.is_some_and(|rows| rows > 100), "{cancelled:?}");
}

#[test]
fn stopping_finishes_what_was_begun() {
    let mut server = Setup {
        device: DeviceChoice::Reference,
        service: ServiceConfig::default(),
        ..Setup::default()
    }
    .start();
    let body = json!({ "inputs": vec!["word ".repeat(30); 40] }).to_string();
    let mut client = TcpStream::connect(server.address()).unwrap();
    let request =
        format!("POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    client.write_all(request.as_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.service.metrics().busy_workers.get() == 0 {
        assert!(Instant::now() < deadline, "the request never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    let address = server.address();
    server.signal_stop();
    let mut said = Vec::new();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client.read_to_end(&mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{}", &said[..said.len().min(200)]);
    let rows: serde_json::Value =
        serde_json::from_str(said.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 40);
    server.wait();
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    assert!(!server.service.is_ready());
}

/// An authority, and certificates that it signs.
struct Authority {
    cert: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Self { cert, issuer: rcgen::Issuer::new(params, key) }
    }

    fn sign(&self, expired: bool) -> (rcgen::Certificate, rcgen::KeyPair) {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// Asks Flight and tei.v1 over TLS; an error text when one of them refuses.
async fn over_grpc(
    address: &str,
    roots: &Authority,
    client: Option<(rcgen::Certificate, rcgen::KeyPair)>,
) -> Result<(), String> {
    use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(roots.cert.pem()))
        .domain_name("localhost");
    if let Some((cert, key)) = client {
        tls = tls.identity(Identity::from_pem(cert.pem(), key.serialize_pem()));
    }
    let endpoint = Channel::from_shared(format!("https://{address}")).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap().timeout(Duration::from_secs(5));
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let mut flight = arrow_flight::FlightClient::new(channel.clone());
    let list = flight.list_flights("").await.map_err(|error| error.to_string())?;
    let none: Vec<_> =
        futures_util::TryStreamExt::try_collect(list).await.map_err(|e| e.to_string())?;
    assert!(none.is_empty());
    let mut embed = fletcher_server::grpc::proto::embed_client::EmbedClient::new(channel);
    let text =
        fletcher_server::grpc::proto::EmbedRequest { inputs: "a".into(), ..Default::default() };
    embed.embed(text).await.map(drop).map_err(|error| error.to_string())
}

/// Asks over TLS for vectors; an error text when the connection is refused.
fn ask_tls(
    address: &str,
    roots: &Authority,
    client: Option<(rcgen::Certificate, rcgen::KeyPair)>,
) -> Result<(String, CertificateDer<'static>), String> {
    let request = b"POST /embed HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 14\r\n\r\n{\"inputs\":\"a\"}";
    ask_tls_for(address, roots, client, request)
}

fn ask_tls_for(
    address: &str,
    roots: &Authority,
    client: Option<(rcgen::Certificate, rcgen::KeyPair)>,
    request: &[u8],
) -> Result<(String, CertificateDer<'static>), String> {
    let mut store = rustls::RootCertStore::empty();
    store.add(roots.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![cert.der().clone()], key).unwrap()
        }
    };
    let name = "localhost".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(request).map_err(|error| error.to_string())?;
    let mut said = String::new();
    stream.read_to_string(&mut said).map_err(|error| error.to_string())?;
    let shown = connection.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((said, shown))
}

#[test]
fn tls_client_certificates_and_new_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (authority, stranger) = (Authority::new(), Authority::new());
    let put = |(cert, key): &(rcgen::Certificate, rcgen::KeyPair)| {
        std::fs::write(path("cert.pem"), cert.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    };
    std::fs::write(path("ca.pem"), authority.cert.pem()).unwrap();
    let first = authority.sign(false);
    put(&first);
    let files =
        TlsFiles { cert: path("cert.pem"), key: path("key.pem"), client_ca: Some(path("ca.pem")) };
    let server = server_config(|c| c.tls = Some(files));
    let server = Setup { server, ..Setup::default() }.start();
    let address = server.address();

    let (said, shown) = ask_tls(&address, &authority, Some(authority.sign(false))).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert_eq!(&shown, first.0.der());
    let body = said.split_once("\r\n\r\n").unwrap().1;
    let vector = floats(&serde_json::from_str::<serde_json::Value>(body).unwrap()[0]);
    assert_eq!(vector, server.vectors(&["a"])[0]);
    assert!(ask_tls(&address, &authority, None).is_err(), "no certificate");
    assert!(ask_tls(&address, &authority, Some(authority.sign(true))).is_err(), "an expired one");
    assert!(ask_tls(&address, &authority, Some(stranger.sign(false))).is_err(), "a stranger's");
    assert!(
        ask_tls(&address, &stranger, Some(authority.sign(false))).is_err(),
        "the client checks too"
    );
    assert_eq!(server.raw(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").find("HTTP/1.1 200"), None);
    // Metrics and the page stand behind the same door, and so does everything over gRPC.
    for path in ["/metrics", "/", "/livez"] {
        for client in [None, Some(authority.sign(true)), Some(stranger.sign(false))] {
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            assert!(
                ask_tls_for(&address, &authority, client, request.as_bytes()).is_err(),
                "{path}"
            );
        }
    }
    let grpc = server.addresses.last().unwrap().to_string();
    server.runtime().block_on(async {
        assert_eq!(over_grpc(&grpc, &authority, Some(authority.sign(false))).await, Ok(()));
        for (what, client) in [
            ("none", None),
            ("expired", Some(authority.sign(true))),
            ("a stranger's", Some(stranger.sign(false))),
        ] {
            assert!(over_grpc(&grpc, &authority, client).await.is_err(), "{what}");
        }
    });

    // A broken file leaves the old certificate in use; a good one replaces it.
    std::fs::write(path("cert.pem"), "nonsense").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(
        &ask_tls(&address, &authority, Some(authority.sign(false))).unwrap().1,
        first.0.der()
    );
    let second = authority.sign(false);
    put(&second);
    let deadline = Instant::now() + Duration::from_secs(20);
    while &ask_tls(&address, &authority, Some(authority.sign(false))).unwrap().1 != second.0.der() {
        assert!(Instant::now() < deadline, "the new certificate is never shown");
        std::thread::sleep(Duration::from_millis(100));
    }
}
