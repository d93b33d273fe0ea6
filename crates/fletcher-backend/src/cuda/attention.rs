//! Attention over projections that lie in memory: by which of the kernels.
//!
//! On Hopper, sequences of more than a tile go by `kernels/flash_attention.cu` in 16 bits; what is
//! left goes by `kernels/attention.cuh`, on the tensor cores unless heads are wide.

use fletcher_core::backend::{AttentionOp, BackendError, Slot};
use fletcher_core::spec::{EncoderSpec, Position};

use super::Cuda;
use super::arena::Arena;
use super::device::{Grid, Kernel};
use super::kernels::{
    AttentionArguments, FLASH_COLUMNS, FLASH_HEADS, FLASH_SHARED, FlashAttentionArguments,
    tiled_blocks, tiled_shared,
};

/// Whether `flash_attention` takes models of this spec.
pub(super) fn flash_takes(cuda: &Cuda, spec: &EncoderSpec) -> bool {
    cuda.kernels.flash_attention.is_some()
        && FLASH_HEADS.contains(&spec.head_dim)
        && spec.context_width().is_multiple_of(FLASH_COLUMNS)
        && !matches!(spec.position, Position::RelativeBuckets { .. })
}

/// Runs the kernel that the batch was staged for.
pub(super) fn launch(
    cuda: &Cuda,
    arena: &mut Arena,
    op: AttentionOp<'_, Cuda>,
) -> Result<(), BackendError> {
    cuda.device.enter()?;
    let EncoderSpec { heads, head_dim, .. } = arena.spec;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let multiprocessors = cuda.device.limits().multiprocessors;
    let flash = FLASH_HEADS.iter().position(|&dim| dim == head_dim);
    if let (true, Some(kernels), Some(at)) = (arena.flash, cuda.kernels.flash_attention, flash) {
        assert!(op.relative.is_none(), "the batch is staged for attention without biases");
        let none = || cuda.device.error("there are no tiles for Hopper's kernels");
        let width = arena.spec.context_width();
        let arguments = FlashAttentionArguments {
            qkv: arena.map(Slot::Qkv).ok_or_else(none)?,
            context: arena.slot(Slot::Context),
            batch: arena.batch_address(),
            width: width as i32,
            stride: arena.stride(Slot::Context) as i32,
            window: window(&op),
            scale,
        };
        let works = arena.items * (width / FLASH_COLUMNS);
        let grid = Grid {
            blocks: (works.min(multiprocessors), 1),
            threads: 384,
            shared_bytes: FLASH_SHARED,
        };
        // SAFETY: `FlashAttentionArgs`; the map is of the slot, whose rows behind the batch's last
        // are allocated too, and the context has a row per token.
        return unsafe { arena.stream.launch(&kernels[at], grid, &arguments) };
    }
    let arguments = AttentionArguments {
        qkv: arena.slot(Slot::Qkv),
        context: arena.slot(Slot::Context),
        relative: op.relative.map_or(0, |bias| bias.by_distance.address()),
        batch: arena.batch_address(),
        heads: heads as i32,
        head_dim: head_dim as i32,
        stride: arena.stride(Slot::Qkv) as i32,
        context_stride: arena.stride(Slot::Context) as i32,
        window: window(&op),
        positions: op.relative.map_or(0, |bias| bias.positions as i32),
        scale,
    };
    let tiled = cuda.kernels.attention_tiled.iter().find(|(dim, _)| head_dim <= *dim);
    let (kernel, blocks, shared_bytes): (&Kernel, _, _) = match tiled {
        Some((dim, kernel)) => {
            let most = tiled_blocks(*dim, cuda.format) * multiprocessors;
            // A batch's share of them, so that the others' large blocks, which want a whole
            // multiprocessor each, find some without any of these.
            let share = (most / arena.in_flight).max(heads);
            (kernel, ((arena.items * heads).min(share), 1), tiled_shared(*dim, cuda.format))
        }
        // Sixteen blocks of four queries for each item.
        None => (&cuda.kernels.attention_plain, (16 * arena.items, heads), 0),
    };
    let grid = Grid { blocks, threads: 128, shared_bytes };
    // SAFETY: `AttentionArgs`; the slots have the strides given, and the bias covers every
    // distance within the longest sequence.
    unsafe { arena.stream.launch(kernel, grid, &arguments) }
}

/// The kernels' `window`.
fn window(op: &AttentionOp<'_, Cuda>) -> i32 {
    op.window.map_or(-1, |window| window.min(i32::MAX as usize / 4) as i32)
}
