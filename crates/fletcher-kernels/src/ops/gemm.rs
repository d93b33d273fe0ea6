//! `y = epilogue(x W^T + b)` with a weight packed once.
//!
//! **Layout.** [`Linear`] holds `W^T` in panels of `TILE_VECTORS * WIDTH` columns: for each 32-bit
//! word of the `k` inputs (one f32, two bf16 or four bytes) the panel's columns side by side,
//! padded with zeros at the right edge, so that the kernel reads the panel as one stream.
//!
//! **Blocking.** Rows are taken in blocks whose inputs stay in L2; for each panel of the weight
//! all tiles of the block pass, so the weight is read once per block. The inner dimension is not
//! blocked: a sum is never stored half-way, and the order of its terms is always the same.
//!
//! **Gates.** For `act(gate) * value` the first vector of a panel holds gate columns and the
//! second the value columns of the same outputs, so both meet in registers.
//!
//! **Bytes.** A weight's row is mixed as its inputs are ([`super::mix`]) and rounded to
//! `-127..=127` steps of its own; an input's row comes with its own step and zero. Sums are exact
//! integers, so `step * step * (sum - zero * sum of weights)` is the product of the rounded
//! operands to f32's precision.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod store;

use std::marker::PhantomData;

use self::store::{Store, Waiting};
use crate::buffer::{AlignedBuffer, LINE, prefetch};
use crate::isa::{Isa, Lanes, TILE_VECTORS};
use crate::number::{Bf16, Element, Format, RowScale};
use crate::ops::activation::Activation;
use crate::ops::quantize;
use crate::ops::tile::{Heights, Lines, MAX_SUMS, Pairs, Product, Quads, Singles, Sums, Tile};

/// Bytes of input that a block of rows may hold: with the panel and the outputs in flight they fit
/// the 1 MiB of L2 that the smaller current server cores have.
const BLOCK_BYTES: usize = 512 << 10;

/// Most inputs of a weight in [`Format::Int8`]: so many products of 255 and 127 fit 32 bits.
pub const INT8_INPUTS_MAX: usize = i32::MAX as usize / (255 * 127);

/// A matrix to be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Output features: rows of the weight.
    pub rows: usize,
    /// Input features: columns of the weight.
    pub cols: usize,
    /// Whether the first half of the rows gates the second.
    pub gated: bool,
}

/// A weight packed for one instruction set and format.
#[derive(Debug)]
pub struct Linear {
    pub(crate) isa: Isa,
    pub(crate) shape: LinearShape,
    format: Format,
    /// Panels of words, see the module's documentation.
    weight: AlignedBuffer,
    /// One per packed column; zeros where there is no bias.
    bias: AlignedBuffer,
    /// In bytes, the value of one step of each packed column; else empty.
    steps: AlignedBuffer,
    /// In bytes, the sum of each packed column; else empty.
    totals: AlignedBuffer,
}

impl Linear {
    /// Output features: half of the weight's rows when gated.
    pub fn outputs(&self) -> usize {
        self.shape.rows >> u8::from(self.shape.gated)
    }

    /// Input features.
    pub fn inputs(&self) -> usize {
        self.shape.cols
    }

