//! Threads beside the one that reads and the one that writes.
//!
//! One thread reads or makes a hundred thousand to two million rows a second, where a GPU makes
//! millions of vectors. So what can be made of bytes or rows without knowing those before is made
//! by several threads, and delivered in order.

use std::io;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// As many threads as are asked for; 0 lets the machine decide. One of few cores gets one: the
/// encoder has more use for the others.
pub(crate) fn resolve(threads: usize) -> usize {
    const MOST: usize = 4;
    match threads {
        0 => (thread::available_parallelism().map_or(1, NonZero::get) / 4).clamp(1, MOST),
        threads => threads,
    }
}

/// A thread whose name tools show.
pub(crate) fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

/// What threads make of pieces of work ahead of whoever takes it, in the order of the pieces.
pub(crate) struct Ahead<T> {
    /// Where each piece's outcome will arrive. Its bound is what limits how far they are ahead.
    order: Receiver<Receiver<T>>,
}

/// What the threads share.
struct Pieces<F, T> {
    take: F,
    order: SyncSender<Receiver<T>>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Threads that take one piece after the other until there is none, and work on them at the
    /// same time. At most `threads` pieces are worked on or wait, and one more is at hand.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start<P>(
        threads: usize,
        take: impl FnMut() -> Option<P> + Send + 'static,
        work: impl Fn(P) -> T + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (sender, order) = sync_channel(threads);
        let shared = Arc::new((Mutex::new(Pieces { take, order: sender }), work));
        for _ in 0..threads {
            let shared = shared.clone();
            let worker = move || {
                let (pieces, work) = &*shared;
                loop {
                    let (piece, outcome) = {
                        // Who panics below takes the end of the order with it, which is noticed.
                        let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
                        let Some(piece) = (pieces.take)() else { return };
                        let (outcome, receiver) = sync_channel(1);
                        // Under the lock, so that the order is that of the pieces. It fails when
                        // nobody takes any more.
                        if pieces.order.send(receiver).is_err() {
                            return;
                        }
                        (piece, outcome)
                    };
                    if outcome.send(work(piece)).is_err() {
                        return;
                    }
                }
            };
            named("fletcher-read").spawn(worker)?;
        }
        Ok(Self { order })
    }

    /// What was made of the next piece; `None` after the last.
    ///
    /// # Panics
    /// If the piece's thread did.
    pub(crate) fn next(&mut self) -> Option<T> {
        let outcome = self.order.recv().ok()?;
        match outcome.recv() {
            Ok(outcome) => Some(outcome),
            Err(_) => panic!("a thread that read ahead panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn outcomes_come_in_order_and_not_too_far_ahead() {
        let taken = Arc::new(AtomicUsize::new(0));
        let (count, mut next) = (taken.clone(), 0_u64);
        let take = move || {
            next += 1;
            count.fetch_add(1, Ordering::Relaxed);
            (next <= 50).then_some(next)
        };
        // Later pieces are ready sooner, of each four.
        let work = |piece: u64| {
            thread::sleep(Duration::from_micros(300 * (4 - piece % 4)));
            piece
        };
        let mut ahead = Ahead::start(3, take, work).unwrap();
        for want in 1..=50 {
            assert_eq!(ahead.next(), Some(want));
            // Three wait or are worked on, one is at hand, and one may be on its way here.
            assert!(taken.load(Ordering::Relaxed) as u64 <= want + 5);
        }
        assert_eq!(ahead.next(), None);
    }

    #[test]
    fn a_lost_piece_is_not_passed_over() {
        let mut pieces = 0..10;
        let work = |piece: i32| {
            assert_ne!(piece, 5, "expected by the test");
            piece
        };
        let mut ahead = Ahead::start(2, move || pieces.next(), work).unwrap();
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            std::iter::from_fn(|| ahead.next()).count()
        }));
        assert!(taken.is_err());
    }
}
