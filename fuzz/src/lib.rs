//! What the targets share: a model folder in memory, and the way through a whole engine.

#![cfg(feature = "engine")]

use std::collections::BTreeMap;

use bytes::Bytes;
use fletcher_core::embedder::EmbedderConfig;
use fletcher_core::head::HeadOptions;
use fletcher_core::reference::Reference;
use fletcher_core::weights::WeightFile;
use fletcher_core::{EmbedOptions, Embedder, Model, ModelError, ModelFiles};

/// A model folder in memory.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<&'static str, Bytes>,
    weights: Bytes,
}

impl Folder {
    /// A folder with these weights in its root, and no other file.
    pub fn new(weights: impl Into<Bytes>) -> Self {
        Self { files: BTreeMap::new(), weights: weights.into() }
    }

    /// Adds a file, or replaces it.
    pub fn with(mut self, path: &'static str, bytes: impl Into<Bytes>) -> Self {
        self.files.insert(path, bytes.into());
        self
    }
}

impl ModelFiles for Folder {
    fn name(&self) -> &str {
        "fuzzed"
    }

    fn read(&self, path: &str) -> Result<Option<Bytes>, ModelError> {
        Ok(self.files.get(path).cloned())
    }

    fn weights(&self, folder: &str) -> Result<Vec<WeightFile>, ModelError> {
        let name = format!("{folder}/model.safetensors");
        Ok(vec![WeightFile { name, bytes: self.weights.clone() }])
    }
}

/// Opens the folder and, if it opens, embeds a text in a device's every step.
///
/// An error is a fine answer to a damaged folder. A vector must be finite, of the promised length,
/// and the same when the text is embedded together with others.
pub fn open_and_embed(folder: &Folder) {
    let Ok(model) = Model::open(folder, HeadOptions::default()) else { return };
    assert_eq!(model.fingerprint().len(), 16);
    let config = EmbedderConfig { threads: 1, batch_tokens: 0 };
    let Ok(embedder) = Embedder::new(model, Reference, config) else { return };
    let embed = |texts: &[&str]| embedder.embed(texts, &EmbedOptions::default());
    let (Ok(alone), Ok(together)) = (embed(&["a b"]), embed(&["b a b a b", "", "a b"])) else {
        panic!("the reference backend does not fail");
    };
    assert_eq!(alone.vector(0), together.vector(2));
    for row in 0..3 {
        if let Some(vector) = together.vector(row) {
            assert_eq!(vector.len(), embedder.dim());
            assert!(vector.iter().all(|value| value.is_finite()));
        }
    }
}
