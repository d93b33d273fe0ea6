//! ELECTRA (Clark et al. 2020, arXiv:2003.10555), the discriminator.
//!
//! BERT's encoder under another name. The small checkpoints' embeddings are narrower than their
//! hidden states, with a projection between that no other architecture has; those are refused.
//! Reference: `transformers` `modeling_electra.py`.

use super::{Architecture, bert};
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{EncoderSpec, limits};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "ELECTRA", model_types: &["electra"], parse, names: &[bert::NAMES] };

fn parse(config: &Config) -> Result<EncoderSpec, ModelError> {
    let spec = bert::parse_like_bert(config, 0)?;
    // 128 is the reference's default for an absent key.
    match config.count_or("embedding_size", 128, limits::WIDTH)? == spec.hidden {
        true => Ok(spec),
        false => Err(config.bad("embedding_size", format!("the hidden size {}", spec.hidden))),
    }
}
