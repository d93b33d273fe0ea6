//! The small encoder as one kernel per batch (`kernels/fused.cu`): which models it takes, their
//! weights in the order of use, and the division of a batch into tiles of whole sequences.
//!
//! A batch that it takes is only laid out by [`stage`]; the kernel runs once it is known whether
//! vectors ([`pool`]) or states ([`hidden`]) are wanted. It reads the tokens from page-locked host
//! memory and writes the vectors there, so that a batch costs the host one launch and one wait.

use std::sync::{Arc, Mutex, PoisonError};

use fletcher_core::backend::{BackendError, PoolOp};
use fletcher_core::encoder::EncoderWeights;
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{Activation, EncoderSpec, NormPlacement, Position, learned_rows};

use super::arena::Arena;
use super::device::{DeviceBuffer, Grid};
use super::kernels::{ArrangeArguments, Format, FusedArguments, FusedPlan, pooling};
use super::{Cuda, Linear, Norm};

/// The one shape that the kernel is written for.
const HIDDEN: usize = 128;
const HEADS: usize = 2;
const HEAD_DIM: usize = 64;
/// Bytes of a chunk of weights.
const CHUNK_BYTES: usize = 16_384;
/// Most positions: a token's has 16 bits.
pub(super) const POSITIONS_MAX: usize = 1 << 16;
/// Token rows of a warpgroup.
const GROUP_ROWS: usize = 64;

/// A model's weights in the order of use, made at its first batch.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Option<Arc<Small>>>);

/// What the kernels take of a model.
#[derive(Debug)]
pub(super) struct Small {
    pub(super) chunks: DeviceBuffer,
    pub(super) parameters: DeviceBuffer,
    pub(super) eps: f32,
}

/// A batch laid out in an arena's staging buffer.
#[derive(Debug)]
pub(super) struct Pending {
    _small: Arc<Small>,
    arguments: FusedArguments,
    groups: usize,
    blocks: usize,
}

/// Whether the kernel computes what the spec says.
pub(super) fn takes(spec: &EncoderSpec) -> bool {
    let EncoderSpec { hidden, heads, head_dim, intermediate, .. } = *spec;
    (hidden, heads, head_dim) == (HIDDEN, HEADS, HEAD_DIM)
        && intermediate.is_multiple_of(64)
        && intermediate > 0
        && matches!(spec.position, Position::Learned { .. })
        && spec.norm.placement == NormPlacement::Post
        && !spec.feed_forward.gated
        && spec.feed_forward.activation == Activation::GeluErf
        && spec.layers.iter().all(|layer| layer.window.is_none() && layer.attention_norm)
}

/// Four tiles for every multiprocessor, if the kernel takes the model.
pub(super) fn preferred_tokens(cuda: &Cuda, spec: &EncoderSpec) -> Option<usize> {
    let most = cuda.kernels.fused.len();
    let tiles = 4 * cuda.device.limits().multiprocessors;
    (takes(spec) && most > 0).then_some(tiles * most * GROUP_ROWS)
}

