//! Named datasets: batches with vectors, kept in memory for `DoGet`, or handed to the forwarding
//! target's durable queue. Memory is bounded: a batch that does not fit is refused, not dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::columns::Embedded;
use crate::error::RequestError;
use crate::forward::Forward;

/// Longest name of a dataset.
const NAME_BYTES: usize = 256;
/// Most datasets in memory.
const DATASETS_MAX: usize = 1024;

/// All datasets of a server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Datasets {
    memory: Arc<RwLock<Memory>>,
    limit_bytes: usize,
    forward: Option<Forward>,
}

#[derive(Default)]
struct Memory {
    bytes: usize,
    by_name: BTreeMap<String, Dataset>,
}

/// The batches of one name, all of one schema.
#[derive(Debug, Clone)]
pub(crate) struct Dataset {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

impl Datasets {
    /// Datasets that take at most so many bytes of memory; those of the forwarding target's name
    /// go there.
    pub(crate) fn new(limit_bytes: usize, forward: Option<Forward>) -> Self {
        Self { memory: Arc::default(), limit_bytes, forward }
    }

    /// Stores a batch. When this returns, the batch is in memory, or safe in the durable queue.
    pub(crate) async fn append(&self, name: &str, embedded: Embedded) -> Result<(), RequestError> {
        if let Some(forward) = self.forward.as_ref().filter(|forward| forward.dataset() == name) {
            return forward.append(embedded).await;
        }
        check_name(name)?;
        let batch = embedded.batch;
        let bytes = batch.get_array_memory_size();
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if memory.bytes + bytes > self.limit_bytes {
            // Nothing makes room by itself, but a client that drops a dataset does.
            tracing::warn!(name, bytes, limit = self.limit_bytes, "the datasets' memory is full");
            return Err(RequestError::Overloaded { retry_after: Duration::from_secs(10) });
        }
        if memory.by_name.len() >= DATASETS_MAX && !memory.by_name.contains_key(name) {
            let message = format!("there are {DATASETS_MAX} datasets already");
            return Err(RequestError::TooLarge { message });
        }
        let rows = batch.num_rows();
        let dataset = memory.by_name.entry(name.to_owned()).or_insert_with(|| Dataset {
            schema: batch.schema(),
            batches: Vec::new(),
            rows: 0,
            bytes: 0,
        });
        if dataset.schema.fields() != batch.schema().fields() {
            let message = format!("dataset `{name}` has another schema: {}", dataset.schema);
            return Err(RequestError::invalid(message));
        }
        dataset.batches.push(batch);
        dataset.rows += rows;
        dataset.bytes += bytes;
        memory.bytes += bytes;
        Ok(())
    }

    /// What is stored under a name.
    pub(crate) fn get(&self, name: &str) -> Result<Dataset, RequestError> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let missing =
            || RequestError::NotFound { message: format!("there is no dataset `{name}`") };
        memory.by_name.get(name).cloned().ok_or_else(missing)
    }

    /// Forgets what is stored under a name.
    pub(crate) fn remove(&self, name: &str) -> Result<(), RequestError> {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let missing =
            || RequestError::NotFound { message: format!("there is no dataset `{name}`") };
        let dataset = memory.by_name.remove(name).ok_or_else(missing)?;
        memory.bytes -= dataset.bytes;
        Ok(())
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<(String, Dataset)> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        memory.by_name.iter().map(|(name, dataset)| (name.clone(), dataset.clone())).collect()
    }
}

fn check_name(name: &str) -> Result<(), RequestError> {
    let printable = name.chars().all(|c| !c.is_control());
    match (1..=NAME_BYTES).contains(&name.len()) && printable {
        true => Ok(()),
        false => Err(RequestError::invalid(format!(
            "a dataset's name has 1 to {NAME_BYTES} bytes and no control characters"
        ))),
    }
}
