//! Layers by the kernels that end a linear layer with the norm: those that keep whole rows of the
//! state in a block (`kernels/rowwise.cu`), up to everything between two attentions
//! (`kernels/feedforward.cu`), and, for few tokens, clusters of blocks with a tile of the row each
//! (`kernels/hopper.cu`). Which models they take, and which of them when.

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, Epilogue, LinearOp, NormOp, Slot,
};
use fletcher_core::encoder::{EncoderWeights, LayerWeights};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{Activation, EncoderSpec, FeedForward, NormPlacement};

use super::arena::Arena;
use super::device::Grid;
use super::kernels::{
    FEEDFORWARD_INNER, FEEDFORWARD_SHARED, FeedForwardArguments, HOPPER_WIDTHS, HopperArguments,
    HopperNorm, NORM_TILES, ROWWISE_COLUMNS_MAX, ROWWISE_SHARED, ROWWISE_WIDTH, RowwiseArguments,
    TILE,
};
use super::ops::address;
use super::tensor_map::TensorMap;
use super::{Cuda, Linear, Norm, self_attention};

/// A block's 128 rows take as long however many blocks there are. While the card has fewer tokens
/// to encode than this share of what fills it once, in eighths, clusters are faster, which deal out
/// columns too.
const FILLED_MIN: usize = 5;

/// While no more batches like its own are in flight than this, the few rows that are kept of a
/// batch behind its last attention go by clusters.
const KEPT_ALONE_MAX: usize = 1;

/// Fewest columns of a first operand: with less, a warp could be a whole tile of rows ahead of
/// another of its block, and tell a block of its pair twice of itself and not of the other.
const COLUMNS_MIN: usize = 128;

/// A linear layer, the residual sum with [`Slot::Hidden`], and a norm.
struct RowwiseOp<'a> {
    input: Slot,
    first: &'a Linear,
    norm: &'a Norm,
    then: Then<'a>,
}

/// What becomes of the norm's result.
#[derive(Clone, Copy)]
enum Then<'a> {
    /// It is the state.
    State,
    /// It is, and another linear layer takes it as well.
    Second(&'a Linear, Slot, Activation),
    /// It goes there, and the sum is the state.
    Apart(Slot),
}

/// Whether the kernels take models of this spec, if they have all biases.
pub(super) fn takes(cuda: &Cuda, spec: &EncoderSpec) -> bool {
    cuda.kernels.rowwise.is_some()
        && (1..=2).any(|blocks| spec.hidden == blocks * ROWWISE_WIDTH)
        && [spec.context_width(), spec.intermediate]
            .into_iter()
            .all(|columns| columns.is_multiple_of(64) && columns >= COLUMNS_MIN)
}

