//! One worker's activations: every slot and all scratch, allocated once.
//!
//! A slot's *state* is what operations write and read, in f32 or, where nothing is summed up over
//! layers, in bf16 when the model is not in f32. Its *operand* is the same rows as a linear layer
//! multiplies them: the state itself, or a copy in bf16 or bytes.

use std::ops::Range;

use fletcher_core::backend::{BackendError, Slot};
use fletcher_core::spec::EncoderSpec;
use fletcher_kernels::{
    AlignedBuffer, AttentionShape, Bf16, Format, Kernels, Number, RowCopy, RowScale, row_stride,
};

use super::split::Shares;

/// The activation slots of one worker.
#[derive(Debug)]
pub struct Arena {
    pub(super) spec: EncoderSpec,
    /// Tokens of the current batch.
    pub(super) tokens: usize,
    /// In the order of [`Slot`].
    slots: [Rows; 5],
    /// For attention.
    scratch: AlignedBuffer,
    /// One row of an embedding table, widened.
    pub(super) row: Vec<f32>,
    /// Longest sequence.
    pub(super) max_tokens: usize,
    /// For texts that are shared; made with the first one.
    pub(super) shares: Option<Box<Shares>>,
}

/// A slot's rows.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) columns: usize,
    pub(super) state: State,
    pub(super) operand: Operand,
}

/// Rows as operations write them.
#[derive(Debug)]
pub(super) enum State {
    F32(Plane<f32>),
    Bf16(Plane<Bf16>),
}

/// Rows as a linear layer multiplies them.
#[derive(Debug)]
pub(super) enum Operand {
    /// The state, or nothing reads it.
    State,
    /// The state rounded by the norm that writes it.
    Bf16(Plane<Bf16>),
    /// The state in bytes, made when a linear layer asks for it.
    Int8(Plane<u8>, Vec<RowScale>),
}

/// Rows of numbers.
#[derive(Debug)]
pub(super) struct Plane<T: Number> {
    data: AlignedBuffer<T>,
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

impl<T: Number> Plane<T> {
    fn new(rows: usize, columns: usize) -> Result<Self, BackendError> {
        let stride = row_stride::<T>(columns);
        let elements = rows.saturating_mul(stride);
        let data = AlignedBuffer::try_new(elements).ok_or_else(|| BackendError::OutOfMemory {
            device: "cpu".into(),
            what: "a worker's activations",
            needed_bytes: elements.saturating_mul(size_of::<T>()),
        })?;
        Ok(Self { data, stride })
    }

    /// The first `count` rows.
    pub(super) fn rows(&self, count: usize) -> &[T] {
        &self.data[..count * self.stride]
    }

    /// The first `count` rows, to write.
    pub(super) fn rows_mut(&mut self, count: usize) -> &mut [T] {
        self.range_mut(0..count)
    }

    /// Some rows, to write.
    pub(super) fn range_mut(&mut self, rows: Range<usize>) -> &mut [T] {
        &mut self.data[rows.start * self.stride..rows.end * self.stride]
    }

    /// Copies columns of some rows, for other cores to read, to another plane's first rows.
    pub(super) fn hand_over(&self, rows: Range<usize>, columns: Range<usize>, to: &mut Self) {
        let from = &self.data[rows.start * self.stride + columns.start..];
        let (from_stride, to_stride) = (self.stride, to.stride);
        let (rows, columns, to) = (rows.len(), columns.len(), &mut to.data[..]);
        RowCopy { rows, columns, from, from_stride, to, to_stride }.hand_over();
    }

    /// Copies what was handed over to where it came from.
    pub(super) fn take_over(&mut self, rows: Range<usize>, columns: Range<usize>, from: &Self) {
        let (from_stride, to_stride) = (from.stride, self.stride);
        let to = &mut self.data[rows.start * self.stride + columns.start..];
        let (rows, columns, from) = (rows.len(), columns.len(), &from.data[..]);
        RowCopy { rows, columns, from, from_stride, to, to_stride }.take_over();
    }
}

impl State {
    pub(super) fn new(narrow: bool, rows: usize, columns: usize) -> Result<Self, BackendError> {
        Ok(match narrow {
            true => State::Bf16(Plane::new(rows, columns)?),
            false => State::F32(Plane::new(rows, columns)?),
        })
    }

    /// [`Plane::hand_over`].
    pub(super) fn hand_over(&self, rows: Range<usize>, columns: Range<usize>, to: &mut Self) {
        match (self, to) {
            (State::F32(from), State::F32(to)) => from.hand_over(rows, columns, to),
            (State::Bf16(from), State::Bf16(to)) => from.hand_over(rows, columns, to),
            _ => unreachable!("rows keep their format"),
        }
    }

