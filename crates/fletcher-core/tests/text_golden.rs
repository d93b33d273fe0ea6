//! Token ids against Python's, for every kind of tokenizer, on hostile texts.
//!
//! `tests/golden/tokens-*.jsonl` say what `transformers` makes of a text, whole and under
//! truncation to 12 tokens, and `offsets-*.jsonl` where each token stands in it;
//! `tools/golden/tokens.py` writes them.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fletcher_core::text::{Overlong, TextEncoder, TextFiles};
use serde_json::Value;
use sha2::{Digest, Sha256};

const CUT: usize = 12;

const FOLDERS: [&str; 9] = [
    "bert",
    "bert-cased",
    "bert-left",
    "bert-legacy",
    "camembert",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn files(folder: &str) -> TextFiles {
    let read = |name: &str| fs::read(golden().join(folder).join(name)).ok().map(Bytes::from);
    TextFiles {
        tokenizer_json: read("tokenizer.json"),
        vocab_txt: read("vocab.txt"),
        tokenizer_config: read("tokenizer_config.json"),
        lowercase: false,
    }
}

fn rows(folder: &str) -> Vec<Value> {
    let text = fs::read_to_string(golden().join(format!("tokens-{folder}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text_of(row: &Value) -> String {
    match row["text"].as_str() {
        Some(text) => text.to_owned(),
        None => row["piece"].as_str().unwrap().repeat(row["times"].as_u64().unwrap() as usize),
    }
}

fn ids_of(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn whole_texts_have_pythons_ids() {
    let mut wrong = Vec::new();
    for folder in FOLDERS {
        let encoder = TextEncoder::new(&files(folder), usize::MAX).unwrap();
        for row in rows(folder) {
            let tokens = encoder.encode(&text_of(&row), "", Overlong::Error).unwrap();
            let same = match &row["ids"] {
                list @ Value::Array(_) => tokens.ids == ids_of(list),
                long => {
                    let count = long["count"].as_u64().unwrap() as usize;
                    tokens.ids.len() == count && digest(&tokens.ids) == long["sha256"]
                }
            };
            assert_eq!((tokens.truncated, tokens.total), (false, tokens.ids.len()));
            if !same {
                let got = &tokens.ids[..tokens.ids.len().min(40)];
                wrong.push(format!("{folder}: {row}\n    got {} {got:?}", tokens.ids.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn truncated_texts_have_pythons_ids() {
    let mut wrong = Vec::new();
    for folder in FOLDERS {
        let encoder = TextEncoder::new(&files(folder), CUT).unwrap();
        for row in rows(folder) {
            let tokens = encoder.encode(&text_of(&row), "", Overlong::Truncate).unwrap();
            if tokens.ids != ids_of(&row["cut"]) {
                wrong.push(format!("{folder}: {row}\n    got {:?}", tokens.ids));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn tokens_stand_where_pythons_stand() {
    let (mut wrong, mut places) = (Vec::new(), 0);
    for folder in ["bert", "bert-cased"] {
        let encoder = TextEncoder::new(&files(folder), usize::MAX).unwrap();
        let path = golden().join(format!("offsets-{folder}.jsonl"));
        for line in fs::read_to_string(path).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let tokens = encoder.all_tokens(row["text"].as_str().unwrap(), false).unwrap();
            let got: Vec<[u64; 3]> = tokens
                .iter()
                .map(|token| {
                    let bytes = token.bytes.clone().unwrap();
                    [u64::from(token.id), bytes.start as u64, bytes.end as u64]
                })
                .collect();
            let expected: Vec<[u64; 3]> = serde_json::from_value(row["tokens"].clone()).unwrap();
            places += expected.len();
            if got != expected {
                wrong.push(format!("{folder}: {row}\n    got {got:?}"));
            }
        }
    }
    assert!(places > 2_000, "{places}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
