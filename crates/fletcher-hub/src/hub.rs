//! The way from a model's name to a complete snapshot in the cache.
//!
//! The revision becomes a commit, the commit a list of files, the list a choice, and each chosen
//! file is fetched unless the cache has it. A commit never changes, so a complete snapshot of one
//! is used without a request, and so is any complete snapshot when the hub does not answer.

use std::collections::BTreeSet;
use std::io::Read;

use serde::Deserialize;
use ureq::http::Method;

use crate::cache::RepoCache;
use crate::client::{Ask, Client, bad_answer, network_error};
use crate::config::HubConfig;
use crate::download::fetch_file;
use crate::error::HubError;
use crate::folder::ModelFolder;
use crate::modules::{self, MODULES_FILE, Selection};
use crate::name::{ModelName, is_commit};
use crate::progress::Progress;

/// The description of a repository with very many files has a few MiB.
const REVISION_LIMIT_BYTES: u64 = 64 << 20;

/// Finds a model in the cache or fetches what the cache lacks.
pub(crate) fn fetch(
    model: &ModelName,
    config: &HubConfig,
    progress: &dyn Progress,
) -> Result<ModelFolder, HubError> {
    let cache_dir = config.cache_dir.as_deref().ok_or(HubError::NoCacheDir)?;
    let cache = RepoCache::new(cache_dir, &model.repo);
    let cached = find_cached(&cache, model)?;
    if config.offline {
        return cached.map_err(|missing| HubError::NotInCache {
            model: model.clone(),
            missing,
            searched: cache.folder().to_owned(),
        });
    }
    let standby = match cached {
        Ok(folder) if model.commit().is_some() => return Ok(folder),
        cached => cached.ok(),
    };
    let client = Client::new(config, model, progress)?;
    let revision = match (ask_revision(&client, standby.is_some()), standby) {
        (Err(error), Some(folder)) if error.is_outage() => {
            progress.notice(&format!("{error}; using the copy in the cache"));
            return Ok(folder);
        }
        (revision, _) => revision?,
    };
    let folder = fetch_snapshot(&client, &cache, &revision)?;
    // Only a complete snapshot may be what the revision is remembered as. That the memory cannot
    // be written (a read-only cache) takes nothing from the snapshot.
    if let Err(error) = cache.remember(model, &revision.commit) {
        progress.notice(&format!("{error}; the model will not be found offline"));
    }
    Ok(folder)
}

/// The snapshot that the cache has of a model, or what it lacks.
fn find_cached(
    cache: &RepoCache,
    model: &ModelName,
) -> Result<Result<ModelFolder, Vec<String>>, HubError> {
    let snapshot = cache.commit(model).map(|commit| cache.snapshot(&commit));
    let Some(snapshot) = snapshot.filter(|snapshot| snapshot.is_dir()) else {
        return Ok(Err(vec![format!("revision {:?}", model.revision)]));
    };
    let folder = ModelFolder::open_as(&snapshot, model.to_string())?;
    let missing = modules::missing(&folder)?;
    Ok(if missing.is_empty() { Ok(folder) } else { Err(missing) })
}

/// What a revision is right now.
struct Revision {
    commit: String,
    files: BTreeSet<String>,
}

/// Asks the hub; only once where the cache can stand in for the answer.
fn ask_revision(client: &Client<'_>, has_standby: bool) -> Result<Revision, HubError> {
    if has_standby {
        return ask_revision_once(client);
    }
    client.patience().retry(|| ask_revision_once(client))
}

fn ask_revision_once(client: &Client<'_>) -> Result<Revision, HubError> {
    /// The part of the hub's answer that matters here.
    #[derive(Deserialize)]
    struct Answer {
        sha: String,
        siblings: Vec<Sibling>,
    }
    /// A file of the repository.
    #[derive(Deserialize)]
    struct Sibling {
        rfilename: String,
    }

    let url = client.revision_url();
    let ask = Ask { method: Method::GET, url: &url, from_byte: 0, file: None, leave_hub: true };
    let response = client.ask(&ask)?;
    let mut json = Vec::new();
    let body = response.into_body().into_with_config().limit(REVISION_LIMIT_BYTES).reader();
    body.take(REVISION_LIMIT_BYTES)
        .read_to_end(&mut json)
        .map_err(|error| network_error(&url, ureq::Error::Io(error)))?;
    let answer: Answer = serde_json::from_slice(&json)
        .map_err(|error| bad_answer(&url, &format!("not a description of a model ({error})")))?;
    if !is_commit(&answer.sha) {
        return Err(bad_answer(&url, &format!("{:?} is no commit", answer.sha)));
    }
    let files = answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    Ok(Revision { commit: answer.sha, files })
}

/// Fetches the files of a model that the cache lacks, weights last.
fn fetch_snapshot(
    client: &Client<'_>,
    cache: &RepoCache,
    revision: &Revision,
) -> Result<ModelFolder, HubError> {
    let commit = revision.commit.as_str();
    let fetch = |file: &String| fetch_file(client, cache, commit, file);
    // The snapshot's folder must exist before anything can be read from it.
    let snapshot = cache.snapshot(commit);
    std::fs::create_dir_all(&snapshot)
        .map_err(|source| HubError::io("create the folder", &snapshot, source))?;
    let folder = ModelFolder::open_as(&snapshot, client.model().to_string())?;
    if let Some(list) = revision.files.get(MODULES_FILE) {
        fetch(list)?;
    }
    let Selection { small, weights, sharded } =
        modules::select(&revision.files, &modules::modules(&folder)?)
            .map_err(|found| HubError::NoSafetensors { model: client.model().clone(), found })?;
    small.iter().chain(&weights).try_for_each(fetch)?;
    for module in &sharded {
        let shards = folder.shards(module)?.unwrap_or_default();
        shards.iter().try_for_each(fetch)?;
    }
    Ok(folder)
}
