//! The backend's operations: which kernel runs over which slots.

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, EmbeddingSource, Epilogue, LinearOp, LinearSource, NormOp,
    PoolOp, Pooling, Slot,
};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{Activation, EncoderSpec, rotary_table};
use fletcher_core::weights::Tensor;
use fletcher_kernels as kernels;

use super::{Arena, Cpu, Norm, RelativeBias, Rotary};

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
        Ok(Rotary { cos, sin, half: head_dim / 2 })
    }

    fn upload_relative_bias(
        &self,
        by_distance: &[Vec<f32>],
        positions: usize,
    ) -> Result<RelativeBias, BackendError> {
        Ok(RelativeBias { by_distance: by_distance.to_vec(), zero: positions - 1 })
    }

    fn plan(&self, spec: &EncoderSpec, max_tokens: usize) -> Result<Arena, BackendError> {
        Ok(Arena::new(spec, max_tokens))
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
        let mut add = |table: &Tensor, index: usize, out: &mut [f32]| {
            table.read_f32(index * d, &mut row);
            self.kernels.add_scaled(out, &row, 1.0);
        };
        for sequence in batch.sequences() {
            for (position, token) in sequence.enumerate() {
                let out = &mut hidden[token * d..(token + 1) * d];
                embedding.word.read_f32(batch.ids()[token] as usize * d, out);
                if let Some(table) = &embedding.position {
                    add(table, position + embedding.position_offset, out);
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
        let (input, output) = arena.pair(op.input, op.output);
        self.kernels.linear(op.weight, input, output, epilogue);
        Ok(())
    }

    fn norm(&self, arena: &mut Arena, op: NormOp<'_, Self>) -> Result<(), BackendError> {
        if op.input != op.output {
            let (input, output) = arena.pair(op.input, op.output);
            output.copy_from_slice(input);
        }
        let Norm { scale, bias, eps } = op.norm;
        self.kernels.layer_norm(arena.slot(op.output), scale, bias.as_deref(), *eps);
        Ok(())
    }

    fn rotary(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let width = arena.spec.qkv_width();
        let rows = arena.slot(Slot::Qkv);
        for sequence in batch.sequences() {
            for (position, token) in sequence.enumerate() {
                let angles = position * rotary.half..(position + 1) * rotary.half;
                let (cos, sin) = (&rotary.cos[angles.clone()], &rotary.sin[angles]);
                let queries_and_keys = &mut rows[token * width..][..width / 3 * 2];
                for head in queries_and_keys.chunks_exact_mut(2 * rotary.half) {
                    self.kernels.rotate(head, cos, sin);
                }
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        arena: &mut Arena,
        op: AttentionOp<'_, Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let (heads, head_dim) = (arena.spec.heads, arena.spec.head_dim);
        let width = heads * head_dim;
        let (qkv, context, scratch) = arena.attention();
        for sequence in batch.sequences() {
            self.kernels.attention(kernels::Attention {
                qkv: &qkv[sequence.start * 3 * width..sequence.end * 3 * width],
                context: &mut context[sequence.start * width..sequence.end * width],
                heads,
                head_dim,
                window: op.window,
                relative: op.relative.map(|bias| (&bias.by_distance[..], bias.zero)),
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
            self.pool_one(op, &hidden[sequence.start * d..sequence.end * d], out);
        }
        Ok(())
    }

    fn download_hidden(
        &self,
        arena: &mut Arena,
        _batch: &PackedBatch,
        hidden: &mut [f32],
    ) -> Result<(), BackendError> {
        hidden.copy_from_slice(arena.slot(Slot::Hidden));
        Ok(())
    }
}

impl Cpu {
    /// Pools one sequence's `tokens x d` states into `out`.
    fn pool_one(&self, op: PoolOp, hidden: &[f32], out: &mut [f32]) {
        let d = out.len();
        let tokens = hidden.len() / d;
        let first = if op.skip < tokens { op.skip } else { 0 };
        let rows = || hidden.chunks_exact(d).skip(first);
        let mut weighted = |weight: &dyn Fn(usize) -> f32| {
            out.fill(0.0);
            for (at, row) in rows().enumerate() {
                self.kernels.add_scaled(out, row, weight(first + at));
            }
        };
        let count = (tokens - first) as f32;
        match op.mode {
            Pooling::Cls => out.copy_from_slice(&hidden[first * d..(first + 1) * d]),
            Pooling::LastToken => out.copy_from_slice(&hidden[(tokens - 1) * d..]),
            Pooling::Max => {
                out.fill(f32::NEG_INFINITY);
                rows().for_each(|row| self.kernels.keep_greatest(out, row));
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
