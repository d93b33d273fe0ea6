//! Clients that misbehave: slow ones, half-closed ones, enormous ones.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::attack::{Addresses, call};
use crate::http::{self, Connection, Reply};
use crate::seeds::framed;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A gibibyte.
const ENORMOUS: usize = 1 << 30;
/// Connections of each kind of slow client.
const MANY: usize = 200;
/// Within which a good client must be answered meanwhile.
const PROMPT: Duration = Duration::from_secs(2);

/// What was tried, how it was answered, and what should not have been.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) answers: Vec<Value>,
    pub(crate) failures: Vec<String>,
}

impl Report {
    fn note(&mut self, what: &str, holds: bool, answer: String, begin: Instant) {
        let millis = begin.elapsed().as_millis();
        if !holds {
            self.failures.push(format!("{what}: {answer} after {millis} ms"));
        }
        self.answers.push(json!({ "what": what, "answer": answer, "ms": millis as u64 }));
    }

    fn status(
        &mut self,
        what: &str,
        expected: u16,
        reply: &std::io::Result<Reply>,
        begin: Instant,
    ) {
        let found = reply.as_ref().map_or_else(ToString::to_string, |r| r.status.to_string());
        let holds = found == expected.to_string() && begin.elapsed() < PROMPT;
        self.note(what, holds, found, begin);
    }
}

/// Everything, one after the other.
pub(crate) async fn all(addresses: &Addresses<'_>) -> Result<Report, Failure> {
    let mut report = Report::default();
    enormous(addresses, &mut report).await?;
    nonsense(addresses, &mut report).await?;
    slow(addresses, &mut report).await?;
    Ok(report)
}

async fn enormous(addresses: &Addresses<'_>, report: &mut Report) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut connection = Connection::open(addresses.http).await?;
    let head = "POST /embed HTTP/1.1\r\nhost: x\r\n";
    connection.send(format!("{head}content-length: {ENORMOUS}\r\n\r\n").as_bytes()).await?;
    report.status("1 GiB announced", 413, &connection.reply().await, begin);

    let begin = Instant::now();
    let mut connection = Connection::open(addresses.http).await?;
    connection.send(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
    let chunk = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    let mut sent = 0usize;
    while sent < ENORMOUS && connection.send(&chunk).await.is_ok() {
        sent += 1 << 20;
    }
    // The answer may be lost with the connection, as whoever closes it decides.
    let reply = connection.reply().await;
    let answer = reply.map_or("closed".to_owned(), |reply| reply.status.to_string());
    let holds = sent < ENORMOUS / 4 && (answer == "413" || answer == "closed");
    report.note("1 GiB in chunks", holds, format!("{answer} after {} MiB", sent >> 20), begin);

    let begin = Instant::now();
    let channel = Channel::from_shared(format!("http://{}", addresses.grpc))?.connect().await?;
    let mut body = framed(b"");
    body[1..5].copy_from_slice(&(ENORMOUS as u32).to_be_bytes());
    for path in ["tei.v1.Embed/Embed", "arrow.flight.protocol.FlightService/DoExchange"] {
        let url = format!("http://{}/{path}", addresses.grpc);
        let code = call(channel.clone(), &url, body.clone()).await;
        // Out of range or exhausted, as libraries put it.
        let holds = matches!(code, Some((3 | 8 | 11, _))) && begin.elapsed() < PROMPT;
        report.note(&format!("1 GiB announced to {path}"), holds, format!("{code:?}"), begin);
    }
    Ok(())
}

async fn nonsense(addresses: &Addresses<'_>, report: &mut Report) -> Result<(), Failure> {
    let deep = |key: &str| format!("{{\"{key}\":{}", "[".repeat(1_000_000)).into_bytes();
    let open = |key: &str| format!("{{\"{key}\":").repeat(200_000).into_bytes();
    let bytes = |key: &str| [format!("{{\"{key}\":\"").as_bytes(), b"\xff\xfe\"}"].concat();
    for (path, key) in [
        ("/v1/embeddings", "input"),
        ("/embed", "inputs"),
        ("/v2/embed", "texts"),
        ("/api/embed", "input"),
        ("/encode", "\u{1}"),
        ("/encode/arrow", "x"),
    ] {
        for (what, body) in
            [("deep lists", deep(key)), ("deep objects", open(key)), ("not UTF-8", bytes(key))]
        {
            let begin = Instant::now();
            let mut connection = Connection::open(addresses.http).await?;
            let reply = connection.ask(&http::post(path, "application/json", &body)).await;
            let answer = reply.map_or_else(|e| e.to_string(), |reply| reply.status.to_string());
            let holds = answer.starts_with('4') && begin.elapsed() < PROMPT;
            report.note(&format!("{what} to {path}"), holds, answer, begin);
        }
    }
    Ok(())
}

async fn slow(addresses: &Addresses<'_>, report: &mut Report) -> Result<(), Failure> {
    let good = http::post("/embed", "application/json", b"{\"inputs\":\"a\"}");
    let begins: [(&str, &[u8]); 4] = [
        ("that say nothing", b""),
        ("with half a head", b"POST /embed HTTP/1.1\r\nhost: x\r\nx-"),
        ("with half a body", b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"),
        ("with half of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM"),
    ];
    let mut held = Vec::new();
    for (what, bytes) in begins {
        for _ in 0..MANY {
            let mut connection = Connection::open(addresses.http).await?;
            connection.send(bytes).await?;
            held.push(connection);
        }
        let begin = Instant::now();
        let reply = Connection::open(addresses.http).await?.ask(&good).await;
        report.status(&format!("a good client beside {MANY} {what}"), 200, &reply, begin);
    }
    drop(held);
    // As many requests as that are gone before they are whole, or before their answer.
    for _ in 0..MANY {
        // Gone in the middle of a request, and gone before the answer.
        let mut connection = Connection::open(addresses.http).await?;
        connection.send(&good[..good.len() / 2]).await?;
        let mut connection = Connection::open(addresses.http).await?;
        connection.send(&good).await?;
    }
    let begin = Instant::now();
    let mut half_closed = Connection::open(addresses.http).await?;
    half_closed.send(&good).await?;
    half_closed.finish().await?;
    // Who stops sending is taken for gone, as a client that is gone looks the same.
    let answer = tokio::time::timeout(PROMPT, half_closed.reply()).await;
    let answer = match answer {
        Err(_) => "nothing".to_owned(),
        Ok(reply) => reply.map_or("closed".to_owned(), |reply| reply.status.to_string()),
    };
    report.note("a half-closed socket", answer == "closed" || answer == "200", answer, begin);
    Ok(())
}
