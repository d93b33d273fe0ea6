//! Queries, keys and values and the attention over them as one kernel on Hopper
//! (`kernels/self_attention.cu`): which batches it takes, and by which of its variants.
//!
//! Its tiles hold whole sequences, so that some of their rows may be left empty; in turn the
//! projections are neither written to the card's memory nor read from it.

use fletcher_core::backend::{BackendError, Slot};
use fletcher_core::encoder::{EncoderWeights, LayerWeights};

use super::Cuda;
use super::arena::Arena;
use super::device::Grid;
use super::kernels::{
    HOPPER_WIDTHS, SELF_ATTENTION_COLUMNS, SELF_ATTENTION_HEADS, SELF_ATTENTION_KEPT,
    SelfAttention, SelfAttentionArguments, TILE,
};
use super::ops::address;
use super::tensor_map::TensorMap;

/// How many rows its tiles may have for every three that the batch's tokens would fill, so that it
/// still pays; and where queries and keys are rotated, which saves two more ways through the card's
/// memory. Measured on an H100 with 43, 64 and 100 tokens a sequence: bench/record/h100-16-cores.
const ROWS_MOST: usize = 4;
const ROWS_MOST_ROTATED: usize = 5;

/// How a layer goes by these kernels.
struct Fitting {
    kernels: SelfAttention,
    /// Of the input and of the weight.
    maps: [TensorMap; 2],
}

/// The kernels and what they read, if they take the batch and are faster with it.
fn fitting(
    cuda: &Cuda,
    arena: &Arena,
    model: &EncoderWeights<Cuda>,
    layer: &LayerWeights<Cuda>,
    input: Slot,
) -> Option<Fitting> {
    let (spec, qkv) = (&model.spec, &layer.qkv);
    let (kernels, maps, x) = (cuda.kernels.self_attention?, qkv.maps?, arena.map(input)?);
    let head = SELF_ATTENTION_HEADS.iter().position(|&dim| dim == spec.head_dim)?;
    let part = HOPPER_WIDTHS.iter().position(|&width| width == SELF_ATTENTION_COLUMNS)?;
    let tiles = arena.sequence_tiles;
    let rotates = layer.rotary.as_ref().is_none_or(|rotary| rotary.head_dim == spec.head_dim);
    let takes = tiles > 0
        && model.relative_bias.is_none()
        && rotates
        && spec.context_width().is_multiple_of(SELF_ATTENTION_COLUMNS);
    // Rows of the tiles, and those of tiles of any rows.
    let (whole, any) = (tiles * TILE, arena.tokens.next_multiple_of(TILE));
    let most = if layer.rotary.is_some() { ROWS_MOST_ROTATED } else { ROWS_MOST };
    let pays = 3 * whole <= most * any;
    let fitting = Fitting { kernels: kernels[head], maps: [x, maps[part]] };
    (takes && cuda.self_attention.unwrap_or(pays)).then_some(fitting)
}

/// Whether [`launch`] would run the kernel.
pub(super) fn takes(
    cuda: &Cuda,
    arena: &Arena,
    model: &EncoderWeights<Cuda>,
    layer: &LayerWeights<Cuda>,
    input: Slot,
) -> bool {
    fitting(cuda, arena, model, layer, input).is_some()
}

/// Runs the kernel if it takes the batch and is faster with it; tells whether it did.
pub(super) fn launch(
    cuda: &Cuda,
    arena: &Arena,
    model: &EncoderWeights<Cuda>,
    layer: &LayerWeights<Cuda>,
    input: Slot,
) -> Result<bool, BackendError> {
    let Some(fitting) = fitting(cuda, arena, model, layer, input) else { return Ok(false) };
    let Fitting { kernels: SelfAttention { keep, stream }, maps: [x, w] } = fitting;
    let (spec, qkv) = (&model.spec, &layer.qkv);
    assert_eq!(arena.stride(input), qkv.cols, "the weight is for another width");
    cuda.device.enter()?;

    let (width, tiles) = (spec.context_width(), arena.sequence_tiles);
    let pieces = tiles * (width / SELF_ATTENTION_COLUMNS);
    // A batch's share of the card; with others in flight at most a block for each tile, which is
    // then read once.
    let multiprocessors = cuda.device.limits().multiprocessors;
    let share = (multiprocessors / arena.in_flight).max(tiles);
    let blocks = pieces.min(share).min(multiprocessors);
    let turns = usize::from(2 * pieces >= 3 * blocks);
    let (kernel, shared_bytes) = match qkv.cols <= SELF_ATTENTION_KEPT {
        true => (keep[turns], SelfAttention::KEEP_SHARED),
        false => (stream[turns], SelfAttention::STREAM_SHARED),
    };
    let arguments = SelfAttentionArguments {
        x,
        w,
        bias: address(&qkv.bias),
        cos_sin: layer.rotary.as_ref().map_or(0, |rotary| rotary.cos_sin.address()),
        context: arena.slot(Slot::Context),
        batch: arena.batch_address(),
        k: qkv.cols as i32,
        width: width as i32,
        stride: arena.stride(Slot::Context) as i32,
        window: layer.window.map_or(-1, |window| window.min(TILE) as i32),
        scale: 1.0 / (spec.head_dim as f32).sqrt(),
    };
    let grid = Grid { blocks: (blocks, 1), threads: 384, shared_bytes };
    // SAFETY: `SelfAttentionArgs`; the maps are of the slot and the weight, which has its bias on
    // Hopper and three times `width` rows; the context has a row per token, and the rotary table
    // one for every place that a sequence may have.
    unsafe { arena.stream.launch(&kernel, grid, &arguments)? };
    Ok(true)
}
