//! Pieces and their ids in a few flat tables.
//!
//! A map of owned strings takes ten times the memory and is slower to build than to use. Here all
//! pieces lie in one string, and an open-addressing table of (tag, entry) pairs finds them. The
//! hash is fed byte by byte, so that a tokenizer gets the hashes of all prefixes of a word in one
//! pass; see [`Hash`].

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// Pieces with their ids, in the order in which they were first inserted.
#[derive(Default)]
pub(super) struct Vocabulary {
    /// All pieces, end to end.
    bytes: String,
    /// Where each piece ends.
    ends: Vec<u32>,
    /// The id of each piece; empty as long as that is its place, as it is in most files.
    ids: Vec<u32>,
    /// A power of two of them, at most half full.
    slots: Vec<Slot>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Nothing, or the number of an entry, from 1, with some bits of its piece's hash above.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot(u32);

impl Slot {
    const FREE: Slot = Slot(0);
    /// Bits of the number; there are fewer entries than [`super::screen::ID_LIMIT`] twice over.
    const BITS: u32 = 22;

    fn new(tag: u32, entry: usize) -> Self {
        Self(tag << Self::BITS | (entry as u32 + 1))
    }

    fn has_tag(self, tag: u32) -> bool {
        self.0 >> Self::BITS == tag
    }

    fn entry(self) -> usize {
        (self.0 & ((1 << Self::BITS) - 1)) as usize - 1
    }
}

/// A hash of the bytes fed so far.
///
/// The bytes are a polynomial over an odd constant (FNV's construction, which spreads low bits
/// well), and [`Hash::mix`] folds the upper half into the lower one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hash(u64);

impl Hash {
    pub(super) const EMPTY: Hash = Hash(0xcbf2_9ce4_8422_2325);

    #[inline]
    pub(super) fn feed(self, byte: u8) -> Self {
        Hash((self.0 ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23))
    }

    /// Writes this hash, and what it becomes after each of the bytes, to the start of `hashes`.
    pub(super) fn feed_all(self, bytes: &[u8], hashes: &mut [Hash]) {
        let mut hash = self;
        for (&byte, place) in bytes.iter().zip(hashes.iter_mut()) {
            *place = hash;
            hash = hash.feed(byte);
        }
        hashes[bytes.len()] = hash;
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        bytes.iter().fold(Self::EMPTY, |hash, &byte| hash.feed(byte))
    }

    /// A tag, and where to look first.
    #[inline]
    fn mix(self) -> (u32, usize) {
        ((self.0 >> (32 + Slot::BITS)) as u32, (self.0 ^ (self.0 >> 29)) as usize)
    }
}

impl Vocabulary {
    /// Room for as many pieces with so many bytes. What grows instead is copied, and leaves its
    /// former places behind as holes in the heap.
    fn with_capacity(pieces: usize, bytes: usize) -> Self {
        Self {
            bytes: String::with_capacity(bytes),
            ends: Vec::with_capacity(pieces),
            ids: Vec::new(),
            slots: vec![Slot::FREE; Self::slots_for(pieces)],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// All pieces with their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.len()).map(|entry| (self.piece(entry), self.id(entry)))
    }

    pub(super) fn get(&self, piece: &str) -> Option<u32> {
        self.find(Hash::of(piece.as_bytes()), "", piece.as_bytes())
    }

    /// The id of `prefix` with `rest` behind it, whose bytes together have this hash.
    #[inline]
    pub(super) fn find(&self, hash: Hash, prefix: &str, rest: &[u8]) -> Option<u32> {
        self.lookup(hash, prefix, rest).map(|entry| self.id(entry))
    }

    #[inline]
    fn id(&self, entry: usize) -> u32 {
        self.ids.get(entry).copied().unwrap_or(entry as u32)
    }

    fn set_id(&mut self, entry: usize, id: u32) {
        if self.ids.is_empty() && id == entry as u32 {
            return;
        }
        // Entries that have no id of their own yet: all, or the one that was added last.
        let first = self.ids.len() as u32;
        self.ids.extend(first..self.ends.len() as u32);
        self.ids[entry] = id;
    }

    #[inline]
    fn lookup(&self, hash: Hash, prefix: &str, rest: &[u8]) -> Option<usize> {
        let same = |entry: usize| {
            let piece = self.piece(entry).as_bytes();
            piece.len() == prefix.len() + rest.len()
                && &piece[prefix.len()..] == rest
                && piece.starts_with(prefix.as_bytes())
        };
        let (tag, mut at) = hash.mix();
        let mask = self.slots.len().checked_sub(1)?;
        loop {
            let slot = self.slots[at & mask];
            if slot == Slot::FREE {
                return None;
            }
            if slot.has_tag(tag) && same(slot.entry()) {
                return Some(slot.entry());
            }
            at += 1;
        }
    }

    /// Adds a piece, or gives a known one another id.
    pub(super) fn insert(&mut self, piece: &str, id: u32) {
        let hash = Hash::of(piece.as_bytes());
        if let Some(entry) = self.lookup(hash, "", piece.as_bytes()) {
            self.set_id(entry, id);
            return;
        }
        if self.slots.len() < Self::slots_for(self.len() + 1) {
            self.grow();
        }
        self.bytes.push_str(piece);
        self.ends.push(self.bytes.len() as u32);
        let entry = self.len() - 1;
        self.set_id(entry, id);
        Self::place(&mut self.slots, hash, entry);
    }

    /// Gives back what growing has allocated beyond what is used.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.ids.shrink_to_fit();
    }

