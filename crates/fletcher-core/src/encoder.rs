//! The encoder: weights on a device, and the one forward pass that every architecture takes.

use crate::architectures::Architecture;
use crate::backend::{Backend, BackendError, EmbeddingSource, LinearSource, PoolOp};
use crate::error::ModelError;
use crate::names::{AttentionNames, FeedForwardNames, Loader, NormNames};
use crate::pack::PackedBatch;
use crate::spec::{EncoderSpec, NormPlacement, Position, limits};

/// A model's weights as a backend holds them.
#[derive(Debug)]
pub struct EncoderWeights<B: Backend> {
    /// What the weights mean.
    pub spec: EncoderSpec,
    /// Word, position and token-type tables.
    pub embedding: B::Embedding,
    /// Normalises the sum of the embeddings.
    pub embedding_norm: B::Norm,
    /// Attention bias shared by all layers.
    pub relative_bias: Option<B::RelativeBias>,
    /// First to last.
    pub layers: Vec<LayerWeights<B>>,
    /// Normalises the last state of a pre-norm model.
    pub final_norm: Option<B::Norm>,
}

/// One layer's weights.
#[derive(Debug)]
pub struct LayerWeights<B: Backend> {
    /// Queries, keys and values in one matrix: `3 * heads * head_dim x hidden`.
    pub qkv: B::Linear,
    /// `hidden x heads * head_dim`.
    pub attention_out: B::Linear,
    /// Before attention (pre-norm) or behind its residual sum (post-norm).
    pub attention_norm: Option<B::Norm>,
    /// `intermediate x hidden`, or twice as many rows, gate first, when gated.
    pub up: B::Linear,
    /// `hidden x intermediate`.
    pub down: B::Linear,
    /// Before the feed-forward network (pre-norm) or behind its residual sum (post-norm).
    pub feed_forward_norm: B::Norm,
    /// Rotary tables of this layer's base.
    pub rotary: Option<std::sync::Arc<B::Rotary>>,
    /// Attention window of this layer.
    pub window: Option<usize>,
}

/// A model on a device.
#[derive(Debug)]
pub struct Encoder<B: Backend> {
    backend: B,
    weights: EncoderWeights<B>,
}

impl<B: Backend> Encoder<B> {
    /// Uploads the weights. Sequences may later be up to `positions` tokens long.
    ///
    /// # Errors
    /// When a tensor is missing or has the wrong shape, or when the device refuses one.
    pub fn load(
        backend: B,
        spec: EncoderSpec,
        loader: &Loader<'_>,
        positions: usize,
    ) -> Result<Self, ModelError> {
        let weights = upload(&backend, spec, loader, positions)?;
        Ok(Self { backend, weights })
    }

    /// What the weights mean.
    pub fn spec(&self) -> &EncoderSpec {
        &self.weights.spec
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Leaves the hidden state of every token of `batch` in the arena's [`Slot::Hidden`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, arena: &mut B::Arena, batch: &PackedBatch) -> Result<(), BackendError> {
        self.backend.encode(arena, &self.weights, batch)
    }

    /// One vector of `hidden` numbers for each sequence of `batch`, pooled from its tokens' states.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pooled(
        &self,
        arena: &mut B::Arena,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        self.backend.encode_pooled(arena, &self.weights, op, batch, vectors)
    }
}

