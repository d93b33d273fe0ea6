//! The compiled kernels by name, and their parameters as `kernels/*.cu` declare them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use fletcher_core::backend::{BackendError, Pooling};
use fletcher_core::spec::Activation;

use super::device::{Device, Kernel, Module, Start};
use super::linear_f32::HopperF32;
use super::tensor_map::{Matrix, TensorMap};

/// Cubins of `kernels/*.cu` for each architecture, made by `cargo xtask cubins`.
const GENERAL: &[u8] = include_bytes!("kernels/general.fatbin");
const FUSED: &[u8] = include_bytes!("kernels/fused.fatbin");
const LAYERS: &[u8] = include_bytes!("kernels/layers.fatbin");
const HOPPER: &[u8] = include_bytes!("kernels/hopper.fatbin");
const ROWWISE: &[u8] = include_bytes!("kernels/rowwise.fatbin");
const FEEDFORWARD: &[u8] = include_bytes!("kernels/feedforward.fatbin");
const FLASH_ATTENTION: &[u8] = include_bytes!("kernels/flash_attention.fatbin");
const SELF_ATTENTION: &[u8] = include_bytes!("kernels/self_attention.fatbin");

/// Rows and columns of the tile that a block of `linear` makes.
pub(super) const TILE: usize = 128;
/// Shared memory of a block of `linear`: three stages of two tiles of 128 bytes a row.
pub(super) const LINEAR_SHARED: usize = 3 * 2 * TILE * 128;
/// Widest head of `attention_plain`.
pub(super) const HEAD_DIM_MAX: usize = 256;

/// The number formats of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    F16,
    Bf16,
    F32,
}

impl Format {
    pub(super) fn bytes(self) -> usize {
        match self {
            Format::F16 | Format::Bf16 => 2,
            Format::F32 => 4,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::F32 => "f32",
        }
    }
}

/// The kernels of one number format.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) embed: Kernel,
    pub(super) norm: Kernel,
    pub(super) linear_store: Kernel,
    pub(super) linear_accumulate: Kernel,
    pub(super) linear_gelu: Kernel,
    pub(super) linear_activate: Kernel,
    pub(super) linear_gate: Kernel,
    pub(super) rotary: Kernel,
    pub(super) attention_plain: Kernel,
    /// For heads up to 32, 64 and 128 wide.
    pub(super) attention_tiled: [(usize, Kernel); 3],
    pub(super) pool: Kernel,
    pub(super) widen: Kernel,
    pub(super) keep: Kernel,
    /// By warpgroups of a block, from one; none in f32.
    pub(super) fused: Vec<Kernel>,
    pub(super) arrange: Kernel,
    /// On Hopper, in the 16-bit formats.
    pub(super) layers: Option<Layers>,
    /// In the order of [`HOPPER_TILES`]; on Hopper, in the 16-bit formats.
    pub(super) hopper: Option<[HopperLinear; HOPPER_TILES.len()]>,
    /// The linear layer with residual sum and norm for few tokens, by the width of its tiles, of
    /// which [`NORM_TILES`] make a row.
    pub(super) hopper_norm: Option<[HopperNorm; 2]>,
    /// On Hopper, in f32.
    pub(super) hopper_f32: Option<HopperF32>,
    /// On Hopper, in the 16-bit formats.
    pub(super) rowwise: Option<Rowwise>,
    /// What lies between two attentions; where `rowwise` is.
    pub(super) feedforward: Option<Kernel>,
    /// Queries, keys and values and the attention over them, for the head widths of
    /// [`SELF_ATTENTION_HEADS`]; on Hopper, in the 16-bit formats.
    pub(super) self_attention: Option<[SelfAttention; SELF_ATTENTION_HEADS.len()]>,
    /// Attention over long sequences, for the head widths of [`FLASH_HEADS`]; on Hopper, in the
    /// 16-bit formats.
    pub(super) flash_attention: Option<[Kernel; FLASH_HEADS.len()]>,
    _modules: Vec<Module>,
}

/// The small encoder layer by layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layers {
    /// What is in front of the first layer's attention.
    pub(super) front: Kernel,
    /// From one layer's attention to the next one's.
    pub(super) one: Kernel,
}

