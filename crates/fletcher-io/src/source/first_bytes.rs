//! What an input's first bytes show it to be, where that is not what it is read as. Without this a
//! compressed file would be told as damaged, or with errors skipped become rows of errors.

use crate::format::SourceFormat;

/// Bytes that are looked at.
pub(super) const COUNT: usize = 6;

const UNPACK: &str = "unpack it first, as in `gzip -dc FILE | fletcher embed --input-format jsonl`";
const UTF_8: &str = "convert it to UTF-8, as in `iconv -f UTF-16 -t UTF-8 FILE`";
const NAME_IT: &str = "name the input format";

/// What the bytes are, with its article, and what to do; `None` for what may be read as `format`.
pub(super) fn foreign(
    head: &[u8],
    format: Option<SourceFormat>,
) -> Option<(&'static str, &'static str)> {
    let packed: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "compressed by gzip"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"\xfd7zXZ", "compressed by xz"),
        (b"BZh", "compressed by bzip2"),
        (b"PK\x03\x04", "a ZIP archive (or a spreadsheet)"),
    ];
    let named: [(&[u8], &str); 2] = [(b"PAR1", "a Parquet file"), (b"ARROW1", "an Arrow IPC file")];
    let utf_16: [(&[u8], &str); 2] =
        [(b"\xff\xfe", "text in UTF-16"), (b"\xfe\xff", "text in UTF-16")];
    let is_text = !matches!(format, None | Some(SourceFormat::Parquet | SourceFormat::Arrow));
    // A line of text may begin with these letters, but no file of another format.
    let plain = matches!(format, Some(SourceFormat::Lines));
    let find = |kinds: &[(&[u8], &'static str)], remedy| {
        let found = kinds.iter().find(|(start, _)| head.starts_with(start));
        found.map(|(_, what)| (*what, remedy))
    };
    find(&packed[..3], UNPACK)
        .or_else(|| find(&packed[3..], UNPACK).filter(|_| !plain))
        .or_else(|| find(&utf_16, UTF_8).filter(|_| is_text))
        .or_else(|| find(&named, NAME_IT).filter(|_| is_text && !plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_meant_is_foreign() {
        let found = |head: &[u8], format| foreign(head, format).map(|(what, _)| what);
        let formats = SourceFormat::NAMES.map(|name| name.parse::<SourceFormat>().unwrap());
        for format in formats.map(Some).into_iter().chain([None]) {
            assert_eq!(found(b"\x1f\x8b\x08\0\0\0", format), Some("compressed by gzip"));
            assert_eq!(found(b"{\"text", format), None);
            assert_eq!(found(b"\xef\xbb\xbftex", format), None, "UTF-8 may have its mark");
            assert_eq!(found(b"", format), None);
        }
        // Words that a line may begin with.
        for head in [b"BZhang", b"PAR1S ", b"ARROW1"] {
            assert_eq!(found(head, Some(SourceFormat::Lines)), None);
            assert!(found(head, Some(SourceFormat::Jsonl)).is_some());
        }
        assert_eq!(found(b"PAR1\x15\x04", Some(SourceFormat::Parquet)), None);
        assert_eq!(found(b"ARROW1", Some(SourceFormat::Arrow)), None);
        assert_eq!(found(b"\xff\xfea\0b\0", Some(SourceFormat::Csv)), Some("text in UTF-16"));
        // The first field of a stream of Arrow messages, and half a character's mark.
        assert_eq!(found(b"\xff\xff\xff\xff", Some(SourceFormat::Arrow)), None);
    }
}
