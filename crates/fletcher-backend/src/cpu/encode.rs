//! A batch through the encoder by one worker.
//!
//! Where one token of each sequence is all that pooling takes, the last layer is done for these
//! tokens alone, but for keys and values, which they see of all, and queries, which are made with
//! them: of MiniLM's six layers an eighth is spared, of BERT-base's twelve a sixteenth. No row's
//! sums depend on another row, so the bits are those of the whole.

use std::ops::Range;

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, Epilogue, LinearOp, NormOp, Slot,
};
use fletcher_core::encoder::{EncoderWeights, LayerWeights};
use fletcher_core::pack::PackedBatch;

use super::arena::{Arena, attention_shape};
use super::ops::Sequence;
use super::{Cpu, Norm};

impl Cpu {
    /// Leaves the states of the `chosen` tokens, one of each sequence, or of all.
    pub(super) fn encode_alone(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        batch: &PackedBatch,
        chosen: Option<&[usize]>,
    ) -> Result<(), BackendError> {
        self.embed(arena, &model.embedding, batch)?;
        self.norm(arena, in_place(&model.embedding_norm))?;
        for (index, layer) in model.layers.iter().enumerate() {
            match chosen.filter(|_| index + 1 == model.layers.len()) {
                Some(chosen) => self.layer_of_chosen(arena, model, layer, (batch, chosen))?,
                None => self.layer(arena, model, layer, batch)?,
            }
        }
        match &model.final_norm {
            Some(norm) => self.norm(arena, in_place(norm)),
            None => Ok(()),
        }
    }

    /// [`Backend::layer`] when only the states of the `chosen` tokens, one of each sequence, are
    /// wanted: they become the arena's only rows, but the keys and values that they see are those
    /// of all tokens.
    fn layer_of_chosen(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
        (batch, chosen): (&PackedBatch, &[usize]),
    ) -> Result<(), BackendError> {
        let input = self.pre_norm(arena, model, layer.attention_norm.as_ref())?;
        let (weight, output, epilogue) = (&layer.qkv, Slot::Qkv, Epilogue::Store);
        self.linear(arena, LinearOp { weight, input, output, epilogue })?;
        if let Some(rotary) = &layer.rotary {
            self.rotary(arena, rotary, batch)?;
        }
        for (answer, (keys, &token)) in batch.sequences().zip(chosen).enumerate() {
            let query = token - keys.start;
            let (queries, answers) = (query..query + 1, answer..answer + 1);
            self.attend_in(arena, model, layer, (keys, queries, answers));
        }
        arena.keep(chosen);
        self.attention_output(arena, model, layer)?;
        self.feed_forward_block(arena, model, layer)
    }

    /// Attention from some queries of one sequence, counted from its start, to rows of answers.
    pub(super) fn attend_in(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        layer: &LayerWeights<Self>,
        (keys, queries, answers): (Range<usize>, Range<usize>, Range<usize>),
    ) {
        let op = AttentionOp { relative: model.relative_bias.as_ref(), window: layer.window };
        let shape = attention_shape(&arena.spec);
        let (qkv, context, scratch) = arena.attention();
        self.attend(&op, qkv, context, scratch, Sequence { shape, keys, queries, answers });
    }
}

pub(super) fn in_place(norm: &Norm) -> NormOp<'_, Cpu> {
    NormOp { norm, input: Slot::Hidden, output: Slot::Hidden }
}