/// A linear layer with residual sum and norm, for states [`ROWWISE_WIDTH`] wide or twice that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rowwise {
    /// By blocks that share a row, from one.
    pub(super) norm: [Kernel; 2],
    /// With a second linear layer behind it.
    pub(super) store: Kernel,
    /// The same, whose second layer applies GELU.
    pub(super) gelu: Kernel,
    /// Sums and what the norm makes of them, by blocks that share a row.
    pub(super) apart: [Kernel; 2],
}

/// The linear layer with residual sum and norm by a cluster of blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct HopperNorm {
    pub(super) norm: Kernel,
    /// Sums and what the norm makes of them.
    pub(super) apart: Kernel,
    pub(super) shared_bytes: usize,
    pub(super) width: usize,
}

/// `TOGETHER` of `hopper.cu`: blocks of a cluster, tiles of a row.
pub(super) const NORM_TILES: usize = 6;

/// Columns of the state in a block of a `rowwise` kernel.
pub(super) const ROWWISE_WIDTH: usize = 384;
/// Most columns of a `rowwise` kernel's second layer.
pub(super) const ROWWISE_COLUMNS_MAX: usize = 2048;
/// Shared memory of such a block: 13 tiles and the parameters.
pub(super) const ROWWISE_SHARED: usize =
    13 * TILE * 128 + 4 * (3 * ROWWISE_WIDTH + ROWWISE_COLUMNS_MAX);

/// Widths of the inner state with which the `feedforward` kernel has been seen to be right on a
/// card.
pub(super) const FEEDFORWARD_INNER: RangeInclusive<usize> = 512..=1536;
/// Most parameters that it has at a time: a norm's, and the biases of the products behind it.
const FEEDFORWARD_PARAMETERS: usize = 2752;
/// Shared memory of a block of it: whole rows of the state, five slots of weights, barriers and
/// parameters.
pub(super) const FEEDFORWARD_SHARED: usize =
    TILE * 2 * ROWWISE_WIDTH + 5 * ROWWISE_WIDTH / 2 * 128 + 14 * 8 + 4 * FEEDFORWARD_PARAMETERS;

/// Widths of heads that the `flash_attention` kernels take.
pub(super) const FLASH_HEADS: [usize; 2] = [32, 64];
/// Columns of queries, keys and values that such a kernel takes at a time.
pub(super) const FLASH_COLUMNS: usize = 64;
/// Shared memory of a block of it: two tiles of queries, four of keys and four of values.
pub(super) const FLASH_SHARED: usize = 10 * TILE * 2 * FLASH_COLUMNS;

/// Widths of heads that the `self_attention` kernels take.
pub(super) const SELF_ATTENTION_HEADS: [usize; 2] = [32, 64];
/// Columns of each projection that such a kernel makes at a time.
pub(super) const SELF_ATTENTION_COLUMNS: usize = 64;
/// Most columns of a state of which a block of it keeps a tile.
pub(super) const SELF_ATTENTION_KEPT: usize = 384;

/// Queries, keys and values and the attention over them, for heads of one width.
#[derive(Debug, Clone, Copy)]
pub(super) struct SelfAttention {
    /// Where tiles of the state stay in shared memory: shared, and in turns.
    pub(super) keep: [Kernel; 2],
    /// Where they come with the weights' tiles, the same.
    pub(super) stream: [Kernel; 2],
}

impl SelfAttention {
    /// Shared memory of a block: keys and values, and four stages of weights with their tiles of
    /// the state or beside all tiles of it.
    pub(super) const KEEP_SHARED: usize = Self::OPERANDS + 4 * Self::WEIGHTS + 6 * Self::STATE;
    pub(super) const STREAM_SHARED: usize = Self::OPERANDS + 4 * (Self::WEIGHTS + Self::STATE);
    const OPERANDS: usize = 2 * TILE * 128;
    const WEIGHTS: usize = 3 * SELF_ATTENTION_COLUMNS * 128;
    const STATE: usize = TILE * 128;
}

/// Tiles of a weight as the `feedforward` kernel reads them.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeedForwardTiles {
    /// Three of 64 rows.
    pub(super) three: TensorMap,
    /// One of 192.
    pub(super) one: TensorMap,
}

