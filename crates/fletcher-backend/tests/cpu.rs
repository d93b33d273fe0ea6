//! The CPU backend against the reference and against `transformers`, on every instruction set
//! that this machine has.

mod common;

use fletcher_backend::cpu::Cpu;
use fletcher_core::backend::Precision;
use fletcher_core::conformance;
use fletcher_core::embedder::{EmbedOptions, Embedder, EmbedderConfig};
use fletcher_kernels::{Isa, Kernels};

fn backends() -> impl Iterator<Item = (Isa, Cpu)> {
    Isa::available()
        .into_iter()
        .filter_map(|isa| Some((isa, Cpu::with_kernels(Kernels::for_isa(isa)?, 2))))
}

/// How far a state of order 1 may be from the definition.
const PRECISIONS: [(Precision, f64); 3] =
    [(Precision::F32, 1e-5), (Precision::Bf16, 0.3), (Precision::Int8, 1.0)];

#[test]
fn conformance() {
    for (_, cpu) in backends() {
        for (precision, tolerance) in PRECISIONS {
            conformance::check(&cpu.clone().with_precision(precision).unwrap(), tolerance).unwrap();
        }
    }
}

/// What pooling by one token leaves out of the last layer changes no bit, in a batch and in one
/// text that all cores share.
#[test]
fn poolings_by_one_token_change_no_bit() {
    for (isa, cpu) in backends() {
        for (precision, _) in PRECISIONS {
            let cpu = cpu.clone().with_precision(precision).unwrap().sharing_small_texts();
            for (name, spec) in conformance::specs() {
                for lengths in [&[1, 40, 3, 96][..], &[96], &[9]] {
                    let worst = conformance::worst_of_pooled(&cpu, &spec, lengths).unwrap();
                    assert!(worst == 0.0, "{name} on {isa:?} in {precision:?}: {worst:e}");
                }
            }
        }
    }
}

/// Narrow formats point every golden vector almost where f32 does.
#[test]
fn narrow_formats_keep_the_direction() {
    for golden in common::all() {
        let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
        for (isa, cpu) in backends() {
            for (precision, least) in [(Precision::Bf16, 0.9995), (Precision::Int8, 0.99)] {
                let cpu = cpu.clone().with_precision(precision).unwrap();
                let embedder =
                    Embedder::new(golden.model(), cpu, EmbedderConfig::default()).unwrap();
                let found = embedder.embed_ids(&sequences).unwrap();
                let dim = found.dim;
                let vectors = found.values.chunks_exact(dim).zip(golden.vectors.chunks_exact(dim));
                for (row, (a, b)) in vectors.enumerate() {
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
                    };
                    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
                    let name = &golden.name;
                    assert!(
                        cosine >= least,
                        "{name} on {isa:?} in {precision:?}: cosine {cosine} of row {row}"
                    );
                }
            }
        }
    }
}

