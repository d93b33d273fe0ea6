//! Plain lines: every line is a text, a blank one too, so that row and line numbers agree.

use crate::chunk::{Payload, RowError, RowLocation, RowProblem};
use crate::error::SourceError;
use crate::source::bytes::Bytes;
use crate::source::line_blocks::{Block, Line};
use crate::source::line_chunks::LineChunks;
use crate::source::{SourceContext, SourceSchema};
use crate::texts::{Texts, TextsBuilder};

pub(super) fn open(bytes: Bytes, context: SourceContext) -> LineChunks {
    LineChunks::new(bytes, context, SourceSchema::Texts, parse)
}

fn parse(block: &Block, context: &SourceContext) -> Result<(Texts, Payload), SourceError> {
    let mut texts = TextsBuilder::with_capacity(block.len(), block.bytes());
    for (number, line) in block.lines() {
        let text = text_of(line, RowLocation::Line(number), context.limits.row_bytes);
        texts.push(context.admit(text)?);
    }
    Ok((texts.finish(), Payload::Texts))
}

/// A line as text.
pub(super) fn text_of(
    line: Line<'_>,
    location: RowLocation,
    limit_bytes: usize,
) -> Result<&str, RowError> {
    let (problem, raw) = match line {
        Line::TooLong => (RowProblem::TooLong { limit_bytes }, None),
        Line::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(e) => (
                RowProblem::InvalidUtf8 {
                    place: "the line".to_owned(),
                    valid_up_to: e.valid_up_to(),
                },
                Some(String::from_utf8_lossy(bytes).into_owned()),
            ),
        },
    };
    Err(RowError { location, problem, raw })
}
