//! An opened input before its format is known: a file that can seek, or a stream that cannot.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::Path;

use crate::spool::Spool;

/// Bytes to read, from their start.
pub(super) enum Bytes {
    /// A regular file.
    File(File),
    /// A pipe, a device or standard input.
    Stream(Box<dyn Read + Send>),
}

impl Bytes {
    /// Opens a path; a folder is refused here, since reading it would fail less clearly later.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let kind = file.metadata()?;
        if kind.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder, not a file"));
        }
        Ok(if kind.is_file() { Self::File(file) } else { Self::Stream(Box::new(file)) })
    }

    /// The size, where it is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Self::File(file) => file.metadata().ok().map(|meta| meta.len()),
            Self::Stream(_) => None,
        }
    }

    /// The first bytes (fewer at the end of the input), and all bytes from the start again.
    pub(super) fn peek(self, count: u64) -> io::Result<(Vec<u8>, Self)> {
        let mut head = Vec::new();
        let all = match self {
            Self::File(mut file) => {
                file.by_ref().take(count).read_to_end(&mut head)?;
                file.rewind()?;
                Self::File(file)
            }
            Self::Stream(mut rest) => {
                rest.by_ref().take(count).read_to_end(&mut head)?;
                Self::Stream(Box::new(Cursor::new(head.clone()).chain(rest)))
            }
        };
        Ok((head, all))
    }

    /// As [`Self::peek`], but of a stream only what one read brings: whoever types a line waits for
    /// its vector, and types no second one.
    pub(super) fn peek_some(self, count: usize) -> io::Result<(Vec<u8>, Self)> {
        match self {
            Self::File(_) => self.peek(count as u64),
            Self::Stream(mut rest) => {
                let mut head = vec![0; count];
                let read = loop {
                    match rest.read(&mut head) {
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        read => break read?,
                    }
                };
                head.truncate(read);
                Ok((head.clone(), Self::Stream(Box::new(Cursor::new(head).chain(rest)))))
            }
        }
    }

    /// The bytes in order.
    pub(super) fn into_reader(self) -> Box<dyn Read + Send> {
        match self {
            Self::File(file) => Box::new(file),
            Self::Stream(reader) => reader,
        }
    }

    /// The bytes as a file that can seek: a stream is copied to an unnamed temporary file.
    pub(super) fn into_file(self) -> io::Result<File> {
        match self {
            Self::File(file) => Ok(file),
            Self::Stream(reader) => {
                let mut spool = Spool::new()?;
                spool.fill(reader)?;
                spool.into_file()
            }
        }
    }
}
