//! Any GPU: Metal on Apple's machines and Vulkan elsewhere, from one set of kernels.
//!
//! The kernels are WGSL and go through wgpu, so that each of them runs on Linux, on a software
//! Vulkan driver if need be, before a Mac sees its translation. This folder is the only place
//! that knows wgpu; nothing of it is touched until a device is asked for by name (or listed by
//! `fletcher info`), so that who computes on the CPU pays nothing for it.
//!
//! * [`shader`]: the kernels' text, from `kernels/*.wgsl`
//! * [`device`]: adapters, the opened device, its errors
//! * [`pipelines`]: compiled kernels
//! * [`arena`]: a worker's buffers and the batch being recorded
//! * [`ops`]: the operations
//! * [`profile`]: the kernels' times by the device's clock
//! * [`verify`]: the cooperative kernels against the CPU, before their first use
//!
//! Half precision stores weights and activations in f16 and sums in f32. A value beyond f16's
//! range becomes infinite, and an infinite or NaN value makes its row's vector NaN, which the
//! embedder reports as an error of that row: the kernels look at bits where a compiler's fast
//! mode might otherwise drop it.

mod arena;
mod device;
#[cfg(test)]
mod msl;
mod ops;
mod pipelines;
mod profile;
mod shader;
#[cfg(test)]
mod tune;
mod verify;

pub use arena::Arena;
pub use device::Api;
pub use profile::KernelTime;

use std::sync::{Arc, Mutex, PoisonError};

use fletcher_core::backend::{BackendError, Precision};

use device::Gpu;
use pipelines::Pipelines;
use shader::{CooperativeAttention, Kernel};

/// Which kernels do the matrix products; the later ones are faster where a device has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelSet {
    /// In f32 arithmetic, on any device.
    Plain,
    /// With cooperative matrices, loaded straight from memory.
    Cooperative,
    /// With cooperative matrices, staged in workgroup memory.
    Staged,
}

/// How to open a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WgpuOptions {
    /// The best kernels that may be used.
    pub kernels: KernelSet,
    /// Whether to time the kernels by the device's clock, which costs time; see
    /// [`Wgpu::take_profile`].
    pub profiled: bool,
}

impl Default for WgpuOptions {
    fn default() -> Self {
        Self { kernels: KernelSet::Staged, profiled: false }
    }
}

/// A GPU through wgpu.
#[derive(Debug, Clone)]
pub struct Wgpu {
    gpu: Arc<Gpu>,
    pipelines: Arc<Pipelines>,
    /// Side of the cooperative tiles in use, which were found to compute right.
    tile: Option<u32>,
    /// Whether the cooperative GEMM goes through workgroup memory.
    staged: bool,
    /// Bound by kernels that read none.
    no_parameters: wgpu::BindGroup,
    /// The cooperative attentions that were tried.
    attentions: Arc<Mutex<Vec<TriedAttention>>>,
}

/// What the check of a cooperative attention gave.
#[derive(Debug)]
struct TriedAttention {
    head_dim: usize,
    relative: bool,
    right: bool,
}

impl Wgpu {
    /// Opens the adapter of that number; `index` counts as `fletcher info` lists them.
    ///
    /// # Errors
    /// When there is none, or when it lacks something that the kernels need.
    pub fn open(api: Api, index: usize, precision: Precision) -> Result<Self, BackendError> {
        Self::open_with(api, index, precision, WgpuOptions::default())
    }

