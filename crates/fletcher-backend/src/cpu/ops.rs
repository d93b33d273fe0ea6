//! The backend's operations: which kernel runs over which slots.

use std::ops::Range;

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, EmbeddingSource, Epilogue, LinearOp, LinearSource, NormOp,
    PoolOp, Pooling, Slot,
};
use fletcher_core::encoder::EncoderWeights;
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{Activation, EncoderSpec, learned_rows, rotary_table};
use fletcher_core::weights::Tensor;
use fletcher_kernels as kernels;

use super::arena::{Arena, Operand, Rows, State, attention_shape};
use super::{Cpu, Norm, RelativeBias, Rotary};

/// Bytes of activations that a block may have: most of a common L2 cache, with room left for the
/// weights that stream past.
const BLOCK_BYTES: usize = 768 << 10;
/// A block below this many tokens would stream the weights too often: MiniLM in bfloat16 lost a
/// fiftieth with 128, for all that the activations then fit the cache.
const BLOCK_TOKENS_MIN: usize = 192;
/// A block above it gains nothing.
const BLOCK_TOKENS_MAX: usize = 1024;

/// Tokens between asking for an embedding and adding it: a few hundred cycles.
const AHEAD: usize = 4;

impl Backend for Cpu {
    type Linear = kernels::Linear;
    type Norm = Norm;
    type Embedding = EmbeddingSource;
    type Rotary = Rotary;
    type RelativeBias = RelativeBias;
    type Arena = Arena;

    fn device_name(&self) -> String {
        "cpu".to_owned()
    }

    fn preferred_tokens(&self, spec: &EncoderSpec) -> usize {
        let widths =
            2 * spec.hidden + spec.qkv_width().max(spec.intermediate) + spec.context_width();
        (BLOCK_BYTES / (4 * widths)).clamp(BLOCK_TOKENS_MIN, BLOCK_TOKENS_MAX)
    }

    fn workers(&self) -> usize {
        self.threads
    }