    /// The format of the weight and of its inputs.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Packs a row-major weight of `shape.rows x shape.cols`.
    pub(crate) fn pack<L: Lanes>(
        isa: Isa,
        format: Format,
        shape: LinearShape,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Self {
        assert!(shape.cols > 0 && shape.rows > 0, "an empty matrix: {shape:?}");
        assert!(!shape.gated || shape.rows.is_multiple_of(2), "half of the rows gate: {shape:?}");
        assert_eq!(Some(weight.len()), shape.rows.checked_mul(shape.cols), "weights: {shape:?}");
        assert!(bias.is_none_or(|bias| bias.len() == shape.rows), "biases: {shape:?}");
        let fits = format != Format::Int8 || shape.cols <= INT8_INPUTS_MAX;
        assert!(fits, "sums of {} products of bytes", shape.cols);
        let panel = L::WIDTH * TILE_VECTORS;
        let columns = packed_columns::<L>(shape);
        let words = isa.packed_words(format, shape.cols);
        let mut packed = AlignedBuffer::new(columns.len() * words);
        let byte_columns = if format == Format::Int8 { columns.len() } else { 0 };
        let mut steps = AlignedBuffer::new(byte_columns);
        let mut totals = AlignedBuffer::new(byte_columns);
        let (mut mixed, mut bytes) = (Vec::new(), Vec::new());
        for (column, row) in columns.iter().enumerate() {
            let Some(row) = *row else { continue };
            let source = &weight[row * shape.cols..(row + 1) * shape.cols];
            let first = column / panel * panel * words + column % panel;
            let slots = packed[first..].iter_mut().step_by(panel);
            match format {
                Format::F32 => slots.zip(source).for_each(|(slot, value)| *slot = *value),
                Format::Bf16 => {
                    for (slot, pair) in slots.zip(source.chunks(2)) {
                        let half = |at: usize| {
                            u32::from(pair.get(at).map_or(0, |&value| Bf16::from_f32(value).0))
                        };
                        *slot = f32::from_bits(half(0) | half(1) << 16);
                    }
                }
                Format::Int8 => {
                    steps[column] = quantize::round_weight(source, &mut mixed, &mut bytes);
                    // Exact: a row that is not absurdly long sums to less than 2^24.
                    totals[column] = bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>() as f32;
                    for (slot, quad) in slots.zip(bytes.chunks(4)) {
                        let byte = |at| quad.get(at).map_or(0, |&value| value as u8);
                        let bytes = std::array::from_fn(byte);
                        *slot = f32::from_bits(u32::from_le_bytes(bytes));
                    }
                }
            }
        }
        let mut packed_bias = AlignedBuffer::new(columns.len());
        for (out, row) in packed_bias.iter_mut().zip(&columns) {
            *out = row.zip(bias).map_or(0.0, |(row, bias)| bias[row]);
        }
        Self { isa, shape, format, weight: packed, bias: packed_bias, steps, totals }
    }

    /// Words of a packed row.
    #[cfg(target_arch = "x86_64")]
    fn packed_words(&self) -> usize {
        self.isa.packed_words(self.format, self.shape.cols)
    }

    /// Words of an input's row.
    fn words(&self) -> usize {
        self.shape.cols.div_ceil(self.format.per_word())
    }
}

/// Which row of the weight each packed column holds; `None` pads.
fn packed_columns<L: Lanes>(shape: LinearShape) -> Vec<Option<usize>> {
    let panel = L::WIDTH * TILE_VECTORS;
    let keep = |row: usize, end: usize| (row < end).then_some(row);
    if !shape.gated {
        let padded = shape.rows.next_multiple_of(panel);
        return (0..padded).map(|row| keep(row, shape.rows)).collect();
    }
    let (half, outputs) = (panel / 2, shape.rows / 2);
    (0..outputs.div_ceil(half) * panel)
        .map(|column| {
            let output = column / panel * half + column % half;
            let value = column % panel >= half;
            keep(output, outputs).map(|row| if value { row + outputs } else { row })
        })
        .collect()
}

/// What happens to the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// `y = act(sum)`.
    Activate(Activation),
    /// `y += sum`.
    Accumulate,
    /// `y = act(gate sum) * value sum`, for a weight packed with `gated`.
    Gate(Activation),
}

/// Rows to multiply, in the format of the weight.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// For [`Format::F32`].
    F32(&'a [f32]),
    /// For [`Format::Bf16`]. With an odd number of columns, the element behind a row is read too
    /// and must be finite; it counts as 0.
    Bf16(&'a [Bf16]),
    /// For [`Format::Int8`]. Up to three bytes behind a row are read, and count as 0.
    Int8 {
        /// The rows.
        bytes: &'a [u8],
        /// What they mean, one per row.
        scales: &'a [RowScale],
    },
}

impl Input<'_> {
    fn format(&self) -> Format {
        match self {
            Input::F32(_) => Format::F32,
            Input::Bf16(_) => Format::Bf16,
            Input::Int8 { .. } => Format::Int8,
        }
    }

    /// The first byte.
    fn start(&self) -> *const u8 {
        match self {
            Input::F32(data) => data.as_ptr().cast(),
            Input::Bf16(data) => data.as_ptr().cast(),
            Input::Int8 { bytes, .. } => bytes.as_ptr(),
        }
    }
}

/// Rows to write.
#[derive(Debug)]
pub enum Output<'a> {
    /// In single precision.
    F32(&'a mut [f32]),
    /// Rounded; not for [`Epilogue::Accumulate`], whose sums must not be rounded on the way.
    Bf16(&'a mut [Bf16]),
}

/// The operands of one product.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// The packed weight.
    pub linear: &'a Linear,
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// `rows` rows of [`Linear::inputs`] columns …
    pub x: Input<'a>,
    /// … that are this many elements apart.
    pub x_stride: usize,
    /// `rows` rows of [`Linear::outputs`] columns …
    pub y: Output<'a>,
    /// … that are this many elements apart.
    pub y_stride: usize,
    /// Applied to the sums.
    pub epilogue: Epilogue,
}

