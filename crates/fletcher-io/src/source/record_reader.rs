//! CSV records of bounded length, with the line on which each begins.

use std::io::{self, BufRead, BufReader, Read};

use csv_core::ReadRecordResult;

/// Reads one record at a time into a buffer of its own.
pub(super) struct RecordReader {
    reader: BufReader<Box<dyn Read + Send>>,
    parser: csv_core::Reader,
    /// The longest record, in bytes as written.
    limit: usize,
    /// Line of the next byte, from 1.
    line: u64,
    bytes_read: u64,
    /// The fields of the last record, unquoted, one after the other.
    fields: Vec<u8>,
    /// Where each of them ends; longer than there are fields.
    ends: Vec<usize>,
    /// How many fields there are.
    count: usize,
}

/// Why no further record can be read. All but `Io` are the file's fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "the record of line {line} is longer than {limit_bytes} bytes; a quote may be unclosed"
    )]
    TooLong { line: u64, limit_bytes: usize },
    #[error("the record of line {line} spans lines and has an odd quote: one is never closed")]
    Unclosed { line: u64 },
}

/// What the bytes of a record showed, for the checks that the parser does not make.
#[derive(Default)]
struct Seen {
    bytes: usize,
    quotes: usize,
}

impl RecordReader {
    pub(super) fn new(reader: Box<dyn Read + Send>, delimiter: u8, limit: usize) -> Self {
        Self {
            reader: BufReader::with_capacity(256 << 10, reader),
            parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            limit,
            line: 1,
            bytes_read: 0,
            fields: vec![0; 1024],
            ends: vec![0; 64],
            count: 0,
        }
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The fields of the record last read.
    pub(super) fn fields(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.count).map(|index| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            &self.fields[start..self.ends[index]]
        })
    }

    /// Reads the next record; the line on which it begins, or `None` at the end.
    pub(super) fn next_record(&mut self) -> Result<Option<u64>, RecordError> {
        self.skip_line_ends()?;
        let line = self.line;
        let (mut written, mut seen) = (0, Seen::default());
        self.count = 0;
        loop {
            let input = fill(&mut self.reader)?;
            let (result, read, wrote, ended) = self.parser.read_record(
                input,
                &mut self.fields[written..],
                &mut self.ends[self.count..],
            );
            let consumed = &input[..read];
            seen.bytes += read;
            seen.quotes += memchr::memchr_iter(b'"', consumed).count();
            self.line += memchr::memchr_iter(b'\n', consumed).count() as u64;
            self.bytes_read += read as u64;
            self.reader.consume(read);
            (written, self.count) = (written + wrote, self.count + ended);
            if seen.bytes > self.limit {
                return Err(RecordError::TooLong { line, limit_bytes: self.limit });
            }
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.fields.resize(2 * self.fields.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record if self.is_unclosed(&seen) => {
                    return Err(RecordError::Unclosed { line });
                }
                ReadRecordResult::Record => return Ok(Some(line)),
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Passes over blank lines and the `\n` that the parser leaves of a `\r\n`, so that the line
    /// of a record is that of its first byte.
    fn skip_line_ends(&mut self) -> io::Result<()> {
        loop {
            let input = fill(&mut self.reader)?;
            let length = input.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
            if length == 0 {
                return Ok(());
            }
            self.line += memchr::memchr_iter(b'\n', &input[..length]).count() as u64;
            self.bytes_read += length as u64;
            self.reader.consume(length);
        }
    }

    /// Whether the record swallowed lines in a quoted field that was not meant to go on. The
    /// parser forgives this, and rows would be lost; in a well-formed record quotes are even.
    fn is_unclosed(&self, seen: &Seen) -> bool {
        seen.quotes % 2 == 1 && self.fields().any(|field| field.contains(&b'\n'))
    }
}

/// The bytes at hand; none at the end of the input.
fn fill(reader: &mut BufReader<Box<dyn Read + Send>>) -> io::Result<&[u8]> {
    while let Err(e) = reader.fill_buf() {
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    Ok(reader.buffer())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records with their lines; the error that ended them.
    fn records(input: &str, limit: usize) -> (Vec<(u64, Vec<String>)>, Option<String>) {
        let bytes = Box::new(io::Cursor::new(input.as_bytes().to_vec()));
        let mut reader = RecordReader::new(bytes, b',', limit);
        let mut records = Vec::new();
        loop {
            match reader.next_record() {
                Ok(Some(line)) => {
                    let fields = reader.fields().map(|f| String::from_utf8_lossy(f).into_owned());
                    records.push((line, fields.collect()));
                }
                Ok(None) => {
                    assert_eq!(reader.bytes_read(), input.len() as u64);
                    return (records, None);
                }
                Err(e) => return (records, Some(e.to_string())),
            }
        }
    }

    #[test]
    fn records_know_their_line() {
        type Wanted<'a> = &'a [(u64, &'a [&'a str])];
        let cases: [(&str, Wanted<'_>); 8] = [
            ("", &[]),
            ("\n\r\n", &[]),
            ("a,b\n1,2\n", &[(1, &["a", "b"]), (2, &["1", "2"])]),
            ("a,b\r\n1,2\r\n3", &[(1, &["a", "b"]), (2, &["1", "2"]), (3, &["3"])]),
            ("a\n\n\n1\n", &[(1, &["a"]), (4, &["1"])]),
            ("\"x\ny\"\n1\n", &[(1, &["x\ny"]), (3, &["1"])]),
            ("\"x\r\ny\"\"\"\r\n,\r\n", &[(1, &["x\r\ny\""]), (3, &["", ""])]),
            ("\u{feff}a\n\"last\nfield\"", &[(1, &["a"]), (2, &["last\nfield"])]),
        ];
        for (input, want) in cases {
            let (got, error) = records(input, 100);
            let got: Vec<_> =
                got.iter().map(|(l, f)| (*l, f.iter().map(String::as_str).collect())).collect();
            let want: Vec<(u64, Vec<&str>)> =
                want.iter().map(|(line, fields)| (*line, fields.to_vec())).collect();
            assert_eq!((got, error), (want, None), "{input:?}");
        }
    }

    #[test]
    fn fields_and_records_may_outgrow_the_buffers() {
        let row: Vec<String> = (0..300).map(|n| format!("{n:050}")).collect();
        let (got, error) = records(&row.join(","), 1 << 20);
        assert_eq!((got, error), (vec![(1, row)], None));
    }

    #[test]
    fn quotes_without_end_are_errors() {
        for (input, limit, want) in [
            ("a\n\"b\nc\nd", 100, "the record of line 2 spans lines"),
            ("a\n\"b\nc,\"d\"\n", 100, "the record of line 2 spans lines"),
            ("a\nb\n\"cccccccc\n\nd\n", 8, "the record of line 3 is longer than 8 bytes"),
        ] {
            let error = records(input, limit).1.unwrap_or_default();
            assert!(error.contains(want), "{input:?}: {error:?}");
        }
    }
}
