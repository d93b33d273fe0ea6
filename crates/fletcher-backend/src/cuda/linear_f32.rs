//! The linear layer in f32 on Hopper (`kernels/hopper_f32.cu`): a weight as two matrices of TF32
//! numbers, and the choice among tiles.

use std::sync::Arc;

use fletcher_core::backend::{BackendError, Epilogue, LinearOp};
use fletcher_core::spec::Activation;

use super::arena::Arena;
use super::device::{Device, Grid, Kernel, Module, Start};
use super::kernels::{HopperF32Arguments, TILE, number};
use super::ops::address;
use super::tensor_map::{Matrix, TensorMap};
use super::{Cuda, linear};

/// Cubins of `kernels/hopper_f32.cu`.
const BUNDLE: &[u8] = include_bytes!("kernels/hopper_f32.fatbin");

/// Columns of x and W in a stage of the kernel.
const STEP: usize = 32;
/// Shared memory of a block: the ring of stages, and 16 padded rows of 32 columns for each warp.
const SHARED: usize = 196_608 + 8 * 16 * 160;

/// Widths of the tiles of the kernel's variants; they are 128 rows high.
const WIDTHS: [usize; 2] = [64, 128];

/// What a step costs beside its width, in columns of products, and what a tile costs beside its
/// steps, for each of its columns: mostly that all tiles of a round are stored at the same time.
/// Fitted to the times of both variants on the shapes of MiniLM and BERT base at 2,048 and 16,896
/// tokens.
const STEP_COLUMNS: f64 = 55.0;
const TILE_COLUMNS: f64 = 6.0;

/// The kernels with tiles of one width.
#[derive(Debug, Clone, Copy)]
struct Epilogues {
    store: Kernel,
    accumulate: Kernel,
    gelu: Kernel,
    activate: Kernel,
    gate: Kernel,
}

/// The kernels, in the order of [`WIDTHS`].
#[derive(Debug)]
pub(super) struct HopperF32 {
    widths: [Epilogues; WIDTHS.len()],
    _module: Module,
}

impl HopperF32 {
    pub(super) fn load(device: &Arc<Device>) -> Result<Self, BackendError> {
        let module = device.load(BUNDLE, Start::Early)?;
        let one = |width: usize| {
            let kernel =
                |epilogue: &str| module.kernel(&format!("hopper_f32_{epilogue}_{width}"), SHARED);
            Ok::<_, BackendError>(Epilogues {
                store: kernel("store")?,
                accumulate: kernel("accumulate")?,
                gelu: kernel("gelu")?,
                activate: kernel("activate")?,
                gate: kernel("gate")?,
            })
        };
        let [a, b] = WIDTHS;
        Ok(Self { widths: [one(a)?, one(b)?], _module: module })
    }
}

/// Both halves of a weight, by the width of their tiles.
#[derive(Debug)]
pub(super) struct Halves([TensorMap; WIDTHS.len()]);

impl Halves {
    /// Of a weight as [`halves`] arranges it; `weight` says what it was before.
    pub(super) fn new(device: &Device, weight: Matrix) -> Result<Self, BackendError> {
        let halves = Matrix { cols: weight.cols.next_multiple_of(STEP), ..weight };
        let map = |tile_rows| device.tensor_map_of_halves(halves, tile_rows);
        let [a, b] = WIDTHS;
        Ok(Self([map(a)?, map(b)?]))
    }
}

/// A matrix of `cols` columns as the sum of two of TF32 numbers, one behind the other, with columns
/// padded to whole steps and put into the order in which the kernel's threads hold those of x: each
/// has eight neighbours, of which a product of eight columns takes two.
pub(super) fn halves(weight: &[f32], cols: usize) -> Vec<f32> {
    let padded = cols.next_multiple_of(STEP);
    let rows = weight.len() / cols;
    let mut out = vec![0.0; 2 * rows * padded];
    let (high, low) = out.split_at_mut(rows * padded);
    let to = high.chunks_exact_mut(padded).zip(low.chunks_exact_mut(padded));
    for (row, (high, low)) in weight.chunks_exact(cols).zip(to) {
        for at in 0..padded {
            let (product, column) = (at % STEP / 8, at % 8);
            let from = at / STEP * STEP + column % 4 * 8 + 2 * product + column / 4;
            let value = row.get(from).copied().unwrap_or(0.0);
            high[at] = round_tf32(value);
            low[at] = round_tf32(value - high[at]);
        }
    }
    out
}

