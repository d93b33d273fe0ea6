//! The one queue: rows of all dialects in, blocks of tokens out, on the engine's threads.
//!
//! - A worker takes as many rows as fit the token budget, and when there is little, an even share,
//!   so that no worker idles while another has a long block. Nothing is padded.
//! - Two lanes. Interactive rows overtake bulk ones, but after [`INTERACTIVE_RUN`] blocks in a row
//!   one block is bulk's, so bulk never starves. Where the engine has room for urgent blocks, an
//!   interactive row does not wait for a bulk block under way either: a worker that gives way to
//!   nobody takes it at once, and the system's scheduler lets that one go first.
//! - Within a lane requests take turns of [`TURN_BLOCKS`]: a request of a million rows does not
//!   stand in the way of one of a hundred, and small ones are done one after the other instead of
//!   all at the end.
//! - The queue is bounded in tokens. A request is refused, or waits if its dialect has flow control
//!   of its own, while that many tokens are queued, or so many that its deadline would pass.
//! - A request that nobody waits for any more leaves the queue at once, and one whose deadline
//!   passed is answered without being computed.

mod engine;
mod output;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fletcher_core::embedder::BlockRow;
use tokio::sync::{Notify, oneshot, watch};

pub(crate) use self::engine::Engine;
use self::output::Output;
use crate::background::{Behind, step_back};
use crate::error::{ItemError, RequestError};
use crate::metrics::Metrics;

/// Interactive blocks after which waiting bulk rows get one.
const INTERACTIVE_RUN: u32 = 3;
/// Blocks that a request may fill before it goes to the end of its lane.
const TURN_BLOCKS: usize = 4;
/// Requests that are looked at for rows that still fit a block.
const LOOK_AHEAD: usize = 64;
/// Share of the time to its deadline within which a request's turn must come, by the engine's
/// present rate; else it is refused at once instead of being queued in vain.
const HOPEFUL: f64 = 0.75;
/// Shortest and longest time after which a refused client is asked to come back.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Which queue a request stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Somebody waits for the answer.
    Interactive,
    /// Throughput matters more than the wait.
    Bulk,
}

impl Lane {
    /// The name that clients and metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Interactive => "interactive",
            Lane::Bulk => "bulk",
        }
    }
}

/// Rows to embed.
#[derive(Debug)]
pub(crate) struct Work {
    /// Token ids; none is empty.
    pub(crate) rows: Vec<Vec<u32>>,
    /// Leading tokens that pooling leaves out.
    pub(crate) skip: usize,
    /// Leave out a final normalisation.
    pub(crate) unnormalized: bool,
    /// Which queue to stand in.
    pub(crate) lane: Lane,
    /// When nobody wants the answer any more.
    pub(crate) deadline: Instant,
}

/// The vectors of one [`Work`].
#[derive(Debug)]
pub(crate) struct Computed {
    /// `rows * dim` values; a failed row's are 0.
    pub(crate) values: Vec<f32>,
    /// The rows without a vector, in no particular order.
    pub(crate) errors: Vec<(usize, ItemError)>,
    /// From the queue to the first block.
    pub(crate) queued: Duration,
    /// From the first block to the last.
    pub(crate) computed: Duration,
}

/// What a worker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Any,
    /// Interactive rows that would wait for another worker's block.
    Urgent,
}

/// Threads that take rows from the queue through the engine.
pub(crate) struct Batcher {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    metrics: Arc<Metrics>,
    limit_tokens: usize,
    state: Mutex<State>,
    /// Work came, or the end.
    work: Condvar,
    /// Work went, so there may be room.
    room: Notify,
    /// The first block that failed as a whole, for those who would rather stop.
    failed: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct State {
    lanes: [VecDeque<Job>; 2],
    /// By lane.
    queued_tokens: [usize; 2],
    /// Of requests that are admitted and not queued yet.
    reserved_tokens: [usize; 2],
    interactive_run: u32,
    /// Workers with a block of each lane, by lane; those for urgent blocks are not counted.
    busy: [usize; 2],
    /// Tokens a second that one worker has done lately; 0 before the first block.
    rate: f64,
    next_id: u64,
    closed: bool,
}

impl State {
    /// Tokens that wait in both lanes.
    fn queued(&self) -> usize {
        self.queued_tokens.iter().sum()
    }

