//! A resident embedding process on a line protocol, for side-by-side measurements with peers.
//!
//! `resident MODEL_FOLDER THREADS` reads one JSON object `{"texts": […]}` a line and answers each
//! with a line `{"n": N, "dim": D}` and `N * D` little-endian f32.

use std::io::{BufRead, Write};

use fletcher_backend::cpu::Cpu;
use fletcher_core::embedder::{EmbedOptions, Embedder, EmbedderConfig};
use fletcher_core::model::Model;
use fletcher_hub::ModelFolder;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: resident MODEL_FOLDER THREADS")?;
    let threads: usize = args.next().ok_or("usage: resident MODEL_FOLDER THREADS")?.parse()?;
    let model = Model::open(&ModelFolder::open(folder)?, Default::default())?;
    let config = EmbedderConfig { threads, batch_tokens: 0 };
    let embedder = Embedder::new(model, Cpu::new(threads), config)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        answer(&embedder, &line?, &mut out)?;
    }
    Ok(())
}

fn answer(embedder: &Embedder, line: &str, out: &mut impl Write) -> Result<(), Error> {
    let request: serde_json::Value = serde_json::from_str(line)?;
    let list = request["texts"].as_array().ok_or("no `texts`")?;
    let texts: Vec<&str> = list.iter().filter_map(|text| text.as_str()).collect();
    let found = embedder.embed(&texts, &EmbedOptions::default())?;
    if let Some(error) = found.rows.into_iter().find_map(Result::err) {
        return Err(error.into());
    }
    writeln!(out, "{{\"n\":{},\"dim\":{}}}", texts.len(), found.dim)?;
    let bytes: Vec<u8> = found.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    out.write_all(&bytes)?;
    Ok(out.flush()?)
}
