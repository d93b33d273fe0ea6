//! Everything that can go wrong between a model's name and its files.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::folder::{CONVERT_HINT, FolderError, SINGLE_WEIGHTS};
use crate::name::ModelName;

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text is neither a folder nor a name.
    #[error(
        "{spec:?} names no model; give \"default\" (the model inside the program), a folder that \
         holds config.json and {SINGLE_WEIGHTS}, or org/name[@revision] on the Hugging Face hub"
    )]
    UnknownForm {
        /// The text as given.
        spec: String,
    },
    /// The text is a path, and nothing is there.
    #[error("no such folder: {spec}")]
    NoSuchFolder {
        /// The text as given.
        spec: String,
    },
    /// The folder, local or downloaded, cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Nothing says where downloads are to be kept.
    #[error("no folder for downloaded models: set HF_HOME or HF_HUB_CACHE")]
    NoCacheDir,
    /// A value of the configuration makes no sense.
    #[error("{setting} is unusable: {reason}")]
    BadSetting {
        /// The variable that usually sets it.
        setting: &'static str,
        /// What is wrong with it; never its value, which may be a secret.
        reason: String,
    },
    /// The cache lacks files and the configuration forbids to fetch them.
    #[error(
        "HF_HUB_OFFLINE is set and the cache lacks {} of {model}; looked in {}",
        missing.join(", "),
        searched.display()
    )]
    NotInCache {
        /// The model.
        model: ModelName,
        /// The files that would be needed, or the revision where even that is unknown.
        missing: Vec<String>,
        /// Where they were looked for.
        searched: PathBuf,
    },
    /// The hub knows no such model, or hides it from whoever asks.
    #[error("{endpoint} has no model {model}: {}", hint_no_model(*token_sent))]
    NoSuchModel {
        /// The model.
        model: ModelName,
        /// The hub that was asked.
        endpoint: String,
        /// Whether the request carried a token.
        token_sent: bool,
    },
    /// The model exists, the revision does not.
    #[error("{} has no revision {:?} at {endpoint}: check the branch, tag or commit",
        model.repo, model.revision)]
    NoSuchRevision {
        /// The model.
        model: ModelName,
        /// The hub that was asked.
        endpoint: String,
    },
    /// The revision exists, the file does not.
    #[error("{model} has no file {file}")]
    NoSuchFile {
        /// The model.
        model: ModelName,
        /// The absent file.
        file: String,
    },
    /// The model is private or gated.
    #[error("{}", describe_access_denied(model, endpoint, *status, *token_sent))]
    AccessDenied {
        /// The model.
        model: ModelName,
        /// The hub that was asked.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// Whether the request carried a token.
        token_sent: bool,
    },
    /// The model has weights in other formats only.
    #[error("{model} has {}", describe_found(found))]
    NoSafetensors {
        /// The model.
        model: ModelName,
        /// Weights of other formats in the repository.
        found: Vec<String>,
    },
    /// The server answered with a failure.
    #[error("{url} answered with HTTP status {status}; try again later")]
    Status {
        /// What was asked for, without its query.
        url: String,
        /// The status.
        status: u16,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The server could not be reached or the connection broke.
    #[error("cannot fetch {url}: {source}; check the network, HF_ENDPOINT and HTTPS_PROXY")]
    Network {
        /// What was asked for, without its query.
        url: String,
        /// The last failure.
        source: Box<ureq::Error>,
    },
    /// The answer is not one that a hub gives.
    #[error("{url}: {reason}; is HF_ENDPOINT the address of a Hugging Face hub?")]
    BadAnswer {
        /// What was asked for, without its query.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The downloaded bytes are not those that the hub announced. They have been deleted.
    #[error(
        "{file} arrived damaged and was deleted: its checksum is {actual}, the hub says \
         {expected}; run again to download it anew"
    )]
    Checksum {
        /// The file.
        file: String,
        /// The checksum that the hub announced, in hexadecimal.
        expected: String,
        /// The checksum of what arrived.
        actual: String,
    },
    /// The disk or a quota is full. What has arrived is kept, and the next run continues it.
    #[error(
        "no space left for {}; free some (a later run continues where this one stopped) or set \
         HF_HUB_CACHE to another disk",
        path.display()
    )]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

impl HubError {
    /// Wraps a refusal of the operating system.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.to_owned() }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// Whether the hub is at fault rather than the question, so that asking again may help and a
    /// cached copy may stand in.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }
}

fn hint_no_model(token_sent: bool) -> &'static str {
    if token_sent {
        "check the spelling; if it is private, the token has no access to it"
    } else {
        "check the spelling; if it is private, set HF_TOKEN"
    }
}

fn describe_access_denied(
    model: &ModelName,
    endpoint: &str,
    status: u16,
    token_sent: bool,
) -> String {
    let page = format!("{endpoint}/{}", model.repo);
    let token = if token_sent {
        "check that HF_TOKEN is valid"
    } else {
        "set HF_TOKEN to a token of an account that has access"
    };
    format!(
        "access to {model} was denied (HTTP status {status}): {token}, and if the model is gated, \
         accept its licence at {page}"
    )
}

fn describe_found(found: &[String]) -> String {
    if found.is_empty() {
        return "no weights at all; name the repository of a model".to_owned();
    }
    format!("{} but no {SINGLE_WEIGHTS}; {CONVERT_HINT}", found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_refusals() {
        let path = Path::new("/cache/blob");
        for (kind, full) in [
            (io::ErrorKind::StorageFull, true),
            (io::ErrorKind::QuotaExceeded, true),
            (io::ErrorKind::PermissionDenied, false),
        ] {
            let error = HubError::io("write", path, kind.into());
            assert_eq!(matches!(error, HubError::DiskFull { .. }), full, "{kind}");
            assert!(error.to_string().contains("/cache/blob"), "{error}");
        }
    }
}
