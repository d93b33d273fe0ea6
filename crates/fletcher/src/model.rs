//! Opening the model that the user named: from the binary, a folder, or the hub.

use bytes::Bytes;
use fletcher_backend::{DeviceChoice, registry};
use fletcher_core::ModelError;
use fletcher_core::embedder::Embedder;
use fletcher_core::model::{Model, ModelFiles};
use fletcher_core::weights::WeightFile;

use crate::config::ModelConfig;
use crate::failure::Failure;
use crate::progress::DownloadBar;

/// The name of the model inside the binary.
pub(crate) const DEFAULT: &str = "default";

/// Reads the model's files; no device is involved yet.
pub(crate) fn open(config: &ModelConfig) -> Result<Model, Failure> {
    Ok(open_files(config)?.0)
}

/// The model and where it was read from.
fn open_files(config: &ModelConfig) -> Result<(Model, Box<dyn ModelFiles>), Failure> {
    if config.model == DEFAULT {
        return Ok((Model::open(&Embedded, config.head)?, Box::new(Embedded)));
    }
    let folder = fletcher_hub::resolve(&config.model, &config.hub, &DownloadBar::new())?;
    let model = Model::open(&folder, config.head).map_err(|error| match Failure::from(error) {
        Failure::Input { message, hint } => {
            Failure::Input { message: format!("{}: {message}", config.model), hint }
        }
        other => other,
    })?;
    Ok((model, Box::new(folder)))
}

/// Opens the model and loads it on the device; says which, if the user left the choice.
#[expect(clippy::print_stderr, reason = "a choice that was made for the user is told")]
fn load_files(config: &ModelConfig) -> Result<(Embedder, Box<dyn ModelFiles>), Failure> {
    let (model, files) = open_files(config)?;
    if config.device == DeviceChoice::Auto {
        let chosen = registry::resolve(config.device);
        if chosen != DeviceChoice::Cpu {
            eprintln!("fletcher: computing on {chosen} (--device auto)");
        }
    }
    Ok((registry::open(config.device, config.precision, model, config.embedder)?, files))
}

/// The model on its device.
pub(crate) fn load(config: &ModelConfig) -> Result<Embedder, Failure> {
    let (embedder, files) = load_files(config)?;
    files.release();
    Ok(embedder)
}

/// The model on its device, in a process that waits then: what only loading needed, code too, has
/// left memory.
pub(crate) fn load_to_wait(config: &ModelConfig) -> Result<Embedder, Failure> {
    let embedder = load(config)?;
    fletcher_hub::release_unused();
    Ok(embedder)
}

/// The model on its device, and its fingerprint taken, which reads all of the weights: in a process
/// that stays, these too should leave memory again.
pub(crate) fn load_with_fingerprint(config: &ModelConfig) -> Result<Embedder, Failure> {
    let (embedder, files) = load_files(config)?;
    embedder.model().fingerprint();
    files.release();
    Ok(embedder)
}

/// Says which devices failed while others went on; nothing was lost by it but speed.
#[expect(clippy::print_stderr, reason = "a failure that was worked around is told")]
pub(crate) fn tell_lost_devices(embedder: &Embedder) {
    for device in embedder.devices() {
        if let Some(why) = device.lost {
            eprintln!("fletcher: {} failed and the others did its work: {why}", device.name);
        }
    }
}

/// The model inside the binary.
struct Embedded;

macro_rules! embedded_file {
    ($path:literal) => {
        ($path, include_bytes!(concat!("../../../models/fletcher-tiny/", $path)) as &[u8])
    };
}

/// `fletcher-tiny`, whole; its README says what it is good for. The weights stay where the linker
/// put them: tensors are views of these bytes, and pages that no text needs are never read.
static EMBEDDED_FILES: &[(&str, &[u8])] = &[
    embedded_file!("1_Pooling/config.json"),
    embedded_file!("config.json"),
    embedded_file!("config_sentence_transformers.json"),
    embedded_file!("modules.json"),
    embedded_file!("sentence_bert_config.json"),
    embedded_file!("tokenizer.json"),
    embedded_file!("tokenizer_config.json"),
    embedded_file!("model.safetensors"),
];

impl ModelFiles for Embedded {
    fn name(&self) -> &str {
        DEFAULT
    }

    fn read(&self, path: &str) -> Result<Option<Bytes>, ModelError> {
        let file = EMBEDDED_FILES.iter().find(|(name, _)| *name == path);
        Ok(file.map(|(_, bytes)| Bytes::from_static(bytes)))
    }

    fn weights(&self, folder: &str) -> Result<Vec<WeightFile>, ModelError> {
        let name = match folder {
            "" => "model.safetensors".to_owned(),
            folder => format!("{folder}/model.safetensors"),
        };
        match self.read(&name)? {
            Some(bytes) => Ok(vec![WeightFile { name, bytes }]),
            None => Err(ModelError::MissingFile { file: name }),
        }
    }

    fn release(&self) {
        for (_, bytes) in EMBEDDED_FILES {
            // SAFETY: constants of the program are in a read-only mapping of the program's file.
            unsafe { fletcher_hub::release_pages(bytes) };
        }
    }
}
