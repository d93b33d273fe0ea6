//! A request's body whose rest is still taken from the client when nobody wants it any more.
//!
//! A request is often refused before its body is there: no key, too large, no room. Over HTTP/1
//! the answer is sent at once, but a client that is still sending does not look for it yet. If the
//! connection were closed now, the system would answer what comes after with a reset, which also
//! throws away what was sent, and the client would see a broken pipe instead of the reason. So the
//! rest is read and dropped, at most so much of it for so long; a client that is done by then can
//! go on with its connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Version, header};
use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Bytes of a refused body that are taken from a client before its connection is closed.
const BYTES: usize = 8 << 20;
/// How long that may take.
const TIME: Duration = Duration::from_secs(2);

/// See the module.
struct UnreadBody {
    /// Gone when it has come to its end.
    body: Option<Incoming>,
    /// Nothing of it was asked for yet, and the client waits to be asked.
    awaits_consent: bool,
}

/// The request with a body that is taken to its end, within limits. HTTP/2 needs no such thing: one
/// stream's end is told within the connection.
pub(crate) fn take(request: Request<Incoming>) -> Request<Body> {
    if request.version() > Version::HTTP_11 {
        return request.map(Body::new);
    }
    let awaits_consent = request.headers().contains_key(header::EXPECT);
    request.map(|body| Body::new(UnreadBody { body: Some(body), awaits_consent }))
}

impl HttpBody for UnreadBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.awaits_consent = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for UnreadBody {
    fn drop(&mut self) {
        let ended = self.is_end_stream();
        let Some(mut body) = self.body.take() else { return };
        // Asking for the rest now would have the client begin to send what it held back.
        if ended || self.awaits_consent {
            return;
        }
        // Without a runtime there is no connection to read from either.
        let Ok(runtime) = Handle::try_current() else { return };
        let rest = async move {
            let mut left = BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::remaining);
                match left.checked_sub(bytes) {
                    Some(more) => left = more,
                    None => return,
                }
            }
        };
        // Its end is as good as its last byte.
        runtime.spawn(async { drop(timeout(TIME, rest).await) });
    }
}