    /// Workers with a block.
    fn busy(&self) -> usize {
        self.busy.iter().sum()
    }

    /// Tokens that a new request finds before it.
    fn ahead(&self, lane: Lane) -> usize {
        let of =
            |lane: Lane| self.queued_tokens[lane as usize] + self.reserved_tokens[lane as usize];
        match lane {
            Lane::Interactive => of(Lane::Interactive),
            Lane::Bulk => of(Lane::Interactive) + of(Lane::Bulk),
        }
    }
}

/// A request in the queue, with the rows that have not been taken.
struct Job {
    id: u64,
    rows: VecDeque<(usize, Vec<u32>)>,
    tokens: usize,
    /// What is left of its turn.
    turn_tokens: usize,
    skip: usize,
    unnormalized: bool,
    deadline: Instant,
    output: Arc<Output>,
}

/// The rows of one request in one block.
struct Part {
    output: Arc<Output>,
    unnormalized: bool,
    rows: Vec<(usize, Vec<u32>)>,
}

struct Block {
    lane: Lane,
    parts: Vec<Part>,
    skip: usize,
    tokens: usize,
}

/// A request's share of the queue before its texts are tokens. Dropping it gives the share up.
pub(crate) struct Reservation {
    lane: Lane,
    tokens: usize,
    shared: Arc<Shared>,
}

/// A request's place in the queue. Dropping it gives the place up.
pub(crate) struct Ticket {
    id: u64,
    lane: Lane,
    shared: Arc<Shared>,
    done: Option<oneshot::Receiver<Computed>>,
}

impl Batcher {
    /// Starts one thread per block that the engine can compute at once.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        limit_tokens: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let workers = engine.workers().max(1);
        let shared = Arc::new(Shared {
            engine,
            metrics,
            limit_tokens,
            state: Mutex::default(),
            work: Condvar::new(),
            room: Notify::new(),
            failed: watch::Sender::default(),
        });
        let urgent = shared.engine.urgent_workers();
        let spawn = |worker: usize| {
            let shared = shared.clone();
            let duty = if worker < workers { Duty::Any } else { Duty::Urgent };
            let name = format!("fletcher-serve-{worker}");
            let thread = std::thread::Builder::new().name(name);
            let run = move || {
                if duty == Duty::Any {
                    step_back(Behind::Connections);
                }
                shared.run(worker, duty);
            };
            thread.spawn(run).ok()
        };
        let threads = (0..workers + urgent).filter_map(spawn).collect();
        Self { shared, threads: Mutex::new(threads) }
    }

    /// Completes when a block has failed as a whole, with the reason.
    pub(crate) async fn failure(&self) -> String {
        let mut failed = self.shared.failed.subscribe();
        let first = failed.wait_for(Option::is_some).await;
        // The sender is in `self.shared`, so it cannot have gone.
        first.ok().and_then(|message| message.clone()).unwrap_or_default()
    }

    /// Whether any request would be refused now.
    pub(crate) fn check_room(&self) -> Result<(), RequestError> {
        self.shared.admit(&self.shared.lock(), None)
    }

    /// Admits a request of about so many tokens, or refuses it, before any work is done for it: its
    /// tokens count from here on.
    pub(crate) fn reserve(
        &self,
        lane: Lane,
        deadline: Instant,
        tokens: usize,
    ) -> Result<Reservation, RequestError> {
        let mut state = self.shared.lock();
        self.shared.admit(&state, Some((lane, deadline)))?;
        state.reserved_tokens[lane as usize] += tokens;
        Ok(Reservation { lane, tokens, shared: self.shared.clone() })
    }

