//! Answers of many rows, written as they are sent: a large answer is never in memory as text.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::stream;

use super::typed;
use crate::answer::Answer;

/// How much text is made at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// A JSON answer: `before`, the rows with commas between them, `after`.
pub(super) struct Rows<F> {
    pub(super) before: String,
    pub(super) write: F,
    pub(super) after: String,
}

impl<F> Rows<F>
where
    F: Fn(&Answer, usize, &mut Vec<u8>) + Send + 'static,
{
    pub(super) fn respond(self, answer: Answer) -> Response {
        let count = answer.rows.len();
        let Rows { before, write, after } = self;
        // The next chunk from some row on, and the row after it.
        let chunk = move |mut row: usize| {
            let mut text = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
            if row == 0 {
                text.extend_from_slice(before.as_bytes());
            }
            while row < count && text.len() < CHUNK_BYTES {
                if row > 0 {
                    text.push(b',');
                }
                write(&answer, row, &mut text);
                row += 1;
            }
            if row == count {
                text.extend_from_slice(after.as_bytes());
            }
            (text, row)
        };
        let (first, next) = chunk(0);
        let body = match next == count {
            true => Body::from(first),
            false => {
                let rest = stream::unfold(next, move |row| {
                    let more = (row < count).then(|| chunk(row));
                    std::future::ready(more.map(|(text, next)| (Bytes::from(text), next)))
                });
                let first = stream::once(std::future::ready(Bytes::from(first)));
                let whole = futures_util::StreamExt::chain(first, rest);
                Body::from_stream(futures_util::StreamExt::map(whole, Ok::<_, Infallible>))
            }
        };
        typed(StatusCode::OK, "application/json", body)
    }
}

/// A vector as a JSON list of numbers that read back as the same f32.
pub(super) fn write_floats(vector: &[f32], text: &mut Vec<u8>) {
    // Writing to memory cannot fail, and the values are finite.
    let _ = serde_json::to_writer(text, vector);
}

/// A vector as base64 of little-endian f32, in quotes.
pub(super) fn write_base64(vector: &[f32], text: &mut Vec<u8>) {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    text.push(b'"');
    let at = text.len();
    text.resize(at + bytes.len().div_ceil(3) * 4, 0);
    // The slice has exactly the length that padded base64 takes.
    let written = BASE64_STANDARD.encode_slice(&bytes, &mut text[at..]);
    debug_assert_eq!(written.ok(), Some(text.len() - at));
    text.push(b'"');
}
