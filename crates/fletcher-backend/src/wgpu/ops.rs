//! The backend's operations: which kernel runs over which slots, and how weights are laid out.

use std::sync::Arc;

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, EmbeddingSource, Epilogue, LinearOp, LinearSource, NormOp,
    PoolOp, Pooling, Slot,
};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{EncoderSpec, rotary_table};
use fletcher_core::weights::Tensor;

use super::arena::{Arena, Launch, Place, bytes_per_token, stride};
use super::profile::Work;
use super::shader::{
    ATTENTION_SUBGROUPS, CooperativeAttention, Element, HEAD_CHUNK, Kernel, NORM_ROWS, PLAIN_TILE,
    POINTWISE_THREADS, POOL_COLUMNS, QUERIES, Tiling,
};
use super::{Embedding, Linear, Norm, RelativeBias, Rotary, Wgpu};

/// Activations of a block, when the user names no number of tokens.
const BLOCK_BYTES: usize = 384 << 20;
/// A block above this many tokens gains nothing.
const BLOCK_TOKENS_MAX: usize = 49_152;
/// A block is not split below this many tokens.
const BLOCK_TOKENS_LEAST: usize = 16_384;
/// Fours of a row that a lane of the norm can keep in registers.
const NORM_HELD: u32 = 8;
/// On a CPU that plays a GPU, large blocks gain nothing at all.
const BLOCK_TOKENS_SOFTWARE: usize = 2048;
/// Weights are padded to this many features: the widest tile of a GEMM.
const FEATURES_UNIT: usize = 128;
/// Below this many workgroups of the large tiling, the small one spreads the work better.
const LARGE_WORKGROUPS: usize = 192;

impl Backend for Wgpu {
    type Linear = Linear;
    type Norm = Norm;
    type Embedding = Embedding;
    type Rotary = Rotary;
    type RelativeBias = RelativeBias;
    type Arena = Arena;

    fn device_name(&self) -> String {
        self.name()
    }

    fn preferred_tokens(&self, spec: &EncoderSpec) -> usize {
        let most = match self.gpu.software {
            true => BLOCK_TOKENS_SOFTWARE,
            false => BLOCK_TOKENS_MAX,
        };
        (BLOCK_BYTES / bytes_per_token(spec, self.gpu.target.element)).clamp(512, most)
    }

    /// While one batch is on the device, another is prepared and a third read back.
    fn workers(&self) -> usize {
        if self.gpu.software { 1 } else { 3 }
    }

