//! Where in a text each token of BERT's tokenizer comes from.
//!
//! For those who look at tokens (`/tokenize`), not for embedding: the steps of the encoder beside
//! this file in their plain form, with every character carrying the place that it came from. The
//! ids are the same and the places are Python's, which follow from how its normaliser counts: of a
//! character that becomes several all have the one's place, what vanishes belongs to no token at
//! its edge, and characters that decomposing reorders take the places of their order.

use std::ops::Range;

use unicode_normalization::char::{canonical_combining_class, decompose_canonical};

use super::{Class, Part, WordPiece};

/// A character of the normalised text and the bytes of the text that it stands for.
#[derive(Debug, Clone)]
struct Placed {
    c: char,
    bytes: Range<usize>,
}

impl WordPiece {
    /// The tokens of a text, without the frame, each with its bytes of the text.
    pub(in crate::text) fn spans(&self, text: &str) -> Vec<(u32, Range<usize>)> {
        let mut out = Vec::new();
        self.split(text, |part| match part {
            Part::Plain(range) => self.plain_spans(text, range, &mut out),
            Part::Special(id, range) => out.push((id, range)),
        });
        out
    }

    /// A stretch of the text without special tokens.
    fn plain_spans(&self, text: &str, stretch: Range<usize>, out: &mut Vec<(u32, Range<usize>)>) {
        let place = |(at, c): (usize, char)| {
            let at = stretch.start + at;
            Placed { c, bytes: at..at + c.len_utf8() }
        };
        let characters = text[stretch.clone()].char_indices().map(place);
        let mut placed = Vec::new();
        for character in characters.filter(|p| !Class::of(p.c).has(Class::REMOVED)) {
            let cjk = self.chinese && Class::of(character.c).has(Class::CJK);
            let space = Placed { c: ' ', bytes: character.bytes.clone() };
            match cjk {
                true => placed.extend([space.clone(), character, space]),
                false => placed.push(character),
            }
        }
        if self.strip_accents {
            placed = decomposed(&placed);
            placed.retain(|p| !Class::of(p.c).has(Class::NONSPACING));
        }
        if self.lowercase {
            let lower = |p: &Placed| {
                let bytes = p.bytes.clone();
                p.c.to_lowercase().map(move |c| Placed { c, bytes: bytes.clone() })
            };
            placed = placed.iter().flat_map(lower).collect();
        }
        let mut word = Vec::new();
        for character in placed {
            let class = Class::of(character.c);
            let is_mark = class.has(Class::PUNCTUATION);
            if is_mark || class.has(Class::SPACE) {
                self.word_spans(&word, out);
                word.clear();
            }
            match () {
                () if class.has(Class::SPACE) => {}
                () if is_mark => self.word_spans(&[character], out),
                () => word.push(character),
            }
        }
        self.word_spans(&word, out);
    }

    /// The longest pieces that make up a word, or the unknown token for all of it.
    fn word_spans(&self, word: &[Placed], out: &mut Vec<(u32, Range<usize>)>) {
        let first = out.len();
        let bytes = |part: &[Placed]| match part {
            [] => 0..0,
            [only] => only.bytes.clone(),
            [first, .., last] => first.bytes.start..last.bytes.end,
        };
        let mut start = if word.len() > self.word_chars_max { usize::MAX } else { 0 };
        while start < word.len() {
            let prefix = if start == 0 { "" } else { self.prefix.as_str() };
            let mut end = word.len().min(start + self.piece_bytes_max);
            let rest = word[start..end].iter().map(|p| p.c);
            let mut piece: String = prefix.chars().chain(rest).collect();
            let mut found = self.vocabulary.get(&piece);
            while found.is_none() && end > start + 1 {
                piece.pop();
                end -= 1;
                found = self.vocabulary.get(&piece);
            }
            let Some(id) = found else {
                out.truncate(first);
                break;
            };
            out.push((id, bytes(&word[start..end])));
            start = end;
        }
        if out.len() == first && !word.is_empty() {
            out.push((self.unknown, bytes(word)));
        }
    }
}

/// NFD. A character's parts after its first take the place before them, wherever sorting the marks
/// has put them; that is how Python's normaliser keeps account.
fn decomposed(placed: &[Placed]) -> Vec<Placed> {
    let mut parts: Vec<(char, bool)> = Vec::new();
    for character in placed {
        let mut is_first = true;
        decompose_canonical(character.c, |part| {
            parts.push((part, is_first));
            is_first = false;
        });
    }
    let is_starter = |part: &(char, bool)| canonical_combining_class(part.0) == 0;
    for marks in parts.split_mut(is_starter) {
        marks.sort_by_key(|part| canonical_combining_class(part.0));
    }
    let mut sources = placed.iter().map(|p| p.bytes.clone());
    let mut bytes = 0..0;
    let place = |(c, is_first)| {
        if is_first {
            bytes = sources.next().unwrap_or(bytes.clone());
        }
        Placed { c, bytes: bytes.clone() }
    };
    parts.into_iter().map(place).collect()
}
