//! The backend's operations: which kernel runs over which slots.

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, DeviceMemory, EmbeddingSource, LinearOp, LinearSource,
    NormOp, PoolOp, Pooling, Slot, self_attention_by_operations,
};
use fletcher_core::encoder::{EncoderWeights, LayerWeights};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{EncoderSpec, rotary_table};
use fletcher_core::weights::{StoredDtype, Tensor};

use super::arena::Arena;
use super::device::{DeviceBuffer, Grid};
use super::kernels::{
    EmbedArguments, Format, HEAD_DIM_MAX, KeepArguments, NormArguments, PoolArguments,
    ROWWISE_WIDTH, RotaryArguments, TILE, WidenArguments, pooling,
};
use super::{
    Cuda, Embedding, Linear, Norm, RelativeBias, Rotary, attention, layers, linear, rowwise,
    self_attention, small, stride,
};

/// Tokens of a block, about: enough for every multiprocessor to have several tiles of each product,
/// few enough that a block's activations mostly stay in the L2 cache from one operation to the
/// next.
const BLOCK_TOKENS: usize = 16_384;
/// Values of the state in a block, about, where kernels keep whole rows of it: less of what is
/// between them goes through memory, and longer kernels leave less time between those of several
/// batches: on an H100 MiniLM is a seventh faster with four rounds of tiles than with one.
const BLOCK_VALUES: usize = 4 * 132 * TILE * ROWWISE_WIDTH;
/// A block below this would leave multiprocessors idle.
const BLOCK_TOKENS_MIN: usize = 1024;
/// Dividing less than this between arenas costs more in narrow products than it saves in time.
const SMALLEST_BLOCK_TOKENS: usize = 16_384;

/// Most batches in flight by the kernels that keep whole rows: of 32 sequences of 64 tokens each,
/// 16 blocks, so many fill the card.
const ROWWISE_ARENAS_MAX: usize = 16;
/// Most batches in flight in f32 on Hopper: of 32 sequences of 64 tokens each, MiniLM's on an H100,
/// one by itself is 45 K sequences a second, four are 67 and eight 70.
const F32_ARENAS_MAX: usize = 4;
/// Up to so many bytes of vectors are written to the host's memory by the kernel that makes them: a
/// copy would take longer to begin. Multiprocessors wait for the bus when they write more.
const OUTPUT_BYTES_WRITTEN: usize = 1 << 17;

/// Blocks of a warp per token.
fn by_warp(tokens: usize) -> Grid {
    Grid { blocks: (tokens.div_ceil(4), 1), threads: 128, shared_bytes: 0 }
}

pub(super) fn address(buffer: &Option<DeviceBuffer>) -> u64 {
    buffer.as_ref().map_or(0, DeviceBuffer::address)
}

impl Cuda {
    /// A table's rows in the backend's format, padded to the stride.
    fn upload_table(&self, table: &Tensor, width: usize) -> Result<DeviceBuffer, BackendError> {
        let rows = table.elements() / width;
        let same = matches!(
            (table.dtype, self.format),
            (StoredDtype::F16, Format::F16)
                | (StoredDtype::Bf16, Format::Bf16)
                | (StoredDtype::F32, Format::F32)
        );
        if same && stride(width) == width {
            return self.upload(&table.bytes, "the embedding table");
        }
        let mut bytes = Vec::with_capacity(rows * stride(width) * self.format.bytes());
        let mut row = vec![0.0; stride(width)];
        for index in 0..rows {
            table.read_f32(index * width, &mut row[..width]);
            bytes.extend(self.encode_values(&row, "the embedding table")?);
        }
        self.upload(&bytes, "the embedding table")
    }
}

impl Cuda {
    /// Embeds, and normalises the sums in the same kernel.
    fn embed_normed(
        &self,
        arena: &mut Arena,
        embedding: &Embedding,
        norm: Option<&Norm>,
        (batch, kept): (&PackedBatch, Option<&[usize]>),
    ) -> Result<(), BackendError> {
        self.device.enter()?;
        arena.pending = None;
        arena.stage(batch, embedding.position_offset, kept)?;
        let arguments = EmbedArguments {
            word: embedding.word.address(),
            position: address(&embedding.position),
            token_type: address(&embedding.token_type),
            norm: NormArguments {
                input: arena.slot(Slot::Hidden),
                out: arena.slot(Slot::Hidden),
                scale: norm.map_or(0, |norm| norm.scale.address()),
                bias: norm.map_or(0, |norm| address(&norm.bias)),
                batch: arena.batch_address(),
                width: arena.spec.hidden as i32,
                stride: arena.stride(Slot::Hidden) as i32,
                eps: norm.map_or(0.0, |norm| norm.eps),
            },
        };
        // SAFETY: `EmbedArgs`; the slot has a row per token, ids and positions are checked by the
        // embedder, and weights and arena outlive the wait that ends every batch.
        unsafe { arena.stream.launch(&self.kernels.embed, by_warp(arena.tokens), &arguments) }
    }
}

