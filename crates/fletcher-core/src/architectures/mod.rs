//! The architectures: one file each, one line each in [`ARCHITECTURES`].
//!
//! A file turns a `config.json` into an [`EncoderSpec`] and says what the parameters are called;
//! there is no code of an architecture anywhere else.

mod bert;
mod distilbert;
mod electra;
mod modernbert;
mod mpnet;
mod nomic_bert;
mod roberta;

use crate::config::Config;
use crate::encoder::ParsedModel;
use crate::error::ModelError;
use crate::names::TensorNames;
use crate::spec::EncoderSpec;

/// Every architecture of this build.
pub const ARCHITECTURES: &[&Architecture] = &[
    &bert::ARCHITECTURE,
    &roberta::ARCHITECTURE,
    &distilbert::ARCHITECTURE,
    &electra::ARCHITECTURE,
    &mpnet::ARCHITECTURE,
    &nomic_bert::ARCHITECTURE,
    &modernbert::ARCHITECTURE,
];

/// How to read one family of checkpoints.
#[derive(Debug)]
pub struct Architecture {
    /// For messages and `fletcher info`.
    pub name: &'static str,
    /// Values of `config.json`'s `model_type` that it answers to.
    pub model_types: &'static [&'static str],
    /// `config.json` to spec.
    pub parse: fn(&Config) -> Result<EncoderSpec, ModelError>,
    /// The namings that its checkpoints are saved under, the current one first.
    pub names: &'static [TensorNames],
}

/// Finds the architecture that a `config.json` names and lets it parse the file.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], or whatever is wrong with the file.
pub fn parse(config: &Config) -> Result<ParsedModel, ModelError> {
    let model_type = config.text("model_type")?.ok_or_else(|| config.missing("model_type"))?;
    let found = ARCHITECTURES.iter().find(|a| a.model_types.contains(&model_type));
    let Some(&architecture) = found else {
        let mut known: Vec<_> = ARCHITECTURES.iter().flat_map(|a| a.model_types).copied().collect();
        known.sort_unstable();
        return Err(ModelError::UnknownArchitecture {
            file: config.file().to_owned(),
            model_type: model_type.to_owned(),
            known: known.join(", "),
        });
    };
    Ok(ParsedModel { architecture, spec: (architecture.parse)(config)? })
}
