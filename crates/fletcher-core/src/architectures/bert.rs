//! BERT (Devlin et al. 2019, arXiv:1810.04805): learned positions, post-norm, GELU.
//!
//! The base that the other architectures' files are told against.
//! Reference: `transformers` `modeling_bert.py`, `BertModel` without its pooler.

use serde_json::json;

use super::Architecture;
use crate::config::Config;
use crate::error::ModelError;
use crate::names::{AttentionNames, FeedForwardNames, LayerNames, TensorNames};
use crate::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
    limits,
};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "BERT", model_types: &["bert"], parse, names: &[NAMES] };

fn parse(config: &Config) -> Result<EncoderSpec, ModelError> {
    parse_like_bert(config, 0)
}

/// The configuration that BERT, RoBERTa and MPNet share; the first token reads position row
/// `offset`, and rows below it are never read.
pub(super) fn parse_like_bert(config: &Config, offset: usize) -> Result<EncoderSpec, ModelError> {
    config.only("position_embedding_type", &json!("absolute"))?;
    config.only("is_decoder", &json!(false))?;
    let hidden = config.size(&["hidden_size"], limits::WIDTH)?;
    let heads = config.size(&["num_attention_heads"], limits::WIDTH)?;
    let layers = config.size(&["num_hidden_layers"], limits::LAYERS)?;
    let positions = config.size(&["max_position_embeddings"], limits::POSITIONS)?;
    if positions <= offset {
        return Err(config.bad("max_position_embeddings", format!("greater than {offset}")));
    }
    let layer = LayerSpec { window: None, rotary_theta: 0.0, attention_norm: true };
    let activation = config.activation("hidden_act", Activation::GeluErf)?;
    let eps = config.positive_or("layer_norm_eps", 1e-12)?;
    Ok(EncoderSpec {
        vocabulary: config.vocabulary()?,
        hidden,
        heads,
        head_dim: config.head_dim("num_attention_heads", hidden, heads)?,
        intermediate: config.size(&["intermediate_size"], limits::WIDTH)?,
        layers: vec![layer; layers],
        max_tokens: positions - offset,
        position: Position::Learned { offset },
        token_types: config.count_or("type_vocab_size", 2, limits::VOCABULARY)? > 0,
        norm: NormSpec { eps, placement: NormPlacement::Post },
        feed_forward: FeedForward { gated: false, activation },
        biases: Biases { attention: true, feed_forward: true, norm: true },
    })
}

pub(super) const NAMES: TensorNames = TensorNames {
    word: "embeddings.word_embeddings",
    position: Some("embeddings.position_embeddings"),
    token_type: Some("embeddings.token_type_embeddings"),
    embedding_norm: "embeddings.LayerNorm",
    relative_bias: None,
    final_norm: None,
    layer: LayerNames {
        attention: AttentionNames::Split {
            query: "encoder.layer.{i}.attention.self.query",
            key: "encoder.layer.{i}.attention.self.key",
            value: "encoder.layer.{i}.attention.self.value",
        },
        attention_out: "encoder.layer.{i}.attention.output.dense",
        attention_norm: "encoder.layer.{i}.attention.output.LayerNorm",
        feed_forward: FeedForwardNames::Up { up: "encoder.layer.{i}.intermediate.dense" },
        down: "encoder.layer.{i}.output.dense",
        feed_forward_norm: "encoder.layer.{i}.output.LayerNorm",
    },
};