impl Cuda {
    /// The whole encoder. Behind the last attention it goes on with the tokens that are `kept`, one
    /// of each sequence, if they are given and the kernels that take the model can: tells whether.
    fn encode_keeping(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        batch: &PackedBatch,
        kept: Option<&[usize]>,
    ) -> Result<bool, BackendError> {
        let (load, tokens) = self.loads.add(batch.tokens());
        arena.load = Some(load);
        arena.in_flight = (tokens / batch.tokens().max(1)).max(1);
        if small::stage(self, arena, model, batch)? {
            return Ok(false);
        }
        if layers::encode(self, arena, model, batch)? {
            return Ok(false);
        }
        let kept = kept.filter(|_| !model.layers.is_empty());
        let norm = Some(&model.embedding_norm);
        self.embed_normed(arena, &model.embedding, norm, (batch, kept))?;
        if rowwise::encode(self, arena, model, batch, tokens)? {
            return Ok(kept.is_some());
        }
        for (index, layer) in model.layers.iter().enumerate() {
            if index + 1 == model.layers.len() && arena.keeps() {
                self.layer_of_kept(arena, model, layer, batch)?;
            } else {
                self.layer(arena, model, layer, batch)?;
            }
        }
        if let Some(norm) = &model.final_norm {
            let (input, output) = (Slot::Hidden, Slot::Hidden);
            self.norm(arena, NormOp { norm, input, output })?;
        }
        Ok(kept.is_some())
    }

    /// [`Backend::layer`] that goes on with the kept tokens behind its attention.
    fn layer_of_kept(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let input = self.pre_norm(arena, model, layer.attention_norm.as_ref())?;
        self.self_attention(arena, model, layer, input, batch)?;
        self.keep(arena)?;
        self.attention_output(arena, model, layer)?;
        self.feed_forward_block(arena, model, layer)
    }

    /// Makes the kept tokens' rows of state and context the only ones.
    pub(super) fn keep(&self, arena: &mut Arena) -> Result<(), BackendError> {
        let Some(kept) = arena.go_on_with_kept() else { return Ok(()) };
        let strides = [Slot::Hidden, Slot::Context].map(|slot| arena.stride(slot));
        let arguments = KeepArguments {
            hidden: arena.slot(Slot::Hidden),
            context: arena.slot(Slot::Context),
            kept,
            hidden_stride: strides[0] as i32,
            context_stride: strides[1] as i32,
        };
        let pieces = strides.iter().sum::<usize>() * self.format.bytes() / 16;
        let grid = Grid { blocks: (pieces.div_ceil(32), 1), threads: 32, shared_bytes: 0 };
        // SAFETY: `KeepArgs`; kept tokens are the batch's and rise, rows are whole 16 bytes.
        unsafe { arena.stream.launch(&self.kernels.keep, grid, &arguments) }
    }
}

impl Backend for Cuda {
    type Linear = Linear;
    type Norm = Norm;
    type Embedding = Embedding;
    type Rotary = Rotary;
    type RelativeBias = RelativeBias;
    type Arena = Arena;

    fn device_name(&self) -> String {
        self.device.name().to_owned()
    }

    fn memory(&self) -> Option<DeviceMemory> {
        let (used, peak) = self.memory_used();
        Some(DeviceMemory { used, peak })
    }

    fn preferred_tokens(&self, spec: &EncoderSpec) -> usize {
        // Whole rounds of tiles of rows.
        let round = self.device.limits().multiprocessors * TILE;
        let block = match rowwise::takes(self, spec) {
            true => BLOCK_VALUES / spec.hidden,
            false => BLOCK_TOKENS,
        };
        let rounds = (block / round).max(1) * round;
        let wanted = small::preferred_tokens(self, spec).unwrap_or(rounds);
        // Half of what is free: the weights are not there yet when the arenas are planned.
        let free = self.device.memory_free().unwrap_or(0) / 2;
        let fitting = free / (self.arenas(spec) * Arena::bytes_per_token(spec, self.format));
        wanted.min(fitting).max(BLOCK_TOKENS_MIN)
    }

    fn workers(&self) -> usize {
        self.workers
    }

