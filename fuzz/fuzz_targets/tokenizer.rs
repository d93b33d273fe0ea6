//! A tokenizer's files: `tokenizer.json`, or `vocab.txt` if the input begins with no brace, and
//! behind a NUL `tokenizer_config.json`.
//!
//! A tokenizer that is built must keep its promises for any text: ids within its own bounds, the
//! same ids every time, no more of them than asked for, and a cut text's tokens are the head (or
//! the tail) of the whole text's.

#![no_main]

use fletcher_core::Overlong;
use fletcher_core::text::{TextEncoder, TextError, TextFiles, TokenIds};
use libfuzzer_sys::fuzz_target;

/// Longest text of the short encoder, in tokens.
const SHORT: usize = 12;
/// Longest text of the long encoder; above any of the texts below.
const LONG: usize = 1 << 14;

fn hostile_texts() -> [String; 12] {
    [
        String::new(),
        " \t\r\n\u{a0}\u{2028}\u{3000}".to_owned(),
        "a quick brown Fox, jumped: over 13 lazy dogs!".to_owned(),
        "[CLS] [SEP][MASK]<s></s><mask>[UNK]##a".to_owned(),
        "İstanbul ﬀ ẞ é e\u{301}\u{301}\u{301} ½ Ǆ".to_owned(),
        "日本語のテキスト 한국어 ไทย हिन्दी العربية".to_owned(),
        "👩‍👩‍👧‍👦🏳️‍🌈\u{fe0f}\u{200d}\u{e0001}\u{10ffff}".to_owned(),
        "\0\u{1}\u{7f}\u{80}\u{ad}\u{200b}\u{feff}\u{fffd}\u{fffe}".to_owned(),
        "x".repeat(300),
        "\u{301}".repeat(100),
        "ab cd ".repeat(120),
        "The end. of it, and \u{e9}t\u{e9} ".repeat(30),
    ]
}

fn encoder(data: &[u8], max_tokens: usize) -> Result<TextEncoder, TextError> {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let tokenizer = parts.next().map(<[u8]>::to_vec).map(Into::into);
    let tokenizer_config = parts.next().map(<[u8]>::to_vec).map(Into::into);
    let files = match data.first() {
        Some(b'{') => {
            TextFiles { tokenizer_json: tokenizer, tokenizer_config, ..TextFiles::default() }
        }
        _ => TextFiles { vocab_txt: tokenizer, tokenizer_config, ..TextFiles::default() },
    };
    TextEncoder::new(&files, max_tokens)
}

/// Whether `cut` is `whole` without some tokens in its middle: the special tokens at both ends
/// stay.
fn is_cut_of(cut: &[u32], whole: &[u32]) -> bool {
    let same =
        |pairs: &mut dyn Iterator<Item = (&u32, &u32)>| pairs.take_while(|(a, b)| a == b).count();
    let head = same(&mut cut.iter().zip(whole));
    let tail = same(&mut cut.iter().rev().zip(whole.iter().rev()));
    cut.len() <= whole.len() && head + tail >= cut.len()
}

fn check_ids(encoder: &TextEncoder, tokens: &TokenIds) {
    assert!(tokens.ids.len() <= encoder.max_tokens());
    assert!(tokens.total >= tokens.ids.len());
    assert!(tokens.ids.iter().all(|&id| id <= encoder.largest_id()), "{tokens:?}");
    if let Some(&id) = tokens.ids.first() {
        let _ = encoder.token(id);
    }
    let _ = encoder.decode(&tokens.ids);
}

fuzz_target!(|data: &[u8]| {
    let Ok(short) = encoder(data, SHORT) else { return };
    let long = encoder(data, LONG).expect("a greater length is no fault");
    for text in hostile_texts() {
        let whole = long.encode(&text, "", Overlong::Truncate);
        if let Ok(whole) = &whole {
            check_ids(&long, whole);
        }
        if let Ok(cut) = short.encode(&text, "", Overlong::Truncate) {
            check_ids(&short, &cut);
            assert_eq!(Some(&cut), short.encode(&text, "", Overlong::Truncate).ok().as_ref());
            if let Ok(whole) = &whole
                && !whole.truncated
            {
                assert!(is_cut_of(&cut.ids, &whole.ids), "{cut:?} of {whole:?} for {text:?}");
            }
        }
        if let Ok(refused) = short.encode(&text, "a: ", Overlong::Error) {
            assert!(!refused.truncated);
        }
        let _ = short.prompt_tokens(&text);
    }
});
