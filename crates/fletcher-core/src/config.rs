//! Reading the JSON files of a model folder, with errors that name file and key.

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::spec::{Activation, limits};

/// A JSON object from a named file.
#[derive(Debug, Clone)]
pub struct Config {
    file: String,
    /// Dotted path of this object inside the file, ending in a dot; empty for the whole file.
    path: String,
    values: Map<String, Value>,
}

impl Config {
    /// Parses a file that must hold one object.
    ///
    /// # Errors
    /// [`ModelError::Json`], [`ModelError::BadValue`].
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ModelError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| ModelError::Json { file: file.into(), message: e.to_string() })?;
        match value {
            Value::Object(values) => Ok(Self { file: file.into(), path: String::new(), values }),
            other => Err(ModelError::BadValue {
                file: file.into(),
                key: "(the file)".into(),
                found: describe(&other),
                expected: "an object".into(),
            }),
        }
    }

    /// The file's name, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The value under `key`, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`, if there is one.
    pub fn object(&self, key: &str) -> Option<Config> {
        let values = self.get(key)?.as_object()?.clone();
        let path = format!("{}{key}.", self.path);
        Some(Config { file: self.file.clone(), path, values })
    }

    /// An error about `key`'s value.
    pub fn bad(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::BadValue {
            file: self.file.clone(),
            key: format!("{}{key}", self.path),
            found: self.values.get(key).map_or("missing".into(), describe),
            expected: expected.into(),
        }
    }

    /// An error about a key that is not there.
    pub fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { file: self.file.clone(), key: format!("{}{key}", self.path) }
    }

    /// A size between 1 and `limit` under the first of `keys` that is present.
    ///
    /// # Errors
    /// When none is present, or the value is no such number.
    pub fn size(&self, keys: &[&str], limit: usize) -> Result<usize, ModelError> {
        let Some(key) = keys.iter().find(|key| self.get(key).is_some()) else {
            return Err(self.missing(keys[0]));
        };
        match self.get(key).and_then(Value::as_u64) {
            Some(value) if (1..=limit as u64).contains(&value) => Ok(value as usize),
            _ => Err(self.bad(key, format!("a whole number from 1 to {limit}"))),
        }
    }

    /// A whole number under `key`, or `default`.
    ///
    /// # Errors
    /// When the value is no whole number in `0..=limit`.
    pub fn count_or(&self, key: &str, default: usize, limit: usize) -> Result<usize, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_u64() {
                Some(value) if value <= limit as u64 => Ok(value as usize),
                _ => Err(self.bad(key, format!("a whole number from 0 to {limit}"))),
            },
        }
    }

    /// A positive, finite number under `key`, or `default`.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(value) if value > 0.0 && value.is_finite() => Ok(value),
                _ => Err(self.bad(key, "a positive number")),
            },
        }
    }

    /// A flag under `key`, or `default`.
    ///
    /// # Errors
    /// When the value is no boolean.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(key, "true or false")),
        }
    }

    /// A string under `key`.
    ///
    /// # Errors
    /// When the value is no string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.bad(key, "a string")),
        }
    }

    /// Refuses a key whose value is set to something else than `expected`: a variant of the
    /// architecture that would need another forward pass.
    ///
    /// # Errors
    /// [`ModelError::BadValue`].
    pub fn only(&self, key: &str, expected: &Value) -> Result<(), ModelError> {
        match self.get(key) {
            Some(value) if value != expected => Err(self.bad(key, format!("{expected} or absent"))),
            _ => Ok(()),
        }
    }

    /// `hidden / heads`, checked.
    ///
    /// # Errors
    /// When the heads do not divide the hidden size.
    pub fn head_dim(&self, key: &str, hidden: usize, heads: usize) -> Result<usize, ModelError> {
        if hidden.is_multiple_of(heads) {
            return Ok(hidden / heads);
        }
        Err(self.bad(key, format!("a divisor of the hidden size {hidden}")))
    }

    /// The activation under `key` by the names that `transformers` gives them.
    ///
    /// # Errors
    /// When the name stands for another function than those in [`Activation`].
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelError> {
        match self.text(key)? {
            None => Ok(default),
            Some("gelu" | "gelu_python") => Ok(Activation::GeluErf),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("relu") => Ok(Activation::Relu),
            Some(_) => Err(self.bad(key, "gelu, gelu_new, gelu_pytorch_tanh, silu or relu")),
        }
    }

    /// Vocabulary size.
    ///
    /// # Errors
    /// As [`Self::size`].
    pub fn vocabulary(&self) -> Result<usize, ModelError> {
        self.size(&["vocab_size"], limits::VOCABULARY)
    }
}

fn describe(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
