//! Lines of bounded length, which plain texts and JSONL share.

use std::io::{self, BufRead, BufReader, Read};

/// UTF-8's byte order mark, which some editors put before the first line.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Reads lines without their ends (`\n` or `\r\n`); a longer line than the limit is passed over
/// without being held.
pub(super) struct LineReader {
    reader: BufReader<Box<dyn Read + Send>>,
    /// The longest line that is held, in bytes.
    limit: usize,
    /// Number of the line last read, from 1.
    number: u64,
    bytes_read: u64,
    line: Vec<u8>,
}

/// One line.
pub(super) enum Line<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// It was longer than the limit.
    TooLong,
}

impl LineReader {
    pub(super) fn new(reader: Box<dyn Read + Send>, limit: usize) -> Self {
        let reader = BufReader::with_capacity(256 << 10, reader);
        Self { reader, limit, number: 0, bytes_read: 0, line: Vec::new() }
    }

    /// Number of the line last read, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The next line; `None` at the end. A file's last line may lack its end.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let mut too_long = false;
        let mut read_any = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if available.is_empty() {
                break;
            }
            read_any = true;
            let end = memchr::memchr(b'\n', available);
            let part = &available[..end.unwrap_or(available.len())];
            // One byte of grace: the `\r` of a line end is cut off below.
            too_long |= self.line.len() + part.len() > self.limit + 1;
            if too_long {
                self.line.clear();
            } else {
                self.line.extend_from_slice(part);
            }
            let consumed = part.len() + usize::from(end.is_some());
            self.reader.consume(consumed);
            self.bytes_read += consumed as u64;
            if end.is_some() {
                break;
            }
        }
        if !read_any {
            return Ok(None);
        }
        self.number += 1;
        let mut line = self.line.as_slice();
        if self.number == 1 {
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        line = line.strip_suffix(b"\r").unwrap_or(line);
        too_long |= line.len() > self.limit;
        Ok(Some(if too_long { Line::TooLong } else { Line::Bytes(line) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines read; `None` where one was too long.
    type Held = Vec<Option<Vec<u8>>>;

    fn lines(input: &[u8], limit: usize) -> Held {
        let mut reader = LineReader::new(Box::new(io::Cursor::new(input.to_vec())), limit);
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            lines.push(match line {
                Line::Bytes(bytes) => Some(bytes.to_vec()),
                Line::TooLong => None,
            });
        }
        assert_eq!(reader.bytes_read(), input.len() as u64);
        assert_eq!(reader.number(), lines.len() as u64);
        lines
    }

    #[test]
    fn line_ends_marks_and_limits() {
        let some = |text: &str| Some(text.as_bytes().to_vec());
        let cases: [(&[u8], Held); 9] = [
            (b"", vec![]),
            (b"a", vec![some("a")]),
            (b"a\n", vec![some("a")]),
            (b"a\n\nb\n", vec![some("a"), some(""), some("b")]),
            (b"a\r\nb\r\n", vec![some("a"), some("b")]),
            (b"a\rb\n", vec![some("a\rb")]),
            (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", vec![some("a"), some("\u{feff}b")]),
            (b"12345\r\n123456\n1", vec![some("12345"), None, some("1")]),
            (b"12345678", vec![None]),
        ];
        for (input, want) in cases {
            assert_eq!(lines(input, 5), want, "{:?}", String::from_utf8_lossy(input));
        }
    }
}
