//! MPNet (Song et al. 2020, arXiv:2004.09297).
//!
//! Differs from BERT by a bias on the attention scores, by bucketed distance and shared by all
//! layers, by positions counted as in RoBERTa and by having no token types.
//! Reference: `transformers` `modeling_mpnet.py`.

use super::{Architecture, bert};
use crate::config::Config;
use crate::error::ModelError;
use crate::names::{AttentionNames, FeedForwardNames, LayerNames, TensorNames};
use crate::spec::{EncoderSpec, Position};

/// Distance from which on all share the last bucket; fixed in the reference.
const MAX_DISTANCE: usize = 128;
/// More buckets than distances that are told apart would be absurd.
const BUCKETS_LIMIT: usize = 1 << 12;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "MPNet", model_types: &["mpnet"], parse, names: &[NAMES] };

fn parse(config: &Config) -> Result<EncoderSpec, ModelError> {
    // The padding index is a constant 1 in the reference, whatever the configuration says.
    let offset = 2;
    let buckets = config.count_or("relative_attention_num_buckets", 32, BUCKETS_LIMIT)?;
    if buckets < 4 || buckets % 2 != 0 {
        return Err(config.bad("relative_attention_num_buckets", "an even number from 4"));
    }
    let spec = bert::parse_like_bert(config, offset)?;
    Ok(EncoderSpec {
        position: Position::RelativeBuckets { offset, buckets, max_distance: MAX_DISTANCE },
        token_types: false,
        ..spec
    })
}

const NAMES: TensorNames = TensorNames {
    word: "embeddings.word_embeddings",
    position: Some("embeddings.position_embeddings"),
    token_type: None,
    embedding_norm: "embeddings.LayerNorm",
    relative_bias: Some("encoder.relative_attention_bias"),
    final_norm: None,
    layer: LayerNames {
        attention: AttentionNames::Split {
            query: "encoder.layer.{i}.attention.attn.q",
            key: "encoder.layer.{i}.attention.attn.k",
            value: "encoder.layer.{i}.attention.attn.v",
        },
        attention_out: "encoder.layer.{i}.attention.attn.o",
        attention_norm: "encoder.layer.{i}.attention.LayerNorm",
        feed_forward: FeedForwardNames::Up { up: "encoder.layer.{i}.intermediate.dense" },
        down: "encoder.layer.{i}.output.dense",
        feed_forward_norm: "encoder.layer.{i}.output.LayerNorm",
    },
};
