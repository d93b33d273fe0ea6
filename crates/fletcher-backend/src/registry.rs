//! The devices of this build: one row each, probed without side effects.
//!
//! A device that is absent says why; it is never replaced by another one. `auto` stands for one
//! device, by [`resolve`], and the caller prints which.

use std::fmt;
use std::str::FromStr;

use fletcher_core::ModelError;
use fletcher_core::backend::{BackendError, Precision};
use fletcher_core::embedder::{Embedder, EmbedderConfig};
use fletcher_core::model::Model;
use fletcher_core::reference::Reference;

use crate::cpu::Cpu;
use crate::cuda::{Cuda, CudaOptions};
use crate::wgpu::{Api, Wgpu};

/// What the user asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The fastest device that is present; see [`resolve`].
    #[default]
    Auto,
    /// The CPU kernels.
    Cpu,
    /// An NVIDIA card, counted from 0.
    Cuda {
        /// The driver's number of the card.
        index: usize,
    },
    /// A GPU through Vulkan, counted from 0.
    Vulkan {
        /// Its place among the adapters that `fletcher info` lists.
        index: usize,
    },
    /// The Apple GPU.
    Metal,
    /// The slow definition in f64, for comparisons.
    Reference,
}

impl DeviceChoice {
    /// What `--device` takes.
    pub const NAMES: &str = "auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal, reference";
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => write!(f, "auto"),
            DeviceChoice::Cpu => write!(f, "cpu"),
            DeviceChoice::Cuda { index } => write!(f, "cuda:{index}"),
            DeviceChoice::Vulkan { index } => write!(f, "vulkan:{index}"),
            DeviceChoice::Metal => write!(f, "metal"),
            DeviceChoice::Reference => write!(f, "reference"),
        }
    }
}

/// A device name that nothing is called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a device; there are: {}", DeviceChoice::NAMES)]
pub struct UnknownDevice {
    /// What was asked for.
    pub name: String,
}

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice { name: name.to_owned() };
        let (kind, index) = match name.split_once(':') {
            Some((kind, index)) => (kind, Some(index.parse().map_err(|_| unknown())?)),
            None => (name, None),
        };
        match (kind, index) {
            ("auto", None) => Ok(DeviceChoice::Auto),
            ("cpu", None) => Ok(DeviceChoice::Cpu),
            ("cuda", index) => Ok(DeviceChoice::Cuda { index: index.unwrap_or(0) }),
            ("vulkan", index) => Ok(DeviceChoice::Vulkan { index: index.unwrap_or(0) }),
            ("metal", None) => Ok(DeviceChoice::Metal),
            ("reference", None) => Ok(DeviceChoice::Reference),
            _ => Err(unknown()),
        }
    }
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
    Row { name: "cuda", probe: Cuda::describe },
    Row { name: "vulkan", probe: || Wgpu::describe(Api::Vulkan) },
    Row { name: "metal", probe: || Wgpu::describe(Api::Metal) },
    Row { name: "reference", probe: || Ok("the definition in f64, one thread, slow".into()) },
];

/// Probes every device of this build.
pub fn devices() -> Vec<DeviceReport> {
    ROWS.iter().map(|row| DeviceReport { name: row.name, found: (row.probe)() }).collect()
}

/// The device that `choice` stands for on this machine; never [`DeviceChoice::Auto`].
///
/// A Mac has a Metal device, so that there it need not be looked for. Vulkan is used only by name:
/// looking for an adapter loads a driver, which costs a CPU user tens of milliseconds, and what it
/// finds may be a program that plays a GPU on the CPU.
pub fn resolve(choice: DeviceChoice) -> DeviceChoice {
    match choice {
        DeviceChoice::Auto if Cuda::describe().is_ok() => DeviceChoice::Cuda { index: 0 },
        DeviceChoice::Auto if cfg!(target_os = "macos") => DeviceChoice::Metal,
        DeviceChoice::Auto => DeviceChoice::Cpu,
        named => named,
    }
}

/// Loads a model on the chosen device.
///
/// # Errors
/// When the device is absent or has no such precision, or when the weights do not fit the
/// configuration or the device.
pub fn open(
    choice: DeviceChoice,
    precision: Precision,
    model: Model,
    config: EmbedderConfig,
) -> Result<Embedder, ModelError> {
    let device = resolve(choice);
    let only_f32 = || match precision {
        Precision::Auto | Precision::F32 => Ok(()),
        precision => {
            Err(BackendError::NoPrecision { device: device.to_string(), precision, has: "f32" })
        }
    };
    match device {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let cpu = Cpu::new(config.threads).with_precision(precision)?;
            Embedder::new(model, cpu, config)
        }
        DeviceChoice::Reference => {
            only_f32()?;
            Embedder::new(model, Reference, config)
        }
        DeviceChoice::Cuda { index } => {
            let memory_bytes = config.device_memory;
            let options = CudaOptions { index, precision, memory_bytes, ..Default::default() };
            Embedder::new(model, Cuda::open(options)?, config)
        }
        DeviceChoice::Vulkan { index } => {
            Embedder::new(model, Wgpu::open(Api::Vulkan, index, precision)?, config)
        }
        DeviceChoice::Metal => Embedder::new(model, Wgpu::open(Api::Metal, 0, precision)?, config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_read_back() {
        let names = ["auto", "cpu", "cuda:0", "cuda:3", "vulkan:1", "metal", "reference"];
        for name in names {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda { index: 0 }));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "metal:0"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }
}
