//! One call: texts or ids in, vectors in their order out.
//!
//! Workers share a plan behind a lock. A worker that asks for something to do gets a block to
//! encode if enough rows wait, else a slice of texts to tokenise. So tokenising runs a few blocks
//! ahead of encoding, no worker waits for another to finish a phase, and a device that one or two
//! threads feed is fed while the others tokenise. Near the end blocks get smaller, so that all
//! workers finish at about the same time.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::stages::Stage;
use super::{Embedder, Embedding, Embeddings, RowError};
use crate::backend::{BackendError, PoolOp};
use crate::pack::BlockPlan;
use crate::text::{Overlong, TextError};

/// A slice of texts to tokenise has at most this many bytes (or one longer text): a millisecond's
/// work at most, and enough to make taking it cheap.
const SLICE_BYTES: usize = 16 << 10;
/// And at most this many texts.
const SLICE_TEXTS: usize = 64;
/// Calls of fewer bytes of text are tokenised by the caller: waking workers would take longer.
const INLINE_BYTES: usize = 4 << 10;
/// Blocks per worker that tokenising runs ahead, so that rows of like length can be found.
const BLOCKS_AHEAD: usize = 4;
/// Up to so many values are put in order by the caller.
const ALONE_VALUES: usize = 1 << 18;
/// Rows of a part of that, where it is divided.
const ROWS_TOGETHER: usize = 1024;

/// A row that waits or has been encoded.
#[derive(Debug)]
pub(super) struct RowIds<'a> {
    row: usize,
    source: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    /// The caller's own ids.
    Borrowed(&'a [u32]),
    /// A part of a tokenised slice.
    Slice { ids: Arc<Vec<u32>>, range: Range<usize> },
}

impl RowIds<'_> {
    pub(super) fn row(&self) -> usize {
        self.row
    }

    pub(super) fn ids(&self) -> &[u32] {
        match &self.source {
            Source::Borrowed(ids) => ids,
            Source::Slice { ids, range } => &ids[range.clone()],
        }
    }
}

/// An encoded block: its rows, and their vectors one after the other.
pub(super) struct Block {
    pub(super) rows: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// The texts of a call.
struct Texts<'a> {
    text: &'a (dyn Fn(usize) -> &'a str + Sync),
    count: usize,
    prompt: &'a str,
    overlong: Overlong,
}

/// One call in progress.
pub(super) struct Run<'a> {
    embedder: &'a Embedder,
    texts: Texts<'a>,
    plan: Mutex<Plan<'a>>,
    /// Signalled when rows were added or when nothing more will come.
    changed: Condvar,
    call: Call<'a>,
}

/// What is left to do, and what became of each row.
struct Plan<'a> {
    waiting: BlockPlan<RowIds<'a>>,
    /// First text that nobody has taken.
    next_text: usize,
    /// Workers that are tokenising.
    tokenising: usize,
    failed: bool,
    rows: Vec<Result<Embedding, RowError>>,
}

/// One of the calls that are being done.
struct Call<'a>(&'a AtomicUsize);

impl<'a> Call<'a> {
    fn begin(calls: &'a AtomicUsize) -> Self {
        calls.fetch_add(1, Ordering::Relaxed);
        Self(calls)
    }

