//! Layers by the kernels that keep whole rows of the state (`kernels/rowwise.cu`): which models
//! they take, and when they pay.

use fletcher_core::backend::{AttentionOp, Backend, BackendError, Epilogue, LinearOp, Slot};
use fletcher_core::encoder::{EncoderWeights, LayerWeights};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{Activation, EncoderSpec, NormPlacement};

use super::arena::Arena;
use super::device::{Grid, TensorMap};
use super::kernels::{
    HOPPER_WIDTHS, ROWWISE_COLUMNS_MAX, ROWWISE_SHARED, ROWWISE_WIDTH, RowwiseArguments, TILE,
};
use super::ops::address;
use super::{Cuda, Linear, Norm};

/// A block's 128 rows take as long however many blocks there are. While the card has fewer tokens
/// to encode than this share of what fills it once, in eighths, the composition of operations is
/// faster, which deals out columns too.
const FILLED_MIN: usize = 5;

/// A linear layer, the residual sum with [`Slot::Hidden`], a norm, and perhaps another linear
/// layer.
struct RowwiseOp<'a> {
    input: Slot,
    first: &'a Linear,
    norm: &'a Norm,
    second: Option<(&'a Linear, Slot, Activation)>,
}

/// Whether the kernels take models of this spec, if they have all biases.
pub(super) fn takes(cuda: &Cuda, spec: &EncoderSpec) -> bool {
    cuda.kernels.rowwise.is_some()
        && (1..=2).any(|blocks| spec.hidden == blocks * ROWWISE_WIDTH)
        && spec.norm.placement == NormPlacement::Post
        && spec.context_width().is_multiple_of(64)
        && spec.intermediate.is_multiple_of(64)
}

/// Blocks that share a row, if the kernels take the model.
fn blocks_of_row(cuda: &Cuda, model: &EncoderWeights<Cuda>) -> Option<usize> {
    let biased = |linear: &Linear| linear.bias.is_some();
    let layer = |layer: &LayerWeights<Cuda>| {
        let norms = [layer.attention_norm.as_ref(), Some(&layer.feed_forward_norm)];
        norms.into_iter().all(|norm| norm.is_some_and(|norm| norm.bias.is_some()))
            && [&layer.qkv, &layer.attention_out, &layer.up, &layer.down].into_iter().all(biased)
    };
    let takes = takes(cuda, &model.spec) && model.layers.iter().all(layer);
    takes.then_some(model.spec.hidden / ROWWISE_WIDTH)
}

/// Whether the two linear layers between attentions go as one kernel each way.
fn chained(model: &EncoderWeights<Cuda>) -> bool {
    let spec = &model.spec;
    spec.hidden == ROWWISE_WIDTH
        && !spec.feed_forward.gated
        && spec.feed_forward.activation == Activation::GeluErf
        && [spec.qkv_width(), spec.intermediate]
            .into_iter()
            .all(|columns| columns.is_multiple_of(128) && columns <= ROWWISE_COLUMNS_MAX)
}

/// Runs all layers over an embedded batch if the kernels take the model and pay for `tokens` tokens
/// that are being encoded in all; tells whether it did.
pub(super) fn encode(
    cuda: &Cuda,
    arena: &mut Arena,
    model: &EncoderWeights<Cuda>,
    batch: &PackedBatch,
    tokens: usize,
) -> Result<bool, BackendError> {
    let Some(blocks) = blocks_of_row(cuda, model) else { return Ok(false) };
    let filling = cuda.device.limits().multiprocessors / blocks * TILE;
    if !cuda.rowwise.unwrap_or(8 * tokens >= FILLED_MIN * filling) {
        return Ok(false);
    }
    let relative = model.relative_bias.as_ref();
    let chained = chained(model);
    let store = Epilogue::Store;
    for (index, layer) in model.layers.iter().enumerate() {
        let Some(attention_norm) = &layer.attention_norm else { return Ok(false) };
        if index == 0 || !chained {
            let (weight, input, output) = (&layer.qkv, Slot::Hidden, Slot::Qkv);
            cuda.linear(arena, LinearOp { weight, input, output, epilogue: store })?;
        }
        if let Some(rotary) = &layer.rotary {
            cuda.rotary(arena, rotary, batch)?;
        }
        cuda.attention(arena, AttentionOp { relative, window: layer.window }, batch)?;
        let up = (&layer.up, Slot::Inner, model.spec.feed_forward.activation);
        let op = RowwiseOp {
            input: Slot::Context,
            first: &layer.attention_out,
            norm: attention_norm,
            second: chained.then_some(up),
        };
        launch(cuda, arena, blocks, op)?;
        if !chained {
            let activation = model.spec.feed_forward.activation;
            let epilogue = match model.spec.feed_forward.gated {
                true => Epilogue::Gate(activation),
                false => Epilogue::Activate(activation),
            };
            let (weight, input, output) = (&layer.up, Slot::Hidden, Slot::Inner);
            cuda.linear(arena, LinearOp { weight, input, output, epilogue })?;
        }
        let next = model.layers.get(index + 1).filter(|_| chained);
        let op = RowwiseOp {
            input: Slot::Inner,
            first: &layer.down,
            norm: &layer.feed_forward_norm,
            second: next.map(|next| (&next.qkv, Slot::Qkv, Activation::Identity)),
        };
        launch(cuda, arena, blocks, op)?;
    }
    Ok(true)
}

fn launch(
    cuda: &Cuda,
    arena: &Arena,
    blocks: usize,
    op: RowwiseOp<'_>,
) -> Result<(), BackendError> {
    let at = HOPPER_WIDTHS.iter().position(|&width| width == TILE);
    let map = |maps: Option<[TensorMap; HOPPER_WIDTHS.len()]>| Some(maps?[at?]);
    let none = || cuda.device.error("there are no tiles for Hopper's kernels");
    let kernels = cuda.kernels.rowwise.ok_or_else(none)?;
    let first = map(op.first.maps).ok_or_else(none)?;
    let (kernel, second, columns) = match op.second {
        None => (kernels.norm[blocks - 1], None, 0),
        Some((linear, output, Activation::GeluErf)) => {
            (kernels.gelu, Some((linear, output)), arena.stride(output))
        }
        Some((linear, output, _)) => (kernels.store, Some((linear, output)), arena.stride(output)),
    };
    let arguments = RowwiseArguments {
        x: arena.map(op.input).ok_or_else(none)?,
        state: arena.map(Slot::Hidden).ok_or_else(none)?,
        first,
        second: match second {
            Some((linear, _)) => map(linear.maps).ok_or_else(none)?,
            None => first,
        },
        first_bias: address(&op.first.bias),
        scale: op.norm.scale.address(),
        shift: address(&op.norm.bias),
        second_bias: second.map_or(0, |(linear, _)| address(&linear.bias)),
        hidden: arena.slot(Slot::Hidden),
        out: second.map_or(0, |(_, output)| arena.slot(output)),
        batch: arena.batch.address(),
        k: op.first.cols as i32,
        columns: columns as i32,
        eps: op.norm.eps,
    };
    let tiles = arena.tokens.div_ceil(TILE);
    let at_once = cuda.device.limits().multiprocessors / blocks;
    let grid = Grid {
        blocks: (tiles.min(at_once) * blocks, 1),
        threads: 384,
        shared_bytes: ROWWISE_SHARED,
    };
    // SAFETY: `RowwiseArgs`; the maps are of the slots and weights, whose widths `blocks_of_row`
    // and `chained` have checked, and all biases are there.
    unsafe { arena.stream.launch(&kernel, grid, &arguments) }
}
