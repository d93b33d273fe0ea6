//! Everything that one run of `fletcher bench` measured, as it is written to JSON.

use fletcher_core::embedder::DeviceStatus;
use serde::Serialize;

use crate::bench::machine::{Machine, Memory};
use crate::bench::workload::{LatencyRun, SizeRun, SoakRun, TextRun};

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) fletcher: &'static str,
    pub(crate) date: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) model: ModelFacts,
    pub(crate) device: String,
    pub(crate) precision: String,
    pub(crate) threads: usize,
    /// What the threads can do at most, as measured.
    pub(crate) peak: Option<Peak>,
    /// From the process's start to the loaded model, in milliseconds.
    pub(crate) load_ms: f64,
    /// With the model loaded and nothing embedded.
    pub(crate) idle: Option<Memory>,
    /// At the end of the run.
    pub(crate) devices: Vec<Device>,
    pub(crate) sizes: Option<Sizes>,
    pub(crate) text: Option<TextRun>,
    pub(crate) latency: Vec<LatencyRun>,
    pub(crate) soak: Option<SoakRun>,
}

/// One of the devices that shared the work.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// Blocks that it encoded.
    pub(crate) blocks: u64,
    /// The most of its own memory that was ever allocated, in MiB.
    pub(crate) peak_memory_mib: Option<f64>,
    /// Why it was given up, if it was.
    pub(crate) lost: Option<String>,
}

impl From<DeviceStatus> for Device {
    fn from(status: DeviceStatus) -> Self {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        Self {
            name: status.name,
            blocks: status.blocks,
            peak_memory_mib: status.memory.map(|memory| mib(memory.peak)),
            lost: status.lost,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ModelFacts {
    pub(crate) name: String,
    pub(crate) architecture: &'static str,
    pub(crate) parameters: usize,
    pub(crate) dimensions: usize,
    pub(crate) max_tokens: usize,
}

/// The synthetic workload.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sizes {
    pub(crate) batch_size: usize,
    pub(crate) seq_len: usize,
    /// Operations to embed one sequence.
    pub(crate) flop_per_sequence: f64,
    pub(crate) runs: Vec<SizeRun>,
}

/// The arithmetic peak of a number format.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Peak {
    /// Billions of operations a second.
    pub(crate) gops: f64,
    pub(crate) format: &'static str,
}
