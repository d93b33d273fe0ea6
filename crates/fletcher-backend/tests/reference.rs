//! The reference backend against `transformers`: the definition itself is checked first.

mod common;

use fletcher_core::embedder::{EmbedOptions, Embedder, EmbedderConfig};
use fletcher_core::reference::Reference;

#[test]
fn golden_checkpoints() {
    for golden in common::all() {
        let embedder = Embedder::new(golden.model(), Reference, EmbedderConfig::default()).unwrap();
        let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
        let hidden = embedder.hidden(&sequences).unwrap();
        let worst = common::max_abs(&hidden, &golden.hidden);
        assert!(worst <= 2e-6, "{}: hidden states differ by {worst:e}", golden.name);
        let vectors = embedder.embed_ids(&sequences).unwrap();
        let worst = common::max_abs(&vectors.values, &golden.vectors);
        assert!(worst <= 2e-6, "{}: vectors differ by {worst:e}", golden.name);
    }
}

#[test]
fn golden_texts() {
    for golden in common::all() {
        let embedder = Embedder::new(golden.model(), Reference, EmbedderConfig::default()).unwrap();
        let texts: Vec<&str> = golden.texts.iter().map(|(text, _)| &text[..]).collect();
        let found = embedder.embed(&texts, &EmbedOptions::default()).unwrap();
        for (row, (text, expected)) in golden.texts.iter().enumerate() {
            let vector = found.vector(row).unwrap_or_else(|| panic!("{:?}", found.rows[row]));
            let worst = common::max_abs(vector, expected);
            assert!(worst <= 2e-6, "{}: {text:?} differs by {worst:e}", golden.name);
        }
    }
}
