//! Text to token ids, as Python's tokenizers make them.
//!
//! BERT's tokenizer, which most embedding models have, is run by an encoder of this crate
//! (`wordpiece.rs`); all others by the `tokenizers` crate, five times faster in its 1.0 candidates
//! than in 0.2x and with the same ids. This module decides what Python's loaders decide around
//! them. The model's maximum length
//! rules, never a truncation or padding that some training run left inside `tokenizer.json` (the
//! published MiniLM folders pad every text to 128 tokens there). Truncation keeps the special
//! tokens; a special token spelled out in a text gets its own id, as in Python; a prompt is a
//! plain prefix of the text.
//!
//! Ids are Python's (`tokenizers` 0.23, `transformers` 5) on every text that was tried, with one
//! exception: under NFC and its kin, 154 combining marks that Unicode 9 did not have are sorted
//! among their neighbours by today's table, where Python leaves them in place. `tools/golden/`
//! says how that was compared.
//!
//! # Invariants
//! - `encode` takes `&self` and gives the same ids on any thread, in any order.
//! - No id is above [`TextEncoder::largest_id`], so [`TextEncoder::check_vocabulary`] once at load
//!   is enough for an embedding table.

mod definition;
mod punctuation;
mod screen;
mod vocab_txt;
mod vocabulary;
mod wordpiece;
mod words;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

use self::definition::{Cut, Definition, Form};
use self::punctuation::StandIns;
use self::wordpiece::WordPiece;

/// A first guess of how much text makes a token. English has four bytes to a token; a generous
/// guess is cheap, one that falls short tokenises the text again.
const BYTES_PER_TOKEN: usize = 16;

/// What to do with a text that has more tokens than the model takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overlong {
    /// Cut it, at the end or at the beginning as the model folder says.
    #[default]
    Truncate,
    /// Cut it at the beginning, whatever the model folder says.
    TruncateBeginning,
    /// Refuse it.
    Error,
}

/// The files of a model folder that a tokenizer is made of.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// `tokenizer.json`.
    pub tokenizer_json: Option<Bytes>,
    /// `vocab.txt`, BERT's list of pieces; used when there is no `tokenizer.json`.
    pub vocab_txt: Option<Bytes>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Bytes>,
    /// `do_lower_case` of `sentence_bert_config.json`: lower-case before anything else.
    pub lowercase: bool,
}

/// The tokens of one text, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// Ids in the order the encoder sees them.
    pub ids: Vec<u32>,
    /// Whether tokens were cut off.
    pub truncated: bool,
    /// Tokens before cutting, special tokens included. Of a text that was cut at its end this is a
    /// lower bound: what is certainly cut off is not tokenised.
    pub total: usize,
}

/// A token as those see it who look at tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextToken {
    /// Its id.
    pub id: u32,
    /// Whether it was put around the text instead of being found in it.
    pub added: bool,
    /// The bytes of the text that it stands for. Only the encoders of this crate know them.
    pub bytes: Option<Range<usize>>,
}

/// Why a tokenizer cannot be used, or a text has no ids.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The folder has no tokenizer.
    #[error("{file}: no such file in the model folder")]
    MissingFile {
        /// The file that is looked for first.
        file: &'static str,
    },
    /// A tokenizer file is not what its name says.
    #[error("{file}: malformed: {message}")]
    Malformed {
        /// The file.
        file: &'static str,
        /// What is wrong, with line and column where known.
        message: String,
    },
    /// The tokenizer is well-formed, but made of parts that cannot be run.
    #[error("{file}: cannot be run: {message}")]
    Unsupported {
        /// The file.
        file: &'static str,
        /// Which part, in the words of the `tokenizers` crate.
        message: String,
    },
    /// A special token that every text needs is not in the vocabulary.
    #[error("{file}: the special token `{token}` is not in the vocabulary")]
    MissingSpecialToken {
        /// The file.
        file: &'static str,
        /// The token.
        token: String,
    },
    /// A piece is too long, or its id too large, for any real vocabulary.
    #[error("{file}: token `{token}` with id {id} is beyond what a vocabulary may hold")]
    AbsurdToken {
        /// The file.
        file: &'static str,
        /// The first 40 characters of the piece.
        token: String,
        /// Its id.
        id: u64,
    },
    /// The tokenizer can give ids that the embedding table does not have.
    #[error("the tokenizer gives ids up to {largest_id}, but the model embeds only {rows} tokens")]
    VocabularyTooLarge {
        /// The largest id the tokenizer gives.
        largest_id: u32,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// The special tokens alone fill the model.
    #[error("a maximum of {limit} tokens leaves no room beside {special} special tokens")]
    NoRoom {
        /// The model's maximum.
        limit: usize,
        /// Special tokens around every text.
        special: usize,
    },
    /// A text is longer than the model takes, and [`Overlong::Error`] was asked for.
    #[error("the text has {tokens} tokens, but the model takes at most {limit}")]
    Overlong {
        /// Tokens of the text, special tokens included.
        tokens: usize,
        /// The model's maximum.
        limit: usize,
    },
    /// A caller's own token id is not in the vocabulary.
    #[error("token id {id} is not below the vocabulary's {vocabulary}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// The tokenizer has no token for some part of this text, nor one for unknown parts.
    #[error("the text cannot be tokenised: {message}")]
    Encode {
        /// In the words of the `tokenizers` crate.
        message: String,
    },
}

