//! The wgpu backend against the reference and against `transformers`, on the first Vulkan (or
//! Metal) adapter of this machine: in CI that is Mesa's software driver.

mod common;

use std::io::Write;

use fletcher_backend::wgpu::{Api, KernelSet, Wgpu, WgpuOptions};
use fletcher_core::backend::{BackendError, Precision};
use fletcher_core::conformance;
use fletcher_core::embedder::{EmbedOptions, Embedder, EmbedderConfig};

const API: Api = if cfg!(target_os = "macos") { Api::Metal } else { Api::Vulkan };

/// The device with each set of kernels that it has, the best first. Nothing, said aloud, where
/// there is no device: tests of a GPU cannot run without one.
fn backends(precision: Precision) -> Vec<Wgpu> {
    let mut backends: Vec<Wgpu> = Vec::new();
    for set in [KernelSet::Staged, KernelSet::Cooperative, KernelSet::Plain] {
        let options = WgpuOptions { kernels: set, ..Default::default() };
        match Wgpu::open_with(API, 0, precision, options) {
            Ok(wgpu) if backends.iter().all(|known| known.name() != wgpu.name()) => {
                say(&format!("runs on {}", wgpu.name()));
                backends.push(wgpu);
            }
            Ok(_) => {}
            Err(BackendError::Absent { device, reason }) => {
                say(&format!("NOT RUN: {device} is absent: {reason}"));
                return Vec::new();
            }
            Err(error) => panic!("{error}"),
        }
    }
    backends
}

/// Past the test harness, which keeps what a passing test prints to itself.
#[expect(clippy::explicit_write, reason = "what `eprintln` writes, the harness keeps")]
fn say(message: &str) {
    let test = std::thread::current();
    let test = test.name().unwrap_or_default();
    writeln!(std::io::stderr(), "wgpu: {test}: {message}").unwrap();
}

#[test]
fn conformance_f32() {
    for backend in backends(Precision::F32) {
        conformance::check(&backend, 1e-5).unwrap();
    }
}

/// The suite's states are of order 1 and its networks two layers deep, so a wrong kernel is off by
/// a tenth and more, and f16's roundings by a hundredth.
#[test]
fn conformance_f16() {
    for backend in backends(Precision::F16) {
        conformance::check(&backend, 4e-2).unwrap();
    }
}

/// A text whose values overflow f16 has no result, and those beside it have theirs.
#[test]
fn an_overflow_is_its_own_sequence() {
    for backend in backends(Precision::F16) {
        let spec = conformance::bert_like(128, 2, 128, 300);
        conformance::isolates(&backend, &spec, &[64, 40, 130, 20], 1).unwrap();
    }
}

#[test]
fn golden_checkpoints_f32() {
    for backend in backends(Precision::F32) {
        let (mut states, mut vectors) = (0.0f64, 0.0f64);
        for golden in common::all() {
            let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
            let config = EmbedderConfig::default();
            let embedder = Embedder::new(golden.model(), backend.clone(), config).unwrap();
            let hidden = embedder.hidden(&sequences).unwrap();
            let worst = common::max_abs(&hidden, &golden.hidden);
            assert!(worst <= 2e-5, "{}: states differ by {worst:e}", golden.name);
            states = states.max(worst);
            let found = embedder.embed_ids(&sequences).unwrap();
            // The bound is for unit vectors; the others are scaled to what theirs would be.
            let largest = golden.vectors.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let worst = common::max_abs(&found.values, &golden.vectors) / f64::from(largest);
            assert!(worst <= 1e-5, "{}: vectors differ by {worst:e}", golden.name);
            vectors = vectors.max(worst);
        }
        say(&format!("states differ by at most {states:.1e}, vectors by {vectors:.1e}"));
    }
}

#[test]
fn golden_checkpoints_f16() {
    for backend in backends(Precision::F16) {
        let mut least = 1.0f64;
        for golden in common::all() {
            let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
            let config = EmbedderConfig::default();
            let embedder = Embedder::new(golden.model(), backend.clone(), config).unwrap();
            let found = embedder.embed_ids(&sequences).unwrap();
            let dim = embedder.dim();
            let pairs = found.values.chunks_exact(dim).zip(golden.vectors.chunks_exact(dim));
            for (row, (found, expected)) in pairs.enumerate() {
                let cosine = cosine(found, expected);
                assert!(cosine >= 0.9999, "{}: row {row} has cosine {cosine}", golden.name);
                least = least.min(cosine);
            }
        }
        say(&format!("least cosine {least:.7}"));
    }
}

/// A text's vector does not depend on the batch that it is in.
#[test]
fn batches_do_not_matter() {
    for backend in backends(Precision::F32) {
        for golden in
            common::all().into_iter().filter(|g| g.name == "bert" || g.name == "modernbert")
        {
            let texts: Vec<&str> = golden.texts.iter().map(|(text, _)| &text[..]).collect();
            let options = EmbedOptions::default();
            let config =
                |batch_tokens| EmbedderConfig { threads: 2, batch_tokens, ..Default::default() };
            let one = Embedder::new(golden.model(), backend.clone(), config(1)).unwrap();
            let all = Embedder::new(golden.model(), backend.clone(), config(4096)).unwrap();
            let (one, all) =
                (one.embed(&texts, &options).unwrap(), all.embed(&texts, &options).unwrap());
            let worst = common::max_abs(&one.values, &all.values);
            assert!(worst <= 1e-6, "{}: differs by {worst:e}", golden.name);
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
