//! Bulk files: texts in, the same rows with vectors out.
//!
//! A [`Source`] reads texts as bounded [`Chunk`]s in file order; a [`Sink`] takes each chunk back
//! together with its vectors. Between the two the caller turns `chunk.texts` into vectors by any
//! means it likes: this crate knows nothing of models or devices.
//!
//! Three promises hold for every pair of source and sink:
//! - **Every row once, in order.** A row that has no usable text keeps its place; with
//!   [`OnError::Skip`] it carries a null vector and a message, with [`OnError::Fail`] it ends the
//!   run.
//! - **Bounded memory.** Nothing but one chunk, two for each thread that reads or makes rows ahead,
//!   and a writer's own buffer is held, whatever the size of the input; [`ChunkLimits`] states the
//!   bound.
//! - **All or nothing.** A file appears at the output path only when it is complete.

mod chunk;
mod error;
mod format;
mod guard;
mod reference;
mod sink;
mod source;
mod spool;
mod texts;
mod threads;

pub use chunk::{Chunk, ChunkLimits, OnError, Payload, RowError, RowLocation, RowProblem, Vectors};
pub use error::{SinkError, SourceError};
pub use format::{SinkFormat, SourceFormat, UnknownFormat};
pub use guard::is_panic_expected;
pub use reference::{ReferenceRow, read_reference};
pub use sink::{Sink, SinkOptions, SinkTarget, create_sink};
pub use source::{Source, SourceInput, SourceOptions, SourceSchema, open_source};
pub use texts::{Objects, Texts};
