//! The slow, clear backend that *defines* every operation.
//!
//! Everything is computed in f64 with the textbook's loops: no tricks, no threads, one line per
//! formula. Every other backend is tested against it (`conformance.rs`); users never run it unless
//! they ask for it by name, since it is hundreds of times slower.

use crate::backend::{
    AttentionOp, Backend, BackendError, EmbeddingSource, Epilogue, LinearOp, LinearSource, NormOp,
    PoolOp, Slot,
};
use crate::pack::PackedBatch;
use crate::spec::{EncoderSpec, learned_rows, rotary_table};

mod math;
pub use math::{activate, erf, pool};

/// The reference backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

/// A matrix as it came.
#[derive(Debug)]
pub struct Linear {
    rows: usize,
    cols: usize,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

/// Scale and bias of a LayerNorm.
#[derive(Debug)]
pub struct Norm {
    scale: Vec<f64>,
    bias: Vec<f64>,
    eps: f64,
}

/// Cosines and sines by position and frequency.
#[derive(Debug)]
pub struct Rotary {
    head_dim: usize,
    /// `positions x head_dim / 2` pairs.
    cos_sin: Vec<(f64, f64)>,
}

/// Bias by head and distance.
#[derive(Debug)]
pub struct RelativeBias {
    by_distance: Vec<Vec<f32>>,
    positions: usize,
}

/// The slots, grown as needed: the reference plans nothing.
#[derive(Debug)]
pub struct Arena {
    spec: EncoderSpec,
    slots: [Vec<f64>; 5],
}

impl Arena {
    fn width(&self, slot: Slot) -> usize {
        match slot {
            Slot::Hidden | Slot::Normed => self.spec.hidden,
            Slot::Qkv => self.spec.qkv_width(),
            Slot::Context => self.spec.context_width(),
            Slot::Inner => self.spec.intermediate,
        }
    }

    fn take(&mut self, slot: Slot) -> Vec<f64> {
        std::mem::take(&mut self.slots[slot as usize])
    }

