//! BERT's tokenizer: cleaning, words, and the longest pieces that make up each word.
//!
//! Most embedding models on this planet have this one tokenizer, so it gets an encoder of its own:
//! one pass over the text, no allocation, and tables of about a megabyte that are built in a few
//! milliseconds. It is used only where `tokenizer.json` says exactly BERT's pipeline
//! ([`WordPiece::recognise`]); everything else is run by the `tokenizers` crate, which is also the
//! oracle of the tests: the same ids on every code point and on hostile texts.
//!
//! The steps are those of Python's `BertNormalizer` and `BertPreTokenizer`: control characters
//! vanish, white space ends a word, a CJK character or a punctuation mark is a word of its own;
//! then, as the model says, accents are stripped (NFD, less nonspacing marks) and letters become
//! lower case. Punctuation and marks are those of Unicode 8, as in Python.

mod spans;

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};
use unicode_categories::UnicodeCategories;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::{canonical_combining_class, decompose_canonical};

use super::definition::{flag, token_content};
use super::vocabulary::{Hash, Vocabulary};
use super::words::{Start, WINDOW, WordCache};

/// Longest word, in characters, that a model may ask to look up.
const WORD_CHARS_MAX: usize = 255;
const WORD_BYTES_MAX: usize = 4 * WORD_CHARS_MAX;

/// What all special tokens begin with. It is punctuation, so no word can be a special token.
const SPECIAL_START: char = '[';

/// A tokenizer of BERT's kind.
#[derive(Debug)]
pub(super) struct WordPiece {
    /// No other encoder of this process has it.
    number: u64,
    vocabulary: Vocabulary,
    /// Special tokens as they are found in texts, the longest first.
    special: Vec<(String, u32)>,
    unknown: u32,
    /// What a piece inside of a word begins with in the vocabulary, and its hash.
    prefix: String,
    prefix_hash: Hash,
    /// A longer word is the unknown token.
    word_chars_max: usize,
    /// Bytes of the longest piece.
    piece_bytes_max: usize,
    chinese: bool,
    strip_accents: bool,
    lowercase: bool,
    /// By byte: one of the codes below, or the byte of the word that it stands for.
    bytes: [u8; 256],
    /// The ids of punctuation marks of ASCII, each a word of its own.
    marks: [u32; 128],
    before: Vec<u32>,
    after: Vec<u32>,
}

const REMOVED: u8 = 0;
const SPACE: u8 = 1;
const MARK: u8 = 2;
const NOT_ASCII: u8 = 3;

/// What one thread needs to encode; best used again and again.
#[derive(Default)]
pub(super) struct Scratch {
    known: WordCache,
    word: Word,
}

/// A part of a text.
enum Part {
    /// Bytes without special tokens.
    Plain(Range<usize>),
    /// A special token and its bytes.
    Special(u32, Range<usize>),
}

/// The word being read, and room for the hashes of its beginnings.
struct Word {
    bytes: [u8; WORD_BYTES_MAX],
    len: usize,
    chars: usize,
    hashes: [Hash; WORD_BYTES_MAX + 1],
}

impl Default for Word {
    fn default() -> Self {
        Self {
            bytes: [0; WORD_BYTES_MAX],
            len: 0,
            chars: 0,
            hashes: [Hash::EMPTY; WORD_BYTES_MAX + 1],
        }
    }
}

impl WordPiece {
    /// Takes a tokenizer over if it is exactly of this kind; else gives its vocabulary back.
    pub(super) fn recognise(
        root: &Map<String, Value>,
        vocabulary: Vocabulary,
    ) -> Result<Self, Vocabulary> {
        match Parts::of(root, &vocabulary) {
            Some(parts) => Ok(Self::new(parts, vocabulary)),
            None => Err(vocabulary),
        }
    }