    /// A small encoder's batches are a few blocks each, and so are small batches by the kernels
    /// that keep whole rows: many fill the card, and in f32 on Hopper a few do. The others'
    /// operations fill it alone: a second arena hides the host's part, and more would only share
    /// the L2 cache.
    fn arenas(&self, spec: &EncoderSpec) -> usize {
        match small::preferred_tokens(self, spec) {
            Some(_) => self.workers,
            None if rowwise::takes(self, spec) => self.cores.min(ROWWISE_ARENAS_MAX),
            None if self.kernels.hopper_f32.is_some() => self.workers.min(F32_ARENAS_MAX),
            None => self.workers.min(2),
        }
    }

    fn threads(&self) -> usize {
        self.cores
    }

    fn least_tokens(&self) -> usize {
        SMALLEST_BLOCK_TOKENS
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Linear, BackendError> {
        Linear::upload(self, source)
    }

    fn upload_norm(
        &self,
        scale: &[f32],
        bias: Option<&[f32]>,
        eps: f64,
    ) -> Result<Norm, BackendError> {
        let padding = std::iter::repeat_n(0.0, stride(scale.len()) - scale.len());
        let padded = |values: &[f32]| {
            let values = values.iter().copied().chain(padding.clone());
            self.upload_floats(values, "the weights")
        };
        let bias = bias.map(padded).transpose()?;
        Ok(Norm { scale: padded(scale)?, bias, width: scale.len(), eps: eps as f32 })
    }

    fn upload_embedding(&self, source: EmbeddingSource) -> Result<Embedding, BackendError> {
        let width = source.word.shape[1];
        let upload = |table: &Tensor| self.upload_table(table, width);
        Ok(Embedding {
            word: upload(&source.word)?,
            position_rows: source.position.as_ref().map_or(0, |table| table.elements() / width),
            position: source.position.as_ref().map(upload).transpose()?,
            token_type: source.token_type.as_ref().map(upload).transpose()?,
            position_offset: source.position_offset,
            small: small::Cache::default(),
        })
    }

    fn upload_rotary(
        &self,
        theta: f64,
        head_dim: usize,
        positions: usize,
    ) -> Result<Rotary, BackendError> {
        let table = rotary_table(theta, head_dim, positions).into_iter();
        let cos_sin =
            self.upload_floats(table.flat_map(|(cos, sin)| [cos, sin]), "rotary tables")?;
        Ok(Rotary { cos_sin, head_dim })
    }

    fn upload_relative_bias(
        &self,
        by_distance: &[Vec<f32>],
        positions: usize,
    ) -> Result<RelativeBias, BackendError> {
        let values = by_distance.iter().flatten().copied();
        Ok(RelativeBias { by_distance: self.upload_floats(values, "position biases")?, positions })
    }

    fn plan(&self, spec: &EncoderSpec, max_tokens: usize) -> Result<Arena, BackendError> {
        if spec.head_dim > HEAD_DIM_MAX {
            let found = spec.head_dim;
            return Err(self.device.error(format!(
                "heads of {found} columns; this device's attention takes at most {HEAD_DIM_MAX}"
            )));
        }
        let flash = attention::flash_takes(self, spec).then_some(self.flash_longer_than);
        Arena::new(&self.device, spec, self.format, max_tokens, flash)
    }

    fn embed(
        &self,
        arena: &mut Arena,
        embedding: &Embedding,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self.embed_normed(arena, embedding, None, (batch, None))
    }

    fn linear(&self, arena: &mut Arena, op: LinearOp<'_, Self>) -> Result<(), BackendError> {
        self.device.enter()?;
        linear::launch(self, arena, &op)
    }

    fn norm(&self, arena: &mut Arena, op: NormOp<'_, Self>) -> Result<(), BackendError> {
        self.device.enter()?;
        assert_eq!(op.norm.width, arena.spec.hidden, "the norm is for another width");
        let arguments = NormArguments {
            input: arena.slot(op.input),
            out: arena.slot(op.output),
            scale: op.norm.scale.address(),
            bias: address(&op.norm.bias),
            batch: arena.batch_address(),
            width: op.norm.width as i32,
            stride: arena.stride(op.input) as i32,
            eps: op.norm.eps,
        };
        // SAFETY: `NormArgs`; both slots are `hidden` wide, and a row is read before it is written.
        unsafe { arena.stream.launch(&self.kernels.norm, by_warp(arena.tokens), &arguments) }
    }

    fn rotary(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        _batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self.device.enter()?;
        let (heads, half) = (2 * arena.spec.heads, rotary.head_dim / 2);
        let arguments = RotaryArguments {
            qkv: arena.slot(Slot::Qkv),
            cos_sin: rotary.cos_sin.address(),
            batch: arena.batch_address(),
            heads: heads as i32,
            half: half as i32,
            stride: arena.stride(Slot::Qkv) as i32,
        };
        let blocks = (arena.tokens * heads * half).div_ceil(256);
        let grid = Grid { blocks: (blocks, 1), threads: 256, shared_bytes: 0 };
        // SAFETY: `RotaryArgs`; the table has a row for every place that a sequence may have.
        unsafe { arena.stream.launch(&self.kernels.rotary, grid, &arguments) }
    }

    fn attention(
        &self,
        arena: &mut Arena,
        op: AttentionOp<'_, Self>,
        _batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        attention::launch(self, arena, op)
    }

    fn self_attention(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
        input: Slot,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        if self_attention::launch(self, arena, model, layer, input)? {
            return Ok(());
        }
        let relative = model.relative_bias.as_ref();
        match &layer.rotary {
            Some(rotary) if linear::launch_rotated(self, arena, &layer.qkv, input, rotary)? => {
                attention::launch(self, arena, AttentionOp { relative, window: layer.window })
            }
            _ => self_attention_by_operations(self, arena, model, layer, input, batch),
        }
    }

    fn encode(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self.encode_keeping(arena, model, batch, None)?;
        Ok(())
    }

    fn encode_pooled(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        let kept = op.only_tokens(batch);
        // One token is all that is left of each sequence then.
        let op = match self.encode_keeping(arena, model, batch, kept.as_deref())? {
            true => PoolOp { mode: Pooling::Cls, skip: 0 },
            false => op,
        };
        self.pool(arena, op, batch, vectors)
    }

    fn pool(
        &self,
        arena: &mut Arena,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        self.device.enter()?;
        let d = arena.spec.hidden;
        assert_eq!(vectors.len(), batch.rows() * d, "a vector per row");
        if arena.pending.is_some() {
            small::pool(self, arena, op)?;
            arena.load = None;
            vectors.copy_from_slice(&arena.output.floats()[..vectors.len()]);
            return Ok(());
        }
        let pieces = vectors.len().div_ceil(arena.output_values);
        for (piece, out) in vectors.chunks_mut(arena.output_values).enumerate() {
            let copied = size_of_val(out) > OUTPUT_BYTES_WRITTEN;
            let arguments = PoolArguments {
                hidden: arena.slot(Slot::Hidden),
                vectors: if copied { arena.pooled.address() } else { arena.output.address() },
                batch: arena.batch_address(),
                width: d as i32,
                stride: arena.stride(Slot::Hidden) as i32,
                mode: pooling(op.mode),
                skip: op.skip.min(i32::MAX as usize) as i32,
                first: (piece * arena.output_values / d) as i32,
            };
            let blocks = (out.len() / d, d.div_ceil(64));
            let grid = Grid { blocks, threads: 128, shared_bytes: 0 };
            // SAFETY: `PoolArgs`; the output has room for a piece's rows.
            unsafe { arena.stream.launch(&self.kernels.pool, grid, &arguments)? };
            if copied {
                // SAFETY: nobody touches the output before the wait.
                unsafe { arena.stream.download(&arena.output, &arena.pooled, size_of_val(out))? };
            }
            arena.stream.wait()?;
            if piece + 1 == pieces {
                arena.load = None;
            }
            out.copy_from_slice(&arena.output.floats()[..out.len()]);
        }
        Ok(())
    }

    fn download_hidden(
        &self,
        arena: &mut Arena,
        batch: &PackedBatch,
        hidden: &mut [f32],
    ) -> Result<(), BackendError> {
        self.device.enter()?;
        let d = arena.spec.hidden;
        assert_eq!(hidden.len(), batch.tokens() * d, "a state per token");
        if arena.pending.is_some() {
            small::hidden(self, arena)?;
            // From here on the states are in the slot, and the batch as the other kernels read it.
            arena.pending = None;
            arena.stage(batch, 0, None)?;
        }
        for (piece, out) in hidden.chunks_mut(arena.output_values).enumerate() {
            let arguments = WidenArguments {
                input: arena.slot(Slot::Hidden),
                out: arena.output.address(),
                batch: arena.batch_address(),
                width: d as i32,
                stride: arena.stride(Slot::Hidden) as i32,
                first: (piece * arena.output_values / d) as i32,
            };
            let grid = Grid { blocks: (out.len() / d, 1), threads: 128, shared_bytes: 0 };
            // SAFETY: `WidenArgs`; the output has room for a piece's rows.
            unsafe { arena.stream.launch(&self.kernels.widen, grid, &arguments)? };
            arena.stream.wait()?;
            out.copy_from_slice(&arena.output.floats()[..out.len()]);
        }
        Ok(())
    }
}