impl FeedForwardTiles {
    /// Of a weight.
    pub(super) fn new(device: &Device, weight: Matrix) -> Result<Self, BackendError> {
        let one = device.tensor_map_of_tiles(weight, ROWWISE_WIDTH / 2, 1)?;
        Ok(Self { three: Self::rows(device, weight)?, one })
    }

    /// Three of 64 rows, of an activation.
    pub(super) fn rows(device: &Device, slot: Matrix) -> Result<TensorMap, BackendError> {
        device.tensor_map_of_tiles(slot, 64, 3)
    }
}

/// The linear layer with tiles of one width.
#[derive(Debug, Clone, Copy)]
pub(super) struct HopperLinear {
    pub(super) store: Kernel,
    pub(super) accumulate: Kernel,
    pub(super) gelu: Kernel,
    pub(super) gate: Kernel,
    pub(super) rotate: Kernel,
    pub(super) shared_bytes: usize,
}

/// The tiles of one variant of the linear layer for Hopper; they are 128 rows high.
#[derive(Debug, Clone, Copy)]
pub(super) struct HopperTile {
    pub(super) width: usize,
    pub(super) way: Way,
    /// Of shared memory.
    stages: usize,
}

/// How tiles are shared out; the names are those of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A block's two warpgroups share each tile.
    Shared,
    /// They take turns at tiles.
    Turns,
}

/// Width of the heads that the linear layer rotates.
pub(super) const ROTATED_HEAD: usize = 64;
/// Widths that tensor maps of weights are made for.
pub(super) const HOPPER_WIDTHS: [usize; 4] = [64, 128, 192, 256];
/// The variants of the linear layer for Hopper.
pub(super) const HOPPER_TILES: [HopperTile; 6] = [
    HopperTile { width: 64, way: Way::Shared, stages: 8 },
    HopperTile { width: 128, way: Way::Shared, stages: 6 },
    HopperTile { width: 192, way: Way::Shared, stages: 5 },
    HopperTile { width: 256, way: Way::Shared, stages: 4 },
    HopperTile { width: 128, way: Way::Turns, stages: 6 },
    HopperTile { width: 192, way: Way::Turns, stages: 5 },
];

