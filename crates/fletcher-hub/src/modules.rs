//! Which files make a model.
//!
//! A sentence-transformers model is a list of modules, each in a folder of its own; the first one
//! usually is the repository's root. A plain transformers model is that first module alone. The
//! rest of a repository (other formats of the weights, pictures, training state) is never fetched.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::folder::{
    FOREIGN_WEIGHTS, FolderError, ModelFolder, SINGLE_WEIGHTS, WEIGHTS_INDEX, join,
};

/// The list of modules.
pub(crate) const MODULES_FILE: &str = "modules.json";

/// Files of a model that are in its root, whatever its modules are.
const ROOT_FILES: &[&str] = &[MODULES_FILE, "config_sentence_transformers.json"];

/// Files that a module may have beside its weights.
const MODULE_FILES: &[&str] = &[
    "config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
];

/// One stage of a sentence-transformers model, as `modules.json` lists it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Module {
    /// Its folder, relative to the model's; empty for the root.
    pub(crate) path: String,
    /// The Python class, such as `sentence_transformers.models.Pooling`.
    #[serde(rename = "type")]
    class: String,
}

impl Module {
    /// The only module of a model without `modules.json`.
    fn sole() -> Self {
        Self { path: String::new(), class: "Transformer".to_owned() }
    }

    fn is_one_of(&self, kinds: &[&str]) -> bool {
        self.class.rsplit('.').next().is_some_and(|kind| kinds.contains(&kind))
    }

    fn needs_config(&self) -> bool {
        self.is_one_of(&["Transformer", "Pooling", "Dense"])
    }

    fn needs_weights(&self) -> bool {
        self.is_one_of(&["Transformer", "Dense"])
    }
}

/// The modules of a model whose `modules.json`, if it has one, is in the folder.
///
/// A list that cannot be read counts as absent: what it means is for the engine to say, with a
/// better message than a downloader has.
pub(crate) fn modules(folder: &ModelFolder) -> Result<Vec<Module>, FolderError> {
    let content = folder.read_small(MODULES_FILE)?;
    let listed = content.and_then(|json| serde_json::from_slice::<Vec<Module>>(&json).ok());
    Ok(listed.unwrap_or_else(|| vec![Module::sole()]))
}

/// What to fetch of a repository, decided from its list of files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Configurations, vocabularies and lists of shards, in no particular order.
    pub(crate) small: BTreeSet<String>,
    /// Single-file weights.
    pub(crate) weights: BTreeSet<String>,
    /// Folders of modules whose weights are in shards, which their list names.
    pub(crate) sharded: BTreeSet<String>,
}

/// Chooses the files of a model among those of its repository.
///
/// # Errors
/// The weights in other formats that are there, when a module that needs weights has none in
/// safetensors.
pub(crate) fn select(
    listed: &BTreeSet<String>,
    modules: &[Module],
) -> Result<Selection, Vec<String>> {
    let mut selection = Selection::default();
    let is_listed = |name: &String| listed.contains(name);
    let in_root = ROOT_FILES.iter().map(|&file| file.to_owned());
    selection.small.extend(in_root.filter(is_listed));
    for module in modules {
        let names = |files: &[&str]| -> Vec<String> {
            let names = files.iter().map(|file| join(&module.path, file));
            names.filter(is_listed).collect()
        };
        selection.small.extend(names(MODULE_FILES));
        let index = join(&module.path, WEIGHTS_INDEX);
        let single = join(&module.path, SINGLE_WEIGHTS);
        if is_listed(&single) {
            selection.weights.insert(single);
        } else if is_listed(&index) {
            selection.small.insert(index);
            selection.sharded.insert(module.path.clone());
        } else if module.needs_weights() {
            return Err(names(FOREIGN_WEIGHTS));
        }
    }
    Ok(selection)
}

/// The files without which the model in this folder cannot work and that are not there.
pub(crate) fn missing(folder: &ModelFolder) -> Result<Vec<String>, FolderError> {
    let mut missing = Vec::new();
    for module in modules(folder)? {
        let config = join(&module.path, "config.json");
        if module.needs_config() && folder.read_small(&config)?.is_none() {
            missing.push(config);
        }
        if module.needs_weights() {
            match folder.weight_files(&module.path) {
                Ok(_) => {}
                Err(FolderError::NoWeights { .. }) => {
                    missing.push(join(&module.path, SINGLE_WEIGHTS));
                }
                Err(FolderError::MissingShard { shard, .. }) => missing.push(shard),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(missing)
}
