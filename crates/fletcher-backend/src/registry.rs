//! The devices of this build: one row each, probed without side effects.
//!
//! A device that is absent says why; it is never replaced by another one. `auto` takes the first
//! row that is present and not a reference, and the caller prints what that was.

use fletcher_core::ModelError;
use fletcher_core::embedder::{Embedder, EmbedderConfig};
use fletcher_core::model::Model;
use fletcher_core::reference::Reference;

use crate::cpu::Cpu;

/// What the user asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The fastest device that is present.
    #[default]
    Auto,
    /// The CPU kernels.
    Cpu,
    /// The slow definition in f64, for comparisons.
    Reference,
}

/// One device as found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// The name that `--device` takes.
    pub name: &'static str,
    /// What was found, or why the device cannot be used.
    pub found: Result<String, String>,
}

/// A device row: how to see whether it is there.
struct Row {
    name: &'static str,
    probe: fn() -> Result<String, String>,
}

const ROWS: &[Row] = &[
    Row { name: "cpu", probe: || Ok(Cpu::describe()) },
    Row { name: "reference", probe: || Ok("the definition in f64, one thread, slow".into()) },
];

/// Probes every device of this build.
pub fn devices() -> Vec<DeviceReport> {
    ROWS.iter().map(|row| DeviceReport { name: row.name, found: (row.probe)() }).collect()
}

/// The name of the device that `choice` stands for on this machine.
pub fn resolve(choice: DeviceChoice) -> &'static str {
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => "cpu",
        DeviceChoice::Reference => "reference",
    }
}

/// Loads a model on the chosen device.
///
/// # Errors
/// When the weights do not fit the configuration or the device.
pub fn open(
    choice: DeviceChoice,
    model: Model,
    config: EmbedderConfig,
) -> Result<Embedder, ModelError> {
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            Embedder::new(model, Cpu::new(config.threads), config)
        }
        DeviceChoice::Reference => Embedder::new(model, Reference, config),
    }
}
