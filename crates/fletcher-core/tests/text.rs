//! What a model folder may say about its tokenizer, and what must not pass.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use fletcher_core::text::{Overlong, TextEncoder, TextError, TextFiles};
use serde_json::{Value, json};

fn golden(folder: &str) -> TextFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(folder);
    let read = |name: &str| fs::read(folder.join(name)).ok().map(Bytes::from);
    TextFiles {
        tokenizer_json: read("tokenizer.json"),
        vocab_txt: read("vocab.txt"),
        tokenizer_config: read("tokenizer_config.json"),
        lowercase: false,
    }
}

fn edit(file: &mut Option<Bytes>, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(file.as_ref().unwrap()).unwrap();
    change(&mut value);
    *file = Some(value.to_string().into());
}

fn ids(encoder: &TextEncoder, text: &str) -> Vec<u32> {
    encoder.encode(text, "", Overlong::Error).unwrap().ids
}

#[test]
fn the_models_maximum_rules_not_the_one_in_tokenizer_json() {
    let text = "the quick brown fox ".repeat(20);
    let padded = TextEncoder::new(&golden("bert-fixed-padding"), 24).unwrap();
    let plain = TextEncoder::new(&golden("bert-cls"), 24).unwrap();
    for text in ["the fox", &text] {
        let tokens = padded.encode(text, "", Overlong::Truncate).unwrap();
        assert_eq!(tokens, plain.encode(text, "", Overlong::Truncate).unwrap());
    }
    assert_eq!(padded.encode(&text, "", Overlong::Truncate).unwrap().ids.len(), 24);
}

#[test]
fn overlong_texts_are_cut_or_refused_just_beyond_the_limit() {
    for (folder, left) in [("bert", false), ("bert-left", true)] {
        let whole = ids(&TextEncoder::new(&golden(folder), usize::MAX).unwrap(), "a fast fox");
        let (first, last) = (whole[0], whole[whole.len() - 1]);
        let fits = TextEncoder::new(&golden(folder), whole.len()).unwrap();
        let tokens = fits.encode("a fast fox", "", Overlong::Error).unwrap();
        assert_eq!((&tokens.ids, tokens.truncated, tokens.total), (&whole, false, whole.len()));

        let tight = TextEncoder::new(&golden(folder), whole.len() - 1).unwrap();
        let tokens = tight.encode("a fast fox", "", Overlong::Truncate).unwrap();
        let inner = &whole[1..whole.len() - 1];
        let kept = if left { &inner[1..] } else { &inner[..inner.len() - 1] };
        assert_eq!(tokens.ids, [&[first], kept, &[last]].concat(), "{folder}");
        assert!(tokens.truncated);
        let refused = tight.encode("a fast fox", "", Overlong::Error).unwrap_err();
        let numbers = match refused {
            TextError::Overlong { tokens, limit } => (tokens, limit),
            other => panic!("{other}"),
        };
        assert_eq!(numbers, (whole.len(), whole.len() - 1));
    }
}

#[test]
fn the_beginning_can_be_cut_and_all_tokens_can_be_seen() {
    let encoder = TextEncoder::new(&golden("bert"), 6).unwrap();
    let tokens = encoder.all_tokens("a b c d e f g", true).unwrap();
    assert_eq!(tokens.len(), 9);
    assert_eq!(encoder.all_tokens("a b c d e f g", false).unwrap(), tokens[1..8]);
    assert_eq!((tokens[0].added, &tokens[0].bytes), (true, &None));
    assert_eq!((tokens[2].added, &tokens[2].bytes), (false, &Some(2..3)));
    let all: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let cut = encoder.encode("a b c d e f g", "", Overlong::TruncateBeginning).unwrap();
    assert_eq!(cut.ids, [&all[..1], &all[4..]].concat());
    assert_eq!((cut.truncated, cut.total), (true, 9));
    let whole = encoder.encode("a b", "", Overlong::TruncateBeginning).unwrap();
    assert_eq!(whole, encoder.encode("a b", "", Overlong::Truncate).unwrap());
    assert!(encoder.decode_with(&all, false).unwrap().contains("[CLS]"));
    assert_eq!(encoder.decode_with(&all, true).unwrap(), "a b c d e f g");
}

