//! BERT's tokenizer from `vocab.txt`, for folders older than `tokenizer.json`.
//!
//! The file lists the pieces, one a line; everything else is BERT's custom, but for what
//! `tokenizer_config.json` says. The result is what a `tokenizer.json` would have said.

use serde_json::{Map, Value, json};

use super::TextError;
use super::definition::{flag, malformed, special_token, token_content};

pub(super) const VOCAB_TXT: &str = "vocab.txt";

/// The pieces with their ids.
pub(super) fn pieces(bytes: &[u8]) -> Result<Map<String, Value>, TextError> {
    let text = std::str::from_utf8(bytes).map_err(|error| malformed(VOCAB_TXT, error))?;
    let lines = text.lines().zip(0u32..);
    Ok(lines.map(|(line, id)| (line.trim_end().to_owned(), id.into())).collect())
}

/// The rest of the tokenizer.
pub(super) fn pipeline(
    pieces: &Map<String, Value>,
    config: &Map<String, Value>,
) -> Result<Map<String, Value>, TextError> {
    let role = |key: &str, usual: &str| {
        let token = config.get(key).and_then(token_content).unwrap_or(usual).to_owned();
        match pieces.get(&token) {
            Some(id) => Ok((token, id.clone())),
            None => Err(TextError::MissingSpecialToken { file: VOCAB_TXT, token }),
        }
    };
    let cls = role("cls_token", "[CLS]")?;
    let sep = role("sep_token", "[SEP]")?;
    let unk = role("unk_token", "[UNK]")?;
    // No text needs these two.
    let others = [role("pad_token", "[PAD]"), role("mask_token", "[MASK]")];
    let specials = [&cls, &sep, &unk].into_iter().chain(others.iter().flatten());
    let added = specials.map(|(token, id)| special_token(&json!(token), id.clone()));
    let mut normalizer = bert_settings(config);
    normalizer.insert("type".to_owned(), "BertNormalizer".into());
    normalizer.insert("clean_text".to_owned(), true.into());
    let fields = [
        ("added_tokens", added.collect()),
        ("normalizer", normalizer.into()),
        ("pre_tokenizer", json!({"type": "BertPreTokenizer"})),
        ("post_processor", json!({"type": "BertProcessing", "cls": cls, "sep": sep})),
        ("decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        (
            "model",
            json!({
                "type": "WordPiece",
                "unk_token": unk.0,
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
            }),
        ),
    ];
    Ok(fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
}

/// What `tokenizer_config.json` says of a `BertNormalizer`; a key that is not there has Python's
/// default.
pub(super) fn bert_settings(config: &Map<String, Value>) -> Map<String, Value> {
    let settings = [
        ("lowercase", flag(config, "do_lower_case").unwrap_or(true).into()),
        ("handle_chinese_chars", flag(config, "tokenize_chinese_chars").unwrap_or(true).into()),
        ("strip_accents", flag(config, "strip_accents").into()),
    ];
    settings.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}
