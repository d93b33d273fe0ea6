//! `y = epilogue(x W^T + b)` with a weight packed once.
//!
//! **Layout.** [`Linear`] holds `W^T` in panels of `TILE_VECTORS * WIDTH` columns: for each of the
//! `k` inputs the panel's columns side by side, padded with zeros at the right edge, so that the
//! kernel reads the panel as one stream.
//!
//! **Blocking.** Rows are taken in blocks whose inputs stay in L2; for each panel of the weight
//! all tiles of the block pass, so the weight is read once per block. The inner dimension is not
//! blocked: a sum is never stored half-way, and the order of its terms is always the same.
//!
//! **Gates.** For `act(gate) * value` the first vector of a panel holds gate columns and the
//! second the value columns of the same outputs, so both meet in registers.

use crate::buffer::AlignedBuffer;
use crate::isa::{Isa, Lanes, TILE_VECTORS};
use crate::ops::activation::{Activation, Function, with_function};
use crate::ops::tile::{Heights, MAX_SUMS, Sums, Tile};

/// Elements of input that a block of rows may hold (512 KiB): with the panel and the outputs in
/// flight they fit the 1 MiB of L2 that the smaller current server cores have.
const BLOCK: usize = 1 << 17;

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

/// A weight packed for one instruction set.
#[derive(Debug)]
pub struct Linear {
    pub(crate) isa: Isa,
    pub(crate) shape: LinearShape,
    /// Panels, see the module's documentation.
    weight: AlignedBuffer,
    /// One per packed column; zeros where there is no bias.
    bias: AlignedBuffer,
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

    /// Packs a row-major weight of `shape.rows x shape.cols`.
    pub(crate) fn pack<L: Lanes>(
        isa: Isa,
        shape: LinearShape,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Self {
        assert!(shape.cols > 0 && shape.rows > 0, "an empty matrix: {shape:?}");
        assert!(!shape.gated || shape.rows.is_multiple_of(2), "half of the rows gate: {shape:?}");
        assert_eq!(Some(weight.len()), shape.rows.checked_mul(shape.cols), "weights: {shape:?}");
        assert!(bias.is_none_or(|bias| bias.len() == shape.rows), "biases: {shape:?}");
        let panel = L::WIDTH * TILE_VECTORS;
        let columns = packed_columns::<L>(shape);
        let mut packed = AlignedBuffer::new(columns.len() * shape.cols);
        let mut packed_bias = AlignedBuffer::new(columns.len());
        let panels = packed.chunks_exact_mut(panel * shape.cols);
        for (out, columns) in panels.zip(columns.chunks_exact(panel)) {
            for (lane, row) in columns.iter().enumerate() {
                let Some(row) = *row else { continue };
                let source = &weight[row * shape.cols..(row + 1) * shape.cols];
                for (k, value) in source.iter().enumerate() {
                    out[k * panel + lane] = *value;
                }
            }
        }
        for (out, row) in packed_bias.iter_mut().zip(&columns) {
            *out = row.zip(bias).map_or(0.0, |(row, bias)| bias[row]);
        }
        Self { isa, shape, weight: packed, bias: packed_bias }
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

/// The operands of one product.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// The packed weight.
    pub linear: &'a Linear,
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// `rows` rows of [`Linear::inputs`] columns …
    pub x: &'a [f32],
    /// … that are this many elements apart.
    pub x_stride: usize,
    /// `rows` rows of [`Linear::outputs`] columns …
    pub y: &'a mut [f32],
    /// … that are this many elements apart.
    pub y_stride: usize,
    /// Applied to the sums.
    pub epilogue: Epilogue,
}

impl Gemm<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self, isa: Isa) {
        assert_eq!(self.linear.isa, isa, "a weight packed for another instruction set");
        let gate = matches!(self.epilogue, Epilogue::Gate(_));
        assert_eq!(gate, self.linear.shape.gated, "gated weights and only those are gated");
        check_rows(self.x, self.rows, self.linear.inputs(), self.x_stride);
        check_rows(self.y, self.rows, self.linear.outputs(), self.y_stride);
    }
}