    /// The kernel's scheduler lets a thread of higher priority go first, at any instruction.
    fn urgent_arenas(&self) -> usize {
        1
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<kernels::Linear, BackendError> {
        let LinearSource { rows, cols, weight, bias, gated } = source;
        if self.format == kernels::Format::Int8 && cols > kernels::INT8_INPUTS_MAX {
            let most = kernels::INT8_INPUTS_MAX;
            return Err(BackendError::Device {
                device: "cpu".to_owned(),
                message: format!("a layer of {cols} inputs is too wide for int8, at most {most}"),
            });
        }
        Ok(self.kernels.pack(self.format, kernels::LinearShape { rows, cols, gated }, weight, bias))
    }

    fn upload_norm(
        &self,
        scale: &[f32],
        bias: Option<&[f32]>,
        eps: f64,
    ) -> Result<Norm, BackendError> {
        let bias = bias.map(<[f32]>::to_vec);
        Ok(Norm { scale: scale.to_vec(), bias, eps: eps as f32 })
    }

    /// The tables stay as they are stored, mapped: a batch touches only its own tokens' rows.
    fn upload_embedding(&self, source: EmbeddingSource) -> Result<EmbeddingSource, BackendError> {
        Ok(source)
    }

    fn upload_rotary(
        &self,
        theta: f64,
        head_dim: usize,
        positions: usize,
    ) -> Result<Rotary, BackendError> {
        let (cos, sin) = rotary_table(theta, head_dim, positions).into_iter().unzip();
        Ok(Rotary { cos, sin, head_dim })
    }

    fn upload_relative_bias(
        &self,
        by_distance: &[Vec<f32>],
        positions: usize,
    ) -> Result<RelativeBias, BackendError> {
        Ok(RelativeBias { by_distance: by_distance.to_vec(), positions })
    }

    fn plan(&self, spec: &EncoderSpec, max_tokens: usize) -> Result<Arena, BackendError> {
        Arena::new(&self.kernels, self.format, spec, max_tokens, max_tokens)
    }

    fn embed(
        &self,
        arena: &mut Arena,
        embedding: &EmbeddingSource,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        arena.tokens = batch.tokens();
        self.embed_tokens(arena, embedding, batch, 0..batch.tokens());
        Ok(())
    }

    fn linear(&self, arena: &mut Arena, op: LinearOp<'_, Self>) -> Result<(), BackendError> {
        self.linear_at(arena, op, 0);
        Ok(())
    }

    fn norm(&self, arena: &mut Arena, op: NormOp<'_, Self>) -> Result<(), BackendError> {
        let rows = arena.tokens;
        let (input, output) = match op.input == op.output {
            true => (None, arena.slot(op.output)),
            false => {
                let (input, output) = arena.pair(op.input, op.output);
                (Some(&input.state), output)
            }
        };
        let (State::F32(plane), Some(State::F32(_)) | None) = (&mut output.state, input) else {
            unreachable!("what is normalised is in f32");
        };
        let (rounded, rounded_stride) = match &mut output.operand {
            Operand::Bf16(plane) => {
                let stride = plane.stride;
                (Some(plane.rows_mut(rows)), stride)
            }
            Operand::State | Operand::Int8(..) => (None, 0),
        };
        let stride = plane.stride;
        let input = input.and_then(|state| match state {
            State::F32(plane) => Some(plane.rows(rows)),
            State::Bf16(_) => None,
        });
        let Norm { scale, bias, eps } = op.norm;
        self.kernels.norm(kernels::Norm {
            kind: kernels::NormKind::Layer,
            eps: *eps,
            scale,
            bias: bias.as_deref(),
            rows,
            input,
            output: plane.rows_mut(rows),
            stride,
            rounded,
            rounded_stride,
        });
        Ok(())
    }

    fn rotary(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        for sequence in batch.sequences() {
            self.rotate(arena, rotary, 0, sequence);
        }
        Ok(())
    }

    fn attention(
        &self,
        arena: &mut Arena,
        op: AttentionOp<'_, Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let shape = attention_shape(&arena.spec);
        let (qkv, context, scratch) = arena.attention();
        for sequence in batch.sequences() {
            let queries = 0..sequence.len();
            let at = Sequence { shape, keys: sequence.clone(), queries, answers: sequence };
            self.attend(&op, qkv, context, scratch, at);
        }
        Ok(())
    }

    fn encode(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self.encode_alone_or_shared(arena, model, batch, None)
    }

    fn encode_pooled(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        let Some(chosen) = op.only_tokens(batch).filter(|_| !model.layers.is_empty()) else {
            self.encode(arena, model, batch)?;
            return self.pool(arena, op, batch, vectors);
        };
        self.encode_alone_or_shared(arena, model, batch, Some(&chosen))?;
        let (d, (hidden, stride)) = (arena.spec.hidden, arena.hidden());
        for (vector, row) in vectors.chunks_exact_mut(d).zip(hidden.chunks_exact(stride)) {
            vector.copy_from_slice(&row[..d]);
        }
        Ok(())
    }

    fn pool(
        &self,
        arena: &mut Arena,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        let d = arena.spec.hidden;
        let (hidden, stride) = arena.hidden();
        for (sequence, out) in batch.sequences().zip(vectors.chunks_exact_mut(d)) {
            let rows = &hidden[sequence.start * stride..sequence.end * stride];
            self.pool_one(op, rows, out);
        }
        Ok(())
    }

    fn download_hidden(
        &self,
        arena: &mut Arena,
        _batch: &PackedBatch,
        hidden: &mut [f32],
    ) -> Result<(), BackendError> {
        let d = arena.spec.hidden;
        let (rows, stride) = arena.hidden();
        for (out, row) in hidden.chunks_exact_mut(d).zip(rows.chunks_exact(stride)) {
            out.copy_from_slice(&row[..d]);
        }
        Ok(())
    }
}

/// Where one sequence's attention reads and writes.
pub(super) struct Sequence {
    pub(super) shape: kernels::AttentionShape,
    /// Its rows of queries, keys and values.
    pub(super) keys: Range<usize>,
    /// The queries to answer, counted from its start …
    pub(super) queries: Range<usize>,
    /// … and the rows of context for them.
    pub(super) answers: Range<usize>,
}

impl Cpu {
    /// Puts the embeddings of `tokens` of the batch into the first rows of the hidden state.
    pub(super) fn embed_tokens(
        &self,
        arena: &mut Arena,
        embedding: &EmbeddingSource,
        batch: &PackedBatch,
        tokens: Range<usize>,
    ) {
        let d = arena.spec.hidden;
        let mut row = std::mem::take(&mut arena.row);
        let (hidden, stride) = arena.hidden();
        let mut add = |table: &Tensor, index: usize, out: &mut [f32]| {
            table.read_f32(index * d, &mut row);
            self.kernels.add_scaled(out, &row, 1.0);
        };
        for sequence in batch.sequences() {
            let positions = learned_rows(&batch.ids()[sequence.clone()], embedding.position_offset);
            let places = positions.zip(sequence).filter(|(_, token)| tokens.contains(token));
            for (position, token) in places {
                // The table is far larger than any cache, and the next rows are known.
                if let Some(&id) = batch.ids().get(token + AHEAD) {
                    let bytes = d * embedding.word.dtype.size();
                    let row = id as usize * bytes;
                    self.kernels.prefetch(&embedding.word.bytes[row..row + bytes]);
                }
                let out = &mut hidden[(token - tokens.start) * stride..][..d];
                embedding.word.read_f32(batch.ids()[token] as usize * d, out);
                if let Some(table) = &embedding.position {
                    add(table, position, out);
                }
                if let Some(table) = &embedding.token_type {
                    add(table, 0, out);
                }
            }
        }
        arena.row = row;
    }

