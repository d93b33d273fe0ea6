//! Ten times what the server can do, for a while, from clients that do not wait for each other.
//!
//! What must hold: accepted requests finish with vectors, the rest get 429 with `Retry-After`
//! within 100 ms, memory stays bounded and the server serves as before when it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{Mutex, mpsc};

use crate::http::Connection;
use crate::measure::{Times, rounded};
use crate::options::Options;
use crate::server::Server;
use crate::{Outcome, texts};

const REQUEST_TEXTS: usize = 32;
/// Times the capacity.
const FACTOR: f64 = 10.0;
/// Within which a refusal must come.
const REFUSAL_MS: f64 = 100.0;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What became of a request.
struct Fate {
    status: u16,
    retry_after: bool,
    time: Duration,
}

pub(crate) async fn run(options: &Options) -> Result<Outcome, Failure> {
    let mut server = Server::start(options, &[]).await?;
    let texts = texts::mixed(REQUEST_TEXTS * 64, options.words, options.seed);
    let requests = Arc::new(texts::requests(&texts, REQUEST_TEXTS));
    let capacity = capacity(&server.http, &requests, 3.0).await?;
    let before = server.resident_mib().0;

    // Connections that are free; a request that finds none opens one.
    let free: Arc<Mutex<Vec<Connection>>> = Arc::default();
    let (fates, mut all) = mpsc::unbounded_channel();
    let open = Arc::new(AtomicUsize::new(0));
    let (mut sent, mut most_mib, mut looked) = (0usize, 0.0f64, Instant::now());
    let interval = 1.0 / (capacity * FACTOR);
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < options.seconds {
        while (sent as f64) < begin.elapsed().as_secs_f64() / interval {
            let (free, fates, open) = (free.clone(), fates.clone(), open.clone());
            let (requests, address, at) = (requests.clone(), server.http.clone(), sent);
            sent += 1;
            tokio::spawn(async move {
                open.fetch_add(1, Ordering::Relaxed);
                let fate = one(&address, &requests[at % requests.len()], &free).await;
                open.fetch_sub(1, Ordering::Relaxed);
                // The receiver lives as long as this command.
                let _ = fates.send(fate.map_err(|error| error.to_string()));
            });
        }
        if looked.elapsed() > LOOK {
            (most_mib, looked) = (most_mib.max(server.resident_mib().0), Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    drop(fates);
    let (mut accepted, mut refused) = (Times::default(), Times::default());
    let (mut broken, mut without_retry) = (Vec::new(), 0);
    while let Some(fate) = all.recv().await {
        match fate {
            Ok(Fate { status: 200, time, .. }) => accepted.push(time),
            Ok(Fate { status: 429, retry_after, time }) => {
                refused.push(time);
                without_retry += usize::from(!retry_after);
            }
            Ok(Fate { status, .. }) => broken.push(format!("status {status}")),
            Err(error) => broken.push(error),
        }
    }
    let is_running = server.is_running();
    let reply = Connection::open(&server.http).await?.ask(&requests[0]).await?;
    // The allocator and the connections' buffers give back what they had.
    drop(free);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = server.resident_mib().0;
    let panics = server.metric("fletcher_panics_total ").await?;

    let mut failures = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            failures.push(what);
        }
    };
    must(is_running && panics == 0.0, format!("running: {is_running}, panics: {panics}"));
    must(reply.status == 200, format!("afterwards a request gets {}", reply.status));
    must(broken.is_empty(), format!("{} requests broke: {:?}", broken.len(), broken.first()));
    must(without_retry == 0, format!("{without_retry} refusals without Retry-After"));
    must(refused.len() > accepted.len(), "the server was not overloaded".into());
    let worst = refused.quantile(0.99);
    must(worst <= REFUSAL_MS, format!("p99 of refusals is {worst:.1} ms, the goal {REFUSAL_MS}"));
    let numbers = json!({
        "capacity_texts_per_second": rounded(capacity * REQUEST_TEXTS as f64),
        "offered_texts_per_second": rounded(sent as f64 * REQUEST_TEXTS as f64 / seconds),
        "seconds": rounded(seconds),
        "requests": sent,
        "accepted": accepted.json(),
        "accepted_texts_per_second": rounded((accepted.len() * REQUEST_TEXTS) as f64 / seconds),
        "refused_429": refused.json(),
        "broken": broken.len(),
        "resident_mib": {
            "before": rounded(before), "most": rounded(most_mib), "after": rounded(after),
        },
    });
    Ok(Outcome { numbers, failures })
}

async fn one(
    address: &str,
    request: &[u8],
    free: &Mutex<Vec<Connection>>,
) -> Result<Fate, Failure> {
    let kept = free.lock().await.pop();
    let was_kept = kept.is_some();
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(address).await?,
    };
    let start = Instant::now();
    let reply = match connection.ask(request).await {
        // A connection that was idle too long is closed by the server, which any client expects.
        Err(error) if was_kept && error.kind() == std::io::ErrorKind::UnexpectedEof => {
            connection = Connection::open(address).await?;
            connection.ask(request).await?
        }
        reply => reply?,
    };
    let time = start.elapsed();
    if !reply.head.contains("connection: close") {
        free.lock().await.push(connection);
    }
    let retry_after = reply.head.contains("\r\nretry-after: ");
    Ok(Fate { status: reply.status, retry_after, time })
}

/// Requests a second from eight clients that wait for their answers.
async fn capacity(
    address: &str,
    requests: &Arc<Vec<Vec<u8>>>,
    seconds: f64,
) -> Result<f64, Failure> {
    let (begin, done) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let (requests, done, address) = (requests.clone(), done.clone(), address.to_owned());
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            for request in requests.iter().cycle().skip(client * 7) {
                if begin.elapsed().as_secs_f64() > seconds {
                    break;
                }
                connection.ask(request).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}
