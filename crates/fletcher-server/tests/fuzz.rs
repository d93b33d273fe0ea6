//! A few damaged requests of every dialect; `cargo run --release -p fletcher-server --example load
//! -- fuzz` sends ten thousand of each.

mod common;

#[path = "../examples/load/attack.rs"]
mod attack;
#[allow(dead_code, reason = "the program uses all of it")]
#[path = "../examples/load/http.rs"]
mod http;
#[path = "../examples/load/mutate.rs"]
mod mutate;
#[path = "../examples/load/seeds.rs"]
mod seeds;

use attack::{Addresses, attack};
use common::Setup;

#[test]
fn damage_is_the_clients_fault() {
    let server = Setup::default().start();
    let expected = server.vectors(&["as before"]);
    let (http, grpc) = (server.address(), server.addresses.last().unwrap().to_string());
    server.runtime().block_on(async {
        for dialect in seeds::all().await.unwrap() {
            let addresses = Addresses { http: &http, grpc: &grpc };
            let tally = attack(&addresses, &dialect, 250, 7).await.unwrap();
            assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
            // Damage of which nothing is noticed would be no test.
            assert!(tally.answers.len() > 1, "{}: {:?}", dialect.name, tally.answers);
        }
    });
    let answer = server.post("/embed", &serde_json::json!({ "inputs": "as before" })).ok();
    assert_eq!(common::floats(&answer.json()[0]), expected[0]);
    assert!(server.get("/metrics").text().contains("fletcher_panics_total 0"));
}
