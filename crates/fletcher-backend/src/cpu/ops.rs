//! The backend's operations: which kernel runs over which slots.

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, EmbeddingSource, Epilogue, LinearOp, LinearSource, NormOp,
    PoolOp, Pooling, Slot,
};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{Activation, EncoderSpec, learned_rows, rotary_table};
use fletcher_core::weights::Tensor;
use fletcher_kernels as kernels;

use super::arena::{Arena, attention_shape};
use super::{Cpu, Norm, RelativeBias, Rotary};

/// Bytes of activations that a block may have: most of a common L2 cache, with room left for the
/// weights that stream past.
const BLOCK_BYTES: usize = 768 << 10;
/// A block below this many tokens would stream the weights too often.
const BLOCK_TOKENS_MIN: usize = 128;
/// A block above it gains nothing.
const BLOCK_TOKENS_MAX: usize = 1024;

impl Backend for Cpu {
    type Linear = kernels::Linear;
    type Norm = Norm;
    type Embedding = EmbeddingSource;
    type Rotary = Rotary;
    type RelativeBias = RelativeBias;
    type Arena = Arena;

    fn preferred_tokens(&self, spec: &EncoderSpec) -> usize {
        let widths =
            2 * spec.hidden + spec.qkv_width().max(spec.intermediate) + spec.context_width();
        (BLOCK_BYTES / (4 * widths)).clamp(BLOCK_TOKENS_MIN, BLOCK_TOKENS_MAX)
    }

    fn workers(&self) -> usize {
        self.threads
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<kernels::Linear, BackendError> {
        let LinearSource { rows, cols, weight, bias, gated } = source;
        Ok(self.kernels.pack(kernels::LinearShape { rows, cols, gated }, weight, bias))
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
        Arena::new(&self.kernels, spec, max_tokens)
    }

    fn embed(
        &self,
        arena: &mut Arena,
        embedding: &EmbeddingSource,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let d = arena.spec.hidden;
        arena.tokens = batch.tokens();
        let mut row = std::mem::take(&mut arena.row);
        let hidden = arena.slot(Slot::Hidden);
        let (stride, hidden) = (hidden.stride, hidden.data);
        let mut add = |table: &Tensor, index: usize, out: &mut [f32]| {
            table.read_f32(index * d, &mut row);
            self.kernels.add_scaled(out, &row, 1.0);
        };
        for sequence in batch.sequences() {
            let positions = learned_rows(&batch.ids()[sequence.clone()], embedding.position_offset);
            for (position, token) in positions.zip(sequence) {
                let out = &mut hidden[token * stride..token * stride + d];
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
        Ok(())
    }

    fn linear(&self, arena: &mut Arena, op: LinearOp<'_, Self>) -> Result<(), BackendError> {
        let epilogue = match op.epilogue {
            Epilogue::Store => kernels::Epilogue::Activate(kernels::Activation::Identity),
            Epilogue::Accumulate => kernels::Epilogue::Accumulate,
            Epilogue::Activate(activation) => kernels::Epilogue::Activate(kernel(activation)),
            Epilogue::Gate(activation) => kernels::Epilogue::Gate(kernel(activation)),
        };
        let rows = arena.tokens;
        let (input, output) = arena.pair(op.input, op.output);
        self.kernels.gemm(kernels::Gemm {
            linear: op.weight,
            rows,
            x: input.data,
            x_stride: input.stride,
            y: output.data,
            y_stride: output.stride,
            epilogue,
        });
        Ok(())
    }

    fn norm(&self, arena: &mut Arena, op: NormOp<'_, Self>) -> Result<(), BackendError> {
        let rows = arena.tokens;
        let (input, output) = match op.input == op.output {
            true => (None, arena.slot(op.output)),
            false => {
                let (input, output) = arena.pair(op.input, op.output);
                assert_eq!(input.stride, output.stride, "a norm keeps the width");
                (Some(input.data), output)
            }
        };
        let Norm { scale, bias, eps } = op.norm;
        self.kernels.norm(kernels::Norm {
            kind: kernels::NormKind::Layer,
            eps: *eps,
            scale,
            bias: bias.as_deref(),
            rows,
            input,
            output: output.data,
            stride: output.stride,
        });
        Ok(())
    }

    fn rotary(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let heads = 2 * arena.spec.heads;
        let qkv = arena.slot(Slot::Qkv);
        for sequence in batch.sequences() {
            self.kernels.rotary(kernels::Rotary {
                pairs: kernels::RotaryPairs::Halves,
                heads,
                head_dim: rotary.head_dim,
                rotary_dim: rotary.head_dim,
                cos: &rotary.cos,
                sin: &rotary.sin,
                rows: sequence.len(),
                data: &mut qkv.data[sequence.start * qkv.stride..sequence.end * qkv.stride],
                stride: qkv.stride,
            });
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
        let bias = match op.relative {
            None => kernels::AttentionBias::None,
            Some(RelativeBias { by_distance, positions }) => {
                kernels::AttentionBias::Relative { by_distance, positions: *positions }
            }
        };
        let (qkv, context, scratch) = arena.attention();
        for sequence in batch.sequences() {
            let rows = |stride: usize| sequence.start * stride..sequence.end * stride;
            self.kernels.attention(kernels::Attention {
                shape,
                tokens: sequence.len(),
                scale: 1.0 / (shape.head_dim as f32).sqrt(),
                window: op.window,
                causal: false,
                bias,
                qkv: &qkv.data[rows(qkv.stride)],
                qkv_stride: qkv.stride,
                context: &mut context.data[rows(context.stride)],
                context_stride: context.stride,
                scratch,
            });
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
        let hidden = arena.slot(Slot::Hidden);
        for (sequence, out) in batch.sequences().zip(vectors.chunks_exact_mut(d)) {
            let rows = &hidden.data[sequence.start * hidden.stride..sequence.end * hidden.stride];
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
        let slot = arena.slot(Slot::Hidden);
        for (out, row) in hidden.chunks_exact_mut(d).zip(slot.data.chunks_exact(slot.stride)) {
            out.copy_from_slice(&row[..d]);
        }
        Ok(())
    }
}

impl Cpu {
    /// Pools one sequence's states, rows at the stride of [`Slot::Hidden`], into `out`.
    fn pool_one(&self, op: PoolOp, hidden: &[f32], out: &mut [f32]) {
        let d = out.len();
        let stride = kernels::row_stride(d);
        let tokens = hidden.len() / stride;
        let first = if op.skip < tokens { op.skip } else { 0 };
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

fn kernel(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::GeluErf => kernels::Activation::GeluErf,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
        Activation::Silu => kernels::Activation::Silu,
        Activation::Relu => kernels::Activation::Relu,
        Activation::Tanh => kernels::Activation::Tanh,
        Activation::Identity => kernels::Activation::Identity,
    }
}