    #[inline]
    fn piece(&self, entry: usize) -> &str {
        let start = entry.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.bytes[start..self.ends[entry] as usize]
    }

    /// Slots that so many pieces need: half of them stay free.
    fn slots_for(pieces: usize) -> usize {
        (2 * pieces).next_power_of_two().max(16)
    }

    fn grow(&mut self) {
        let mut slots = vec![Slot::FREE; Self::slots_for(2 * (self.len() + 1))];
        for entry in 0..self.len() {
            Self::place(&mut slots, Hash::of(self.piece(entry).as_bytes()), entry);
        }
        self.slots = slots;
    }

    fn place(slots: &mut [Slot], hash: Hash, entry: usize) {
        let (tag, mut at) = hash.mix();
        let mask = slots.len() - 1;
        while slots[at & mask] != Slot::FREE {
            at += 1;
        }
        slots[at & mask] = Slot::new(tag, entry);
    }
}

/// Pieces as a file lists them, before anything is known to be sound: `{"piece": id, …}`, or
/// Unigram's `[["piece", score], …]`, which are numbered in order.
#[derive(Debug)]
pub(super) struct ListedPieces {
    pub(super) vocabulary: Vocabulary,
    /// The piece that is farthest beyond the limits, if one is.
    pub(super) absurd: Option<(u64, String)>,
}

/// What a vocabulary may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceLimits {
    /// First id that is too large.
    pub(super) id: u64,
    /// Longest piece in bytes.
    pub(super) bytes: usize,
}

impl PieceLimits {
    pub(super) fn excludes(self, piece: &str, id: u64) -> bool {
        id >= self.id || piece.len() > self.bytes
    }
}

/// A piece that is borrowed from the file unless it is written with escapes.
#[derive(Deserialize)]
struct Piece<'a>(#[serde(borrow)] Cow<'a, str>);

/// A piece with a score, of which only the piece is read.
#[derive(Deserialize)]
struct Scored<'a>(#[serde(borrow)] Piece<'a>, #[allow(dead_code)] f64);

impl ListedPieces {
    /// Reads the JSON text of a vocabulary.
    pub(super) fn read(json: &[u8], limits: PieceLimits) -> Result<Self, serde_json::Error> {
        // A piece has two quotation marks around it; escaped ones make the guess a little larger.
        let marks = json.iter().filter(|&&byte| byte == b'"').count();
        let count = (marks / 2).min(limits.id as usize);
        let vocabulary = Vocabulary::with_capacity(count, json.len());
        let mut pieces = Self { vocabulary, absurd: None };
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        deserializer.deserialize_any(Reader { pieces: &mut pieces, limits })?;
        deserializer.end()?;
        pieces.vocabulary.shrink();
        Ok(pieces)
    }

    fn add(&mut self, piece: &str, id: u64, limits: PieceLimits) {
        if limits.excludes(piece, id) {
            let found = (id, piece.to_owned());
            if self.absurd.as_ref().is_none_or(|worst| *worst < found) {
                self.absurd = Some(found);
            }
            return;
        }
        self.vocabulary.insert(piece, id as u32);
    }
}