/// A tokenizer with the length that its model takes. Cheap to share between threads.
pub struct TextEncoder {
    runner: Runner,
    /// Special tokens before and after every text.
    before: Vec<u32>,
    after: Vec<u32>,
    size: usize,
    largest_id: u32,
    special_ids: Vec<u32>,
    cut: Cut,
    max_tokens: usize,
    /// To build the crate's tokenizer from, if texts must be made of ids.
    files: TextFiles,
    decoder: OnceLock<Result<PipelineTokenizer, String>>,
}

/// What makes the ids.
enum Runner {
    WordPiece(Box<WordPiece>),
    Crate { tokenizer: Box<PipelineTokenizer>, stand_ins: Option<StandIns> },
}

/// What an encoder writes between text and ids, and the words it has met lately. One per thread,
/// used again and again, spares an allocation per text and most of the work on words.
#[derive(Default)]
pub struct TextScratch {
    tokens: Vec<PipelineToken>,
    wordpiece: wordpiece::Scratch,
}

impl fmt::Debug for TextScratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextScratch").finish_non_exhaustive()
    }
}

/// How one text's ids came out; the ids themselves are appended to a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// Whether tokens were cut off.
    pub truncated: bool,
    /// As [`TokenIds::total`].
    pub total: usize,
}

impl fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextEncoder")
            .field("vocab_size", &self.vocab_size())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

const OPTIONS: EncodeOptions = EncodeOptions {
    add_special_tokens: false,
    encode_special_tokens: false,
    padding: Override::Off,
    truncation: Override::Off,
};

impl TextEncoder {
    /// Builds the tokenizer of a model that takes at most `max_tokens` tokens, special tokens
    /// included.
    ///
    /// # Errors
    /// When the files are missing, malformed or absurd, when they ask for a component that cannot
    /// be run, or when `max_tokens` leaves no room for text.
    pub fn new(files: &TextFiles, max_tokens: usize) -> Result<Self, TextError> {
        Self::from_definition(Definition::read(files)?, files, max_tokens)
    }

