//! What a model folder says about its tokenizer, brought into the one form that the `tokenizers`
//! crate reads.
//!
//! A checkpoint's tokenizer is `tokenizer.json` *plus* what Python's loaders take from the files
//! beside it; ids agree with Python only if both are honoured.
//!
//! The vocabulary stays the text it is in the file. Unigram scores decide between segmentations by
//! their last bit, and reading and printing a number is not guaranteed to keep that bit.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::punctuation::StandIns;
use super::screen::{ID_LIMIT, PIECE_LIMIT, find_fault};
use super::vocab_txt::{self, VOCAB_TXT, bert_settings};
use super::vocabulary::{ListedPieces, PieceLimits, Vocabulary};
use super::wordpiece::WordPiece;
use super::{TextError, TextFiles};

const TOKENIZER_JSON: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Keys of `tokenizer_config.json` whose value is a special token.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokenizer classes that rebuild a `BertNormalizer` from `tokenizer_config.json` when Python
/// loads them, whatever `tokenizer.json` says.
const BERT_CLASSES: [&str; 8] = [
    "BertTokenizer",
    "BertTokenizerFast",
    "DistilBertTokenizer",
    "DistilBertTokenizerFast",
    "MPNetTokenizer",
    "MPNetTokenizerFast",
    "ElectraTokenizer",
    "ElectraTokenizerFast",
];

/// Normalisers that look no further than a combining sequence.
const LOCAL_NORMALIZERS: [&str; 9] = [
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "StripAccents",
];

/// A tokenizer in the form that is run, with what is known of it besides.
#[derive(Debug)]
pub(super) struct Definition {
    /// The file it came from.
    pub(super) file: &'static str,
    /// What is run.
    pub(super) form: Form,
    /// Pieces and added tokens.
    pub(super) size: usize,
    /// The largest id that can come out.
    pub(super) largest_id: u32,
    /// Ids of the special tokens, ascending.
    pub(super) special_ids: Vec<u32>,
    /// Where overlong texts are cut.
    pub(super) cut: Cut,
}

/// What runs a tokenizer.
#[derive(Debug)]
pub(super) enum Form {
    /// BERT's, by the encoder of this crate.
    WordPiece(Box<WordPiece>),
    /// Any other, by the `tokenizers` crate: the whole file in the crate's current format, without
    /// truncation and padding.
    Json {
        /// The file.
        json: String,
        /// What to replace before the crate sees a text, if its pre-tokeniser is BERT's.
        stand_ins: Option<StandIns>,
    },
}

/// Which part of an overlong text is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The beginning.
    Beginning,
    /// The end.
    End,
    /// The end, and it does not matter for the tokens before a space between two words what comes
    /// after it.
    EndAtSpaces,
}

impl Definition {
    /// Reads `tokenizer.json`, or else `vocab.txt`, with `tokenizer_config.json` on top.
    pub(super) fn read(files: &TextFiles) -> Result<Self, TextError> {
        Self::read_as(files, WordPiece::recognise)
    }

    /// As [`Self::read`], for the `tokenizers` crate whatever the tokenizer is.
    pub(super) fn read_json(files: &TextFiles) -> Result<Self, TextError> {
        Self::read_as(files, |_, vocabulary| Err(vocabulary))
    }

    fn read_as(files: &TextFiles, recognise: Recognise) -> Result<Self, TextError> {
        let config = match &files.tokenizer_config {
            Some(bytes) => parse::<Map<String, Value>>(TOKENIZER_CONFIG, bytes)?,
            None => Map::new(),
        };
        let mut source = match (&files.tokenizer_json, &files.vocab_txt) {
            (Some(bytes), _) => Source::from_json(bytes)?,
            (None, Some(bytes)) => Source::from_vocab_txt(bytes, &config)?,
            (None, None) => return Err(TextError::MissingFile { file: TOKENIZER_JSON }),
        };
        // What some training run wanted; the model's own limits are the caller's to state.
        source.root.remove("truncation");
        source.root.remove("padding");
        source.apply_bert_settings(&config);
        source.add_role_tokens(&config)?;
        if files.lowercase {
            source.lowercase_first();
        }
        let cut = match config.get("truncation_side").and_then(Value::as_str) {
            Some("left") => Cut::Beginning,
            _ if source.is_local() => Cut::EndAtSpaces,
            _ => Cut::End,
        };
        Ok(Self {
            file: source.file,
            size: source.ids.len(),
            largest_id: source.ids.iter().map(|(_, id)| id).max().unwrap_or(0),
            special_ids: source.special_ids(),
            cut,
            form: source.form(recognise)?,
        })
    }
}