impl Kernels {
    pub(super) fn load(device: &Arc<Device>, format: Format) -> Result<Self, BackendError> {
        let general = device.load(GENERAL, Start::Early)?;
        let small = device.load(FUSED, Start::InTurn)?;
        let kernel =
            |name: &str, shared| general.kernel(&format!("{name}_{}", format.name()), shared);
        let tiled = |dim: usize| {
            let shared = tiled_shared(dim, format);
            Ok::<_, BackendError>((dim, kernel(&format!("attention_{dim}"), shared)?))
        };
        let sixteen_bits = format != Format::F32;
        let groups = match (sixteen_bits, device.limits().capability) {
            (false, _) => 0,
            (true, (9, _)) => 2,
            (true, _) => 1,
        };
        let fused = (1..=groups)
            .map(|groups| {
                let name = format!("fused_{groups}_{}", format.name());
                small.kernel(
                    &name,
                    FusedPlan::new(groups, device.limits().shared_bytes).shared_bytes,
                )
            })
            .collect::<Result<_, _>>()?;
        let mut modules = Vec::new();
        let mut hopper_norm = None;
        let hopper = match sixteen_bits && device.limits().capability.0 == 9 {
            true => {
                let module = device.load(HOPPER, Start::Early)?;
                let one = |tile: HopperTile| {
                    // Stages of both operands, and 16 padded rows of 64 columns for each warp.
                    let shared_bytes = tile.stages * (TILE + tile.width) * 128 + 8 * 16 * 144;
                    let kernel = |epilogue: &str| {
                        let way = match tile.way {
                            Way::Shared => "shared",
                            Way::Turns => "turns",
                        };
                        let (width, format) = (tile.width, format.name());
                        let name = format!("hopper_{epilogue}_{way}{width}_{format}");
                        module.kernel(&name, shared_bytes)
                    };
                    Ok::<_, BackendError>(HopperLinear {
                        store: kernel("store")?,
                        accumulate: kernel("accumulate")?,
                        gelu: kernel("gelu")?,
                        gate: kernel("gate")?,
                        rotate: kernel("rotate")?,
                        shared_bytes,
                    })
                };
                let norm = |tile: HopperTile| {
                    let HopperLinear { shared_bytes, .. } = one(tile)?;
                    let kernel = |what: &str| {
                        let (width, format) = (tile.width, format.name());
                        let name = format!("hopper_{what}_shared{width}_{format}");
                        module.kernel(&name, shared_bytes)
                    };
                    let (norm, apart) = (kernel("norm")?, kernel("apart")?);
                    let width = tile.width;
                    Ok::<_, BackendError>(HopperNorm { norm, apart, shared_bytes, width })
                };
                let [a, b, c, d, e, f] = HOPPER_TILES;
                hopper_norm = Some([norm(a)?, norm(b)?]);
                let kernels = [one(a)?, one(b)?, one(c)?, one(d)?, one(e)?, one(f)?];
                modules.push(module);
                Some(kernels)
            }
            false => None,
        };
        let hopper_f32 = match !sixteen_bits && device.limits().capability.0 == 9 {
            true => Some(HopperF32::load(device)?),
            false => None,
        };
        let rowwise = match hopper {
            Some(_) => {
                let module = device.load(ROWWISE, Start::Early)?;
                let kernel = |what: &str| {
                    module.kernel(&format!("rowwise_{what}_{}", format.name()), ROWWISE_SHARED)
                };
                let found = Rowwise {
                    norm: [kernel("norm1")?, kernel("norm2")?],
                    store: kernel("store1")?,
                    gelu: kernel("gelu1")?,
                    apart: [kernel("apart1")?, kernel("apart2")?],
                };
                modules.push(module);
                Some(found)
            }
            None => None,
        };
        let feedforward = match hopper {
            Some(_) => {
                let module = device.load(FEEDFORWARD, Start::Early)?;
                let name = format!("feedforward_{}", format.name());
                let found = module.kernel(&name, FEEDFORWARD_SHARED)?;
                modules.push(module);
                Some(found)
            }
            None => None,
        };
        let self_attention = match hopper {
            Some(_) => {
                let module = device.load(SELF_ATTENTION, Start::Early)?;
                let one = |dim: usize| {
                    let kernel = |from: &str, way: &str, shared| {
                        let format = format.name();
                        module.kernel(&format!("self_attention{dim}_{from}_{way}_{format}"), shared)
                    };
                    let both = |from, shared| {
                        Ok([kernel(from, "shared", shared)?, kernel(from, "turns", shared)?])
                    };
                    Ok::<_, BackendError>(SelfAttention {
                        keep: both("keep", SelfAttention::KEEP_SHARED)?,
                        stream: both("stream", SelfAttention::STREAM_SHARED)?,
                    })
                };
                let [narrow, wide] = SELF_ATTENTION_HEADS;
                let found = [one(narrow)?, one(wide)?];
                modules.push(module);
                Some(found)
            }
            None => None,
        };
        let flash_attention = match hopper {
            Some(_) => {
                let module = device.load(FLASH_ATTENTION, Start::Early)?;
                let one = |dim: usize| {
                    let name = format!("flash_attention{dim}_{}", format.name());
                    module.kernel(&name, FLASH_SHARED)
                };
                let [narrow, wide] = FLASH_HEADS;
                let found = [one(narrow)?, one(wide)?];
                modules.push(module);
                Some(found)
            }
            None => None,
        };
        let layers = match hopper {
            Some(_) => {
                let module = device.load(LAYERS, Start::Early)?;
                let shared =
                    FusedPlan::new(LAYERS_GROUPS, device.limits().shared_bytes).shared_bytes;
                let kernel =
                    |what: &str| module.kernel(&format!("layers_{what}_{}", format.name()), shared);
                let found = Layers { front: kernel("front")?, one: kernel("one")? };
                modules.push(module);
                Some(found)
            }
            None => None,
        };
        Ok(Self {
            embed: kernel("embed", 0)?,
            norm: kernel("norm", 0)?,
            linear_store: kernel("linear_store", LINEAR_SHARED)?,
            linear_accumulate: kernel("linear_accumulate", LINEAR_SHARED)?,
            linear_gelu: kernel("linear_gelu", LINEAR_SHARED)?,
            linear_activate: kernel("linear_activate", LINEAR_SHARED)?,
            linear_gate: kernel("linear_gate", LINEAR_SHARED)?,
            rotary: kernel("rotary", 0)?,
            attention_plain: kernel("attention_plain", 0)?,
            attention_tiled: [tiled(32)?, tiled(64)?, tiled(128)?],
            pool: kernel("pool", 0)?,
            widen: kernel("widen", 0)?,
            keep: kernel("keep", 0)?,
            fused,
            arrange: small.kernel("arrange", 0)?,
            layers,
            hopper,
            hopper_norm,
            hopper_f32,
            rowwise,
            feedforward,
            self_attention,
            flash_attention,
            _modules: {
                modules.extend([general, small]);
                modules
            },
        })
    }
}