    /// [`Backend::linear`], whose outputs are the rows from `first` on.
    pub(super) fn linear_at(&self, arena: &mut Arena, op: LinearOp<'_, Self>, first: usize) {
        let epilogue = match op.epilogue {
            Epilogue::Store => kernels::Epilogue::Activate(kernels::Activation::Identity),
            Epilogue::Accumulate => kernels::Epilogue::Accumulate,
            Epilogue::Activate(activation) => kernels::Epilogue::Activate(kernel(activation)),
            Epilogue::Gate(activation) => kernels::Epilogue::Gate(kernel(activation)),
        };
        let rows = arena.tokens;
        let (input, output) = arena.pair(op.input, op.output);
        let (x, x_stride) = self.operand(input, rows);
        let outputs = first..first + rows;
        let (y, y_stride) = match &mut output.state {
            State::F32(plane) => {
                let stride = plane.stride;
                (kernels::Output::F32(plane.range_mut(outputs)), stride)
            }
            State::Bf16(plane) => {
                let stride = plane.stride;
                (kernels::Output::Bf16(plane.range_mut(outputs)), stride)
            }
        };
        let linear = op.weight;
        self.kernels.gemm(kernels::Gemm { linear, rows, x, x_stride, y, y_stride, epilogue });
    }

    /// Rotates the queries and keys of the slot's `rows`, the first of which stands at `position`.
    pub(super) fn rotate(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        position: usize,
        rows: Range<usize>,
    ) {
        let heads = 2 * arena.spec.heads;
        let first = position * (rotary.head_dim / 2);
        let (data, stride) = match &mut arena.slot(Slot::Qkv).state {
            State::F32(plane) => {
                let stride = plane.stride;
                (kernels::Output::F32(plane.range_mut(rows.clone())), stride)
            }
            State::Bf16(plane) => {
                let stride = plane.stride;
                (kernels::Output::Bf16(plane.range_mut(rows.clone())), stride)
            }
        };
        self.kernels.rotary(kernels::Rotary {
            pairs: kernels::RotaryPairs::Halves,
            heads,
            head_dim: rotary.head_dim,
            rotary_dim: rotary.head_dim,
            cos: &rotary.cos[first..],
            sin: &rotary.sin[first..],
            rows: rows.len(),
            data,
            stride,
        });
    }

