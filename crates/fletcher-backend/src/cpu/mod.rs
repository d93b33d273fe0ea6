//! The CPU, through the kernels of the best instruction set that the machine has.
//!
//! In f32 everything is f32. In bf16 the operands of products, the queries, keys and values, the
//! probabilities and what stands between operations is rounded to bf16. In int8 the operands of
//! linear layers are bytes (a step per output feature of a weight, a step and a zero per token of
//! an input, exact integer sums) and attention is as in bf16. The residual stream, norms, softmax
//! and all sums are f32 in each.
//!
//! A worker takes a block of sequences through all layers in its own [`Arena`]; no operation
//! splits work between workers, so nothing waits. The block's activations are meant to stay in
//! the core's L2 cache while the weights stream past. Only a text that is alone is shared by all
//! cores (`split.rs`).

#[cfg(any(test, target_os = "macos"))]
#[cfg_attr(not(target_os = "macos"), expect(unreachable_pub, reason = "exported on a Mac"))]
mod accelerate;
mod arena;
mod encode;
mod ops;
mod peak;
mod split;

#[cfg(target_os = "macos")]
pub use accelerate::Accelerate;
pub use arena::Arena;
pub use peak::peak;

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use fletcher_core::backend::{BackendError, Precision};
use fletcher_kernels::{Format, Kernels, Team};

/// The CPU backend.
#[derive(Debug, Clone)]
pub struct Cpu {
    kernels: Kernels,
    format: Format,
    threads: usize,
    /// Who shares a text that is alone.
    team: Arc<Team>,
    /// Whether a text is shared however little there is to do for it.
    shares_small: bool,
    /// How fast texts that are alone follow each other.
    pace: Arc<split::Pace>,
    /// Batches on their way through the encoder.
    active: Arc<AtomicUsize>,
}

/// What `--precision` can be on the CPU.
const PRECISIONS: &str = "f32, bf16, int8";

impl Cpu {
    /// Uses `threads` workers, and f32; 0 stands for the CPUs that this process may use.
    pub fn new(threads: usize) -> Self {
        Self::with_kernels(Kernels::detect(), threads)
    }

    /// As [`Self::new`], with the kernels of a chosen instruction set.
    pub fn with_kernels(kernels: Kernels, threads: usize) -> Self {
        let allowed = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if threads == 0 { allowed() } else { threads };
        let team = Arc::new(Team::new(threads.min(split::MEMBERS_MAX)));
        let (pace, active) = Default::default();
        Self { kernels, format: Format::F32, threads, team, shares_small: false, pace, active }
    }

    /// The same in another number format. `auto` is f32: the CPU never trades a vector's digits for
    /// speed unasked.
    ///
    /// # Errors
    /// [`BackendError::NoPrecision`] for f16, which no kernel computes in.
    pub fn with_precision(self, precision: Precision) -> Result<Self, BackendError> {
        let format = match precision {
            Precision::Auto | Precision::F32 => Format::F32,
            Precision::Bf16 => Format::Bf16,
            Precision::Int8 => Format::Int8,
            Precision::F16 => {
                let (device, has) = ("cpu".to_owned(), PRECISIONS);
                return Err(BackendError::NoPrecision { device, precision, has });
            }
        };
        Ok(Self { format, ..self })
    }

    /// The same, but even a text that is not worth waking another core for is shared by all. The
    /// vectors are the same; tests on small models need it to see that.
    pub fn sharing_small_texts(self) -> Self {
        Self { shares_small: true, ..self }
    }

    /// What `fletcher info` says of this machine's CPU.
    pub fn describe() -> String {
        let kernels = Kernels::detect();
        let found: Vec<&str> = fletcher_kernels::Isa::available()
            .into_iter()
            .map(fletcher_kernels::Isa::name)
            .collect();
        format!("{} kernels, {PRECISIONS} (found: {})", kernels.isa().name(), found.join(", "))
    }
}

/// Rotary tables: `positions` rows of half a head.
#[derive(Debug)]
pub struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    head_dim: usize,
}

/// A LayerNorm's parameters.
#[derive(Debug)]
pub struct Norm {
    scale: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

/// Bias by head and distance: see [`fletcher_kernels::AttentionBias::Relative`].
#[derive(Debug)]
pub struct RelativeBias {
    by_distance: Vec<Vec<f32>>,
    positions: usize,
}
