//! Fletcher beside another server of TEI's dialect, over HTTP on one machine, in turns.
//!
//! `--peer` is the other server's URL, or a `text-embeddings-router` to start. Without it nothing
//! is measured. What must hold: Fletcher has the higher rate and the lower 99th percentile; how
//! many times is for the reader, who knows which of the peer's backends it was.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

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
    address: String,
}

impl Peer {
    async fn open(options: &Options) -> Result<Self, Failure> {
        let given =
            options.peer.as_ref().ok_or("--peer names the other server: a URL or a router")?;
        if let Some(rest) = given.strip_prefix("http://") {
            return Ok(Self { child: None, address: rest.trim_end_matches('/').into() });
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(given)
            .args(["--model-id", &options.model, "--hostname", "127.0.0.1"])
            .args(["--port", &port.to_string(), "--auto-truncate", "--dtype", "float32"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{given}: {error}"))?;
        Ok(Self { child: Some(child), address: format!("127.0.0.1:{port}") })
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
        }
    }
}

pub(crate) async fn run(options: &Options) -> Result<Outcome, Failure> {
    let peer = Peer::open(options).await?;
    peer.wait().await?;
    let server = Server::start(options, &[]).await?;
    let texts = texts::mixed(options.texts, options.words, options.seed);
    let requests: Arc<Vec<Vec<u8>>> = Arc::new(
        texts
            .chunks(REQUEST_TEXTS)
            .map(|texts| {
                let body = json!({ "inputs": texts, "truncate": true }).to_string();
                http::post("/embed", "application/json", body.as_bytes())
            })
            .collect(),
    );
    let least = least_cosine(&server.http, &peer.address, &requests[0]).await?;
    if least < SAME {
        return Err(format!("the vectors differ, least cosine {least}: another model?").into());
    }
    let (mut own, mut others) = ((Vec::new(), Times::default()), (Vec::new(), Times::default()));
    for _ in 0..options.rounds {
        for (address, (rates, times)) in [(&server.http, &mut own), (&peer.address, &mut others)] {
            let (rate, took) = through(address, requests.clone()).await?;
            rates.push(rate * REQUEST_TEXTS as f64);
            times.extend(took);
        }
    }
    let ratios: Vec<f64> = own.0.iter().zip(&others.0).map(|(a, b)| a / b).collect();
    let mut failures = Vec::new();
    if median(&ratios) < 1.0 || own.1.quantile(0.99) > others.1.quantile(0.99) {
        failures.push("the other server is faster, or its 99th percentile lower".into());
    }
    let numbers = json!({
        "clients": CLIENTS, "texts_per_request": REQUEST_TEXTS, "texts": texts.len(),
        "least_cosine": rounded(least),
        "fletcher": { "texts_per_second": rounded(median(&own.0)), "request": own.1.json() },
        "peer": { "texts_per_second": rounded(median(&others.0)), "request": others.1.json() },
        "ratio": rounded(median(&ratios)),
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
