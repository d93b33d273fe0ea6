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
    /// The CPU with the products of Apple's library; vectors may differ in the last bits between
    /// batches.
    Accelerate,
    /// NVIDIA cards, which share the work.
    Cuda {
        /// Which.
        cards: Cards,
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

/// Some of up to 64 cards, or all that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cards(u64);

impl Cards {
    /// All that the driver has.
    pub const ALL: Cards = Cards(u64::MAX);
    /// Cards are counted from 0 to below this.
    const MOST: usize = 64;

    /// One card alone.
    ///
    /// # Panics
    /// If its number is 64 or more.
    pub fn one(index: usize) -> Self {
        assert!(index < Self::MOST, "cards have numbers below {}", Self::MOST);
        Cards(1 << index)
    }

    /// `all`, or numbers with commas between them, none twice.
    fn parse(text: &str) -> Option<Self> {
        if text == "all" {
            return Some(Self::ALL);
        }
        text.split(',').try_fold(Cards(0), |Cards(set), index| {
            let card = Some(index.parse().ok()?).filter(|&index: &usize| index < Self::MOST)?;
            (set & (1 << card) == 0).then_some(Cards(set | (1 << card)))
        })
    }

    /// Their numbers, of `count` that the driver has if all are meant.
    fn indices(self, count: usize) -> Vec<usize> {
        let last = if self == Self::ALL { count.min(Self::MOST) } else { Self::MOST };
        (0..last).filter(|index| self.0 & (1 << index) != 0).collect()
    }
}

impl fmt::Display for Cards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return write!(f, "all");
        }
        let numbers: Vec<String> = self.indices(0).iter().map(usize::to_string).collect();
        write!(f, "{}", numbers.join(","))
    }
}

impl DeviceChoice {
    /// What `--device` takes.
    pub const NAMES: &str = "auto, cpu, accelerate, cuda, cuda:N, cuda:N,M,.., cuda:all, vulkan, vulkan:N, metal, reference";
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => write!(f, "auto"),
            DeviceChoice::Cpu => write!(f, "cpu"),
            DeviceChoice::Accelerate => write!(f, "accelerate"),
            DeviceChoice::Cuda { cards } => write!(f, "cuda:{cards}"),
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
        let (kind, which) = match name.split_once(':') {
            Some((kind, which)) => (kind, Some(which)),
            None => (name, None),
        };
        match (kind, which) {
            ("auto", None) => Ok(DeviceChoice::Auto),
            ("cpu", None) => Ok(DeviceChoice::Cpu),
            ("accelerate", None) => Ok(DeviceChoice::Accelerate),
            ("cuda", None) => Ok(DeviceChoice::Cuda { cards: Cards::one(0) }),
            ("cuda", Some(cards)) => {
                Ok(DeviceChoice::Cuda { cards: Cards::parse(cards).ok_or_else(unknown)? })
            }
            ("vulkan", which) => {
                let index = which.map_or(Ok(0), str::parse).map_err(|_| unknown())?;
                Ok(DeviceChoice::Vulkan { index })
            }
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
    Row { name: "accelerate", probe: describe_accelerate },
    Row { name: "cuda", probe: Cuda::describe },
    Row { name: "vulkan", probe: || Wgpu::describe(Api::Vulkan) },
    Row { name: "metal", probe: || Wgpu::describe(Api::Metal) },
    Row { name: "reference", probe: || Ok("the definition in f64, one thread, slow".into()) },
];

fn describe_accelerate() -> Result<String, String> {
    match cfg!(target_os = "macos") {
        true => Ok("the CPU with Accelerate's products in f32, only by name".into()),
        false => Err("only on Apple's machines".into()),
    }
}

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
        DeviceChoice::Auto if Cuda::describe().is_ok() => {
            DeviceChoice::Cuda { cards: Cards::one(0) }
        }
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
        DeviceChoice::Accelerate => {
            only_f32()?;
            #[cfg(target_os = "macos")]
            return Embedder::new(model, crate::cpu::Accelerate::new(config.threads), config);
            #[cfg(not(target_os = "macos"))]
            {
                let reason = describe_accelerate().err().unwrap_or_default();
                Err(BackendError::Absent { device: device.to_string(), reason }.into())
            }
        }
        DeviceChoice::Reference => {
            only_f32()?;
            Embedder::new(model, Reference, config)
        }
        DeviceChoice::Cuda { cards } => {
            let memory_bytes = config.device_memory;
            let card = |index| {
                Cuda::open(CudaOptions { index, precision, memory_bytes, ..Default::default() })
            };
            let indices = match cards {
                Cards::ALL => cards.indices(Cuda::count().map_err(|reason| {
                    BackendError::Absent { device: device.to_string(), reason }
                })?),
                some => some.indices(0),
            };
            let cards = indices.into_iter().map(card).collect::<Result<Vec<_>, _>>()?;
            Embedder::replicated(model, cards, config)
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
    fn all_cards_are_those_that_there_are() {
        assert_eq!(Cards::ALL.indices(3), [0, 1, 2]);
        assert_eq!(Cards(0b101).indices(1), [0, 2], "a card that was named is not left out");
    }

    #[test]
    fn device_names_read_back() {
        let names = [
            "auto",
            "cpu",
            "accelerate",
            "cuda:0",
            "cuda:3",
            "cuda:0,1",
            "cuda:2,63",
            "cuda:all",
            "vulkan:1",
            "metal",
            "reference",
        ];
        for name in names {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda { cards: Cards::one(0) }));
        assert_eq!("cuda:1,0".parse(), Ok(DeviceChoice::Cuda { cards: Cards(3) }));
        for name in [
            "",
            "gpu",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:0,",
            "cuda:1,1",
            "cuda:64",
            "cpu:0",
            "metal:0",
            "vulkan:",
            "vulkan:all",
        ] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }
}
