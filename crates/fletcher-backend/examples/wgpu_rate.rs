//! How many vectors a second a GPU makes through wgpu, ids on the host to vectors on the host.
//!
//! `wgpu_rate MODEL_FOLDER DEVICE PRECISION TOKENS BATCH... [--threads N] [--batch-tokens N]`
//! embeds random ids in calls of BATCH rows of TOKENS tokens, for a second and a half for each
//! BATCH, and prints a line of JSON for each; the first line holds the vectors of 8 fixed rows, for
//! comparison with a peer's. `bench/compare/gpu.py` runs it beside PyTorch.
//!
//! With `--profile` each BATCH is followed by the kernels' times by the device's clock, as a table.

#![expect(clippy::print_stdout, reason = "a program")]

use std::time::{Duration, Instant};

use fletcher_backend::DeviceChoice;
use fletcher_backend::registry;
use fletcher_backend::wgpu::{Api, KernelTime, Wgpu, WgpuOptions};
use fletcher_core::backend::Precision;
use fletcher_core::embedder::{Embedder, EmbedderConfig};
use fletcher_core::model::Model;
use fletcher_hub::ModelFolder;
use serde_json::json;

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "usage: wgpu_rate MODEL_FOLDER DEVICE PRECISION TOKENS BATCH...";
/// How long each batch size is measured, in rounds of which the best and the median are told.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(300);

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or(USAGE)?;
    let device: DeviceChoice = args.next().ok_or(USAGE)?.parse()?;
    let name = args.next().ok_or(USAGE)?;
    let precision = Precision::ALL.into_iter().find(|p| p.name() == name).ok_or(USAGE)?;
    let tokens: usize = args.next().ok_or(USAGE)?.parse()?;
    let model = Model::open(&ModelFolder::open(folder)?, Default::default())?;
    let opened = Instant::now();
    let mut batches: Vec<String> = args.collect();
    let mut option = |name: &str| {
        let at = batches.iter().position(|arg| arg == name)?;
        batches.remove(at);
        (at < batches.len()).then(|| batches.remove(at).parse().ok())?
    };
    let threads = option("--threads").unwrap_or(0);
    let batch_tokens = option("--batch-tokens").unwrap_or(0);
    let config = EmbedderConfig { threads, batch_tokens, ..Default::default() };
    let profiled = batches.iter().position(|arg| arg == "--profile").map(|at| batches.remove(at));
    let (embedder, wgpu) = match profiled {
        None => (registry::open(device, precision, model, config)?, None),
        Some(_) => {
            let (api, index) = match device {
                DeviceChoice::Vulkan { index } => (Api::Vulkan, index),
                _ => (Api::Metal, 0),
            };
            let options = WgpuOptions { profiled: true, ..Default::default() };
            let wgpu = Wgpu::open_with(api, index, precision, options)?;
            (Embedder::new(model, wgpu.clone(), config)?, Some(wgpu))
        }
    };
    let opened = opened.elapsed().as_secs_f64();
    let vectors = embedder.embed_ids(&sequences(8, tokens))?;
    let vectors: Vec<&[f32]> = (0..8).filter_map(|row| vectors.vector(row)).collect();
    println!("{}", json!({"device": device.to_string(), "open_s": opened, "vectors": vectors}));
    for batch in batches {
        let batch: usize = batch.parse()?;
        // What the check above and the batch before left.
        wgpu.as_ref().map(Wgpu::take_profile);
        let mut rates = rates(&embedder, batch, tokens)?;
        rates.sort_by(f64::total_cmp);
        let line = json!({
            "batch": batch,
            "tokens": tokens,
            "median_per_s": rates[ROUNDS / 2],
            "best_per_s": rates[ROUNDS - 1],
        });
        println!("{line}");
        if let Some(wgpu) = &wgpu {
            print_profile(&wgpu.take_profile());
        }
    }
    Ok(())
}

fn print_profile(times: &[KernelTime]) {
    let all: f64 = times.iter().map(|time| time.seconds).sum();
    println!("| kernel | calls | us a call | share | TFLOP/s | GB/s |\n|---|---|---|---|---|---|");
    for time in times {
        println!(
            "| {} | {} | {:.1} | {:.1} % | {:.1} | {:.0} |",
            time.name,
            time.calls,
            time.seconds / time.calls as f64 * 1e6,
            time.seconds / all * 100.0,
            time.operations / time.seconds * 1e-12,
            time.bytes / time.seconds * 1e-9,
        );
    }
}

fn rates(embedder: &Embedder, batch: usize, tokens: usize) -> Result<Vec<f64>, Error> {
    let rows = sequences(batch, tokens);
    embedder.embed_ids(&rows)?;
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < ROUND {
            embedder.embed_ids(&rows)?;
            done += batch;
        }
        rates.push(done as f64 / start.elapsed().as_secs_f64());
    }
    Ok(rates)
}

/// Ids that a peer can make too: `1000 + (row * 7919 + place * 104729) mod 20000`.
fn sequences(rows: usize, tokens: usize) -> Vec<Vec<u32>> {
    let id = |row: usize, place: usize| 1000 + ((row * 7919 + place * 104_729) % 20_000) as u32;
    (0..rows).map(|row| (0..tokens).map(|place| id(row, place)).collect()).collect()
}
