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

pub mod answer;
pub mod auth;
mod background;
pub mod batcher;
mod cache;
mod columns;
mod context;
mod datasets;
pub mod error;
mod flight;
mod forward;
pub mod grpc;
mod guard;
mod guarded_io;
mod hash;
mod http;
pub mod inputs;
mod ipc;
mod json;
mod listen;
pub mod metrics;
pub mod server;
pub mod service;
pub mod tls;
mod trace;
mod unread_body;

pub use error::{RequestError, ServeError};
pub use forward::ForwardConfig;
pub use guard::is_panic_expected;
pub use http::HttpConfig;
pub use listen::{Address, ConnectionLimits};
pub use server::{Server, ServerConfig};
pub use service::{Service, ServiceConfig};
pub use trace::{TraceConfig, TraceProtocol};