/// Takes a tokenizer over, or gives its vocabulary back.
type Recognise = fn(&Map<String, Value>, Vocabulary) -> Result<WordPiece, Vocabulary>;

/// A tokenizer file taken apart: the vocabulary as text, the rest as values.
struct Source<'a> {
    file: &'static str,
    root: Map<String, Value>,
    /// The model's vocabulary, verbatim. It is most of the file, so it is not copied.
    vocab: Cow<'a, RawValue>,
    /// Pieces and added tokens.
    ids: Vocabulary,
    /// How many of them are pieces.
    pieces: usize,
}

/// A component of the pipeline.
struct Step<'a> {
    kind: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Step<'a> {
    fn new(object: &'a Map<String, Value>) -> Self {
        Self { kind: object.get("type").and_then(Value::as_str).unwrap_or_default(), object }
    }
}

/// An object whose values are still text.
type Verbatim = BTreeMap<String, Box<RawValue>>;

/// The same, as part of the file.
type Borrowed<'a> = BTreeMap<String, &'a RawValue>;

/// `tokenizer.json`, its model taken apart on the way: that is nearly all of the file, which would
/// be read once more to find where it ends.
struct Root<'a> {
    model: Option<Borrowed<'a>>,
    rest: Borrowed<'a>,
}

impl<'de> Deserialize<'de> for Root<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RootReader)
    }
}

struct RootReader;

impl<'de> Visitor<'de> for RootReader {
    type Value = Root<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer, an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Root<'de>, A::Error> {
        let mut root = Root { model: None, rest: Borrowed::new() };
        while let Some(key) = map.next_key::<String>()? {
            match &key[..] {
                "model" => root.model = Some(map.next_value()?),
                _ => drop(root.rest.insert(key, map.next_value()?)),
            }
        }
        Ok(root)
    }
}

impl<'a> Source<'a> {
    fn from_json(bytes: &'a [u8]) -> Result<Self, TextError> {
        let file = TOKENIZER_JSON;
        let Root { model, rest } = parse::<Root<'a>>(file, bytes)?;
        let missing = |what| move || malformed(file, format!("there is no `{what}`"));
        let mut model = model.ok_or_else(missing("model"))?;
        let vocab = model.remove("vocab").ok_or_else(missing("model.vocab"))?;
        let vocab = Cow::Borrowed(vocab);
        let mut root = values(file, rest)?;
        root.insert("model".to_owned(), Value::Object(values(file, model)?));
        Self { file, root, vocab, ids: Vocabulary::default(), pieces: 0 }.with_ids()
    }

    fn from_vocab_txt(bytes: &[u8], config: &Map<String, Value>) -> Result<Self, TextError> {
        let pieces = vocab_txt::pieces(bytes)?;
        let root = vocab_txt::pipeline(&pieces, config)?;
        let vocab = Cow::Owned(print(VOCAB_TXT, &pieces)?);
        Self { file: VOCAB_TXT, root, vocab, ids: Vocabulary::default(), pieces: 0 }.with_ids()
    }

    /// Numbers the pieces and the added tokens as the reader will, and refuses absurd ones.
    fn with_ids(mut self) -> Result<Self, TextError> {
        let limits = PieceLimits { id: ID_LIMIT, bytes: PIECE_LIMIT };
        let absurd = |piece: &str, id: u64| TextError::AbsurdToken {
            file: self.file,
            token: piece.chars().take(40).collect(),
            id,
        };
        let listed = ListedPieces::read(self.vocab.get().as_bytes(), limits)
            .map_err(|error| malformed(self.file, error))?;
        if let Some((id, piece)) = listed.absurd {
            return Err(absurd(&piece, id));
        }
        let mut added: Vec<(u64, String)> = Vec::new();
        for token in self.added_tokens() {
            let id = token.get("id").and_then(Value::as_u64).unwrap_or(0);
            added.extend(token_content(token).map(|content| (id, content.to_owned())));
        }
        // The reader gives added tokens their pieces' ids, else the next free one, in this order.
        added.sort_by_key(|&(id, _)| id);
        let mut ids = listed.vocabulary;
        self.pieces = ids.len();
        let mut next = self.pieces as u64;
        for (_, token) in added {
            if limits.excludes(&token, next) {
                return Err(absurd(&token, next));
            }
            if ids.get(&token).is_none() {
                ids.insert(&token, next as u32);
                next += 1;
            }
        }
        self.ids = ids;
        Ok(self)
    }

