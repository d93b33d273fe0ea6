//! The CPU: f32 through the kernels of the best instruction set that the machine has.
//!
//! A worker takes a block of sequences through all layers in its own [`Arena`]; no operation
//! splits work between workers, so nothing waits. The block's activations are meant to stay in
//! the core's L2 cache while the weights stream past.

mod arena;
mod ops;
mod peak;

pub use arena::Arena;
pub use peak::peak;

use std::num::NonZero;

use fletcher_kernels::Kernels;

/// The CPU backend.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    kernels: Kernels,
    threads: usize,
}

impl Cpu {
    /// Uses `threads` workers; 0 stands for the CPUs that this process may use.
    pub fn new(threads: usize) -> Self {
        Self::with_kernels(Kernels::detect(), threads)
    }

    /// As [`Self::new`], with the kernels of a chosen instruction set.
    pub fn with_kernels(kernels: Kernels, threads: usize) -> Self {
        let allowed = || std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { kernels, threads: if threads == 0 { allowed() } else { threads } }
    }

    /// What `fletcher info` says of this machine's CPU.
    pub fn describe() -> String {
        let kernels = Kernels::detect();
        let found: Vec<&str> = fletcher_kernels::Isa::available()
            .into_iter()
            .map(fletcher_kernels::Isa::name)
            .collect();
        format!("{} kernels, f32 (found: {})", kernels.isa().name(), found.join(", "))
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
