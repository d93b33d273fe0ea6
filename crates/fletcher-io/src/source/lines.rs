//! Plain lines: every line is a text, a blank one too, so that row and line numbers agree.

use crate::chunk::{Chunk, Payload, RowError, RowLocation, RowProblem};
use crate::error::SourceError;
use crate::source::bytes::Bytes;
use crate::source::line_reader::{Line, LineReader};
use crate::source::{Source, SourceContext, SourceSchema};

pub(super) struct Lines {
    reader: LineReader,
    total_bytes: Option<u64>,
    next_row: u64,
    context: SourceContext,
}

impl Lines {
    pub(super) fn new(bytes: Bytes, context: SourceContext) -> Self {
        let total_bytes = bytes.len();
        let reader = LineReader::new(bytes.into_reader(), context.limits.row_bytes);
        Self { reader, total_bytes, next_row: 0, context }
    }
}

impl Source for Lines {
    fn schema(&self) -> &SourceSchema {
        &SourceSchema::Texts
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        let limits = self.context.limits;
        let first_byte = self.reader.bytes_read();
        let mut texts = Vec::new();
        while texts.len() < limits.rows.max(1)
            && self.reader.bytes_read() - first_byte < limits.bytes.max(1) as u64
        {
            let location = RowLocation::Line(self.reader.number() + 1);
            let Some(line) = self.reader.next_line().map_err(|e| self.context.io(e))? else {
                break;
            };
            texts.push(self.context.admit(text_of(line, location, limits.row_bytes))?);
        }
        let first_row = self.next_row;
        self.next_row += texts.len() as u64;
        let chunk = Chunk { first_row, texts, payload: Payload::Texts };
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    fn bytes_read(&self) -> u64 {
        self.reader.bytes_read()
    }
}

/// A line as text.
pub(super) fn text_of(
    line: Line<'_>,
    location: RowLocation,
    limit_bytes: usize,
) -> Result<String, RowError> {
    let (problem, raw) = match line {
        Line::TooLong => (RowProblem::TooLong { limit_bytes }, None),
        Line::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => return Ok(text.to_owned()),
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
