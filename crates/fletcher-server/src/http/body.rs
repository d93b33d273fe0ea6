//! Reading a request's body: with a size limit, a limit on all bodies together, and no patience
//! for clients that trickle.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{App, Call};
use crate::error::RequestError;

/// Unit in which the bodies' share of memory is counted.
pub(crate) const UNIT: usize = 4096;
/// A body up to this size is read even when the request will be refused: cutting the connection
/// instead costs the client more than it saves us.
const COURTESY_BYTES: usize = 1 << 20;
/// Slowest pace of a body, in bytes a second, that is not taken for an attack.
pub(crate) const PACE: f64 = 16384.0;

/// A body's share of the memory for bodies, given back when dropped.
pub(crate) struct Share {
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bodies: &Arc<Semaphore>, bytes: usize) -> Result<(), RequestError> {
        let (have, want) = (self.bytes.div_ceil(UNIT), bytes.div_ceil(UNIT));
        if want > have {
            let units = u32::try_from(want - have).unwrap_or(u32::MAX);
            let more = bodies
                .clone()
                .try_acquire_many_owned(units)
                .map_err(|_| RequestError::Overloaded { retry_after: Duration::from_secs(1) })?;
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                None => self.permit = Some(more),
            }
        }
        self.bytes = self.bytes.max(bytes);
        Ok(())
    }
}

/// Reads the body of a request to the engine.
pub(super) async fn read(app: &App, request: Request) -> Result<Call, RequestError> {
    let limit = app.config.body_bytes;
    let (parts, mut body) = request.into_parts();
    let encoding = parts.headers.get(CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"));
    if let Some(encoding) =
        encoding.filter(|e| !e.is_empty() && !e.eq_ignore_ascii_case("identity"))
    {
        return Err(RequestError::invalid(format!(
            "the body's content-encoding is `{encoding}`; send it uncompressed"
        )));
    }
    let declared = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let declared: usize = declared.unwrap_or(0);
    if declared > limit {
        return Err(too_large(limit));
    }
    if declared > COURTESY_BYTES {
        app.service.check_room()?;
    }
    let mut share = Share { permit: None, bytes: 0 };
    share.grow(&app.bodies, declared)?;
    let start = Instant::now();
    let mut buffer = BytesMut::new();
    let mut whole: Option<Bytes> = None;
    loop {
        let due =
            start + app.config.body_pause + Duration::from_secs_f64(buffer.len() as f64 / PACE);
        let pause = Instant::now() + app.config.body_pause;
        let frame = tokio::time::timeout_at(due.min(pause), body.frame()).await;
        let Some(frame) = frame.map_err(|_| RequestError::SlowBody)? else { break };
        let broken = |e: axum::Error| RequestError::invalid(format!("the body broke off: {e}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        let total = buffer.len() + whole.as_ref().map_or(0, Bytes::len) + data.len();
        if total > limit {
            return Err(too_large(limit));
        }
        share.grow(&app.bodies, total)?;
        // Most bodies are one frame, which then is not copied.
        match (whole.take(), buffer.is_empty()) {
            (None, true) => whole = Some(data),
            (None, false) => buffer.extend_from_slice(&data),
            (Some(first), _) => {
                buffer.reserve(declared.max(total));
                buffer.extend_from_slice(&first);
                buffer.extend_from_slice(&data);
            }
        }
    }
    app.service.check_room()?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let body = whole.unwrap_or_else(|| buffer.freeze());
    let context = parts.extensions.get().cloned();
    Ok(Call { headers: parts.headers, query, body, context, _share: share })
}

fn too_large(limit: usize) -> RequestError {
    RequestError::TooLarge {
        message: format!("the body is larger than the limit of {limit} bytes"),
    }
}