/// Shared memory of a block of `attention_tiled`: 64 queries, keys and values with padded rows,
/// twice unless heads are wide.
pub(super) fn tiled_shared(dim: usize, format: Format) -> usize {
    let row = dim * format.bytes();
    let stages = if row >= 256 { 1 } else { 2 };
    stages * 3 * 64 * (row + 16)
}

/// Blocks of `attention_tiled` that share a multiprocessor, by the kernels' launch bounds.
pub(super) fn tiled_blocks(dim: usize, format: Format) -> usize {
    match (dim, format) {
        (32, Format::F32) => 4,
        (32, _) => 5,
        (64, Format::F32) => 3,
        (64, _) => 4,
        _ => 2,
    }
}

/// Warpgroups of a block of the kernels in `layers.cu`.
pub(super) const LAYERS_GROUPS: usize = 2;

/// How the shared memory of a block of `fused` or `layers` is spent.
#[derive(Debug, Clone, Copy)]
pub(super) struct FusedPlan {
    /// Chunks of weights in flight.
    pub(super) stages: usize,
    pub(super) shared_bytes: usize,
}

impl FusedPlan {
    /// A block of `groups` warpgroups where a block may have `available` bytes.
    pub(super) fn new(groups: usize, available: usize) -> Self {
        const STATIC: usize = 1024;
        let kept = groups * 32_768;
        // Blocks of one group share a multiprocessor in twos, so that they leave each other room.
        let most = if groups == 1 { 4 } else { 8 };
        let stages = (available.saturating_sub(kept + STATIC) / 16_384).clamp(2, most);
        Self { stages, shared_bytes: kept + stages * 16_384 }
    }
}

/// `Logistic` in `kernels/common.cuh`, of the activations that are one; GELU as `gelu` has it.
pub(super) fn logistic(activation: Activation) -> Option<[f32; 3]> {
    use std::f32::consts::{FRAC_2_PI, LOG2_E};
    let tanh = -2.0 * FRAC_2_PI.sqrt() * LOG2_E;
    match activation {
        Activation::GeluErf => Some([-2.303_318, -0.105_061_02, 0.0007714342]),
        Activation::GeluTanh => Some([tanh, 0.044715 * tanh, 0.0]),
        Activation::Silu => Some([-LOG2_E, 0.0, 0.0]),
        Activation::Relu | Activation::Tanh | Activation::Identity => None,
    }
}

/// `enum Activation` in `kernels/common.cuh`.
pub(super) fn number(activation: Activation) -> i32 {
    match activation {
        Activation::GeluErf => 0,
        Activation::GeluTanh => 1,
        Activation::Silu => 2,
        Activation::Relu => 3,
        Activation::Tanh => 4,
        Activation::Identity => 5,
    }
}

/// `enum Pooling` in the kernels.
pub(super) fn pooling(mode: Pooling) -> i32 {
    match mode {
        Pooling::Cls => 0,
        Pooling::Max => 1,
        Pooling::Mean => 2,
        Pooling::MeanSqrtLen => 3,
        Pooling::WeightedMean => 4,
        Pooling::LastToken => 5,
    }
}

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $name { $(pub(super) $field: $kind,)* }
    )*};
}