#[test]
fn half_precision_is_refused() {
    let error = Cpu::new(1).with_precision(Precision::F16).unwrap_err();
    assert!(error.to_string().contains("f32, bf16, int8"), "{error}");
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

/// Callers with a queue of their own get the vectors that a call gives, bit for bit.
#[test]
fn blocks_are_what_a_call_is_made_of() {
    use fletcher_core::embedder::{BlockRow, TokenRows};
    for golden in common::all() {
        let embedder =
            Embedder::new(golden.model(), Cpu::new(2), EmbedderConfig::default()).unwrap();
        let texts: Vec<&str> = golden.texts.iter().map(|(text, _)| &text[..]).collect();
        let whole = embedder.embed(&texts, &EmbedOptions::default()).unwrap();
        let TokenRows { rows, skip } = embedder.tokenize(&texts, &EmbedOptions::default()).unwrap();
        let ids: Vec<Vec<u32>> = rows.into_iter().map(|row| row.unwrap().ids).collect();
        let block = |unnormalized| {
            let rows: Vec<_> = ids.iter().map(|ids| BlockRow { ids, unnormalized }).collect();
            embedder.embed_block(0, &rows, skip).unwrap()
        };
        let normalized = embedder.model().head().normalized();
        for (row, (vector, raw)) in block(false).into_iter().zip(block(true)).enumerate() {
            assert_eq!(Some(&vector.unwrap()[..]), whole.vector(row), "{}", golden.name);
            let mut raw = raw.unwrap();
            if normalized {
                fletcher_core::head::normalize(&mut raw);
            }
            assert_eq!(Some(&raw[..]), whole.vector(row), "{}", golden.name);
        }
        assert!(embedder.embed_block(0, &[], 0).unwrap().is_empty());
    }
}

/// There is room beside the workers for whoever asked, and the vectors are the same there.
#[test]
fn an_urgent_block_has_an_arena_of_its_own() {
    use fletcher_core::embedder::BlockRow;
    let golden = common::all().remove(0);
    for (urgent, blocks) in [(false, 0), (true, 1)] {
        let config = EmbedderConfig { urgent, ..EmbedderConfig::default() };
        let embedder = Embedder::new(golden.model(), Cpu::new(2), config).unwrap();
        assert_eq!((embedder.concurrent_blocks(), embedder.urgent_blocks()), (2, blocks));
        let row = [BlockRow { ids: &golden.sequences[0], unnormalized: false }];
        let vector = |worker| embedder.embed_block(worker, &row, 0).unwrap().remove(0).unwrap();
        assert_eq!(vector(2), vector(0));
    }
}

/// Two devices share a call, and its vectors are those of one, bit for bit.
#[test]
fn replicas_share_a_call() {
    for golden in common::all() {
        let open = |devices: usize| {
            let config = EmbedderConfig { threads: 2, batch_tokens: 64, ..Default::default() };
            let devices = (0..devices).map(|_| Cpu::new(1)).collect();
            Embedder::replicated(golden.model(), devices, config).unwrap()
        };
        let (one, two) = (open(1), open(2));
        let texts: Vec<&str> = golden.texts.iter().map(|(text, _)| &text[..]).collect();
        let many: Vec<&str> = (0..600).map(|i| texts[i % texts.len()]).collect();
        let bits = |embedder: &Embedder| {
            let found = embedder.embed(&many, &EmbedOptions::default()).unwrap();
            found.values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>()
        };
        let expected = bits(&one);
        let blocks = || two.devices().iter().map(|device| device.blocks).collect::<Vec<u64>>();
        // Where other programs keep one worker from running, the other does all of a call's work.
        for _ in 0..50 {
            assert!(expected == bits(&two), "{}", golden.name);
            if blocks().iter().all(|&blocks| blocks > 0) {
                break;
            }
        }
        assert!(blocks().iter().all(|&blocks| blocks > 0), "{}: {:?}", golden.name, blocks());
        assert_eq!(one.devices().len(), 1);
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
            for (precision, _) in PRECISIONS {
                let open = |threads, batch_tokens| {
                    let cpu = Cpu::with_kernels(Kernels::for_isa(isa).unwrap(), threads);
                    let cpu = cpu.with_precision(precision).unwrap().sharing_small_texts();
                    let config = EmbedderConfig { threads, batch_tokens, ..Default::default() };
                    Embedder::new(golden.model(), cpu, config).unwrap()
                };
                let bits = |embedder: &Embedder, rows: &[&[u32]]| -> Vec<u32> {
                    let found = embedder.embed_ids(rows).unwrap();
                    found.values.iter().map(|v| v.to_bits()).collect()
                };
                let expected = bits(&open(1, 4096), &many);
                for (threads, batch_tokens) in [(1, 1), (2, 50), (3, 301)] {
                    assert!(
                        bits(&open(threads, batch_tokens), &many) == expected,
                        "{} on {isa:?} in {precision:?}: {threads} threads, {batch_tokens} tokens a block",
                        golden.name
                    );
                }
                // Alone, a text is shared by the team.
                for threads in [2, 3] {
                    let embedder = open(threads, 0);
                    let texts = &many[..12];
                    let alone: Vec<u32> =
                        texts.iter().flat_map(|row| bits(&embedder, &[row])).collect();
                    assert!(
                        alone == expected[..alone.len()],
                        "{} on {isa:?} in {precision:?}: shared by {threads} threads",
                        golden.name
                    );
                }
            }
        }
    }
}
