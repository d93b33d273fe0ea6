//! Token ids to packed batches: sequences lie end to end, and nothing anywhere is padded.
//!
//! [`BlockPlan`] decides which rows travel together: those of like length, as many as the token
//! budget allows. Rows may be added while blocks are being taken. [`PackedBatch`] is the only shape
//! in which tokens reach a backend.

use std::collections::{BTreeMap, VecDeque};

/// Sequences laid end to end, with the offsets at which each begins.
///
/// Invariants, asserted at construction: offsets start at 0, rise strictly (no empty sequence)
/// and end at the number of ids.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl PackedBatch {
    /// Packs the sequences in the order given.
    ///
    /// # Panics
    /// If a sequence is empty: the caller answers those as row errors, they never reach a device.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self { ids: Vec::new(), offsets: vec![0] };
        for sequence in sequences {
            assert!(!sequence.is_empty(), "an empty sequence has no vector");
            batch.ids.extend_from_slice(sequence);
            batch.offsets.push(batch.ids.len());
        }
        batch
    }

    /// All tokens' ids, sequence by sequence.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// `rows() + 1` offsets into [`Self::ids`] (cumulative sequence lengths).
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The token range of each sequence, in order.
    pub fn sequences(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }
}

/// Rows that wait to be encoded.
///
/// Longest rows come first, so that the last blocks handed to workers are of the small ones and all
/// workers finish at about the same time; among equals, what came first. Workers share a plan
/// behind a lock: what it does takes as long as the rows it is asked about, however many wait.
#[derive(Debug)]
pub struct BlockPlan<R> {
    by_length: BTreeMap<usize, VecDeque<R>>,
    rows: usize,
    tokens: usize,
}

impl<R> Default for BlockPlan<R> {
    fn default() -> Self {
        Self { by_length: BTreeMap::new(), rows: 0, tokens: 0 }
    }
}

impl<R> BlockPlan<R> {
    /// Adds a row of `tokens` tokens; one without any is left out, it has no vector.
    pub fn add(&mut self, tokens: usize, row: R) {
        if tokens > 0 {
            self.by_length.entry(tokens).or_default().push_back(row);
            self.rows += 1;
            self.tokens += tokens;
        }
    }

    /// Rows that wait.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Tokens of the rows that wait.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes rows for a block of at most `budget` tokens, or one longer row; none if none wait.
    pub fn take(&mut self, budget: usize) -> Vec<R> {
        let (mut block, mut room) = (Vec::new(), budget);
        while let Some(mut longest) = self.by_length.last_entry() {
            let tokens = *longest.key();
            let fitting = (room / tokens).max(usize::from(block.is_empty()));
            let taken = fitting.min(longest.get().len());
            block.extend(longest.get_mut().drain(..taken));
            room = room.saturating_sub(taken * tokens);
            self.tokens -= taken * tokens;
            if !longest.get().is_empty() {
                break;
            }
            longest.remove();
        }
        self.rows -= block.len();
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_every_row_once_within_the_budget() {
        let lengths: Vec<usize> = (0..500).map(|i| (i * 7919) % 67).collect();
        for budget in [1, 64, 100, 4096] {
            let mut plan = BlockPlan::default();
            let mut seen: Vec<usize> = Vec::new();
            let mut take = |plan: &mut BlockPlan<usize>| {
                let block = plan.take(budget);
                let tokens: usize = block.iter().map(|&row| lengths[row]).sum();
                assert!(tokens <= budget || block.len() == 1, "{tokens} > {budget}");
                let longest = block.first().map(|&row| lengths[row]);
                seen.extend(&block);
                longest
            };
            for (row, &length) in lengths.iter().enumerate() {
                plan.add(length, row);
                if row % 100 == 50 {
                    take(&mut plan);
                }
            }
            let mut last = usize::MAX;
            while let Some(longest) = take(&mut plan) {
                assert!(longest <= last);
                last = longest;
            }
            assert_eq!((plan.tokens(), plan.len()), (0, 0));
            seen.sort_unstable();
            let all: Vec<usize> = (0..500).filter(|&i| lengths[i] > 0).collect();
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn among_rows_of_one_length_the_first_goes_first() {
        let mut plan = BlockPlan::default();
        (0..6).for_each(|row| plan.add(10 + row % 2, row));
        assert_eq!(plan.take(32), [1, 3]); // what is left of the budget is for none as long
        assert_eq!(plan.take(5), [5]); // longer than the budget
        plan.add(10, 6);
        assert_eq!((plan.len(), plan.tokens()), (4, 40));
        assert_eq!(plan.take(39), [0, 2, 4]);
        assert_eq!(plan.take(39), [6]);
        assert!(plan.is_empty() && plan.take(39).is_empty());
    }

    #[test]
    fn offsets_delimit_sequences() {
        let batch = PackedBatch::new([&[5u32, 6, 7][..], &[8][..]]);
        assert_eq!(batch.offsets(), [0, 3, 4]);
        assert_eq!(batch.sequences().collect::<Vec<_>>(), [0..3, 3..4]);
        assert_eq!((batch.rows(), batch.tokens()), (2, 4));
    }

    #[test]
    #[should_panic(expected = "empty sequence")]
    fn empty_sequences_are_refused() {
        PackedBatch::new([&[][..]]);
    }
}
