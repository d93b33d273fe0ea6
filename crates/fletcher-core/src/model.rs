//! A model folder, read and checked: everything that is known before a device is chosen.
//!
//! Facts come from the folder alone. The core opens no files; it asks a [`ModelFiles`] for bytes,
//! which may be a directory, a hub snapshot or the binary itself.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::architectures;
use crate::config::Config;
use crate::encoder::ParsedModel;
use crate::error::ModelError;
use crate::fingerprint::{FingerprintParts, fingerprint};
use crate::head::{self, Head, HeadOptions};
use crate::spec::{EncoderSpec, limits};
use crate::text::{TextEncoder, TextFiles};
use crate::weights::{Checkpoint, WeightFile};

/// Where a model's files come from.
pub trait ModelFiles: Send + Sync {
    /// How the user called the model, for messages and metadata.
    fn name(&self) -> &str;

    /// A small file's content; `None` when there is no such file.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    fn read(&self, path: &str) -> Result<Option<Bytes>, ModelError>;

    /// The safetensors files of a module's folder (`""` is the model's own), all shards.
    ///
    /// # Errors
    /// When there are none, or one is missing.
    fn weights(&self, folder: &str) -> Result<Vec<WeightFile>, ModelError>;

    /// Called when the model is on its device: most of what was read will not be read again, so
    /// that it may leave memory if it can come back.
    fn release(&self) {}
}

/// A model that has been read, and not yet given to a device.
#[derive(Debug)]
pub struct Model {
    pub(crate) parsed: ParsedModel,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) text: TextEncoder,
    pub(crate) head: Head,
    name: String,
    max_tokens: usize,
    prompts: Prompts,
    similarity: Option<String>,
    tokenizer_bytes: Bytes,
    fingerprint: OnceLock<String>,
}

/// Texts that a model wants before the user's text, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompts {
    /// All of them.
    pub by_name: BTreeMap<String, String>,
    /// The one that applies when the user names none.
    pub default_name: Option<String>,
}

impl Prompts {
    /// The text of the default prompt; empty when there is none.
    pub fn default_text(&self) -> &str {
        let name = self.default_name.as_ref();
        name.and_then(|name| self.by_name.get(name)).map_or("", String::as_str)
    }
}

impl Model {
    /// Reads and checks a model folder.
    ///
    /// # Errors
    /// Whatever is missing or wrong in the folder; see [`ModelError`].
    pub fn open(files: &dyn ModelFiles, options: HeadOptions) -> Result<Self, ModelError> {
        let modules = head::modules(files)?;
        let folder = modules.first().map_or("", |module| module.path.as_str()).to_owned();
        let inside = |file: &str| match folder.is_empty() {
            true => file.to_owned(),
            false => format!("{folder}/{file}"),
        };
        let config_file = inside("config.json");
        let bytes = files.read(&config_file)?;
        let bytes = bytes.ok_or(ModelError::MissingFile { file: config_file.clone() })?;
        let parsed = architectures::parse(&Config::parse(&config_file, &bytes)?)?;
        let checkpoint = Arc::new(Checkpoint::open(&files.weights(&folder)?)?);

        let tokenizer_config = optional(files, &inside("tokenizer_config.json"))?;
        let sentence_config = optional(files, &inside("sentence_bert_config.json"))?;
        let max_tokens = max_tokens(&parsed.spec, &tokenizer_config, &sentence_config)?;
        let text_files = TextFiles {
            tokenizer_json: files.read(&inside("tokenizer.json"))?,
            vocab_txt: files.read(&inside("vocab.txt"))?,
            tokenizer_config: files.read(&inside("tokenizer_config.json"))?,
            lowercase: match &sentence_config {
                Some(config) => config.flag_or("do_lower_case", false)?,
                None => false,
            },
        };
        let tokenizer_bytes = match (&text_files.tokenizer_json, &text_files.vocab_txt) {
            (Some(bytes), _) | (None, Some(bytes)) => bytes.clone(),
            (None, None) => {
                return Err(ModelError::MissingFile { file: inside("tokenizer.json") });
            }
        };
        let text = TextEncoder::new(&text_files, max_tokens)?;
        text.check_vocabulary(parsed.spec.vocabulary)?;
        let head = Head::open(files, parsed.spec.hidden, options)?;
        let (prompts, similarity) = prompts(files)?;
        Ok(Self {
            name: files.name().to_owned(),
            parsed,
            checkpoint,
            text,
            head,
            max_tokens,
            prompts,
            similarity,
            tokenizer_bytes,
            fingerprint: OnceLock::new(),
        })
    }

