//! Texts of mixed lengths, the same at every run.

use serde_json::json;

use crate::http;
use crate::mutate::Random;

/// Common words: every one is a token of its own in English vocabularies.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "was", "for", "on", "that", "with", "as", "his", "he", "at",
    "by", "from", "it", "an", "were", "which", "this", "are", "be", "had", "first", "her", "she",
    "or", "their", "one", "has", "have", "new", "also", "who", "but", "two", "they", "been",
    "after", "when", "time", "other", "its", "into", "city", "years", "school", "more", "world",
    "river", "music", "war", "water", "light", "house", "family", "game", "film", "team", "north",
    "science", "market", "story",
];

/// Texts of 3 words to so many, short ones more often: their lengths' logarithm is uniform.
pub(crate) fn mixed(count: usize, words: usize, seed: u64) -> Vec<String> {
    let mut random = Random::new(seed);
    let span = words as f64 / 3.0;
    let text = |_| {
        let share = random.below(1 << 20) as f64 / f64::from(1 << 20);
        let words = (3.0 * span.powf(share)) as usize;
        let mut text = String::new();
        for word in 0..words {
            if word > 0 {
                text.push(' ');
            }
            text.push_str(WORDS[random.below(WORDS.len())]);
        }
        text
    };
    (0..count).map(text).collect()
}

/// A file that `fletcher embed` reads.
pub(crate) fn jsonl(texts: &[String]) -> String {
    texts.iter().map(|text| json!({ "text": text }).to_string() + "\n").collect()
}

/// Requests of `/v1/embeddings` for so many texts each, answered in base64.
pub(crate) fn requests(texts: &[String], of: usize) -> Vec<Vec<u8>> {
    let request = |texts: &[String]| {
        let body = json!({ "input": texts, "encoding_format": "base64" }).to_string();
        http::post("/v1/embeddings", "application/json", body.as_bytes())
    };
    texts.chunks(of).map(request).collect()
}

/// Requests of TEI's `/embed` for so many texts each, answered in decimal numbers.
pub(crate) fn tei_requests(texts: &[String], of: usize) -> Vec<Vec<u8>> {
    let request = |texts: &[String]| {
        let body = json!({ "inputs": texts, "truncate": true }).to_string();
        http::post("/embed", "application/json", body.as_bytes())
    };
    texts.chunks(of).map(request).collect()
}
