//! Damaged requests of every dialect, then clients that misbehave.
//!
//! What must hold: no panic, no status of 500 and above but a deliberate 503, no hang, the same
//! vectors as before, and no memory lost: the second half of the requests leaves no more behind
//! than what an allocator keeps.

use std::time::Duration;

use serde_json::json;

use crate::attack::{Addresses, attack};
use crate::measure::rounded;
use crate::options::Options;
use crate::server::Server;
use crate::{Outcome, flight, hostile, seeds, texts};

/// Growth of resident memory, in MiB, from the middle to the end that is no leak.
const GROWTH_MIB: f64 = 12.0;
/// For connections to close and memory to be given back.
const REST: Duration = Duration::from_secs(3);

type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) async fn run(options: &Options) -> Result<Outcome, Failure> {
    // What `DoPut` stores is no leak, so there is room for little of it.
    let mut server = Server::start(options, &["--datasets-mb", "4"]).await?;
    let texts = texts::mixed(50, options.words, options.seed);
    let expected = flight::vectors(&server.grpc, &texts).await?;
    let dialects = seeds::all().await?;
    let (mut answers, mut failures, mut resident) =
        (serde_json::Map::new(), Vec::new(), Vec::new());
    resident.push(server.resident_mib().0);
    for half in 0..2u64 {
        for dialect in &dialects {
            let addresses = Addresses { http: &server.http, grpc: &server.grpc };
            let seed = options.seed + 1000 * half;
            let tally = attack(&addresses, dialect, options.requests / 2, seed).await?;
            let name = format!("{}, half {}", dialect.name, half + 1);
            answers.insert(name, json!(tally.answers));
            failures.extend(tally.failures);
        }
        tokio::time::sleep(REST).await;
        resident.push(server.resident_mib().0);
    }
    let addresses = Addresses { http: &server.http, grpc: &server.grpc };
    let report = hostile::all(&addresses).await?;
    failures.extend(report.failures);
    tokio::time::sleep(REST).await;
    let (after, most) = server.resident_mib();

    if resident[2] - resident[1] > GROWTH_MIB {
        failures.push(format!("resident memory grows: {resident:?} MiB"));
    }
    let panics = server.metric("fletcher_panics_total ").await?;
    if panics > 0.0 || server.log().contains("panicked") || !server.is_running() {
        failures.push(format!("{panics} panics; running: {}", server.is_running()));
    }
    if flight::vectors(&server.grpc, &texts).await? != expected {
        failures.push("the vectors are others than before".into());
    }
    let numbers = json!({
        "requests_per_dialect": options.requests,
        "dialects": dialects.len(),
        "seed": options.seed,
        "answers": answers,
        "misbehaving_clients": report.answers,
        "resident_mib": {
            "before": rounded(resident[0]),
            "after_half": rounded(resident[1]),
            "after_all": rounded(resident[2]),
            "after_misbehaving_clients": rounded(after),
            "most": rounded(most),
        },
        "panics": panics,
    });
    Ok(Outcome { numbers, failures })
}
