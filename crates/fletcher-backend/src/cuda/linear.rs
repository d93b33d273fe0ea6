//! The linear layer: weights as the kernels take them, and which kernel runs.

use fletcher_core::backend::{BackendError, Epilogue, LinearOp, LinearSource, Slot};
use fletcher_core::spec::Activation;

use super::arena::Arena;
use super::device::Grid;
use super::kernels::{
    FeedForwardTiles, HOPPER_TILES, HOPPER_WIDTHS, HopperArguments, HopperTile, LINEAR_SHARED,
    LinearArguments, ROTATED_HEAD, TILE, Way, logistic, number,
};
use super::linear_f32::{self, Halves};
use super::ops::address;
use super::tensor_map::Matrix;
use super::{Cuda, Linear, Rotary, stride};

/// What a step of the products of Hopper's linear layer costs beside its width, in columns: shared
/// memory's bandwidth is what limits it, and a tile of x takes its share whatever the width.
const STEP_COLUMNS: f64 = 85.0;
/// What the epilogue of a tile costs where both warpgroups share it, where one makes it alone, and
/// where that happens beside the other's products; in steps of 5/3 of the tile's width. Fitted to
/// the times of every variant on the shapes of MiniLM and BERT base at 2,048 to 65,536 tokens.
const EPILOGUE_STEPS: f64 = 5.0;
const EPILOGUE_STEPS_ALONE: f64 = 6.0;
const EPILOGUE_STEPS_BESIDE: f64 = 3.0;

/// A block of the linear layer starts sooner with its second tile than a block that comes after it
/// would, so that batches leave each other room while there are many: a block makes as many tiles
/// as there are times so many batches in flight, up to a few.
const IN_FLIGHT_PER_TILE: usize = 4;
const TILES_EACH_MAX: usize = 3;

/// What the biases of Hopper's kernels are padded to: they read one for every column of a tile, and
/// tiles may be wider than what is left of the matrix. A multiple of every tile's width.
const BIAS_MULTIPLE: usize = 768;

/// How many blocks make so many tiles.
pub(super) fn blocks(cuda: &Cuda, arena: &Arena, tiles: usize) -> usize {
    let each = (arena.in_flight / IN_FLIGHT_PER_TILE).clamp(1, TILES_EACH_MAX);
    tiles.div_ceil(each).min(cuda.device.limits().multiprocessors)
}

impl Linear {
    /// Brings a weight to the card.
    pub(super) fn upload(cuda: &Cuda, source: LinearSource<'_>) -> Result<Self, BackendError> {
        let LinearSource { rows, cols, weight, bias, gated } = source;
        // Eight gates' rows, then their values', so that a thread holds both of an output; zeros
        // for those of the output's padding.
        let half = rows / 2;
        let rows = if gated { 2 * stride(half) } else { rows };
        let from = |row: usize| match gated {
            true => {
                let output = row / 16 * 8 + row % 8;
                (output < half).then_some(output + row / 8 % 2 * half)
            }
            false => Some(row),
        };
        let mut padded = vec![0.0; rows * stride(cols)];
        for (row, out) in padded.chunks_exact_mut(stride(cols)).enumerate() {
            if let Some(row) = from(row) {
                out[..cols].copy_from_slice(&weight[row * cols..(row + 1) * cols]);
            }
        }
        let cols = stride(cols);
        let halves = cuda.kernels.hopper_f32.is_some();
        let weight = match halves {
            true => linear_f32::halves(&padded, cols),
            false => padded,
        };
        let bytes = cuda.encode_values(&weight, "a weight matrix")?;
        let weight = cuda.upload(&bytes, "the weights")?;
        let hopper = halves || cuda.kernels.hopper.is_some();
        let padding = std::iter::repeat_n(0.0, rows.next_multiple_of(BIAS_MULTIPLE) - rows);
        let bias = match (bias, hopper) {
            (Some(bias), _) => {
                let values = (0..rows).map(|row| from(row).map_or(0.0, |row| bias[row]));
                let values = values.chain(padding);
                Some(cuda.upload_floats(values, "the weights")?)
            }
            (None, true) => {
                let zeros = std::iter::repeat_n(0.0, rows).chain(padding);
                Some(cuda.upload_floats(zeros, "the weights")?)
            }
            (None, false) => None,
        };
        let matrix = Matrix { address: weight.address(), rows, cols, format: cuda.format };
        let map = |tile_rows| cuda.device.tensor_map(matrix, tile_rows);
        let maps = match (&cuda.kernels.hopper, HOPPER_WIDTHS) {
            (Some(_), [a, b, c, d]) => Some([map(a)?, map(b)?, map(c)?, map(d)?]),
            (None, _) => None,
        };
        let tiles = match maps.is_some() && cols.is_multiple_of(64) {
            true => Some(FeedForwardTiles::new(&cuda.device, matrix)?),
            false => None,
        };
        let halves = match halves {
            true => Some(Halves::new(&cuda.device, matrix)?),
            false => None,
        };
        Ok(Self { weight, bias, rows, cols, maps, tiles, halves })
    }
}