/// To TF32's ten bits behind the leading one, half away from zero.
fn round_tf32(value: f32) -> f32 {
    f32::from_bits(value.to_bits().wrapping_add(0x1000) & 0xffff_e000)
}

/// Runs the layer.
pub(super) fn launch(
    cuda: &Cuda,
    arena: &mut Arena,
    op: &LinearOp<'_, Cuda>,
    halves: &Halves,
) -> Result<(), BackendError> {
    let none = || cuda.device.error("there are no kernels for f32 on Hopper");
    let kernels = cuda.kernels.hopper_f32.as_ref().ok_or_else(none)?;
    let stride = arena.stride(op.output);
    let (columns, activation) = match op.epilogue {
        Epilogue::Gate(activation) => (2 * stride, activation),
        Epilogue::Activate(activation) => (stride, activation),
        Epilogue::Store | Epilogue::Accumulate => (stride, Activation::Identity),
    };
    let tiles = |width: usize| columns.div_ceil(width) * arena.tokens.div_ceil(TILE);
    // Rounds of tiles times the time of one. While other batches are in flight, theirs fill what
    // the last round leaves.
    let steps = op.weight.cols.div_ceil(STEP) as f64;
    let cost = |at: &usize| {
        let rounds = tiles(WIDTHS[*at]) as f64 / cuda.device.limits().multiprocessors as f64;
        let rounds = if arena.in_flight > 1 { rounds } else { rounds.ceil() };
        let width = WIDTHS[*at] as f64;
        rounds * ((width + STEP_COLUMNS) * steps + width * TILE_COLUMNS)
    };
    let wanted = |at: &usize| cuda.tile.is_none_or(|only| only == *at);
    let at = (0..WIDTHS.len()).filter(wanted).min_by(|a, b| cost(a).total_cmp(&cost(b)));
    let at = at.ok_or_else(|| cuda.device.error("there is no such variant of the linear layer"))?;
    let of = &kernels.widths[at];
    let kernel = match op.epilogue {
        Epilogue::Store | Epilogue::Activate(Activation::Identity) => &of.store,
        Epilogue::Accumulate => &of.accumulate,
        Epilogue::Activate(Activation::GeluErf) => &of.gelu,
        Epilogue::Activate(_) => &of.activate,
        Epilogue::Gate(_) => &of.gate,
    };
    let arguments = HopperF32Arguments {
        x: arena.map(op.input).ok_or_else(none)?,
        w: halves.0[at],
        bias: address(&op.weight.bias),
        y: arena.slot(op.output),
        batch: arena.batch_address(),
        k: op.weight.cols as i32,
        columns: columns as i32,
        stride: stride as i32,
        activation: number(activation),
    };
    let blocks = (linear::blocks(cuda, arena, tiles(WIDTHS[at])), 1);
    let grid = Grid { blocks, threads: 384, shared_bytes: SHARED };
    // SAFETY: `HopperF32Args`; the maps are of the slot and the weight, there is a bias for every
    // column of a tile, and the output slot has a row per token.
    unsafe { arena.stream.launch(kernel, grid, &arguments) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each column is there once, in the order of the kernel's fragments, and both halves together
    /// are the number, but for its last bit.
    #[test]
    fn halves_are_the_weight() {
        let (rows, cols) = (3, 72);
        let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 + 0.1).sin()).collect();
        let out = halves(&weight, cols);
        assert_eq!(out.len(), 2 * rows * 96);
        let (high, low) = out.split_at(rows * 96);
        for row in 0..rows {
            let mut seen = [0; 96];
            for at in 0..96 {
                // Lane t holds columns 8t to 8t+7 of a step; product s takes 8t+2s and 8t+2s+1.
                let (step, s, c) = (at / 32, at % 32 / 8, at % 8);
                let from = step * 32 + 8 * (c % 4) + 2 * s + c / 4;
                seen[from] += 1;
                let sum = f64::from(high[row * 96 + at]) + f64::from(low[row * 96 + at]);
                let value = if from < cols { weight[row * cols + from] } else { 0.0 };
                assert!((sum - f64::from(value)).abs() <= f64::from(value).abs() * 2f64.powi(-23));
                assert_eq!(high[row * 96 + at].to_bits() & 0x1fff, 0);
                assert_eq!(low[row * 96 + at].to_bits() & 0x1fff, 0);
            }
            assert_eq!(seen, [1; 96]);
        }
    }
}
