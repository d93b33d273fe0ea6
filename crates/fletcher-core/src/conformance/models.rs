//! What the suite runs: small specs, and random weights for any.

use std::sync::Arc;

use bytes::Bytes;

use super::POSITIONS;
use crate::backend::{Backend, BackendError, EmbeddingSource, LinearSource};
use crate::encoder::{EncoderWeights, LayerWeights};
use crate::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
};
use crate::weights::{StoredDtype, Tensor};

/// One spec per combination that some architecture has or that has bitten somebody, by name.
pub fn specs() -> Vec<(&'static str, EncoderSpec)> {
    let layer = LayerSpec { window: None, rotary_theta: 10_000.0, attention_norm: true };
    let bert = EncoderSpec {
        vocabulary: 50,
        hidden: 32,
        heads: 2,
        head_dim: 16,
        intermediate: 64,
        layers: vec![layer.clone(); 2],
        max_tokens: POSITIONS,
        position: Position::Learned { offset: 0 },
        token_types: true,
        norm: NormSpec { eps: 1e-12, placement: NormPlacement::Post },
        feed_forward: FeedForward { gated: false, activation: Activation::GeluErf },
        biases: Biases { attention: true, feed_forward: true, norm: true },
    };
    let activation = |activation| EncoderSpec {
        feed_forward: FeedForward { gated: false, activation },
        ..bert.clone()
    };
    let gated = |activation| EncoderSpec {
        feed_forward: FeedForward { gated: true, activation },
        intermediate: 101,
        ..bert.clone()
    };
    let bare = Biases { attention: false, feed_forward: false, norm: false };
    let local = LayerSpec { window: Some(5), rotary_theta: 100.0, attention_norm: true };
    vec![
        ("bert", bert.clone()),
        (
            "odd sizes",
            EncoderSpec { hidden: 78, heads: 3, head_dim: 26, intermediate: 101, ..bert.clone() },
        ),
        (
            "one wide head",
            EncoderSpec { hidden: 130, heads: 1, head_dim: 130, intermediate: 7, ..bert.clone() },
        ),
        (
            "two heads of 64",
            EncoderSpec { hidden: 128, head_dim: 64, intermediate: 192, ..bert.clone() },
        ),
        ("gelu tanh", activation(Activation::GeluTanh)),
        ("relu", activation(Activation::Relu)),
        ("silu", activation(Activation::Silu)),
        ("offset", EncoderSpec { position: Position::Learned { offset: 2 }, ..bert.clone() }),
        (
            "relative",
            EncoderSpec {
                position: Position::RelativeBuckets { offset: 2, buckets: 8, max_distance: 20 },
                token_types: false,
                ..bert.clone()
            },
        ),
        (
            "rotary, gated",
            EncoderSpec {
                position: Position::Rotary,
                feed_forward: FeedForward { gated: true, activation: Activation::Silu },
                biases: Biases { norm: true, ..bare },
                ..bert.clone()
            },
        ),
        ("gated relu", gated(Activation::Relu)),
        ("gated gelu tanh", gated(Activation::GeluTanh)),
        (
            "pre-norm, windows",
            EncoderSpec {
                position: Position::Rotary,
                layers: vec![LayerSpec { attention_norm: false, ..layer }, local.clone(), local],
                norm: NormSpec { eps: 1e-5, placement: NormPlacement::Pre },
                feed_forward: FeedForward { gated: true, activation: Activation::GeluErf },
                intermediate: 35,
                biases: bare,
                ..bert
            },
        ),
    ]
}

/// Deterministic weights, uploaded directly.
pub(super) fn weights<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
) -> Result<EncoderWeights<B>, BackendError> {
    Random::new().weights(b, spec)
}

/// A linear congruential generator (Knuth's MMIX constants): the suite needs no quality, only the
/// same numbers everywhere.
pub(super) struct Random {
    state: u64,
    /// Whether the vocabulary's last token has values that f16 does not hold.
    spoils: bool,
}

impl Random {
    fn new() -> Self {
        Self { state: 42, spoils: false }
    }

    /// With a last token whose values do not fit f16.
    pub(super) fn spoiling() -> Self {
        Self { spoils: true, ..Self::new() }
    }

