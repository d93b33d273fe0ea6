//! Texts already in memory, e.g. the arguments of a command.

use crate::chunk::{Chunk, ChunkLimits, Payload};
use crate::error::SourceError;
use crate::source::{Source, SourceSchema};

pub(super) struct Texts {
    texts: std::vec::IntoIter<String>,
    total_rows: u64,
    next_row: u64,
    limits: ChunkLimits,
}

impl Texts {
    pub(super) fn new(texts: Vec<String>, limits: ChunkLimits) -> Self {
        let total_rows = texts.len() as u64;
        Self { texts: texts.into_iter(), total_rows, next_row: 0, limits }
    }
}

impl Source for Texts {
    fn schema(&self) -> &SourceSchema {
        &SourceSchema::Texts
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>, SourceError> {
        let rows = self.limits.rows.max(1);
        let texts: crate::Texts =
            self.texts.as_slice().iter().take(rows).map(|text| Ok(text.as_str())).collect();
        self.texts.by_ref().take(rows).for_each(drop);
        let first_row = self.next_row;
        self.next_row += texts.len() as u64;
        let chunk = Chunk { first_row, texts, payload: Payload::Texts };
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn set_limits(&mut self, limits: ChunkLimits) {
        self.limits = limits;
    }

    fn total_rows(&self) -> Option<u64> {
        Some(self.total_rows)
    }
}