    /// As [`Self::new`], run by the `tokenizers` crate whatever the tokenizer is: the oracle of
    /// the encoders of this crate.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn oracle(files: &TextFiles, max_tokens: usize) -> Result<Self, TextError> {
        Self::from_definition(Definition::read_json(files)?, files, max_tokens)
    }

    fn from_definition(
        definition: Definition,
        files: &TextFiles,
        max_tokens: usize,
    ) -> Result<Self, TextError> {
        let Definition { file, form, size, mut largest_id, special_ids, cut } = definition;
        let (runner, before, after) = match form {
            Form::WordPiece(wordpiece) => {
                let (before, after) = wordpiece.frame();
                let (before, after) = (before.to_vec(), after.to_vec());
                (Runner::WordPiece(wordpiece), before, after)
            }
            Form::Json { json, stand_ins } => {
                let tokenizer = tokenizers::from_json(&json)
                    .map_err(|error| TextError::Unsupported { file, message: error.to_string() })?;
                let template = &tokenizer.get_post_processor().single;
                let ids =
                    |run: &[(PipelineToken, u8)]| run.iter().map(|&(id, _)| id.id()).collect();
                let (before, after) = (ids(&template.prefix), ids(&template.suffix));
                (Runner::Crate { tokenizer: Box::new(tokenizer), stand_ins }, before, after)
            }
        };
        let special = before.len() + after.len();
        if max_tokens <= special {
            return Err(TextError::NoRoom { limit: max_tokens, special });
        }
        for &id in before.iter().chain(&after) {
            largest_id = largest_id.max(id);
        }
        Ok(Self {
            runner,
            before,
            after,
            size,
            largest_id,
            special_ids,
            cut,
            max_tokens,
            files: files.clone(),
            decoder: OnceLock::new(),
        })
    }

    /// The ids of `prompt` and `text`, one after the other as one text.
    ///
    /// # Errors
    /// When the text is too long and must not be cut, or cannot be tokenised.
    pub fn encode(
        &self,
        text: &str,
        prompt: &str,
        overlong: Overlong,
    ) -> Result<TokenIds, TextError> {
        self.encode_with(text, prompt, overlong, &mut TextScratch::default())
    }

    /// As [`Self::encode`], for those who encode often.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with(
        &self,
        text: &str,
        prompt: &str,
        overlong: Overlong,
        scratch: &mut TextScratch,
    ) -> Result<TokenIds, TextError> {
        let mut ids = Vec::new();
        let Encoded { truncated, total } =
            self.encode_into(text, prompt, overlong, scratch, &mut ids)?;
        Ok(TokenIds { ids, truncated, total })
    }

    /// As [`Self::encode`], with the ids appended to `out`, which is left as it was on an error.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_into(
        &self,
        text: &str,
        prompt: &str,
        overlong: Overlong,
        scratch: &mut TextScratch,
        out: &mut Vec<u32>,
    ) -> Result<Encoded, TextError> {
        let input = match prompt.is_empty() {
            true => Cow::Borrowed(text),
            false => Cow::Owned([prompt, text].concat()),
        };
        let special = self.before.len() + self.after.len();
        let room = self.max_tokens - special;
        let cut = match overlong {
            Overlong::TruncateBeginning => Cut::Beginning,
            _ => self.cut,
        };
        let start = out.len();
        out.extend_from_slice(&self.before);
        let first = out.len();
        let done = match &self.runner {
            Runner::WordPiece(wordpiece) => {
                let enough = match (overlong, cut) {
                    (Overlong::Truncate, Cut::End | Cut::EndAtSpaces) => room,
                    _ => usize::MAX,
                };
                wordpiece.encode(&input, enough, &mut scratch.wordpiece, out);
                Ok(())
            }
            Runner::Crate { tokenizer, stand_ins } => {
                let input = match stand_ins {
                    Some(stand_ins) => stand_ins.apply(&input),
                    None => Cow::Borrowed(&*input),
                };
                let first_cut = match (overlong, cut) {
                    (Overlong::Truncate, Cut::EndAtSpaces) => room.saturating_mul(BYTES_PER_TOKEN),
                    _ => usize::MAX,
                };
                let done = tokens_beyond(tokenizer, &input, room, first_cut, &mut scratch.tokens);
                out.extend_from_slice(PipelineToken::cast_slice(&scratch.tokens));
                done
            }
        };
        let tokens = out.len() - first;
        let truncated = tokens > room;
        let total = tokens + special;
        let failed = match done {
            Ok(()) if truncated && overlong == Overlong::Error => {
                Err(TextError::Overlong { tokens: total, limit: self.max_tokens })
            }
            done => done,
        };
        if let Err(error) = failed {
            out.truncate(start);
            return Err(error);
        }
        match cut {
            _ if !truncated => {}
            Cut::End | Cut::EndAtSpaces => out.truncate(first + room),
            Cut::Beginning => drop(out.drain(first..first + tokens - room)),
        }
        out.extend_from_slice(&self.after);
        Ok(Encoded { truncated, total })
    }

    /// All the tokens of a text, however many the model takes, with or without the special tokens
    /// around them: for those who want to see tokens, not vectors.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn all_tokens(&self, text: &str, special: bool) -> Result<Vec<TextToken>, TextError> {
        let mut tokens: Vec<TextToken> = match &self.runner {
            Runner::WordPiece(wordpiece) => {
                let token = |(id, bytes)| TextToken { id, added: false, bytes: Some(bytes) };
                wordpiece.spans(text).into_iter().map(token).collect()
            }
            Runner::Crate { tokenizer, stand_ins } => {
                let input = match stand_ins {
                    Some(stand_ins) => stand_ins.apply(text),
                    None => Cow::Borrowed(text),
                };
                let mut tokens = Vec::new();
                tokens_beyond(tokenizer, &input, usize::MAX, usize::MAX, &mut tokens)?;
                let ids = PipelineToken::cast_slice(&tokens).iter();
                ids.map(|&id| TextToken { id, added: false, bytes: None }).collect()
            }
        };
        if special {
            let added = |&id: &u32| TextToken { id, added: true, bytes: None };
            tokens.splice(..0, self.before.iter().map(added));
            tokens.extend(self.after.iter().map(added));
        }
        Ok(tokens)
    }

    /// How many leading tokens of a text belong to its prompt, as sentence-transformers counts
    /// them: the tokens of the prompt alone, less a special token at their end. A prompt that
    /// cannot be tokenised counts as none.
    pub fn prompt_tokens(&self, prompt: &str) -> usize {
        let Ok(TokenIds { ids, .. }) = self.encode(prompt, "", Overlong::Truncate) else {
            return 0;
        };
        match ids.last() {
            Some(last) if self.special_ids().contains(last) => ids.len() - 1,
            _ => ids.len(),
        }
    }

    /// Checks that an embedding table with `rows` rows has one for every id that can come out.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_vocabulary(&self, rows: usize) -> Result<(), TextError> {
        let largest_id = self.largest_id();
        match (largest_id as usize) < rows {
            true => Ok(()),
            false => Err(TextError::VocabularyTooLarge { largest_id, rows }),
        }
    }

    /// Pieces and added tokens.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// The largest id that can come out.
    pub fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// Ids of the special tokens, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.special_ids
    }

    /// The most tokens a text may have, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The piece or added token with this id.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.runner {
            Runner::WordPiece(wordpiece) => wordpiece.token(id).map(str::to_owned),
            Runner::Crate { tokenizer, .. } => tokenizer.decode_tokens(&[id], false).pop(),
        }
    }

    /// The text that ids stand for, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer's decoder cannot be applied.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_with(ids, true)
    }

    /// The text that ids stand for, special tokens left out or not.
    ///
    /// # Errors
    /// When the tokenizer's decoder cannot be applied.
    pub fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let decoder = match &self.runner {
            Runner::Crate { tokenizer, .. } => tokenizer,
            Runner::WordPiece(_) => self.decoder()?,
        };
        let message = |error: tokenizers::Error| TextError::Encode { message: error.to_string() };
        decoder.decode(ids, skip_special).map_err(message)
    }

    /// The crate's tokenizer, built when a decoder is first asked for: embedding needs none.
    fn decoder(&self) -> Result<&PipelineTokenizer, TextError> {
        let build = || {
            let definition = Definition::read_json(&self.files).map_err(|e| e.to_string())?;
            match definition.form {
                Form::Json { json, .. } => tokenizers::from_json(&json).map_err(|e| e.to_string()),
                Form::WordPiece(_) => {
                    Err("a tokenizer read for the crate is not in its form".into())
                }
            }
        };
        let message = |message: &String| TextError::Encode { message: message.clone() };
        self.decoder.get_or_init(build).as_ref().map_err(message)
    }
}

