//! ModernBERT (Warner et al. 2024, arXiv:2412.13663).
//!
//! Differs from BERT by pre-norm with a final norm (and none before the first attention), rotary
//! positions, a GeGLU feed-forward network, few biases, and layers that alternate between global
//! attention and a window, each with its own rotary base.
//! Reference: `transformers` `modeling_modernbert.py`.

use serde_json::Value;

use super::{Architecture, nomic_bert::default_rotary};
use crate::config::Config;
use crate::error::ModelError;
use crate::names::{AttentionNames, FeedForwardNames, LayerNames, TensorNames};
use crate::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
    limits,
};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "ModernBERT", model_types: &["modernbert"], parse, names: &[NAMES] };

fn parse(config: &Config) -> Result<EncoderSpec, ModelError> {
    let hidden = config.size(&["hidden_size"], limits::WIDTH)?;
    let heads = config.size(&["num_attention_heads"], limits::WIDTH)?;
    let mlp_bias = config.flag_or("mlp_bias", false)?;
    let activation = config.activation("hidden_activation", Activation::GeluErf)?;
    let eps = config.positive_or("norm_eps", 1e-5)?;
    Ok(EncoderSpec {
        vocabulary: config.vocabulary()?,
        hidden,
        heads,
        head_dim: config.head_dim("num_attention_heads", hidden, heads)?,
        intermediate: config.size(&["intermediate_size"], limits::WIDTH)?,
        layers: layers(config)?,
        max_tokens: config.size(&["max_position_embeddings"], limits::POSITIONS)?,
        position: Position::Rotary,
        token_types: false,
        norm: NormSpec { eps, placement: NormPlacement::Pre },
        feed_forward: FeedForward { gated: true, activation },
        biases: Biases {
            attention: config.flag_or("attention_bias", false)?,
            feed_forward: mlp_bias,
            norm: config.flag_or("norm_bias", false)?,
        },
    })
}

/// Global or local, from `layer_types` (transformers 5) or `global_attn_every_n_layers` (4).
fn layers(config: &Config) -> Result<Vec<LayerSpec>, ModelError> {
    let count = config.size(&["num_hidden_layers"], limits::LAYERS)?;
    let every = config.count_or("global_attn_every_n_layers", 3, limits::LAYERS)?.max(1);
    let is_global: Vec<bool> = match config.get("layer_types") {
        None => (0..count).map(|i| i % every == 0).collect(),
        Some(Value::Array(types)) if types.len() == count => types
            .iter()
            .map(|layer| match layer.as_str() {
                Some("full_attention") => Ok(true),
                Some("sliding_attention") => Ok(false),
                _ => Err(config.bad("layer_types", "full_attention or sliding_attention")),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(config.bad("layer_types", format!("a list of {count} names"))),
    };
    let rope = config.object("rope_parameters");
    let theta = |kind: &str, legacy: &str, default: f64| match rope.as_ref() {
        Some(rope) => match rope.object(kind) {
            Some(of_kind) => default_rotary(&of_kind, default),
            None => Ok(default),
        },
        None => config.positive_or(legacy, default),
    };
    let global_theta = theta("full_attention", "global_rope_theta", 160_000.0)?;
    let local_theta = theta("sliding_attention", "local_rope_theta", 10_000.0)?;
    // `local_attention` is the whole window; a token sees half of it on either side.
    let window = config.count_or("local_attention", 128, limits::POSITIONS)? / 2;
    let layer = |(index, is_global): (usize, bool)| LayerSpec {
        window: (!is_global).then_some(window),
        rotary_theta: if is_global { global_theta } else { local_theta },
        attention_norm: index > 0,
    };
    Ok(is_global.into_iter().enumerate().map(layer).collect())
}

const NAMES: TensorNames = TensorNames {
    word: "embeddings.tok_embeddings",
    position: None,
    token_type: None,
    embedding_norm: "embeddings.norm",
    relative_bias: None,
    final_norm: Some("final_norm"),
    layer: LayerNames {
        attention: AttentionNames::Fused { qkv: "layers.{i}.attn.Wqkv" },
        attention_out: "layers.{i}.attn.Wo",
        attention_norm: "layers.{i}.attn_norm",
        feed_forward: FeedForwardNames::GateThenUp { gate_up: "layers.{i}.mlp.Wi" },
        down: "layers.{i}.mlp.Wo",
        feed_forward_norm: "layers.{i}.mlp_norm",
    },
};
