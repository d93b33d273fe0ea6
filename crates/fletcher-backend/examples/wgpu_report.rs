//! Whether the GPU here computes what it should, as a report to paste into an issue.
//!
//! `cargo run --release -p fletcher-backend --example wgpu_report [vulkan[:N] | metal]` runs the
//! conformance suite and every golden checkpoint in each precision with each set of kernels that
//! the device has, prints Markdown, and exits with 1 if anything is wrong.

#![expect(clippy::print_stdout, reason = "a program")]

#[path = "../tests/common/mod.rs"]
#[expect(dead_code, reason = "the tests read the rest of a checkpoint")]
mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use fletcher_backend::DeviceChoice;
use fletcher_backend::wgpu::{Api, KernelSet, Wgpu, WgpuOptions};
use fletcher_core::backend::{BackendError, Precision};
use fletcher_core::conformance;
use fletcher_core::embedder::{Embedder, EmbedderConfig};

/// Greatest differences that pass: the suite's states in each precision, then unit vectors in f32.
const SUITE: [f64; 2] = [1e-5, 4e-2];
const VECTORS_F32: f64 = 1e-5;
/// The least cosine that passes in f16.
const COSINE_F16: f64 = 0.9999;

fn main() -> Result<ExitCode, BackendError> {
    let named = std::env::args().nth(1).and_then(|name| name.parse().ok());
    let (api, index) = match named {
        Some(DeviceChoice::Metal) => (Api::Metal, 0),
        Some(DeviceChoice::Vulkan { index }) => (Api::Vulkan, index),
        _ if cfg!(target_os = "macos") => (Api::Metal, 0),
        _ => (Api::Vulkan, 0),
    };
    println!("### Fletcher {} on a GPU\n", env!("CARGO_PKG_VERSION"));
    println!("{} {}, {api}:{index}\n", std::env::consts::OS, std::env::consts::ARCH);
    match Wgpu::describe(api) {
        Ok(adapters) => println!("{adapters}"),
        Err(reason) => println!("none: {reason}"),
    }
    println!("\n| precision | kernels | conformance suite | golden checkpoints | seconds |");
    println!("|---|---|---|---|---|");
    let mut all_right = true;
    for (precision, tolerance) in [Precision::F32, Precision::F16].into_iter().zip(SUITE) {
        let mut seen = Vec::new();
        for kernels in [KernelSet::Staged, KernelSet::Cooperative, KernelSet::Plain] {
            let options = WgpuOptions { kernels, ..Default::default() };
            let wgpu = match Wgpu::open_with(api, index, precision, options) {
                Ok(wgpu) => wgpu,
                Err(BackendError::NoPrecision { .. }) => continue,
                Err(error) => return Err(error),
            };
            if seen.contains(&wgpu.name()) {
                continue;
            }
            seen.push(wgpu.name());
            let started = Instant::now();
            let suite = outcome(|| {
                conformance::check(&wgpu, tolerance).map_err(|e| e.to_string())?;
                Ok(format!("within {tolerance:.0e}"))
            });
            let golden = outcome(|| golden(&wgpu, precision));
            all_right &= suite.is_ok() && golden.is_ok();
            let cell = |result: Result<String, String>| match result {
                Ok(found) => found,
                Err(wrong) => format!("**WRONG** {}", wrong.replace(['|', '\n'], " ")),
            };
            let (name, seconds) = (wgpu.name(), started.elapsed().as_secs_f64());
            let kernels = name.rsplit(", F").next().and_then(|rest| rest.split_once(", "));
            let kernels = kernels.map_or(name.as_str(), |(_, kernels)| kernels);
            let (suite, golden) = (cell(suite), cell(golden));
            println!("| {} | {kernels} | {suite} | {golden} | {seconds:.1} |", precision.name());
        }
    }
    println!("\n{}", if all_right { "All right." } else { "Something is wrong." });
    Ok(if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The suite panics where a number is off.
fn outcome(work: impl FnOnce() -> Result<String, String>) -> Result<String, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned())
    })
}

/// Every golden checkpoint's vectors beside those of `transformers`.
fn golden(wgpu: &Wgpu, precision: Precision) -> Result<String, String> {
    let (mut worst, mut least) = (0.0f64, 1.0f64);
    let all = common::all();
    for golden in &all {
        let config = EmbedderConfig::default();
        let embedder =
            Embedder::new(golden.model(), wgpu.clone(), config).map_err(|e| e.to_string())?;
        let found = embedder.embed_ids(&golden.sequences).map_err(|e| e.to_string())?;
        let largest = golden.vectors.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let off = common::max_abs(&found.values, &golden.vectors) / f64::from(largest);
        worst = worst.max(off);
        let dim = embedder.dim();
        let pairs = found.values.chunks_exact(dim).zip(golden.vectors.chunks_exact(dim));
        let cosine = pairs.map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
        least = least.min(cosine);
        // Written so that NaN does not pass.
        let right = match precision {
            Precision::F32 => off <= VECTORS_F32,
            _ => cosine >= COSINE_F16,
        };
        if !right {
            return Err(format!("{}: off by {off:.1e}, cosine {cosine:.7}", golden.name));
        }
    }
    Ok(format!("{} within {worst:.1e}, least cosine {least:.7}", all.len()))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
