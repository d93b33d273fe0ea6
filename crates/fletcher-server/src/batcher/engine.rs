//! The engine as the batcher sees it: the embedder, or what a test puts in its place.

use fletcher_core::embedder::{BlockRow, Embedder};

use crate::error::ItemError;

/// What the batcher needs of an engine.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Blocks that can be computed at once.
    fn workers(&self) -> usize;
    /// Blocks that can be computed beside those, taking time from them.
    fn urgent_workers(&self) -> usize;
    /// Tokens that a block should have.
    fn block_tokens(&self) -> usize;
    /// Tokens below which a block is not made smaller to give every worker one.
    fn least_tokens(&self) -> usize;
    /// Length of a vector.
    fn dim(&self) -> usize;
    /// The vectors of a block.
    fn compute(
        &self,
        worker: usize,
        rows: &[BlockRow<'_>],
        skip: usize,
    ) -> Result<Vec<Result<Vec<f32>, ItemError>>, String>;
}

impl Engine for Embedder {
    fn workers(&self) -> usize {
        self.concurrent_blocks()
    }

    fn urgent_workers(&self) -> usize {
        self.urgent_blocks()
    }

    fn block_tokens(&self) -> usize {
        Embedder::block_tokens(self)
    }

    fn least_tokens(&self) -> usize {
        Embedder::least_tokens(self)
    }

    fn dim(&self) -> usize {
        Embedder::dim(self)
    }

    fn compute(
        &self,
        worker: usize,
        rows: &[BlockRow<'_>],
        skip: usize,
    ) -> Result<Vec<Result<Vec<f32>, ItemError>>, String> {
        let vectors = self.embed_block(worker, rows, skip).map_err(|error| error.to_string())?;
        Ok(vectors.into_iter().map(|row| row.map_err(ItemError::from)).collect())
    }
}
