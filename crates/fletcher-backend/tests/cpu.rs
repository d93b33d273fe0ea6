//! The CPU backend against the reference and against `transformers`, on every instruction set
//! that this machine has.

mod common;

use fletcher_backend::cpu::Cpu;
use fletcher_core::conformance;
use fletcher_core::embedder::{EmbedOptions, Embedder, EmbedderConfig};
use fletcher_kernels::{Isa, Kernels};

fn backends() -> impl Iterator<Item = (Isa, Cpu)> {
    Isa::available()
        .into_iter()
        .filter_map(|isa| Some((isa, Cpu::with_kernels(Kernels::for_isa(isa)?, 2))))
}

#[test]
fn conformance() {
    for (_, cpu) in backends() {
        conformance::check(&cpu, 1e-5).unwrap();
    }
}

#[test]
fn golden_checkpoints() {
    for golden in common::all() {
        let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
        for (isa, cpu) in backends() {
            let embedder = Embedder::new(golden.model(), cpu, EmbedderConfig::default()).unwrap();
            let hidden = embedder.hidden(&sequences).unwrap();
            let worst = common::max_abs(&hidden, &golden.hidden);
            assert!(worst <= 2e-5, "{} on {isa:?}: states differ by {worst:e}", golden.name);
            let found = embedder.embed_ids(&sequences).unwrap();
            // The bound is for unit vectors; the others are scaled to what theirs would be.
            let largest = golden.vectors.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let worst = common::max_abs(&found.values, &golden.vectors) / f64::from(largest);
            assert!(worst <= 2e-6, "{} on {isa:?}: vectors differ by {worst:e}", golden.name);
        }
    }
}

#[test]
fn golden_texts() {
    for golden in common::all() {
        let embedder =
            Embedder::new(golden.model(), Cpu::new(2), EmbedderConfig::default()).unwrap();
        let texts: Vec<&str> = golden.texts.iter().map(|(text, _)| &text[..]).collect();
        let found = embedder.embed(&texts, &EmbedOptions::default()).unwrap();
        for (row, (text, expected)) in golden.texts.iter().enumerate() {
            let vector = found.vector(row).unwrap_or_else(|| panic!("{:?}", found.rows[row]));
            let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let worst = common::max_abs(vector, expected) / f64::from(largest);
            assert!(worst <= 2e-6, "{}: {text:?} differs by {worst:e}", golden.name);
        }
    }
}

/// A text's vector is the same bits alone, in any batch, in any block and at any thread count.
#[test]
fn batch_invariance() {
    for golden in common::all() {
        let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
        // Enough rows for several blocks, in an order that is not that of their lengths.
        let many: Vec<&[u32]> = (0..97).map(|i| sequences[i * 31 % sequences.len()]).collect();
        for (isa, _) in backends() {
            let mut expected: Option<Vec<u32>> = None;
            for (threads, batch_tokens) in [(1, 1), (1, 4096), (2, 50), (3, 301)] {
                let cpu = Cpu::with_kernels(Kernels::for_isa(isa).unwrap(), threads);
                let config = EmbedderConfig { threads, batch_tokens };
                let embedder = Embedder::new(golden.model(), cpu, config).unwrap();
                let found = embedder.embed_ids(&many).unwrap();
                let bits: Vec<u32> = found.values.iter().map(|v| v.to_bits()).collect();
                let name = &golden.name;
                match &expected {
                    None => expected = Some(bits),
                    Some(expected) => assert!(
                        *expected == bits,
                        "{name} on {isa:?}: {threads} threads, {batch_tokens} tokens a block"
                    ),
                }
            }
        }
    }
}
