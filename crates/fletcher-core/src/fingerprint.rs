//! The fingerprint: one short hash over everything that shapes a model's vectors.
//!
//! Two vectors may be compared only if their fingerprints agree. It covers the weights (however
//! they are sharded), the tokenizer, the maximum length, the prompt, pooling, the modules behind
//! it and the normalisation.

use sha2::{Digest, Sha256};

/// What goes into a fingerprint.
#[derive(Debug)]
pub struct FingerprintParts<'a> {
    /// Digest of the tensors.
    pub weights: [u8; 32],
    /// The tokenizer's files.
    pub tokenizer: &'a [u8],
    /// The encoder's configuration as understood.
    pub spec: String,
    /// Pooling and modules.
    pub head: String,
    /// Maximum length in tokens.
    pub max_tokens: usize,
    /// The text put before every text.
    pub prompt: &'a str,
}

/// 16 hexadecimal digits.
pub fn fingerprint(parts: &FingerprintParts<'_>) -> String {
    let mut hash = Sha256::new();
    let max_tokens = parts.max_tokens.to_le_bytes();
    let fields: [&[u8]; 6] = [
        &parts.weights,
        parts.tokenizer,
        parts.spec.as_bytes(),
        parts.head.as_bytes(),
        &max_tokens,
        parts.prompt.as_bytes(),
    ];
    for field in fields {
        // Lengths keep a boundary from moving unnoticed.
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    hex(&hash.finalize()[..8])
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
