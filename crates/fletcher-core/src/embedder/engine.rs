//! A loaded encoder behind the one dynamic boundary, and several of them behind one.
//!
//! A [`Replica`] is the encoder on one device with the arenas that work there at the same time.
//! [`Replicas`] are the same model on several devices. Workers belong to a device and take blocks
//! from the one queue of a call whenever they are free, so a device gets as many as it has time
//! for: its share follows its measured speed, and nothing has to guess it.
//!
//! A device that fails while another works is left out from then on. The block that it failed on
//! is still at hand, so another device encodes it, and no row is lost.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::backend::{Backend, BackendError, DeviceMemory, PoolOp};
use crate::encoder::Encoder;
use crate::pack::PackedBatch;

/// One device of an [`super::Embedder`], as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// What it is called in messages.
    pub name: String,
    /// Blocks that it has encoded.
    pub blocks: u64,
    /// Its own memory, if it has any.
    pub memory: Option<DeviceMemory>,
    /// Why it is no longer used, if it is not.
    pub lost: Option<String>,
}

/// What encodes blocks.
pub(super) trait Engine: Send + Sync {
    /// Pooled states: `rows x (pools * hidden)`, the pools of a row one after the other.
    fn encode(
        &self,
        worker: Option<usize>,
        batch: &PackedBatch,
        pools: &[PoolOp],
    ) -> Result<Vec<f32>, BackendError>;

    /// How many blocks can be computed at the same time.
    fn arenas(&self) -> usize;

    /// The hidden state of every token: `tokens x hidden`.
    fn hidden(&self, batch: &PackedBatch) -> Result<Vec<f32>, BackendError>;

    /// The device as it is now.
    fn status(&self) -> DeviceStatus;
}

/// The encoder on one device.
pub(super) struct Replica<B: Backend> {
    encoder: Encoder<B>,
    arenas: Vec<Mutex<B::Arena>>,
    /// Counts calls that no worker makes.
    turn: AtomicUsize,
    blocks: AtomicU64,
}

impl<B: Backend> Replica<B> {
    pub(super) fn new(encoder: Encoder<B>, arenas: Vec<B::Arena>) -> Self {
        let arenas = arenas.into_iter().map(Mutex::new).collect();
        Self { encoder, arenas, turn: AtomicUsize::new(0), blocks: AtomicU64::new(0) }
    }

    /// Runs `work` in the worker's arena, or in the first free one.
    fn with_arena<R>(&self, worker: Option<usize>, work: impl FnOnce(&mut B::Arena) -> R) -> R {
        let count = self.arenas.len();
        // Calls without a worker take the last free arena, so that the same one stays in caches and
        // workers are the last whose own is taken; they wait in turn at one after the other.
        let at = worker.unwrap_or_else(|| self.turn.fetch_add(1, Ordering::Relaxed)) % count;
        let free = || self.arenas.iter().rev().find_map(|arena| arena.try_lock().ok());
        let guard = match if worker.is_none() { free() } else { None } {
            Some(free) => Ok(free),
            None => self.arenas[at].lock(),
        };
        // A panic in another call leaves an arena in any state, but each batch rewrites what it
        // reads, so the arena is still good.
        let mut arena = guard.unwrap_or_else(PoisonError::into_inner);
        work(&mut arena)
    }
}

impl<B: Backend> Engine for Replica<B> {
    fn encode(
        &self,
        worker: Option<usize>,
        batch: &PackedBatch,
        pools: &[PoolOp],
    ) -> Result<Vec<f32>, BackendError> {
        let d = self.encoder.spec().hidden;
        let width = pools.len() * d;
        self.with_arena(worker, |arena| {
            let mut pooled = vec![0.0; batch.rows() * width];
            if let [op] = *pools {
                self.encoder.pooled(arena, op, batch, &mut pooled)?;
            } else {
                self.encoder.forward(arena, batch)?;
                let mut one = vec![0.0; batch.rows() * d];
                for (index, &op) in pools.iter().enumerate() {
                    self.encoder.backend().pool(arena, op, batch, &mut one)?;
                    for (row, from) in pooled.chunks_exact_mut(width).zip(one.chunks_exact(d)) {
                        row[index * d..(index + 1) * d].copy_from_slice(from);
                    }
                }
            }
            self.blocks.fetch_add(1, Ordering::Relaxed);
            Ok(pooled)
        })
    }

