//! The small encoder over sequences that do not fit into a tile: on Hopper, one kernel per layer
//! and one in front of them (`kernels/layers.cu`).
//!
//! The batch goes to the card as for the composition of operations and its states end up in
//! [`Slot::Hidden`], so that pooling is the general kernel's. Keys and values of one layer lie in
//! one pair of slots, those of the next in another: while a block writes these, others still read
//! those.

use fletcher_core::backend::{BackendError, Slot};
use fletcher_core::encoder::EncoderWeights;
use fletcher_core::pack::PackedBatch;

use super::arena::Arena;
use super::device::Grid;
use super::kernels::{FusedPlan, LAYERS_GROUPS, LayersArguments, TILE};
use super::ops::address;
use super::{Cuda, small};

/// Bytes of a row's keys and values of one head, or of its state.
const ROW_BYTES: u64 = 256;

/// Runs all layers over a batch if the kernels take the model; tells whether it did.
pub(super) fn encode(
    cuda: &Cuda,
    arena: &mut Arena,
    model: &EncoderWeights<Cuda>,
    batch: &PackedBatch,
) -> Result<bool, BackendError> {
    let (embedding, layers) = (&model.embedding, model.layers.len());
    let Some(kernels) = cuda.kernels.layers else { return Ok(false) };
    let takes =
        small::takes(&model.spec) && layers > 0 && embedding.position_rows <= small::POSITIONS_MAX;
    if !takes {
        return Ok(false);
    }
    cuda.device.enter()?;
    let small = small::prepared(cuda, arena, model)?;
    arena.pending = None;
    arena.stage(batch, embedding.position_offset, None)?;

    // The queries' slot is three times as wide as a head's keys and values.
    let qkv = arena.slot(Slot::Qkv);
    let even = [qkv, qkv + ROW_BYTES * arena.slot_rows as u64];
    let odd = [arena.slot(Slot::Normed), arena.slot(Slot::Context)];
    let limits = cuda.device.limits();
    let plan = FusedPlan::new(LAYERS_GROUPS, limits.shared_bytes);
    let grid = Grid {
        blocks: (arena.tokens.div_ceil(TILE).min(limits.multiprocessors), 1),
        // The fetching warp comes with three idle ones.
        threads: LAYERS_GROUPS * 128 + 128,
        shared_bytes: plan.shared_bytes,
    };
    for layer in -1..layers as i32 {
        let (from, to) = if layer % 2 == 0 { (even, odd) } else { (odd, even) };
        let arguments = LayersArguments {
            batch: arena.batch_address(),
            word: embedding.word.address(),
            position: address(&embedding.position),
            token_type: address(&embedding.token_type),
            chunks: small.chunks.address(),
            parameters: small.parameters.address(),
            states: arena.slot(Slot::Hidden),
            from,
            to,
            layer,
            layers: layers as i32,
            inner: model.spec.intermediate as i32,
            stages: plan.stages as i32,
            tokens: arena.tokens as i32,
            eps: small.eps,
        };
        let kernel = if layer < 0 { &kernels.front } else { &kernels.one };
        // SAFETY: `LayersArgs`; slots are 256 bytes a row wide, or 768, by `takes`, with whole
        // tiles of rows, and the model keeps its weights beyond the wait that ends every batch.
        unsafe { arena.stream.launch(kernel, grid, &arguments)? };
    }
    Ok(true)
}
