//! npy: the vectors alone, as one array `[rows × dim]` of little-endian f32.

use std::io::{self, BufWriter, Write};

use crate::chunk::{Chunk, Vectors};
use crate::error::SinkError;
use crate::sink::output::Output;
use crate::sink::{Sink, SinkContext};
use crate::spool::Spool;

/// The header, padded to a fixed length, so that the number of rows can be put in at the end.
const HEADER_BYTES: usize = 128;

pub(super) struct Npy {
    output: Output,
    /// The values, where the output is a stream, which cannot take the header afterwards.
    spool: Option<BufWriter<Spool>>,
    rows: u64,
    context: SinkContext,
}

impl Npy {
    pub(super) fn new(mut output: Output, context: SinkContext) -> Result<Self, SinkError> {
        let spool = if output.is_stream() {
            Some(BufWriter::new(Spool::new().map_err(|e| context.io(e))?))
        } else {
            output.write_all(&header(0, context.dim)).map_err(|e| context.io(e))?;
            None
        };
        Ok(Self { output, spool, rows: 0, context })
    }

    fn write_values(&mut self, values: &[f32]) -> io::Result<()> {
        let writer: &mut dyn Write = match &mut self.spool {
            Some(spool) => spool,
            None => &mut self.output,
        };
        let mut bytes = Vec::with_capacity(4 * self.context.dim);
        for row in values.chunks(self.context.dim.max(1)) {
            bytes.clear();
            bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
            writer.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Puts the number of rows into the header.
    fn complete(&mut self) -> io::Result<()> {
        let header = header(self.rows, self.context.dim);
        let Some(spool) = self.spool.take() else {
            return self.output.overwrite_start(&header);
        };
        let spool = spool.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut spool = spool.into_file()?;
        self.output.write_all(&header)?;
        io::copy(&mut spool, &mut self.output).map(drop)
    }
}

impl Sink for Npy {
    fn write(&mut self, chunk: Chunk, vectors: Vectors) -> Result<(), SinkError> {
        self.context.row_errors(&chunk, &vectors)?;
        self.write_values(&vectors.values).map_err(|e| self.context.io(e))?;
        self.rows += chunk.len() as u64;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), SinkError> {
        self.complete().map_err(|e| self.context.io(e))?;
        self.output.commit()
    }
}

/// A version 1.0 header: magic, version, length, and a Python dictionary padded with spaces.
/// Source: the "npy format" page of the NumPy manual.
fn header(rows: u64, dim: usize) -> [u8; HEADER_BYTES] {
    const PREFIX: &[u8; 8] = b"\x93NUMPY\x01\x00";
    let dictionary =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut header = [b' '; HEADER_BYTES];
    header[..8].copy_from_slice(PREFIX);
    header[8..10].copy_from_slice(&((HEADER_BYTES - 10) as u16).to_le_bytes());
    // Two numbers of 20 digits leave room to spare.
    header[10..10 + dictionary.len()].copy_from_slice(dictionary.as_bytes());
    header[HEADER_BYTES - 1] = b'\n';
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_shape_fits_the_header() {
        let header = header(u64::MAX, usize::MAX);
        assert!(header.ends_with(b", }                         \n") || header.ends_with(b" \n"));
        assert!(String::from_utf8_lossy(&header).contains("(18446744073709551615, "));
    }
}
