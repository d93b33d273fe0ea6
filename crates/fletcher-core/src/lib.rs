//! The engine: text in, vectors out.
//!
//! ```text
//! &str ─text→ TokenIds ─pack→ PackedBatch ─encoder→ Hidden[tokens × d] ─head→ Vectors ─→ sink
//! ```
//!
//! The modules below are listed in that order, then what they are made of. The crate opens no
//! file, reads no clock and no environment, names no device, and has no `unsafe`.

#![forbid(unsafe_code)]

pub mod text;

pub mod pack;

pub mod encoder;

pub mod head;

pub mod embedder;

pub mod architectures;
pub mod backend;
pub mod config;
pub mod conformance;
pub mod error;
pub mod fingerprint;
pub mod model;
pub mod names;
pub mod reference;
pub mod spec;
pub mod weights;

pub use backend::Pooling;
pub use embedder::{EmbedOptions, Embedder, Embedding};
pub use error::ModelError;
pub use model::{Model, ModelFiles};
pub use text::{Overlong, TextEncoder};
