//! The contract between the one forward pass and the devices that run it.
//!
//! A backend uploads weights into whatever layout it likes, plans an [`Backend::Arena`] for a
//! token budget, and implements seven operations over the arena's named [`Slot`]s. All activations
//! live in those slots, as packed rows: row `t` of a slot belongs to token `t` of the
//! [`PackedBatch`]. No padded batch exists, and no operation allocates.
//!
//! Composites ([`Backend::self_attention`], [`Backend::attention_block`],
//! [`Backend::feed_forward_block`], [`Backend::layer`], [`Backend::encode`],
//! [`Backend::encode_pooled`]) have default bodies, which are the readable definition of the
//! network. A backend may override one with a fused kernel; the default body is then its test
//! oracle.
//!
//! Who guarantees what: the caller passes batches that fit the arena ([`Backend::plan`]) and ids
//! below the vocabulary (`Embedder` checks both); a backend reports failures of its device as
//! [`BackendError`] and never answers with another device's result.

use crate::encoder::{EncoderWeights, LayerWeights};
use crate::pack::PackedBatch;
use crate::spec::{Activation, EncoderSpec, NormPlacement, Position};
use crate::weights::Tensor;

/// The number format of the arithmetic, as `--precision` names it. Weights and activations are
/// multiplied in this format; sums, norms and softmax are in f32 or better in every one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// The device's own choice, which its documentation tells.
    #[default]
    Auto,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 8-bit integers: a scale per output feature of the weights and per token of the activations.
    Int8,
}

impl Precision {
    /// All of them, in the order of the help text.
    pub const ALL: [Precision; 5] =
        [Precision::Auto, Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];

    /// The name that `--precision` takes.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Auto => "auto",
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}

/// The device failed; the batch has no result.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The device is not there, or cannot be used.
    #[error("{device} cannot be used: {reason}")]
    Absent {
        /// The device's name as in `fletcher info`.
        device: String,
        /// What is missing.
        reason: String,
    },
    /// The device does not compute in this number format.
    #[error("{device} has no {} arithmetic here; it has: {has}", precision.name())]
    NoPrecision {
        /// The device's name as in `fletcher info`.
        device: String,
        /// The format asked for.
        precision: Precision,
        /// The formats it has.
        has: &'static str,
    },
    /// The device reported an error.
    #[error("{device}: {message}")]
    Device {
        /// The device's name as in `fletcher info`.
        device: String,
        /// What the driver said.
        message: String,
    },
    /// Not enough memory for the weights or the planned arena.
    #[error("{device}: out of memory: {needed_bytes} bytes needed for {what}")]
    OutOfMemory {
        /// The device's name as in `fletcher info`.
        device: String,
        /// What was being allocated.
        what: &'static str,
        /// Size of the request.
        needed_bytes: usize,
    },
}

/// Bytes of a device's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Allocated now.
    pub used: usize,
    /// The most that ever was.
    pub peak: usize,
}

/// A matrix on its way to the device: `rows x cols`, row-major, `y = x * W^T + bias`.
#[derive(Debug, Clone, Copy)]
pub struct LinearSource<'a> {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `rows * cols` weights.
    pub weight: &'a [f32],
    /// `rows` biases.
    pub bias: Option<&'a [f32]>,
    /// For a gated feed-forward: the first half of the rows is the gate, which the activation is
    /// applied to, and the second half is the value it multiplies. Told at upload so that a
    /// backend can interleave the two halves.
    pub gated: bool,
}

/// The tables behind the first hidden state, in the checkpoint's own precision.
#[derive(Debug, Clone)]
pub struct EmbeddingSource {
    /// `vocabulary x hidden`.
    pub word: Tensor,
    /// `positions x hidden`, for models with learned positions.
    pub position: Option<Tensor>,
    /// `types x hidden`; row 0 is added to every token.
    pub token_type: Option<Tensor>,
    /// Where counting starts in the position table; see [`crate::spec::learned_rows`].
    pub position_offset: usize,
}

/// A named activation buffer of an arena. Each has one row per token of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// `hidden` wide: the state that flows from layer to layer.
    Hidden,
    /// `hidden` wide: the normalised state that a pre-norm block reads.
    Normed,
    /// `3 * heads * head_dim` wide: queries, then keys, then values, each head by head.
    Qkv,
    /// `heads * head_dim` wide: the attention's weighted values.
    Context,
    /// `intermediate` wide: the feed-forward's inner state.
    Inner,
}

