//! Where an architecture's parameters are called what, and how they are found in checkpoints
//! as they occur in the wild.
//!
//! An architecture lists one [`TensorNames`] per naming it is saved under. Two habits of old
//! checkpoints are handled here for all of them, as rules and not as tables: a model prefix
//! (`bert.`, `roberta.`, `model.` …) is whatever stands before the word-embedding's name, and a
//! norm's `weight` and `bias` may be called `gamma` and `beta`.

use crate::error::ModelError;
use crate::weights::{Checkpoint, Tensor};

/// Names of one architecture's parameters, without prefix. Names of matrices and norms stand
/// without `.weight` and `.bias`; `{i}` is the layer's index.
#[derive(Debug, Clone, Copy)]
pub struct TensorNames {
    /// Word-embedding table.
    pub word: &'static str,
    /// Position table.
    pub position: Option<&'static str>,
    /// Token-type table.
    pub token_type: Option<&'static str>,
    /// Norm behind the sum of the embeddings.
    pub embedding_norm: &'static str,
    /// Attention bias by bucket.
    pub relative_bias: Option<&'static str>,
    /// Norm behind the last layer.
    pub final_norm: Option<&'static str>,
    /// Names inside a layer.
    pub layer: LayerNames,
}

/// Names inside a layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerNames {
    /// Query, key and value projections.
    pub attention: AttentionNames,
    /// Output projection.
    pub attention_out: &'static str,
    /// The attention block's norm.
    pub attention_norm: &'static str,
    /// The feed-forward network's first projection.
    pub feed_forward: FeedForwardNames,
    /// The feed-forward network's second projection.
    pub down: &'static str,
    /// The feed-forward block's norm.
    pub feed_forward_norm: &'static str,
}

/// How queries, keys and values are stored.
#[derive(Debug, Clone, Copy)]
pub enum AttentionNames {
    /// In one matrix, in this order.
    Fused {
        /// Its name.
        qkv: &'static str,
    },
    /// In three.
    Split {
        /// Queries.
        query: &'static str,
        /// Keys.
        key: &'static str,
        /// Values.
        value: &'static str,
    },
}

/// How the feed-forward network's first projection is stored.
#[derive(Debug, Clone, Copy)]
pub enum FeedForwardNames {
    /// One plain matrix.
    Up {
        /// Its name.
        up: &'static str,
    },
    /// Gate and value in one matrix, the half that the activation is applied to first.
    GateThenUp {
        /// Its name.
        gate_up: &'static str,
    },
    /// Gate and value in two.
    GateAndUp {
        /// What the activation is applied to.
        gate: &'static str,
        /// What the gate multiplies.
        up: &'static str,
    },
}

/// A norm's two parameters under all the names they may have.
#[derive(Debug, Clone)]
pub struct NormNames {
    /// `….weight`, `….gamma`.
    pub scale: Vec<String>,
    /// `….bias`, `….beta`.
    pub bias: Vec<String>,
}

/// A matrix as it is handed to a backend.
#[derive(Debug)]
pub struct Matrix {
    /// Row-major.
    pub weight: Vec<f32>,
    /// One per row.
    pub bias: Option<Vec<f32>>,
}

/// Finds an architecture's parameters in a checkpoint.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'static str,
    names: &'static TensorNames,
    prefix: String,
}