/// Asserts that `data` holds `rows` rows of `columns` that are `stride` apart.
pub(crate) fn check_rows(data: &[f32], rows: usize, columns: usize, stride: usize) {
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
    const { assert!(L::TILE_ROWS * L::WIDTH * TILE_VECTORS <= MAX_SUMS) }
    let panel = L::WIDTH * TILE_VECTORS;
    let (k, outputs) = (g.linear.inputs(), g.linear.outputs());
    let step = if g.linear.shape.gated { L::WIDTH } else { panel };
    let block = (BLOCK / k).next_multiple_of(L::TILE_ROWS);
    let mut sums = Sums([0.0; MAX_SUMS]);
    let mut start = 0;
    while start < g.rows {
        let rows = block.min(g.rows - start);
        for (p, weight) in g.linear.weight.chunks_exact(panel * k).enumerate() {
            let first = p * step;
            let columns = step.min(outputs - first);
            let narrow = !g.linear.shape.gated && columns <= L::WIDTH;
            let vectors = if narrow { 1 } else { TILE_VECTORS };
            let (mut row, mut heights) = (start, Heights::new::<L>(rows));
            while let Some(height) = heights.next() {
                // SAFETY: rows row..row+height are inside x and y, columns first..first+columns
                // inside y, the panel holds k rows of its width, and the sums fit MAX_SUMS.
                unsafe {
                    L::tile(&Tile {
                        rows: height,
                        vectors,
                        k,
                        a: g.x.as_ptr().add(row * g.x_stride),
                        a_stride: g.x_stride,
                        b: weight.as_ptr(),
                        b_stride: panel,
                        out: sums.0.as_mut_ptr(),
                        out_stride: panel,
                    });
                    let store = Store {
                        sums: sums.0.as_ptr(),
                        bias: g.linear.bias.as_ptr().add(p * panel),
                        rows: height,
                        columns,
                        y: g.y.as_mut_ptr().add(row * g.y_stride + first),
                        stride: g.y_stride,
                    };
                    store.run::<L>(g.epilogue);
                }
                row += height;
            }
        }
        start += rows;
    }
}

/// A tile's sums and where they go.
struct Store {
    /// `rows` rows of a whole panel.
    sums: *const f32,
    /// A whole panel.
    bias: *const f32,
    rows: usize,
    /// Output columns of this tile that exist.
    columns: usize,
    y: *mut f32,
    /// Elements from one output row to the next.
    stride: usize,
}

impl Store {
    /// # Safety
    /// The CPU has the instruction set of `L`; the pointers lead to what the fields say.
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, epilogue: Epilogue) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            match epilogue {
                Epilogue::Accumulate => self.accumulate::<L>(),
                Epilogue::Activate(activation) => {
                    with_function!(activation, F => self.activate::<L, F>());
                }
                Epilogue::Gate(activation) => {
                    with_function!(activation, F => self.gate::<L, F>());
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::run`]; `row < rows` and `column` starts a vector of the panel.
    #[inline(always)]
    unsafe fn sum<L: Lanes>(&self, row: usize, column: usize) -> L {
        // SAFETY: the caller guarantees the bounds.
        unsafe {
            let sum = L::load(self.sums.add(row * L::WIDTH * TILE_VECTORS + column));
            sum.add(L::load(self.bias.add(column)))
        }
    }

    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn activate<L: Lanes, F: Function>(&self) {
        for row in 0..self.rows {
            let mut column = 0;
            while column < self.columns {
                // SAFETY: row < rows and column < columns; put keeps to the columns.
                unsafe {
                    let value = F::apply(self.sum::<L>(row, column));
                    self.put(value, row, column);
                }
                column += L::WIDTH;
            }
        }
    }

    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn accumulate<L: Lanes>(&self) {
        for row in 0..self.rows {
            let mut column = 0;
            while column < self.columns {
                // SAFETY: row < rows and column < columns; partial accesses keep to the columns.
                unsafe {
                    let y = self.y.add(row * self.stride + column);
                    let lanes = (self.columns - column).min(L::WIDTH);
                    let old =
                        if lanes == L::WIDTH { L::load(y) } else { L::load_partial(y, lanes) };
                    self.put(old.add(self.sum(row, column)), row, column);
                }
                column += L::WIDTH;
            }
        }
    }

    /// # Safety
    /// As [`Self::run`], for a panel of gates and values.
    #[inline(always)]
    unsafe fn gate<L: Lanes, F: Function>(&self) {
        for row in 0..self.rows {
            // SAFETY: row < rows; the panel's second vector holds the values.
            unsafe {
                let gate = F::apply(self.sum::<L>(row, 0));
                self.put(gate.mul(self.sum(row, L::WIDTH)), row, 0);
            }
        }
    }

    /// Stores the vector that starts at `column`, as far as the columns go.
    ///
    /// # Safety
    /// As [`Self::run`]; `row < rows` and `column < columns`.
    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, value: L, row: usize, column: usize) {
        // SAFETY: a store that would pass the last column is partial.
        unsafe {
            let y = self.y.add(row * self.stride + column);
            match self.columns - column >= L::WIDTH {
                true => value.store(y),
                false => value.store_partial(y, self.columns - column),
            }
        }
    }
}
