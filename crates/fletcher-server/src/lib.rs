//! The server: every dialect in front of one engine.
//!
//! ```text
//! listen ─TLS, limits→ http/{openai,tei,cohere,ollama,encode} ┐
//!                      grpc/ (tei.v1)  flight/                ┴→ service ─cache→ batcher → engine
//! ```
//!
//! A dialect parses its requests, calls [`Service::embed`] and words the answer; it knows nothing
//! of the queue. The queue knows nothing of protocols.

#![forbid(unsafe_code)]

pub mod batcher;
mod cache;
pub mod error;
pub mod inputs;
pub mod metrics;
pub mod service;

pub use error::{RequestError, ServeError};
pub use service::{Service, ServiceConfig};
