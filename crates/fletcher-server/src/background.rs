//! Threads that tokenise bulk requests behind everybody's back: at a lower priority than the engine's
//! and the connections' threads, so that a large request does not delay the answer to a small one.
//! While the engine has nothing to do, they have the cores to themselves.

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use crate::error::RequestError;
use crate::service::blocking;

/// How much lower, in the steps of `nice`: while the engine is busy, its threads get ten times the time
/// of these, which is still enough to have the next rows ready before the queue is empty.
#[cfg(target_os = "linux")]
const NICER: i32 = 10;

/// The threads.
pub(crate) struct Background(Option<ThreadPool>);

impl Background {
    pub(crate) fn start(threads: usize) -> Self {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("fletcher-tokens-{index}"))
            .start_handler(|_| step_back());
        // Without threads of its own the work is done on those of other blocking work.
        Self(pool.build().ok())
    }

    /// Runs work on these threads; within it, rayon's iterators use those of them that are free.
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, RequestError> {
        let Some(pool) = &self.0 else { return blocking(work).await };
        let (sender, receiver) = oneshot::channel();
        pool.spawn(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // Nobody waits any more if this fails, which is the client's right.
            let _ = sender.send(outcome.ok());
        });
        let lost = || RequestError::Engine { message: "a task panicked; this is a bug".into() };
        receiver.await.ok().flatten().ok_or_else(lost)
    }
}

/// Gives way to other threads. On other systems the call would mean the whole process.
fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICER) {
        tracing::debug!(%error, "bulk requests are tokenised at the priority of all else");
    }
}