#[test]
fn the_head_of_an_overlong_text_is_enough() {
    let folders = ["bert", "camembert", "modernbert", "mpnet", "roberta", "xlm-roberta"];
    let texts = [
        "The quick brown fox, don't you know? ".repeat(500),
        format!("{} the fox jumps", "unbroken".repeat(1000)),
        format!("{}the fox jumps over the lazy dog", "  ".repeat(5000)),
        "a b ".repeat(2000),
        format!("word{} more words after it", "\u{301}".repeat(4000)),
    ];
    for folder in folders {
        let whole = TextEncoder::new(&golden(folder), usize::MAX).unwrap();
        for text in &texts {
            let all = ids(&whole, text);
            for limit in [3, 16, 64, 100] {
                let encoder = TextEncoder::new(&golden(folder), limit).unwrap();
                let tokens = encoder.encode(text, "", Overlong::Truncate).unwrap();
                let expected = match all.len() > limit {
                    true => [&all[..limit - 1], &all[all.len() - 1..]].concat(),
                    false => all.clone(),
                };
                assert_eq!(tokens.ids, expected, "{folder} {limit} {:?}", &text[..20]);
                assert!(tokens.ids.len() <= tokens.total && tokens.total <= all.len());
            }
        }
        // Not all of the first text is tokenised to find its first 16 tokens.
        let encoder = TextEncoder::new(&golden(folder), 16).unwrap();
        let total = encoder.encode(&texts[0], "", Overlong::Truncate).unwrap().total;
        assert!(total * 10 < ids(&whole, &texts[0]).len(), "{folder}: {total}");
    }
}

/// The numbers are sentence-transformers' own (`Transformer._get_prompt_length`).
#[test]
fn prompts_are_prefixes_and_count_as_in_python() {
    let long = "word ".repeat(200);
    let long = long.trim_end();
    let cases = [
        ("bert-prompt", 40, [7, 11, 2, 2, 1, 39]),
        ("nomic-native", 96, [4, 11, 2, 2, 1, 95]),
        ("roberta", 64, [8, 12, 2, 6, 4, 63]),
        ("xlm-roberta", 64, [4, 10, 3, 7, 1, 63]),
        ("modernbert", 100, [8, 12, 2, 2, 2, 99]),
        ("mpnet", 128, [4, 10, 2, 5, 1, 127]),
    ];
    let prompts = ["the question: ", "search_document: ", "x", "[SEP]", "   ", long];
    for (folder, limit, counts) in cases {
        let encoder = TextEncoder::new(&golden(folder), limit).unwrap();
        assert_eq!(prompts.map(|prompt| encoder.prompt_tokens(prompt)), counts, "{folder}");
        let joined = ids(&encoder, "the question: what?");
        let prompted = encoder.encode("what?", "the question: ", Overlong::Error).unwrap();
        assert_eq!(prompted.ids, joined, "{folder}");
    }
}

#[test]
fn tokenizer_config_has_the_last_word_on_bert() {
    let text = "The Café QUICK 我 fox";
    let base = golden("bert");
    let uncased = ids(&TextEncoder::new(&base, 64).unwrap(), text);
    let with = |key: &str, value: Value| {
        let mut files = base.clone();
        edit(&mut files.tokenizer_config, |config| config[key] = value);
        ids(&TextEncoder::new(&files, 64).unwrap(), text)
    };
    assert_ne!(with("do_lower_case", json!(false)), uncased);
    assert_ne!(with("strip_accents", json!(false)), uncased);
    assert_eq!(with("strip_accents", json!(true)), uncased);

    // Python takes an absent key for its default, whatever tokenizer.json says …
    let mut files = base.clone();
    edit(&mut files.tokenizer_json, |file| file["normalizer"]["lowercase"] = json!(false));
    edit(&mut files.tokenizer_config, |config| {
        config.as_object_mut().unwrap().remove("do_lower_case");
    });
    assert_eq!(ids(&TextEncoder::new(&files, 64).unwrap(), text), uncased);
    // … but not for a class that knows nothing of BERT.
    edit(&mut files.tokenizer_config, |config| {
        config["tokenizer_class"] = json!("PreTrainedTokenizerFast");
    });
    assert_ne!(ids(&TextEncoder::new(&files, 64).unwrap(), text), uncased);
}

#[test]
fn special_tokens_named_only_by_tokenizer_config_are_found() {
    let base = golden("bert");
    let expected = ids(&TextEncoder::new(&base, 64).unwrap(), "a [MASK] [SEP] b");
    let mut files = base;
    edit(&mut files.tokenizer_json, |file| file["added_tokens"] = json!([]));
    let encoder = TextEncoder::new(&files, 64).unwrap();
    assert_eq!(ids(&encoder, "a [MASK] [SEP] b"), expected);
    assert_eq!(encoder.special_ids(), [0, 1, 2, 3, 4]);
}

#[test]
fn lowercasing_of_sentence_transformers_comes_first() {
    let mut files = golden("bert-cased");
    let cased = TextEncoder::new(&files, 40).unwrap();
    files.lowercase = true;
    let lowered = TextEncoder::new(&files, 40).unwrap();
    assert_eq!(ids(&lowered, "The Quick ÉÀ"), ids(&cased, "the quick éà"));
    assert_ne!(ids(&cased, "The Quick ÉÀ"), ids(&cased, "the quick éà"));
    // A special token is found before anything is lower-cased.
    assert_eq!(ids(&lowered, "[MASK]"), ids(&cased, "[MASK]"));
}