impl Gemm<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self, isa: Isa) {
        let (linear, rows) = (self.linear, self.rows);
        assert_eq!(linear.isa, isa, "a weight packed for another instruction set");
        assert_eq!(linear.format, self.x.format(), "a weight packed for another format");
        let gate = matches!(self.epilogue, Epilogue::Gate(_));
        assert_eq!(gate, linear.shape.gated, "gated weights and only those are gated");
        let columns = linear.words() * linear.format.per_word();
        match &self.x {
            Input::F32(x) => check_rows(x, rows, columns, self.x_stride),
            Input::Bf16(x) => check_rows(x, rows, columns, self.x_stride),
            Input::Int8 { bytes, scales } => {
                check_rows(bytes, rows, columns, self.x_stride);
                assert!(scales.len() >= rows, "{} scales of {rows}", scales.len());
            }
        }
        match &self.y {
            Output::F32(y) => check_rows(y, rows, linear.outputs(), self.y_stride),
            Output::Bf16(y) => {
                assert_ne!(self.epilogue, Epilogue::Accumulate, "a residual sum is kept in f32");
                check_rows(y, rows, linear.outputs(), self.y_stride);
            }
        }
    }
}

/// Asserts that `data` holds `rows` rows of `columns` that are `stride` apart.
pub(crate) fn check_rows<T>(data: &[T], rows: usize, columns: usize, stride: usize) {
    assert!(columns <= stride, "rows of {columns} columns overlap at {stride}");
    let needed = rows.saturating_sub(1).saturating_mul(stride).saturating_add(columns);
    assert!(rows == 0 || data.len() >= needed, "{} elements of {needed}", data.len());
}

/// Runs a product.
///
/// # Safety
/// The CPU has the instruction set of `L`, and [`Gemm::check`] has passed for it.
#[inline(always)]
pub(crate) unsafe fn gemm<L: Lanes>(g: &mut Gemm<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        let scales = match g.x {
            Input::Int8 { scales, .. } => scales.as_ptr(),
            _ => std::ptr::null(),
        };
        match (g.linear.format, &mut g.y) {
            (Format::F32, Output::F32(y)) => tiles::<L, f32, Singles>(y.as_mut_ptr(), scales, g),
            (Format::F32, Output::Bf16(y)) => tiles::<L, Bf16, Singles>(y.as_mut_ptr(), scales, g),
            (Format::Bf16, Output::F32(y)) => tiles::<L, f32, Pairs>(y.as_mut_ptr(), scales, g),
            (Format::Bf16, Output::Bf16(y)) => tiles::<L, Bf16, Pairs>(y.as_mut_ptr(), scales, g),
            (Format::Int8, Output::F32(y)) => tiles::<L, f32, Quads>(y.as_mut_ptr(), scales, g),
            (Format::Int8, Output::Bf16(y)) => tiles::<L, Bf16, Quads>(y.as_mut_ptr(), scales, g),
        }
    }
}

/// Runs all tiles, each with its epilogue.
///
/// # Safety
/// As [`gemm`]; `y` is the output's first element, `P` the weight's format, and `scales` the
/// input's, in bytes.
#[inline(always)]
unsafe fn tiles<L: Lanes, E: Element, P: Product>(
    y: *mut E,
    scales: *const RowScale,
    g: &Gemm<'_>,
) {
    const { assert!(L::TILE_ROWS * L::WIDTH * TILE_VECTORS <= MAX_SUMS) }
    let linear = g.linear;
    let panel = L::WIDTH * TILE_VECTORS;
    let outputs = linear.outputs();
    let step = if linear.shape.gated { L::WIDTH } else { panel };
    let block = (BLOCK_BYTES / (4 * linear.words())).next_multiple_of(L::TILE_ROWS);
    let beside = Waiting::<E, P>::suits::<L>(g);
    let most = if beside { L::BESIDE_ROWS } else { L::TILE_ROWS };
    let mut sums = [Sums([0.0; MAX_SUMS]), Sums([0.0; MAX_SUMS])];
    let (mut waiting, mut turn) = (Waiting::none(), 0);
    let mut start = 0;
    while start < g.rows {
        let rows = block.min(g.rows - start);
        for (p, weight) in linear.weight.chunks_exact(panel * linear.words()).enumerate() {
            let columns = step.min(outputs - p * step);
            let narrow = !linear.shape.gated && columns <= L::WIDTH;
            let vectors = if narrow { 1 } else { TILE_VECTORS };
            let (mut row, mut heights) = (start, Heights::at_most(most, rows));
            let tiles = heights.tiles();
            let mut ahead = Ahead::new(&linear.weight, weight.len(), (p + 1, tiles), beside);
            while let Some(height) = heights.next() {
                let lines = match beside {
                    true => ahead.at_once(),
                    false => ahead.by_step(linear.words()),
                };
                // SAFETY: rows row..row+height are inside x and y, columns p*step.. inside y, the
                // panel holds k words of its width, and the sums fit MAX_SUMS.
                unsafe {
                    let product = tile_of(g, weight, (row, height), vectors, lines);
                    let at = p * panel;
                    let store = Store::<E, P> {
                        sums: sums[turn].0.as_mut_ptr(),
                        bias: linear.bias.as_ptr().add(at),
                        steps: linear.steps.as_ptr().wrapping_add(at),
                        totals: linear.totals.as_ptr().wrapping_add(at),
                        scales: scales.wrapping_add(row),
                        rows: height,
                        columns,
                        y: y.add(row * g.y_stride + p * step),
                        stride: g.y_stride,
                        product: PhantomData,
                    };
                    if beside {
                        waiting.run::<L>(&product, store);
                        turn ^= 1;
                    } else {
                        store.run::<L>(&product, g.epilogue);
                    }
                }
                row += height;
            }
        }
        start += rows;
    }
    // SAFETY: the sums that wait are those of the last tile.
    unsafe { waiting.finish::<L>() }
}