/// What happens to a linear layer's sums before they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Stored as they are.
    Store,
    /// Added to what the output slot holds: the residual connection.
    Accumulate,
    /// The activation is applied.
    Activate(Activation),
    /// `activation(gate) * value`; the weight was uploaded with `gated`, so the output is half as
    /// wide as the weight has rows.
    Gate(Activation),
}

/// `output = epilogue(input * W^T + bias)`.
#[derive(Debug)]
pub struct LinearOp<'a, B: Backend> {
    /// The uploaded weight.
    pub weight: &'a B::Linear,
    /// Read.
    pub input: Slot,
    /// Written (or added to); never the same slot as `input`.
    pub output: Slot,
    /// Applied to the sums.
    pub epilogue: Epilogue,
}

/// `output = norm(input)`, row by row; `input` and `output` may be the same slot.
#[derive(Debug)]
pub struct NormOp<'a, B: Backend> {
    /// The uploaded scale and bias.
    pub norm: &'a B::Norm,
    /// Read.
    pub input: Slot,
    /// Written.
    pub output: Slot,
}

/// Softmax attention of each sequence over itself: [`Slot::Qkv`] to [`Slot::Context`].
/// Scores are scaled by `1 / sqrt(head_dim)`.
#[derive(Debug)]
pub struct AttentionOp<'a, B: Backend> {
    /// Bias by head and distance, added to the scaled scores.
    pub relative: Option<&'a B::RelativeBias>,
    /// Tokens farther apart than this do not see each other.
    pub window: Option<usize>,
}

/// How a sequence's token states become one vector (sentence-transformers' names).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The greatest value of each column.
    Max,
    /// The mean over tokens.
    Mean,
    /// The sum over tokens divided by the root of their number.
    MeanSqrtLen,
    /// The mean weighted by the token's place in its sequence, counted from 1.
    WeightedMean,
    /// The last token.
    LastToken,
}

/// Pools [`Slot::Hidden`] and brings the result back to the host.
#[derive(Debug, Clone, Copy)]
pub struct PoolOp {
    /// How.
    pub mode: Pooling,
    /// Tokens at the start of every sequence that do not take part (a prompt); sequences that are
    /// not longer than that are pooled whole.
    pub skip: usize,
}

impl PoolOp {
    /// The first token that takes part, of a sequence of so many.
    pub fn first(self, tokens: usize) -> usize {
        if self.skip < tokens { self.skip } else { 0 }
    }

    /// The one token whose state is the vector of a sequence of so many tokens; `None` for
    /// poolings that look at several.
    pub fn only(self, tokens: usize) -> Option<usize> {
        match self.mode {
            Pooling::Cls => Some(self.first(tokens)),
            Pooling::LastToken => Some(tokens - 1),
            Pooling::Max | Pooling::Mean | Pooling::MeanSqrtLen | Pooling::WeightedMean => None,
        }
    }

    /// [`Self::only`] for each sequence of a batch, counted from the batch's first token.
    pub fn only_tokens(self, batch: &PackedBatch) -> Option<Vec<usize>> {
        let only = |at: std::ops::Range<usize>| Some(at.start + self.only(at.len())?);
        batch.sequences().map(only).collect()
    }
}