arguments! {
    /// `EmbedArgs`.
    EmbedArguments { word: u64, position: u64, token_type: u64, norm: NormArguments, }
    /// `NormArgs`.
    NormArguments {
        input: u64, out: u64, scale: u64, bias: u64, batch: u64, width: i32, stride: i32, eps: f32,
    }
    /// `LinearArgs`.
    LinearArguments {
        x: u64, w: u64, bias: u64, y: u64, batch: u64,
        rows: i32, k: i32, columns: i32, stride: i32, activation: i32,
    }
    /// `HopperLinearArgs`.
    HopperArguments {
        x: TensorMap, w: TensorMap, bias: u64, y: u64, batch: u64, scale: u64, shift: u64,
        normed: u64, rows: i32, k: i32, columns: i32, stride: i32, eps: f32, gate: [f32; 3],
        cos_sin: u64, rotated: i32,
    }
    /// `HopperF32Args`.
    HopperF32Arguments {
        x: TensorMap, w: TensorMap, bias: u64, y: u64, batch: u64,
        k: i32, columns: i32, stride: i32, activation: i32,
    }
    /// `RowwiseArgs`.
    RowwiseArguments {
        x: TensorMap, state: TensorMap, first: TensorMap, second: TensorMap,
        first_bias: u64, scale: u64, shift: u64, second_bias: u64,
        hidden: u64, out: u64, batch: u64,
        k: i32, columns: i32, eps: f32,
    }
    /// `FeedForwardArgs`.
    FeedForwardArguments {
        x: TensorMap, state: TensorMap, qkv: TensorMap, up: TensorMap,
        out: TensorMap, down: TensorMap, next: TensorMap,
        out_bias: u64, scale1: u64, shift1: u64, up_bias: u64, down_bias: u64,
        scale2: u64, shift2: u64, next_bias: u64,
        batch: u64, k: i32, inner: i32, columns: i32, eps1: f32, eps2: f32,
    }
    /// `RotaryArgs`.
    RotaryArguments { qkv: u64, cos_sin: u64, batch: u64, heads: i32, half: i32, stride: i32, }
    /// `AttentionArgs`.
    AttentionArguments {
        qkv: u64, context: u64, relative: u64, batch: u64,
        heads: i32, head_dim: i32, stride: i32, context_stride: i32,
        window: i32, positions: i32, scale: f32,
    }
    /// `FlashAttentionArgs`.
    FlashAttentionArguments {
        qkv: TensorMap, context: u64, batch: u64,
        width: i32, stride: i32, window: i32, scale: f32,
    }
    /// `SelfAttentionArgs`.
    SelfAttentionArguments {
        x: TensorMap, w: TensorMap, bias: u64, cos_sin: u64, context: u64, batch: u64,
        k: i32, width: i32, stride: i32, window: i32, scale: f32,
    }
    /// `PoolArgs`.
    PoolArguments {
        hidden: u64, vectors: u64, batch: u64,
        width: i32, stride: i32, mode: i32, skip: i32, first: i32,
    }
    /// `KeepArgs`.
    KeepArguments {
        hidden: u64, context: u64, kept: u64, hidden_stride: i32, context_stride: i32,
    }
    /// `WidenArgs`.
    WidenArguments { input: u64, out: u64, batch: u64, width: i32, stride: i32, first: i32, }
    /// `FusedArgs`.
    FusedArguments {
        tokens: u64, tiles: u64, offsets: u64, vectors: u64, hidden: u64,
        word: u64, position: u64, token_type: u64, chunks: u64, parameters: u64,
        tile_count: i32, layers: i32, inner: i32, mode: i32, skip: i32, stages: i32, eps: f32,
    }
    /// `LayersArgs`.
    LayersArguments {
        batch: u64, word: u64, position: u64, token_type: u64, chunks: u64, parameters: u64,
        states: u64, from: [u64; 2], to: [u64; 2],
        layer: i32, layers: i32, inner: i32, stages: i32, tokens: i32, eps: f32,
    }
    /// `ArrangeArgs`.
    ArrangeArguments { from: u64, to: u64, stride: i32, n0: i32, k0: i32, n: i32, k: i32, }
}
