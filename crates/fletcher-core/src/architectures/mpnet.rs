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
/// Beyond it the exact buckets of one direction, a quarter of all, would reach past
/// [`MAX_DISTANCE`], and none would be left for the logarithm.
const BUCKETS_LIMIT: usize = 4 * MAX_DISTANCE - 2;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// 512 buckets would divide by the logarithm of 1.
    #[test]
    fn buckets_leave_room_for_the_logarithm() {
        let with = |buckets: usize| {
            let json = format!(
                r#"{{"hidden_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1,
                "intermediate_size": 2, "max_position_embeddings": 600, "vocab_size": 3,
                "relative_attention_num_buckets": {buckets}}}"#
            );
            Config::parse("config.json", json.as_bytes()).and_then(|config| parse(&config))
        };
        for (buckets, accepted) in [(2, false), (4, true), (33, false), (510, true), (512, false)] {
            assert_eq!(with(buckets).is_ok(), accepted, "{buckets}");
        }
    }
}