    /// How many there are, this one included.
    fn all(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Task<'a> {
    Tokenise(Range<usize>),
    Encode(Vec<RowIds<'a>>),
}

impl<'a> Run<'a> {
    pub(super) fn of_texts(
        embedder: &'a Embedder,
        text: &'a (dyn Fn(usize) -> &'a str + Sync),
        count: usize,
        prompt: &'a str,
        overlong: Overlong,
    ) -> Self {
        let texts = Texts { text, count, prompt, overlong };
        let rows = Vec::with_capacity(count);
        Self::new(embedder, texts, BlockPlan::default(), rows)
    }

    pub(super) fn of_ids(
        embedder: &'a Embedder,
        sequences: impl Iterator<Item = Result<&'a [u32], TextError>>,
    ) -> Self {
        let (mut waiting, mut rows) = (BlockPlan::default(), Vec::new());
        for (row, sequence) in sequences.enumerate() {
            rows.push(match sequence {
                Ok([]) => Err(RowError::NoTokens),
                Ok(ids) => {
                    waiting.add(ids.len(), RowIds { row, source: Source::Borrowed(ids) });
                    Ok(Embedding { tokens: ids.len(), truncated: false })
                }
                Err(error) => Err(error.into()),
            });
        }
        let texts = Texts { text: &|_| "", count: 0, prompt: "", overlong: Overlong::Error };
        Self::new(embedder, texts, waiting, rows)
    }

    fn new(
        embedder: &'a Embedder,
        texts: Texts<'a>,
        waiting: BlockPlan<RowIds<'a>>,
        mut rows: Vec<Result<Embedding, RowError>>,
    ) -> Self {
        rows.resize_with(rows.len().max(texts.count), || Err(RowError::NoTokens));
        let plan = Plan { waiting, next_text: 0, tokenising: 0, failed: false, rows };
        let call = Call::begin(&embedder.calls);
        Self { embedder, texts, plan: Mutex::new(plan), changed: Condvar::new(), call }
    }

    /// A block is not made smaller than this only to give every worker one: while there are other
    /// calls, workers have those.
    fn least_tokens(&self) -> usize {
        self.embedder.least_tokens * self.call.all()
    }

    /// Does the work and puts the vectors in order.
    pub(super) fn finish(self, skip: usize) -> Result<Embeddings, BackendError> {
        let pools = self.embedder.model.head.pool_ops(skip);
        let bytes = (0..self.texts.count).map(|row| (self.texts.text)(row).len());
        let mut room = INLINE_BYTES;
        let inline = bytes.into_iter().all(|bytes| {
            room = room.saturating_sub(bytes + 1);
            room > 0
        });
        if inline {
            let count = self.texts.count;
            self.lock().next_text = count;
            self.tokenise(0..count);
        }
        // What one worker will encode may as well be encoded by this thread.
        let alone = inline && {
            let plan = self.lock();
            let smallest = self.least_tokens().min(self.embedder.block_tokens);
            plan.waiting.len() <= 1 || plan.waiting.tokens() <= smallest
        };
        let blocks = match alone {
            true => self.work(None, &pools)?,
            false => {
                let parts = self.embedder.workers.broadcast(|context| {
                    let encodes = context.index() < self.embedder.replicas.arenas();
                    match encodes {
                        true => self.work(Some(context.index()), &pools),
                        false => {
                            self.only_tokenise();
                            Ok(Vec::new())
                        }
                    }
                });
                let parts: Result<Vec<_>, _> = parts.into_iter().collect();
                parts?.into_iter().flatten().collect()
            }
        };
        let plan = self.plan.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(assemble(&self.embedder.workers, self.embedder.dim(), plan.rows, blocks))
    }

    /// Does whatever there is to do, until there is nothing.
    fn work(&self, worker: Option<usize>, pools: &[PoolOp]) -> Result<Vec<Block>, BackendError> {
        let mut done = Vec::new();
        while let Some(task) = self.next() {
            match task {
                Task::Tokenise(rows) => self.tokenise(rows),
                Task::Encode(rows) => match self.embedder.run_block(worker, rows, pools) {
                    Ok(block) => done.push(block),
                    Err(error) => {
                        self.lock().failed = true;
                        self.changed.notify_all();
                        return Err(error);
                    }
                },
            }
        }
        Ok(done)
    }

    /// A worker without an arena helps until every text is taken.
    fn only_tokenise(&self) {
        loop {
            let slice = {
                let mut plan = self.lock();
                match plan.failed {
                    true => None,
                    false => self.take_slice(&mut plan),
                }
            };
            match slice {
                Some(rows) => self.tokenise(rows),
                None => return,
            }
        }
    }

    fn next(&self) -> Option<Task<'a>> {
        let workers = self.embedder.replicas.arenas();
        let block = self.embedder.block_tokens;
        let mut plan = self.lock();
        loop {
            if plan.failed {
                return None;
            }
            let tokens = plan.waiting.tokens();
            let all_taken = plan.next_text == self.texts.count;
            if tokens >= BLOCKS_AHEAD * workers * block || (all_taken && tokens > 0) {
                let mut budget = block;
                if all_taken && plan.tokenising == 0 && workers > 1 {
                    // A share of what is left, so that the last blocks are small.
                    let least = self.least_tokens();
                    budget = tokens.div_ceil(2 * workers).clamp(least, block.max(least));
                }
                return Some(Task::Encode(plan.waiting.take(budget.min(block.max(1)))));
            }
            if let Some(slice) = self.take_slice(&mut plan) {
                return Some(Task::Tokenise(slice));
            }
            if plan.tokenising == 0 {
                return None;
            }
            plan = self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_slice(&self, plan: &mut Plan<'a>) -> Option<Range<usize>> {
        let start = plan.next_text;
        let (mut end, mut bytes) = (start, 0);
        while end < self.texts.count && end - start < SLICE_TEXTS && bytes < SLICE_BYTES {
            bytes += (self.texts.text)(end).len();
            end += 1;
        }
        plan.next_text = end;
        plan.tokenising += usize::from(end > start);
        (end > start).then_some(start..end)
    }

    fn tokenise(&self, rows: Range<usize>) {
        // However this ends, those who wait must not wait for it any longer.
        let _done = Done(self);
        let Texts { text, prompt, overlong, .. } = &self.texts;
        let encoder = self.embedder.model.text();
        let mut ids = Vec::new();
        let mut ends = Vec::with_capacity(rows.len());
        self.embedder.clock.measure(Stage::Tokenise, || {
            self.embedder.scratches.with(|scratch| {
                for row in rows.clone() {
                    let done = encoder.encode_into(text(row), prompt, *overlong, scratch, &mut ids);
                    ends.push((ids.len(), done));
                }
            });
        });
        let ids = Arc::new(ids);
        let mut start = 0;
        let mut plan = self.lock();
        for (row, (end, done)) in rows.zip(ends) {
            let range = std::mem::replace(&mut start, end)..end;
            plan.rows[row] = match done {
                Ok(_) if range.is_empty() => Err(RowError::NoTokens),
                Ok(encoded) => {
                    let tokens = range.len();
                    let source = Source::Slice { ids: ids.clone(), range };
                    plan.waiting.add(tokens, RowIds { row, source });
                    Ok(Embedding { tokens, truncated: encoded.truncated })
                }
                Err(error) => Err(error.into()),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Plan<'a>> {
        // Nothing that can panic runs under the lock but indexing by rows that exist.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a worker's tokenising.
struct Done<'r, 'a>(&'r Run<'a>);

impl Drop for Done<'_, '_> {
    fn drop(&mut self) {
        let mut plan = self.0.lock();
        plan.tokenising = plan.tokenising.saturating_sub(1);
        drop(plan);
        self.0.changed.notify_all();
    }
}

/// Puts the blocks' vectors in the rows' order. Each vector is copied from memory to memory: for a
/// large call that is work for all workers, not for one while the device has nothing to do.
fn assemble(
    workers: &rayon::ThreadPool,
    dim: usize,
    mut rows: Vec<Result<Embedding, RowError>>,
    mut blocks: Vec<Block>,
) -> Embeddings {
    // A small call's one block has all rows in their order: its values are the answer.
    if let [block] = &mut blocks[..]
        && block.rows.iter().copied().eq(0..rows.len())
    {
        let mut values = std::mem::take(&mut block.values);
        for (vector, row) in values.chunks_exact_mut(dim).zip(&mut rows) {
            if !is_finite(vector) {
                vector.fill(0.0);
                *row = Err(RowError::NotFinite);
            }
        }
        return Embeddings { dim, values, rows };
    }
    let mut found = vec![None; rows.len()];
    for block in &blocks {
        for (&row, vector) in block.rows.iter().zip(block.values.chunks_exact(dim)) {
            found[row] = Some(vector);
        }
    }
    let mut values = vec![0.0; rows.len() * dim];
    if values.len() <= ALONE_VALUES {
        place(dim, &mut values, &mut rows, &found);
        return Embeddings { dim, values, rows };
    }
    workers.install(|| {
        let parts = values.par_chunks_mut(ROWS_TOGETHER * dim);
        let parts = parts.zip(rows.par_chunks_mut(ROWS_TOGETHER));
        let parts = parts.zip(found.par_chunks(ROWS_TOGETHER));
        parts.for_each(|((values, rows), found)| place(dim, values, rows, found));
    });
    workers.install(|| blocks.into_par_iter().for_each(drop));
    Embeddings { dim, values, rows }
}

/// Looks at all values, which takes less time than to stop at the first that is not.
fn is_finite(vector: &[f32]) -> bool {
    vector.iter().fold(true, |all, value| all & value.is_finite())
}

fn place(
    dim: usize,
    values: &mut [f32],
    rows: &mut [Result<Embedding, RowError>],
    found: &[Option<&[f32]>],
) {
    for ((to, row), vector) in values.chunks_exact_mut(dim).zip(rows).zip(found) {
        match vector {
            Some(vector) if is_finite(vector) => to.copy_from_slice(vector),
            Some(_) => *row = Err(RowError::NotFinite),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, assemble};
    use crate::embedder::{Embedding, RowError};

    /// Every way that vectors come to their rows: a block in order, one that is not, several, and
    /// a row that no block has.
    #[test]
    fn vectors_come_to_their_rows() {
        let workers = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let value = |row: usize| if row == 1 { f32::NAN } else { row as f32 + 1.0 };
        let cases: [(usize, &[&[usize]]); 4] =
            [(3, &[&[0, 1, 2]]), (3, &[&[2, 0, 1]]), (3, &[&[1], &[2, 0]]), (4, &[&[0, 1, 2]])];
        for (count, orders) in cases {
            let block = |rows: &&[usize]| Block {
                rows: rows.to_vec(),
                values: rows.iter().flat_map(|&row| [1.0, value(row)]).collect(),
            };
            let done = || Ok(Embedding { tokens: 1, truncated: false });
            let none = || Err(RowError::NoTokens);
            let rows = (0..count).map(|row| if row < 3 { done() } else { none() }).collect();
            let found = assemble(&workers, 2, rows, orders.iter().map(block).collect());
            assert_eq!(found.vector(0), Some(&[1.0, 1.0][..]), "{orders:?}");
            assert_eq!(found.vector(2), Some(&[1.0, 3.0][..]), "{orders:?}");
            assert!(matches!(found.rows[1], Err(RowError::NotFinite)), "{orders:?}");
            assert_eq!(found.values[2..4], [0.0, 0.0], "{orders:?}");
            assert!(found.rows[3..].iter().all(|row| matches!(row, Err(RowError::NoTokens))));
        }
    }
}