    /// Queues the work of a request that was admitted.
    pub(crate) fn submit_admitted(&self, work: Work, reservation: Option<Reservation>) -> Ticket {
        let ticket = self.shared.push(&mut self.shared.lock(), work);
        drop(reservation);
        ticket
    }

    /// Queues work, or refuses it when the queue is full.
    #[cfg(test)]
    pub(crate) fn submit(&self, work: Work) -> Result<Ticket, RequestError> {
        let reservation = self.reserve(work.lane, work.deadline, 0)?;
        Ok(self.submit_admitted(work, Some(reservation)))
    }

    /// Queues work as soon as there is room, until the deadline.
    pub(crate) async fn submit_when_room(&self, work: Work) -> Result<Ticket, RequestError> {
        let deadline = tokio::time::Instant::from_std(work.deadline);
        loop {
            let room = self.shared.room.notified();
            tokio::pin!(room);
            // Before the look at the queue, so that room made in between is not missed.
            room.as_mut().enable();
            let refusal = {
                let mut state = self.shared.lock();
                match self.shared.admit(&state, Some((work.lane, work.deadline))) {
                    Ok(()) => return Ok(self.shared.push(&mut state, work)),
                    Err(refusal) => refusal,
                }
            };
            if refusal == RequestError::ShuttingDown {
                return Err(refusal);
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(refusal);
            }
        }
    }

    /// Takes no new work; what is queued is still done.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        self.shared.room.notify_waiters();
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A worker catches the engine's panics; there is nothing to learn from its own.
            let _ = thread.join();
        }
    }
}

