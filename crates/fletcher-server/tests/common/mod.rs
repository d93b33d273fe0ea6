//! A server on loopback with a golden model, and clients for it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fletcher_backend::DeviceChoice;
use fletcher_backend::registry;
use fletcher_core::backend::Precision;
use fletcher_core::embedder::{EmbedOptions, Embedder};
use fletcher_core::model::Model;
use fletcher_hub::ModelFolder;
use fletcher_server::{Address, Server, ServerConfig, Service, ServiceConfig};
use serde_json::Value;
use tokio::sync::oneshot;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

pub(crate) fn embedder(name: &str, device: DeviceChoice) -> Embedder {
    let files = ModelFolder::open(golden(name)).expect("a golden folder");
    let model = Model::open(&files, Default::default()).expect("a golden model");
    let config = fletcher_core::embedder::EmbedderConfig { threads: 2, ..Default::default() };
    registry::open(device, Precision::F32, model, config).expect("a device")
}

/// A server that runs until it is dropped.
pub(crate) struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
    done: Option<tokio::task::JoinHandle<()>>,
    pub(crate) service: Service,
    pub(crate) addresses: Vec<Address>,
    /// The same model, asked directly.
    pub(crate) embedder: Embedder,
}

pub(crate) struct Setup {
    pub(crate) model: &'static str,
    pub(crate) device: DeviceChoice,
    pub(crate) service: ServiceConfig,
    pub(crate) server: ServerConfig,
}

impl Default for Setup {
    fn default() -> Self {
        let local = || vec![Address::Tcp("127.0.0.1:0".into())];
        let server = ServerConfig {
            http: local(),
            grpc: local(),
            drain: Duration::from_secs(10),
            datasets_bytes: 8 << 20,
            ..ServerConfig::default()
        };
        Self { model: "bert", device: DeviceChoice::Cpu, service: ServiceConfig::default(), server }
    }
}

impl Setup {
    pub(crate) fn start(self) -> Running {
        let embedder = || embedder(self.model, self.device);
        let service = Service::start(embedder(), self.service);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let server =
            runtime.block_on(Server::bind(service.clone(), self.server)).expect("a server");
        let addresses = server.addresses();
        let (stop, stopped) = oneshot::channel::<()>();
        let done = runtime.spawn(server.run(async { drop(stopped.await) }));
        runtime.block_on(service.probe()).expect("a ready service");
        Running {
            runtime: Some(runtime),
            stop: Some(stop),
            done: Some(done),
            service,
            addresses,
            embedder: embedder(),
        }
    }
}

impl Running {
    pub(crate) fn address(&self) -> String {
        self.addresses[0].to_string()
    }

    /// Where gRPC is served.
    pub(crate) fn grpc(&self) -> String {
        format!("http://{}", self.addresses.last().expect("an address"))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Runtime {
        self.runtime.as_ref().expect("it runs")
    }

    /// Sends the stop signal.
    pub(crate) fn signal_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for the end after the stop signal.
    pub(crate) fn wait(&mut self) {
        let (runtime, done) = (self.runtime.as_ref().unwrap(), self.done.take().unwrap());
        runtime.block_on(done).expect("the server ends well");
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body.to_string().as_bytes())
    }

    pub(crate) fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = agent().post(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send(body).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = agent().get(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.call().unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    /// What the engine itself says.
    pub(crate) fn vectors(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        vectors(&self.embedder, texts, &EmbedOptions::default())
    }

    /// Sends bytes over a connection of their own and reads until the server closes it.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = std::net::TcpStream::connect(self.address()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may have closed already; what it said is read all the same.
        let _ = stream.write_all(bytes);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal_stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

pub(crate) fn vectors(
    embedder: &Embedder,
    texts: &[&str],
    options: &EmbedOptions,
) -> Vec<Vec<f32>> {
    let embeddings = embedder.embed(texts, options).expect("vectors");
    (0..texts.len()).map(|row| embeddings.vector(row).expect("a vector").to_vec()).collect()
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text());
        self
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.body_mut().with_config().limit(1 << 30).read_to_vec().expect("a body"),
    }
}

/// A JSON list of numbers as the f32 that they stand for.
#[track_caller]
pub(crate) fn floats(value: &Value) -> Vec<f32> {
    let list = value.as_array().unwrap_or_else(|| panic!("no vector: {value}"));
    list.iter().map(|number| number.to_string().parse().expect("a number")).collect()
}

pub(crate) fn from_base64(value: &Value) -> Vec<f32> {
    use base64::Engine as _;
    let bytes = base64::prelude::BASE64_STANDARD.decode(value.as_str().expect("text")).unwrap();
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}