    /// As [`Self::open`], with options.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        api: Api,
        index: usize,
        precision: Precision,
        options: WgpuOptions,
    ) -> Result<Self, BackendError> {
        let best = options.kernels;
        let mut gpu = Gpu::open(api, index, precision, options.profiled)?;
        let lanes = verify::lanes(&gpu)?;
        gpu.target.lanes = lanes;
        let tile = match gpu.tile {
            // The cooperative kernels' workgroups are made of whole subgroups of these sizes.
            Some(tile) if best > KernelSet::Plain && matches!(lanes, 8 | 16 | 32 | 64) => {
                Some(tile)
            }
            _ => None,
        };
        let no_parameters = gpu.parameters(&[]);
        let mut wgpu = Self {
            gpu: Arc::new(gpu),
            pipelines: Arc::default(),
            tile,
            staged: false,
            no_parameters,
            attentions: Arc::default(),
        };
        if let Some(tile) = tile {
            // Metal's language cannot say the staged ones.
            let stage = best >= KernelSet::Staged && api == Api::Vulkan;
            wgpu.staged = stage && verify::gemm(&wgpu, tile, true)?;
            if !wgpu.staged && !verify::gemm(&wgpu, tile, false)? {
                wgpu.tile = None;
            }
        }
        Ok(wgpu)
    }

    /// What `fletcher info` says of an API's adapters.
    ///
    /// # Errors
    /// Why there is none.
    pub fn describe(api: Api) -> Result<String, String> {
        let adapters = device::describe(api)?;
        // Metal's one device has no number.
        let number = |(index, text): (usize, String)| match api {
            Api::Metal => text,
            Api::Vulkan => format!("{index}: {text}"),
        };
        Ok(adapters.into_iter().enumerate().map(number).collect::<Vec<_>>().join("; "))
    }

    /// The adapter's name, and which kernels are in use.
    pub fn name(&self) -> String {
        let kernels = match self.tile {
            Some(tile) if self.staged => {
                format!("{tile}x{tile}x{tile} cooperative matrices, staged")
            }
            Some(tile) => format!("{tile}x{tile}x{tile} cooperative matrices"),
            None => "plain kernels".to_owned(),
        };
        format!("{}, {:?}, {kernels}", self.gpu.name, self.gpu.target.element)
    }

    /// The kernels' times since the last call, the longest first; none unless opened `profiled`.
    pub fn take_profile(&self) -> Vec<KernelTime> {
        self.gpu.profile.as_ref().map_or_else(Vec::new, profile::Profile::take)
    }

    fn pipeline(&self, kernel: Kernel) -> Result<wgpu::ComputePipeline, BackendError> {
        self.pipelines.get(&self.gpu, kernel)
    }

    /// The tile and head size of the cooperative attention, if it is to be used for such heads.
    fn cooperative_attention(
        &self,
        head_dim: usize,
        relative: bool,
    ) -> Result<Option<CooperativeAttention>, BackendError> {
        let fits = |tile: &u32| shader::attention_fits(self.gpu.target, *tile, head_dim);
        // Mesa's software driver compiles the kernel for wide heads for minutes.
        let sensible = !self.gpu.software || head_dim <= 64;
        let Some(tile) = self.tile.filter(fits).filter(|_| sensible) else {
            return Ok(None);
        };
        let form = CooperativeAttention { tile, head_dim, vectors: self.staged };
        let mut tried = self.attentions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tried.iter().find(|t| (t.head_dim, t.relative) == (head_dim, relative));
        let right = match known {
            Some(known) => known.right,
            None => {
                let right = verify::attention(self, form, relative)?;
                tried.push(TriedAttention { head_dim, relative, right });
                right
            }
        };
        Ok(right.then_some(form))
    }
}

/// An uploaded matrix.
#[derive(Debug)]
pub struct Linear {
    group: wgpu::BindGroup,
    depth: usize,
}

/// An uploaded norm.
#[derive(Debug)]
pub struct Norm {
    group: wgpu::BindGroup,
    columns: usize,
    eps: f32,
}

/// The uploaded embedding tables.
#[derive(Debug)]
pub struct Embedding {
    group: wgpu::BindGroup,
    position_offset: usize,
    has_positions: bool,
    has_types: bool,
}

/// Rotary tables of one base.
#[derive(Debug)]
pub struct Rotary {
    group: wgpu::BindGroup,
    half: usize,
}

/// Attention bias by head and distance.
#[derive(Debug)]
pub struct RelativeBias {
    group: wgpu::BindGroup,
    positions: usize,
}