impl Ticket {
    /// Waits for the vectors.
    pub(crate) async fn wait(mut self, deadline: Instant) -> Result<Computed, RequestError> {
        let Some(done) = self.done.as_mut() else { return Err(RequestError::Deadline) };
        match tokio::time::timeout_at(deadline.into(), done).await {
            Err(_) => Err(RequestError::Deadline),
            Ok(Err(_)) => Err(RequestError::Engine { message: "a worker was lost".into() }),
            Ok(Ok(computed)) => {
                self.done = None;
                Ok(computed)
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.shared.cancel(self.lane, self.id);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.lock().reserved_tokens[self.lane as usize] -= self.tokens;
        self.shared.room.notify_waiters();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; the engine's panics happen outside of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A single request may be larger than the queue; it is let in when there is any room, so the
    /// queue holds at most its limit and one request.
    fn admit(&self, state: &State, hope: Option<(Lane, Instant)>) -> Result<(), RequestError> {
        if state.closed {
            return Err(RequestError::ShuttingDown);
        }
        let rate = state.rate * self.engine.workers() as f64;
        let seconds = |tokens: usize| (tokens as f64 / rate.max(1.0)).min(3600.0);
        // Before the first block the rate is not known, and less than a block says nothing.
        let hopeless = hope.is_some_and(|(lane, deadline)| {
            let ahead = state.ahead(lane);
            let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
            rate > 0.0 && ahead > self.engine.block_tokens() && seconds(ahead) > HOPEFUL * left
        });
        // Bulk stands behind everything.
        let all = state.ahead(Lane::Bulk);
        if all < self.limit_tokens && !hopeless {
            return Ok(());
        }
        let whole = Duration::from_secs(seconds(all).ceil() as u64);
        Err(RequestError::Overloaded { retry_after: whole.clamp(RETRY_AFTER.0, RETRY_AFTER.1) })
    }

    fn push(self: &Arc<Self>, state: &mut State, work: Work) -> Ticket {
        let (sender, receiver) = oneshot::channel();
        let id = state.next_id;
        state.next_id += 1;
        let ticket = |done| Ticket { id, lane: work.lane, shared: self.clone(), done };
        let computed = Computed {
            values: vec![0.0; work.rows.len() * self.engine.dim()],
            errors: Vec::new(),
            queued: Duration::ZERO,
            computed: Duration::ZERO,
        };
        if work.rows.is_empty() {
            // The receiver is here, so this cannot fail.
            let _ = sender.send(computed);
            return ticket(Some(receiver));
        }
        let output = Output::new(computed, work.rows.len(), sender);
        let tokens = work.rows.iter().map(Vec::len).sum();
        state.queued_tokens[work.lane as usize] += tokens;
        state.lanes[work.lane as usize].push_back(Job {
            id,
            rows: work.rows.into_iter().enumerate().collect(),
            tokens,
            turn_tokens: self.turn_tokens(),
            skip: work.skip,
            unnormalized: work.unnormalized,
            deadline: work.deadline,
            output: Arc::new(output),
        });
        self.publish(state);
        self.work.notify_all();
        ticket(Some(receiver))
    }

    fn turn_tokens(&self) -> usize {
        TURN_BLOCKS * self.engine.block_tokens()
    }

    fn cancel(&self, lane: Lane, id: u64) {
        let mut state = self.lock();
        let jobs = &mut state.lanes[lane as usize];
        let Some(place) = jobs.iter().position(|job| job.id == id) else { return };
        if let Some(job) = jobs.remove(place) {
            state.queued_tokens[lane as usize] -= job.tokens;
            self.metrics.count_rows("cancelled", job.rows.len());
        }
        self.publish(&state);
        drop(state);
        self.room.notify_waiters();
    }

    fn publish(&self, state: &State) {
        self.metrics.queue_tokens.set(state.queued() as i64);
        self.metrics
            .queue_requests
            .set(state.lanes.iter().map(VecDeque::len).sum::<usize>() as i64);
        self.metrics.busy_workers.set(state.busy() as i64);
    }

    /// One worker's life.
    fn run(&self, worker: usize, duty: Duty) {
        loop {
            let block = {
                let mut state = self.lock();
                loop {
                    if let Some(block) = self.take(&mut state, duty) {
                        if duty == Duty::Any {
                            state.busy[block.lane as usize] += 1;
                        }
                        self.publish(&state);
                        break block;
                    }
                    if state.closed {
                        return;
                    }
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            self.room.notify_waiters();
            let (lane, tokens, start) = (block.lane, block.tokens, Instant::now());
            self.compute(worker, block, start);
            let seconds = start.elapsed().as_secs_f64();
            self.metrics.tokens.inc_by(tokens as u64);
            self.metrics.block_seconds.observe(seconds);
            self.metrics.busy_seconds.inc_by(seconds);
            let mut state = self.lock();
            if duty == Duty::Urgent {
                // It took time from the others, so its rate is nobody's.
                continue;
            }
            state.busy[lane as usize] -= 1;
            let rate = tokens as f64 / seconds.max(1e-6);
            state.rate = if state.rate == 0.0 { rate } else { 0.9 * state.rate + 0.1 * rate };
            self.publish(&state);
        }
    }

    /// The lane whose turn it is with a worker of this duty, if any row waits for it.
    fn turn(&self, state: &mut State, duty: Duty) -> Option<Lane> {
        let waiting = |lane: Lane| !state.lanes[lane as usize].is_empty();
        if duty == Duty::Urgent {
            // Without bulk in the way there is nobody to take time from but its like.
            let overtakes = state.busy[Lane::Bulk as usize] > 0;
            let none_free = state.busy() >= self.engine.workers();
            let urgent = overtakes && none_free && waiting(Lane::Interactive);
            return urgent.then_some(Lane::Interactive);
        }
        let lane = match (waiting(Lane::Interactive), waiting(Lane::Bulk)) {
            (false, false) => return None,
            (false, true) => Lane::Bulk,
            (true, false) => Lane::Interactive,
            (true, true) if state.interactive_run >= INTERACTIVE_RUN => Lane::Bulk,
            (true, true) => Lane::Interactive,
        };
        match lane {
            Lane::Interactive => state.interactive_run += 1,
            Lane::Bulk => {
                state.interactive_run = 0;
                // Those who wait may be urgent now.
                self.work.notify_all();
            }
        }
        Some(lane)
    }

    /// The next block, if any row waits for a worker of this duty.
    fn take(&self, state: &mut State, duty: Duty) -> Option<Block> {
        self.expire(state);
        let lane = self.turn(state, duty)?;
        let idle = self.engine.workers().saturating_sub(state.busy()).max(1);
        let queue = &mut state.lanes[lane as usize];
        let queued = state.queued_tokens[lane as usize];
        let share = queued.div_ceil(idle).max(self.engine.least_tokens());
        let budget = self.engine.block_tokens().min(share).max(1);
        let skip = queue.front()?.skip;
        let mut block = Block { lane, parts: Vec::new(), skip, tokens: 0 };
        // What is left of a request stays in front until its turn is over.
        let (mut front, mut back) = (Vec::new(), None);
        while block.tokens < budget && front.len() < LOOK_AHEAD {
            let Some(mut job) = queue.pop_front() else { break };
            if job.skip != skip {
                front.push(job);
                continue;
            }
            let (mut rows, before) = (Vec::new(), block.tokens);
            while let Some((_, ids)) = job.rows.front() {
                if block.tokens + ids.len() > budget && block.tokens > 0 {
                    break;
                }
                block.tokens += ids.len();
                rows.extend(job.rows.pop_front());
            }
            let taken = block.tokens - before;
            job.tokens -= taken;
            state.queued_tokens[lane as usize] -= taken;
            job.turn_tokens = job.turn_tokens.saturating_sub(taken);
            if !rows.is_empty() {
                let (output, unnormalized) = (job.output.clone(), job.unnormalized);
                block.parts.push(Part { output, unnormalized, rows });
            }
            match (job.rows.is_empty(), job.turn_tokens) {
                (true, _) => {}
                (false, 0) => {
                    job.turn_tokens = self.turn_tokens();
                    back = Some(job);
                    break;
                }
                (false, _) => front.push(job),
            }
        }
        front.into_iter().rev().for_each(|job| queue.push_front(job));
        queue.extend(back);
        Some(block)
    }

    /// Answers the requests at the head of the lanes whose deadline has passed.
    fn expire(&self, state: &mut State) {
        let now = Instant::now();
        let State { lanes, queued_tokens, .. } = state;
        for (lane, queued) in lanes.iter_mut().zip(queued_tokens) {
            lane.retain(|job| {
                if job.deadline > now {
                    return true;
                }
                *queued -= job.tokens;
                self.metrics.count_rows("expired", job.rows.len());
                let expired = job.rows.iter().map(|(row, _)| (*row, Err(ItemError::Deadline)));
                job.output.put(expired, self.engine.dim());
                false
            });
        }
    }

    fn compute(&self, worker: usize, block: Block, start: Instant) {
        let rows: Vec<BlockRow<'_>> = block
            .parts
            .iter()
            .flat_map(|part| part.rows.iter().map(|(_, ids)| (part.unnormalized, ids)))
            .map(|(unnormalized, ids)| BlockRow { ids, unnormalized })
            .collect();
        self.metrics.block_tokens.observe(block.tokens as f64);
        self.metrics.block_rows.observe(rows.len() as f64);
        for part in &block.parts {
            part.output.start(start);
        }
        let computed =
            catch_unwind(AssertUnwindSafe(|| self.engine.compute(worker, &rows, block.skip)));
        let computed = computed.unwrap_or_else(|_| {
            self.metrics.panics.inc();
            Err("the engine panicked; this is a bug in Fletcher".into())
        });
        let mut vectors = match computed {
            Ok(vectors) => vectors.into_iter(),
            Err(message) => {
                tracing::error!(message, rows = rows.len(), "a block failed");
                self.failed.send_if_modified(|first| {
                    first.is_none() && first.replace(message.clone()).is_none()
                });
                vec![Err(ItemError::Engine { message }); rows.len()].into_iter()
            }
        };
        for part in &block.parts {
            let results = part.rows.iter().map(|(row, _)| *row).zip(vectors.by_ref());
            part.output.put(results, self.engine.dim());
        }
    }
}

#[cfg(test)]
mod tests;
