//! Who gives way to whom when the cores are busy.
//!
//! The threads of the connections do little at a time, but every answer waits for them, twice. So
//! the engine's threads step back behind them, and those that tokenise bulk requests behind the
//! engine's: a single text then overtakes bulk not only in the queue. While a core is free nobody
//! waits for anybody. (Between services, and between containers, Linux shares by groups, which this
//! does not touch.)

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use crate::error::RequestError;
use crate::service::blocking;

/// How far a thread steps back, in the steps of `nice`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behind {
    /// The engine, behind the connections: they get three times the time.
    Connections = 5,
    /// Tokenising bulk, behind the engine, which gets nine times the time. That is still enough to
    /// have the next rows ready before the queue is empty.
    Engine = 15,
}

/// Lets the calling thread step back. On other systems than Linux the call would mean the whole
/// process.
pub(crate) fn step_back(behind: Behind) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(behind as i32) {
        tracing::debug!(%error, ?behind, "a thread keeps the priority of all else");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = behind;
}

/// Threads that tokenise bulk requests.
pub(crate) struct Background(Option<ThreadPool>);

impl Background {
    pub(crate) fn start(threads: usize) -> Self {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("fletcher-tokens-{index}"))
            .start_handler(|_| step_back(Behind::Engine));
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
