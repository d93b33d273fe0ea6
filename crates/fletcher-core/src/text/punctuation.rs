//! Punctuation that is younger than Python's tables.
//!
//! BERT's pre-tokeniser makes each punctuation mark a word of its own. Which characters those are,
//! Python's `tokenizers` 0.2x read off a table of Unicode 8; the 1.0 candidates read it off the
//! current one, in which 141 more characters are punctuation and two no longer are. A scan of every
//! code point (`tools/golden/tokens_100k.py` draws from all of them) finds no other difference.
//!
//! Models were trained with Python's ids, so these characters are replaced before the crate sees
//! them, each by one that is treated alike in all else: a symbol where Python sees no punctuation,
//! an old punctuation mark where it does. Both stand-ins are chosen outside of the vocabulary, as
//! the replaced character is, so the word around it is the unknown token either way. A character
//! that some piece of the vocabulary contains is left alone.

use std::borrow::Cow;
use std::collections::BTreeSet;

/// Punctuation today, but not for Python: first and last of each run, ascending.
const YOUNGER: [(char, char); 40] = [
    ('\u{61d}', '\u{61d}'),
    ('\u{9fd}', '\u{9fd}'),
    ('\u{a76}', '\u{a76}'),
    ('\u{c77}', '\u{c77}'),
    ('\u{c84}', '\u{c84}'),
    ('\u{1b4e}', '\u{1b4f}'),
    ('\u{1b7d}', '\u{1b7f}'),
    ('\u{2e43}', '\u{2e4f}'),
    ('\u{2e52}', '\u{2e5d}'),
    ('\u{10d6e}', '\u{10d6e}'),
    ('\u{10ead}', '\u{10ead}'),
    ('\u{10ed0}', '\u{10ed0}'),
    ('\u{10f55}', '\u{10f59}'),
    ('\u{10f86}', '\u{10f89}'),
    ('\u{113d4}', '\u{113d5}'),
    ('\u{113d7}', '\u{113d8}'),
    ('\u{1144b}', '\u{1144f}'),
    ('\u{1145a}', '\u{1145b}'),
    ('\u{1145d}', '\u{1145d}'),
    ('\u{11660}', '\u{1166c}'),
    ('\u{116b9}', '\u{116b9}'),
    ('\u{1183b}', '\u{1183b}'),
    ('\u{11944}', '\u{11946}'),
    ('\u{119e2}', '\u{119e2}'),
    ('\u{11a3f}', '\u{11a46}'),
    ('\u{11a9a}', '\u{11a9c}'),
    ('\u{11a9e}', '\u{11aa2}'),
    ('\u{11b00}', '\u{11b09}'),
    ('\u{11be1}', '\u{11be1}'),
    ('\u{11c41}', '\u{11c45}'),
    ('\u{11c70}', '\u{11c71}'),
    ('\u{11ef7}', '\u{11ef8}'),
    ('\u{11f43}', '\u{11f4f}'),
    ('\u{11fff}', '\u{11fff}'),
    ('\u{12ff1}', '\u{12ff2}'),
    ('\u{16d6d}', '\u{16d6f}'),
    ('\u{16e97}', '\u{16e9a}'),
    ('\u{16fe2}', '\u{16fe2}'),
    ('\u{1e5ff}', '\u{1e5ff}'),
    ('\u{1e95e}', '\u{1e95f}'),
];

/// Punctuation for Python, but not today.
const FORMER: [char; 2] = ['\u{166d}', '\u{111c9}'];

/// No character of either table is below this one.
const FIRST: char = '\u{61d}';

/// The replacement of characters whose class changed, for one vocabulary.
#[derive(Debug)]
pub(super) struct StandIns {
    symbol: char,
    mark: char,
    /// Characters of the tables that the vocabulary knows.
    known: BTreeSet<char>,
}

impl StandIns {
    /// Chooses stand-ins outside of the vocabulary; `None` in the absurd case that it has them all.
    pub(super) fn new<'a>(pieces: impl Iterator<Item = &'a str>) -> Option<Self> {
        let known: BTreeSet<char> =
            pieces.flat_map(|piece| piece.chars()).filter(|&c| c >= FIRST).collect();
        // Symbols without case, decomposition or width, and old marks, both far from any language.
        let symbol = ('\u{2600}'..='\u{26ff}').find(|c| !known.contains(c))?;
        let mark = ('\u{2056}'..='\u{205e}').find(|c| !known.contains(c))?;
        let known = known.into_iter().filter(|&c| is_younger(c) || FORMER.contains(&c)).collect();
        Some(Self { symbol, mark, known })
    }

    /// The text with stand-ins; borrowed in all but a few texts of a million.
    pub(super) fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if text.is_ascii() || !text.chars().any(|c| self.of(c) != c) {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.chars().map(|c| self.of(c)).collect())
    }

    fn of(&self, c: char) -> char {
        let stand_in = match c {
            _ if c < FIRST => return c,
            _ if is_younger(c) => self.symbol,
            _ if FORMER.contains(&c) => self.mark,
            _ => return c,
        };
        if self.known.contains(&c) { c } else { stand_in }
    }
}

fn is_younger(c: char) -> bool {
    let run = YOUNGER.partition_point(|&(_, last)| last < c);
    YOUNGER.get(run).is_some_and(|&(first, _)| first <= c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_ascending_and_complete() {
        assert!(YOUNGER.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert!(YOUNGER.iter().all(|&(first, last)| FIRST <= first && first <= last));
        let count: u32 = YOUNGER.iter().map(|&(a, b)| b as u32 - a as u32 + 1).sum();
        assert_eq!(count, 141);
    }

    #[test]
    fn only_characters_outside_the_vocabulary_are_replaced() {
        let vocabulary = ["a".to_owned(), "\u{2600}".to_owned(), "##\u{2e43}".to_owned()];
        let stand_ins = StandIns::new(vocabulary.iter().map(String::as_str)).unwrap();
        let cases = [
            ("plain", "plain"),
            ("déjà 我 ؛", "déjà 我 ؛"),
            ("a\u{61d}b", "a\u{2601}b"),
            ("a\u{166d}b", "a\u{2056}b"),
            ("a\u{2e43}b", "a\u{2e43}b"),
            ("a\u{2e44}b", "a\u{2601}b"),
        ];
        for (text, expected) in cases {
            assert_eq!(stand_ins.apply(text), expected, "{text:?}");
        }
    }
}
