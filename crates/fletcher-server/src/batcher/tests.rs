//! The queue with an engine that does what the test says, when it says so.

use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// An engine whose blocks finish one by one as the test lets them, and are written down.
struct Gate {
    workers: usize,
    urgent_workers: usize,
    block_tokens: usize,
    seen: mpsc::Sender<Vec<u32>>,
    open: Mutex<mpsc::Receiver<()>>,
}

impl Engine for Gate {
    fn workers(&self) -> usize {
        self.workers
    }

    fn urgent_workers(&self) -> usize {
        self.urgent_workers
    }

    fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    fn least_tokens(&self) -> usize {
        1
    }

    fn dim(&self) -> usize {
        1
    }

    /// The vector of a row is its first id; id 13 fails, 66 fails the block, 99 panics.
    fn compute(
        &self,
        _: usize,
        rows: &[BlockRow<'_>],
        _: usize,
    ) -> Result<Vec<Result<Vec<f32>, ItemError>>, String> {
        let firsts: Vec<u32> = rows.iter().map(|row| row.ids[0]).collect();
        let _ = self.seen.send(firsts.clone());
        let _ = self.open.lock().unwrap().recv();
        assert!(!firsts.contains(&99), "as asked");
        if firsts.contains(&66) {
            return Err("no device".into());
        }
        let failed = || ItemError::Text { message: "unlucky".into() };
        let vector = |id| if id == 13 { Err(failed()) } else { Ok(vec![id as f32]) };
        Ok(firsts.into_iter().map(vector).collect())
    }
}

struct Bench {
    batcher: Batcher,
    seen: mpsc::Receiver<Vec<u32>>,
    open: mpsc::Sender<()>,
}

fn bench(block_tokens: usize, limit_tokens: usize) -> Bench {
    bench_with(block_tokens, limit_tokens, 0)
}

fn bench_with(block_tokens: usize, limit_tokens: usize, urgent_workers: usize) -> Bench {
    let (seen_sender, seen) = mpsc::channel();
    let (open, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let engine = Gate { workers: 1, urgent_workers, block_tokens, seen: seen_sender, open: gate };
    let metrics = Arc::new(Metrics::new("test", "0"));
    Bench { batcher: Batcher::start(Arc::new(engine), limit_tokens, metrics), seen, open }
}

impl Bench {
    fn next_block(&self) -> Vec<u32> {
        self.seen.recv_timeout(Duration::from_secs(10)).expect("a block")
    }

    fn no_block(&self) {
        let block = self.seen.recv_timeout(Duration::from_millis(100));
        assert!(block.is_err(), "{block:?} was not to be taken yet");
    }

    fn let_go(&self, blocks: usize) {
        (0..blocks).for_each(|_| self.open.send(()).unwrap());
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Rows of two tokens each.
fn work(lane: Lane, firsts: &[u32]) -> Work {
    let rows = firsts.iter().map(|&id| vec![id, 0]).collect();
    Work { rows, skip: 0, unnormalized: false, lane, deadline: later() }
}

#[tokio::test]
async fn rows_come_back_in_order_and_errors_stay_their_own() {
    let bench = bench(4, 1000);
    bench.let_go(10);
    let ticket = bench.batcher.submit(work(Lane::Bulk, &[1, 13, 3, 4, 5])).unwrap();
    let computed = ticket.wait(later()).await.unwrap();
    assert_eq!(computed.values, [1.0, 0.0, 3.0, 4.0, 5.0]);
    assert_eq!(computed.errors, [(1, ItemError::Text { message: "unlucky".into() })]);
}

#[tokio::test]
async fn a_failed_block_and_a_panic_are_errors_of_their_rows() {
    let bench = bench(2, 1000);
    bench.let_go(10);
    for bad in [66, 99] {
        let ticket = bench.batcher.submit(work(Lane::Bulk, &[1, bad, 3])).unwrap();
        let computed = ticket.wait(later()).await.unwrap();
        assert_eq!(computed.values, [1.0, 0.0, 3.0]);
        assert!(matches!(computed.errors[..], [(1, ItemError::Engine { .. })]));
    }
    // Who would rather stop is told the first reason.
    assert_eq!(bench.batcher.failure().await, "no device");
}

#[tokio::test]
async fn interactive_overtakes_and_bulk_does_not_starve() {
    let bench = bench(2, 1000);
    let first = bench.batcher.submit(work(Lane::Bulk, &[1, 2, 3])).unwrap();
    assert_eq!(bench.next_block(), [1]);
    let others: Vec<Ticket> =
        (10..15).map(|id| bench.batcher.submit(work(Lane::Interactive, &[id])).unwrap()).collect();
    bench.let_go(20);
    let order: Vec<u32> = (0..7).flat_map(|_| bench.next_block()).collect();
    assert_eq!(order, [10, 11, 12, 2, 13, 14, 3]);
    for ticket in others.into_iter().chain([first]) {
        ticket.wait(later()).await.unwrap();
    }
}

#[tokio::test]
async fn an_urgent_worker_takes_what_would_wait_for_a_bulk_block_and_nothing_else() {
    let bench = bench_with(2, 1000, 1);
    let bulk = bench.batcher.submit(work(Lane::Bulk, &[1, 2])).unwrap();
    assert_eq!(bench.next_block(), [1]);
    bench.no_block();
    let single = bench.batcher.submit(work(Lane::Interactive, &[10])).unwrap();
    assert_eq!(bench.next_block(), [10], "while bulk's block is not done");
    bench.let_go(3);
    assert_eq!(single.wait(later()).await.unwrap().values, [10.0]);
    assert_eq!(bulk.wait(later()).await.unwrap().values, [1.0, 2.0]);
}

#[tokio::test]
async fn an_urgent_worker_does_not_compete_with_interactive_blocks() {
    let bench = bench_with(2, 1000, 1);
    let first = bench.batcher.submit(work(Lane::Interactive, &[1])).unwrap();
    assert_eq!(bench.next_block(), [1]);
    let others: Vec<Ticket> =
        (2..6).map(|id| bench.batcher.submit(work(Lane::Interactive, &[id])).unwrap()).collect();
    let bulk = bench.batcher.submit(work(Lane::Bulk, &[20])).unwrap();
    bench.no_block();
    for expected in [2, 3] {
        bench.let_go(1);
        assert_eq!(bench.next_block(), [expected]);
    }
    // Now it is bulk's turn, and what is left would wait for it.
    bench.let_go(1);
    let mut both = [bench.next_block(), bench.next_block()].concat();
    both.sort_unstable();
    assert_eq!(both, [4, 20]);
    bench.let_go(10);
    for ticket in others.into_iter().chain([first, bulk]) {
        ticket.wait(later()).await.unwrap();
    }
}

#[tokio::test]
async fn large_requests_take_turns_and_small_ones_are_done_whole() {
    let bench = bench(2, 1000);
    let _held = bench.batcher.submit(work(Lane::Bulk, &[1])).unwrap();
    bench.next_block();
    let _a = bench.batcher.submit(work(Lane::Bulk, &[10, 11, 12, 13, 14, 15])).unwrap();
    let _b = bench.batcher.submit(work(Lane::Bulk, &[20, 21])).unwrap();
    bench.let_go(20);
    let order: Vec<u32> = (0..8).flat_map(|_| bench.next_block()).collect();
    assert_eq!(order, [10, 11, 12, 13, 20, 21, 14, 15]);
}

#[tokio::test]
async fn blocks_are_filled_from_requests_behind() {
    let bench = bench(6, 1000);
    let _held = bench.batcher.submit(work(Lane::Bulk, &[1])).unwrap();
    bench.next_block();
    let rows = vec![vec![2, 0], vec![3; 5]];
    let _a = bench.batcher.submit(Work { rows, ..work(Lane::Bulk, &[]) }).unwrap();
    let _b = bench.batcher.submit(work(Lane::Bulk, &[4, 5, 6])).unwrap();
    bench.let_go(10);
    let blocks: Vec<Vec<u32>> = (0..3).map(|_| bench.next_block()).collect();
    assert_eq!(blocks, [vec![2, 4, 5], vec![3], vec![6]]);
}

/// Queueing what cannot be done in time would only delay what can.
#[tokio::test]
async fn who_cannot_be_served_in_time_is_refused_at_once() {
    let bench = bench(2, 1000);
    let first = bench.batcher.submit(work(Lane::Bulk, &[1])).unwrap();
    bench.next_block();
    std::thread::sleep(Duration::from_millis(100));
    bench.let_go(1);
    first.wait(later()).await.unwrap();
    // At 20 tokens a second or fewer, 100 tokens take 5 s or more.
    let _held = bench.batcher.submit(work(Lane::Bulk, &[2; 50])).unwrap();
    // Whoever takes the next block has noted the last one's rate.
    bench.next_block();
    let hasty =
        |lane| Work { deadline: Instant::now() + Duration::from_secs(1), ..work(lane, &[3]) };
    assert!(matches!(
        bench.batcher.submit(hasty(Lane::Bulk)),
        Err(RequestError::Overloaded { .. })
    ));
    // Bulk's rows are not in the way of interactive ones.
    assert!(bench.batcher.submit(hasty(Lane::Interactive)).is_ok());
    bench.batcher.submit(work(Lane::Bulk, &[4])).unwrap();
    bench.let_go(100);
}

#[tokio::test]
async fn a_full_queue_refuses_and_has_room_again() {
    let bench = bench(2, 4);
    let running = bench.batcher.submit(work(Lane::Bulk, &[1])).unwrap();
    bench.next_block();
    // Larger than the whole queue, but there is room to begin with.
    let large = bench.batcher.submit(work(Lane::Bulk, &[2, 3, 4])).unwrap();
    let Err(RequestError::Overloaded { retry_after }) =
        bench.batcher.submit(work(Lane::Interactive, &[5]))
    else {
        panic!("the queue is full")
    };
    assert!((1..=60).contains(&retry_after.as_secs()));
    let patient = bench.batcher.submit_when_room(work(Lane::Bulk, &[6]));
    let patient = async { patient.await.unwrap().wait(later()).await.unwrap().values };
    let open = async { bench.let_go(10) };
    let (values, ()) = tokio::join!(patient, open);
    assert_eq!(values, [6.0]);
    running.wait(later()).await.unwrap();
    assert_eq!(large.wait(later()).await.unwrap().values, [2.0, 3.0, 4.0]);
}

/// What is admitted counts before it is tokenised, so that nobody is refused after a wait.
#[tokio::test]
async fn a_reservation_holds_room_and_gives_it_back() {
    let bench = bench(2, 10);
    let reservation = bench.batcher.reserve(Lane::Bulk, later(), 10).unwrap();
    assert!(bench.batcher.check_room().is_err());
    drop(reservation);
    assert!(bench.batcher.check_room().is_ok());
    let reservation = bench.batcher.reserve(Lane::Bulk, later(), 100).unwrap();
    let ticket = bench.batcher.submit_admitted(work(Lane::Bulk, &[1]), Some(reservation));
    assert!(bench.batcher.check_room().is_ok(), "what is queued counts by its real length");
    bench.let_go(1);
    assert_eq!(ticket.wait(later()).await.unwrap().values, [1.0]);
}

#[tokio::test]
async fn who_leaves_gives_the_place_up() {
    let bench = bench(2, 4);
    let running = bench.batcher.submit(work(Lane::Bulk, &[1])).unwrap();
    bench.next_block();
    let leaving = bench.batcher.submit(work(Lane::Bulk, &[2, 3])).unwrap();
    assert!(bench.batcher.check_room().is_err());
    drop(leaving);
    assert!(bench.batcher.check_room().is_ok());
    let next = bench.batcher.submit(work(Lane::Bulk, &[4])).unwrap();
    bench.let_go(10);
    assert_eq!(bench.next_block(), [4]);
    running.wait(later()).await.unwrap();
    next.wait(later()).await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_the_rows() {
    let bench = bench(2, 100);
    let running = bench.batcher.submit(work(Lane::Bulk, &[1])).unwrap();
    bench.next_block();
    let soon = Instant::now() + Duration::from_millis(20);
    let late = bench.batcher.submit(Work { deadline: soon, ..work(Lane::Bulk, &[2]) }).unwrap();
    // The worker is held, so only the waiting side can end this.
    assert_eq!(late.wait(soon).await.unwrap_err(), RequestError::Deadline);
    let late = bench.batcher.submit(Work { deadline: soon, ..work(Lane::Bulk, &[3]) }).unwrap();
    let next = bench.batcher.submit(work(Lane::Bulk, &[4])).unwrap();
    bench.let_go(10);
    assert_eq!(bench.next_block(), [4], "expired rows are not computed");
    assert_eq!(late.wait(later()).await.unwrap().errors, [(0, ItemError::Deadline)]);
    running.wait(later()).await.unwrap();
    next.wait(later()).await.unwrap();
}

#[tokio::test]
async fn closing_finishes_what_is_queued() {
    let bench = bench(2, 100);
    let queued = bench.batcher.submit(work(Lane::Bulk, &[1, 2, 3])).unwrap();
    bench.batcher.close();
    assert_eq!(
        bench.batcher.submit(work(Lane::Bulk, &[4])).err(),
        Some(RequestError::ShuttingDown)
    );
    bench.let_go(3);
    assert_eq!(queued.wait(later()).await.unwrap().values, [1.0, 2.0, 3.0]);
}

#[tokio::test]
async fn rows_of_different_prompts_do_not_share_a_block() {
    let bench = bench(100, 100);
    let _held = bench.batcher.submit(work(Lane::Bulk, &[1])).unwrap();
    bench.next_block();
    let _a = bench.batcher.submit(Work { skip: 3, ..work(Lane::Bulk, &[2]) }).unwrap();
    let _b = bench.batcher.submit(work(Lane::Bulk, &[3])).unwrap();
    let _c = bench.batcher.submit(Work { skip: 3, ..work(Lane::Bulk, &[4]) }).unwrap();
    bench.let_go(10);
    assert_eq!(bench.next_block(), [2, 4]);
    assert_eq!(bench.next_block(), [3]);
}
