//! Text to token ids: a thin seam over the `tokenizers` crate.
//!
//! The crate does the work, five times faster in its 1.0 candidates than in 0.2x and with the same
//! ids; this module decides what Python's loaders decide around it. The model's maximum length
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

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

use self::definition::{Cut, Definition};

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
    tokenizer: PipelineTokenizer,
    options: EncodeOptions,
    /// Special tokens before and after every text.
    before: Vec<u32>,
    after: Vec<u32>,
    definition: Definition,
    max_tokens: usize,
}

impl fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextEncoder")
            .field("vocab_size", &self.vocab_size())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl TextEncoder {
    /// Builds the tokenizer of a model that takes at most `max_tokens` tokens, special tokens
    /// included.
    ///
    /// # Errors
    /// When the files are missing, malformed or absurd, when they ask for a component that cannot
    /// be run, or when `max_tokens` leaves no room for text.
    pub fn new(files: &TextFiles, max_tokens: usize) -> Result<Self, TextError> {
        let mut definition = Definition::read(files)?;
        let json = std::mem::take(&mut definition.json);
        let tokenizer = tokenizers::from_json(&json).map_err(|error| TextError::Unsupported {
            file: definition.file,
            message: error.to_string(),
        })?;
        let template = &tokenizer.get_post_processor().single;
        let ids = |run: &[(PipelineToken, u8)]| run.iter().map(|&(id, _)| id.id()).collect();
        let (before, after): (Vec<u32>, Vec<u32>) = (ids(&template.prefix), ids(&template.suffix));
        let special = before.len() + after.len();
        if max_tokens <= special {
            return Err(TextError::NoRoom { limit: max_tokens, special });
        }
        for &id in before.iter().chain(&after) {
            definition.largest_id = definition.largest_id.max(id);
        }
        let options = EncodeOptions {
            add_special_tokens: false,
            encode_special_tokens: false,
            padding: Override::Off,
            truncation: Override::Off,
        };
        Ok(Self { tokenizer, options, before, after, definition, max_tokens })
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
        let input = self.input(text, prompt);
        let special = self.before.len() + self.after.len();
        let room = self.max_tokens - special;
        let cut = match overlong {
            Overlong::TruncateBeginning => Cut::Beginning,
            _ => self.definition.cut,
        };
        let first_cut = match (overlong, cut) {
            (Overlong::Truncate, Cut::EndAtSpaces) => room.saturating_mul(BYTES_PER_TOKEN),
            _ => usize::MAX,
        };
        let tokens = self.tokens_beyond(&input, room, first_cut)?;
        let total = tokens.len() + special;
        let truncated = tokens.len() > room;
        if truncated && overlong == Overlong::Error {
            return Err(TextError::Overlong { tokens: total, limit: self.max_tokens });
        }
        let kept = match cut {
            _ if !truncated => &tokens[..],
            Cut::End | Cut::EndAtSpaces => &tokens[..room],
            Cut::Beginning => &tokens[tokens.len() - room..],
        };
        let mut ids = Vec::with_capacity(kept.len() + special);
        ids.extend_from_slice(&self.before);
        ids.extend_from_slice(PipelineToken::cast_slice(kept));
        ids.extend_from_slice(&self.after);
        Ok(TokenIds { ids, truncated, total })
    }

    /// All the ids of `prompt` and `text`, however many the model takes, with or without the
    /// special tokens around them: for those who want to see tokens, not vectors.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn all_ids(&self, text: &str, prompt: &str, special: bool) -> Result<Vec<u32>, TextError> {
        let tokens = self.tokens_beyond(&self.input(text, prompt), usize::MAX, usize::MAX)?;
        let ids = PipelineToken::cast_slice(&tokens);
        Ok(match special {
            true => [&self.before[..], ids, &self.after[..]].concat(),
            false => ids.to_vec(),
        })
    }

    /// What the tokenizer is given.
    fn input<'a>(&self, text: &'a str, prompt: &str) -> Cow<'a, str> {
        let input = match prompt.is_empty() {
            true => Cow::Borrowed(text),
            false => Cow::Owned([prompt, text].concat()),
        };
        match (&self.definition.stand_ins, input) {
            (None, input) => input,
            (Some(stand_ins), Cow::Borrowed(text)) => stand_ins.apply(text),
            (Some(stand_ins), Cow::Owned(text)) => Cow::Owned(stand_ins.apply(&text).into_owned()),
        }
    }

    /// The tokens of a text, or of so long a head of it that there are more than `room`.
    ///
    /// The head ends between two words, and grows fourfold until it suffices, so a text of any
    /// length costs little more than what is kept of it.
    fn tokens_beyond(
        &self,
        text: &str,
        room: usize,
        first_cut: usize,
    ) -> Result<Vec<PipelineToken>, TextError> {
        let mut tokens: Vec<PipelineToken> = Vec::new();
        let mut end = end_of_word(text, first_cut);
        loop {
            self.tokenizer
                .encode_into(&text[..end], &self.options, &mut tokens)
                .map_err(|error| TextError::Encode { message: error.to_string() })?;
            if tokens.len() > room || end == text.len() {
                return Ok(tokens);
            }
            tokens.clear();
            end = end_of_word(text, end.saturating_mul(4));
        }
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
        self.definition.size
    }

    /// The largest id that can come out.
    pub fn largest_id(&self) -> u32 {
        self.definition.largest_id
    }

    /// Ids of the special tokens, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.definition.special_ids
    }

    /// The most tokens a text may have, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The piece or added token with this id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.decode_tokens(&[id], false).pop()
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
        let message = |error: tokenizers::Error| TextError::Encode { message: error.to_string() };
        self.tokenizer.decode(ids, skip_special).map_err(message)
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
