//! A connection that cannot be held open by doing nothing: the first bytes must come in time, and
//! a client that does not read its answers is let go.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Length of HTTP/2's greeting. Until so much came, or we have something to say, hyper waits
/// without a limit, to tell HTTP/1 from HTTP/2.
const GREETING_BYTES: usize = 24;

/// How long a connection may do nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until the first bytes came.
    pub(crate) greeting: Duration,
    /// While we have something to send and the client does not take it.
    pub(crate) write: Duration,
}

/// A stream with [`Patience`].
pub(crate) struct GuardedIo<T> {
    inner: T,
    /// Runs until the first bytes came.
    greeting: Option<Pin<Box<Sleep>>>,
    read_bytes: usize,
    write: Pin<Box<Sleep>>,
    writing: bool,
    patience: Patience,
}

impl<T> GuardedIo<T> {
    pub(crate) fn new(inner: T, patience: Patience) -> Self {
        let greeting = Some(Box::pin(tokio::time::sleep(patience.greeting)));
        let write = Box::pin(tokio::time::sleep(patience.write));
        Self { inner, greeting, read_bytes: 0, write, writing: false, patience }
    }

    /// Passes a write's outcome on, or the end of patience.
    fn watch<R>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.greeting = None;
            self.writing = false;
            return outcome;
        }
        if !self.writing {
            self.writing = true;
            self.write.as_mut().reset(Instant::now() + self.patience.write);
        }
        ready!(self.write.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GuardedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.read_bytes += buffer.filled().len() - before;
        if self.read_bytes >= GREETING_BYTES {
            self.greeting = None;
        }
        match (&mut self.greeting, outcome) {
            (Some(greeting), Poll::Pending) => {
                ready!(greeting.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came")))
            }
            (_, outcome) => outcome,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for GuardedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.watch(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, outcome)
    }
}
