//! A model's folder: small files read whole under a size limit, weights mapped into memory.
//!
//! The folder is untrusted input. Names that come out of its files (shards, modules) may not leave
//! it, a file that is absurdly large for what it is gets refused before it is read, and what is no
//! regular file is never opened (a pipe would block for ever). Symbolic links are followed: a
//! snapshot in the hub's cache consists of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::Mmap;
use serde::Deserialize;

use crate::name::is_plain_path;
use crate::pages;

/// The weights when they are one file.
pub(crate) const SINGLE_WEIGHTS: &str = "model.safetensors";
/// The list of shards when they are several.
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Formats that hold weights and that are not read here; named in the error so that a user sees
/// that the folder is right and only the format is not.
pub(crate) const FOREIGN_WEIGHTS: &[&str] = &[
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
    "onnx/model.onnx",
    "openvino/openvino_model.xml",
];

/// How a file begins that Git LFS keeps elsewhere.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Largest accepted tokenizer, vocabulary or shard index. The largest in the wild are about 40 MiB.
const LARGE_FILE_LIMIT_BYTES: u64 = 256 << 20;
/// Largest accepted file of any other kind; a configuration has a few KiB.
const SMALL_FILE_LIMIT_BYTES: u64 = 16 << 20;

/// Why a folder or one of its files could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Nothing is at the path.
    #[error("no such folder: {}", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// Something other than a folder is at the path.
    #[error(
        "{} is not a folder; name the folder that holds config.json and {SINGLE_WEIGHTS}",
        path.display()
    )]
    NotAFolder {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// A file that the model needs is absent.
    #[error("{} does not exist", path.display())]
    FileNotFound {
        /// The absent file.
        path: PathBuf,
    },
    /// A directory, pipe or device is where a file should be.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What is there instead.
        path: PathBuf,
    },
    /// The file is larger than any file of its kind.
    #[error(
        "{} has {size_bytes} bytes; a file of this kind has at most {limit_bytes}",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The largest accepted size.
        limit_bytes: u64,
    },
    /// A file name that is absolute or leaves the folder.
    #[error("{name:?} is not a file name inside {}", folder.display())]
    BadName {
        /// The folder.
        folder: PathBuf,
        /// The offending name.
        name: String,
    },
    /// No weights, or none in a format that can be read.
    #[error("{}", describe_no_weights(folder, found))]
    NoWeights {
        /// The folder (of the model or of one of its modules).
        folder: PathBuf,
        /// Weights in other formats that are there.
        found: Vec<String>,
    },
    /// The list of shards makes no sense.
    #[error("{}: {reason}", path.display())]
    BadIndex {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The list of shards names a file that is not there.
    #[error("{} lists the shard {shard:?}, which does not exist beside it", index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The absent shard.
        shard: String,
    },
    /// A file of a clone without Git LFS, which says where the file is instead of being it.
    #[error(
        "{} is a pointer of Git LFS, not the file itself; `git lfs pull` in its folder fetches it",
        path.display()
    )]
    LfsPointer {
        /// The pointer.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

fn describe_no_weights(folder: &Path, found: &[String]) -> String {
    let folder = folder.display();
    if found.is_empty() {
        return format!("{folder} has no weights: neither {SINGLE_WEIGHTS} nor {WEIGHTS_INDEX}");
    }
    format!("{folder} has {} but no {SINGLE_WEIGHTS}; {CONVERT_HINT}", found.join(", "))
}

/// How to get safetensors out of any other format.
pub(crate) const CONVERT_HINT: &str = "Fletcher reads safetensors only, so convert once with \
    Python: SentenceTransformer(\"OLD\").save_pretrained(\"NEW\")";

/// A folder with the files of one model.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    root: PathBuf,
    name: String,
    mappings: Arc<Mutex<Vec<Arc<Mmap>>>>,
}

