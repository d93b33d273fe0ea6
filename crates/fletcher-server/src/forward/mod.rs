//! Forwarding to a Flight store: rows are safe on disk when they are accepted, and are sent until
//! the store has acknowledged them.
//!
//! At least once: after a crash or a broken connection some rows are sent again, with the same ids.
//! A target that keeps failing is given longer and longer rests.

mod rows;
mod spill;
mod target;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::ipc::writer::StreamWriter;
use tokio::sync::Notify;

use self::spill::{AppendError, Position, Record, Spill};
use self::target::Target;
use crate::columns::Embedded;
use crate::error::{RequestError, ServeError};
use crate::metrics::Metrics;
use crate::service::blocking;

/// Rows of one record, which is one batch at the target.
const RECORD_ROWS: usize = 4096;
/// First and longest rest after a failure; each is twice the one before, less up to half by chance.
const REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Failures in a row after which the target counts as down.
const FAILURES_OPEN: u32 = 3;
/// How long a refused client should wait when the disk's share is used up.
const FULL_RETRY: Duration = Duration::from_secs(10);

/// Where to forward to.
#[derive(Debug, Clone)]
pub struct ForwardConfig {
    /// `grpc://host:port` or `grpc+tls://host:port`.
    pub target: String,
    /// The dataset's name, here and there.
    pub dataset: String,
    /// The name of the column of vectors at the target.
    pub vector_column: String,
    /// Folder of the durable queue.
    pub spill: PathBuf,
    /// Most bytes that may wait there.
    pub spill_bytes: u64,
    /// Authorities for `grpc+tls`, PEM.
    pub ca: Option<PathBuf>,
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// How long the target may take to acknowledge a batch.
    pub ack_timeout: Duration,
}

/// The durable queue and its sender. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Forward(Arc<Inner>);

struct Inner {
    config: ForwardConfig,
    spill: Mutex<Spill>,
    metrics: Arc<Metrics>,
    /// Rows came.
    work: Notify,
}

impl Forward {
    /// Opens the queue with what is left in it; nothing is sent before [`Self::run`].
    pub(crate) fn open(config: ForwardConfig, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        Target::new(&config)?;
        let spill = Spill::open(&config.spill, config.spill_bytes)?;
        if spill.pending_rows() > 0 {
            tracing::info!(
                rows = spill.pending_rows(),
                "rows of an earlier run are still to be forwarded"
            );
        }
        let inner = Inner { config, spill: Mutex::new(spill), metrics, work: Notify::new() };
        let forward = Self(Arc::new(inner));
        forward.publish(&forward.lock());
        Ok(forward)
    }

    /// The dataset that is forwarded.
    pub(crate) fn dataset(&self) -> &str {
        &self.0.config.dataset
    }

    fn lock(&self) -> MutexGuard<'_, Spill> {
        self.0.spill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, spill: &Spill) {
        self.0.metrics.forward_pending_rows.set(spill.pending_rows() as i64);
        self.0.metrics.forward_pending_bytes.set(spill.pending_bytes() as i64);
    }

    /// Takes rows. When this returns they are on disk, and will reach the target.
    pub(crate) async fn append(&self, embedded: Embedded) -> Result<(), RequestError> {
        let this = self.clone();
        blocking(move || {
            let batch = rows::shape(&embedded, &this.0.config.vector_column)?;
            for start in (0..batch.num_rows()).step_by(RECORD_ROWS) {
                let part = batch.slice(start, RECORD_ROWS.min(batch.num_rows() - start));
                let payload = encode(&part)?;
                let mut spill = this.lock();
                spill.append(&payload, part.num_rows() as u32).map_err(refuse)?;
                this.publish(&spill);
            }
            Ok::<_, RequestError>(())
        })
        .await??;
        self.0.work.notify_one();
        Ok(())
    }

    /// Sends what is queued, for ever.
    pub(crate) async fn run(self) {
        let mut failures = 0u32;
        // A store that does not know the acknowledged way is not asked for it again.
        let mut acknowledged = true;
        loop {
            if self.lock().pending_rows() == 0 {
                self.0.work.notified().await;
                continue;
            }
            let sent = self.send(&mut acknowledged).await;
            let Err(error) = sent else {
                failures = 0;
                self.0.metrics.forward_open.set(0);
                continue;
            };
            failures += 1;
            self.0.metrics.forward_failures.inc();
            let rest = rest(failures);
            let (target, pending) = (&self.0.config.target, self.lock().pending_rows());
            tracing::warn!(%error, target, failures, pending, rest = ?rest, "forwarding failed");
            if failures >= FAILURES_OPEN {
                self.0.metrics.forward_open.set(1);
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// Waits until everything is acknowledged.
    pub(crate) async fn drained(&self) {
        while self.lock().pending_rows() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends from the first row that is not acknowledged to the end of the queue.
    async fn send(&self, acknowledged: &mut bool) -> Result<(), String> {
        let mut target = Target::new(&self.0.config).map_err(|error| error.to_string())?;
        target.connect().await?;
        if *acknowledged {
            match target.exchange(self).await {
                Err(error) if error.is_unknown_call => {
                    tracing::info!("the target has no acknowledged ingest; DoPut is used");
                    *acknowledged = false;
                }
                outcome => return outcome.map_err(|error| error.message),
            }
        }
        target.put(self).await.map_err(|error| error.message)
    }

    /// The first place that is not acknowledged.
    fn acked(&self) -> Position {
        self.lock().acked()
    }

    /// The record at a place.
    async fn read(&self, at: Position) -> Result<Option<Record>, String> {
        let this = self.clone();
        let read = blocking(move || this.lock().read(at)).await;
        read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// The target has everything before a place.
    async fn ack(&self, to: Position, rows: u64) -> Result<(), String> {
        let this = self.clone();
        let outcome = blocking(move || {
            let mut spill = this.lock();
            spill.ack(to, rows)?;
            this.publish(&spill);
            Ok::<_, std::io::Error>(())
        });
        outcome.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.0.metrics.forward_rows.inc_by(rows);
        Ok(())
    }
}

fn rest(failures: u32) -> Duration {
    let whole = REST.0.saturating_mul(1 << failures.min(16).saturating_sub(1)).min(REST.1);
    // Chance enough to keep many servers from coming back in step.
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    whole - whole.mul_f64(f64::from(now.subsec_nanos() % 1000) / 2000.0)
}

fn encode(batch: &RecordBatch) -> Result<Vec<u8>, RequestError> {
    let encoded = StreamWriter::try_new(Vec::new(), &batch.schema()).and_then(|mut writer| {
        writer.write(batch)?;
        writer.into_inner()
    });
    encoded.map_err(|error| RequestError::Engine { message: error.to_string() })
}

fn refuse(error: AppendError) -> RequestError {
    match error {
        AppendError::Full => RequestError::Overloaded { retry_after: FULL_RETRY },
        AppendError::Io(error) => {
            tracing::error!(%error, "the durable queue cannot be written");
            RequestError::Engine { message: format!("the rows could not be made durable: {error}") }
        }
    }
}
