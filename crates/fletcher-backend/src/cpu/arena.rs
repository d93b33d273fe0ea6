//! One worker's activations: every slot and all scratch, allocated once.

use fletcher_core::backend::{BackendError, Slot};
use fletcher_core::spec::EncoderSpec;
use fletcher_kernels::{AlignedBuffer, AttentionShape, Kernels, row_stride};

/// The activation slots of one worker.
#[derive(Debug)]
pub struct Arena {
    pub(super) spec: EncoderSpec,
    /// Tokens of the current batch.
    pub(super) tokens: usize,
    /// In the order of [`Slot`].
    slots: [AlignedBuffer; 5],
    /// For attention.
    scratch: AlignedBuffer,
    /// One row of an embedding table, widened.
    pub(super) row: Vec<f32>,
}

/// A slot's rows to read, and how far apart they are.
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

/// A slot's rows to write, and how far apart they are.
pub(super) struct RowsMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) stride: usize,
}

impl Arena {
    /// Allocates for `max_tokens` tokens, of which one sequence may hold all. The pages are
    /// touched, and so become resident, only as batches need them.
    pub(super) fn new(
        kernels: &Kernels,
        spec: &EncoderSpec,
        max_tokens: usize,
    ) -> Result<Self, BackendError> {
        let slot = |slot| buffer(max_tokens.saturating_mul(stride(spec, slot)));
        Ok(Self {
            spec: spec.clone(),
            tokens: 0,
            slots: [
                slot(Slot::Hidden)?,
                slot(Slot::Normed)?,
                slot(Slot::Qkv)?,
                slot(Slot::Context)?,
                slot(Slot::Inner)?,
            ],
            scratch: buffer(kernels.attention_scratch(attention_shape(spec), max_tokens))?,
            row: vec![0.0; spec.hidden],
        })
    }

    /// The current batch's rows of a slot.
    pub(super) fn slot(&mut self, slot: Slot) -> RowsMut<'_> {
        let stride = stride(&self.spec, slot);
        RowsMut { data: &mut self.slots[slot as usize][..self.tokens * stride], stride }
    }

    /// Two different slots, the first to read and the second to write.
    pub(super) fn pair(&mut self, input: Slot, output: Slot) -> (Rows<'_>, RowsMut<'_>) {
        assert_ne!(input, output, "one slot cannot be read and written");
        let (from, to) = (stride(&self.spec, input), stride(&self.spec, output));
        let (input, output) = (input as usize, output as usize);
        let (low, high) = self.slots.split_at_mut(input.max(output));
        let (read, write) = match input < output {
            true => (&low[input], &mut high[0]),
            false => (&high[0], &mut low[output]),
        };
        (
            Rows { data: &read[..self.tokens * from], stride: from },
            RowsMut { data: &mut write[..self.tokens * to], stride: to },
        )
    }

    /// Queries, keys and values; the context to write; and scratch.
    pub(super) fn attention(&mut self) -> (Rows<'_>, RowsMut<'_>, &mut [f32]) {
        let (qkv, context) = (stride(&self.spec, Slot::Qkv), stride(&self.spec, Slot::Context));
        let (low, high) = self.slots.split_at_mut(Slot::Context as usize);
        (
            Rows { data: &low[Slot::Qkv as usize][..self.tokens * qkv], stride: qkv },
            RowsMut { data: &mut high[0][..self.tokens * context], stride: context },
            &mut self.scratch,
        )
    }
}

fn buffer(elements: usize) -> Result<AlignedBuffer, BackendError> {
    AlignedBuffer::try_new(elements).ok_or_else(|| BackendError::OutOfMemory {
        device: "cpu".into(),
        what: "a worker's activations",
        needed_bytes: elements.saturating_mul(size_of::<f32>()),
    })
}

/// How the kernels see a row of [`Slot::Qkv`].
pub(super) fn attention_shape(spec: &EncoderSpec) -> AttentionShape {
    AttentionShape { heads: spec.heads, kv_heads: spec.heads, head_dim: spec.head_dim }
}

/// Elements from one row of a slot to the next.
fn stride(spec: &EncoderSpec, slot: Slot) -> usize {
    row_stride(match slot {
        Slot::Hidden | Slot::Normed => spec.hidden,
        Slot::Qkv => spec.qkv_width(),
        Slot::Context => spec.context_width(),
        Slot::Inner => spec.intermediate,
    })
}
