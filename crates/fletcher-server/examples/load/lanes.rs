//! How long one text takes while bulk requests keep the engine busy.
//!
//! What must hold: the 99th percentile of single texts is at most three times the unloaded one and
//! the time of one block. On a device that interrupts no block a text can wait for one; on a CPU it
//! should not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::http::{self, Connection};
use crate::measure::{Times, rounded};
use crate::options::Options;
use crate::server::Server;
use crate::{Outcome, texts};

/// Clients with bulk requests, and texts of each.
const BULK_CLIENTS: usize = 4;
const BULK_TEXTS: usize = 256;
/// Between two single texts: somebody typing, not another load.
const PAUSE: Duration = Duration::from_millis(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) async fn run(options: &Options) -> Result<Outcome, Failure> {
    let server = Server::start(options, &[]).await?;
    let single = json!({ "input": "How far is it from the harbour to the old town?" }).to_string();
    let single = http::post("/v1/embeddings", "application/json", single.as_bytes());
    let bulk = texts::mixed(BULK_TEXTS * 8, options.words, options.seed);
    let bulk = Arc::new(texts::requests(&bulk, BULK_TEXTS));
    ask(&server.http, &single, 1.0).await?;
    let (mut unloaded, mut loaded) = (Times::default(), Times::default());
    let (mut bulk_texts, mut bulk_seconds) = (0, 0.0);
    let (mut block_seconds, mut blocks) = (0.0, 0.0);
    let part = options.seconds / options.rounds as f64;
    for _ in 0..options.rounds {
        unloaded.extend(ask(&server.http, &single, part).await?);
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..BULK_CLIENTS {
            let (bulk, stop, done) = (bulk.clone(), stop.clone(), done.clone());
            let address = server.http.clone();
            clients.spawn(async move {
                let mut connection = Connection::open(&address).await?;
                for request in bulk.iter().cycle().skip(client) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let reply = connection.ask(request).await?;
                    if reply.status != 200 {
                        return Err::<(), Failure>(format!("bulk got {}", reply.status).into());
                    }
                    done.fetch_add(BULK_TEXTS, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sum = server.metric("fletcher_block_seconds_sum ").await?;
        let count = server.metric("fletcher_block_seconds_count ").await?;
        let (start, before) = (Instant::now(), done.load(Ordering::Relaxed));
        loaded.extend(ask(&server.http, &single, part).await?);
        bulk_texts += done.load(Ordering::Relaxed) - before;
        bulk_seconds += start.elapsed().as_secs_f64();
        // The single texts' own small blocks are among them, so bulk's are longer than this mean.
        block_seconds += server.metric("fletcher_block_seconds_sum ").await? - sum;
        blocks += server.metric("fletcher_block_seconds_count ").await? - count;
        stop.store(true, Ordering::Relaxed);
        while let Some(client) = clients.join_next().await {
            client??;
        }
    }
    let block_ms = 1e3 * block_seconds / blocks.max(1.0);
    let allowed = 3.0 * unloaded.quantile(0.99) + block_ms;
    let found = loaded.quantile(0.99);
    let mut failures = Vec::new();
    if found > allowed {
        failures.push(format!("p99 under load is {found:.2} ms, allowed are {allowed:.2} ms"));
    }
    let numbers = json!({
        "unloaded": unloaded.json(),
        "while_bulk_saturates": loaded.json(),
        "mean_block_ms": rounded(block_ms),
        "allowed_p99_ms": rounded(allowed),
        "bulk": {
            "clients": BULK_CLIENTS,
            "texts_per_request": BULK_TEXTS,
            "texts_per_second": rounded(bulk_texts as f64 / bulk_seconds),
        },
    });
    Ok(Outcome { numbers, failures })
}

/// Single texts for a while, and how long each took.
async fn ask(address: &str, request: &[u8], seconds: f64) -> Result<Times, Failure> {
    let mut connection = Connection::open(address).await?;
    let (begin, mut times) = (Instant::now(), Times::default());
    while begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        let reply = connection.ask(request).await?;
        times.push(start.elapsed());
        if reply.status != 200 {
            return Err(format!("a single text got {}", reply.status).into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(times)
}
