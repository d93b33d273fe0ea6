//! NVIDIA cards, through the driver alone.
//!
//! The kernels are compiled ahead (`kernels/*.cu`, `cargo xtask cubins`) and embedded as machine
//! code for compute capability 8.0 to 12.x; a machine needs the driver and nothing else. Weights
//! and activations are f16 unless `--precision` says otherwise, sums, norms and softmax f32; with
//! f32, products are split so that they keep f32's accuracy on the tensor cores. GELU is the exact
//! one.
//!
//! An [`Arena`] is a stream with its buffers. Several work at the same time, each driven by one
//! worker thread that prepares the next batch while the card works on the others' batches. A small
//! encoder runs as one kernel per batch (`small.rs`), which reads its tokens from and writes its
//! vectors to page-locked host memory, or as one per layer where sequences are long (`layers.rs`);
//! every other one as the composition of operations (`ops.rs`).

mod arena;
mod attention;
mod device;
mod kernels;
mod layers;
mod linear;
mod linear_f32;
mod ops;
mod rowwise;
mod self_attention;
mod small;
mod tensor_map;

pub use arena::Arena;

use std::sync::Arc;

use fletcher_core::backend::{BackendError, Precision};

use device::{Device, DeviceBuffer, Limits};
use kernels::{Format, Kernels};

/// Most arenas: more than these do not keep a card busier.
const WORKERS_MAX: usize = 8;

/// Which card, and how to use it.
#[derive(Debug, Clone, Copy, Default)]
pub struct CudaOptions {
    /// The driver's number of the card.
    pub index: usize,
    /// The number format; `Auto` is f16.
    pub precision: Precision,
    /// Most bytes to allocate on the card; 0 for all there are.
    pub memory_bytes: usize,
    /// Warpgroups of a block of the small encoder's kernel, for measurements; 0 lets the batch say.
    pub groups: usize,
    /// The variant of the linear layer on Hopper, for measurements; the cost model's by default.
    pub tile: Option<usize>,
    /// Whether layers go by the kernels that keep whole rows, for measurements; what the card has
    /// to do says by default.
    pub rowwise: Option<bool>,
    /// Whether queries, keys and values and the attention over them go as one kernel where there is
    /// one, for measurements; what the batch's sequences leave of tiles says by default.
    pub self_attention: Option<bool>,
    /// Batches with longer sequences than this, in tokens, go by the attention kernel for long
    /// ones, for measurements; those longer than a tile of 128 by default.
    pub flash_longer_than: Option<usize>,
}

/// The NVIDIA backend.
#[derive(Debug)]
pub struct Cuda {
    kernels: Kernels,
    device: Arc<Device>,
    format: Format,
    groups: usize,
    tile: Option<usize>,
    rowwise: Option<bool>,
    self_attention: Option<bool>,
    flash_longer_than: usize,
    loads: arena::Loads,
    workers: usize,
    cores: usize,
}

impl Cuda {
    /// Opens a card.
    ///
    /// # Errors
    /// [`BackendError::Absent`] with the reason when there is no such card or it cannot be used,
    /// [`BackendError::NoPrecision`] for a format that it does not compute in.
    pub fn open(options: CudaOptions) -> Result<Self, BackendError> {
        let name = || format!("cuda:{}", options.index);
        let format = match options.precision {
            Precision::Auto | Precision::F16 => Format::F16,
            Precision::Bf16 => Format::Bf16,
            Precision::F32 => Format::F32,
            precision @ Precision::Int8 => {
                return Err(BackendError::NoPrecision {
                    device: name(),
                    precision,
                    has: "f32, f16, bf16",
                });
            }
        };
        let device = Device::open(options.index, options.memory_bytes)
            .map_err(|reason| BackendError::Absent { device: name(), reason })?;
        let kernels = Kernels::load(&device, format)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = cores.clamp(2, WORKERS_MAX);
        let cores = cores.max(workers);
        let CudaOptions { groups, tile, rowwise, self_attention, .. } = options;
        let loads = arena::Loads::default();
        Ok(Self {
            kernels,
            device,
            format,
            groups,
            tile,
            rowwise,
            self_attention,
            flash_longer_than: options.flash_longer_than.unwrap_or(kernels::TILE),
            loads,
            workers,
            cores,
        })
    }

    /// How many cards the driver has.
    ///
    /// # Errors
    /// Why there is none that can be used.
    pub fn count() -> Result<usize, String> {
        device::card_count()
    }