    /// [`Plane::take_over`].
    pub(super) fn take_over(&mut self, rows: Range<usize>, columns: Range<usize>, from: &Self) {
        match (self, from) {
            (State::F32(to), State::F32(from)) => to.take_over(rows, columns, from),
            (State::Bf16(to), State::Bf16(from)) => to.take_over(rows, columns, from),
            _ => unreachable!("rows keep their format"),
        }
    }
}

impl Rows {
    fn new(
        format: Format,
        spec: &EncoderSpec,
        slot: Slot,
        rows: usize,
    ) -> Result<Self, BackendError> {
        let columns = match slot {
            Slot::Hidden | Slot::Normed => spec.hidden,
            Slot::Qkv => spec.qkv_width(),
            Slot::Context => spec.context_width(),
            Slot::Inner => spec.intermediate,
        };
        let narrow = format != Format::F32 && !matches!(slot, Slot::Hidden | Slot::Normed);
        let state = State::new(narrow, rows, columns)?;
        let operand = match (format, slot, narrow) {
            (Format::F32, ..) | (_, Slot::Qkv, _) | (Format::Bf16, _, true) => Operand::State,
            (Format::Bf16, _, false) => Operand::Bf16(Plane::new(rows, columns)?),
            (Format::Int8, ..) => {
                Operand::Int8(Plane::new(rows, columns)?, vec![RowScale::default(); rows])
            }
        };
        Ok(Self { columns, state, operand })
    }
}

impl Arena {
    /// Allocates for `rows` tokens of sequences of up to `max_tokens`, of which queries, keys and
    /// values have room for all even where the rest has not. The pages are touched, and so become
    /// resident, only as batches need them.
    pub(super) fn new(
        kernels: &Kernels,
        format: Format,
        spec: &EncoderSpec,
        rows: usize,
        max_tokens: usize,
    ) -> Result<Self, BackendError> {
        let slot = |slot| Rows::new(format, spec, slot, rows);
        let qkv = Rows::new(format, spec, Slot::Qkv, rows.max(max_tokens))?;
        let attention = if format == Format::F32 { Format::F32 } else { Format::Bf16 };
        let words = kernels.attention_scratch(attention, attention_shape(spec), max_tokens);
        Ok(Self {
            spec: spec.clone(),
            tokens: 0,
            slots: [
                slot(Slot::Hidden)?,
                slot(Slot::Normed)?,
                qkv,
                slot(Slot::Context)?,
                slot(Slot::Inner)?,
            ],
            scratch: Plane::new(1, words)?.data,
            row: vec![0.0; spec.hidden],
            max_tokens,
            shares: None,
        })
    }

    /// A slot.
    pub(super) fn slot(&mut self, slot: Slot) -> &mut Rows {
        &mut self.slots[slot as usize]
    }

    /// The current batch's rows of the hidden state, and how far apart they are.
    pub(super) fn hidden(&mut self) -> (&mut [f32], usize) {
        match &mut self.slots[Slot::Hidden as usize].state {
            State::F32(plane) => {
                let stride = plane.stride;
                (plane.rows_mut(self.tokens), stride)
            }
            State::Bf16(_) => unreachable!("the hidden state is in f32"),
        }
    }

    /// Leaves these rows of the hidden state, which rise, as the only ones.
    pub(super) fn keep(&mut self, chosen: &[usize]) {
        let (hidden, stride) = self.hidden();
        for (to, &from) in chosen.iter().enumerate() {
            hidden.copy_within(from * stride..(from + 1) * stride, to * stride);
        }
        self.tokens = chosen.len();
    }

    /// Two different slots.
    pub(super) fn pair(&mut self, input: Slot, output: Slot) -> (&mut Rows, &mut Rows) {
        assert_ne!(input, output, "one slot cannot be read and written");
        let (input, output) = (input as usize, output as usize);
        let (low, high) = self.slots.split_at_mut(input.max(output));
        match input < output {
            true => (&mut low[input], &mut high[0]),
            false => (&mut high[0], &mut low[output]),
        }
    }

    /// Queries, keys and values; the context to write; and scratch.
    pub(super) fn attention(&mut self) -> (&Rows, &mut Rows, &mut [f32]) {
        let (low, high) = self.slots.split_at_mut(Slot::Context as usize);
        (&low[Slot::Qkv as usize], &mut high[0], &mut self.scratch)
    }
}

/// How the kernels see a row of [`Slot::Qkv`].
pub(super) fn attention_shape(spec: &EncoderSpec) -> AttentionShape {
    AttentionShape { heads: spec.heads, kv_heads: spec.heads, head_dim: spec.head_dim }
}
