//! gRPC's messages share the memory for bodies with HTTP's.
//!
//! A message counts from its first byte, by what came and not by what its length claims, until the
//! call has answered it. Streams have a few messages in the engine at once, so those before the
//! last few count no more when the next one begins. When the share is used up the call is refused;
//! a message that pauses is given up, as a body of HTTP is.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::tei::STREAM_TEXTS;
use super::{is_unreadable, unreadable};
use crate::error::RequestError;
use crate::flight::BATCHES_AHEAD;
use crate::http::{App, PACE, UNIT};

/// Length of what stands before each message: a flag and the length.
const PREFIX_BYTES: usize = 5;

/// What the messages of one call hold, until the call is over.
type Held = Arc<Mutex<VecDeque<OwnedSemaphorePermit>>>;

/// Counts a call's messages; a layer.
pub(super) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    // In flight, one being read, and one whose answer is on its way.
    let keep = 2 + match request.uri().path().starts_with("/tei.v1.") {
        true => STREAM_TEXTS,
        false => BATCHES_AHEAD,
    };
    let held = Held::default();
    let request = request.map(|body| {
        Body::new(Counted {
            body,
            bodies: app.bodies.clone(),
            pause: app.config.body_pause,
            held: held.clone(),
            keep,
            prefix: [0; PREFIX_BYTES],
            prefix_bytes: 0,
            left: 0,
            bytes: 0,
            units: 0,
            due: None,
        })
    });
    let response = next.run(request).await;
    let response = match Status::from_header_map(response.headers()) {
        Some(status) if is_unreadable(&status) => unreadable(status).into_http(),
        _ => response,
    };
    response.map(|body| Body::new(Holding { body, _held: held }))
}

/// A request's body, counted.
struct Counted {
    body: Body,
    bodies: Arc<Semaphore>,
    /// How long a message may pause.
    pause: Duration,
    held: Held,
    /// Messages that may be in the engine at once.
    keep: usize,
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    /// Bytes of the message that came.
    bytes: usize,
    /// What the message holds of the share.
    units: usize,
    /// When the message's next bytes must be here; none between two messages.
    due: Option<Pin<Box<Sleep>>>,
}

impl Counted {
    /// Follows the messages' borders through some bytes.
    fn take(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            if self.left == 0 && self.prefix_bytes < PREFIX_BYTES {
                if self.prefix_bytes == 0 {
                    self.begin();
                }
                self.prefix[self.prefix_bytes] = data[0];
                (self.prefix_bytes, data) = (self.prefix_bytes + 1, &data[1..]);
                if self.prefix_bytes == PREFIX_BYTES {
                    let [_, length @ ..] = self.prefix;
                    self.left = u32::from_be_bytes(length) as usize;
                }
            } else {
                let here = self.left.min(data.len());
                self.grow(here)?;
                (self.left, data) = (self.left - here, &data[here..]);
            }
            if self.left == 0 && self.prefix_bytes == PREFIX_BYTES {
                (self.prefix_bytes, self.due) = (0, None);
            }
        }
        Ok(())
    }

    fn begin(&mut self) {
        (self.bytes, self.units) = (0, 0);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.len() >= self.keep {
            held.pop_front();
        }
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        self.bytes += bytes;
        let more = self.bytes.div_ceil(UNIT) - self.units;
        if more == 0 {
            return Ok(());
        }
        let full = RequestError::Overloaded { retry_after: Duration::from_secs(1) };
        let permit = self.bodies.clone().try_acquire_many_owned(more as u32);
        let permit = permit.map_err(|_| Status::from(full))?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.back_mut() {
            Some(last) if self.units > 0 => last.merge(permit),
            _ => held.push_back(permit),
        }
        self.units += more;
        Ok(())
    }

    fn in_message(&self) -> bool {
        self.left > 0 || self.prefix_bytes > 0
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.take(data)?;
                    let pace = Duration::from_secs_f64(self.bytes as f64 / PACE);
                    let due = Instant::now() + self.pause.max(pace.min(2 * self.pause));
                    self.due = self.in_message().then(|| Box::pin(tokio::time::sleep_until(due)));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(Status::cancelled(format!("the call broke off: {error}")))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.due.as_mut().map(|due| due.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => {
                    Poll::Ready(Some(Err(Status::from(RequestError::SlowBody))))
                }
                _ => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer that holds its request's share to its end.
struct Holding {
    body: Body,
    _held: Held,
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
