//! Lines of bounded length, a block of them at a time, which plain texts and JSONL share.
//!
//! Finding where lines end is all that must be done in order; what they hold is looked at a block
//! at a time, by as many threads as there are.

use std::io::{self, Read};

/// UTF-8's byte order mark, which some editors put before the first line.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Bytes to read at once: large enough to make system calls rare.
const READ_BYTES: usize = 256 << 10;

/// Reads whole lines; a longer line than the limit is passed over without being held.
pub(super) struct BlockReader {
    reader: Box<dyn Read + Send>,
    /// The longest line that is held, in bytes.
    limit: usize,
    /// What has been read of the next block.
    rest: Vec<u8>,
    /// Number of the next line, from 1.
    next_line: u64,
    bytes_read: u64,
    /// Size of the last block, for the next.
    block_bytes: usize,
}

/// Consecutive lines.
pub(super) struct Block {
    bytes: Vec<u8>,
    /// Where each line ends in `bytes`: before its `\n`, which the last of a file may lack.
    ends: Vec<usize>,
    /// The lines that were too long, of which nothing is held.
    too_long: Vec<usize>,
    /// Number of the first line, from 1.
    first_line: u64,
    limit: usize,
    /// Bytes of the file up to the end of this block.
    pub(super) bytes_read: u64,
}

/// One line, without its end (`\n` or `\r\n`).
#[derive(Clone, Copy)]
pub(super) enum Line<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// It was longer than the limit.
    TooLong,
}

impl BlockReader {
    pub(super) fn new(reader: Box<dyn Read + Send>, limit: usize) -> Self {
        let rest = Vec::new();
        Self { reader, limit, rest, next_line: 1, bytes_read: 0, block_bytes: 0 }
    }

    /// The next lines: `lines` of them, or fewer where they take `bytes` or the input ends.
    pub(super) fn next_block(&mut self, lines: usize, bytes: usize) -> io::Result<Option<Block>> {
        let (rest, limit) = (std::mem::take(&mut self.rest), self.limit);
        let mut block = Block {
            bytes: rest,
            ends: Vec::new(),
            too_long: Vec::new(),
            first_line: self.next_line,
            limit,
            bytes_read: 0,
        };
        block.bytes.reserve(self.block_bytes + READ_BYTES);
        // Of the current line: its start, how far it has no end, and what of it was let go.
        let (mut start, mut searched, mut passed) = (0, 0, 0);
        let mut all_passed = 0;
        while block.ends.len() < lines.max(1) && start + all_passed < bytes.max(1) {
            let found = memchr::memchr(b'\n', &block.bytes[searched..]);
            let end = found.map_or(block.bytes.len(), |at| searched + at);
            // One byte of grace: the `\r` of a line end is cut off later.
            if passed > 0 || end - start > limit + 1 {
                passed += end - start;
                block.bytes.drain(start..end);
                if found.is_some() {
                    block.too_long.push(block.ends.len());
                    all_passed += std::mem::take(&mut passed);
                    block.ends.push(start);
                    start += 1;
                }
                searched = start;
            } else if found.is_some() {
                block.ends.push(end);
                start = end + 1;
                searched = start;
            } else {
                searched = end;
            }
            if found.is_none() && self.fill(&mut block.bytes)? == 0 {
                if passed > 0 {
                    block.too_long.push(block.ends.len());
                    all_passed += passed;
                }
                if passed > 0 || start < searched {
                    block.ends.push(searched);
                    start = searched;
                }
                break;
            }
        }
        self.rest = block.bytes[start..].to_vec();
        block.bytes.truncate(start);
        self.block_bytes = start;
        self.next_line += block.ends.len() as u64;
        self.bytes_read += (start + all_passed) as u64;
        block.bytes_read = self.bytes_read;
        Ok((!block.ends.is_empty()).then_some(block))
    }

