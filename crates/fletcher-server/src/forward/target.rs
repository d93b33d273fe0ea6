//! The store's side of forwarding: two ways to hand rows over, both with an acknowledgement.
//!
//! `DoExchange` under the path `["ingest", dataset]` acknowledges each batch by app metadata
//! `{"status":"acked","batch_id":n}`, n from 1. A store without it gets `DoPut`, which is
//! acknowledged by its end: one stream for at most [`PUT_ROWS`] rows, closed and waited for.

use std::collections::VecDeque;

use arrow::datatypes::SchemaRef;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::spill::Position;
use super::{Forward, ForwardConfig};
use crate::error::ServeError;
use crate::flight::messages::Outgoing;

/// Batches on the way without an acknowledgement.
const WINDOW: usize = 8;
/// Rows of one `DoPut`.
const PUT_ROWS: u64 = 50_000;
/// How long to wait for a connection.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(5);

/// A connection to the store.
pub(super) struct Target {
    endpoint: Endpoint,
    channel: Option<Channel>,
    dataset: String,
    token: Option<MetadataValue<tonic::metadata::Ascii>>,
    ack_timeout: std::time::Duration,
}

/// Why rows did not get over.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) message: String,
    /// The store does not have this call at all.
    pub(super) is_unknown_call: bool,
}

impl From<String> for SendError {
    fn from(message: String) -> Self {
        Self { message, is_unknown_call: false }
    }
}

impl From<Status> for SendError {
    fn from(status: Status) -> Self {
        let is_unknown_call = status.code() == Code::Unimplemented;
        Self { message: format!("{:?}: {}", status.code(), status.message()), is_unknown_call }
    }
}

/// What a store says about a batch.
#[derive(Debug, Deserialize)]
struct Ack {
    status: String,
    batch_id: Option<u64>,
}

/// A batch on the way.
struct Sent {
    end: Position,
    rows: u64,
}

impl Target {
    /// Checks what can be checked without a connection.
    pub(super) fn new(config: &ForwardConfig) -> Result<Self, ServeError> {
        let bad = |message: String| ServeError::Config { message };
        let text = &config.target;
        let (address, tls) = match text.split_once("://") {
            Some(("grpc" | "grpc+tcp" | "http", rest)) => (format!("http://{rest}"), false),
            Some(("grpc+tls" | "https", rest)) => (format!("https://{rest}"), true),
            _ => {
                return Err(bad(format!(
                    "`{text}` is not grpc://HOST:PORT or grpc+tls://HOST:PORT"
                )));
            }
        };
        if config.dataset.is_empty() {
            return Err(bad("the dataset's name is empty".into()));
        }
        if config.ca.is_some() && !tls {
            return Err(bad(format!("`{text}` is not encrypted: --forward-ca needs grpc+tls://")));
        }
        let plain = |rest: &str| !rest.trim_end_matches('/').contains(['/', '?', '#', '@']);
        if !text.split_once("://").is_some_and(|(_, rest)| plain(rest)) {
            return Err(bad(format!(
                "`{text}` must be a host and a port alone; a token goes into --forward-token"
            )));
        }
        let mut endpoint = Endpoint::from_shared(address)
            .map_err(|error| bad(format!("`{text}`: {error}")))?
            .connect_timeout(CONNECT);
        if tls {
            let mut tls = ClientTlsConfig::new();
            let Some(file) = &config.ca else {
                return Err(bad("grpc+tls needs --forward-ca, the authorities to trust".into()));
            };
            crate::tls::certificates(file)?;
            let pem =
                std::fs::read(file).map_err(|error| bad(format!("{}: {error}", file.display())))?;
            tls = tls.ca_certificate(Certificate::from_pem(pem));
            endpoint =
                endpoint.tls_config(tls).map_err(|error| bad(format!("`{text}`: {error}")))?;
        }
        let token = config.token.as_ref().map(|token| format!("Bearer {token}").parse());
        let token = token.transpose().map_err(|_| bad("the token cannot be a header".into()))?;
        Ok(Self {
            endpoint,
            channel: None,
            dataset: config.dataset.clone(),
            token,
            ack_timeout: config.ack_timeout,
        })
    }

    pub(super) async fn connect(&mut self) -> Result<(), String> {
        let channel = timeout(CONNECT, self.endpoint.connect()).await;
        let channel = channel.map_err(|_| "the connection took too long".to_owned())?;
        self.channel = Some(channel.map_err(|error| crate::listen::Cause(&error).to_string())?);
        Ok(())
    }

