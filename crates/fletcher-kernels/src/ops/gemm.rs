//! `y = epilogue(x W^T + b)` with a weight packed once.
//!
//! **Layout.** [`Linear`] holds `W^T` in panels of `TILE_VECTORS * WIDTH` columns: for each of the
//! `k` inputs the panel's columns side by side, padded with zeros at the right edge. So the kernel
//! reads the panel as one stream, while it keeps `TILE_ROWS x TILE_VECTORS` sums in registers.
//! The loops are panel, rows, inputs: a panel (64 columns of 384 inputs are 96 KiB) stays in L2
//! while all rows pass, and a tile's rows stay in L1 while the panel passes.
//!
//! **Gates.** For `act(gate) * value` half of a panel's vectors are gate columns and the other
//! half the value columns of the same outputs, so both meet in registers.

use crate::isa::{Isa, Lanes};
use crate::ops::activation::{Activation, apply};

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

/// A matrix on its way to [`Linear::pack`].
#[derive(Debug)]
pub(crate) struct LinearSource<'a> {
    pub(crate) isa: Isa,
    pub(crate) shape: LinearShape,
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
}

/// A weight packed for one instruction set.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Whose kernels can read it.
    pub(crate) isa: Isa,
    pub(crate) shape: LinearShape,
    /// Panels, see the module's documentation.
    pub(crate) weight: Vec<f32>,
    /// One per packed column; zeros where there is no bias.
    pub(crate) bias: Vec<f32>,
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
    pub(crate) fn pack<L: Lanes>(source: LinearSource<'_>) -> Self {
        let LinearSource { isa, shape, weight, bias } = source;
        assert_eq!(weight.len(), shape.rows * shape.cols, "weight");
        assert!(bias.is_none_or(|bias| bias.len() == shape.rows), "bias");
        assert!(!shape.gated || shape.rows.is_multiple_of(2), "a gate needs its other half");
        let panel = L::WIDTH * L::TILE_VECTORS;
        let columns = packed_columns::<L>(shape);
        let mut packed = vec![0.0; columns.len() * shape.cols];
        for (p, out) in packed.chunks_exact_mut(panel * shape.cols).enumerate() {
            for (lane, row) in columns[p * panel..(p + 1) * panel].iter().enumerate() {
                let Some(row) = *row else { continue };
                let source = &weight[row * shape.cols..(row + 1) * shape.cols];
                for (k, value) in source.iter().enumerate() {
                    out[k * panel + lane] = *value;
                }
            }
        }
        let of = |row: &Option<usize>| row.zip(bias).map_or(0.0, |(row, bias)| bias[row]);
        Self { isa, shape, weight: packed, bias: columns.iter().map(of).collect() }
    }
}

