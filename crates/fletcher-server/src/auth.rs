//! Who may ask: API keys, kept as hashes and compared in constant time.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::ServeError;

/// Prefix of a key that is given as its hash.
const HASHED: &str = "sha256:";

/// The keys of a server; without any, everybody may ask.
#[derive(Clone, Default)]
pub struct ApiKeys {
    hashes: Vec<[u8; 32]>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.hashes.len())
    }
}

impl ApiKeys {
    /// Takes keys, each as itself or as `sha256:` and the 64 hexadecimal digits of its hash.
    ///
    /// # Errors
    /// When one is empty, or a hash is not one.
    pub fn new<S: AsRef<str>>(keys: impl IntoIterator<Item = S>) -> Result<Self, ServeError> {
        let hash = |key: S| match key.as_ref().strip_prefix(HASHED) {
            Some(digits) => parse_hash(digits).ok_or_else(|| ServeError::Config {
                message: format!(
                    "an API key begins with `{HASHED}` but 64 hexadecimal digits do not follow"
                ),
            }),
            None if key.as_ref().trim().is_empty() => {
                Err(ServeError::Config { message: "an API key is empty".into() })
            }
            None => Ok(digest(key.as_ref().as_bytes())),
        };
        Ok(Self { hashes: keys.into_iter().map(hash).collect::<Result<_, _>>()? })
    }

    /// Whether everybody may ask.
    pub fn is_open(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether a request with these headers may be served.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        self.is_open() || presented(headers).is_some_and(|key| self.knows(key.as_bytes()))
    }

    /// Whether this is one of the keys. All are compared, in a time that does not depend on which
    /// one fits.
    pub fn knows(&self, key: &[u8]) -> bool {
        let hash = digest(key);
        let fits = |found: Choice, known: &[u8; 32]| found | known.ct_eq(&hash);
        self.hashes.iter().fold(Choice::from(0), fits).into()
    }
}

/// The key in the headers that the dialects' clients use; a Basic password counts, because Flight
/// clients can send that.
pub(crate) fn presented(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(value) = text(AUTHORIZATION.as_str()) {
        let (scheme, rest) = value.split_once(' ')?;
        return match scheme.to_ascii_lowercase().as_str() {
            "bearer" => Some(rest.trim().to_owned()),
            "basic" => {
                let pair = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
                Some(pair.split_once(':')?.1.to_owned())
            }
            _ => None,
        };
    }
    text("x-api-key").or(text("api-key")).map(str::to_owned)
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn parse_hash(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.trim().as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_plain_and_hashed_in_every_header() {
        let hash = fletcher_core::fingerprint::hex(&digest(b"second"));
        let keys = ApiKeys::new(["first".to_owned(), format!("sha256:{hash}")]).unwrap();
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        let basic = format!("Basic {}", BASE64_STANDARD.encode("user:second"));
        for (name, value) in [
            ("authorization", "Bearer first"),
            ("authorization", "bearer second"),
            ("authorization", &basic),
            ("x-api-key", "first"),
            ("api-key", "second"),
        ] {
            assert!(keys.allow(&headers(name, value)), "{name}: {value}");
        }
        for (name, value) in [
            ("authorization", "Bearer third"),
            ("authorization", "Bearer "),
            ("authorization", "first"),
            ("authorization", "Basic first"),
            ("authorization", "Digest first"),
            ("x-api-key", ""),
            ("x-other", "first"),
        ] {
            assert!(!keys.allow(&headers(name, value)), "{name}: {value}");
        }
        assert!(!keys.allow(&HeaderMap::new()));
        assert!(ApiKeys::default().allow(&HeaderMap::new()));
        assert!(ApiKeys::new([""]).is_err());
        assert!(ApiKeys::new(["sha256:12"]).is_err());
    }
}
