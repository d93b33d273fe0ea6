//! What serving costs beside the engine: the same texts through `fletcher embed`, HTTP and Flight.
//!
//! HTTP is asked in two dialects: OpenAI's with vectors in base64, the cheapest that HTTP has, and
//! TEI's with vectors as decimal numbers, which is how other servers are compared.
//!
//! All take turns, so that what else the machine does falls on all alike. The client shares
//! the cores with the server; the processor time of each is told beside the wall clock's verdict,
//! because that is what remains when the clients are elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arrow::ipc::reader::FileReader;
use arrow_flight::FlightData;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::http::Connection;
use crate::measure::{self, median, rounded};
use crate::options::Options;
use crate::server::Server;
use crate::{Outcome, flight, texts};

/// As in the comparison with other servers: so many clients with so many texts a request.
const CLIENTS: usize = 8;
const REQUEST_TEXTS: usize = 32;
/// Rows of a batch over Flight, and streams at once.
const BATCH_ROWS: usize = 512;
const STREAMS: usize = 2;
/// Least share of the in-process rate, over HTTP and over Flight, and of Flight over TEI's HTTP.
const GOALS: (f64, f64, f64) = (0.80, 0.95, 1.1);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One way through all texts.
#[derive(Default)]
struct Runs {
    rates: Vec<f64>,
    /// Processor milliseconds a text: of whoever embeds, and of the client.
    engine_ms: Vec<f64>,
    client_ms: Vec<f64>,
}

impl Runs {
    fn push(&mut self, texts: usize, seconds: f64, engine: f64, client: f64) {
        self.rates.push(texts as f64 / seconds);
        self.engine_ms.push(engine * 1e3 / texts as f64);
        self.client_ms.push(client * 1e3 / texts as f64);
    }

    fn json(&self) -> Value {
        json!({
            "texts_per_second": rounded(median(&self.rates)),
            "cpu_ms_per_text": rounded(median(&self.engine_ms)),
            "client_cpu_ms_per_text": rounded(median(&self.client_ms)),
        })
    }
}

