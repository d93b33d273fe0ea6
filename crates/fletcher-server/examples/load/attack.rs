//! Damaged requests, sent one by one, and what became of them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};

use crate::http::{self, Connection};
use crate::mutate::{Random, mutate};
use crate::seeds::{Dialect, Way};

/// Longer than any answer may take: the server hangs.
const HANG: Duration = Duration::from_secs(30);

/// Where a server listens.
pub(crate) struct Addresses<'a> {
    pub(crate) http: &'a str,
    pub(crate) grpc: &'a str,
}

/// How often which answer came, and the requests whose answer was a failure of the server.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answers: BTreeMap<String, usize>,
    pub(crate) failures: Vec<String>,
}

impl Tally {
    fn count(&mut self, answer: &str) {
        *self.answers.entry(answer.to_owned()).or_default() += 1;
    }

    fn fail(&mut self, dialect: &Dialect, number: usize, what: &str, bytes: &[u8]) {
        self.count(what);
        let shown = bytes[..bytes.len().min(400)].escape_ascii();
        self.failures.push(format!("{} number {number}: {what}: {shown}", dialect.name));
    }
}

/// Sends so many damaged requests of a dialect.
pub(crate) async fn attack(
    addresses: &Addresses<'_>,
    dialect: &Dialect,
    count: usize,
    seed: u64,
) -> Result<Tally, Box<dyn std::error::Error + Send + Sync>> {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let others: Vec<Vec<u8>> = dialect.requests.iter().map(|(.., body)| body.clone()).collect();
    let mut connection = None;
    let mut channel = None;
    for number in 0..count {
        let (path, media_type, good) = &dialect.requests[random.below(dialect.requests.len())];
        let body = mutate(&mut random, good, &others);
        match dialect.way {
            Way::Http if random.below(8) == 0 => {
                // The whole request is damaged, so it may end anywhere: on a connection of its own.
                let bytes = mutate(&mut random, &http::post(path, media_type, good), &others);
                alone(addresses.http, dialect, number, &bytes, &mut tally).await?;
            }
            Way::Http => {
                let bytes = http::post(path, media_type, &body);
                let open = match connection.take() {
                    Some(open) => open,
                    None => Connection::open(addresses.http).await?,
                };
                connection = kept(open, dialect, number, &bytes, &mut tally).await;
            }
            Way::Grpc => {
                if channel.is_none() {
                    let url = format!("http://{}", addresses.grpc);
                    channel = Some(Channel::from_shared(url)?.connect().await?);
                }
                let Some(open) = channel.clone() else { continue };
                let url = format!("http://{}{path}", addresses.grpc);
                match tokio::time::timeout(HANG, call(open, &url, body.clone())).await {
                    Err(_) => tally.fail(dialect, number, "hangs", &body),
                    // A stream that was reset is refused too, if the connection still works.
                    Ok(None) => {
                        tally.count("reset");
                        channel = None;
                    }
                    // gRPC's specification wants this code for a wrong compression flag.
                    Ok(Some((13, why))) if why.starts_with("protocol%20error") => {
                        tally.count("code 13, compression flag");
                    }
                    // Unknown, internal and lost data are the server's fault.
                    Ok(Some((code @ (2 | 13 | 15), why))) => {
                        tally.fail(dialect, number, &format!("code {code}, {why}"), &body);
                    }
                    Ok(Some((code, _))) => tally.count(&format!("code {code}")),
                }
            }
        }
    }
    Ok(tally)
}

async fn kept(
    mut connection: Connection,
    dialect: &Dialect,
    number: usize,
    bytes: &[u8],
    tally: &mut Tally,
) -> Option<Connection> {
    match tokio::time::timeout(HANG, connection.ask(bytes)).await {
        Err(_) => tally.fail(dialect, number, "hangs", bytes),
        // The request is whole, so there must be an answer.
        Ok(Err(error)) => tally.fail(dialect, number, &error.to_string(), bytes),
        Ok(Ok(reply)) => {
            judge(dialect, number, reply.status, bytes, tally);
            return (!reply.head.contains("connection: close")).then_some(connection);
        }
    }
    None
}

async fn alone(
    address: &str,
    dialect: &Dialect,
    number: usize,
    bytes: &[u8],
    tally: &mut Tally,
) -> std::io::Result<()> {
    let mut connection = Connection::open(address).await?;
    let conversation = async {
        connection.send(bytes).await?;
        connection.finish().await?;
        connection.reply().await
    };
    match tokio::time::timeout(HANG, conversation).await {
        Err(_) => tally.fail(dialect, number, "hangs", bytes),
        // What cannot be understood may be hung up on.
        Ok(Err(_)) => tally.count("closed"),
        Ok(Ok(reply)) => judge(dialect, number, reply.status, bytes, tally),
    }
    Ok(())
}

fn judge(dialect: &Dialect, number: usize, status: u16, bytes: &[u8], tally: &mut Tally) {
    match status {
        500.. if status != 503 => tally.fail(dialect, number, &status.to_string(), bytes),
        _ => tally.count(&status.to_string()),
    }
}

/// The code and message of a gRPC call with any bytes for a body; `None` if the stream was reset.
pub(crate) async fn call(mut channel: Channel, url: &str, body: Vec<u8>) -> Option<(u32, String)> {
    let request = Request::post(url)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::new(Bytes::from(body))))
        .ok()?;
    let response = channel.ready().await.ok()?.call(request).await.ok()?;
    let code = |headers: &axum::http::HeaderMap| {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let why = text("grpc-message").unwrap_or_default().to_owned();
        text("grpc-status")?.parse::<u32>().ok().map(|code| (code, why))
    };
    if let Some(code) = code(response.headers()) {
        return Some(code);
    }
    let body = Body::new(response.into_body()).collect().await.ok()?;
    body.trailers().and_then(code)
}