/// Runs the layer on the kernel that is best for it.
pub(super) fn launch(
    cuda: &Cuda,
    arena: &mut Arena,
    op: &LinearOp<'_, Cuda>,
) -> Result<(), BackendError> {
    let (weight, k) = (op.weight, &cuda.kernels);
    assert_eq!(arena.stride(op.input), weight.cols, "the weight is for another width");
    if let Some(halves) = &weight.halves {
        return linear_f32::launch(cuda, arena, op, halves);
    }
    if let Some(done) = launch_hopper(cuda, arena, op, None) {
        return done;
    }
    let to = arena.stride(op.output);
    let (kernel, activation, columns) = match op.epilogue {
        Epilogue::Store => (&k.linear_store, Activation::Identity, to),
        Epilogue::Accumulate => (&k.linear_accumulate, Activation::Identity, to),
        Epilogue::Activate(Activation::GeluErf) => (&k.linear_gelu, Activation::GeluErf, to),
        Epilogue::Activate(activation) => (&k.linear_activate, activation, to),
        Epilogue::Gate(activation) => (&k.linear_gate, activation, 2 * to),
    };
    let arguments = LinearArguments {
        x: arena.slot(op.input),
        w: weight.weight.address(),
        bias: address(&weight.bias),
        y: arena.slot(op.output),
        batch: arena.batch_address(),
        rows: weight.rows as i32,
        k: weight.cols as i32,
        columns: columns as i32,
        stride: to as i32,
        activation: number(activation),
    };
    let grid = Grid {
        blocks: (columns.div_ceil(TILE), arena.tokens.div_ceil(TILE)),
        threads: 256,
        shared_bytes: LINEAR_SHARED,
    };
    // SAFETY: `LinearArgs`; both slots have a row per token, of the strides given.
    unsafe { arena.stream.launch(kernel, grid, &arguments) }
}

/// Projects queries, keys and values and rotates what is to be, if there is a kernel that does
/// both; tells whether it did.
pub(super) fn launch_rotated(
    cuda: &Cuda,
    arena: &mut Arena,
    weight: &Linear,
    input: Slot,
    rotary: &Rotary,
) -> Result<bool, BackendError> {
    if rotary.head_dim != ROTATED_HEAD {
        return Ok(false);
    }
    cuda.device.enter()?;
    assert_eq!(arena.stride(input), weight.cols, "the weight is for another width");
    let op = LinearOp { weight, input, output: Slot::Qkv, epilogue: Epilogue::Store };
    launch_hopper(cuda, arena, &op, Some(rotary)).map_or(Ok(false), |done| done.map(|()| true))
}

/// The layer on Hopper's own kernels in 16 bits, if there is one for it; what is stored is rotated
/// first as far as it is queries and keys, if it is to be.
fn launch_hopper(
    cuda: &Cuda,
    arena: &mut Arena,
    op: &LinearOp<'_, Cuda>,
    rotary: Option<&Rotary>,
) -> Option<Result<(), BackendError>> {
    let (maps, all) = (op.weight.maps?, cuda.kernels.hopper?);
    let stride = arena.stride(op.output);
    let (columns, gate) = match op.epilogue {
        Epilogue::Gate(activation) => (2 * stride, logistic(activation)?),
        _ => (stride, [0.0; 3]),
    };
    let multiprocessors = cuda.device.limits().multiprocessors;
    let tiles = |width: usize| columns.div_ceil(width) * arena.tokens.div_ceil(TILE);
    // Rounds of tiles times the time of one, in columns of products of one step. While other
    // batches are in flight, theirs fill what the last round leaves.
    let steps = op.weight.cols.div_ceil(64) as f64;
    let cost = |&at: &usize| {
        let HopperTile { width, way, .. } = HOPPER_TILES[at];
        let rounds = tiles(width) as f64 / multiprocessors as f64;
        let rounds = if arena.in_flight > 1 { rounds } else { rounds.ceil() };
        let width = width as f64;
        let epilogues = match way {
            Way::Shared => rounds * EPILOGUE_STEPS,
            Way::Turns => {
                (rounds - 1.0).max(0.0) * EPILOGUE_STEPS_BESIDE
                    + rounds.min(1.0) * EPILOGUE_STEPS_ALONE
            }
        };
        rounds * (width + STEP_COLUMNS) * steps + width * epilogues * 5.0 / 3.0
    };
    let wanted = |at: &usize| cuda.tile.is_none_or(|only| only == *at);
    let at = (0..HOPPER_TILES.len()).filter(wanted).min_by(|a, b| cost(a).total_cmp(&cost(b)))?;
    let kernels = all[at];
    let kernel = match op.epilogue {
        Epilogue::Store if rotary.is_some() => kernels.rotate,
        Epilogue::Store | Epilogue::Activate(Activation::Identity) => kernels.store,
        Epilogue::Accumulate => kernels.accumulate,
        Epilogue::Activate(Activation::GeluErf) => kernels.gelu,
        Epilogue::Gate(_) => kernels.gate,
        Epilogue::Activate(_) => return None,
    };
    let width = HOPPER_TILES[at].width;
    let arguments = HopperArguments {
        x: arena.map(op.input)?,
        w: maps[HOPPER_WIDTHS.iter().position(|&other| other == width)?],
        bias: address(&op.weight.bias),
        y: arena.slot(op.output),
        batch: arena.batch_address(),
        scale: 0,
        shift: 0,
        normed: 0,
        rows: op.weight.rows as i32,
        k: op.weight.cols as i32,
        columns: columns as i32,
        stride: stride as i32,
        eps: 0.0,
        gate,
        cos_sin: rotary.map_or(0, |rotary| rotary.cos_sin.address()),
        rotated: rotary.map_or(0, |_| 2 * arena.spec.context_width()) as i32,
    };
    let shared_bytes = kernels.shared_bytes;
    let grid = Grid { blocks: (blocks(cuda, arena, tiles(width)), 1), threads: 384, shared_bytes };
    // SAFETY: `HopperLinearArgs`; the maps are of the slot and the weight, and the output slot has
    // a row per token; the rotary table has one for every place that a sequence may have.
    Some(unsafe { arena.stream.launch(&kernel, grid, &arguments) })
}