pub(crate) async fn run(options: &Options) -> Result<Outcome, Failure> {
    let texts = texts::mixed(options.texts, options.words, options.seed);
    let folder = std::env::temp_dir().join(format!("fletcher-overhead-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("texts.jsonl"), texts::jsonl(&texts))?;
    let outcome = measure_all(options, &texts, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    outcome
}

async fn measure_all(
    options: &Options,
    texts: &[String],
    folder: &Path,
) -> Result<Outcome, Failure> {
    let server = Server::start(options, &[]).await?;
    let requests = Arc::new(texts::requests(texts, REQUEST_TEXTS));
    let of_tei = Arc::new(texts::tei_requests(texts, REQUEST_TEXTS));
    let mut streams = Vec::new();
    for part in texts.chunks(texts.len().div_ceil(STREAMS)) {
        let batches = part.chunks(BATCH_ROWS).map(flight::batch).collect::<Result<_, _>>()?;
        streams.push(flight::frames(&["embed"], batches).await?);
    }
    // Once for nothing: caches fill, and the vectors are compared.
    embed(options, folder)?;
    check(&server, texts, &requests[0], folder).await?;
    over_http(&server, requests.clone()).await?;
    over_http(&server, of_tei.clone()).await?;
    over_flight(&server, &streams).await?;

    let (mut program, mut http) = (Runs::default(), Runs::default());
    let (mut decimal, mut flight) = (Runs::default(), Runs::default());
    for _ in 0..options.rounds {
        let (start, cpu) = (Instant::now(), measure::children_seconds());
        embed(options, folder)?;
        let engine = measure::children_seconds() - cpu;
        program.push(texts.len(), start.elapsed().as_secs_f64(), engine, 0.0);
        for over in [&mut http, &mut decimal, &mut flight].into_iter().enumerate() {
            let (start, cpu, own) = (Instant::now(), server.cpu_seconds(), measure::own_seconds());
            match over.0 {
                0 => over_http(&server, requests.clone()).await?,
                1 => over_http(&server, of_tei.clone()).await?,
                _ => over_flight(&server, &streams).await?,
            }
            let seconds = start.elapsed().as_secs_f64();
            let (engine, client) = (server.cpu_seconds() - cpu, measure::own_seconds() - own);
            over.1.push(texts.len(), seconds, engine, client);
        }
    }
    let ratio =
        |a: &[f64], b: &[f64]| median(&a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>());
    let wall = (
        ratio(&http.rates, &program.rates),
        ratio(&flight.rates, &program.rates),
        ratio(&flight.rates, &http.rates),
        ratio(&flight.rates, &decimal.rates),
    );
    let cpu = (
        ratio(&program.engine_ms, &http.engine_ms),
        ratio(&program.engine_ms, &flight.engine_ms),
        ratio(&http.engine_ms, &flight.engine_ms),
        ratio(&decimal.engine_ms, &flight.engine_ms),
    );
    let mut failures = Vec::new();
    for (what, found, goal) in [
        ("HTTP's share of `fletcher embed`", wall.0, GOALS.0),
        ("Flight's share of `fletcher embed`", wall.1, GOALS.1),
        ("Flight's rate by TEI's over HTTP", wall.3, GOALS.2),
    ] {
        if found < goal {
            failures.push(format!("{what} is {found:.3}, the goal {goal}"));
        }
    }
    let numbers = json!({
        "texts": texts.len(),
        "most_words": options.words,
        "rounds": options.rounds,
        "clients": CLIENTS,
        "texts_per_request": REQUEST_TEXTS,
        "embed": program.json(),
        "http_base64": http.json(),
        "http_tei": decimal.json(),
        "flight": flight.json(),
        "http_by_embed": { "wall": rounded(wall.0), "cpu": rounded(cpu.0), "goal": GOALS.0 },
        "flight_by_embed": { "wall": rounded(wall.1), "cpu": rounded(cpu.1), "goal": GOALS.1 },
        "flight_by_http_base64": { "wall": rounded(wall.2), "cpu": rounded(cpu.2) },
        "flight_by_http_tei": { "wall": rounded(wall.3), "cpu": rounded(cpu.3), "goal": GOALS.2 },
    });
    Ok(Outcome { numbers, failures })
}

/// The texts through `fletcher embed`, from file to file.
fn embed(options: &Options, folder: &Path) -> Result<(), Failure> {
    let status = std::process::Command::new(&options.program)
        .args(["embed", "-m", &options.model])
        .arg("-i")
        .arg(folder.join("texts.jsonl"))
        .arg("-o")
        .arg(folder.join("vectors.arrow"))
        .status()?;
    status.success().then_some(()).ok_or_else(|| "`fletcher embed` failed".into())
}

async fn over_http(server: &Server, requests: Arc<Vec<Vec<u8>>>) -> Result<(), Failure> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (requests, next, address) = (requests.clone(), next.clone(), server.http.clone());
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let reply = connection.ask(request).await?;
                if reply.status != 200 {
                    let said = String::from_utf8_lossy(&reply.body).into_owned();
                    return Err::<(), Failure>(said.into());
                }
            }
            Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

async fn over_flight(server: &Server, streams: &[Vec<FlightData>]) -> Result<(), Failure> {
    let mut clients = tokio::task::JoinSet::new();
    for frames in streams {
        let client = flight::connect(&server.grpc).await?;
        clients.spawn(flight::exchange(client, frames.clone()));
    }
    while let Some(client) = clients.join_next().await {
        if client?? == 0 {
            return Err("no vectors came over Flight".into());
        }
    }
    Ok(())
}

/// All three ways give the same bits.
async fn check(
    server: &Server,
    texts: &[String],
    request: &[u8],
    folder: &Path,
) -> Result<(), Failure> {
    let file = FileReader::try_new(std::fs::File::open(folder.join("vectors.arrow"))?, None)?;
    let mut expected = Vec::new();
    for batch in file {
        expected.extend(flight::rows(&batch?));
    }
    let reply = Connection::open(&server.http).await?.ask(request).await?;
    let answer: Value = serde_json::from_slice(&reply.body)?;
    let mut over_http = Vec::new();
    for item in answer["data"].as_array().ok_or("no data")? {
        let bytes = BASE64_STANDARD.decode(item["embedding"].as_str().ok_or("no base64")?)?;
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        over_http.push(floats.collect::<Vec<f32>>());
    }
    let over_flight = flight::vectors(&server.grpc, texts).await?;
    let same = over_flight == expected && over_http == expected[..over_http.len()];
    (same && !over_http.is_empty()).then_some(()).ok_or_else(|| "the vectors differ".into())
}