/// The tokens of a text, or of so long a head of it that there are more than `room`.
///
/// The head ends between two words, and grows fourfold until it suffices, so a text of any
/// length costs little more than what is kept of it.
fn tokens_beyond(
    tokenizer: &PipelineTokenizer,
    text: &str,
    room: usize,
    first_cut: usize,
    tokens: &mut Vec<PipelineToken>,
) -> Result<(), TextError> {
    let mut end = end_of_word(text, first_cut);
    loop {
        tokens.clear();
        tokenizer
            .encode_into(&text[..end], &OPTIONS, tokens)
            .map_err(|error| TextError::Encode { message: error.to_string() })?;
        if tokens.len() > room || end == text.len() {
            return Ok(());
        }
        end = end_of_word(text, end.saturating_mul(4));
    }
}

/// The end of the first word that ends at or after `from`, or of the text.
///
/// Only a single space between ASCII letters or digits counts: whatever a tokenizer of
/// [`Cut::EndAtSpaces`] does to the text on one side of it does not depend on the other side.
fn end_of_word(text: &str, from: usize) -> usize {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric();
    let rest = text.as_bytes().get(from..).unwrap_or_default();
    let mut windows = rest.windows(3);
    let space = windows.position(|w| is_word(w[0]) && w[1] == b' ' && is_word(w[2]));
    space.map_or(text.len(), |space| from + space + 1)
}