    fn client(&self) -> Result<FlightServiceClient<Channel>, String> {
        let channel = self.channel.clone().ok_or("not connected")?;
        Ok(FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX))
    }

    fn request<T>(&self, frames: T) -> Request<T> {
        let mut request = Request::new(frames);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// Sends by `DoExchange` until the queue is empty, or the schema changes.
    pub(super) async fn exchange(&self, forward: &Forward) -> Result<(), SendError> {
        let mut at = forward.acked();
        let Some(first) = Batch::read(forward, at).await? else { return Ok(()) };
        let path = vec!["ingest".to_owned(), self.dataset.clone()];
        let (frames, stream) = mpsc::channel(WINDOW * 2);
        let mut stream_of = Frames::open(frames, path, &first.schema).await?;
        let schema = first.schema.clone();
        let (mut next, mut waiting) = (Some(first), VecDeque::new());
        let mut client = self.client()?;
        let call = client.do_exchange(self.request(ReceiverStream::new(stream)));
        // Some stores answer only after the first batch.
        let fill = async {
            while waiting.len() < WINDOW
                && let Some(batch) = next.take()
            {
                at = batch.end;
                stream_of.send(&batch).await?;
                waiting.push_back(Sent { end: batch.end, rows: batch.rows });
                next = Batch::read(forward, at).await?.filter(|batch| batch.schema == schema);
            }
            Ok::<_, SendError>(())
        };
        let (answers, filled) = tokio::join!(timeout(self.ack_timeout, call), fill);
        let mut answers = answers.map_err(|_| late())??.into_inner();
        filled?;
        let mut acked = 0u64;
        while !waiting.is_empty() {
            let answer =
                timeout(self.ack_timeout, answers.message()).await.map_err(|_| late())??;
            let answer = answer
                .ok_or("the target ended the stream before it had acknowledged all".to_owned())?;
            if answer.app_metadata.is_empty() {
                // Its schema, which says nothing about ours.
                continue;
            }
            let ack: Ack = serde_json::from_slice(&answer.app_metadata)
                .map_err(|error| format!("the target's acknowledgement is malformed: {error}"))?;
            match ack.status.as_str() {
                "acked" => {}
                "slow_down" => continue,
                other => {
                    return Err(
                        format!("the target said `{other}` instead of acknowledging").into()
                    );
                }
            }
            // Acknowledging a batch acknowledges those before it.
            let upto = ack.batch_id.unwrap_or(acked + 1);
            while acked < upto {
                let Some(Sent { end, rows }) = waiting.pop_front() else {
                    return Err("the target acknowledged a batch that was not sent"
                        .to_owned()
                        .into());
                };
                acked += 1;
                forward.ack(end, rows).await?;
            }
            if next.is_none() {
                next = Batch::read(forward, at).await?.filter(|batch| batch.schema == schema);
            }
            while waiting.len() < WINDOW
                && let Some(batch) = next.take()
            {
                at = batch.end;
                stream_of.send(&batch).await?;
                waiting.push_back(Sent { end: batch.end, rows: batch.rows });
                next = Batch::read(forward, at).await?.filter(|batch| batch.schema == schema);
            }
        }
        // The store may say at the end that something went wrong after all.
        drop(stream_of);
        while timeout(self.ack_timeout, answers.message()).await.map_err(|_| late())??.is_some() {}
        Ok(())
    }

    /// Sends some rows by `DoPut`.
    pub(super) async fn put(&self, forward: &Forward) -> Result<(), SendError> {
        let mut at = forward.acked();
        let Some(first) = Batch::read(forward, at).await? else { return Ok(()) };
        let schema = first.schema.clone();
        let (frames, stream) = mpsc::channel(WINDOW);
        let mut stream_of = Frames::open(frames, vec![self.dataset.clone()], &schema).await?;
        let mut client = self.client()?;
        let send = async {
            let (mut next, mut rows) = (Some(first), 0);
            while let Some(batch) = next.take() {
                stream_of.send(&batch).await?;
                (at, rows) = (batch.end, rows + batch.rows);
                next = match rows < PUT_ROWS {
                    true => Batch::read(forward, at).await?.filter(|batch| batch.schema == schema),
                    false => None,
                };
            }
            drop(stream_of);
            Ok::<_, SendError>((at, rows))
        };
        let receive = async {
            let call = client.do_put(self.request(ReceiverStream::new(stream))).await?;
            let mut answers = call.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, SendError>(())
        };
        // The end of the answers, without an error, is the acknowledgement.
        let (sent, received) = tokio::join!(send, timeout(self.ack_timeout, receive));
        received.map_err(|_| late())??;
        let (end, rows) = sent?;
        Ok(forward.ack(end, rows).await?)
    }
}

fn late() -> SendError {
    "the target took too long to acknowledge".to_owned().into()
}

/// A record as a batch.
struct Batch {
    schema: SchemaRef,
    batch: arrow::array::RecordBatch,
    rows: u64,
    end: Position,
}

impl Batch {
    async fn read(forward: &Forward, at: Position) -> Result<Option<Self>, SendError> {
        let Some(record) = forward.read(at).await? else { return Ok(None) };
        let (schema, batches) = crate::ipc::read_stream(record.payload.into())
            .map_err(|error| format!("a record of the queue cannot be read: {error}"))?;
        let batch =
            batches.into_iter().next().ok_or("a record of the queue is empty".to_owned())?;
        Ok(Some(Self { schema, batch, rows: record.rows.into(), end: record.end }))
    }
}

/// The frames of one stream.
struct Frames {
    frames: mpsc::Sender<FlightData>,
    outgoing: Outgoing,
}

impl Frames {
    async fn open(
        frames: mpsc::Sender<FlightData>,
        path: Vec<String>,
        schema: &SchemaRef,
    ) -> Result<Self, SendError> {
        let (outgoing, first) = Outgoing::new(schema);
        let descriptor = FlightDescriptor::new_path(path);
        let this = Self { frames, outgoing };
        this.frame(first.with_descriptor(descriptor)).await?;
        Ok(this)
    }

    async fn send(&mut self, batch: &Batch) -> Result<(), SendError> {
        for frame in self.outgoing.batch(&batch.batch, Default::default())? {
            self.frame(frame).await?;
        }
        Ok(())
    }

    async fn frame(&self, frame: FlightData) -> Result<(), SendError> {
        let gone = |_| SendError::from("the target closed the stream".to_owned());
        self.frames.send(frame).await.map_err(gone)
    }
}
