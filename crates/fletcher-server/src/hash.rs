//! A 64-bit hash that stays the same between versions and machines: parts of stored ids.

use sha2::{Digest, Sha256};

/// The first eight bytes of SHA-256.
pub(crate) fn hash64(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest[..8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