/// Bytes of a panel beside which the next one has room in the common first-level caches.
const AHEAD_PANEL_BYTES_MAX: usize = 16 << 10;
/// Bytes of a weight from which on a model's weights do not stay in a second-level cache: those of
/// smaller ones are there already.
const AHEAD_WEIGHT_BYTES_MIN: usize = 128 << 10;

/// Tiles of a panel from which on their time is enough to fetch another in: with one, of a short
/// text's few rows, asking held the products up by a sixth.
const AHEAD_TILES_MIN: usize = 4;

/// The next panel, asked for while the tiles of the present one are multiplied: it is in the cache
/// that all cores share as often as not, and in f32 not even there.
///
/// A line with each step of a product is a fortieth of MiniLM's time less in int8, and in the wider
/// formats a fiftieth while one core is at it and nothing while both are. Where other work stands
/// between the steps already, they have no room for that: then a part of the panel is asked for in
/// front of each tile, if it has room beside the present one. Asked for so, larger panels only made
/// others' lines leave, by 3 to 7 %.
struct Ahead<'a> {
    rest: &'a [f32],
    part: usize,
}

impl<'a> Ahead<'a> {
    /// Asks for the panel of this number while there are so many tiles, some with other work.
    #[inline(always)]
    fn new(weight: &'a [f32], panel: usize, (number, tiles): (usize, usize), beside: bool) -> Self {
        let wanted = tiles >= AHEAD_TILES_MIN
            && size_of_val(weight) >= AHEAD_WEIGHT_BYTES_MIN
            && (!beside || panel * size_of::<f32>() <= AHEAD_PANEL_BYTES_MAX);
        let next = weight.get(number * panel..(number + 1) * panel).filter(|_| wanted);
        let part = panel.div_ceil(tiles.max(1)).next_multiple_of(LINE / size_of::<f32>());
        Self { rest: next.unwrap_or(&[]), part }
    }

    /// Asks for the next tile's part.
    #[inline(always)]
    fn at_once(&mut self) -> Option<Lines> {
        let (part, rest) = self.rest.split_at(self.part.min(self.rest.len()));
        prefetch(part);
        self.rest = rest;
        None
    }

    /// Lines for a product of so many steps to ask for.
    #[inline(always)]
    fn by_step(&mut self, steps: usize) -> Option<Lines> {
        let lines = (!self.rest.is_empty()).then(|| Lines::from(self.rest.as_ptr().cast()));
        let asked = steps.saturating_mul(LINE / size_of::<f32>());
        self.rest = &self.rest[asked.min(self.rest.len())..];
        lines
    }
}

/// The product of so many rows, from the first, and one panel.
///
/// # Safety
/// The rows exist, and the panel is one of the weight's.
#[inline(always)]
unsafe fn tile_of(
    g: &Gemm<'_>,
    panel: &[f32],
    (row, rows): (usize, usize),
    vectors: usize,
    ahead: Option<Lines>,
) -> Tile {
    let k = g.linear.words();
    let a_stride = g.x_stride * size_of::<f32>() / g.linear.format.per_word();
    // SAFETY: the caller guarantees the row.
    let a = unsafe { g.x.start().add(row * a_stride) };
    Tile { rows, vectors, k, a, a_stride, b: panel.as_ptr(), b_stride: panel.len() / k, ahead }
}
