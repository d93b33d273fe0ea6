//! The JSON files of a model folder around golden weights and tokenizers.
//!
//! The input is a line that names an architecture, then the files of [`FILES`] in that order,
//! separated by `~` (which JSON needs nowhere outside of strings); an empty file does not exist.
//! The input as a whole is also read as one `config.json`.

#![no_main]

use fletcher_core::architectures;
use fletcher_core::config::Config;
use fletcher_fuzz::{Folder, open_and_embed};
use libfuzzer_sys::fuzz_target;

/// The fuzzed files.
const FILES: [&str; 6] = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
];

macro_rules! golden {
    ($name:literal) => {
        (
            &include_bytes!(concat!("../../tests/golden/", $name, "/model.safetensors"))[..],
            &include_bytes!(concat!("../../tests/golden/", $name, "/tokenizer.json"))[..],
        )
    };
}

/// Weights and tokenizer by the first byte of the input.
fn golden(first: u8) -> (&'static [u8], &'static [u8]) {
    match first {
        b'd' => golden!("distilbert"),
        b'm' => golden!("modernbert"),
        b'n' => golden!("nomic-original"),
        b'p' => golden!("mpnet"),
        b'r' => golden!("roberta"),
        _ => golden!("bert"),
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = Config::parse("config.json", data) {
        let _ = architectures::parse(&config);
    }
    let Some(newline) = data.iter().position(|&byte| byte == b'\n') else { return };
    let (weights, tokenizer) = golden(data[0]);
    let files = data[newline + 1..].split(|&byte| byte == b'~').map(<[u8]>::trim_ascii);
    let folder = Folder::new(weights).with("tokenizer.json", tokenizer);
    let folder = FILES
        .into_iter()
        .zip(files)
        .filter(|(_, bytes)| !bytes.is_empty())
        .fold(folder, |folder, (path, bytes)| folder.with(path, bytes.to_vec()));
    open_and_embed(&folder);
});