    fn new(parts: Parts, vocabulary: Vocabulary) -> Self {
        let prefix_hash = Hash::of(parts.prefix.as_bytes());
        let piece_bytes_max = vocabulary.iter().map(|(piece, _)| piece.len()).max().unwrap_or(0);
        let mut bytes = [NOT_ASCII; 256];
        for (byte, entry) in bytes.iter_mut().enumerate().take(128) {
            let class = Class::of(byte as u8 as char);
            *entry = match () {
                () if class.has(Class::REMOVED) => REMOVED,
                () if class.has(Class::SPACE) => SPACE,
                () if class.has(Class::PUNCTUATION) => MARK,
                () if parts.lowercase => (byte as u8).to_ascii_lowercase(),
                () => byte as u8,
            };
        }
        let mark = |byte: u8| vocabulary.find(Hash::of(&[byte]), "", &[byte]);
        let id = |byte| mark(byte as u8).filter(|_| parts.word_chars_max > 0);
        let marks = std::array::from_fn(|byte| id(byte).unwrap_or(parts.unknown));
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            vocabulary,
            special: parts.special,
            unknown: parts.unknown,
            prefix: parts.prefix,
            prefix_hash,
            word_chars_max: parts.word_chars_max,
            piece_bytes_max,
            chinese: parts.chinese,
            strip_accents: parts.strip_accents,
            lowercase: parts.lowercase,
            bytes,
            marks,
            before: parts.before,
            after: parts.after,
        }
    }

    /// Special tokens before and after every text.
    pub(super) fn frame(&self) -> (&[u32], &[u32]) {
        (&self.before, &self.after)
    }

    /// The piece or added token with this id.
    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.vocabulary.iter().find(|&(_, known)| known == id).map(|(piece, _)| piece)
    }

    /// Appends the ids of a text, without the frame. Stops soon after `enough` of them.
    pub(super) fn encode(
        &self,
        text: &str,
        enough: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        scratch.known.expect(self.number, text.len());
        let stop = out.len().saturating_add(enough);
        self.split(text, |part| match part {
            Part::Plain(range) => self.plain(&text[range], stop, scratch, out),
            Part::Special(id, _) => out.push(id),
        });
    }

    /// Cuts a text at the special tokens that it spells out.
    fn split(&self, text: &str, mut each: impl FnMut(Part)) {
        let (mut from, mut at) = (0, 0);
        while let Some(found) = text[at..].find(SPECIAL_START) {
            at += found;
            let rest = &text[at..];
            let special = self.special.iter().find(|(token, _)| rest.starts_with(token.as_str()));
            match special {
                Some((token, id)) => {
                    each(Part::Plain(from..at));
                    from = at + token.len();
                    each(Part::Special(*id, at..from));
                    at = from;
                }
                None => at += SPECIAL_START.len_utf8(),
            }
        }
        each(Part::Plain(from..text.len()));
    }

    /// A stretch of text without special tokens.
    fn plain(&self, text: &str, stop: usize, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { known, word } = scratch;
        // A text that was left early may have left a word.
        (word.len, word.chars) = (0, 0);
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            if word.chars == 0 {
                at += self.quick_word(&bytes[at..], known, word, out);
            }
            let Some(&byte) = bytes.get(at) else { break };
            match self.bytes[byte as usize] {
                REMOVED => {}
                SPACE => {
                    self.end_word(word, out);
                    if out.len() > stop {
                        return;
                    }
                }
                MARK => {
                    self.end_word(word, out);
                    out.push(self.marks[byte as usize]);
                }
                NOT_ASCII => {
                    let end = self.end_of_foreign(bytes, at);
                    self.foreign(&text[at..end], word, out);
                    at = end;
                    continue;
                }
                byte => word.push_byte(byte),
            }
            at += 1;
        }
        self.end_word(word, out);
    }

    /// Appends the word of letters and digits that the text begins with, if it is short and what
    /// ends it is of ASCII too; gives its length, or 0 if there is no such word.
    #[inline]
    fn quick_word(
        &self,
        text: &[u8],
        known: &mut WordCache,
        word: &mut Word,
        out: &mut Vec<u32>,
    ) -> usize {
        let window = text.first_chunk().copied().unwrap_or_else(|| {
            // The end of the text ends its last word as a space would.
            let mut window = [b' '; WINDOW];
            window[..text.len()].copy_from_slice(text);
            window
        });
        let Start { len, word: name } = Start::of(window, self.lowercase);
        let ends = |byte: &u8| matches!(self.bytes[*byte as usize], SPACE | MARK);
        if len == 0 || !window.get(len).is_some_and(ends) {
            return 0;
        }
        if !known.find(name, out) {
            let first = out.len();
            word.bytes[..WINDOW].copy_from_slice(&name.to_le_bytes());
            (word.len, word.chars) = (len, len);
            self.end_word(word, out);
            known.keep(name, &out[first..]);
        }
        len
    }

    /// The end of the run at `at` that has to be normalised as a whole: a character that vanishes
    /// does not end it, because the marks on both sides of it meet.
    fn end_of_foreign(&self, bytes: &[u8], at: usize) -> usize {
        let inside = |&byte: &u8| matches!(self.bytes[byte as usize], NOT_ASCII | REMOVED);
        at + bytes[at..].iter().take_while(|byte| inside(byte)).count()
    }

    fn foreign(&self, text: &str, word: &mut Word, out: &mut Vec<u32>) {
        let is_plain = |c| Class::of(c).has(Class::PLAIN);
        let cleaned = text.chars().filter(|&c| !Class::of(c).has(Class::REMOVED));
        match self.strip_accents && !text.chars().all(is_plain) {
            // Spaces around a CJK character are a word's end whether it is decomposed or not, but
            // decomposing can give another one, which gets none.
            true => {
                let spaced =
                    cleaned.flat_map(|c| match self.chinese && Class::of(c).has(Class::CJK) {
                        true => [Some(' '), Some(c), Some(' ')],
                        false => [Some(c), None, None],
                    });
                for c in spaced.flatten().nfd() {
                    self.push(c, word, out);
                }
            }
            false => {
                for c in cleaned {
                    let cjk = self.chinese && Class::of(c).has(Class::CJK);
                    if cjk {
                        self.end_word(word, out);
                    }
                    self.push(c, word, out);
                    if cjk {
                        self.end_word(word, out);
                    }
                }
            }
        }
    }

    /// Adds a cleaned and decomposed character to the word, or ends the word with it.
    fn push(&self, c: char, word: &mut Word, out: &mut Vec<u32>) {
        if self.strip_accents && Class::of(c).has(Class::NONSPACING) {
            return;
        }
        match self.lowercase {
            true => c.to_lowercase().for_each(|c| self.push_final(c, word, out)),
            false => self.push_final(c, word, out),
        }
    }

    fn push_final(&self, c: char, word: &mut Word, out: &mut Vec<u32>) {
        let class = Class::of(c);
        if class.has(Class::SPACE) {
            self.end_word(word, out);
        } else if class.has(Class::PUNCTUATION) {
            self.end_word(word, out);
            word.push_char(c);
            self.end_word(word, out);
        } else {
            word.push_char(c);
        }
    }

    #[inline]
    fn end_word(&self, word: &mut Word, out: &mut Vec<u32>) {
        if word.chars == 0 {
            return;
        }
        let (chars, len) = (word.chars, word.len);
        (word.chars, word.len) = (0, 0);
        if chars > self.word_chars_max {
            out.push(self.unknown);
            return;
        }
        let bytes = &word.bytes[..len];
        Hash::EMPTY.feed_all(bytes, &mut word.hashes);
        match self.vocabulary.find(word.hashes[len], "", bytes) {
            Some(id) => out.push(id),
            None => self.pieces(bytes, &mut word.hashes, out),
        }
    }

    /// The longest piece that the word begins with, then the longest that the rest begins with,
    /// and so on; the unknown token if the rest begins with none. The whole word is not a piece.
    /// `hashes` are those of the word's beginnings, and become those of the rests'.
    fn pieces(&self, word: &[u8], hashes: &mut [Hash], out: &mut Vec<u32>) {
        let first = out.len();
        let (mut rest, mut prefix) = (word, "");
        loop {
            let longest = rest.len().min(self.piece_bytes_max);
            let piece = |len: &usize| self.vocabulary.find(hashes[*len], prefix, &rest[..*len]);
            let found = (1..=longest).rev().find_map(|len| Some((len, piece(&len)?)));
            let Some((len, id)) = found else {
                out.truncate(first);
                out.push(self.unknown);
                return;
            };
            out.push(id);
            rest = &rest[len..];
            if rest.is_empty() {
                return;
            }
            prefix = self.prefix.as_str();
            self.prefix_hash.feed_all(rest, hashes);
        }
    }
}

