//! A file without a name for what is needed from its end and comes or goes from its beginning.
//!
//! It lies where the system has temporary files, which is seldom the disk that the user thinks of
//! when none is left; so its errors say where that is.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

/// Bytes on their way to or from a stream.
pub(crate) struct Spool(File);

impl Spool {
    pub(crate) fn new() -> io::Result<Self> {
        tempfile::tempfile().map(Self).map_err(in_place)
    }

    /// The content from its first byte on.
    pub(crate) fn into_file(mut self) -> io::Result<File> {
        self.0.rewind()?;
        Ok(self.0)
    }

    /// Takes all that a stream has.
    pub(crate) fn fill(&mut self, mut stream: impl Read) -> io::Result<()> {
        io::copy(&mut stream, self).map(drop)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(in_place)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(in_place)
    }
}

fn in_place(error: io::Error) -> io::Error {
    let folder = tempfile::env::temp_dir();
    let message = format!("it passes through {} (TMPDIR), where: {error}", folder.display());
    io::Error::new(error.kind(), message)
}
