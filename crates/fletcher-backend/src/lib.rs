//! Where the encoder runs: one folder per device, one row each in [`registry`].
//!
//! A program that embeds without the command line needs this crate, `fletcher-core`, and
//! `fletcher-hub` or another [`ModelFiles`](fletcher_core::ModelFiles):
//!
//! ```
//! use fletcher_backend::{DeviceChoice, registry};
//! use fletcher_core::backend::Precision;
//! use fletcher_core::{EmbedOptions, Model};
//! use fletcher_hub::ModelFolder;
//!
//! let folder = ModelFolder::open("../../models/fletcher-tiny")?;
//! let model = Model::open(&folder, Default::default())?;
//! let embedder = registry::open(DeviceChoice::Cpu, Precision::Auto, model, Default::default())?;
//!
//! let answer = embedder.embed(&["The quick brown fox", "jumps"], &EmbedOptions::default())?;
//! for (row, outcome) in answer.rows.iter().enumerate() {
//!     match outcome {
//!         Ok(_) => assert_eq!(answer.vector(row).map(<[f32]>::len), Some(embedder.dim())),
//!         Err(why) => println!("text {row} has no vector: {why}"),
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cpu;
pub mod cuda;
pub mod registry;
pub mod wgpu;

pub use registry::{DeviceChoice, DeviceReport, devices};
