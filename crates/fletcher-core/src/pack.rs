//! Token ids to packed batches: sequences lie end to end, and nothing anywhere is padded.
//!
//! [`plan_blocks`] is a pure function: which rows travel together. Rows are sorted by length so
//! that a block's sequences are alike, and cut so that no block exceeds the token budget.
//! [`PackedBatch`] is the only shape in which tokens reach a backend.

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

/// Assigns rows to blocks of at most `budget` tokens (a single longer row gets its own block).
///
/// Longest rows come first, so that the last blocks handed to workers are the small ones and all
/// workers finish at about the same time. Rows of length 0 are left out. The result depends on
/// `lengths` and `budget` alone.
pub fn plan_blocks(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..lengths.len()).filter(|&row| lengths[row] > 0).collect();
    rows.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for row in rows {
        match blocks.last_mut() {
            Some(block) if lengths[row] <= room => {
                room -= lengths[row];
                block.push(row);
            }
            _ => {
                room = budget.saturating_sub(lengths[row]);
                blocks.push(vec![row]);
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_every_row_once_within_the_budget() {
        let lengths: Vec<usize> = (0..500).map(|i| (i * 7919) % 67).collect();
        for budget in [1, 64, 100, 4096] {
            let blocks = plan_blocks(&lengths, budget);
            let mut seen: Vec<usize> = blocks.iter().flatten().copied().collect();
            seen.sort_unstable();
            let all: Vec<usize> = (0..500).filter(|&i| lengths[i] > 0).collect();
            assert_eq!(seen, all);
            for block in &blocks {
                let tokens: usize = block.iter().map(|&row| lengths[row]).sum();
                assert!(tokens <= budget || block.len() == 1, "{tokens} > {budget}");
            }
        }
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
