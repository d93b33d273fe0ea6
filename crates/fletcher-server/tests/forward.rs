//! Rows reach the store whatever happens to it, each at least once, none twice under two ids.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use common::{Running, Setup, floats};
use fletcher_server::ForwardConfig;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

/// What the store has, by id.
type Rows = Arc<Mutex<BTreeMap<i64, (String, Vec<f32>)>>>;

/// A store that misbehaves as told.
#[derive(Clone, Default)]
struct Store {
    rows: Rows,
    /// Break the connection instead of acknowledging so many batches.
    failures: Arc<AtomicU32>,
    /// Have no acknowledged ingest.
    put_only: Arc<AtomicBool>,
    batches: Arc<AtomicU32>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Store {
    fn take(&self, batch: &RecordBatch) {
        let schema = batch.schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| &field.name()[..]).collect();
        assert_eq!(names[..3], ["id", "text", "vector"]);
        let ids = batch.column(0).as_primitive::<Int64Type>();
        let texts = batch.column(1).as_string::<i32>();
        let vectors = batch.column(2).as_fixed_size_list();
        assert!(matches!(vectors.values().data_type(), DataType::Float32));
        let mut rows = self.rows.lock().unwrap();
        for row in 0..batch.num_rows() {
            let vector = vectors.value(row).as_primitive::<Float32Type>().values().to_vec();
            rows.insert(ids.value(row), (texts.value(row).to_owned(), vector));
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether this batch is one to fail at.
    fn fails(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

fn batches(first: FlightData, rest: Streaming<FlightData>) -> FlightRecordBatchStream {
    let frames = stream::iter([Ok(first)]).chain(rest.map_err(Into::into));
    FlightRecordBatchStream::new_from_flight_data(frames)
}

#[tonic::async_trait]
impl FlightService for Store {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_schema(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_action(
        &self,
        _: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.expect("a frame");
        assert_eq!(first.flight_descriptor.as_ref().unwrap().path, ["books"]);
        let mut batches = batches(first, frames);
        while let Some(batch) =
            batches.try_next().await.map_err(|e| Status::internal(e.to_string()))?
        {
            if self.fails() {
                return Err(Status::unavailable("as told"));
            }
            self.take(&batch);
        }
        Ok(Response::new(Box::pin(stream::empty())))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        if self.put_only.load(Ordering::Relaxed) {
            return Err(Status::unimplemented("no such call"));
        }
        let mut frames = request.into_inner();
        let first = frames.message().await?.expect("a frame");
        assert_eq!(first.flight_descriptor.as_ref().unwrap().path, ["ingest", "books"]);
        let this = self.clone();
        let mut number = 0;
        let acks = batches(first, frames).map(move |batch| {
            let batch = batch.map_err(|error| Status::internal(error.to_string()))?;
            if this.fails() {
                // After it was taken or before: both happen to a store that dies.
                if this.failures.load(Ordering::Relaxed).is_multiple_of(2) {
                    this.take(&batch);
                }
                return Err(Status::unavailable("as told"));
            }
            this.take(&batch);
            number += 1;
            let ack =
                format!(r#"{{"status":"acked","batch_id":{number},"rows":{}}}"#, batch.num_rows());
            Ok(FlightData { app_metadata: ack.into(), ..FlightData::default() })
        });
        Ok(Response::new(Box::pin(acks)))
    }
}

/// A store on a port; `None` lets the system choose one.
struct Listening {
    runtime: Option<tokio::runtime::Runtime>,
    port: u16,
}

impl Listening {
    fn start(store: &Store, port: Option<u16>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (sender, receiver) = oneshot::channel();
        let store = store.clone();
        runtime.spawn(async move {
            let address = format!("127.0.0.1:{}", port.unwrap_or(0));
            let socket = tokio::net::TcpListener::bind(address).await.unwrap();
            sender.send(socket.local_addr().unwrap().port()).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(socket);
            let service = FlightServiceServer::new(store).max_decoding_message_size(usize::MAX);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        let port = runtime.block_on(receiver).unwrap();
        Self { runtime: Some(runtime), port }
    }

    /// Ends at once, with whatever was on the way.
    fn kill(mut self) -> u16 {
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(1));
        self.port
    }
}

fn fletcher(port: u16, spill: &Path) -> Running {
    let mut setup = Setup::default();
    setup.server.forward = Some(ForwardConfig {
        target: format!("grpc://127.0.0.1:{port}"),
        dataset: "books".into(),
        vector_column: "vector".into(),
        spill: spill.into(),
        spill_bytes: 64 << 20,
        ca: None,
        token: None,
        ack_timeout: Duration::from_secs(5),
    });
    setup.start()
}

/// Puts rows with ids from `first` on; returns after all were acknowledged.
fn put(server: &Running, first: i64, count: i64) {
    server.runtime().block_on(async {
        let ids = Int64Array::from_iter_values(first..first + count);
        let texts: StringArray =
            (first..first + count).map(|id| Some(format!("text {id}"))).collect();
        let batch = RecordBatch::try_from_iter([
            ("text", Arc::new(texts) as ArrayRef),
            ("id", Arc::new(ids) as ArrayRef),
        ])
        .unwrap();
        let frames: Vec<FlightData> = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(FlightDescriptor::new_path(vec!["books".into()])))
            .build(stream::iter([Ok(batch)]))
            .try_collect()
            .await
            .unwrap();
        let channel =
            tonic::transport::Channel::from_shared(server.grpc()).unwrap().connect().await.unwrap();
        let acks = FlightServiceClient::new(channel).do_put(stream::iter(frames)).await.unwrap();
        let acks: Vec<PutResult> = acks.into_inner().try_collect().await.unwrap();
        assert_eq!(acks.len(), 1);
    });
}

#[track_caller]
fn wait_for(store: &Store, rows: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.rows.lock().unwrap().len() < rows {
        assert!(
            Instant::now() < deadline,
            "{} of {rows} rows came",
            store.rows.lock().unwrap().len()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(store.rows.lock().unwrap().len(), rows);
}

fn check(server: &Running, store: &Store) {
    let rows = store.rows.lock().unwrap();
    for (id, (text, vector)) in rows.iter().take(50) {
        assert_eq!(text, &format!("text {id}"));
        assert_eq!(vector, &server.vectors(&[text])[0]);
    }
}

#[test]
fn a_store_that_breaks_off_gets_everything() {
    for put_only in [false, true] {
        let (store, folder) = (Store::default(), tempfile::tempdir().unwrap());
        store.put_only.store(put_only, Ordering::Relaxed);
        store.failures.store(3, Ordering::Relaxed);
        let listening = Listening::start(&store, None);
        let server = fletcher(listening.port, folder.path());
        for part in 0..5 {
            put(&server, part * 3000, 3000);
        }
        wait_for(&store, 15_000);
        check(&server, &store);
        let metrics = server.get("/metrics").text();
        assert!(!metrics.contains("fletcher_forward_failures_total 0"), "{metrics}");
    }
}

#[test]
fn rows_wait_for_a_store_that_is_down_and_survive_a_restart() {
    let (store, folder) = (Store::default(), tempfile::tempdir().unwrap());
    let port = Listening::start(&store, None).kill();
    let mut server = fletcher(port, folder.path());
    put(&server, 0, 5000);
    assert!(server.get("/metrics").text().contains("fletcher_forward_pending_rows 5000"));
    assert_eq!(store.rows.lock().unwrap().len(), 0);
    server.signal_stop();
    server.wait();
    drop(server);

    let server = fletcher(port, folder.path());
    put(&server, 5000, 100);
    let listening = Listening::start(&store, Some(port));
    wait_for(&store, 5100);
    // It goes away and comes back.
    let port = listening.kill();
    put(&server, 5100, 100);
    let _listening = Listening::start(&store, Some(port));
    wait_for(&store, 5200);
    check(&server, &store);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !server.get("/metrics").text().contains("fletcher_forward_pending_rows 0") {
        assert!(Instant::now() < deadline, "acknowledged rows are still pending");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn http_bodies_and_rows_without_ids() {
    let (store, folder) = (Store::default(), tempfile::tempdir().unwrap());
    let listening = Listening::start(&store, None);
    let server = fletcher(listening.port, folder.path());
    let mut body = Vec::new();
    ciborium::into_writer(&["one", "two", "one"], &mut body).unwrap();
    for _ in 0..2 {
        // Sent twice, as a client does that lost the first answer: the ids are the same.
        server.post_with("/encode?dataset=books", &[], &body).ok();
    }
    wait_for(&store, 2);
    let rows = store.rows.lock().unwrap();
    for (id, (text, vector)) in rows.iter() {
        assert!(*id >= 0);
        let own = server.post("/embed", &serde_json::json!({ "inputs": text })).ok().json();
        assert_eq!(vector, &floats(&own[0]));
    }
}
