//! Everything that one run of `fletcher bench` measured, as it is written to JSON.

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
    pub(crate) sizes: Option<Sizes>,
    pub(crate) text: Option<TextRun>,
    pub(crate) latency: Vec<LatencyRun>,
    pub(crate) soak: Option<SoakRun>,
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
