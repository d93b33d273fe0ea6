//! Speed and quality of the CPU's number formats on one model, side by side.
//!
//! `precisions MODEL_FOLDER [TEXT_FILE|- [PRECISION|SET]...]` prints, for each format and each
//! instruction set of the CPU whose name is given (the best one if none is), sequences of 64 tokens
//! a second on one thread and on all (the best of many short runs, so that a busy neighbour
//! does not count), the time of one text of 16 and 128 tokens, and, given a file of one text a
//! line, how far the vectors' directions are from the first format's, and which share of a text's
//! ten nearest neighbours stays.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::time::Instant;

use fletcher_backend::cpu::Cpu;
use fletcher_core::backend::Precision;
use fletcher_core::embedder::{EmbedOptions, Embedder, EmbedderConfig};
use fletcher_core::model::Model;
use fletcher_hub::ModelFolder;
use fletcher_kernels::{Isa, Kernels};

type Error = Box<dyn std::error::Error>;

/// Of each thread.
const SEQUENCES: usize = 64;

/// What is measured.
#[derive(Clone, Copy)]
struct Engine<'a> {
    folder: &'a str,
    kernels: Kernels,
    precision: Precision,
}

impl Engine<'_> {
    fn open(self, threads: usize) -> Result<Embedder, Error> {
        let model = Model::open(&ModelFolder::open(self.folder)?, Default::default())?;
        let config = EmbedderConfig { threads, ..EmbedderConfig::default() };
        let cpu = Cpu::with_kernels(self.kernels, threads).with_precision(self.precision)?;
        Ok(Embedder::new(model, cpu, config)?)
    }
}

/// The shortest of many runs, in seconds.
fn best<R, E: Into<Error>>(
    seconds: f64,
    mut run: impl FnMut() -> Result<R, E>,
) -> Result<f64, Error> {
    let (start, mut best) = (Instant::now(), f64::MAX);
    while start.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        run().map_err(Into::into)?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn ids(rows: usize, tokens: usize) -> Vec<Vec<u32>> {
    let id = |row: usize, at: usize| (1000 + (row * tokens + at) * 7919 % 20_000) as u32;
    (0..rows).map(|row| (0..tokens).map(|at| id(row, at)).collect()).collect()
}

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let folder =
        args.next().ok_or("usage: precisions MODEL_FOLDER [TEXT_FILE|- [PRECISION|SET]...]")?;
    let texts = args.next().filter(|path| path != "-");
    let texts = texts.map(std::fs::read_to_string).transpose()?.unwrap_or_default();
    let texts: Vec<&str> = texts.lines().collect();
    let mut exact: Vec<f32> = Vec::new();
    let wanted: Vec<String> = args.collect();
    let names = |name: &str| wanted.iter().any(|word| word == name);
    let mut formats = vec![Precision::F32, Precision::Bf16, Precision::Int8];
    if formats.iter().any(|format| names(format.name())) {
        formats.retain(|format| names(format.name()));
    }
    let mut sets: Vec<Isa> = Isa::available().into_iter().filter(|set| names(set.name())).collect();
    if sets.is_empty() {
        sets.push(Isa::detect());
    }
    let threads = std::thread::available_parallelism()?.get();
    let rows = ids(SEQUENCES * threads, 64);
    let rows: Vec<&[u32]> = rows.iter().map(|row| &row[..]).collect();
    for (precision, set) in formats.into_iter().flat_map(|p| sets.iter().map(move |&set| (p, set)))
    {
        let Some(kernels) = Kernels::for_isa(set) else { continue };
        let engine = Engine { folder: &folder, kernels, precision };
        print!("{:>5} {}", precision.name(), set.name());
        for threads in [1, 0] {
            let embedder = engine.open(threads)?;
            let chunk = &rows[..if threads == 1 { SEQUENCES / 2 } else { rows.len() }];
            let seconds = best(3.0, || embedder.embed_ids(chunk))?;
            let name = if threads == 1 { "one thread" } else { "all" };
            print!("  {name} {:7.1}/s", chunk.len() as f64 / seconds);
        }
        let embedder = engine.open(0)?;
        for tokens in [16, 128] {
            let row = ids(1, tokens);
            let seconds = best(1.0, || embedder.embed_ids(&[&row[0][..]]))?;
            print!("  {tokens} tokens {:6.3} ms", seconds * 1e3);
        }
        if !texts.is_empty() {
            let found = embedder.embed(&texts, &EmbedOptions::default())?;
            if exact.is_empty() {
                exact.clone_from(&found.values);
            }
            let pairs = found.values.chunks_exact(found.dim).zip(exact.chunks_exact(found.dim));
            let cosines: Vec<f64> = pairs.map(|(a, b)| cosine(a, b)).collect();
            let least = cosines.iter().copied().fold(1.0, f64::min);
            let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
            let kept = overlap(&found.values, &exact, found.dim);
            print!("  cosine least {least:.6} mean {mean:.6} top 10 {kept:.4}");
        }
        println!();
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The share of each vector's ten nearest others that both sets agree on.
fn overlap(a: &[f32], b: &[f32], dim: usize) -> f64 {
    let nearest = |values: &[f32], row: usize| {
        let own = &values[row * dim..][..dim];
        let others = values.chunks_exact(dim).enumerate().filter(|(other, _)| *other != row);
        let mut ranked: Vec<(f64, usize)> =
            others.map(|(other, vector)| (-cosine(own, vector), other)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        ranked.into_iter().take(10).map(|(_, other)| other).collect::<Vec<_>>()
    };
    let rows = a.len() / dim;
    let shared = |row: usize| {
        let expected = nearest(b, row);
        nearest(a, row).into_iter().filter(|other| expected.contains(other)).count()
    };
    (0..rows).map(shared).sum::<usize>() as f64 / (10 * rows) as f64
}
