//! Refuses what would make the `tokenizers` crate panic, or allocate by a number in the file.
//!
//! The crate trusts a few things in `tokenizer.json` that a hostile or damaged file need not
//! respect. Each check here stands for a crash that fuzzing found or reading the crate showed;
//! what is merely wrong, the crate reports itself.

use serde_json::{Map, Value};

/// Ids at or above this are refused: the crate keeps tables as long as the largest id. The
/// largest published vocabulary (XLM-V) has 901,629 pieces.
pub(super) const ID_LIMIT: u64 = 1 << 21;

/// Longest piece in bytes; the crate stores lengths in 16 bits.
pub(super) const PIECE_LIMIT: usize = u16::MAX as usize;

/// What is wrong with the parts of a tokenizer in the crate's current format, if anything.
pub(super) fn find_fault(root: &Map<String, Value>) -> Option<&'static str> {
    let merges_fault = root.get("model").is_some_and(|model| !merges_fit(model));
    let normalizer = root.get("normalizer");
    let charsmap_fault = normalizer.is_some_and(|normalizer| !charsmaps_fit(normalizer));
    match (merges_fault, charsmap_fault) {
        (true, _) => Some("a merge does not continue with `continuing_subword_prefix`"),
        (_, true) => Some("`precompiled_charsmap` is damaged"),
        _ => None,
    }
}

/// The crate cuts the prefix off the right half of each merge without looking.
fn merges_fit(model: &Value) -> bool {
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("");
    let merges = model.get("merges").and_then(Value::as_array);
    let right_half = |merge: &Value| merge.get(1)?.as_str().map(|right| right.starts_with(prefix));
    prefix.is_empty() || merges.into_iter().flatten().all(|m| right_half(m).unwrap_or(true))
}

fn charsmaps_fit(normalizer: &Value) -> bool {
    let members = normalizer.get("normalizers").and_then(Value::as_array);
    let charsmap = normalizer.get("precompiled_charsmap").and_then(Value::as_str);
    members.into_iter().flatten().all(charsmaps_fit)
        && charsmap.is_none_or(|text| charsmap_is_sound(&base64(text)))
}

/// Whether a walk through SentencePiece's double array stays inside of it, whatever the text.
///
/// The map is the array's size in bytes, the array of 32-bit units, and the replacements, each
/// ended by a NUL. A unit holds the byte it is reached by, the offset to its children, and whether
/// one of them is a leaf, whose unit holds the position of a replacement.
fn charsmap_is_sound(map: &[u8]) -> bool {
    let Some((size, rest)) = map.split_first_chunk::<4>() else {
        return false;
    };
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    let Some((units, replacements)) = rest.split_at_checked(size) else {
        return false;
    };
    let Ok(replacements) = std::str::from_utf8(replacements) else {
        return false;
    };
    let units: Vec<usize> = units
        .chunks_exact(4)
        .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]) as usize)
        .collect();
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let label = |unit: usize| unit & ((1 << 31) | 0xff);
    let has_leaf = |unit: usize| (unit >> 8) & 1 == 1;
    let replacement = |unit: usize| unit & ((1 << 31) - 1);

    let Some(&root) = units.first() else {
        return false;
    };
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(root)];
    while let Some(node) = open.pop() {
        // Children lie at the node's position with the low eight bits changed.
        if node | 0xff >= units.len() {
            return false;
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for byte in 1..=0xff {
            let unit = units[node ^ byte];
            if label(unit) != byte {
                continue;
            }
            let child = node ^ byte ^ offset(unit);
            open.push(child);
            let leaf = units.get(child).copied().filter(|_| has_leaf(unit));
            if leaf.is_some_and(|leaf| !replacements.is_char_boundary(replacement(leaf))) {
                return false;
            }
        }
    }
    true
}

/// The bytes of base64 text, up to the first character that is none of its alphabet. The crate
/// reads the text again, and more strictly.
fn base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for character in text.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_gives_the_bytes_back() {
        let cases =
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")];
        for (text, expected) in cases {
            assert_eq!(base64(text), expected.as_bytes(), "{text}");
        }
        assert_eq!(base64("+/+/"), [0xfb, 0xff, 0xbf]);
    }

    /// A map with one rule, `a` to `xyz`: the root's children at 0, the leaf below `a` at 512.
    fn one_rule() -> Vec<u8> {
        let mut units = [0_u32; 768];
        units[usize::from(b'a')] = ((512 ^ u32::from(b'a')) << 10) | 1 << 8 | u32::from(b'a');
        units[512] = 1 << 31;
        let size = (units.len() * 4) as u32;
        let units = units.iter().flat_map(|unit| unit.to_le_bytes());
        size.to_le_bytes().into_iter().chain(units).chain(*b"xyz\0").collect()
    }

    #[test]
    fn a_sound_map_passes_and_each_damage_does_not() {
        let sound = one_rule();
        assert!(charsmap_is_sound(&sound));
        let unit = |index: usize| 4 + index * 4;
        let damages: [(&str, usize, u32); 5] = [
            ("size beyond the file", 0, u32::MAX),
            ("no array", 0, 0),
            ("array cut inside a block", 0, 700 * 4),
            ("child outside", unit(97), 1 << 30 | 1 << 8 | 97),
            ("replacement outside", unit(512), 1 << 31 | 5),
        ];
        for (what, at, value) in damages {
            let mut damaged = sound.clone();
            damaged[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(!charsmap_is_sound(&damaged), "{what}");
        }
    }
}