    /// Appends what the reader has, and tells how much that was: 0 at its end.
    fn fill(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let held = bytes.len();
        bytes.resize(held + READ_BYTES, 0);
        let read = loop {
            match self.reader.read(&mut bytes[held..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        bytes.truncate(held + read.as_ref().map_or(0, |read| *read));
        read
    }
}

impl Block {
    /// Number of lines.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes that are held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The lines with their numbers, from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (u64, Line<'_>)> {
        let mut start = 0;
        (self.first_line..).zip(self.ends.iter().enumerate()).map(move |(number, (index, &end))| {
            let mut line = &self.bytes[start..end];
            start = end + 1;
            if number == 1 {
                line = line.strip_prefix(BOM).unwrap_or(line);
            }
            line = line.strip_suffix(b"\r").unwrap_or(line);
            let too_long = line.len() > self.limit || self.too_long.binary_search(&index).is_ok();
            (number, if too_long { Line::TooLong } else { Line::Bytes(line) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines read; `None` where one was too long.
    type Held = Vec<Option<Vec<u8>>>;

    /// Gives a few bytes at a time.
    struct Slow(io::Cursor<Vec<u8>>, usize);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = self.1.min(buffer.len());
            self.0.read(&mut buffer[..most])
        }
    }

    fn lines(input: &[u8], limit: usize, at_once: usize, block: (usize, usize)) -> Held {
        let slow = Slow(io::Cursor::new(input.to_vec()), at_once);
        let mut reader = BlockReader::new(Box::new(slow), limit);
        let (mut lines, mut bytes_read) = (Vec::new(), 0);
        while let Some(block) = reader.next_block(block.0, block.1).unwrap() {
            for (number, line) in block.lines() {
                assert_eq!(number, lines.len() as u64 + 1);
                lines.push(match line {
                    Line::Bytes(bytes) => Some(bytes.to_vec()),
                    Line::TooLong => None,
                });
            }
            assert!(block.bytes_read > bytes_read);
            bytes_read = block.bytes_read;
        }
        assert_eq!(bytes_read, input.len() as u64);
        lines
    }

    #[test]
    fn line_ends_marks_and_limits() {
        let some = |text: &str| Some(text.as_bytes().to_vec());
        let cases: [(&[u8], Held); 12] = [
            (b"", vec![]),
            (b"a", vec![some("a")]),
            (b"a\n", vec![some("a")]),
            (b"\n\n", vec![some(""), some("")]),
            (b"a\n\nb\n", vec![some("a"), some(""), some("b")]),
            (b"a\r\nb\r\n", vec![some("a"), some("b")]),
            (b"a\rb\n", vec![some("a\rb")]),
            (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", vec![some("a"), some("\u{feff}b")]),
            (b"12345\r\n123456\n1", vec![some("12345"), None, some("1")]),
            (
                b"1\n12345678901234\n\n123456\n12\n",
                vec![some("1"), None, some(""), None, some("12")],
            ),
            (b"12345678", vec![None]),
            (b"1\n1234567", vec![some("1"), None]),
        ];
        for (input, want) in cases {
            for at_once in [1, 2, 3, 7, 1000] {
                for block in [(1, 1000), (2, 1000), (1000, 1), (1000, 4), (1000, 1000)] {
                    let got = lines(input, 5, at_once, block);
                    let case = String::from_utf8_lossy(input);
                    assert_eq!(got, want, "{case:?}, {at_once} bytes at once, blocks of {block:?}");
                }
            }
        }
    }

    #[test]
    fn blocks_end_at_either_limit() {
        let mut reader = BlockReader::new(Box::new(io::Cursor::new(b"12\n".repeat(10))), 5);
        let sizes: Vec<_> = [(4, 100), (100, 7), (100, 6), (100, 100)]
            .map(|(lines, bytes)| reader.next_block(lines, bytes).unwrap().unwrap().len())
            .into();
        assert_eq!(sizes, [4, 3, 2, 1]);
        assert!(reader.next_block(1, 1).unwrap().is_none());
    }

    #[test]
    fn a_line_without_end_is_not_held() {
        let input = io::repeat(b'x').take(64 << 20);
        let mut reader = BlockReader::new(Box::new(input), 1000);
        let block = reader.next_block(10, 1 << 20).unwrap().unwrap();
        assert!(matches!(block.lines().next(), Some((1, Line::TooLong))));
        assert_eq!(block.bytes_read, 64 << 20);
        assert!(block.bytes.capacity() < 4 * READ_BYTES);
    }
}
