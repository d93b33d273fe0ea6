//! The encoder for BERT's tokenizer against the `tokenizers` crate: the same ids on every
//! character in several surroundings, and on disturbed texts.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use fletcher_core::text::{Overlong, TextEncoder, TextFiles, TextScratch, TextToken};
use serde_json::{Value, json};

fn files(folder: &str) -> TextFiles {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(folder);
    let read = |name: &str| fs::read(golden.join(name)).ok().map(Bytes::from);
    TextFiles {
        tokenizer_json: read("tokenizer.json"),
        vocab_txt: read("vocab.txt"),
        tokenizer_config: None,
        lowercase: false,
    }
}

/// The uncased golden tokenizer with some of its normaliser's settings changed.
fn variant(changes: &[(&str, Value)]) -> TextFiles {
    let mut files = files("bert");
    let mut root: Value = serde_json::from_slice(&files.tokenizer_json.unwrap()).unwrap();
    for (key, value) in changes {
        root["normalizer"][key] = value.clone();
    }
    files.tokenizer_json = Some(serde_json::to_vec(&root).unwrap().into());
    files
}

fn variants() -> Vec<(&'static str, TextFiles)> {
    vec![
        ("uncased", files("bert")),
        ("cased", files("bert-cased")),
        ("accents kept", variant(&[("strip_accents", json!(false))])),
        (
            "cased, no accents",
            variant(&[("strip_accents", json!(true)), ("lowercase", json!(false))]),
        ),
        ("no CJK", variant(&[("handle_chinese_chars", json!(false))])),
    ]
}

struct Pair {
    own: TextEncoder,
    oracle: TextEncoder,
    /// Knows the words of the texts before, unlike a new one; ids must not tell.
    used: RefCell<TextScratch>,
}

impl Pair {
    fn new(files: &TextFiles, limit: usize) -> Self {
        let own = TextEncoder::new(files, limit).unwrap();
        let oracle = TextEncoder::oracle(files, limit).unwrap();
        Self { own, oracle, used: RefCell::default() }
    }

    fn check(&self, name: &str, text: &str) {
        let own = self.own.encode(text, "", Overlong::Truncate).unwrap();
        let used = &mut self.used.borrow_mut();
        let again = self.own.encode_with(text, "", Overlong::Truncate, used).unwrap();
        assert_eq!(own, again, "{name}: {text:?}");
        let oracle = self.oracle.encode(text, "", Overlong::Truncate).unwrap();
        assert_eq!(own.truncated, oracle.truncated, "{name}: {text:?}");
        assert_eq!(own.ids, oracle.ids, "{name}: {text:?}");
        if !own.truncated {
            let tokens = self.own.all_tokens(text, true).unwrap();
            let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
            assert_eq!(ids, oracle.ids, "{name}: {text:?}");
            let part =
                |token: &TextToken| token.bytes.clone().is_none_or(|b| text.get(b).is_some());
            assert!(tokens.iter().all(part), "{name}: {text:?}");
        }
    }
}

/// Every character of the planes in use and some of the others: alone, inside a word, before and
/// behind marks whose order decomposing changes, and beside characters that vanish.
#[test]
fn every_character_has_the_oracles_ids() {
    for (name, files) in variants() {
        let pair = Pair::new(&files, usize::MAX);
        let all =
            ('\0'..=char::MAX).filter(|&c| (c as u32) < 0x20000 || (c as u32).is_multiple_of(61));
        let mut text = String::new();
        for (count, c) in all.enumerate() {
            text.extend([
                't', c, 'h', 'e', ' ', c, ' ', 'A', c, '\u{301}', '\u{316}', c, '\u{1}', c,
            ]);
            text.extend(['\u{316}', '\u{200d}', '\u{301}', 's', '\n']);
            if count % 32 == 31 {
                pair.check(name, &text);
                text.clear();
            }
        }
        pair.check(name, &text);
    }
}

/// A small generator, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % limit as u64) as usize
    }
}

#[test]
fn disturbed_texts_have_the_oracles_ids() {
    let parts = [
        "the",
        "The quick",
        "unaffable",
        "ing",
        " ",
        "  ",
        "\t",
        "\u{a0}",
        "-",
        "...",
        "don't",
        "[SEP]",
        "[CLS]",
        "[MASK",
        "[",
        "]",
        "[[SEP]]",
        "[PAD][UNK]",
        "##ing",
        "é",
        "e\u{301}",
        "İ",
        "ß",
        "ﬁ",
        "漢字",
        "\u{f900}",
        "각",
        "हिन्दी",
        "\u{0}",
        "\u{fffd}",
        "\u{200b}",
        "😀",
        "\u{1d165}",
        "\u{e0001}",
        "Ω",
        "ΟΔΟΣ",
        "12,345.67",
        "http://a.b/c?d=e",
        "\u{2029}",
        "\u{85}",
        "\r\n",
        "aaaaaaaaaaaaaaaa",
    ];
    let long = "a".repeat(99);
    for (name, files) in variants() {
        for limit in [usize::MAX, 9] {
            let pair = Pair::new(&files, limit);
            let mut random = Random(7);
            for _ in 0..3000 {
                let mut text = String::new();
                for _ in 0..random.below(24) {
                    match random.below(12) {
                        0 => text.push_str(&long[..90 + random.below(10)]),
                        1 => text.extend(char::from_u32(random.below(0x30000) as u32)),
                        2 => text.push(random.below(128) as u8 as char),
                        _ => text.push_str(parts[random.below(parts.len())]),
                    }
                }
                pair.check(name, &text);
            }
        }
    }
}

/// Words of 100 characters are looked up, of 101 they are not, whatever their bytes.
#[test]
fn word_lengths_at_the_limit() {
    let pair = Pair::new(&files("bert"), usize::MAX);
    for letter in ["a", "aB9", "ж", "𝔞", "e\u{301}"] {
        for count in [5, 14, 15, 16, 17, 98, 99, 100, 101, 102, 254, 255, 256, 257, 1024, 5000] {
            pair.check("length", &letter.repeat(count));
            pair.check("length", &format!("{} the", letter.repeat(count)));
        }
    }
}
