//! Finds the files of a model and hands out their bytes.
//!
//! A model is named by a folder, or by `org/name[@revision]` on a hub that speaks the Hugging Face
//! HTTP API. [`resolve`] turns either into a [`ModelFolder`], from which the engine reads small
//! files and maps weights. What a configuration or a tensor means is not known here: the core reads
//! a folder through its own `ModelFiles`, which a [`ModelFolder`] implements.
//!
//! | file | what it holds |
//! |---|---|
//! | `folder` | the folder: small files with a size limit, memory-mapped weights, lists of shards |
//! | `model_files` | the folder as the core sees it |
//! | `modules` | which files make a model, read from `modules.json` |
//! | `config` | where the hub, its cache and its token are, from variables the caller looks up |
//! | `hub` | the way from a name to a complete snapshot |
//! | `cache` | the hub's cache layout on disk, shared with the Python package |
//! | `client` | requests: redirects, tokens, retries |
//! | `download` | one file: resume, check, place |
//! | `pages` | memory that was needed once is given back |
//! | `error` | everything that can go wrong |
//!
//! Nothing in this crate reads an environment variable or prints.

mod cache;
mod client;
mod config;
mod download;
mod error;
mod folder;
mod hub;
mod model_files;
mod modules;
mod name;
mod pages;
mod progress;

pub use config::{HubConfig, ProxyConfig, RetryConfig, TokenSource};
pub use error::HubError;
pub use folder::{FolderError, ModelFolder};
pub use name::ModelName;
pub use pages::{release_pages, release_unused};
pub use progress::{Progress, Silent};

use std::path::Path;

/// Finds the model that `spec` names and makes sure that its files are on this machine.
///
/// An existing folder always wins. What is written like a path (`./x`, `/x`, `~/x`, `a/b/c`) is
/// never looked up on a hub. Anything of the form `org/name` or `org/name@revision` is.
///
/// # Errors
/// [`HubError::NoSuchFolder`] and [`HubError::UnknownForm`] for a `spec` that names nothing; the
/// other variants of [`HubError`] for a model that could not be opened or downloaded.
pub fn resolve(
    spec: &str,
    config: &HubConfig,
    progress: &dyn Progress,
) -> Result<ModelFolder, HubError> {
    if Path::new(spec).exists() {
        return Ok(ModelFolder::open(spec)?);
    }
    if name::looks_like_path(spec) {
        return Err(HubError::NoSuchFolder { spec: spec.to_owned() });
    }
    match ModelName::parse(spec) {
        Some(model) => hub::fetch(&model, config, progress),
        None => Err(HubError::UnknownForm { spec: spec.to_owned() }),
    }
}