/// Lays the batch out if the kernel takes model and batch; tells whether it did.
pub(super) fn stage(
    cuda: &Cuda,
    arena: &mut Arena,
    model: &EncoderWeights<Cuda>,
    batch: &PackedBatch,
) -> Result<bool, BackendError> {
    let longest = batch.sequences().map(|sequence| sequence.len()).max().unwrap_or(0);
    let most = cuda.kernels.fused.len();
    let embedding = &model.embedding;
    if cuda.format == Format::F32
        || longest > most * GROUP_ROWS
        || batch.rows() * HIDDEN > arena.output_values
        || embedding.position_rows > POSITIONS_MAX
        || !takes(&model.spec)
    {
        return Ok(false);
    }
    cuda.device.enter()?;
    let small = prepared(cuda, arena, model)?;
    let multiprocessors = cuda.device.limits().multiprocessors;
    let groups = match cuda.groups {
        0 => batch.tokens().div_ceil(GROUP_ROWS * multiprocessors),
        groups => groups,
    };
    let groups = groups.max(longest.div_ceil(GROUP_ROWS)).min(most);
    arena.stream.wait()?;

    let (tokens, rows) = (batch.tokens(), batch.rows());
    let (offsets, tiles) = (2 * tokens, 2 * tokens + rows + 1);
    let words = arena.staging.words();
    let mut tile_count = 0;
    // The current tile: its first token, where its first sequence is written, its sequences.
    let (mut first, mut at) = (0, tiles);
    for (row, sequence) in batch.sequences().enumerate() {
        if row == 0 || sequence.end - first > groups * GROUP_ROWS {
            (first, at) = (sequence.start, tiles + 2 * tile_count);
            words[at] = first as u32;
            words[at + 1] = row as u32;
            tile_count += 1;
        }
        let (low, high) = (sequence.start - first, sequence.end - first);
        if low / GROUP_ROWS != (high - 1) / GROUP_ROWS {
            words[at + 1] |= 1 << 31;
        }
        words[offsets + row] = sequence.start as u32;
        let span = (low << 16 | high << 24) as u32;
        let ids = &batch.ids()[sequence.clone()];
        let positions = learned_rows(ids, embedding.position_offset);
        let out = &mut words[2 * sequence.start..2 * sequence.end];
        for ((out, &id), position) in out.chunks_exact_mut(2).zip(ids).zip(positions) {
            out[0] = id;
            out[1] = position as u32 | span;
        }
    }
    words[offsets + rows] = tokens as u32;
    words[tiles + 2 * tile_count] = tokens as u32;
    words[tiles + 2 * tile_count + 1] = rows as u32;

    let base = arena.staging.address();
    let plan = FusedPlan::new(groups, cuda.device.limits().shared_bytes);
    let table = |buffer: &Option<DeviceBuffer>| buffer.as_ref().map_or(0, DeviceBuffer::address);
    let arguments = FusedArguments {
        tokens: base,
        tiles: base + 4 * tiles as u64,
        offsets: base + 4 * offsets as u64,
        vectors: 0,
        hidden: 0,
        word: embedding.word.address(),
        position: table(&embedding.position),
        token_type: table(&embedding.token_type),
        chunks: small.chunks.address(),
        parameters: small.parameters.address(),
        tile_count: tile_count as i32,
        layers: model.layers.len() as i32,
        inner: model.spec.intermediate as i32,
        mode: 0,
        skip: 0,
        stages: plan.stages as i32,
        eps: small.eps,
    };
    arena.tokens = tokens;
    // Blocks of one group run two to a multiprocessor.
    let at_once = if groups == 1 { 2 * multiprocessors } else { multiprocessors };
    arena.pending =
        Some(Pending { _small: small, arguments, groups, blocks: tile_count.min(at_once) });
    Ok(true)
}

/// Runs the batch and leaves its vectors in the arena's output.
pub(super) fn pool(cuda: &Cuda, arena: &mut Arena, op: PoolOp) -> Result<(), BackendError> {
    let vectors = arena.output.address();
    let (mode, skip) = (pooling(op.mode), op.skip.min(i32::MAX as usize) as i32);
    run(cuda, arena, |arguments| FusedArguments { vectors, mode, skip, ..arguments })
}

/// Runs the batch and leaves its states in [`fletcher_core::backend::Slot::Hidden`].
pub(super) fn hidden(cuda: &Cuda, arena: &mut Arena) -> Result<(), BackendError> {
    let hidden = arena.slot(fletcher_core::backend::Slot::Hidden);
    run(cuda, arena, |arguments| FusedArguments { hidden, ..arguments })
}

fn run(
    cuda: &Cuda,
    arena: &mut Arena,
    wanted: impl Fn(FusedArguments) -> FusedArguments,
) -> Result<(), BackendError> {
    let Some(pending) = &arena.pending else { return Ok(()) };
    let groups = pending.groups;
    let plan = FusedPlan::new(groups, cuda.device.limits().shared_bytes);
    // On Hopper the fetching warp comes with three idle ones.
    let fetching = if cuda.device.limits().capability.0 == 9 { 128 } else { 32 };
    let grid = Grid {
        blocks: (pending.blocks, 1),
        threads: groups * 128 + fetching,
        shared_bytes: plan.shared_bytes,
    };
    let arguments = wanted(pending.arguments);
    let kernel = &cuda.kernels.fused[groups - 1];
    // SAFETY: `FusedArgs`; `stage` laid the batch out, `Small` has what the kernel takes of the
    // model and `pending` keeps it; the wait below ends all use.
    unsafe { arena.stream.launch(kernel, grid, &arguments)? };
    arena.stream.wait()
}