#[test]
fn vocab_txt_alone_makes_a_bert_tokenizer() {
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nfox\n##es\r\n";
    let mut files =
        TextFiles { vocab_txt: Some(Bytes::from_static(vocab.as_bytes())), ..Default::default() };
    let encoder = TextEncoder::new(&files, 16).unwrap();
    assert_eq!(ids(&encoder, "The FOXES [MASK] 我"), [2, 5, 6, 7, 4, 1, 3]);
    assert_eq!(encoder.vocab_size(), 8);
    assert_eq!(encoder.token(7).as_deref(), Some("##es"));
    assert_eq!(encoder.token(8), None);
    assert_eq!(encoder.decode(&[2, 5, 6, 7, 3]).unwrap(), "the foxes");

    files.tokenizer_config = Some(Bytes::from_static(br#"{"do_lower_case": false}"#));
    let cased = TextEncoder::new(&files, 16).unwrap();
    assert_eq!(ids(&cased, "The foxes"), [2, 1, 6, 7, 3]);

    files.vocab_txt = Some(Bytes::from_static(b"[PAD]\n[UNK]\n[CLS]\n"));
    let error = TextEncoder::new(&files, 16).unwrap_err();
    assert_eq!(error.to_string(), "vocab.txt: the special token `[SEP]` is not in the vocabulary");
    files.vocab_txt = Some(Bytes::from_static(b"[PAD]\n\xff\n"));
    assert!(matches!(TextEncoder::new(&files, 16), Err(TextError::Malformed { .. })));
    files.vocab_txt = None;
    assert!(matches!(TextEncoder::new(&files, 16), Err(TextError::MissingFile { .. })));
}

#[test]
fn limits_are_checked_on_both_sides() {
    let encoder = TextEncoder::new(&golden("bert"), 3).unwrap();
    assert_eq!(encoder.max_tokens(), 3);
    assert_eq!(encoder.largest_id(), 511);
    assert!(encoder.check_vocabulary(512).is_ok());
    let error = encoder.check_vocabulary(511).unwrap_err();
    assert!(matches!(error, TextError::VocabularyTooLarge { largest_id: 511, rows: 511 }));
    let error = TextEncoder::new(&golden("bert"), 2).unwrap_err();
    assert!(matches!(error, TextError::NoRoom { limit: 2, special: 2 }));
}

#[test]
fn one_encoder_serves_many_threads() {
    let encoder = TextEncoder::new(&golden("roberta"), 64).unwrap();
    let expected = ids(&encoder, "Search engines turn every document into a vector.");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let got = ids(&encoder, "Search engines turn every document into a vector.");
                    assert_eq!(got, expected);
                }
            });
        }
    });
}

/// What a hostile or damaged `tokenizer.json` says, and how it is refused.
#[test]
fn bad_tokenizer_files_are_refused_with_a_reason() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 16] = [
        ("bert", |file| *file = json!([1, 2]), "malformed"),
        ("bert", |file| *file = json!({}), "there is no `model`"),
        ("bert", |file| file["model"] = json!("x"), "malformed"),
        ("bert", |file| file["model"]["vocab"] = json!(null), "malformed"),
        ("bert", |file| file["model"]["vocab"] = json!({"a": "b"}), "malformed"),
        ("bert", |file| file["model"]["vocab"]["x"] = json!(-1), "malformed"),
        ("bert", |file| file["model"]["vocab"]["x"] = json!(4_000_000_000_u32), "beyond"),
        ("bert", |file| file["model"]["vocab"]["x".repeat(70_000)] = json!(7), "beyond"),
        ("bert", |file| file["model"]["vocab"] = json!({}), "cannot be run"),
        ("bert", |file| file["model"]["type"] = json!("Oracle"), "cannot be run"),
        ("bert", |file| file["pre_tokenizer"]["type"] = json!("Oracle"), "cannot be run"),
        ("bert", |file| file["added_tokens"][0]["special"] = json!(null), "cannot be run"),
        ("roberta", |file| file["model"]["continuing_subword_prefix"] = json!("##"), "prefix"),
        (
            "xlm-roberta",
            |file| file["normalizer"]["precompiled_charsmap"] = json!("CAAAAP//////////YWJj"),
            "precompiled_charsmap",
        ),
        ("xlm-roberta", |file| file["model"]["unk_id"] = json!(1 << 20), "cannot be run"),
        (
            "roberta",
            |file| file["pre_tokenizer"]["add_prefix_space"] = json!(true),
            "cannot be run",
        ),
    ];
    for (index, (folder, change, reason)) in cases.into_iter().enumerate() {
        let mut files = golden(folder);
        edit(&mut files.tokenizer_json, change);
        let error = TextEncoder::new(&files, 64).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.json: "), "case {index}: {error}");
        assert!(error.contains(reason), "case {index}: {error}");
    }
    let mut files = golden("bert");
    for text in ["", "\u{feff}{}", "{\"model\":", &"[".repeat(100_000)] {
        files.tokenizer_json = Some(Bytes::from(text.to_owned()));
        assert!(matches!(TextEncoder::new(&files, 64), Err(TextError::Malformed { .. })));
    }
}