fn upload<B: Backend>(
    b: &B,
    spec: EncoderSpec,
    loader: &Loader<'_>,
    positions: usize,
) -> Result<EncoderWeights<B>, ModelError> {
    let names = loader.names();
    let (d, types) = (spec.hidden, spec.token_types);
    let word = loader.tensor(names.word)?.expect_shape(&[spec.vocabulary, d])?;
    let position = match (spec.position.learned_offset(), names.position) {
        (Some(offset), Some(name)) => Some(loader.table(name, offset + spec.max_tokens, d)?),
        _ => None,
    };
    let token_type = match (types, names.token_type) {
        (true, Some(name)) => Some(loader.table(name, 1, d)?),
        // What the weights have is not left out in silence.
        (false, Some(name)) if loader.has_table(name) => {
            return Err(ModelError::BadValue {
                file: "config.json".to_owned(),
                key: "type_vocab_size".to_owned(),
                found: "0".to_owned(),
                expected: "at least 1, as the weights have a table of token types".to_owned(),
            });
        }
        _ => None,
    };
    let position_offset = spec.position.learned_offset().unwrap_or(0);
    let embedding = EmbeddingSource { word, position, token_type, position_offset };
    let embedding = b.upload_embedding(embedding)?;
    let embedding_norm = norm(b, &spec, loader, &loader.norm_names(names.embedding_norm))?;
    let final_norm = match (spec.norm.placement, names.final_norm) {
        (NormPlacement::Pre, Some(name)) => Some(norm(b, &spec, loader, &loader.norm_names(name))?),
        _ => None,
    };
    let relative_bias = relative_bias(b, &spec, loader, positions)?;
    let mut rotaries: Vec<(f64, std::sync::Arc<B::Rotary>)> = Vec::new();
    let mut layers = Vec::with_capacity(spec.layers.len());
    for index in 0..spec.layers.len() {
        let rotary = rotary(b, &spec, index, positions, &mut rotaries)?;
        layers.push(layer(b, &spec, loader, index, rotary)?);
    }
    Ok(EncoderWeights { spec, embedding, embedding_norm, relative_bias, layers, final_norm })
}

/// Refuses a table that would fill the memory before it is made.
fn check_rotary(positions: usize, head_dim: usize) -> Result<(), ModelError> {
    if positions.saturating_mul(head_dim) <= limits::ROTARY_VALUES {
        return Ok(());
    }
    Err(ModelError::BadValue {
        file: "config.json".to_owned(),
        key: "max_position_embeddings".to_owned(),
        found: format!("{positions}, with {head_dim} columns a head"),
        expected: format!("at most {} altogether", limits::ROTARY_VALUES),
    })
}

/// Layers of the same base share one table.
fn rotary<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
    index: usize,
    positions: usize,
    known: &mut Vec<(f64, std::sync::Arc<B::Rotary>)>,
) -> Result<Option<std::sync::Arc<B::Rotary>>, ModelError> {
    if spec.position != Position::Rotary {
        return Ok(None);
    }
    let theta = spec.layers[index].rotary_theta;
    if let Some((_, rotary)) = known.iter().find(|(base, _)| *base == theta) {
        return Ok(Some(rotary.clone()));
    }
    check_rotary(positions, spec.head_dim)?;
    let rotary = std::sync::Arc::new(b.upload_rotary(theta, spec.head_dim, positions)?);
    known.push((theta, rotary.clone()));
    Ok(Some(rotary))
}

fn layer<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
    loader: &Loader<'_>,
    index: usize,
    rotary: Option<std::sync::Arc<B::Rotary>>,
) -> Result<LayerWeights<B>, ModelError> {
    let names = &loader.names().layer;
    let at = |name: &str| loader.layer_name(name, index);
    let (d, context, inner) = (spec.hidden, spec.context_width(), spec.intermediate);
    let biases = spec.biases;
    let qkv = match names.attention {
        AttentionNames::Fused { qkv } => vec![(at(qkv), 3 * context)],
        AttentionNames::Split { query, key, value } => {
            vec![(at(query), context), (at(key), context), (at(value), context)]
        }
    };
    let up = match names.feed_forward {
        FeedForwardNames::Up { up } => vec![(at(up), inner)],
        FeedForwardNames::GateThenUp { gate_up } => vec![(at(gate_up), 2 * inner)],
        FeedForwardNames::GateAndUp { gate, up } => vec![(at(gate), inner), (at(up), inner)],
    };
    let gated = spec.feed_forward.gated;
    let linear = |parts: &[(String, usize)], cols, bias, gated| -> Result<B::Linear, ModelError> {
        let matrix = loader.stack(parts, cols, bias)?;
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let (weight, bias) = (&matrix.weight[..], matrix.bias.as_deref());
        Ok(b.upload_linear(LinearSource { rows, cols, weight, bias, gated })?)
    };
    let attention_norm = match spec.layers[index].attention_norm {
        true => Some(norm(b, spec, loader, &loader.layer_norm_names(names.attention_norm, index))?),
        false => None,
    };
    let ffn_norm = loader.layer_norm_names(names.feed_forward_norm, index);
    Ok(LayerWeights {
        qkv: linear(&qkv, d, biases.attention, false)?,
        attention_out: linear(&[(at(names.attention_out), d)], context, biases.attention, false)?,
        attention_norm,
        up: linear(&up, d, biases.feed_forward, gated)?,
        down: linear(&[(at(names.down), d)], inner, biases.feed_forward, false)?,
        feed_forward_norm: norm(b, spec, loader, &ffn_norm)?,
        rotary,
        window: spec.layers[index].window,
    })
}

