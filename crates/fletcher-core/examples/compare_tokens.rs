//! Compares token ids with Python's on the many texts that `tools/golden/tokens_100k.py` writes.
//!
//! ```text
//! cargo run --release -p fletcher-core --example compare_tokens -- MODEL_DIR IDS.jsonl
//! ```
//!
//! Prints the rows that differ, at most ten, and exits 1 if there are any.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fletcher_core::text::{Overlong, TextEncoder, TextFiles};
use serde::Deserialize;

/// Tokens that the script truncates to.
const CUT: usize = 64;

/// Rows that differ are printed up to this many.
const SHOWN: usize = 10;

#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
    cut: Vec<u32>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, rows] = &arguments[..] else {
        return Err("usage: compare_tokens MODEL_DIR IDS.jsonl".into());
    };
    let files = files(folder);
    let whole = TextEncoder::new(&files, usize::MAX)?;
    let cut = TextEncoder::new(&files, CUT)?;
    let mut out = stdout().lock();
    let (mut texts, mut tokens, mut differ, mut bytes) = (0, 0, 0, 0);
    let mut spent = Duration::ZERO;
    for line in BufReader::new(File::open(rows)?).lines() {
        let row: Row = serde_json::from_str(&line?)?;
        let start = Instant::now();
        let got = whole.encode(&row.text, "", Overlong::Error)?.ids;
        spent += start.elapsed();
        let short = cut.encode(&row.text, "", Overlong::Truncate)?.ids;
        texts += 1;
        tokens += got.len();
        bytes += row.text.len();
        if got != row.ids || short != row.cut {
            differ += 1;
            if differ <= SHOWN {
                writeln!(out, "{:?}\n  python {:?}\n  here   {got:?}", row.text, row.ids)?;
            }
        }
    }
    let rate = bytes as f64 / spent.as_secs_f64() / 1e6;
    writeln!(out, "{texts} texts, {tokens} tokens, {differ} differ, {rate:.1} MB/s on one thread")?;
    Ok(ExitCode::from(u8::from(differ > 0)))
}

fn files(folder: &Path) -> TextFiles {
    let read = |name: &str| fs::read(folder.join(name)).ok().map(Bytes::from);
    TextFiles {
        tokenizer_json: read("tokenizer.json"),
        vocab_txt: read("vocab.txt"),
        tokenizer_config: read("tokenizer_config.json"),
        lowercase: false,
    }
}
