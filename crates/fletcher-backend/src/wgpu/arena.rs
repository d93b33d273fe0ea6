//! One worker's activations on the device, and the commands of the batch that it is at work on.
//!
//! Everything is allocated when the arena is planned: the slots, the batch's description, the
//! pooled vectors and the buffer they come back through. Operations only record: a batch is one
//! write of its description, one command buffer, one submission and one wait, since what a GPU
//! API charges for is the number of those. (A command buffer cannot be submitted twice through
//! wgpu, so recording is paid for each batch; it is a dozen small calls a layer.)

use std::sync::Arc;
use std::sync::mpsc;

use fletcher_core::backend::{BackendError, Slot};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{EncoderSpec, learned_rows};

use super::device::Gpu;
use super::profile::{Timer, Work};
use super::shader::{Element, Kernel, QUERIES};

/// Rows of a slot come in whole tiles of the largest GEMM, with as many to spare, because tiles of
/// keys may begin anywhere.
const ROW_TILE: usize = 256;
/// Queries of a workgroup of the attentions: of the plain one and the cooperative ones.
const QUERY_TILES: [usize; 2] = [QUERIES, 2 * QUERIES];
/// A row takes a multiple of this many elements: the longest step of a GEMM over its input.
const STRIDE_UNIT: usize = 32;

/// Elements from one row to the next, for rows of `width` columns. The ones behind the last column
/// are always zero: every kernel that writes a row keeps them so.
pub(super) fn stride(width: usize) -> usize {
    width.next_multiple_of(STRIDE_UNIT)
}

/// Columns of a slot.
pub(super) fn width(spec: &EncoderSpec, slot: Slot) -> usize {
    match slot {
        Slot::Hidden | Slot::Normed => spec.hidden,
        Slot::Qkv => spec.qkv_width(),
        Slot::Context => spec.context_width(),
        Slot::Inner => spec.intermediate,
    }
}

/// Bytes of all slots for one token.
pub(super) fn bytes_per_token(spec: &EncoderSpec, element: Element) -> usize {
    let slots = [Slot::Hidden, Slot::Normed, Slot::Qkv, Slot::Context, Slot::Inner];
    slots.iter().map(|&slot| stride(width(spec, slot)) * element.bytes()).sum()
}

/// A buffer that a kernel reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Slot(Slot),
    Pooled,
}

/// Where the parts of the batch's description begin, in words.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BatchLayout {
    pub(super) tokens: usize,
    /// `rows + 1` sequence offsets.
    pub(super) offsets: usize,
    /// Three words for each tile of queries: its sequence's first token and length, and the
    /// tile's first query. Once for each of [`QUERY_TILES`].
    pub(super) tiles: [usize; 2],
    pub(super) tile_counts: [usize; 2],
    /// Of a token with one of its sequence.
    pub(super) pairs: usize,
}

/// One kernel over the batch.
pub(super) struct Launch<'a> {
    pub(super) kernel: Kernel,
    pub(super) pipeline: &'a wgpu::ComputePipeline,
    pub(super) input: Place,
    pub(super) output: Place,
    pub(super) parameters: &'a wgpu::BindGroup,
    pub(super) immediates: &'a [u32],
    /// Workgroups.
    pub(super) grid: [usize; 3],
    pub(super) work: Work,
}

struct Recording {
    encoder: wgpu::CommandEncoder,
    pass: wgpu::ComputePass<'static>,
}

/// The activation slots of one worker.
pub struct Arena {
    gpu: Arc<Gpu>,
    pub(super) spec: EncoderSpec,
    pub(super) batch: BatchLayout,
    max_tokens: usize,
    /// In the order of [`Slot`].
    slots: [wgpu::Buffer; 5],
    pooled: wgpu::Buffer,
    description: wgpu::Buffer,
    returned: wgpu::Buffer,
    /// Made when first needed; a model uses about ten pairs.
    bindings: Vec<((Place, Place), wgpu::BindGroup)>,
    recording: Option<Recording>,
    /// The description of the batch, and the same as bytes.
    words: Vec<u32>,
    bytes: Vec<u8>,
    /// Where the device is profiled.
    timer: Option<Timer>,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena").field("max_tokens", &self.max_tokens).finish_non_exhaustive()
    }
}

impl Arena {
    pub(super) fn new(
        gpu: Arc<Gpu>,
        spec: &EncoderSpec,
        max_tokens: usize,
    ) -> Result<Self, BackendError> {
        let grid = gpu.device.limits().max_compute_workgroups_per_dimension as usize;
        if max_tokens > grid {
            let message =
                format!("a batch of {max_tokens} tokens; the device's grids end at {grid}");
            return Err(gpu.failure(message));
        }
        let rows = max_tokens.next_multiple_of(ROW_TILE) + ROW_TILE;
        use wgpu::BufferUsages as Usage;
        let device_only = Usage::STORAGE | Usage::COPY_SRC;
        let slot = |slot| {
            let bytes = rows * stride(width(spec, slot)) * gpu.target.element.bytes();
            gpu.buffer("a worker's activations", bytes, device_only)
        };
        let slots = [
            slot(Slot::Hidden)?,
            slot(Slot::Normed)?,
            slot(Slot::Qkv)?,
            slot(Slot::Context)?,
            slot(Slot::Inner)?,
        ];
        // A sequence has at least one token, so there are no more rows than tokens.
        let pooled = max_tokens * spec.hidden * size_of::<f32>();
        let returned = pooled.max(slots[Slot::Hidden as usize].size() as usize);
        let tiles = QUERY_TILES.map(|queries| max_tokens + max_tokens / queries + 1);
        let words = 4 * max_tokens + 1 + 3 * tiles.iter().sum::<usize>();
        let description = words * size_of::<u32>();
        Ok(Self {
            spec: spec.clone(),
            batch: BatchLayout::default(),
            max_tokens,
            pooled: gpu.buffer("a worker's vectors", pooled, device_only)?,
            description: gpu.buffer(
                "a batch's description",
                description,
                Usage::STORAGE | Usage::COPY_DST,
            )?,
            returned: gpu.buffer(
                "a worker's results",
                returned,
                Usage::MAP_READ | Usage::COPY_DST,
            )?,
            slots,
            bindings: Vec::new(),
            recording: None,
            words: Vec::with_capacity(words),
            bytes: Vec::with_capacity(description),
            timer: gpu.profile.as_ref().map(|_| Timer::new(&gpu)).transpose()?,
            gpu,
        })
    }

