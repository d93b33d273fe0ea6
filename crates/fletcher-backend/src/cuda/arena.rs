//! One worker's stream, activations and page-locked buffers, allocated once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fletcher_core::backend::{BackendError, Slot};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::{EncoderSpec, learned_rows};

use super::device::{Device, DeviceBuffer, Pinned, Stream};
use super::kernels::{FeedForwardTiles, Format, TILE};
use super::rowwise::feedforward_takes;
use super::small::Pending;
use super::stride;
use super::tensor_map::{Matrix, TensorMap};

/// Words of the batch's header: `struct Batch` in `kernels/common.cuh`.
const HEADER_WORDS: usize = 12;
/// Queries of an item of attention's work, and of one of `flash_attention`'s.
const ITEM_QUERIES: usize = 64;
const FLASH_QUERIES: usize = 128;
/// Most bytes of results that come back in one piece.
const OUTPUT_BYTES: usize = 8 << 20;

/// The activation slots of one worker.
#[derive(Debug)]
pub struct Arena {
    // First, so that it is dropped, and waited for, before what its work uses.
    pub(super) stream: Stream,
    pub(super) spec: EncoderSpec,
    /// Of the current batch.
    pub(super) tokens: usize,
    /// Of the current batch: pieces of queries of one sequence.
    pub(super) items: usize,
    /// Whether these are `flash_attention`'s.
    pub(super) flash: bool,
    /// Where the longest sequence has more tokens, batches are staged for that kernel; none where
    /// it does not take the model.
    flash_longer_than: Option<usize>,
    /// Of the current batch: tiles of whole sequences, as many as fit into [`TILE`] rows; 0 where
    /// one is longer.
    pub(super) sequence_tiles: usize,
    /// In the order of [`Slot`].
    slots: [DeviceBuffer; 5],
    /// The slots' tiles of 128 rows, where there are kernels that read such.
    maps: Option<[TensorMap; 5]>,
    /// Those of context, state and queries as the `feedforward` kernel has them, if it may be that
    /// kernel's to run.
    pub(super) tiles: Option<[TensorMap; 3]>,
    /// The batch as the kernels read it …
    batch: DeviceBuffer,
    /// … from this word on.
    batch_at: usize,
    /// The word from which on the batch is one token of each sequence, as it is to be behind the
    /// last attention, if no other token's state is wanted, and how many these are.
    kept: Option<(usize, usize)>,
    /// The batch on its way to the card.
    pub(super) staging: Pinned,
    /// Results on their way back.
    pub(super) output: Pinned,
    /// The same on the card, for results that are too large for kernels to write to the host.
    pub(super) pooled: DeviceBuffer,
    /// Values that fit into `output`.
    pub(super) output_values: usize,
    /// A batch that the small encoder's kernel will run when it is known what is wanted of it.
    pub(super) pending: Option<Pending>,
    /// The current batch's share of what the card has to do.
    pub(super) load: Option<Load>,
    /// Batches like its own that the card had to do when it began, its own included.
    pub(super) in_flight: usize,
    max_tokens: usize,
    /// Rows of each slot: those of the plan and, to whole tiles, unused ones.
    pub(super) slot_rows: usize,
}

impl Arena {
    /// Allocates for `max_tokens` tokens, of which one sequence may hold all; batches whose longest
    /// sequence has more than `flash_longer_than` tokens are staged for `flash_attention`.
    pub(super) fn new(
        device: &Arc<Device>,
        spec: &EncoderSpec,
        format: Format,
        max_tokens: usize,
        flash_longer_than: Option<usize>,
    ) -> Result<Self, BackendError> {
        let slot_rows = max_tokens.next_multiple_of(TILE);
        let slot = |slot| {
            let bytes = slot_rows.saturating_mul(stride(width(spec, slot)) * format.bytes());
            device.allocate(bytes, "a worker's activations")
        };
        // Ids, positions, places, ends, offsets, tiles, four words for each item of work, and the
        // tokens and offsets of what is kept; of each of these there are at most as many as tokens.
        let words = 2 * HEADER_WORDS + 12 * max_tokens + 64;
        let slots = [
            slot(Slot::Hidden)?,
            slot(Slot::Normed)?,
            slot(Slot::Qkv)?,
            slot(Slot::Context)?,
            slot(Slot::Inner)?,
        ];
        let matrix = |of: Slot| {
            let (address, cols) = (slots[of as usize].address(), stride(width(spec, of)));
            Matrix { address, rows: max_tokens, cols, format }
        };
        let map = |of| device.tensor_map(matrix(of), TILE);
        let hopper = device.limits().capability.0 == 9;
        let tiles = match hopper && format != Format::F32 && feedforward_takes(spec) {
            true => {
                let tiles = |of| FeedForwardTiles::rows(device, matrix(of));
                Some([tiles(Slot::Context)?, tiles(Slot::Hidden)?, tiles(Slot::Qkv)?])
            }
            false => None,
        };
        let maps = match hopper {
            true => Some([
                map(Slot::Hidden)?,
                map(Slot::Normed)?,
                map(Slot::Qkv)?,
                map(Slot::Context)?,
                map(Slot::Inner)?,
            ]),
            false => None,
        };
        let rows = (OUTPUT_BYTES / (4 * spec.hidden)).clamp(1, max_tokens);
        Ok(Self {
            stream: device.stream()?,
            spec: spec.clone(),
            tokens: 0,
            items: 0,
            flash: false,
            flash_longer_than,
            sequence_tiles: 0,
            slots,
            maps,
            tiles,
            batch: device.allocate(4 * words, "a worker's batch")?,
            batch_at: 0,
            kept: None,
            staging: device.allocate_pinned(4 * words)?,
            output: device.allocate_pinned(4 * rows * spec.hidden)?,
            pooled: device.allocate(4 * rows * spec.hidden, "a worker's vectors")?,
            output_values: rows * spec.hidden,
            load: None,
            in_flight: 1,
            pending: None,
            max_tokens,
            slot_rows,
        })
    }

