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

use std::marker::PhantomData;

use crate::buffer::AlignedBuffer;
use crate::isa::{Isa, Kernel, Lanes, TILE_VECTORS};
use crate::number::{Bf16, Element, Format, RowScale};
use crate::ops::activation::{Activation, Function, with_function};
use crate::ops::quantize;
use crate::ops::tile::{
    self, Heights, MAX_SUMS, Multiply, Pairs, Product, Quads, Singles, Sink, Sums, Tile, Words,
};

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
    let (k, outputs) = (linear.words(), linear.outputs());
    let step = if linear.shape.gated { L::WIDTH } else { panel };
    let x_stride = g.x_stride * size_of::<f32>() / linear.format.per_word();
    let block = (BLOCK_BYTES / (4 * k)).next_multiple_of(L::TILE_ROWS);
    let mut sums = Sums([0.0; MAX_SUMS]);
    let mut start = 0;
    while start < g.rows {
        let rows = block.min(g.rows - start);
        for (p, weight) in linear.weight.chunks_exact(panel * k).enumerate() {
            let first = p * step;
            let columns = step.min(outputs - first);
            let narrow = !linear.shape.gated && columns <= L::WIDTH;
            let vectors = if narrow { 1 } else { TILE_VECTORS };
            let (mut row, mut heights) = (start, Heights::new::<L>(rows));
            while let Some(height) = heights.next() {
                // SAFETY: rows row..row+height are inside x and y, columns first..first+columns
                // inside y, the panel holds k words of its width, and the sums fit MAX_SUMS.
                unsafe {
                    let product = Tile {
                        rows: height,
                        vectors,
                        k,
                        a: g.x.start().add(row * x_stride),
                        a_stride: x_stride,
                        b: weight.as_ptr(),
                        b_stride: panel,
                    };
                    let at = p * panel;
                    let store = Store::<E, P> {
                        sums: sums.0.as_mut_ptr(),
                        bias: linear.bias.as_ptr().add(at),
                        steps: linear.steps.as_ptr().wrapping_add(at),
                        totals: linear.totals.as_ptr().wrapping_add(at),
                        scales: scales.wrapping_add(row),
                        rows: height,
                        columns,
                        y: y.add(row * g.y_stride + first),
                        stride: g.y_stride,
                        product: PhantomData,
                    };
                    store.run::<L>(&product, g.epilogue);
                }
                row += height;
            }
        }
        start += rows;
    }
}

/// Where a tile's sums go.
struct Store<E, P> {
    /// Room for `rows` rows of a whole panel.
    sums: *mut f32,
    /// A whole panel.
    bias: *const f32,
    /// In bytes, a whole panel.
    steps: *const f32,
    /// In bytes, a whole panel.
    totals: *const f32,
    /// In bytes, one per row.
    scales: *const RowScale,
    rows: usize,
    /// Output columns of this tile that exist.
    columns: usize,
    y: *mut E,
    /// Elements from one output row to the next.
    stride: usize,
    product: PhantomData<P>,
}