    /// A smaller batch leaves most of a GPU idle, and a second one costs as much to submit.
    fn least_tokens(&self) -> usize {
        if self.gpu.software { 64 } else { BLOCK_TOKENS_LEAST }
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Linear, BackendError> {
        let features = source.rows.next_multiple_of(FEATURES_UNIT);
        let depth = stride(source.cols);
        // Gate and value of an output lie side by side, so that one thread holds both.
        let place = |row: usize| match source.gated {
            false => row,
            true if row < source.rows / 2 => 2 * row,
            true => 2 * (row - source.rows / 2) + 1,
        };
        let mut weight = vec![0.0f32; features * depth];
        let mut bias = vec![0.0f32; features];
        for row in 0..source.rows {
            let to = place(row);
            let values = &source.weight[row * source.cols..(row + 1) * source.cols];
            match self.tile {
                None => weight[to * depth..to * depth + source.cols].copy_from_slice(values),
                Some(tile) => {
                    let tile = tile as usize;
                    let line = to / tile * tile * depth + to % tile * tile;
                    for (part, from) in values.chunks(tile).enumerate() {
                        let at = line + part * tile * tile;
                        weight[at..at + from.len()].copy_from_slice(from);
                    }
                }
            }
            bias[to] = source.bias.map_or(0.0, |bias| bias[row]);
        }
        let weight = self.gpu.upload("weights", &self.encode(&weight))?;
        let bias = self.gpu.upload("biases", &bytes_of(&bias))?;
        let group = self.gpu.parameters(&[&weight, &bias]);
        Ok(Linear { group, depth })
    }

    fn upload_norm(
        &self,
        scale: &[f32],
        bias: Option<&[f32]>,
        eps: f64,
    ) -> Result<Norm, BackendError> {
        let padded = |values: &[f32]| {
            let mut padded = values.to_vec();
            padded.resize(stride(scale.len()), 0.0);
            self.gpu.upload("a norm", &bytes_of(&padded))
        };
        let group = self.gpu.parameters(&[&padded(scale)?, &padded(bias.unwrap_or(&[]))?]);
        Ok(Norm { group, columns: scale.len(), eps: eps as f32 })
    }

    fn upload_embedding(&self, source: EmbeddingSource) -> Result<Embedding, BackendError> {
        let word = self.upload_table(&source.word, None)?;
        let position = source.position.as_ref().map(|t| self.upload_table(t, None)).transpose()?;
        // Of the types, only the first is ever added.
        let types =
            source.token_type.as_ref().map(|t| self.upload_table(t, Some(1))).transpose()?;
        let nothing = &self.gpu.nothing;
        let group = self.gpu.parameters(&[
            &word,
            position.as_ref().unwrap_or(nothing),
            types.as_ref().unwrap_or(nothing),
        ]);
        Ok(Embedding {
            group,
            position_offset: source.position_offset,
            has_positions: position.is_some(),
            has_types: types.is_some(),
        })
    }

    fn upload_rotary(
        &self,
        theta: f64,
        head_dim: usize,
        positions: usize,
    ) -> Result<Rotary, BackendError> {
        let table = rotary_table(theta, head_dim, positions);
        let values: Vec<f32> = table.into_iter().flat_map(|(cos, sin)| [cos, sin]).collect();
        let table = self.gpu.upload("a rotary table", &bytes_of(&values))?;
        Ok(Rotary { group: self.gpu.parameters(&[&table]), half: head_dim / 2 })
    }

    fn upload_relative_bias(
        &self,
        by_distance: &[Vec<f32>],
        positions: usize,
    ) -> Result<RelativeBias, BackendError> {
        let table = self.gpu.upload("an attention bias", &bytes_of(&by_distance.concat()))?;
        Ok(RelativeBias { group: self.gpu.parameters(&[&table]), positions })
    }

    fn plan(&self, spec: &EncoderSpec, max_tokens: usize) -> Result<Arena, BackendError> {
        Arena::new(Arc::clone(&self.gpu), spec, max_tokens)
    }

    fn embed(
        &self,
        arena: &mut Arena,
        embedding: &Embedding,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        arena.begin(batch, embedding.position_offset);
        let quads = arena.stride(Slot::Hidden) / 4;
        let tokens = batch.tokens();
        let kernel = Kernel::Embed;
        arena.record(Launch {
            kernel,
            pipeline: &self.pipeline(kernel)?,
            // Bound, not read.
            input: Place::Slot(Slot::Normed),
            output: Place::Slot(Slot::Hidden),
            parameters: &embedding.group,
            immediates: &[
                tokens as u32,
                quads as u32,
                embedding.has_positions.into(),
                embedding.has_types.into(),
            ],
            grid: pointwise(tokens * quads),
            work: self.work(0, 2 * tokens * 4 * quads),
        });
        Ok(())
    }

    fn linear(&self, arena: &mut Arena, op: LinearOp<'_, Self>) -> Result<(), BackendError> {
        let columns = columns(arena, &op);
        let tiling = self.tiling(arena.batch.tokens, op.weight.depth, columns);
        self.linear_as(arena, op, tiling)
    }

    fn norm(&self, arena: &mut Arena, op: NormOp<'_, Self>) -> Result<(), BackendError> {
        let in_place = op.input == op.output;
        let input = match (in_place, op.output) {
            (false, _) => op.input,
            // Bound, not read.
            (true, Slot::Normed) => Slot::Hidden,
            (true, _) => Slot::Normed,
        };
        let (tokens, columns) = (arena.batch.tokens as u32, op.norm.columns as u32);
        let quads = (arena.stride(op.output) / 4) as u32;
        let held = quads.div_ceil(self.gpu.target.lanes.max(1));
        let kernel = Kernel::Norm { in_place, held: (held <= NORM_HELD).then_some(held) };
        arena.record(Launch {
            kernel,
            pipeline: &self.pipeline(kernel)?,
            input: Place::Slot(input),
            output: Place::Slot(op.output),
            parameters: &op.norm.group,
            immediates: &[tokens, columns, quads, op.norm.eps.to_bits()],
            grid: [(tokens as usize).div_ceil(NORM_ROWS), 1, 1],
            work: self.work(0, 2 * (tokens * columns) as usize),
        });
        Ok(())
    }

    fn rotary(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let pairs = 2 * arena.spec.heads * rotary.half;
        let stride = arena.stride(Slot::Qkv);
        let kernel = Kernel::Rotary;
        arena.record(Launch {
            kernel,
            pipeline: &self.pipeline(kernel)?,
            // Bound, not read.
            input: Place::Slot(Slot::Context),
            output: Place::Slot(Slot::Qkv),
            parameters: &rotary.group,
            immediates: &[batch.tokens(), pairs, rotary.half, stride].map(|value| value as u32),
            grid: pointwise(batch.tokens() * pairs),
            work: self.work(0, 4 * batch.tokens() * pairs),
        });
        Ok(())
    }

    fn attention(
        &self,
        arena: &mut Arena,
        op: AttentionOp<'_, Self>,
        _batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let dim = arena.spec.head_dim;
        let cooperative = self.cooperative_attention(dim, op.relative.is_some())?;
        self.attention_as(arena, op, cooperative)
    }

    fn pool(
        &self,
        arena: &mut Arena,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        let columns = arena.spec.hidden;
        let mode = match op.mode {
            Pooling::Cls => 0,
            Pooling::Max => 1,
            Pooling::Mean => 2,
            Pooling::MeanSqrtLen => 3,
            Pooling::WeightedMean => 4,
            Pooling::LastToken => 5,
        };
        let (offsets, stride) = (arena.batch.offsets, arena.stride(Slot::Hidden));
        let kernel = Kernel::Pool;
        arena.record(Launch {
            kernel,
            pipeline: &self.pipeline(kernel)?,
            input: Place::Slot(Slot::Hidden),
            output: Place::Pooled,
            parameters: &self.no_parameters,
            immediates: &[offsets, columns, stride, mode, op.skip].map(|value| value as u32),
            grid: [columns.div_ceil(POOL_COLUMNS), batch.rows(), 1],
            work: self.work(0, batch.tokens() * columns),
        });
        let bytes = batch.rows() * columns * size_of::<f32>();
        arena.finish(Place::Pooled, bytes, |bytes| decode_f32(bytes, vectors))
    }

    fn download_hidden(
        &self,
        arena: &mut Arena,
        batch: &PackedBatch,
        hidden: &mut [f32],
    ) -> Result<(), BackendError> {
        let columns = arena.spec.hidden;
        let element = self.gpu.target.element;
        let row_bytes = arena.stride(Slot::Hidden) * element.bytes();
        let bytes = batch.tokens() * row_bytes;
        arena.finish(Place::Slot(Slot::Hidden), bytes, |bytes| {
            for (to, from) in hidden.chunks_exact_mut(columns).zip(bytes.chunks_exact(row_bytes)) {
                match element {
                    Element::F32 => decode_f32(from, to),
                    Element::F16 => to.iter_mut().zip(from.chunks_exact(2)).for_each(|(to, b)| {
                        *to = half::f16::from_ne_bytes([b[0], b[1]]).to_f32();
                    }),
                }
            }
        })
    }
}

impl Wgpu {
    /// Values as the device stores them.
    fn encode(&self, values: &[f32]) -> Vec<u8> {
        match self.gpu.target.element {
            Element::F32 => bytes_of(values),
            Element::F16 => {
                values.iter().flat_map(|&v| half::f16::from_f32(v).to_ne_bytes()).collect()
            }
        }
    }

