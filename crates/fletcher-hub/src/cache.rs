//! The hub's cache on disk, as Python's `huggingface_hub` lays it out, so that each program finds
//! what the other has downloaded.
//!
//! ```text
//! <cache>/models--org--name/refs/main                       the commit that `main` was last at
//! <cache>/models--org--name/blobs/<etag>                    the content of a file, only once
//! <cache>/models--org--name/snapshots/<commit>/config.json  -> ../../blobs/<etag>
//! <cache>/.locks/models--org--name/<etag>.lock              held while that blob is written
//! ```
//!
//! A blob and a link appear by renaming, complete or not at all, and are never modified.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::HubError;
use crate::name::{ModelName, is_commit};
use crate::progress::Progress;

/// The part of the cache that belongs to one repository.
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The place of a repository in the cache; creates nothing.
    pub(crate) fn new(cache_dir: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: cache_dir.join(&name), locks: cache_dir.join(".locks").join(&name) }
    }

    /// The folder of the repository.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit that a revision was last seen at.
    pub(crate) fn commit(&self, model: &ModelName) -> Option<String> {
        if let Some(commit) = model.commit() {
            return Some(commit.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(&model.revision)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Remembers the commit of a revision.
    pub(crate) fn remember(&self, model: &ModelName, commit: &str) -> Result<(), HubError> {
        if self.commit(model).as_deref() == Some(commit) {
            return Ok(());
        }
        let reference = self.folder.join("refs").join(&model.revision);
        create_parent(&reference)?;
        let temporary = temporary_beside(&reference);
        fs::write(&temporary, commit)
            .and_then(|()| fs::rename(&temporary, &reference))
            .map_err(|source| HubError::io("write", &reference, source))
    }

    /// The folder that shows the files of a commit under their names.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the content with this tag is or will be.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Waits until no other process, ours or Python's, writes the blob. The lock ends with the
    /// returned file. On a file system without locks there is none: then two writers may garble the
    /// partial file, which the checksum finds.
    pub(crate) fn lock(
        &self,
        etag: &str,
        progress: &dyn Progress,
    ) -> Result<Option<File>, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|source| HubError::io("create", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                progress.notice("waiting for another process that downloads the same file");
                file.lock().map_err(|source| HubError::io("lock", &path, source))?;
                Ok(Some(file))
            }
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }

    /// Shows a blob under the name of a file in the snapshot of a commit.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let link = self.snapshot(commit).join(file);
        create_parent(&link)?;
        // From the folder that holds the link up to the repository's: `snapshots`, the commit, and
        // the folders in the file's own name.
        let ups = "../".repeat(2 + file.matches('/').count());
        let temporary = temporary_beside(&link);
        make_link(&self.blob(etag), Path::new(&format!("{ups}blobs/{etag}")), &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .map_err(|source| HubError::io("link", &link, source))
    }
}

/// Creates the folders above a file.
pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent)
            .map_err(|source| HubError::io("create the folder", parent, source)),
        None => Ok(()),
    }
}

/// A name in the same folder that nobody else uses.
fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{unique}.tmp", process::id()));
    PathBuf::from(name)
}

#[cfg(unix)]
fn make_link(_blob: &Path, relative_blob: &Path, link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(relative_blob, link),
    }
}

/// Links need a privilege on other systems; Python's package copies there as well.
#[cfg(not(unix))]
fn make_link(blob: &Path, _relative_blob: &Path, link: &Path) -> io::Result<()> {
    fs::copy(blob, link).map(|_| ())
}