    fn added_tokens(&self) -> &[Value] {
        self.root.get("added_tokens").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Lets `tokenizer_config.json` have the last word on BERT's normaliser, as it has in Python,
    /// where even a key that is not there means its default. Without the file the class is unknown,
    /// and `tokenizer.json` stands.
    fn apply_bert_settings(&mut self, config: &Map<String, Value>) {
        let class =
            config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("BertTokenizer");
        if config.is_empty() || !BERT_CLASSES.contains(&class) {
            return;
        }
        let normalizer = self.root.get_mut("normalizer").and_then(Value::as_object_mut);
        let is_bert = |n: &&mut Map<String, Value>| {
            n.get("type").and_then(Value::as_str) == Some("BertNormalizer")
        };
        if let Some(normalizer) = normalizer.filter(is_bert) {
            normalizer.extend(bert_settings(config));
        }
    }

    /// Python finds a special token in a text also if only `tokenizer_config.json` names it.
    fn add_role_tokens(&mut self, config: &Map<String, Value>) -> Result<(), TextError> {
        for role in ROLES {
            let Some((token, content)) =
                config.get(role).and_then(|t| Some((t, token_content(t)?)))
            else {
                continue;
            };
            let known = self.added_tokens().iter().any(|t| token_content(t) == Some(content));
            let Some(id) = self.ids.get(content).filter(|_| !known) else {
                continue;
            };
            let added = self.root.entry("added_tokens").or_insert_with(|| json!([]));
            let not_a_list = || malformed(self.file, "`added_tokens` is not a list");
            added.as_array_mut().ok_or_else(not_a_list)?.push(special_token(token, id.into()));
        }
        Ok(())
    }

    /// Lower-cases before all else unless some step of the chain does so already.
    fn lowercase_first(&mut self) {
        let mut steps = match self.root.remove("normalizer") {
            None | Some(Value::Null) => Vec::new(),
            Some(mut chain) => match chain.get_mut("normalizers").map(Value::take) {
                Some(Value::Array(steps)) => steps,
                _ => vec![chain],
            },
        };
        let lowercase = json!({"type": "Lowercase"});
        if !steps.iter().any(|step| step.get("type") == lowercase.get("type")) {
            steps.insert(0, lowercase);
        }
        let chain = json!({"type": "Sequence", "normalizers": steps});
        self.root.insert("normalizer".to_owned(), chain);
    }

    fn special_ids(&self) -> Vec<u32> {
        let special = |token: &&Value| token.get("special").and_then(Value::as_bool) == Some(true);
        let contents = self.added_tokens().iter().filter(special).filter_map(token_content);
        let mut ids: Vec<u32> = contents.filter_map(|token| self.ids.get(token)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// What runs this tokenizer.
    fn form(mut self, recognise: Recognise) -> Result<Form, TextError> {
        // An added token that is no piece would be found inside of words.
        if self.ids.len() == self.pieces {
            match recognise(&self.root, std::mem::take(&mut self.ids)) {
                Ok(wordpiece) => return Ok(Form::WordPiece(Box::new(wordpiece))),
                Err(vocabulary) => self.ids = vocabulary,
            }
        }
        let stand_ins = self.stand_ins();
        Ok(Form::Json { json: self.canonical()?, stand_ins })
    }

    fn stand_ins(&self) -> Option<StandIns> {
        let is_bert = |step: &Step<'_>| step.kind == "BertPreTokenizer";
        let found = self.steps("pre_tokenizer", "pretokenizers").iter().any(is_bert);
        found.then(|| StandIns::new(self.ids.iter().map(|(piece, _)| piece)))?
    }

    /// Whether every component treats the words of a text independently of each other.
    fn is_local(&self) -> bool {
        let normalizers = self.steps("normalizer", "normalizers");
        let splitters = self.steps("pre_tokenizer", "pretokenizers");
        let splits = |step: &Step<'_>| match step.kind {
            "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit" => true,
            "Metaspace" => flag(step.object, "split") != Some(false),
            "ByteLevel" => flag(step.object, "use_regex") != Some(false),
            _ => false,
        };
        // A token that goes on after a space might be cut in two there.
        let goes_on = |token: &str| token.trim_start().contains(char::is_whitespace);
        normalizers.iter().all(|step| LOCAL_NORMALIZERS.contains(&step.kind))
            && !splitters.is_empty()
            && splitters.iter().all(splits)
            && !self.added_tokens().iter().filter_map(token_content).any(goes_on)
    }

    /// The components in a slot of the file: none, one, or those of a `Sequence`.
    fn steps(&self, slot: &str, members: &str) -> Vec<Step<'_>> {
        let Some(Value::Object(slot)) = self.root.get(slot) else {
            return Vec::new();
        };
        let one = || vec![Step::new(slot)];
        let members = slot.get(members).and_then(Value::as_array);
        let members = members.map(|steps| steps.iter().filter_map(Value::as_object));
        members.map_or_else(one, |steps| steps.map(Step::new).collect())
    }

    /// The file in the crate's current format, the vocabulary put back as it was.
    fn canonical(mut self) -> Result<String, TextError> {
        let shape = if self.vocab.get().starts_with('[') { json!([]) } else { json!({}) };
        if let Some(model) = self.root.get_mut("model").and_then(Value::as_object_mut) {
            model.insert("vocab".to_owned(), shape);
        }
        let mut root = Value::Object(self.root);
        tokenizers::canonicalize_value(&mut root).map_err(|error| TextError::Unsupported {
            file: self.file,
            message: error.to_string(),
        })?;
        if let Some(fault) = root.as_object().and_then(find_fault) {
            return Err(malformed(self.file, fault));
        }
        let model = root.get_mut("model").map(Value::take).unwrap_or_default();
        let mut model = verbatim(self.file, model)?;
        model.insert("vocab".to_owned(), self.vocab.into_owned());
        let mut root = verbatim(self.file, root)?;
        root.insert("model".to_owned(), print(self.file, &model)?);
        Ok(print(self.file, &root)?.get().to_owned())
    }
}

/// The values of an object.
fn values(file: &'static str, object: Borrowed<'_>) -> Result<Map<String, Value>, TextError> {
    let fields = object.into_iter();
    fields.map(|(key, text)| Ok((key, parse(file, text.get().as_bytes())?))).collect()
}

/// An object with the text of its values.
fn verbatim(file: &'static str, object: Value) -> Result<Verbatim, TextError> {
    let Value::Object(fields) = object else {
        return Ok(Verbatim::new());
    };
    fields.into_iter().map(|(key, value)| Ok((key, print(file, &value)?))).collect()
}

fn print<T: Serialize>(file: &'static str, value: &T) -> Result<Box<RawValue>, TextError> {
    serde_json::value::to_raw_value(value).map_err(|error| malformed(file, error))
}

/// The text of a token, which is written as a string or as an object with flags.
pub(super) fn token_content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// An added token from its text, or from an object whose flags it keeps.
pub(super) fn special_token(token: &Value, id: Value) -> Value {
    let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
    json!({
        "id": id,
        "content": token_content(token),
        "single_word": flag("single_word"),
        "lstrip": flag("lstrip"),
        "rstrip": flag("rstrip"),
        "normalized": flag("normalized"),
        "special": true,
    })
}

pub(super) fn flag(config: &Map<String, Value>, key: &str) -> Option<bool> {
    config.get(key).and_then(Value::as_bool)
}

fn parse<'a, T: Deserialize<'a>>(file: &'static str, bytes: &'a [u8]) -> Result<T, TextError> {
    serde_json::from_slice(bytes).map_err(|error| malformed(file, error))
}

pub(super) fn malformed(file: &'static str, message: impl ToString) -> TextError {
    TextError::Malformed { file, message: message.to_string() }
}
