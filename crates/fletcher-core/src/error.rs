//! Why a model cannot be opened. Each variant carries the data; the program adds the hint.

use crate::backend::BackendError;
use crate::text::TextError;

/// A model folder that cannot be used as it is. All of these are the folder's fault, or the
/// choice of folder; none is answered by guessing.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that every model needs is not there.
    #[error("{file}: no such file in the model folder")]
    MissingFile {
        /// Path inside the folder.
        file: String,
    },
    /// Reading a file failed.
    #[error("{file}: {message}")]
    Read {
        /// Path inside the folder.
        file: String,
        /// What the system said.
        message: String,
    },
    /// A file is not the JSON it should be.
    #[error("{file}: not valid JSON: {message}")]
    Json {
        /// Path inside the folder.
        file: String,
        /// What the parser said, with line and column.
        message: String,
    },
    /// A required key is not in a configuration file.
    #[error("{file}: key `{key}` is missing")]
    MissingKey {
        /// Path inside the folder.
        file: String,
        /// The key.
        key: String,
    },
    /// A key's value makes no sense, or asks for something that Fletcher does not do.
    #[error("{file}: `{key}` is {found}, but must be {expected}")]
    BadValue {
        /// Path inside the folder.
        file: String,
        /// The key.
        key: String,
        /// The value as found.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// No architecture of this build answers to the `model_type`.
    #[error("{file}: unknown architecture `{model_type}`; known: {known}")]
    UnknownArchitecture {
        /// Path inside the folder.
        file: String,
        /// The value found.
        model_type: String,
        /// Every value that is accepted.
        known: String,
    },
    /// A weight file is not a whole, well-formed safetensors file.
    #[error("{file}: not a usable safetensors file: {message}")]
    Safetensors {
        /// Path inside the folder.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// Two weight files hold a tensor of the same name.
    #[error("{file}: tensor `{tensor}` is also in {other}")]
    DuplicateTensor {
        /// The later file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The earlier file.
        other: String,
    },
    /// A tensor that the architecture needs is in none of the weight files.
    #[error("{files}: tensor `{tensor}` is missing (the {architecture} architecture needs it)")]
    MissingTensor {
        /// The weight files looked into.
        files: String,
        /// The names tried.
        tensor: String,
        /// The architecture.
        architecture: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error(
        "{file}: tensor `{tensor}` has shape {found:?}, but the configuration implies {expected:?}"
    )]
    Shape {
        /// The weight file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a number format that Fletcher does not read.
    #[error("{file}: tensor `{tensor}` is stored as {dtype}; F32, F16 and BF16 are read")]
    Dtype {
        /// The weight file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The format.
        dtype: String,
    },
    /// A weight is NaN or infinite: no vector from it could be right.
    #[error("{file}: tensor `{tensor}` holds a value that is not finite")]
    NotFinite {
        /// The weight file.
        file: String,
        /// The tensor's name.
        tensor: String,
    },
    /// `modules.json` lists a module that Fletcher does not run.
    #[error(
        "{file}: module `{module}` is not supported; supported: Transformer, Pooling, Dense, LayerNorm, Normalize"
    )]
    UnsupportedModule {
        /// Path inside the folder.
        file: String,
        /// The module's type.
        module: String,
    },
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The device refused the weights.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