impl Word {
    #[inline]
    fn push_byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
        self.chars += 1;
    }

    /// What does not fit belongs to a word of too many characters, which is not looked up.
    fn push_char(&mut self, c: char) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + c.len_utf8()) {
            c.encode_utf8(place);
            self.len += c.len_utf8();
        }
        self.chars += 1;
    }
}

/// What a tokenizer file says, as far as it is BERT's pipeline.
struct Parts {
    special: Vec<(String, u32)>,
    unknown: u32,
    prefix: String,
    word_chars_max: usize,
    chinese: bool,
    strip_accents: bool,
    lowercase: bool,
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Parts {
    /// `None` where anything is said that the encoder does not do, or is not said that it needs.
    fn of(root: &Map<String, Value>, vocabulary: &Vocabulary) -> Option<Self> {
        let part = |name: &str, kind: &str| {
            let object = root.get(name)?.as_object()?;
            (object.get("type")?.as_str()? == kind).then_some(object)
        };
        let normalizer = part("normalizer", "BertNormalizer")?;
        part("pre_tokenizer", "BertPreTokenizer")?;
        let model = part("model", "WordPiece")?;
        let unknown = vocabulary.get(model.get("unk_token")?.as_str()?)?;
        let word_chars_max = model.get("max_input_chars_per_word")?.as_u64()? as usize;
        if word_chars_max > WORD_CHARS_MAX || flag(normalizer, "clean_text") != Some(true) {
            return None;
        }
        let lowercase = flag(normalizer, "lowercase")?;
        let strip_accents = match normalizer.get("strip_accents") {
            None | Some(Value::Null) => lowercase,
            Some(value) => value.as_bool()?,
        };
        let (before, after) = frame(root.get("post_processor")?, vocabulary)?;
        Some(Self {
            special: special_tokens(root.get("added_tokens")?, vocabulary)?,
            unknown,
            prefix: model.get("continuing_subword_prefix")?.as_str()?.to_owned(),
            word_chars_max,
            chinese: flag(normalizer, "handle_chinese_chars")?,
            strip_accents,
            lowercase,
            before,
            after,
        })
    }
}

/// The special tokens if they are plain ones: found wherever they are spelled out, and nothing is
/// done to the text around them.
fn special_tokens(added: &Value, vocabulary: &Vocabulary) -> Option<Vec<(String, u32)>> {
    let mut special = Vec::new();
    for token in added.as_array()? {
        let content = token_content(token)?;
        let object = token.as_object()?;
        let plain = ["single_word", "lstrip", "rstrip", "normalized"];
        let is_plain = plain.iter().all(|key| flag(object, key) == Some(false));
        let starts = content.starts_with(SPECIAL_START) && content.len() > 1;
        if !is_plain || !starts || flag(object, "special") != Some(true) {
            return None;
        }
        special.push((content.to_owned(), vocabulary.get(content)?));
    }
    special.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
    Some(special)
}

/// The ids around a single text, by either of the two post-processors that BERT's have.
fn frame(processor: &Value, vocabulary: &Vocabulary) -> Option<(Vec<u32>, Vec<u32>)> {
    match processor.get("type")?.as_str()? {
        "BertProcessing" => {
            let id = |key: &str| {
                let id = processor.get(key)?.get(1)?.as_u64()? as u32;
                let name = processor.get(key)?.get(0)?.as_str()?;
                (vocabulary.get(name) == Some(id)).then(|| vec![id])
            };
            Some((id("cls")?, id("sep")?))
        }
        "TemplateProcessing" => {
            let (mut before, mut after, mut seen) = (Vec::new(), Vec::new(), false);
            for item in processor.get("single")?.as_array()? {
                if let Some(token) = item.get("SpecialToken") {
                    let name = token.get("id")?.as_str()?;
                    let ids = processor.get("special_tokens")?.get(name)?.get("ids")?.as_array()?;
                    let ids = ids.iter().map(|id| u32::try_from(id.as_u64()?).ok());
                    let side = if seen { &mut after } else { &mut before };
                    side.extend(ids.collect::<Option<Vec<u32>>>()?);
                } else {
                    let sequence = item.get("Sequence")?.get("id")?.as_str()?;
                    if seen || sequence != "A" {
                        return None;
                    }
                    seen = true;
                }
            }
            seen.then_some((before, after))
        }
        _ => None,
    }
}

/// What BERT's pipeline needs to know of a character.
#[derive(Debug, Clone, Copy)]
struct Class(u8);

/// Classes of 256 characters.
type Page = Box<[Class; 256]>;

impl Class {
    /// Vanishes: a control, format, private or unassigned character.
    const REMOVED: u8 = 1;
    const SPACE: u8 = 2;
    const PUNCTUATION: u8 = 4;
    const NONSPACING: u8 = 8;
    /// Of the ideographs that are words of their own.
    const CJK: u8 = 16;
    /// Decomposing does nothing to it and moves no mark across it.
    const PLAIN: u8 = 32;

