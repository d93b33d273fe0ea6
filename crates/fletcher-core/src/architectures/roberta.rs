//! RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-RoBERTa and CamemBERT.
//!
//! Differs from BERT in one number: positions are counted from `pad_token_id + 1`, so a table of
//! 514 rows serves 512 tokens. Reference: `transformers` `modeling_roberta.py`.

use super::{Architecture, bert};
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{EncoderSpec, limits};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "RoBERTa",
    model_types: &["roberta", "xlm-roberta", "camembert"],
    parse,
    names: &[bert::NAMES],
};

fn parse(config: &Config) -> Result<EncoderSpec, ModelError> {
    let padding = config.count_or("pad_token_id", 1, limits::VOCABULARY)?;
    bert::parse_like_bert(config, padding + 1)
}