/// A mapping that several own.
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl ModelFolder {
    /// Opens a folder; its content is looked at only when it is asked for.
    ///
    /// # Errors
    /// [`FolderError::NotFound`], [`FolderError::NotAFolder`], or [`FolderError::Io`] where the
    /// folder may not be listed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FolderError> {
        let path = path.as_ref();
        Self::open_as(path, path.display().to_string())
    }

    /// Opens a folder that users know under another name, such as `org/name`.
    pub(crate) fn open_as(path: &Path, name: String) -> Result<Self, FolderError> {
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => FolderError::NotFound { path: path.to_owned() },
            _ => FolderError::Io { path: path.to_owned(), source },
        };
        if !fs::metadata(path).map_err(io_error)?.is_dir() {
            return Err(FolderError::NotAFolder { path: path.to_owned() });
        }
        fs::read_dir(path).map_err(io_error)?;
        Ok(Self { root: path.to_owned(), name, mappings: Arc::default() })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The name to show: `org/name[@revision]` for a model of a hub, else the path as given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a small file whole, or `None` when there is none of that name. `name` may be in a
    /// subfolder (`1_Pooling/config.json`).
    ///
    /// # Errors
    /// [`FolderError::TooLarge`] above 256 MiB for a tokenizer, vocabulary or shard index and
    /// 16 MiB for anything else; [`FolderError::BadName`], [`FolderError::NotAFile`],
    /// [`FolderError::LfsPointer`], [`FolderError::Io`].
    pub fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>, FolderError> {
        let path = self.path(name)?;
        let Some((file, size_bytes)) = open_regular(&path)? else { return Ok(None) };
        let limit_bytes = size_limit(name);
        let too_large =
            |size_bytes| FolderError::TooLarge { path: path.clone(), size_bytes, limit_bytes };
        if size_bytes > limit_bytes {
            return Err(too_large(size_bytes));
        }
        let mut content = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
        // The file may have grown since its size was asked for.
        file.take(limit_bytes + 1)
            .read_to_end(&mut content)
            .map_err(|source| FolderError::Io { path: path.clone(), source })?;
        match content.len() as u64 {
            read_bytes if read_bytes > limit_bytes => Err(too_large(read_bytes)),
            _ if content.starts_with(LFS_POINTER) => Err(FolderError::LfsPointer { path }),
            _ => Ok(Some(content)),
        }
    }

    /// Maps a file into memory, without reading it: pages come in as they are touched. The mapping
    /// lives as long as the last clone of the returned bytes or of this folder.
    ///
    /// # Errors
    /// [`FolderError::FileNotFound`], [`FolderError::BadName`], [`FolderError::NotAFile`],
    /// [`FolderError::LfsPointer`], [`FolderError::Io`].
    pub fn map(&self, name: &str) -> Result<Bytes, FolderError> {
        let path = self.path(name)?;
        let (file, size_bytes) =
            open_regular(&path)?.ok_or(FolderError::FileNotFound { path: path.clone() })?;
        if size_bytes == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: a mapping is sound while nobody changes or truncates the file under it. The file
        // is opened read-only and this process never writes to it: the cache puts complete files in
        // place by renaming and never modifies one. Another process that overwrites a model's
        // weights in place while they are in use can make us compute with other numbers or end us
        // by SIGBUS; no tool that saves checkpoints into a folder in use can be guarded against,
        // and reading gigabytes into private memory instead would cost every other user.
        let mapping = unsafe { Mmap::map(&file) };
        let mapping = match mapping {
            Ok(mapping) if mapping.starts_with(LFS_POINTER) => {
                return Err(FolderError::LfsPointer { path });
            }
            Ok(mapping) => mapping,
            Err(source) => return Err(FolderError::Io { path, source }),
        };
        let mapping = Arc::new(mapping);
        self.mappings().push(mapping.clone());
        Ok(Bytes::from_owner(Mapped(mapping)))
    }

    /// Lets what was read of mapped files leave memory; what is read again comes back.
    pub fn release(&self) {
        for mapping in self.mappings().iter() {
            // SAFETY: a file's mapping, which is read-only.
            unsafe { pages::release_pages(mapping) };
        }
    }

    fn mappings(&self) -> MutexGuard<'_, Vec<Arc<Mmap>>> {
        // A push that panicked has not changed the list.
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the safetensors files of a module, to be given to [`ModelFolder::map`]:
    /// `model.safetensors`, or the shards that `model.safetensors.index.json` lists, sorted.
    /// `module` is the module's folder as in `modules.json`: empty for the model itself, else
    /// `2_Dense` or the like.
    ///
    /// # Errors
    /// [`FolderError::NoWeights`], which names the weights of other formats that are there;
    /// [`FolderError::BadIndex`] and [`FolderError::MissingShard`] for shards.
    pub fn weight_files(&self, module: &str) -> Result<Vec<String>, FolderError> {
        let single = join(module, SINGLE_WEIGHTS);
        if self.path(&single)?.is_file() {
            return Ok(vec![single]);
        }
        let Some(shards) = self.shards(module)? else {
            let found = FOREIGN_WEIGHTS
                .iter()
                .filter(|name| self.root.join(module).join(name).is_file())
                .map(|&name| name.to_owned())
                .collect();
            return Err(FolderError::NoWeights { folder: self.root.join(module), found });
        };
        for shard in &shards {
            if !self.path(shard)?.is_file() {
                let index = self.path(&join(module, WEIGHTS_INDEX))?;
                return Err(FolderError::MissingShard { index, shard: shard.clone() });
            }
        }
        Ok(shards)
    }

    /// The shards that the index of a module lists, whether they are there or not; `None` without
    /// an index.
    pub(crate) fn shards(&self, module: &str) -> Result<Option<Vec<String>>, FolderError> {
        /// The part of the index that says which files there are.
        #[derive(Deserialize)]
        struct Index {
            /// From the name of a tensor to the file that holds it.
            weight_map: BTreeMap<String, String>,
        }

        let index = join(module, WEIGHTS_INDEX);
        let Some(content) = self.read_small(&index)? else { return Ok(None) };
        let path = self.path(&index)?;
        let bad_index = |reason: String| FolderError::BadIndex { path: path.clone(), reason };
        let Index { weight_map } =
            serde_json::from_slice(&content).map_err(|error| bad_index(error.to_string()))?;
        let shards: BTreeSet<String> = weight_map.into_values().collect();
        if shards.is_empty() {
            return Err(bad_index("its weight_map lists no file".to_owned()));
        }
        if let Some(shard) =
            shards.iter().find(|s| !is_plain_path(s) || !s.ends_with(".safetensors"))
        {
            return Err(bad_index(format!("{shard:?} is not the name of a safetensors shard")));
        }
        Ok(Some(shards.iter().map(|shard| join(module, shard)).collect()))
    }

    fn path(&self, name: &str) -> Result<PathBuf, FolderError> {
        if is_plain_path(name) {
            return Ok(self.root.join(name));
        }
        Err(FolderError::BadName { folder: self.root.clone(), name: name.to_owned() })
    }
}

/// The name of `file` in the folder of a module; the module of the model itself is the empty name.
pub(crate) fn join(module: &str, file: &str) -> String {
    if module.is_empty() { file.to_owned() } else { format!("{module}/{file}") }
}

/// Opens a file and tells its size; `None` when there is none.
fn open_regular(path: &Path) -> Result<Option<(File, u64)>, FolderError> {
    let io_error = |source| FolderError::Io { path: path.to_owned(), source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(io_error(error)),
            };
        }
    };
    if !metadata.is_file() {
        return Err(FolderError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io_error)?;
    Ok(Some((file, metadata.len())))
}

fn size_limit(name: &str) -> u64 {
    let file = name.rsplit('/').next().unwrap_or(name);
    let large = matches!(
        file,
        "tokenizer.json" | "vocab.txt" | "vocab.json" | "merges.txt" | WEIGHTS_INDEX
    );
    if large { LARGE_FILE_LIMIT_BYTES } else { SMALL_FILE_LIMIT_BYTES }
}

#[cfg(test)]
mod tests;