    /// What `fletcher info` says of the cards.
    ///
    /// # Errors
    /// Why there is none that can be used.
    pub fn describe() -> Result<String, String> {
        let count = device::card_count()?;
        let one = |index: usize| {
            let (_, limits) = Limits::of(index)?;
            let (major, minor) = limits.capability;
            let memory = limits.memory_bytes >> 30;
            Ok(format!("cuda:{index} {}, {memory} GiB, sm_{major}{minor}", limits.card))
        };
        let found: Vec<Result<String, String>> = (0..count).map(one).collect();
        let names: Vec<String> = found.iter().flatten().cloned().collect();
        match (names.is_empty(), found.into_iter().find_map(Result::err)) {
            (true, Some(why)) => Err(why),
            _ => Ok(format!("{}; f16 (default), bf16, f32", names.join("; "))),
        }
    }

    /// Bytes allocated on the card now, and the most there ever were.
    pub fn memory_used(&self) -> (usize, usize) {
        self.device.memory_used()
    }

    /// The card's name.
    pub fn card(&self) -> &str {
        &self.device.limits().card
    }

    /// Rounds to the format; refuses a number that would become infinite.
    fn encode_values(&self, values: &[f32], what: &str) -> Result<Vec<u8>, BackendError> {
        let format = self.format;
        let mut bytes = Vec::with_capacity(values.len() * format.bytes());
        for &value in values {
            let finite = match format {
                Format::F16 => {
                    let rounded = half::f16::from_f32(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.is_finite()
                }
                Format::Bf16 => {
                    let rounded = half::bf16::from_f32(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.is_finite()
                }
                Format::F32 => {
                    bytes.extend(value.to_le_bytes());
                    value.is_finite()
                }
            };
            if !finite {
                let format = format.name();
                return Err(self.device.error(format!(
                    "{what} holds {value}, which {format} cannot express; try --precision bf16"
                )));
            }
        }
        Ok(bytes)
    }

    fn upload(&self, bytes: &[u8], what: &'static str) -> Result<DeviceBuffer, BackendError> {
        let buffer = self.device.allocate(bytes.len(), what)?;
        buffer.write(bytes)?;
        Ok(buffer)
    }

    fn upload_floats(
        &self,
        values: impl IntoIterator<Item = f32>,
        what: &'static str,
    ) -> Result<DeviceBuffer, BackendError> {
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        self.upload(&bytes, what)
    }
}

/// Elements from one row of a matrix to the next: rows begin at multiples of eight elements.
fn stride(width: usize) -> usize {
    width.next_multiple_of(8)
}

/// A matrix, its rows padded with zeros to [`stride`]; of a gated one, eight gates'
/// rows are in front of their eight values'.
#[derive(Debug)]
pub struct Linear {
    weight: DeviceBuffer,
    bias: Option<DeviceBuffer>,
    rows: usize,
    cols: usize,
    /// Its tiles in the widths of [`kernels::HOPPER_WIDTHS`], where there are such kernels.
    maps: Option<[tensor_map::TensorMap; kernels::HOPPER_WIDTHS.len()]>,
    /// Its tiles as the `feedforward` kernel reads them, if it may be one of that kernel's.
    tiles: Option<kernels::FeedForwardTiles>,
    /// Tiles of its two halves, which are what `weight` then holds, in f32 on Hopper.
    halves: Option<linear_f32::Halves>,
}

/// A LayerNorm's parameters, padded with zeros.
#[derive(Debug)]
pub struct Norm {
    scale: DeviceBuffer,
    bias: Option<DeviceBuffer>,
    width: usize,
    eps: f32,
}

/// The embedding tables in the backend's format, rows padded with zeros.
#[derive(Debug)]
pub struct Embedding {
    word: DeviceBuffer,
    position: Option<DeviceBuffer>,
    position_rows: usize,
    token_type: Option<DeviceBuffer>,
    position_offset: usize,
    /// The model's weights in the order in which the small encoder's kernel takes them, if it is
    /// one of those; made at the first batch.
    small: small::Cache,
}

/// Cosine and sine by position and frequency.
#[derive(Debug)]
pub struct Rotary {
    cos_sin: DeviceBuffer,
    head_dim: usize,
}

/// Bias by head and distance.
#[derive(Debug)]
pub struct RelativeBias {
    by_distance: DeviceBuffer,
    positions: usize,
}