impl<E: Element, P: Product> Store<E, P> {
    /// Multiplies and stores. The two epilogues that need no register of their own take a whole
    /// panel's sums as they are; others find them in memory, where the code for each is one loop.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`; the pointers lead to what the fields say.
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, tile: &Tile, epilogue: Epilogue) {
        let whole = self.columns == TILE_VECTORS * L::WIDTH;
        let rounds = E::FORMAT == Format::Bf16;
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            match epilogue {
                Epilogue::Accumulate if whole && !rounds => self.direct::<L, true>(tile),
                Epilogue::Activate(Activation::Identity)
                    if whole && (rounds || P::FORMAT == Format::F32) =>
                {
                    self.direct::<L, false>(tile);
                }
                _ => {
                    let words = Words { to: self.sums, stride: TILE_VECTORS * L::WIDTH };
                    tile::run::<L, _>(P::FORMAT, tile, &words);
                    self.stored::<L>(epilogue);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::run`], and all columns of the panel exist.
    #[inline(always)]
    unsafe fn direct<L: Lanes, const ADD: bool>(&self, tile: &Tile) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { L::call(&Multiply(tile, PhantomData::<P>, &Direct::<E, P, ADD>(self))) }
    }

    /// Stores what the sums in memory become.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn stored<L: Lanes>(&self, epilogue: Epilogue) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            match epilogue {
                Epilogue::Accumulate => L::call(&Accumulate(self)),
                Epilogue::Activate(activation) => {
                    with_function!(activation, F => {
                        L::call(&Activate::<E, F, P>(self, PhantomData));
                    });
                }
                Epilogue::Gate(activation) => {
                    with_function!(activation, F => {
                        L::call(&Gate::<E, F, P>(self, PhantomData));
                    });
                }
            }
        }
    }

    /// A vector of stored sums, finished.
    ///
    /// # Safety
    /// As [`Self::run`]; `row < rows` and `column` starts a vector of the panel.
    #[inline(always)]
    unsafe fn sum<L: Lanes>(&self, row: usize, column: usize) -> L {
        // SAFETY: the caller guarantees the bounds.
        unsafe {
            let sum = L::load(self.sums.add(row * L::WIDTH * TILE_VECTORS + column));
            self.finish(sum, row, column)
        }
    }

    /// `x W^T + b` of a vector of sums.
    ///
    /// # Safety
    /// As [`Self::sum`].
    #[inline(always)]
    unsafe fn finish<L: Lanes>(&self, sum: L, row: usize, column: usize) -> L {
        // SAFETY: the caller guarantees the bounds.
        unsafe {
            let bias = L::load(self.bias.add(column));
            if P::FORMAT != Format::Int8 {
                return sum.add(bias);
            }
            let RowScale { scale, zero } = *self.scales.add(row);
            let sum = L::load(self.totals.add(column)).fma(L::splat(-zero), sum.int_to_float());
            sum.mul(L::load(self.steps.add(column))).fma(L::splat(scale), bias)
        }
    }

    /// Runs `put` for every vector of outputs.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn each<L: Lanes, T: Put<E>>(&self, put: &T) {
        // SAFETY: row < rows and column < columns.
        unsafe {
            if self.columns == TILE_VECTORS * L::WIDTH {
                for row in 0..self.rows {
                    for column in (0..TILE_VECTORS).map(|v| v * L::WIDTH) {
                        let y = self.y.add(row * self.stride + column);
                        put.put::<L>(y, L::WIDTH, (row, column));
                    }
                }
                return;
            }
            for row in 0..self.rows {
                for column in (0..self.columns).step_by(L::WIDTH) {
                    let lanes = (self.columns - column).min(L::WIDTH);
                    put.put::<L>(self.y.add(row * self.stride + column), lanes, (row, column));
                }
            }
        }
    }
}

/// A whole panel's sums on their way from registers to the output; `ADD`: onto what is there.
struct Direct<'a, E, P, const ADD: bool>(&'a Store<E, P>);

impl<E: Element, P: Product, const ADD: bool> Sink for Direct<'_, E, P, ADD> {
    const VECTORS_MIN: usize = TILE_VECTORS;

    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, row: usize, vector: usize, sum: L) {
        let (store, column) = (self.0, vector * L::WIDTH);
        // SAFETY: the tile's rows and the panel's columns are the store's.
        unsafe {
            let sum = store.finish(sum, row, column);
            let y = store.y.add(row * store.stride + column);
            let value = match ADD {
                true => E::read::<L>(y, L::WIDTH).add(sum),
                false => sum,
            };
            E::write(value, y, L::WIDTH);
        }
    }
}

/// What an epilogue does with one vector of outputs.
trait Put<E> {
    /// # Safety
    /// The CPU has the instruction set of `L`; `y` leads to `lanes` outputs, those of the row and
    /// from the column on.
    unsafe fn put<L: Lanes>(&self, y: *mut E, lanes: usize, at: (usize, usize));
}

/// [`Epilogue::Activate`].
struct Activate<'a, E, F, P: Product>(&'a Store<E, P>, PhantomData<F>);
/// [`Epilogue::Accumulate`].
struct Accumulate<'a, E, P: Product>(&'a Store<E, P>);
/// [`Epilogue::Gate`], for a panel of gates and values.
struct Gate<'a, E, F, P: Product>(&'a Store<E, P>, PhantomData<F>);

impl<E: Element, F: Function, P: Product> Kernel for Activate<'_, E, F, P> {
    /// # Safety
    /// As [`Store::run`].
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { self.0.each::<L, _>(self) }
    }
}

impl<E: Element, F: Function, P: Product> Put<E> for Activate<'_, E, F, P> {
    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, y: *mut E, lanes: usize, (row, column): (usize, usize)) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            let sum = self.0.sum::<L>(row, column);
            let value = match E::FORMAT {
                Format::F32 => F::apply(sum),
                _ => F::apply_rounded(sum),
            };
            E::write(value, y, lanes);
        }
    }
}

impl<E: Element, P: Product> Kernel for Accumulate<'_, E, P> {
    /// # Safety
    /// As [`Store::run`].
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { self.0.each::<L, _>(self) }
    }
}

impl<E: Element, P: Product> Put<E> for Accumulate<'_, E, P> {
    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, y: *mut E, lanes: usize, (row, column): (usize, usize)) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            let old: L = E::read(y, lanes);
            E::write(old.add(self.0.sum(row, column)), y, lanes);
        }
    }
}

impl<E: Element, F: Function, P: Product> Kernel for Gate<'_, E, F, P> {
    /// # Safety
    /// As [`Store::run`].
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let store = self.0;
        for row in 0..store.rows {
            // SAFETY: row < rows; the panel's second vector holds the values, and at most a vector
            // of outputs exists.
            unsafe {
                let gate: L = store.sum(row, 0);
                let gate = match E::FORMAT {
                    Format::F32 => F::apply(gate),
                    _ => F::apply_rounded(gate),
                };
                let y = store.y.add(row * store.stride);
                E::write(gate.mul(store.sum(row, L::WIDTH)), y, store.columns);
            }
        }
    }
}
