//! One worker's activations: every slot and all scratch, allocated once.

use fletcher_core::backend::Slot;
use fletcher_core::spec::EncoderSpec;
use fletcher_kernels::attention_scratch;

/// The activation slots of one worker.
#[derive(Debug)]
pub struct Arena {
    pub(super) spec: EncoderSpec,
    /// Tokens of the current batch.
    pub(super) tokens: usize,
    /// In the order of [`Slot`].
    slots: [Vec<f32>; 5],
    /// For attention.
    pub(super) scratch: Vec<f32>,
    /// One row of an embedding table, widened.
    pub(super) row: Vec<f32>,
}

impl Arena {
    /// Allocates for `max_tokens` tokens, of which one sequence may hold all. The pages are
    /// touched, and so become resident, only as batches need them.
    pub(super) fn new(spec: &EncoderSpec, max_tokens: usize) -> Self {
        let slot = |slot| vec![0.0; max_tokens * width(spec, slot)];
        let slots = [Slot::Hidden, Slot::Normed, Slot::Qkv, Slot::Context, Slot::Inner].map(slot);
        Self {
            spec: spec.clone(),
            tokens: 0,
            slots,
            scratch: vec![0.0; attention_scratch(max_tokens, spec.head_dim)],
            row: vec![0.0; spec.hidden],
        }
    }

    /// The current batch's rows of a slot.
    pub(super) fn slot(&mut self, slot: Slot) -> &mut [f32] {
        let length = self.tokens * width(&self.spec, slot);
        &mut self.slots[slot as usize][..length]
    }

    /// Two different slots, the first to read and the second to write.
    pub(super) fn pair(&mut self, input: Slot, output: Slot) -> (&[f32], &mut [f32]) {
        assert_ne!(input, output, "a linear layer cannot work in place");
        let (from, to) =
            (self.tokens * width(&self.spec, input), self.tokens * width(&self.spec, output));
        let (input, output) = (input as usize, output as usize);
        let (low, high) = self.slots.split_at_mut(input.max(output));
        match input < output {
            true => (&low[input][..from], &mut high[0][..to]),
            false => (&high[0][..from], &mut low[output][..to]),
        }
    }

    /// Queries, keys and values; the context to write; and scratch.
    pub(super) fn attention(&mut self) -> (&[f32], &mut [f32], &mut [f32]) {
        let qkv = self.tokens * width(&self.spec, Slot::Qkv);
        let context = self.tokens * width(&self.spec, Slot::Context);
        let (low, high) = self.slots.split_at_mut(Slot::Context as usize);
        (&low[Slot::Qkv as usize][..qkv], &mut high[0][..context], &mut self.scratch)
    }
}

fn width(spec: &EncoderSpec, slot: Slot) -> usize {
    match slot {
        Slot::Hidden | Slot::Normed => spec.hidden,
        Slot::Qkv => spec.qkv_width(),
        Slot::Context => spec.context_width(),
        Slot::Inner => spec.intermediate,
    }
}