/// Which row of the weight each packed column holds; `None` pads.
fn packed_columns<L: Lanes>(shape: LinearShape) -> Vec<Option<usize>> {
    let panel = L::WIDTH * L::TILE_VECTORS;
    let keep = |row: usize, end: usize| (row < end).then_some(row);
    if !shape.gated {
        let padded = shape.rows.div_ceil(panel) * panel;
        return (0..padded).map(|row| keep(row, shape.rows)).collect();
    }
    let (half, outputs) = (panel / 2, shape.rows / 2);
    let panels = outputs.div_ceil(half);
    (0..panels * panel)
        .map(|column| {
            let (base, lane) = (column / panel * half, column % panel);
            match lane < half {
                true => keep(base + lane, outputs),
                false => keep(base + lane - half, outputs).map(|row| row + outputs),
            }
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

/// The operands of one product; rows are dense (`x` has `inputs` and `y` `outputs` columns).
#[derive(Debug)]
pub(crate) struct Gemm<'a> {
    pub(crate) linear: &'a Linear,
    pub(crate) rows: usize,
    pub(crate) x: &'a [f32],
    pub(crate) y: &'a mut [f32],
    pub(crate) epilogue: Epilogue,
}

/// # Safety
/// The CPU has the instruction set of `L`; `linear` was packed for it; `x` and `y` hold `rows`
/// rows of the linear's inputs and outputs.
#[inline(always)]
pub(crate) unsafe fn gemm<L: Lanes>(g: Gemm<'_>) {
    let panel = L::WIDTH * L::TILE_VECTORS;
    let (k, outputs) = (g.linear.inputs(), g.linear.outputs());
    let step = if g.linear.shape.gated { panel / 2 } else { panel };
    for (p, weight) in g.linear.weight.chunks_exact(panel * k).enumerate() {
        let bias = &g.linear.bias[p * panel..(p + 1) * panel];
        let first = p * step;
        let store = Store {
            bias: bias.as_ptr(),
            columns: step.min(outputs - first),
            stride: outputs,
            epilogue: g.epilogue,
        };
        let mut row = 0;
        while row < g.rows {
            let height = L::TILE_ROWS.min(g.rows - row);
            // SAFETY: rows row..row+height are inside x and y, columns first..first+columns inside
            // y, and the panel holds k rows of its width.
            unsafe {
                let a = g.x.as_ptr().add(row * k);
                let y = g.y.as_mut_ptr().add(row * outputs + first);
                let operands = Operands { a, a_stride: k, b: weight.as_ptr(), k };
                match height {
                    1 => tile::<L, 1>(operands, &store, y),
                    2 => tile::<L, 2>(operands, &store, y),
                    3 => tile::<L, 3>(operands, &store, y),
                    4 => tile::<L, 4>(operands, &store, y),
                    5 => tile::<L, 5>(operands, &store, y),
                    _ => tile::<L, 6>(operands, &store, y),
                }
            }
            row += height;
        }
    }
}

/// The left rows and the right panel of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// First row of the left operand …
    pub(crate) a: *const f32,
    /// … and the distance to the next, in elements.
    pub(crate) a_stride: usize,
    /// `k` rows of a panel of the right operand.
    pub(crate) b: *const f32,
    /// Length of the sums.
    pub(crate) k: usize,
}

/// Where a tile's sums go.
struct Store {
    bias: *const f32,
    /// Output columns of this tile that exist.
    columns: usize,
    /// Elements from one output row to the next.
    stride: usize,
    epilogue: Epilogue,
}

/// The sums of `ROWS` rows with one panel, in one order over `k` whatever `ROWS` is.
///
/// # Safety
/// The CPU has the instruction set of `L`; `a` has `ROWS` rows of `k`, `b` `k` panel rows.
#[inline(always)]
pub(crate) unsafe fn sums<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    o: Operands,
) -> [[L; VECTORS]; ROWS] {
    // SAFETY: the caller guarantees the bounds.
    unsafe {
        let mut sums = [[L::splat(0.0); VECTORS]; ROWS];
        let mut b = o.b;
        for k in 0..o.k {
            let mut right = [L::splat(0.0); VECTORS];
            for (v, right) in right.iter_mut().enumerate() {
                *right = L::load(b.add(v * L::WIDTH));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = L::splat(*o.a.add(row * o.a_stride + k));
                for v in 0..VECTORS {
                    sums[v] = left.fma(right[v], sums[v]);
                }
            }
            b = b.add(VECTORS * L::WIDTH);
        }
        sums
    }
}

/// # Safety
/// As [`sums`], and `y` has `ROWS` rows of `store.columns` at `store.stride`.
#[inline(always)]
unsafe fn tile<L: Lanes, const ROWS: usize>(o: Operands, store: &Store, y: *mut f32) {
    // The panel's width is a constant of the instruction set, so only one branch is compiled.
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match L::TILE_VECTORS {
            2 => finish::<L, ROWS, 2>(sums::<L, ROWS, 2>(o), store, y),
            _ => finish::<L, ROWS, 4>(sums::<L, ROWS, 4>(o), store, y),
        }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn finish<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    sums: [[L; VECTORS]; ROWS],
    store: &Store,
    y: *mut f32,
) {
    // SAFETY: the caller guarantees the bounds; partial stores keep to `columns`.
    unsafe {
        for (row, sums) in sums.iter().enumerate() {
            let y = y.add(row * store.stride);
            let biased = |v: usize| sums[v].add(L::load(store.bias.add(v * L::WIDTH)));
            match store.epilogue {
                Epilogue::Activate(activation) => {
                    for v in 0..VECTORS {
                        put(apply(activation, biased(v)), y, v, store.columns);
                    }
                }
                Epilogue::Accumulate => {
                    for v in 0..VECTORS {
                        let lanes = store.columns.saturating_sub(v * L::WIDTH).min(L::WIDTH);
                        if lanes > 0 {
                            let old = L::load_partial(y.add(v * L::WIDTH), lanes);
                            put(old.add(biased(v)), y, v, store.columns);
                        }
                    }
                }
                Epilogue::Gate(activation) => {
                    for v in 0..VECTORS / 2 {
                        let gate = apply(activation, biased(v));
                        put(gate.mul(biased(v + VECTORS / 2)), y, v, store.columns);
                    }
                }
            }
        }
    }
}

/// Stores vector `v` of a row of `columns` columns.
///
/// # Safety
/// The CPU has the instruction set of `L`; `row` has `columns` writable columns.
#[inline(always)]
unsafe fn put<L: Lanes>(value: L, row: *mut f32, v: usize, columns: usize) {
    let start = v * L::WIDTH;
    if start >= columns {
        return;
    }
    // SAFETY: start < columns, and a store that would pass the end is partial.
    unsafe {
        match columns - start >= L::WIDTH {
            true => value.store(row.add(start)),
            false => value.store_partial(row.add(start), columns - start),
        }
    }
}