    /// The first `rows` rows of a table (all, if none is said), padded like a slot's rows.
    fn upload_table(
        &self,
        table: &Tensor,
        rows: Option<usize>,
    ) -> Result<wgpu::Buffer, BackendError> {
        let (all, columns) = (table.shape[0], table.shape[1]);
        let mut bytes = Vec::new();
        let mut row = vec![0.0; stride(columns)];
        for index in 0..rows.unwrap_or(all) {
            table.read_f32(index * columns, &mut row[..columns]);
            bytes.extend(self.encode(&row));
        }
        self.gpu.upload("an embedding table", &bytes)
    }

    /// A linear layer, with the tiling or plain.
    pub(super) fn linear_as(
        &self,
        arena: &mut Arena,
        op: LinearOp<'_, Self>,
        tiling: Option<Tiling>,
    ) -> Result<(), BackendError> {
        assert_ne!(op.input, op.output, "one slot cannot be read and written");
        let tokens = arena.batch.tokens;
        let (x_stride, y_stride) = (arena.stride(op.input), arena.stride(op.output));
        assert_eq!(x_stride, op.weight.depth, "the weight's inputs are the slot's columns");
        let columns = columns(arena, &op);
        let (across, down) = match tiling {
            None => (PLAIN_TILE, PLAIN_TILE),
            Some(tiling) => (tiling.columns(), tiling.rows()),
        };
        let kernel = Kernel::Gemm { epilogue: op.epilogue, tiling };
        let written = match op.epilogue {
            Epilogue::Accumulate => 2 * y_stride,
            _ => y_stride,
        };
        let depth = op.weight.depth;
        arena.record(Launch {
            kernel,
            pipeline: &self.pipeline(kernel)?,
            input: Place::Slot(op.input),
            output: Place::Slot(op.output),
            parameters: &op.weight.group,
            immediates: &[tokens, depth, x_stride, columns, y_stride].map(|value| value as u32),
            grid: [columns.div_ceil(across as usize), tokens.div_ceil(down as usize), 1],
            work: self.work(2 * tokens * depth * columns, tokens * (x_stride + written)),
        });
        Ok(())
    }