    /// Bytes on the card for each token, for plans.
    pub(super) fn bytes_per_token(spec: &EncoderSpec, format: Format) -> usize {
        let slots = [Slot::Hidden, Slot::Normed, Slot::Qkv, Slot::Context, Slot::Inner];
        let widths: usize = slots.into_iter().map(|slot| stride(width(spec, slot))).sum();
        widths * format.bytes() + 48
    }

    /// A slot's address.
    pub(super) fn slot(&self, slot: Slot) -> u64 {
        self.slots[slot as usize].address()
    }

    /// Where the kernels find the batch.
    pub(super) fn batch_address(&self) -> u64 {
        self.batch.address() + 4 * self.batch_at as u64
    }

    /// Whether one token of each sequence is all that is wanted behind the last attention.
    pub(super) fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    /// Goes on with these tokens alone, whose rows are to be the slots' first; tells where the
    /// kernels find them as a batch.
    pub(super) fn go_on_with_kept(&mut self) -> Option<u64> {
        let (at, tokens) = self.kept.take()?;
        (self.batch_at, self.tokens) = (at, tokens);
        Some(self.batch_address())
    }

    /// A slot's tiles.
    pub(super) fn map(&self, slot: Slot) -> Option<TensorMap> {
        self.maps.map(|maps| maps[slot as usize])
    }

    /// Elements from one row of a slot to the next.
    pub(super) fn stride(&self, slot: Slot) -> usize {
        stride(width(&self.spec, slot))
    }

    /// Lays a batch out and sends it to the card, with the tokens that are kept behind the last
    /// attention.
    pub(super) fn stage(
        &mut self,
        batch: &PackedBatch,
        position_offset: usize,
        kept: Option<&[usize]>,
    ) -> Result<(), BackendError> {
        assert!(batch.tokens() <= self.max_tokens, "the batch is larger than the plan");
        // What the last batch's copy or kernel still reads may not change.
        self.stream.wait()?;
        let (tokens, rows) = (batch.tokens(), batch.rows());
        let words = self.staging.words();
        let mut end = HEADER_WORDS;
        let mut part = |length: usize| {
            end += length;
            end - length
        };
        let (ids, positions, places) = (part(tokens), part(tokens), part(tokens));
        let ends = part(tokens);
        let (offsets, starts, end) = (part(rows + 1), part(rows + 1), part(0));
        let work = end.next_multiple_of(4); // items are read as 16 bytes
        words[ids..ids + tokens].copy_from_slice(batch.ids());
        let mut item = work;
        let (mut tiles, mut tile_end) = (0, 0);
        let longest = batch.sequences().map(|sequence| sequence.len()).max().unwrap_or(0);
        self.flash = self.flash_longer_than.is_some_and(|tokens| longest > tokens);
        let item_queries = if self.flash { FLASH_QUERIES } else { ITEM_QUERIES };
        for (row, sequence) in batch.sequences().enumerate() {
            if sequence.end > tile_end {
                words[starts + tiles] = sequence.start as u32;
                (tiles, tile_end) = (tiles + 1, sequence.start + TILE);
            }
            words[offsets + row] = sequence.start as u32;
            let learned = learned_rows(&batch.ids()[sequence.clone()], position_offset);
            for ((place, token), position) in sequence.clone().enumerate().zip(learned) {
                words[positions + token] = position as u32;
                words[places + token] = place as u32;
            }
            words[ends + sequence.start..ends + sequence.end].fill(sequence.end as u32);
            for query in (0..sequence.len()).step_by(item_queries) {
                words[item] = sequence.start as u32;
                words[item + 1] = sequence.len() as u32;
                words[item + 2] = query as u32;
                item += 4;
            }
        }
        words[offsets + rows] = tokens as u32;
        words[starts + tiles] = tokens as u32;
        self.sequence_tiles = if longest <= TILE { tiles } else { 0 };
        self.items = (item - work) / 4;
        self.tokens = tokens;
        let counts = [tokens, rows, self.items, self.sequence_tiles];
        let parts = [ids, positions, places, offsets, work, ends, starts];
        for (word, value) in words.iter_mut().zip(counts.into_iter().chain(parts)) {
            *word = value as u32;
        }
        self.batch_at = 0;
        self.kept = kept.map(|kept| (item, kept.len()));
        if let Some(kept) = kept {
            let header = [kept.len(), kept.len(), 0, 0, HEADER_WORDS, 0, 0];
            let offsets = HEADER_WORDS + kept.len();
            let all = header.into_iter().chain([offsets, 0, 0, 0, 0]);
            let all = all.chain(kept.iter().copied()).chain(0..=kept.len());
            for value in all {
                words[item] = value as u32;
                item += 1;
            }
        }
        // SAFETY: the staging buffer is not touched before the wait at the next batch.
        unsafe { self.stream.upload(&self.batch, &self.staging, 4 * item) }
    }
}

/// Tokens that are being encoded, by all arenas together.
#[derive(Debug, Clone, Default)]
pub(super) struct Loads(Arc<AtomicUsize>);

/// A batch's share of [`Loads`], until it is dropped.
#[derive(Debug)]
pub(super) struct Load {
    all: Loads,
    tokens: usize,
}

impl Loads {
    /// Adds a batch; also tells all tokens, those of the batch among them.
    pub(super) fn add(&self, tokens: usize) -> (Load, usize) {
        let before = self.0.fetch_add(tokens, Ordering::Relaxed);
        (Load { all: self.clone(), tokens }, before + tokens)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.tokens, Ordering::Relaxed);
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