    /// How the user called the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The architecture's name.
    pub fn architecture(&self) -> &'static str {
        self.parsed.architecture.name
    }

    /// The encoder's shape.
    pub fn spec(&self) -> &EncoderSpec {
        &self.parsed.spec
    }

    /// Pooling and what stands behind it.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The tokenizer.
    pub fn text(&self) -> &TextEncoder {
        &self.text
    }

    /// Number of parameters in the weight files.
    pub fn parameters(&self) -> usize {
        self.checkpoint.parameters()
    }

    /// Floating-point operations (a multiply-add is two) that the encoder needs for the vector of
    /// one sequence of `tokens`.
    pub fn flops(&self, tokens: usize) -> f64 {
        let ops = self.head.pool_ops(0);
        match ops[..] {
            [op] if op.only(tokens).is_some() => self.spec().flops_of_one(tokens),
            _ => self.spec().flops(tokens),
        }
    }

    /// Longest text in tokens, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The model's prompts.
    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }

    /// The similarity that the model was trained for (`cosine`, `dot` …), if it says so.
    pub fn similarity(&self) -> Option<&str> {
        self.similarity.as_deref()
    }

    /// 16 hexadecimal digits over everything that shapes the vectors; computed when first asked
    /// for, because it reads every weight.
    pub fn fingerprint(&self) -> &str {
        self.fingerprint.get_or_init(|| {
            fingerprint(&FingerprintParts {
                weights: self.checkpoint.digest(),
                tokenizer: &self.tokenizer_bytes,
                spec: format!("{:?}", self.parsed.spec),
                head: self.head.describe(),
                max_tokens: self.max_tokens,
                prompt: self.prompts.default_text(),
            })
        })
    }
}

fn optional(files: &dyn ModelFiles, file: &str) -> Result<Option<Config>, ModelError> {
    files.read(file)?.map(|bytes| Config::parse(file, &bytes)).transpose()
}

/// The least of what the positions allow, what `sentence_bert_config.json` says and, if that says
/// nothing, what the tokenizer was trained with. A length fixed inside `tokenizer.json` does not
/// count: it is what some training run used, not what the model can do.
fn max_tokens(
    spec: &EncoderSpec,
    tokenizer: &Option<Config>,
    sentence: &Option<Config>,
) -> Result<usize, ModelError> {
    if let Some(config) = sentence
        && config.get("max_seq_length").is_some()
    {
        return Ok(config.size(&["max_seq_length"], limits::POSITIONS)?.min(spec.max_tokens));
    }
    // Written as 1e30 when the tokenizer does not know.
    let trained = tokenizer.as_ref().and_then(|config| config.get("model_max_length"));
    match trained.and_then(serde_json::Value::as_u64) {
        Some(length) if length > 0 => Ok(spec.max_tokens.min(length as usize)),
        _ => Ok(spec.max_tokens),
    }
}

fn prompts(files: &dyn ModelFiles) -> Result<(Prompts, Option<String>), ModelError> {
    let Some(config) = optional(files, "config_sentence_transformers.json")? else {
        return Ok((Prompts::default(), None));
    };
    let mut prompts = Prompts::default();
    if let Some(value) = config.get("prompts") {
        let bad = || config.bad("prompts", "an object of strings");
        for (name, text) in value.as_object().ok_or_else(bad)? {
            prompts.by_name.insert(name.clone(), text.as_str().ok_or_else(bad)?.to_owned());
        }
    }
    prompts.default_name = config.text("default_prompt_name")?.map(str::to_owned);
    if let Some(name) = &prompts.default_name
        && !prompts.by_name.contains_key(name)
    {
        return Err(config.bad("default_prompt_name", "a name that `prompts` defines"));
    }
    Ok((prompts, config.text("similarity_fn_name")?.map(str::to_owned)))
}