    /// Attention, with cooperative matrices of a tile for a head size or plain.
    pub(super) fn attention_as(
        &self,
        arena: &mut Arena,
        op: AttentionOp<'_, Self>,
        cooperative: Option<CooperativeAttention>,
    ) -> Result<(), BackendError> {
        let (heads, dim) = (arena.spec.heads, arena.spec.head_dim);
        let relative = op.relative.is_some();
        let chunks = match cooperative {
            Some(_) => 1,
            None => dim.div_ceil(HEAD_CHUNK),
        };
        let scale = 1.0 / (dim as f32).sqrt();
        // A window as wide as the longest sequence is none.
        let window = op.window.and_then(|w| u32::try_from(w).ok()).unwrap_or(u32::MAX);
        // The plain one's tiles are as high as those of four subgroups with matrices of 8.
        let tiles = match cooperative {
            Some(form) if (ATTENTION_SUBGROUPS * form.tile) as usize == 2 * QUERIES => 1,
            _ => 0,
        };
        let immediates = [
            arena.batch.tiles[tiles] as u32,
            arena.stride(Slot::Qkv) as u32,
            arena.stride(Slot::Context) as u32,
            (heads * dim) as u32,
            dim as u32,
            scale.to_bits(),
            window,
            op.relative.map_or(0, |bias| bias.positions as u32),
        ];
        let kernel = Kernel::Attention { relative, cooperative };
        arena.record(Launch {
            kernel,
            pipeline: &self.pipeline(kernel)?,
            input: Place::Slot(Slot::Qkv),
            output: Place::Slot(Slot::Context),
            parameters: op.relative.map_or(&self.no_parameters, |bias| &bias.group),
            immediates: &immediates,
            grid: [arena.batch.tile_counts[tiles], heads, chunks],
            work: self
                .work(4 * arena.batch.pairs * heads * dim, 4 * arena.batch.tokens * heads * dim),
        });
        Ok(())
    }

    /// A launch's work: operations, and elements read and written.
    fn work(&self, operations: usize, elements: usize) -> Work {
        let bytes = (elements * self.gpu.target.element.bytes()) as f64;
        Work { operations: operations as f64, bytes }
    }

    /// How to spread a product over the device.
    fn tiling(&self, tokens: usize, depth: usize, columns: usize) -> Option<Tiling> {
        let tile = self.tile?;
        let large = Tiling::large(self.gpu.target, tile, self.staged, depth);
        let workgroups =
            tokens.div_ceil(large.rows() as usize) * columns.div_ceil(large.columns() as usize);
        Some(if workgroups >= LARGE_WORKGROUPS { large } else { Tiling::small(tile, self.staged) })
    }
}

/// The grid of a kernel whose threads take one of `count` items each: in two dimensions, because
/// one ends at 65,535 on every API.
fn pointwise(count: usize) -> [usize; 3] {
    let workgroups = count.div_ceil(POINTWISE_THREADS);
    let across = workgroups.min(1 << 15);
    [across, workgroups.div_ceil(across.max(1)), 1]
}

/// Columns of the product that the output has room for; a gated layer's are in pairs.
fn columns(arena: &Arena, op: &LinearOp<'_, Wgpu>) -> usize {
    match op.epilogue {
        Epilogue::Gate(_) => 2 * arena.stride(op.output),
        _ => arena.stride(op.output),
    }
}

pub(super) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

pub(super) fn decode_f32(bytes: &[u8], values: &mut [f32]) {
    for (to, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *to = f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
    }
}