/// A device that can run the encoder. See the module's documentation for the contract.
pub trait Backend: Send + Sync + Sized + 'static {
    /// An uploaded matrix with its bias.
    type Linear: Send + Sync + std::fmt::Debug;
    /// An uploaded norm.
    type Norm: Send + Sync + std::fmt::Debug;
    /// The uploaded embedding tables.
    type Embedding: Send + Sync + std::fmt::Debug;
    /// Rotary tables of one base.
    type Rotary: Send + Sync + std::fmt::Debug;
    /// Attention bias by head and distance.
    type RelativeBias: Send + Sync + std::fmt::Debug;
    /// The activation slots (and scratch) of one worker.
    type Arena: Send;

    /// What this device is called in messages; where there can be several, each has its own name.
    fn device_name(&self) -> String;
    /// What is taken of its memory; `None` if that is the host's.
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// Token budget of a block on this device, when the user names none.
    fn preferred_tokens(&self, spec: &EncoderSpec) -> usize;
    /// How many arenas can usefully run at the same time.
    fn workers(&self) -> usize;
    /// The same for a model of which more is known.
    fn arenas(&self, _spec: &EncoderSpec) -> usize {
        self.workers()
    }
    /// How many arenas beside those are of use for blocks that may not wait for one of them. It
    /// takes a device that shares its time between blocks by their urgency.
    fn urgent_arenas(&self) -> usize {
        0
    }
    /// How many threads should prepare and finish their work, when the user names no number.
    fn threads(&self) -> usize {
        self.workers()
    }
    /// A block is not made smaller than this, in tokens, only to give every worker one.
    fn least_tokens(&self) -> usize {
        64
    }

    /// Uploads a matrix.
    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Self::Linear, BackendError>;
    /// Uploads a LayerNorm: `hidden` scales, optional biases, `eps` added to the variance.
    fn upload_norm(
        &self,
        scale: &[f32],
        bias: Option<&[f32]>,
        eps: f64,
    ) -> Result<Self::Norm, BackendError>;
    /// Uploads the embedding tables.
    fn upload_embedding(&self, source: EmbeddingSource) -> Result<Self::Embedding, BackendError>;
    /// Prepares rotary tables for sequences of up to `positions` tokens, from
    /// [`crate::spec::rotary_table`] and nothing else.
    fn upload_rotary(
        &self,
        theta: f64,
        head_dim: usize,
        positions: usize,
    ) -> Result<Self::Rotary, BackendError>;
    /// Uploads a bias `by_distance[head][key - query + positions - 1]`, `2 * positions - 1` wide.
    fn upload_relative_bias(
        &self,
        by_distance: &[Vec<f32>],
        positions: usize,
    ) -> Result<Self::RelativeBias, BackendError>;
    /// Allocates the slots for batches of up to `max_tokens` tokens in all, of which one sequence
    /// may hold all.
    fn plan(&self, spec: &EncoderSpec, max_tokens: usize) -> Result<Self::Arena, BackendError>;

    /// [`Slot::Hidden`] = word row + position row + token-type row.
    fn embed(
        &self,
        arena: &mut Self::Arena,
        embedding: &Self::Embedding,
        batch: &PackedBatch,
    ) -> Result<(), BackendError>;
    /// A linear layer.
    fn linear(&self, arena: &mut Self::Arena, op: LinearOp<'_, Self>) -> Result<(), BackendError>;
    /// A norm.
    fn norm(&self, arena: &mut Self::Arena, op: NormOp<'_, Self>) -> Result<(), BackendError>;
    /// Rotates the queries and keys of [`Slot::Qkv`] by their token's place in its sequence.
    fn rotary(
        &self,
        arena: &mut Self::Arena,
        rotary: &Self::Rotary,
        batch: &PackedBatch,
    ) -> Result<(), BackendError>;
    /// Attention.
    fn attention(
        &self,
        arena: &mut Self::Arena,
        op: AttentionOp<'_, Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError>;
    /// Pools [`Slot::Hidden`] into `vectors`, `batch.rows() * hidden`, in the batch's order.
    fn pool(
        &self,
        arena: &mut Self::Arena,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError>;
    /// Copies [`Slot::Hidden`] to the host: `batch.tokens() * hidden`.
    fn download_hidden(
        &self,
        arena: &mut Self::Arena,
        batch: &PackedBatch,
        hidden: &mut [f32],
    ) -> Result<(), BackendError>;

    /// Attention with its projections; the default body is its definition.
    fn attention_block(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let input = self.pre_norm(arena, model, layer.attention_norm.as_ref())?;
        self.self_attention(arena, model, layer, input, batch)?;
        self.attention_output(arena, model, layer)
    }

    /// What an attention block makes of [`Slot::Context`]: its projection, added to the state.
    fn attention_output(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
    ) -> Result<(), BackendError> {
        let (weight, epilogue) = (&layer.attention_out, Epilogue::Accumulate);
        let (input, output) = (Slot::Context, Slot::Hidden);
        self.linear(arena, LinearOp { weight, input, output, epilogue })?;
        self.post_norm(arena, model, layer.attention_norm.as_ref())
    }

    /// The queries, keys and values of a slot's rows and the attention over them, which it leaves
    /// in [`Slot::Context`]; the default body is its definition. What it leaves in [`Slot::Qkv`]
    /// is not said.
    fn self_attention(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
        input: Slot,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self_attention_by_operations(self, arena, model, layer, input, batch)
    }

    /// The feed-forward network; the default body is its definition.
    fn feed_forward_block(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
    ) -> Result<(), BackendError> {
        let input = self.pre_norm(arena, model, Some(&layer.feed_forward_norm))?;
        let activation = model.spec.feed_forward.activation;
        let epilogue = match model.spec.feed_forward.gated {
            true => Epilogue::Gate(activation),
            false => Epilogue::Activate(activation),
        };
        let (up, down) = (&layer.up, &layer.down);
        self.linear(arena, LinearOp { weight: up, input, output: Slot::Inner, epilogue })?;
        let (input, output) = (Slot::Inner, Slot::Hidden);
        let epilogue = Epilogue::Accumulate;
        self.linear(arena, LinearOp { weight: down, input, output, epilogue })?;
        self.post_norm(arena, model, Some(&layer.feed_forward_norm))
    }

    /// One transformer layer; the default body is its definition.
    fn layer(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self.attention_block(arena, model, layer, batch)?;
        self.feed_forward_block(arena, model, layer)
    }

    /// The whole encoder: leaves every token's last state in [`Slot::Hidden`]. The default body is
    /// its definition.
    fn encode(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        encode_layers(self, arena, model, batch)
    }

    /// The encoder and a pooling behind it, into `vectors` as [`Self::pool`] does; the default body
    /// is its definition. What is left in [`Slot::Hidden`] is not said: where the pooling takes one
    /// token of each sequence ([`PoolOp::only`]), a backend may leave out what the others' states
    /// need of the last layer, which is all but their keys and values.
    fn encode_pooled(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        self.encode(arena, model, batch)?;
        self.pool(arena, op, batch, vectors)
    }

    /// In a pre-norm model, normalises the state for a block; returns the slot the block reads.
    fn pre_norm(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        norm: Option<&Self::Norm>,
    ) -> Result<Slot, BackendError> {
        match (model.spec.norm.placement, norm) {
            (NormPlacement::Pre, Some(norm)) => {
                let (input, output) = (Slot::Hidden, Slot::Normed);
                self.norm(arena, NormOp { norm, input, output })?;
                Ok(Slot::Normed)
            }
            _ => Ok(Slot::Hidden),
        }
    }

    /// In a post-norm model, normalises the state behind a block's residual sum.
    fn post_norm(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
        norm: Option<&Self::Norm>,
    ) -> Result<(), BackendError> {
        match (model.spec.norm.placement, norm) {
            (NormPlacement::Post, Some(norm)) => {
                let (input, output) = (Slot::Hidden, Slot::Hidden);
                self.norm(arena, NormOp { norm, input, output })
            }
            _ => Ok(()),
        }
    }
}

/// The definition of [`Backend::self_attention`]: for backends that fuse it for some batches and
/// not for others.
///
/// # Errors
/// When the device fails.
pub fn self_attention_by_operations<B: Backend>(
    backend: &B,
    arena: &mut B::Arena,
    model: &EncoderWeights<B>,
    layer: &LayerWeights<B>,
    input: Slot,
    batch: &PackedBatch,
) -> Result<(), BackendError> {
    let (weight, output, epilogue) = (&layer.qkv, Slot::Qkv, Epilogue::Store);
    backend.linear(arena, LinearOp { weight, input, output, epilogue })?;
    if let Some(rotary) = &layer.rotary {
        backend.rotary(arena, rotary, batch)?;
    }
    let relative = model.relative_bias.as_ref();
    backend.attention(arena, AttentionOp { relative, window: layer.window }, batch)
}

/// The definition of [`Backend::encode`]: for backends that fuse some encoders and not others.
///
/// # Errors
/// When the device fails.
pub fn encode_layers<B: Backend>(
    backend: &B,
    arena: &mut B::Arena,
    model: &EncoderWeights<B>,
    batch: &PackedBatch,
) -> Result<(), BackendError> {
    let in_place = |norm| NormOp { norm, input: Slot::Hidden, output: Slot::Hidden };
    backend.embed(arena, &model.embedding, batch)?;
    backend.norm(arena, in_place(&model.embedding_norm))?;
    for layer in &model.layers {
        backend.layer(arena, model, layer, batch)?;
    }
    match &model.final_norm {
        Some(norm) => backend.norm(arena, in_place(norm)),
        None => Ok(()),
    }
}

impl Position {
    /// The learned table's row for a sequence's first token, for models that have such a table.
    pub fn learned_offset(self) -> Option<usize> {
        match self {
            Position::Learned { offset } | Position::RelativeBuckets { offset, .. } => Some(offset),
            Position::Rotary => None,
        }
    }
}