impl<'a> Loader<'a> {
    /// Chooses the naming and the prefix that the checkpoint uses.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] when no naming's word embedding is there.
    pub fn new(
        checkpoint: &'a Checkpoint,
        architecture: &'static str,
        namings: &'static [TensorNames],
    ) -> Result<Self, ModelError> {
        let candidate = |names: &'static TensorNames| {
            let prefix = prefix(checkpoint, names.word)?;
            Some(Loader { checkpoint, architecture, names, prefix })
        };
        let mut candidates = namings.iter().filter_map(candidate).collect::<Vec<_>>();
        // A naming whose first layer is there wins; if none is whole, the first is reported on.
        let whole = candidates.iter().position(|loader| {
            let name = loader.layer_name(loader.names.layer.attention_out, 0);
            checkpoint.contains(&format!("{name}.weight"))
        });
        if candidates.is_empty() {
            let tried: Vec<_> = namings.iter().map(|n| format!("{}.weight", n.word)).collect();
            return Err(ModelError::MissingTensor {
                files: checkpoint.files(),
                tensor: tried.join("` or `"),
                architecture: architecture.to_owned(),
            });
        }
        Ok(candidates.swap_remove(whole.unwrap_or(0)))
    }

    /// The naming in use.
    pub fn names(&self) -> &'static TensorNames {
        self.names
    }

    /// A layer's parameter under its full name, without `.weight`.
    pub fn layer_name(&self, name: &str, index: usize) -> String {
        format!("{}{}", self.prefix, name.replace("{i}", &index.to_string()))
    }

    /// A norm outside the layers.
    pub fn norm_names(&self, name: &str) -> NormNames {
        norm_names(&format!("{}{name}", self.prefix))
    }

    /// A norm inside a layer.
    pub fn layer_norm_names(&self, name: &str, index: usize) -> NormNames {
        norm_names(&self.layer_name(name, index))
    }

    /// The `.weight` of a table outside the layers.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::Dtype`].
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        self.require(&[format!("{}{name}.weight", self.prefix)])
    }

    /// The `.weight` of a table with at least `rows` rows of `cols` columns.
    ///
    /// # Errors
    /// As [`Self::tensor`], and [`ModelError::Shape`].
    pub fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, ModelError> {
        let tensor = self.tensor(name)?;
        match tensor.shape[..] {
            [found, width] if found >= rows && width == cols => Ok(tensor),
            _ => tensor.expect_shape(&[rows, cols]),
        }
    }

    /// Whether there is such a table.
    pub fn has_table(&self, name: &str) -> bool {
        self.checkpoint.contains(&format!("{}{name}.weight", self.prefix))
    }

    /// A vector of `length` values.
    ///
    /// # Errors
    /// As [`Self::tensor`], and [`ModelError::Shape`].
    pub fn vector(&self, names: &[String], length: usize) -> Result<Vec<f32>, ModelError> {
        self.require(names)?.expect_shape(&[length])?.to_f32()
    }

    /// Matrices `(name, rows)` of `cols` columns one below the other, with their biases.
    ///
    /// # Errors
    /// As [`Self::tensor`], and [`ModelError::Shape`].
    pub fn stack(
        &self,
        parts: &[(String, usize)],
        cols: usize,
        with_bias: bool,
    ) -> Result<Matrix, ModelError> {
        let mut weight = Vec::new();
        let mut bias = with_bias.then(Vec::new);
        for (name, rows) in parts {
            let tensor = self.require(&[format!("{name}.weight")])?;
            let part = tensor.expect_shape(&[*rows, cols])?.to_f32()?;
            match weight.is_empty() {
                true => weight = part,
                false => weight.extend(part),
            }
            if let Some(bias) = &mut bias {
                bias.extend(self.vector(&[format!("{name}.bias")], *rows)?);
            }
        }
        Ok(Matrix { weight, bias })
    }

    fn require(&self, names: &[String]) -> Result<Tensor, ModelError> {
        self.checkpoint.find(names)?.ok_or_else(|| ModelError::MissingTensor {
            files: self.checkpoint.files(),
            tensor: names.join("` or `"),
            architecture: self.architecture.to_owned(),
        })
    }
}

/// What stands before `word` in the checkpoint; the shortest, if several tables end like it.
fn prefix(checkpoint: &Checkpoint, word: &str) -> Option<String> {
    let suffix = format!("{word}.weight");
    checkpoint
        .names()
        .filter_map(|name| name.strip_suffix(&suffix))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .min_by_key(|prefix| prefix.len())
        .map(str::to_owned)
}

fn norm_names(name: &str) -> NormNames {
    NormNames {
        scale: vec![format!("{name}.weight"), format!("{name}.gamma")],
        bias: vec![format!("{name}.bias"), format!("{name}.beta")],
    }
}
