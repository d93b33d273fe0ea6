//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108).
//!
//! BERT's computation without token types; only the names of keys and tensors differ.
//! Reference: `transformers` `modeling_distilbert.py`.

use super::Architecture;
use crate::config::Config;
use crate::error::ModelError;
use crate::names::{AttentionNames, FeedForwardNames, LayerNames, TensorNames};
use crate::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
    limits,
};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "DistilBERT", model_types: &["distilbert"], parse, names: &[NAMES] };

/// A constant in the reference, not a key of the configuration.
const EPS: f64 = 1e-12;

fn parse(config: &Config) -> Result<EncoderSpec, ModelError> {
    let hidden = config.size(&["dim", "hidden_size"], limits::WIDTH)?;
    let heads = config.size(&["n_heads", "num_attention_heads"], limits::WIDTH)?;
    let layers = config.size(&["n_layers", "num_hidden_layers"], limits::LAYERS)?;
    let layer = LayerSpec { window: None, rotary_theta: 0.0, attention_norm: true };
    let activation = config.activation("activation", Activation::GeluErf)?;
    Ok(EncoderSpec {
        vocabulary: config.vocabulary()?,
        hidden,
        heads,
        head_dim: config.head_dim("n_heads", hidden, heads)?,
        intermediate: config.size(&["hidden_dim"], limits::WIDTH)?,
        layers: vec![layer; layers],
        max_tokens: config.size(&["max_position_embeddings"], limits::POSITIONS)?,
        // Sinusoidal checkpoints store their table like learned ones.
        position: Position::Learned { offset: 0 },
        token_types: false,
        norm: NormSpec { eps: EPS, placement: NormPlacement::Post },
        feed_forward: FeedForward { gated: false, activation },
        biases: Biases { attention: true, feed_forward: true, norm: true },
    })
}

const NAMES: TensorNames = TensorNames {
    word: "embeddings.word_embeddings",
    position: Some("embeddings.position_embeddings"),
    token_type: None,
    embedding_norm: "embeddings.LayerNorm",
    relative_bias: None,
    final_norm: None,
    layer: LayerNames {
        attention: AttentionNames::Split {
            query: "transformer.layer.{i}.attention.q_lin",
            key: "transformer.layer.{i}.attention.k_lin",
            value: "transformer.layer.{i}.attention.v_lin",
        },
        attention_out: "transformer.layer.{i}.attention.out_lin",
        attention_norm: "transformer.layer.{i}.sa_layer_norm",
        feed_forward: FeedForwardNames::Up { up: "transformer.layer.{i}.ffn.lin1" },
        down: "transformer.layer.{i}.ffn.lin2",
        feed_forward_norm: "transformer.layer.{i}.output_layer_norm",
    },
};