/// Blocks that share a row, if the kernels take the model.
fn blocks_of_row(cuda: &Cuda, model: &EncoderWeights<Cuda>) -> Option<usize> {
    let biased = |linear: &Linear| linear.bias.is_some();
    let post = model.spec.norm.placement == NormPlacement::Post;
    let layer = |layer: &LayerWeights<Cuda>| {
        let norms = [layer.attention_norm.as_ref(), Some(&layer.feed_forward_norm)];
        (!post || norms.into_iter().all(|norm| norm.is_some_and(|norm| norm.bias.is_some())))
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

/// Whether everything between two attentions goes as one kernel, where models are `chained`.
pub(super) fn feedforward_takes(spec: &EncoderSpec) -> bool {
    spec.hidden == ROWWISE_WIDTH
        && spec.context_width() == ROWWISE_WIDTH
        && spec.intermediate.is_multiple_of(64)
        && FEEDFORWARD_INNER.contains(&spec.intermediate)
}

/// Runs all layers over an embedded batch if the kernels take the model, while `tokens` tokens are
/// being encoded in all; tells whether it did. If tokens are to be kept, it goes on with them
/// behind the last attention.
pub(super) fn encode(
    cuda: &Cuda,
    arena: &mut Arena,
    model: &EncoderWeights<Cuda>,
    batch: &PackedBatch,
    tokens: usize,
) -> Result<bool, BackendError> {
    let Some(blocks) = blocks_of_row(cuda, model) else { return Ok(false) };
    let filling = cuda.device.limits().multiprocessors / blocks * TILE;
    // What is kept of a batch does not fill the card: others do, or its clusters are soonest done.
    let (full, others) = (8 * tokens >= FILLED_MIN * filling, arena.in_flight > KEPT_ALONE_MAX);
    let filled = |kept: bool| cuda.rowwise.unwrap_or(full && (!kept || others));
    let with_norm = |arena: &Arena, kept, op: RowwiseOp<'_>| match filled(kept) {
        true => launch(cuda, arena, blocks, op),
        false => launch_cluster(cuda, arena, op),
    };
    if model.spec.norm.placement == NormPlacement::Pre {
        encode_pre_norm(cuda, arena, model, batch, with_norm)?;
        return Ok(true);
    }
    let relative = model.relative_bias.as_ref();
    let chained = chained(model);
    // A layer ends with the next one's projections where attention does not make them itself.
    let attends = |layer| self_attention::takes(cuda, arena, model, layer, Slot::Hidden);
    let with_next = filled(false) && chained && !model.layers.iter().all(attends);
    for (index, layer) in model.layers.iter().enumerate() {
        let Some(attention_norm) = &layer.attention_norm else { return Ok(false) };
        // The projections are there already where the layer before ended with them.
        if index == 0 || !with_next {
            cuda.self_attention(arena, model, layer, Slot::Hidden, batch)?;
        } else {
            if let Some(rotary) = &layer.rotary {
                cuda.rotary(arena, rotary, batch)?;
            }
            cuda.attention(arena, AttentionOp { relative, window: layer.window }, batch)?;
        }
        let kept = keep_behind_last(cuda, arena, model, index)?;
        let chained = chained && filled(kept);
        let next = model.layers.get(index + 1).filter(|_| with_next);
        if chained && feedforward_takes(&model.spec) {
            launch_whole(cuda, arena, layer, attention_norm, next.map(|next| &next.qkv))?;
            continue;
        }
        let op = RowwiseOp {
            input: Slot::Context,
            first: &layer.attention_out,
            norm: attention_norm,
            then: match chained {
                true => Then::Second(&layer.up, Slot::Inner, model.spec.feed_forward.activation),
                false => Then::State,
            },
        };
        with_norm(arena, kept, op)?;
        if !chained {
            go_up(cuda, arena, model, layer, Slot::Hidden)?;
        }
        let op = RowwiseOp {
            input: Slot::Inner,
            first: &layer.down,
            norm: &layer.feed_forward_norm,
            then: next.map_or(Then::State, |next| {
                Then::Second(&next.qkv, Slot::Qkv, Activation::Identity)
            }),
        };
        with_norm(arena, kept, op)?;
    }
    Ok(true)
}

/// The same for models whose norms are in front of attentions and feed-forward networks: what ends
/// with a sum also makes the norm that the next one begins with.
fn encode_pre_norm(
    cuda: &Cuda,
    arena: &mut Arena,
    model: &EncoderWeights<Cuda>,
    batch: &PackedBatch,
    with_norm: impl Fn(&Arena, bool, RowwiseOp<'_>) -> Result<(), BackendError>,
) -> Result<(), BackendError> {
    let mut input = Slot::Hidden;
    if let Some(norm) = model.layers.first().and_then(|layer| layer.attention_norm.as_ref()) {
        cuda.norm(arena, NormOp { norm, input, output: Slot::Normed })?;
        input = Slot::Normed;
    }
    for (index, layer) in model.layers.iter().enumerate() {
        cuda.self_attention(arena, model, layer, input, batch)?;
        let kept = keep_behind_last(cuda, arena, model, index)?;
        let op = RowwiseOp {
            input: Slot::Context,
            first: &layer.attention_out,
            norm: &layer.feed_forward_norm,
            then: Then::Apart(Slot::Normed),
        };
        with_norm(arena, kept, op)?;
        go_up(cuda, arena, model, layer, Slot::Normed)?;
        let next = model.layers.get(index + 1);
        // Nobody needs the sum that the encoder's last norm is of.
        let (norm, then) = match next {
            Some(next) => (next.attention_norm.as_ref(), Then::Apart(Slot::Normed)),
            None => (model.final_norm.as_ref(), Then::State),
        };
        match norm {
            Some(norm) => {
                let op = RowwiseOp { input: Slot::Inner, first: &layer.down, norm, then };
                with_norm(arena, kept, op)?;
                input = Slot::Normed;
            }
            None => {
                let (weight, output) = (&layer.down, Slot::Hidden);
                let epilogue = Epilogue::Accumulate;
                cuda.linear(arena, LinearOp { weight, input: Slot::Inner, output, epilogue })?;
                input = Slot::Hidden;
            }
        }
    }
    Ok(())
}

/// Behind the last layer's attention, goes on with the tokens that are kept, if any are: tells
/// whether it does.
fn keep_behind_last(
    cuda: &Cuda,
    arena: &mut Arena,
    model: &EncoderWeights<Cuda>,
    index: usize,
) -> Result<bool, BackendError> {
    let keeps = index + 1 == model.layers.len() && arena.keeps();
    if keeps {
        cuda.keep(arena)?;
    }
    Ok(keeps)
}

/// The feed-forward network's first half.
fn go_up(
    cuda: &Cuda,
    arena: &mut Arena,
    model: &EncoderWeights<Cuda>,
    layer: &LayerWeights<Cuda>,
    input: Slot,
) -> Result<(), BackendError> {
    let FeedForward { gated, activation } = model.spec.feed_forward;
    let epilogue = match gated {
        true => Epilogue::Gate(activation),
        false => Epilogue::Activate(activation),
    };
    cuda.linear(arena, LinearOp { weight: &layer.up, input, output: Slot::Inner, epilogue })
}

/// The same without a second layer, by clusters of blocks that share a row of tiles.
fn launch_cluster(cuda: &Cuda, arena: &Arena, op: RowwiseOp<'_>) -> Result<(), BackendError> {
    let none = || cuda.device.error("there are no tiles for Hopper's kernels");
    let columns = arena.stride(Slot::Hidden);
    let kernels = cuda.kernels.hopper_norm.ok_or_else(none)?;
    let fits = |kernel: &HopperNorm| kernel.width * NORM_TILES == columns;
    let HopperNorm { norm, apart, shared_bytes, width } =
        kernels.into_iter().find(fits).ok_or_else(none)?;
    let (kernel, normed) = match op.then {
        Then::State => (norm, 0),
        Then::Apart(output) => (apart, arena.slot(output)),
        Then::Second(..) => return Err(none()),
    };
    let maps = op.first.maps.ok_or_else(none)?;
    let at = HOPPER_WIDTHS.iter().position(|&other| other == width).ok_or_else(none)?;
    let arguments = HopperArguments {
        x: arena.map(op.input).ok_or_else(none)?,
        w: maps[at],
        bias: address(&op.first.bias),
        y: arena.slot(Slot::Hidden),
        batch: arena.batch_address(),
        scale: op.norm.scale.address(),
        shift: address(&op.norm.bias),
        normed,
        rows: op.first.rows as i32,
        k: op.first.cols as i32,
        columns: columns as i32,
        stride: columns as i32,
        eps: op.norm.eps,
        gate: [0.0; 3],
        cos_sin: 0,
        rotated: 0,
    };
    let blocks = (arena.tokens.div_ceil(TILE) * NORM_TILES, 1);
    let grid = Grid { blocks, threads: 384, shared_bytes };
    // SAFETY: `HopperLinearArgs`; the maps are of the slot and the weight, whose rows are as many
    // as the state has columns, by `blocks_of_row`; all biases are there.
    unsafe { arena.stream.launch(&kernel, grid, &arguments) }
}

/// The tiles of `rows` rows of a weight.
fn weight_map(linear: &Linear, rows: usize) -> Option<TensorMap> {
    let at = HOPPER_WIDTHS.iter().position(|&width| width == rows)?;
    linear.maps.map(|maps| maps[at])
}

/// From one attention to the next one's queries, keys and values, if there is a next one.
fn launch_whole(
    cuda: &Cuda,
    arena: &Arena,
    layer: &LayerWeights<Cuda>,
    attention_norm: &Norm,
    next: Option<&Linear>,
) -> Result<(), BackendError> {
    let none = || cuda.device.error("there are no tiles for Hopper's kernels");
    let kernel = cuda.kernels.feedforward.ok_or_else(none)?;
    let tiles = |linear: &Linear| linear.tiles.ok_or_else(none);
    let [x, state, qkv] = arena.tiles.ok_or_else(none)?;
    let out = tiles(&layer.attention_out)?.one;
    let arguments = FeedForwardArguments {
        x,
        state,
        qkv,
        up: tiles(&layer.up)?.three,
        out,
        down: tiles(&layer.down)?.one,
        next: next.map(tiles).transpose()?.map_or(out, |next| next.one),
        out_bias: address(&layer.attention_out.bias),
        scale1: attention_norm.scale.address(),
        shift1: address(&attention_norm.bias),
        up_bias: address(&layer.up.bias),
        down_bias: address(&layer.down.bias),
        scale2: layer.feed_forward_norm.scale.address(),
        shift2: address(&layer.feed_forward_norm.bias),
        next_bias: next.map_or(0, |next| address(&next.bias)),
        batch: arena.batch_address(),
        k: layer.attention_out.cols as i32,
        inner: layer.down.cols as i32,
        columns: next.map_or(0, |_| arena.stride(Slot::Qkv)) as i32,
        eps1: attention_norm.eps,
        eps2: layer.feed_forward_norm.eps,
    };
    let grid = Grid {
        blocks: (arena.tokens.div_ceil(TILE), 1),
        threads: 256,
        shared_bytes: FEEDFORWARD_SHARED,
    };
    // SAFETY: `FeedForwardArgs`; the maps are of the slots and weights, whose widths `chained` and
    // `feedforward_takes` have checked, and all biases are there. The last tile's rows behind the
    // batch's last are written too, as far as the slots go: nobody reads those.
    unsafe { arena.stream.launch(&kernel, grid, &arguments) }
}

fn launch(
    cuda: &Cuda,
    arena: &Arena,
    blocks: usize,
    op: RowwiseOp<'_>,
) -> Result<(), BackendError> {
    let none = || cuda.device.error("there are no tiles for Hopper's kernels");
    let map = |linear: &Linear, rows: usize| weight_map(linear, rows).ok_or_else(none);
    let kernels = cuda.kernels.rowwise.ok_or_else(none)?;
    let first = map(op.first, ROWWISE_WIDTH / 2)?;
    let (kernel, second, out) = match op.then {
        Then::State => (kernels.norm[blocks - 1], None, None),
        Then::Apart(output) => (kernels.apart[blocks - 1], None, Some(output)),
        Then::Second(linear, output, activation) => {
            let gelu = activation == Activation::GeluErf;
            (if gelu { kernels.gelu } else { kernels.store }, Some(linear), Some(output))
        }
    };
    let arguments = RowwiseArguments {
        x: arena.map(op.input).ok_or_else(none)?,
        state: arena.map(Slot::Hidden).ok_or_else(none)?,
        first,
        second: second.map_or(Ok(first), |linear| map(linear, TILE))?,
        first_bias: address(&op.first.bias),
        scale: op.norm.scale.address(),
        shift: address(&op.norm.bias),
        second_bias: second.map_or(0, |linear| address(&linear.bias)),
        hidden: arena.slot(Slot::Hidden),
        out: out.map_or(0, |output| arena.slot(output)),
        batch: arena.batch_address(),
        k: op.first.cols as i32,
        columns: second.and(out).map_or(0, |output| arena.stride(output)) as i32,
        eps: op.norm.eps,
    };
    // A block goes on to its second tile sooner than another would begin with it.
    let at_once = cuda.device.limits().multiprocessors / blocks;
    let grid = Grid {
        blocks: (arena.tokens.div_ceil(TILE).min(at_once) * blocks, 1),
        threads: 384,
        shared_bytes: ROWWISE_SHARED,
    };
    // SAFETY: `RowwiseArgs`; the maps are of the slots and weights, whose widths `blocks_of_row`
    // and `chained` have checked, and all biases are there.
    unsafe { arena.stream.launch(&kernel, grid, &arguments) }
}