    /// Answers some queries of one sequence.
    pub(super) fn attend(
        &self,
        op: &AttentionOp<'_, Self>,
        qkv: &Rows,
        context: &mut Rows,
        scratch: &mut [f32],
        at: Sequence,
    ) {
        let Sequence { shape, keys, queries, answers } = at;
        let bias = match op.relative {
            None => kernels::AttentionBias::None,
            Some(RelativeBias { by_distance, positions }) => {
                kernels::AttentionBias::Relative { by_distance, positions: *positions }
            }
        };
        let range = |rows: &Range<usize>, stride: usize| rows.start * stride..rows.end * stride;
        let (rows, qkv_stride, context_stride) = match (&qkv.state, &mut context.state) {
            (State::F32(from), State::F32(to)) => {
                let (qkv_stride, stride) = (from.stride, to.stride);
                let qkv = &from.rows(keys.end)[range(&keys, qkv_stride)];
                let context = &mut to.rows_mut(answers.end)[range(&answers, stride)];
                (kernels::AttentionRows::F32 { qkv, context }, qkv_stride, stride)
            }
            (State::Bf16(from), State::Bf16(to)) => {
                let (qkv_stride, stride) = (from.stride, to.stride);
                let qkv = &from.rows(keys.end)[range(&keys, qkv_stride)];
                let context = &mut to.rows_mut(answers.end)[range(&answers, stride)];
                (kernels::AttentionRows::Bf16 { qkv, context }, qkv_stride, stride)
            }
            _ => unreachable!("attention keeps the format"),
        };
        self.kernels.attention(kernels::Attention {
            shape,
            tokens: keys.len(),
            queries,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            window: op.window,
            causal: false,
            bias,
            rows,
            qkv_stride,
            context_stride,
            scratch,
        });
    }

    /// A slot's first rows as a linear layer reads them, and how far apart they are.
    fn operand<'a>(&self, slot: &'a mut Rows, rows: usize) -> (kernels::Input<'a>, usize) {
        match (&slot.state, &mut slot.operand) {
            (State::F32(plane), Operand::State) => {
                (kernels::Input::F32(plane.rows(rows)), plane.stride)
            }
            (State::Bf16(plane), Operand::State) => {
                (kernels::Input::Bf16(plane.rows(rows)), plane.stride)
            }
            (_, Operand::Bf16(plane)) => (kernels::Input::Bf16(plane.rows(rows)), plane.stride),
            (state, Operand::Int8(plane, scales)) => {
                let (x, x_stride) = match state {
                    State::F32(state) => (kernels::Source::F32(state.rows(rows)), state.stride),
                    State::Bf16(state) => (kernels::Source::Bf16(state.rows(rows)), state.stride),
                };
                let (columns, stride) = (slot.columns, plane.stride);
                let (bytes, scales) = (plane.rows_mut(rows), &mut scales[..rows]);
                self.kernels.quantize(kernels::Quantize {
                    rows,
                    columns,
                    x,
                    x_stride,
                    bytes,
                    stride,
                    scales,
                });
                (kernels::Input::Int8 { bytes, scales }, stride)
            }
        }
    }

    /// Pools one sequence's states, rows at the stride of [`Slot::Hidden`], into `out`.
    fn pool_one(&self, op: PoolOp, hidden: &[f32], out: &mut [f32]) {
        let d = out.len();
        let stride = kernels::row_stride::<f32>(d);
        let tokens = hidden.len() / stride;
        let first = op.first(tokens);
        let rows = || hidden.chunks_exact(stride).skip(first).map(|row| &row[..d]);
        let mut weighted = |weight: &dyn Fn(usize) -> f32| {
            out.fill(0.0);
            for (at, row) in rows().enumerate() {
                self.kernels.add_scaled(out, row, weight(first + at));
            }
        };
        let count = (tokens - first) as f32;
        match op.mode {
            Pooling::Cls => rows().take(1).for_each(|row| out.copy_from_slice(row)),
            Pooling::LastToken => {
                rows().skip(tokens - first - 1).for_each(|row| out.copy_from_slice(row))
            }
            Pooling::Max => {
                out.fill(f32::NEG_INFINITY);
                rows().for_each(|row| self.kernels.max(out, row));
            }
            Pooling::Mean => weighted(&|_| 1.0 / count),
            Pooling::MeanSqrtLen => weighted(&|_| 1.0 / count.sqrt()),
            Pooling::WeightedMean => {
                let sum: f32 = (first..tokens).map(|token| (token + 1) as f32).sum();
                weighted(&|token| (token + 1) as f32 / sum);
            }
        }
    }
}

pub(super) fn kernel(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::GeluErf => kernels::Activation::GeluErf,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
        Activation::Silu => kernels::Activation::Silu,
        Activation::Relu => kernels::Activation::Relu,
        Activation::Tanh => kernels::Activation::Tanh,
        Activation::Identity => kernels::Activation::Identity,
    }
}