    fn arenas(&self) -> usize {
        self.arenas.len()
    }

    fn hidden(&self, batch: &PackedBatch) -> Result<Vec<f32>, BackendError> {
        self.with_arena(None, |arena| {
            self.encoder.forward(arena, batch)?;
            let mut hidden = vec![0.0; batch.tokens() * self.encoder.spec().hidden];
            self.encoder.backend().download_hidden(arena, batch, &mut hidden)?;
            Ok(hidden)
        })
    }

    fn status(&self) -> DeviceStatus {
        let backend = self.encoder.backend();
        DeviceStatus {
            name: backend.device_name(),
            blocks: self.blocks.load(Ordering::Relaxed),
            memory: backend.memory(),
            lost: None,
        }
    }
}

/// The same model on one device or several.
pub(super) struct Replicas {
    replicas: Vec<Box<dyn Engine>>,
    /// The replica and its arena of each worker: the devices in turn, so that the first workers
    /// are spread over all of them.
    workers: Vec<(usize, usize)>,
    /// Why a replica is no longer used.
    lost: Vec<OnceLock<String>>,
    /// Held while a replica is given up, so that two cannot give up the last two.
    giving_up: Mutex<()>,
    /// Counts calls that no worker makes.
    turn: AtomicUsize,
}

impl Replicas {
    /// # Panics
    /// If there is none.
    pub(super) fn new(replicas: Vec<Box<dyn Engine>>) -> Self {
        assert!(!replicas.is_empty(), "a model is on one device at least");
        let most = replicas.iter().map(|replica| replica.arenas()).max().unwrap_or(0);
        let workers = (0..most)
            .flat_map(|arena| (0..replicas.len()).map(move |replica| (replica, arena)))
            .filter(|&(replica, arena)| arena < replicas[replica].arenas())
            .collect();
        let lost = replicas.iter().map(|_| OnceLock::new()).collect();
        Self { replicas, workers, lost, giving_up: Mutex::new(()), turn: AtomicUsize::new(0) }
    }

    /// How many blocks can be computed at the same time.
    pub(super) fn arenas(&self) -> usize {
        self.workers.len()
    }

    /// The devices as they are now.
    pub(super) fn status(&self) -> Vec<DeviceStatus> {
        let devices = self.replicas.iter().zip(&self.lost);
        let status = devices
            .map(|(replica, lost)| DeviceStatus { lost: lost.get().cloned(), ..replica.status() });
        status.collect()
    }

    /// See [`Engine::encode`].
    pub(super) fn encode(
        &self,
        worker: Option<usize>,
        batch: &PackedBatch,
        pools: &[PoolOp],
    ) -> Result<Vec<f32>, BackendError> {
        self.on_one(worker, |engine, worker| engine.encode(worker, batch, pools))
    }

    /// See [`Engine::hidden`].
    pub(super) fn hidden(&self, batch: &PackedBatch) -> Result<Vec<f32>, BackendError> {
        self.on_one(None, |engine, _| engine.hidden(batch))
    }

