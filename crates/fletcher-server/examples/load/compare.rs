//! Fletcher beside another server of TEI's dialect, over HTTP on one machine, in turns.
//!
//! `--peer` is the other server's URL, or a `text-embeddings-router` to start (how to build one is
//! in `bench/compare/vs_tei.py`). Without it nothing is measured. Fletcher runs once in each of
//! `--precisions`; what must hold is said of the first: its rate is `--times` the peer's or more,
//! and its 99th percentile lower.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{self, Connection};
use crate::measure::{Times, median, rounded};
use crate::options::Options;
use crate::server::Server;
use crate::{Outcome, texts};

const CLIENTS: usize = 8;
const REQUEST_TEXTS: usize = 32;
/// Under this cosine the two do not serve the same model.
const SAME: f64 = 0.999;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The other server, ended with its owner if it was started here.
struct Peer {
    child: Option<Child>,
    log: PathBuf,
    address: String,
}

impl Peer {
    async fn open(options: &Options) -> Result<Self, Failure> {
        let given =
            options.peer.as_ref().ok_or("--peer names the other server: a URL or a router")?;
        let log = std::env::temp_dir().join(format!("fletcher-peer-{}.log", std::process::id()));
        if let Some(rest) = given.strip_prefix("http://") {
            return Ok(Self { child: None, log, address: rest.trim_end_matches('/').into() });
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(given)
            .args(["--model-id", options.peer_model.as_ref().unwrap_or(&options.model)])
            .args(["--hostname", "127.0.0.1"])
            .args(["--port", &port.to_string(), "--auto-truncate", "--dtype", "float32"])
            // Its own default was one on two cores.
            .args(["--tokenization-workers", &cores().to_string()])
            // As in its own container image: else its library leaves vectors of 512 bits alone.
            .env("MKL_ENABLE_INSTRUCTIONS", "AVX512_E4")
            .stdout(File::create(&log)?)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{given}: {error}"))?;
        Ok(Self { child: Some(child), log, address: format!("127.0.0.1:{port}") })
    }

    /// What it says of itself; which of its backends runs is only in its log.
    async fn describe(&self) -> Result<Value, Failure> {
        let reply = Connection::open(&self.address).await?.ask(&http::get("/info")).await?;
        let info: Value = serde_json::from_slice(&reply.body)?;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let backend = match &self.child {
            None => "unknown",
            Some(_) if log.contains("text_embeddings_backend_candle") => "candle",
            Some(_) => "ort",
        };
        Ok(json!({
            "version": info["version"],
            "backend": backend,
            "dtype": info["model_dtype"],
            "tokenization_workers": info["tokenization_workers"],
            "max_batch_requests": info["max_batch_requests"],
        }))
    }

    async fn wait(&self) -> Result<(), Failure> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(120) {
            if let Ok(mut connection) = Connection::open(&self.address).await
                && connection.ask(&http::get("/health")).await.is_ok_and(|r| r.status == 200)
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("the other server is not healthy".into())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What one server did in all rounds.
#[derive(Default)]
struct Runs {
    rates: Vec<f64>,
    times: Times,
}

impl Runs {
    async fn go(&mut self, address: &str, requests: &Arc<Vec<Vec<u8>>>) -> Result<(), Failure> {
        let (rate, times) = through(address, requests.clone()).await?;
        self.rates.push(rate * REQUEST_TEXTS as f64);
        self.times.extend(times);
        Ok(())
    }

    fn json(&self) -> Value {
        json!({ "texts_per_second": rounded(median(&self.rates)), "request": self.times.json() })
    }

    fn ratio(&self, other: &Self) -> f64 {
        let ratios: Vec<f64> = self.rates.iter().zip(&other.rates).map(|(a, b)| a / b).collect();
        median(&ratios)
    }
}

pub(crate) async fn run(options: &Options) -> Result<Outcome, Failure> {
    let peer = Peer::open(options).await?;
    peer.wait().await?;
    let texts = texts::mixed(options.texts, options.words, options.seed);
    let requests = Arc::new(texts::tei_requests(&texts, REQUEST_TEXTS));
    let mut own = Vec::new();
    for precision in options.precisions.split(',') {
        let server = Server::start(options, &["--precision", precision]).await?;
        let least = least_cosine(&server.http, &peer.address, &requests[0]).await?;
        if own.is_empty() && least < SAME {
            return Err(format!("the vectors differ, least cosine {least}: another model?").into());
        }
        own.push((precision, server, least, Runs::default()));
    }
    // Once for nothing, short of a whole round of a slow peer.
    let few = Arc::new(requests[..requests.len().min(CLIENTS)].to_vec());
    let mut others = Runs::default();
    Runs::default().go(&peer.address, &few).await?;
    for _ in 0..options.rounds {
        for (_, server, _, runs) in &mut own {
            Runs::default().go(&server.http, &few).await?;
            runs.go(&server.http, &requests).await?;
        }
        others.go(&peer.address, &requests).await?;
    }
    let mut failures = Vec::new();
    let (mut fletcher, mut ratios) = (serde_json::Map::new(), serde_json::Map::new());
    for (precision, _, least, runs) in &own {
        let mut numbers = runs.json();
        numbers["least_cosine_to_peer"] = json!(least);
        fletcher.insert((*precision).into(), numbers);
        ratios.insert((*precision).into(), rounded(runs.ratio(&others)));
    }
    if let Some((precision, _, _, runs)) = own.first() {
        let (ratio, goal) = (runs.ratio(&others), options.times);
        if ratio < goal {
            failures.push(format!("{precision} has {ratio:.2} x the peer's rate, the goal {goal}"));
        }
        if runs.times.quantile(0.99) > others.times.quantile(0.99) {
            failures.push("the peer's 99th percentile is lower".into());
        }
    }
    let numbers = json!({
        "clients": CLIENTS, "texts_per_request": REQUEST_TEXTS, "texts": texts.len(),
        "most_words": options.words, "rounds": options.rounds,
        "fletcher": fletcher,
        "peer": { "server": peer.describe().await?, "measured": others.json() },
        "ratio": ratios,
        "goal": options.times,
    });
    Ok(Outcome { numbers, failures })
}

async fn vectors(address: &str, request: &[u8]) -> Result<Vec<Vec<f64>>, Failure> {
    let reply = Connection::open(address).await?.ask(request).await?;
    Ok(serde_json::from_slice(&reply.body)?)
}

async fn least_cosine(a: &str, b: &str, request: &[u8]) -> Result<f64, Failure> {
    let (a, b) = (vectors(a, request).await?, vectors(b, request).await?);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    Ok(a.iter().zip(&b).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min))
}

/// All requests once: requests a second, and how long each took.
async fn through(address: &str, requests: Arc<Vec<Vec<u8>>>) -> Result<(f64, Times), Failure> {
    let (begin, next) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (requests, next, address) = (requests.clone(), next.clone(), address.to_owned());
        clients.spawn(async move {
            let (mut connection, mut times) = (Connection::open(&address).await?, Times::default());
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let start = Instant::now();
                let reply = connection.ask(request).await?;
                times.push(start.elapsed());
                if reply.status != 200 {
                    let said = String::from_utf8_lossy(&reply.body).into_owned();
                    return Err::<Times, Failure>(format!("{address}: {said}").into());
                }
            }
            Ok(times)
        });
    }
    let mut times = Times::default();
    while let Some(client) = clients.join_next().await {
        times.extend(client??);
    }
    Ok((requests.len() as f64 / begin.elapsed().as_secs_f64(), times))
}
