//! A weight file: read tensor by tensor, and as the weights of a BERT so small that a file of a
//! few hundred bytes is a whole model.

#![no_main]

use bytes::Bytes;
use fletcher_core::weights::{Checkpoint, WeightFile};
use fletcher_fuzz::{Folder, open_and_embed};
use libfuzzer_sys::fuzz_target;

const CONFIG: &str = r#"{"model_type": "bert", "hidden_size": 2, "num_attention_heads": 1,
    "num_hidden_layers": 1, "intermediate_size": 2, "max_position_embeddings": 8,
    "type_vocab_size": 1, "vocab_size": 3}"#;

const MODULES: &str = r#"[{"path": "", "type": "Transformer"}, {"path": "1", "type": "Pooling"},
    {"path": "2", "type": "Dense"}, {"path": "3", "type": "LayerNorm"}]"#;

const DENSE: &str = r#"{"in_features": 2, "out_features": 2}"#;

const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"}}"#;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let file = WeightFile { name: "model.safetensors".to_owned(), bytes: bytes.clone() };
    let Ok(checkpoint) = Checkpoint::open(&[file]) else { return };
    checkpoint.digest();
    checkpoint.parameters();
    for name in checkpoint.names() {
        let Ok(found) = checkpoint.find(&[name.to_owned()]) else { continue };
        let tensor = found.expect("a name that the checkpoint lists");
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.elements(), elements);
        if let Ok(values) = tensor.to_f32() {
            assert_eq!(values.len(), elements);
        }
    }
    let folder = Folder::new(bytes).with("config.json", CONFIG).with("tokenizer.json", TOKENIZER);
    open_and_embed(&folder);
    // Again with modules that take their weights from the same file.
    let folder = folder
        .with("modules.json", MODULES)
        .with("1/config.json", "{}")
        .with("2/config.json", DENSE);
    open_and_embed(&folder);
});