    fn put(&mut self, slot: Slot, values: Vec<f64>) {
        self.slots[slot as usize] = values;
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

impl Backend for Reference {
    type Linear = Linear;
    type Norm = Norm;
    type Embedding = EmbeddingSource;
    type Rotary = Rotary;
    type RelativeBias = RelativeBias;
    type Arena = Arena;

    fn device_name(&self) -> String {
        "reference".to_owned()
    }

    fn preferred_tokens(&self, _spec: &EncoderSpec) -> usize {
        512
    }

    fn workers(&self) -> usize {
        1
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Linear, BackendError> {
        let bias = source.bias.map_or_else(|| vec![0.0; source.rows], widen);
        let (rows, cols) = (source.rows, source.cols);
        Ok(Linear { rows, cols, weight: widen(source.weight), bias })
    }

    fn upload_norm(
        &self,
        scale: &[f32],
        bias: Option<&[f32]>,
        eps: f64,
    ) -> Result<Norm, BackendError> {
        let bias = bias.map_or_else(|| vec![0.0; scale.len()], widen);
        Ok(Norm { scale: widen(scale), bias, eps })
    }

    fn upload_embedding(&self, source: EmbeddingSource) -> Result<EmbeddingSource, BackendError> {
        Ok(source)
    }

    fn upload_rotary(
        &self,
        theta: f64,
        head_dim: usize,
        positions: usize,
    ) -> Result<Rotary, BackendError> {
        let cos_sin = rotary_table(theta, head_dim, positions)
            .into_iter()
            .map(|(cos, sin)| (f64::from(cos), f64::from(sin)))
            .collect();
        Ok(Rotary { head_dim, cos_sin })
    }

    fn upload_relative_bias(
        &self,
        by_distance: &[Vec<f32>],
        positions: usize,
    ) -> Result<RelativeBias, BackendError> {
        Ok(RelativeBias { by_distance: by_distance.to_vec(), positions })
    }

    fn plan(&self, spec: &EncoderSpec, _max_tokens: usize) -> Result<Arena, BackendError> {
        Ok(Arena { spec: spec.clone(), slots: Default::default() })
    }

    fn embed(
        &self,
        arena: &mut Arena,
        embedding: &EmbeddingSource,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let d = arena.spec.hidden;
        let mut hidden = vec![0.0; batch.tokens() * d];
        let mut row = vec![0.0f32; d];
        for sequence in batch.sequences() {
            let positions = learned_rows(&batch.ids()[sequence.clone()], embedding.position_offset);
            for (position, token) in positions.zip(sequence) {
                let out = &mut hidden[token * d..(token + 1) * d];
                let word = Some((&embedding.word, batch.ids()[token] as usize));
                let position = embedding.position.as_ref().map(|table| (table, position));
                let token_type = embedding.token_type.as_ref().map(|table| (table, 0));
                for (table, index) in [word, position, token_type].into_iter().flatten() {
                    table.read_f32(index * d, &mut row);
                    out.iter_mut().zip(&row).for_each(|(out, &value)| *out += f64::from(value));
                }
            }
        }
        arena.put(Slot::Hidden, hidden);
        Ok(())
    }

    fn linear(&self, arena: &mut Arena, op: LinearOp<'_, Self>) -> Result<(), BackendError> {
        let weight = op.weight;
        let input = arena.take(op.input);
        let width = arena.width(op.output);
        let tokens = input.len() / weight.cols;
        let mut output = arena.take(op.output);
        output.resize(tokens * width, 0.0);
        for (x, y) in input.chunks_exact(weight.cols).zip(output.chunks_exact_mut(width)) {
            let sum = |row: usize| {
                let w = &weight.weight[row * weight.cols..(row + 1) * weight.cols];
                weight.bias[row] + w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
            };
            for (column, y) in y.iter_mut().enumerate() {
                *y = match op.epilogue {
                    Epilogue::Store => sum(column),
                    Epilogue::Accumulate => *y + sum(column),
                    Epilogue::Activate(activation) => activate(activation, sum(column)),
                    Epilogue::Gate(activation) => {
                        activate(activation, sum(column)) * sum(column + weight.rows / 2)
                    }
                };
            }
        }
        arena.put(op.input, input);
        arena.put(op.output, output);
        Ok(())
    }

    fn norm(&self, arena: &mut Arena, op: NormOp<'_, Self>) -> Result<(), BackendError> {
        let d = arena.spec.hidden;
        let mut values = match op.input == op.output {
            true => arena.take(op.input),
            false => arena.slots[op.input as usize].clone(),
        };
        for row in values.chunks_exact_mut(d) {
            let mean = row.iter().sum::<f64>() / d as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            let scale = 1.0 / (variance + op.norm.eps).sqrt();
            for (x, (g, b)) in row.iter_mut().zip(op.norm.scale.iter().zip(&op.norm.bias)) {
                *x = (*x - mean) * scale * g + b;
            }
        }
        arena.put(op.output, values);
        Ok(())
    }

    fn rotary(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let width = arena.spec.qkv_width();
        let half = rotary.head_dim / 2;
        let qkv = &mut arena.slots[Slot::Qkv as usize];
        for sequence in batch.sequences() {
            for (position, token) in sequence.enumerate() {
                let queries_and_keys = &mut qkv[token * width..token * width + width / 3 * 2];
                for head in queries_and_keys.chunks_exact_mut(rotary.head_dim) {
                    for i in 0..half {
                        let (cos, sin) = rotary.cos_sin[position * half + i];
                        let (a, b) = (head[i], head[i + half]);
                        head[i] = a * cos - b * sin;
                        head[i + half] = b * cos + a * sin;
                    }
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
        let (heads, dim) = (arena.spec.heads, arena.spec.head_dim);
        let (width, context_width) = (arena.spec.qkv_width(), arena.spec.context_width());
        let qkv = arena.take(Slot::Qkv);
        let mut context = vec![0.0; batch.tokens() * context_width];
        let part = |token: usize, which: usize, head: usize| {
            let start = token * width + which * context_width + head * dim;
            &qkv[start..start + dim]
        };
        for sequence in batch.sequences() {
            for (head, query) in (0..heads).flat_map(|h| sequence.clone().map(move |q| (h, q))) {
                let window = op.window.unwrap_or(usize::MAX);
                let keys = sequence.clone().filter(|&key| key.abs_diff(query) <= window);
                let scores: Vec<(usize, f64)> = keys
                    .map(|key| {
                        let q = part(query, 0, head);
                        let dot: f64 = q.iter().zip(part(key, 1, head)).map(|(q, k)| q * k).sum();
                        let bias = op.relative.map_or(0.0, |bias| {
                            let column = key + bias.positions - 1 - query;
                            f64::from(bias.by_distance[head][column])
                        });
                        (key, dot / (dim as f64).sqrt() + bias)
                    })
                    .collect();
                let max = scores.iter().map(|(_, s)| *s).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|(_, s)| (s - max).exp()).sum();
                let start = query * context_width + head * dim;
                let out = &mut context[start..start + dim];
                for (key, score) in scores {
                    let probability = (score - max).exp() / sum;
                    let value = part(key, 2, head);
                    out.iter_mut().zip(value).for_each(|(out, v)| *out += probability * v);
                }
            }
        }
        arena.put(Slot::Qkv, qkv);
        arena.put(Slot::Context, context);
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
        let hidden = &arena.slots[Slot::Hidden as usize];
        for (sequence, out) in batch.sequences().zip(vectors.chunks_exact_mut(d)) {
            pool(&hidden[sequence.start * d..sequence.end * d], op, out);
        }
        Ok(())
    }

    fn download_hidden(
        &self,
        arena: &mut Arena,
        batch: &PackedBatch,
        hidden: &mut [f32],
    ) -> Result<(), BackendError> {
        let values = &arena.slots[Slot::Hidden as usize];
        assert_eq!(values.len(), batch.tokens() * arena.spec.hidden);
        hidden.iter_mut().zip(values).for_each(|(out, value)| *out = *value as f32);
        Ok(())
    }
}