/// The model's weights in the order of use.
pub(super) fn prepared(
    cuda: &Cuda,
    arena: &Arena,
    model: &EncoderWeights<Cuda>,
) -> Result<Arc<Small>, BackendError> {
    let mut cache = model.embedding.small.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(small) = &*cache {
        return Ok(small.clone());
    }
    let small = Arc::new(arrange(cuda, arena, model)?);
    *cache = Some(small.clone());
    Ok(small)
}

fn arrange(
    cuda: &Cuda,
    arena: &Arena,
    model: &EncoderWeights<Cuda>,
) -> Result<Small, BackendError> {
    let inner = model.spec.intermediate;
    let layer_chunks = 8 + 2 * (inner / 64);
    let layer_floats = 1152 + inner;
    let what = "the small encoder's weights";
    let chunks = cuda.device.allocate(model.layers.len() * layer_chunks * CHUNK_BYTES, what)?;
    let floats = 2 * HIDDEN + model.layers.len() * layer_floats;
    let parameters = cuda.device.allocate(4 * floats, what)?;

    let mut to = chunks.address();
    // Rows n0.. (n of them) and columns k0.. (k of them) of a matrix are the next chunk.
    let mut chunk = |linear: &Linear, (n0, n): (usize, usize), (k0, k): (usize, usize)| {
        let arguments = ArrangeArguments {
            from: linear.weight.address(),
            to,
            stride: linear.cols as i32,
            n0: n0 as i32,
            k0: k0 as i32,
            n: n as i32,
            k: k as i32,
        };
        to += CHUNK_BYTES as u64;
        let grid = Grid { blocks: (CHUNK_BYTES / 16 / 128, 1), threads: 128, shared_bytes: 0 };
        // SAFETY: `ArrangeArgs`; the part lies in the matrix, by `takes`, and n * k * 2 bytes are a
        // chunk.
        unsafe { arena.stream.launch(&cuda.kernels.arrange, grid, &arguments) }
    };
    let bias = |at: usize, linear: &Linear| match &linear.bias {
        Some(bias) => parameters.write_from(4 * at, bias, 4 * linear.rows),
        None => Ok(()),
    };
    let norm = |at: usize, norm: &Norm| {
        parameters.write_from(4 * at, &norm.scale, 4 * HIDDEN)?;
        match &norm.bias {
            Some(bias) => parameters.write_from(4 * (at + HIDDEN), bias, 4 * HIDDEN),
            None => Ok(()),
        }
    };
    norm(0, &model.embedding_norm)?;
    for (index, layer) in model.layers.iter().enumerate() {
        for n0 in (0..3 * HIDDEN).step_by(64) {
            chunk(&layer.qkv, (n0, 64), (0, HIDDEN))?;
        }
        for k0 in [0, 64] {
            chunk(&layer.attention_out, (0, HIDDEN), (k0, 64))?;
        }
        for at in (0..inner).step_by(64) {
            chunk(&layer.up, (at, 64), (0, HIDDEN))?;
            chunk(&layer.down, (0, HIDDEN), (at, 64))?;
        }
        // The offsets that the kernel names.
        let at = 2 * HIDDEN + index * layer_floats;
        bias(at, &layer.qkv)?;
        bias(at + 384, &layer.attention_out)?;
        if let Some(after) = &layer.attention_norm {
            norm(at + 512, after)?;
        }
        bias(at + 768, &layer.down)?;
        norm(at + 896, &layer.feed_forward_norm)?;
        bias(at + 1152, &layer.up)?;
    }
    // Streams do not wait for one another: other arenas may read once this one is through.
    arena.stream.wait()?;
    Ok(Small { chunks, parameters, eps: model.embedding_norm.eps })
}
