//! The quick way for words of ASCII letters and digits, which most words of most texts are.
//!
//! Sixteen bytes of text are classified at once, in one register, and a word that ends within them
//! is one number: its bytes in lower case, zeros above. A [`WordCache`] finds the pieces of such a
//! number in one line of memory, also where a word has several. What it holds is a function of the
//! vocabulary alone, so ids do not depend on what was met before.

/// Bytes that are looked at together.
pub(super) const WINDOW: usize = 16;

/// Pieces of a word that is worth keeping; a word of more is rare.
pub(super) const PIECES_KEPT: usize = 3;

/// Pairs of slots, 64 bytes each: half a megabyte, a part of a core's second-level cache.
const PAIRS: usize = 1 << 13;

/// Bytes of text after which a cache is worth its memory.
const BYTES_BEFORE: usize = 16 << 10;

/// The letters and digits that a window begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// Their number; [`WINDOW`] if there may be more behind them.
    pub(super) len: usize,
    /// The bytes, the first lowest.
    pub(super) word: u128,
}

const fn every(byte: u8) -> u128 {
    u128::from_ne_bytes([byte; WINDOW])
}

impl Start {
    /// Looks at a window; letters become lower case if asked for.
    #[inline]
    pub(super) fn of(window: [u8; WINDOW], lowercase: bool) -> Self {
        const HIGH: u128 = every(0x80);
        let bytes = u128::from_le_bytes(window);
        let low = bytes & !HIGH;
        // The high bit of each byte: whether the byte, without its own, is at least `least`.
        let at_least = |bytes: u128, least: u8| (bytes | HIGH) - every(least);
        let small = low | every(0x20);
        let letter = at_least(small, b'a') & !at_least(small, b'z' + 1);
        let digit = at_least(low, b'0') & !at_least(low, b'9' + 1);
        let others = !(letter | digit) | bytes;
        let len = (others & HIGH).trailing_zeros() as usize / 8;
        // Digits have the bit that makes letters small.
        let cased = if lowercase { small } else { bytes };
        let word = match len {
            WINDOW => cased,
            _ => cased & ((1 << (8 * len)) - 1),
        };
        Self { len, word }
    }
}

/// Words met lately, with their pieces.
///
/// A word belongs to one pair of slots: it enters the first, whose former word moves to the second.
/// There are no slots before some pages were read, so that embedding a sentence does not pay for
/// them.
#[derive(Debug, Default)]
pub(super) struct WordCache {
    pairs: Vec<[Slot; 2]>,
    /// The vocabulary that the pieces are of.
    of: u64,
    seen: usize,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// 0, which is no word, in a slot that nothing was put in.
    word: u128,
    pieces: [u32; PIECES_KEPT],
    count: u32,
}

impl Slot {
    const FREE: Slot = Slot { word: 0, pieces: [0; PIECES_KEPT], count: 0 };
}

impl WordCache {
    /// Tells that so much text for a vocabulary of this number follows.
    pub(super) fn expect(&mut self, of: u64, bytes: usize) {
        if self.of != of {
            *self = Self { of, ..Self::default() };
        }
        self.seen = self.seen.saturating_add(bytes);
        if self.pairs.is_empty() && self.seen >= BYTES_BEFORE {
            self.pairs = vec![[Slot::FREE; 2]; PAIRS];
        }
    }

    /// Appends the pieces of a word, if they are known.
    #[inline]
    pub(super) fn find(&self, word: u128, out: &mut Vec<u32>) -> bool {
        let Some(pair) = self.pairs.get(Self::place(word)) else { return false };
        let Some(slot) = pair.iter().find(|slot| slot.word == word) else { return false };
        match slot.count {
            1 => out.push(slot.pieces[0]),
            _ => out.extend_from_slice(&slot.pieces[..slot.count as usize]),
        }
        true
    }

    /// Keeps the pieces of a word unless they are too many.
    pub(super) fn keep(&mut self, word: u128, pieces: &[u32]) {
        let Some(pair) = self.pairs.get_mut(Self::place(word)) else { return };
        let mut kept = [0; PIECES_KEPT];
        if let Some(place) = kept.get_mut(..pieces.len()) {
            place.copy_from_slice(pieces);
            *pair = [Slot { word, pieces: kept, count: pieces.len() as u32 }, pair[0]];
        }
    }

    #[inline]
    fn place(word: u128) -> usize {
        let halves = (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ ((word >> 64) as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        (halves >> (u64::BITS - PAIRS.ilog2())) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte at every place of a window, against the definition.
    #[test]
    fn a_window_begins_with_its_letters_and_digits() {
        for lowercase in [true, false] {
            for byte in 0..=255 {
                for place in 0..WINDOW {
                    let mut window = *b"Az09aZByYxX18mMk";
                    window[place] = byte;
                    let len = window.iter().take_while(|b| b.is_ascii_alphanumeric()).count();
                    let mut word = [0; WINDOW];
                    for (to, from) in word.iter_mut().zip(&window[..len]) {
                        *to = if lowercase { from.to_ascii_lowercase() } else { *from };
                    }
                    let start = Start::of(window, lowercase);
                    assert_eq!((start.len, start.word.to_le_bytes()), (len, word), "{window:?}");
                }
            }
        }
    }

    #[test]
    fn a_cache_gives_what_was_kept_or_nothing() {
        let mut cache = WordCache::default();
        let mut out = Vec::new();
        cache.keep(7, &[1]);
        assert!(!cache.find(7, &mut out), "no memory before it is worth it");
        cache.expect(1, BYTES_BEFORE);
        let pieces = |word: u128| vec![word as u32; word as usize % (PIECES_KEPT + 2)];
        for word in 1..8 * PAIRS as u128 {
            cache.keep(word << 40, &pieces(word));
            out.clear();
            let kept = pieces(word).len() <= PIECES_KEPT;
            assert_eq!(cache.find(word << 40, &mut out), kept);
            assert!(!kept || out == pieces(word));
        }
        let found = (1..8 * PAIRS as u128).filter(|word| {
            out.clear();
            let found = cache.find(word << 40, &mut out);
            assert!(!found || out == pieces(*word));
            found
        });
        assert!((PAIRS / 2..=2 * PAIRS).contains(&found.count()));
        cache.keep(7, &[1]);
        cache.expect(2, BYTES_BEFORE);
        assert!(!cache.find(7, &mut out), "another vocabulary has other pieces");
    }
}
