//! Why a request, or one text of it, has no vectors. Each dialect words these in its own way.

use std::time::Duration;

use fletcher_core::embedder::{EmbedError, RowError};
use fletcher_core::text::TextError;

/// Why one text has no vector, while the others of its request do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// The text is the cause: too long, not tokenisable, or missing.
    #[error("{message}")]
    Text {
        /// What is wrong with it.
        message: String,
    },
    /// The model's answer was not finite, or the device failed.
    #[error("{message}")]
    Engine {
        /// What happened.
        message: String,
    },
    /// The request's deadline passed before the text's turn came.
    #[error("the deadline passed before this text was embedded")]
    Deadline,
}

impl From<TextError> for ItemError {
    fn from(error: TextError) -> Self {
        ItemError::Text { message: error.to_string() }
    }
}

impl From<RowError> for ItemError {
    fn from(error: RowError) -> Self {
        match error {
            RowError::NotFinite => ItemError::Engine { message: error.to_string() },
            _ => ItemError::Text { message: error.to_string() },
        }
    }
}

/// Why a request as a whole has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The queue is full. Nothing of the request was done.
    #[error("the server is overloaded; try again in {} s", retry_after.as_secs().max(1))]
    Overloaded {
        /// When there should be room again.
        retry_after: Duration,
    },
    /// The server is stopping and takes no new work.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The request's deadline passed.
    #[error("the deadline passed before the request was done")]
    Deadline,
    /// The request cannot be understood, or asks for what the model does not have.
    #[error("{message}")]
    Invalid {
        /// What is wrong, and what would be right.
        message: String,
    },
    /// There is nothing to embed.
    #[error("`{key}` is empty")]
    Empty {
        /// The field that should have held something.
        key: String,
    },
    /// There is no such model, dataset or action.
    #[error("{message}")]
    NotFound {
        /// What was looked for, and what there is.
        message: String,
    },
    /// The body comes too slowly.
    #[error("the body came too slowly")]
    SlowBody,
    /// The request is larger than the server takes.
    #[error("{message}")]
    TooLarge {
        /// How large, and the limit.
        message: String,
    },
    /// A text has no vector, in a dialect that has no place to say so beside the others.
    #[error("input {index}: {error}")]
    Item {
        /// Place of the text in the request, from 0.
        index: usize,
        /// Why.
        error: ItemError,
    },
    /// The device failed, or there is a bug.
    #[error("{message}")]
    Engine {
        /// What happened.
        message: String,
    },
}

impl RequestError {
    /// An [`RequestError::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        RequestError::Invalid { message: message.into() }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RequestError::Overloaded { .. } => ErrorKind::Overloaded,
            RequestError::ShuttingDown => ErrorKind::Unavailable,
            RequestError::Deadline => ErrorKind::Deadline,
            RequestError::Invalid { .. } => ErrorKind::Invalid,
            RequestError::Empty { .. } => ErrorKind::Empty,
            RequestError::NotFound { .. } => ErrorKind::NotFound,
            RequestError::TooLarge { .. } => ErrorKind::TooLarge,
            RequestError::SlowBody => ErrorKind::Slow,
            RequestError::Item { error: ItemError::Text { .. }, .. } => ErrorKind::Text,
            RequestError::Item { error: ItemError::Deadline, .. } => ErrorKind::Deadline,
            RequestError::Item { error: ItemError::Engine { .. }, .. }
            | RequestError::Engine { .. } => ErrorKind::Engine,
        }
    }
}

/// Classes of failure; a dialect gives each of them a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Try again later.
    Overloaded,
    /// Stopping, or not ready.
    Unavailable,
    /// Took too long.
    Deadline,
    /// The request makes no sense.
    Invalid,
    /// Nothing to do.
    Empty,
    /// A text of the request cannot be embedded.
    Text,
    /// No such thing.
    NotFound,
    /// Over a limit.
    TooLarge,
    /// Sent too slowly.
    Slow,
    /// Our fault.
    Engine,
}

impl ErrorKind {
    /// A word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Overloaded => "overloaded",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Deadline => "deadline",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Empty => "empty",
            ErrorKind::Text => "text",
            ErrorKind::NotFound => "not_found",
            ErrorKind::TooLarge => "too_large",
            ErrorKind::Slow => "slow",
            ErrorKind::Engine => "engine",
        }
    }
}

impl From<EmbedError> for RequestError {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::UnknownPrompt { .. } => RequestError::invalid(error.to_string()),
            EmbedError::Backend(error) => RequestError::Engine { message: error.to_string() },
        }
    }
}

/// Why the server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {message}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        message: String,
    },
    /// A certificate, key or list of authorities cannot be used.
    #[error("{file}: {message}")]
    Tls {
        /// The file.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// The first embedding failed, so the server never became ready.
    #[error("the probe embedding failed: {message}")]
    Probe {
        /// Why.
        message: String,
    },
    /// The durable queue cannot be used.
    #[error("{path}: {message}")]
    Spill {
        /// The file or folder.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The configuration contradicts itself.
    #[error("{message}")]
    Config {
        /// How.
        message: String,
    },
}