    fn has(self, property: u8) -> bool {
        self.0 & property != 0
    }

    /// The tables are searched once per character of the planes in use, a page at a time.
    fn of(c: char) -> Self {
        static PAGES: [OnceLock<Page>; 256] = [const { OnceLock::new() }; 256];
        let code = c as usize;
        let Some(page) = PAGES.get(code >> 8) else {
            return Self::search(c);
        };
        let class = |low: usize| char::from_u32((code & !0xff | low) as u32).map(Self::search);
        let fill = || Box::new(std::array::from_fn(|low| class(low).unwrap_or(Self(0))));
        page.get_or_init(fill)[code & 0xff]
    }

    fn search(c: char) -> Self {
        let kept_control = matches!(c, '\t' | '\n' | '\r');
        let mut decomposes = false;
        decompose_canonical(c, |part| decomposes |= part != c);
        let properties = [
            (Self::REMOVED, matches!(c, '\0' | '\u{fffd}') || !kept_control && c.is_other()),
            (Self::SPACE, c.is_whitespace()),
            (Self::PUNCTUATION, c.is_ascii_punctuation() || c.is_punctuation()),
            (Self::NONSPACING, c.is_mark_nonspacing()),
            (Self::CJK, is_cjk(c)),
            (Self::PLAIN, !decomposes && canonical_combining_class(c) == 0),
        ];
        Self(properties.iter().filter(|(_, holds)| *holds).map(|(bit, _)| bit).sum())
    }
}

fn is_cjk(c: char) -> bool {
    matches!(c as u32,
        0x4e00..=0x9fff
        | 0x3400..=0x4dbf
        | 0x20000..=0x2a6df
        | 0x2a700..=0x2b73f
        | 0x2b740..=0x2b81f
        | 0x2b920..=0x2ceaf
        | 0xf900..=0xfaff
        | 0x2f800..=0x2fa1f)
}
