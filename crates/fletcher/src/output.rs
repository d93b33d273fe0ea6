//! What a command prints as its result.

use std::io::{self, Write};

use crate::failure::Failure;

/// Writes to standard output, where a reader may have left or a disk be full.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|error| {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::work(format!("cannot write standard output: {error}")),
        }
    })
}
