//! How fast a tokenizer is on one thread, beside the `tokenizers` crate on the same lines.
//!
//! ```text
//! cargo run --release -p fletcher-core --example tokenize_rate -- MODEL_DIR LINES.txt [SECONDS]
//! ```

use std::error::Error;
use std::fs;
use std::io::{Write, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fletcher_core::text::{Overlong, TextEncoder, TextFiles, TextScratch};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, lines, seconds) = match &arguments[..] {
        [folder, lines] => (folder, lines, 1.0),
        [folder, lines, seconds] => (folder, lines, seconds.parse()?),
        _ => return Err("usage: tokenize_rate MODEL_DIR LINES.txt [SECONDS]".into()),
    };
    let read = |name: &str| fs::read(Path::new(folder).join(name)).ok().map(Bytes::from);
    let files = TextFiles {
        tokenizer_json: read("tokenizer.json"),
        vocab_txt: read("vocab.txt"),
        tokenizer_config: read("tokenizer_config.json"),
        lowercase: false,
    };
    let text = fs::read_to_string(lines)?;
    let lines: Vec<&str> = text.lines().collect();
    let least = Duration::from_secs_f64(seconds);
    let own = TextEncoder::new(&files, usize::MAX)?;
    measure("own", &own, &lines, least)?;
    measure("crate", &TextEncoder::oracle(&files, usize::MAX)?, &lines, least)
}

/// Prints the quickest of the rounds that fit into `least`.
fn measure(
    name: &str,
    encoder: &TextEncoder,
    lines: &[&str],
    least: Duration,
) -> Result<(), Box<dyn Error>> {
    let mut scratch = TextScratch::default();
    let mut ids = Vec::new();
    let mut best = Duration::MAX;
    let (begin, mut tokens) = (Instant::now(), 0);
    while begin.elapsed() < least || tokens == 0 {
        let round = Instant::now();
        tokens = 0;
        for line in lines {
            ids.clear();
            encoder.encode_into(line, "", Overlong::Error, &mut scratch, &mut ids)?;
            tokens += ids.len();
        }
        best = best.min(round.elapsed());
    }
    let bytes: usize = lines.iter().map(|line| line.len()).sum();
    let nanoseconds = best.as_secs_f64() * 1e9;
    writeln!(
        stdout(),
        "{name:6} {tokens} tokens: {:.1} M tokens/s, {:.1} ns a token, {:.0} MB/s",
        tokens as f64 / nanoseconds * 1e3,
        nanoseconds / tokens as f64,
        bytes as f64 / nanoseconds * 1e3,
    )?;
    Ok(())
}