fn norm<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
    loader: &Loader<'_>,
    names: &NormNames,
) -> Result<B::Norm, ModelError> {
    let scale = loader.vector(&names.scale, spec.hidden)?;
    let bias = match spec.biases.norm {
        true => Some(loader.vector(&names.bias, spec.hidden)?),
        false => None,
    };
    Ok(b.upload_norm(&scale, bias.as_deref(), spec.norm.eps)?)
}

/// Spreads the bucketed table over every distance, so that no backend knows about buckets.
fn relative_bias<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
    loader: &Loader<'_>,
    positions: usize,
) -> Result<Option<B::RelativeBias>, ModelError> {
    let Position::RelativeBuckets { buckets, max_distance, .. } = spec.position else {
        return Ok(None);
    };
    let name = loader.names().relative_bias.unwrap_or_default();
    let table = loader.tensor(name)?.expect_shape(&[buckets, spec.heads])?.to_f32()?;
    let span = positions as i64 - 1;
    let by_distance: Vec<Vec<f32>> = (0..spec.heads)
        .map(|head| {
            (-span..=span)
                .map(|distance| {
                    table[relative_bucket(distance, buckets, max_distance) * spec.heads + head]
                })
                .collect()
        })
        .collect();
    Ok(Some(b.upload_relative_bias(&by_distance, positions)?))
}

/// The bucket of `distance = key - query`: half of the buckets for each direction, the nearer
/// half of those exact and the rest logarithmic up to `max_distance` (T5, Raffel et al. 2020,
/// as MPNet uses it). The logarithms are in f32 like the reference's, because a rounding there
/// moves a boundary.
fn relative_bucket(distance: i64, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let base = if distance > 0 { half } else { 0 };
    let n = distance.unsigned_abs() as usize;
    let exact = half / 2;
    if n < exact {
        return base + n;
    }
    let log = (n as f32 / exact as f32).ln();
    let scale = (max_distance as f64 / exact as f64).ln() as f32;
    let far = exact + (log / scale * (half - exact) as f32) as usize;
    base + far.min(half - 1)
}

/// The spec with its architecture, as parsed from a model folder.
#[derive(Debug, Clone)]
pub struct ParsedModel {
    /// The architecture that recognised the `model_type`.
    pub architecture: &'static Architecture,
    /// What it made of the configuration.
    pub spec: EncoderSpec,
}

#[cfg(test)]
mod tests {
    use super::{check_rotary, relative_bucket};

    #[test]
    fn absurd_rotary_tables_are_refused() {
        assert!(check_rotary(131_072, 512).is_ok());
        assert!(check_rotary(1 << 20, 4096).is_err());
        assert!(check_rotary(usize::MAX, 64).is_err());
    }

    /// Values of `MPNetEncoder.relative_position_bucket` (transformers 5.23).
    #[test]
    fn buckets_match_the_reference() {
        let cases = [
            (0, 0),
            (-1, 1),
            (1, 17),
            (-7, 7),
            (-8, 8),
            (8, 24),
            (-15, 9),
            (16, 26),
            (-31, 11),
            (-32, 12),
            (63, 29),
            (-64, 14),
            (-127, 15),
            (128, 31),
            (-5000, 15),
        ];
        for (distance, bucket) in cases {
            assert_eq!(relative_bucket(distance, 32, 128), bucket, "distance {distance}");
        }
    }
}