    /// Runs `work` on the worker's device, and again on another as long as devices fail.
    fn on_one<R>(
        &self,
        worker: Option<usize>,
        work: impl Fn(&dyn Engine, Option<usize>) -> Result<R, BackendError>,
    ) -> Result<R, BackendError> {
        let home = worker.map(|worker| self.workers[worker % self.workers.len()]);
        let (mut at, mut arena) = match home {
            Some((replica, arena)) => (replica, Some(arena)),
            None => (self.turn.fetch_add(1, Ordering::Relaxed) % self.replicas.len(), None),
        };
        loop {
            if self.lost[at].get().is_some() {
                // Those that worked there spread over the others and wait for a free arena.
                at = self.next_live(self.turn.fetch_add(1, Ordering::Relaxed));
                arena = None;
            }
            match work(&*self.replicas[at], arena) {
                Ok(done) => return Ok(done),
                Err(error) if self.give_up(at, &error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The first replica from `start` on that is still used; there is always one.
    fn next_live(&self, start: usize) -> usize {
        let count = self.replicas.len();
        let mut places = (0..count).map(|step| (start + step) % count);
        places.find(|&at| self.lost[at].get().is_none()).unwrap_or(start % count)
    }

    /// Leaves a device out from now on, unless it is the last.
    fn give_up(&self, at: usize, why: &BackendError) -> bool {
        let _one_at_a_time = self.giving_up.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.lost.iter().enumerate().filter(|&(other, _)| other != at);
        if others.into_iter().all(|(_, lost)| lost.get().is_some()) {
            return false;
        }
        self.lost[at].get_or_init(|| why.to_string());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its name, until it has done `lives` blocks.
    struct Fake {
        name: f32,
        lives: AtomicUsize,
    }

    impl Fake {
        fn boxed(name: f32, lives: usize) -> Box<dyn Engine> {
            Box::new(Self { name, lives: AtomicUsize::new(lives) })
        }
    }

    impl Engine for Fake {
        fn encode(
            &self,
            _: Option<usize>,
            _: &PackedBatch,
            _: &[PoolOp],
        ) -> Result<Vec<f32>, BackendError> {
            let take = |lives: usize| lives.checked_sub(1);
            let lived = self.lives.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            let dead = |_| BackendError::Device {
                device: format!("fake:{}", self.name),
                message: "fell off the bus".into(),
            };
            lived.map(|_| vec![self.name]).map_err(dead)
        }

        fn arenas(&self) -> usize {
            2
        }

        fn hidden(&self, _: &PackedBatch) -> Result<Vec<f32>, BackendError> {
            Ok(Vec::new())
        }

        fn status(&self) -> DeviceStatus {
            let name = format!("fake:{}", self.name);
            DeviceStatus { name, blocks: 0, memory: None, lost: None }
        }
    }

    fn encode(replicas: &Replicas, worker: usize) -> Result<Vec<f32>, BackendError> {
        replicas.encode(Some(worker), &PackedBatch::new([&[1u32][..]]), &[])
    }

    #[test]
    fn workers_are_spread_over_the_devices() {
        let replicas = Replicas::new(vec![Fake::boxed(0.0, 9), Fake::boxed(1.0, 9)]);
        let on: Vec<f32> = (0..4).map(|worker| encode(&replicas, worker).unwrap()[0]).collect();
        assert_eq!(on, [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(replicas.arenas(), 4);
    }

    #[test]
    fn a_lost_devices_blocks_are_encoded_by_the_others() {
        let replicas = Replicas::new(vec![
            Fake::boxed(0.0, usize::MAX),
            Fake::boxed(1.0, 3),
            Fake::boxed(2.0, usize::MAX),
        ]);
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for worker in 0..6 {
                let (replicas, done) = (&replicas, &done);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let vector = encode(replicas, worker).unwrap();
                        done.lock().unwrap().push(vector[0]);
                    }
                });
            }
        });
        let done = done.into_inner().unwrap();
        assert_eq!(done.len(), 300, "every block has an answer");
        assert_eq!(done.iter().filter(|&&name| name == 1.0).count(), 3);
        let lost: Vec<Option<String>> =
            replicas.status().into_iter().map(|device| device.lost).collect();
        assert_eq!(lost[0], None);
        assert_eq!(lost[1].as_deref(), Some("fake:1: fell off the bus"));
        assert_eq!(lost[2], None);
    }

    #[test]
    fn the_last_device_is_not_given_up_and_its_error_is_told() {
        let replicas = Replicas::new(vec![Fake::boxed(0.0, 1), Fake::boxed(1.0, 1)]);
        let results: Vec<bool> = (0..4).map(|worker| encode(&replicas, worker).is_ok()).collect();
        assert_eq!(results, [true, true, false, false]);
        let lost = replicas.status().iter().filter(|device| device.lost.is_some()).count();
        assert_eq!(lost, 1);
    }
}