struct Reader<'p> {
    pieces: &'p mut ListedPieces,
    limits: PieceLimits,
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of pieces with their ids, or a list of pieces with their scores")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((Piece(piece), id)) = map.next_entry::<Piece<'de>, u64>()? {
            self.pieces.add(&piece, id, self.limits);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut id = 0;
        while let Some(Scored(Piece(piece), _)) = list.next_element::<Scored<'de>>()? {
            self.pieces.add(&piece, id, self.limits);
            id += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PieceLimits = PieceLimits { id: 1 << 20, bytes: 100 };

    #[test]
    fn pieces_are_found_and_others_are_not() {
        let mut vocabulary = Vocabulary::default();
        assert_eq!(vocabulary.get("a"), None);
        for id in 0..5000 {
            vocabulary.insert(&format!("##{}", id * 7919 % 5000), id);
        }
        vocabulary.insert("##17", 9);
        assert_eq!(vocabulary.len(), 5000);
        for id in (0..5000).filter(|id| id * 7919 % 5000 != 17) {
            assert_eq!(vocabulary.get(&format!("##{}", id * 7919 % 5000)), Some(id));
        }
        assert_eq!(vocabulary.get("##17"), Some(9));
        for piece in ["", "##", "17", "##5000", "##017"] {
            assert_eq!(vocabulary.get(piece), None, "{piece}");
        }
        let hash = Hash::of(b"##").feed(b'4').feed(b'2');
        assert_eq!(vocabulary.find(hash, "##", b"42"), vocabulary.get("##42"));
        assert_eq!(vocabulary.find(hash, "#!", b"42"), None);
    }

    #[test]
    fn ids_in_order_take_no_memory_and_others_are_kept() {
        let mut vocabulary = Vocabulary::default();
        for (id, piece) in ["a", "b", "c"].into_iter().enumerate() {
            vocabulary.insert(piece, id as u32);
        }
        assert!(vocabulary.ids.is_empty());
        vocabulary.insert("b", 1);
        assert!(vocabulary.ids.is_empty());
        vocabulary.insert("b", 7);
        vocabulary.insert("d", 3);
        vocabulary.insert("e", 9);
        let pieces: Vec<_> = vocabulary.iter().collect();
        assert_eq!(pieces, [("a", 0), ("b", 7), ("c", 2), ("d", 3), ("e", 9)]);
        assert!(pieces.iter().all(|&(piece, id)| vocabulary.get(piece) == Some(id)));
    }

    /// Tables that grow would leave their former selves behind.
    #[test]
    fn a_file_gets_its_tables_at_once() {
        let listed: Vec<String> = (0..3000).map(|id| format!("\"##{id}\": {id}")).collect();
        let json = format!("{{{}}}", listed.join(", "));
        let pieces = ListedPieces::read(json.as_bytes(), LIMITS).unwrap().vocabulary;
        let (slots, ids) = (pieces.slots.len(), pieces.ids.capacity());
        assert_eq!((pieces.len(), slots, ids), (3000, 8192, 0));
        assert_eq!(pieces.ends.capacity(), 3000);
    }

    #[test]
    fn both_shapes_are_read() {
        let object = ListedPieces::read(br#"{"a": 3, "\u00e9\n": 0, "a": 4}"#, LIMITS).unwrap();
        let pieces: Vec<_> = object.vocabulary.iter().collect();
        assert_eq!(pieces, [("a", 4), ("\u{e9}\n", 0)]);
        let list = ListedPieces::read(br#"[["<s>", 0.0], ["b", -1.5]]"#, LIMITS).unwrap();
        assert_eq!(list.vocabulary.iter().collect::<Vec<_>>(), [("<s>", 0), ("b", 1)]);
        for broken in ["7", "{\"a\": -1}", "{\"a\": \"b\"}", "[\"a\"]", "{} x"] {
            assert!(ListedPieces::read(broken.as_bytes(), LIMITS).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_worst_absurd_piece_is_told() {
        let json = format!(r#"{{"a": 9999999, "b": 99999999, "{}": 1}}"#, "c".repeat(200));
        let pieces = ListedPieces::read(json.as_bytes(), LIMITS).unwrap();
        assert_eq!(pieces.absurd, Some((99_999_999, "b".to_owned())));
    }
}