    /// Elements from one row of a slot to the next.
    pub(super) fn stride(&self, slot: Slot) -> usize {
        stride(width(&self.spec, slot))
    }

    /// Describes a batch to the device and forgets what was recorded of another.
    pub(super) fn begin(&mut self, batch: &PackedBatch, position_offset: usize) {
        assert!(batch.tokens() <= self.max_tokens, "the batch is larger than was planned for");
        self.recording = None;
        let tokens = batch.tokens();
        let words = &mut self.words;
        words.clear();
        words.extend_from_slice(batch.ids());
        for sequence in batch.sequences() {
            let rows = learned_rows(&batch.ids()[sequence], position_offset);
            words.extend(rows.map(|row| row as u32));
        }
        for sequence in batch.sequences() {
            words.extend(0..sequence.len() as u32);
        }
        let offsets = words.len();
        words.extend(batch.offsets().iter().map(|&offset| offset as u32));
        let (mut tiles, mut tile_counts) = ([0; 2], [0; 2]);
        for (index, queries) in QUERY_TILES.into_iter().enumerate() {
            tiles[index] = words.len();
            for sequence in batch.sequences() {
                for first in (0..sequence.len()).step_by(queries) {
                    words.extend([sequence.start as u32, sequence.len() as u32, first as u32]);
                }
            }
            tile_counts[index] = (words.len() - tiles[index]) / 3;
        }
        let pairs = batch.sequences().map(|sequence| sequence.len().pow(2)).sum();
        self.batch = BatchLayout { tokens, offsets, tiles, tile_counts, pairs };
        self.bytes.resize(words.len() * size_of::<u32>(), 0);
        for (to, word) in self.bytes.chunks_exact_mut(size_of::<u32>()).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        self.gpu.queue.write_buffer(&self.description, 0, &self.bytes);
    }

    /// Records one kernel over the batch.
    pub(super) fn record(&mut self, launch: Launch<'_>) {
        let rows = self.binding(launch.input, launch.output);
        let (gpu, timer) = (&self.gpu, &mut self.timer);
        let Recording { pass, .. } = self.recording.get_or_insert_with(|| {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
            if let Some(timer) = timer {
                timer.begin(&mut pass);
            }
            Recording { encoder, pass }
        });
        let mut bytes = [0u8; 32];
        for (to, word) in bytes.chunks_exact_mut(4).zip(launch.immediates) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        pass.set_pipeline(launch.pipeline);
        pass.set_bind_group(0, &self.bindings[rows].1, &[]);
        pass.set_bind_group(1, launch.parameters, &[]);
        pass.set_immediates(0, &bytes[..4 * launch.immediates.len()]);
        let [x, y, z] = launch.grid.map(|size| size as u32);
        pass.dispatch_workgroups(x, y, z);
        if let Some(timer) = &mut self.timer {
            let Launch { kernel, input, output, .. } = launch;
            timer.after(pass, format!("{kernel:?} {input:?} {output:?}"), launch.work);
        }
    }

    /// Which of the bindings holds the pair.
    fn binding(&mut self, input: Place, output: Place) -> usize {
        let pair = (input, output);
        if let Some(known) = self.bindings.iter().position(|(of, _)| *of == pair) {
            return known;
        }
        let group = self.gpu.rows(self.buffer(input), self.buffer(output), &self.description);
        self.bindings.push((pair, group));
        self.bindings.len() - 1
    }

    fn buffer(&self, place: Place) -> &wgpu::Buffer {
        match place {
            Place::Slot(slot) => &self.slots[slot as usize],
            Place::Pooled => &self.pooled,
        }
    }

    /// Submits what was recorded, waits, and hands the first `bytes` of a buffer to `read`.
    pub(super) fn finish<R>(
        &mut self,
        place: Place,
        bytes: usize,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, BackendError> {
        let mut encoder = match self.recording.take() {
            // The pass ends where it is dropped.
            Some(Recording { encoder, pass: _ }) => encoder,
            None => self.gpu.device.create_command_encoder(&Default::default()),
        };
        let bytes = bytes as u64;
        encoder.copy_buffer_to_buffer(self.buffer(place), 0, &self.returned, 0, bytes);
        if let Some(timer) = &self.timer {
            timer.resolve(&mut encoder);
        }
        self.gpu.queue.submit([encoder.finish()]);
        let (sender, receiver) = mpsc::channel();
        let range = self.returned.slice(..bytes);
        range.map_async(wgpu::MapMode::Read, move |result| {
            // A receiver that gave up needs no answer.
            let _ = sender.send(result);
        });
        let mapped = self.gpu.wait(&receiver)?;
        mapped.map_err(|e| self.gpu.failure(e.to_string()))?;
        let result = {
            let view = range.get_mapped_range().map_err(|e| self.gpu.failure(e.to_string()))?;
            read(&view)
        };
        self.returned.unmap();
        if let (Some(timer), Some(profile)) = (&self.timer, &self.gpu.profile) {
            timer.collect(&self.gpu, profile)?;
        }
        self.gpu.check().map(|()| result)
    }
}
