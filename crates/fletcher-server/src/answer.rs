//! A request's answer, finished and on the way.

use std::time::Duration;

use fletcher_core::embedder::Embedding;
use fletcher_core::text::TokenIds;

use crate::batcher::Computed;
use crate::cache::{Key, Stored};
use crate::error::{ItemError, RequestError};

/// The vectors of a request.
#[derive(Debug)]
pub struct Answer {
    /// Length of a vector.
    pub dim: usize,
    /// `rows.len() * dim` values; a failed row's are 0.
    pub values: Vec<f32>,
    /// What became of each text.
    pub rows: Vec<Result<Embedding, ItemError>>,
    /// Characters of the texts.
    pub characters: usize,
    /// Where the time went.
    pub timings: Timings,
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// All of it.
    pub total: Duration,
    /// Texts to token ids.
    pub tokenize: Duration,
    /// Waiting for the first block.
    pub queue: Duration,
    /// From the first block to the last.
    pub inference: Duration,
}

impl Answer {
    /// The vector of a text, if it has one.
    pub fn vector(&self, row: usize) -> Option<&[f32]> {
        let done = self.rows.get(row)?.is_ok();
        done.then(|| &self.values[row * self.dim..(row + 1) * self.dim])
    }

    /// Tokens that the encoder saw.
    pub fn tokens(&self) -> usize {
        self.rows.iter().flatten().map(|row| row.tokens).sum()
    }

    /// For dialects without a place for one text's error: the first becomes the request's.
    ///
    /// # Errors
    /// When a text has no vector.
    pub fn strict(self) -> Result<Self, RequestError> {
        let failed = self.rows.iter().enumerate().find_map(|(index, row)| {
            let error = row.as_ref().err()?.clone();
            Some(RequestError::Item { index, error })
        });
        failed.map_or(Ok(self), Err)
    }
}

/// The states of each text's tokens.
#[derive(Debug)]
pub struct Hidden {
    /// Length of one state.
    pub width: usize,
    /// Tokens of each text, with their states one after the other.
    pub states: Vec<(usize, Vec<f32>)>,
    /// Where the time went.
    pub timings: Timings,
}

/// A request's texts as rows for the encoder.
pub(crate) struct Prepared {
    pub(crate) rows: Vec<Result<TokenIds, ItemError>>,
    pub(crate) keys: Vec<Key>,
    pub(crate) skip: usize,
    pub(crate) characters: usize,
}

/// An answer on the way.
pub(crate) struct Assembled {
    pub(crate) dim: usize,
    pub(crate) values: Vec<f32>,
    pub(crate) rows: Vec<Result<Embedding, ItemError>>,
    pub(crate) ids: Vec<Vec<u32>>,
    pub(crate) keys: Vec<Key>,
    pub(crate) skip: usize,
    pub(crate) characters: usize,
    pub(crate) queue: Duration,
    pub(crate) inference: Duration,
}

impl Assembled {
    pub(crate) fn new(prepared: Prepared, dim: usize) -> Self {
        let count = prepared.rows.len();
        let (mut rows, mut ids) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for row in prepared.rows {
            let (row, row_ids) = match row {
                Ok(row) if row.ids.is_empty() => {
                    let message = "the text has no tokens".into();
                    (Err(ItemError::Text { message }), Vec::new())
                }
                Ok(row) => {
                    let (tokens, truncated) = (row.ids.len(), row.truncated);
                    (Ok(Embedding { tokens, truncated }), row.ids)
                }
                Err(error) => (Err(error), Vec::new()),
            };
            rows.push(row);
            ids.push(row_ids);
        }
        Self {
            dim,
            values: vec![0.0; count * dim],
            rows,
            ids,
            keys: prepared.keys,
            skip: prepared.skip,
            characters: prepared.characters,
            queue: Duration::ZERO,
            inference: Duration::ZERO,
        }
    }

    pub(crate) fn set(&mut self, row: usize, stored: &Stored) {
        let place = row * self.dim..(row + 1) * self.dim;
        self.values[place].copy_from_slice(&stored.vector);
        self.rows[row] = Ok(stored.embedding);
    }

    pub(crate) fn stored(&self, row: usize) -> Option<Stored> {
        let embedding = *self.rows[row].as_ref().ok()?;
        let vector = self.values[row * self.dim..(row + 1) * self.dim].into();
        Some(Stored { vector, embedding })
    }

    pub(crate) fn merge(&mut self, rows: &[usize], computed: Computed) {
        let dim = self.dim;
        match rows.len() == self.rows.len() {
            true => self.values = computed.values,
            false => {
                for (&row, vector) in rows.iter().zip(computed.values.chunks_exact(dim)) {
                    self.values[row * dim..(row + 1) * dim].copy_from_slice(vector);
                }
            }
        }
        for (place, error) in computed.errors {
            self.rows[rows[place]] = Err(error);
        }
        self.queue = self.queue.max(computed.queued);
        self.inference += computed.computed;
    }
}