    pub(super) fn weights<B: Backend>(
        mut self,
        b: &B,
        spec: &EncoderSpec,
    ) -> Result<EncoderWeights<B>, BackendError> {
        let random = &mut self;
        let d = spec.hidden;
        let embedding = b.upload_embedding(EmbeddingSource {
            word: random.words(spec.vocabulary, d),
            position: (spec.position.learned_offset())
                .map(|offset| random.tensor(&[offset + spec.max_tokens, d])),
            token_type: spec.token_types.then(|| random.tensor(&[2, d])),
            position_offset: spec.position.learned_offset().unwrap_or(0),
        })?;
        let relative_bias = match spec.position {
            Position::RelativeBuckets { .. } => {
                let table: Vec<Vec<f32>> =
                    (0..spec.heads).map(|_| random.values(2 * spec.max_tokens - 1)).collect();
                Some(b.upload_relative_bias(&table, spec.max_tokens)?)
            }
            _ => None,
        };
        let embedding_norm = random.norm(b, spec)?;
        let final_norm = match spec.norm.placement {
            NormPlacement::Pre => Some(random.norm(b, spec)?),
            NormPlacement::Post => None,
        };
        let layers = (spec.layers.iter())
            .map(|layer| random.layer(b, spec, layer))
            .collect::<Result<Vec<_>, _>>()?;
        let spec = spec.clone();
        Ok(EncoderWeights { spec, embedding, embedding_norm, relative_bias, layers, final_norm })
    }

    /// Uniform in -1..1.
    fn next(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    fn words(&mut self, vocabulary: usize, d: usize) -> Tensor {
        let mut values = self.values(vocabulary * d);
        if self.spoils {
            values[(vocabulary - 1) * d] = 6e4;
        }
        Self::tensor_of(&values, &[vocabulary, d])
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values = self.values(shape.iter().product());
        Self::tensor_of(&values, shape)
    }

    fn tensor_of(values: &[f32], shape: &[usize]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor {
            file: "conformance".into(),
            name: "random".into(),
            dtype: StoredDtype::F32,
            shape: shape.to_vec(),
            bytes: Bytes::from(bytes),
        }
    }

    fn norm<B: Backend>(&mut self, b: &B, spec: &EncoderSpec) -> Result<B::Norm, BackendError> {
        let scale: Vec<f32> = self.values(spec.hidden).iter().map(|v| 1.0 + 0.3 * v).collect();
        let bias = spec.biases.norm.then(|| self.values(spec.hidden));
        b.upload_norm(&scale, bias.as_deref(), spec.norm.eps)
    }

    /// A matrix that keeps sums of order 1, and attention scores away from one-hot.
    fn matrix(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let scale = 2.0 / (cols as f32).sqrt();
        self.values(rows * cols).iter().map(|v| v * scale).collect()
    }

    fn linear<B: Backend>(
        &mut self,
        b: &B,
        (rows, cols): (usize, usize),
        (with_bias, gated): (bool, bool),
    ) -> Result<B::Linear, BackendError> {
        let weight = self.matrix(rows, cols);
        let bias = with_bias.then(|| self.values(rows));
        b.upload_linear(LinearSource { rows, cols, weight: &weight, bias: bias.as_deref(), gated })
    }

    fn qkv<B: Backend>(
        &mut self,
        b: &B,
        (context, d): (usize, usize),
        with_bias: bool,
    ) -> Result<B::Linear, BackendError> {
        let rows = 3 * context;
        let mut weight = self.matrix(rows, d);
        if self.spoils {
            let values = &mut weight[2 * context * d..];
            values.iter_mut().step_by(16 * d).for_each(|weight| *weight = 1e4);
        }
        let bias = with_bias.then(|| self.values(rows));
        let bias = bias.as_deref();
        b.upload_linear(LinearSource { rows, cols: d, weight: &weight, bias, gated: false })
    }

    fn layer<B: Backend>(
        &mut self,
        b: &B,
        spec: &EncoderSpec,
        layer: &LayerSpec,
    ) -> Result<LayerWeights<B>, BackendError> {
        let (d, context, inner) = (spec.hidden, spec.context_width(), spec.intermediate);
        let gated = spec.feed_forward.gated;
        let up_rows = if gated { 2 * inner } else { inner };
        let (attention, feed_forward) = (spec.biases.attention, spec.biases.feed_forward);
        Ok(LayerWeights {
            qkv: self.qkv(b, (context, d), attention)?,
            attention_out: self.linear(b, (d, context), (attention, false))?,
            attention_norm: match layer.attention_norm {
                true => Some(self.norm(b, spec)?),
                false => None,
            },
            up: self.linear(b, (up_rows, d), (feed_forward, gated))?,
            down: self.linear(b, (d, inner), (feed_forward, false))?,
            feed_forward_norm: self.norm(b, spec)?,
            rotary: match spec.position {
                Position::Rotary => {
                    let tables =
                        b.upload_rotary(layer.rotary_theta, spec.head_dim, spec.max_tokens)?;
                    Some(Arc::new(tables))
                }
                _ => None,
            },
            window: layer.window,
        })
    }
}
