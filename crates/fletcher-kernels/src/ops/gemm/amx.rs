//! The same product on AMX's tile registers, for bfloat16 and bytes.
//!
//! A panel of the packed weight is already what tiles want: 16 words of the inner dimension by 16
//! columns are a tile, a panel's two vectors are two tiles side by side. So two tiles of inputs and
//! two of the weight give four tiles of sums, which is one load for a product: loads take half of
//! the products' time.
//!
//! **Epilogue.** Tiles are stored as 32-bit sums and finished by the vector unit, which would leave
//! the tile unit idle. So a few rows of the previous unit's epilogue stand behind each step of the
//! present one, and both run at the same time.
//!
//! **Edges.** A tile is always whole. At the right edge the packed weight has zeros; the last words
//! of the inputs are copied to where zeros follow; the last rows are taken together with ones
//! before them, which are not stored twice. Only a product of less than 16 rows has lower tiles.
//! All sums run over the same steps in the same order, so none of this changes a bit.

use std::arch::x86_64::{_mm512_maskz_loadu_epi8, _mm512_storeu_si512};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::{BLOCK_BYTES, Gemm, Input, Output, Store};
use crate::isa::Lanes;
use crate::isa::TILE_VECTORS;
use crate::isa::amx::{Configured, ROW_BYTES, ROW_WORDS, ROWS, Tiles};
use crate::isa::avx512::Avx512;
use crate::number::{Bf16, Element, Format, RowScale};
use crate::ops::gemm::Epilogue;
use crate::ops::tile::{Pairs, Product, Quads};

/// What finishes the sums.
type Vector = Avx512<true, true>;

/// Columns of a panel.
const PANEL: usize = Vector::WIDTH * TILE_VECTORS;
/// Rows that are summed at a time.
const UNIT_ROWS: usize = 2 * ROWS;
/// Rows that are finished at a time behind a step: few enough to leave no gap between products, and
/// enough to be worth a call.
const FINISH_ROWS: usize = UNIT_ROWS / 2;
/// Bytes of a panel that a step multiplies: two tiles.
const STEP_BYTES: usize = ROW_WORDS * PANEL * 4;

/// The sums of a unit, on whole cache lines.
#[repr(align(64))]
struct Sums([MaybeUninit<f32>; UNIT_ROWS * PANEL]);

/// Runs a product of bfloat16 or of bytes.
///
/// # Safety
/// The CPU has AVX-512 with BF16 and VNNI and the tiles of `T`, and [`Gemm::check`] has passed.
#[inline(always)]
pub(crate) unsafe fn gemm<T: Tiles>(g: &mut Gemm<'_>) {
    if g.rows == 0 {
        return;
    }
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match (&mut g.y, g.x) {
            (Output::F32(y), Input::Int8 { scales, .. }) => {
                panels::<T, f32, Quads>(y.as_mut_ptr(), scales.as_ptr(), g)
            }
            (Output::Bf16(y), Input::Int8 { scales, .. }) => {
                panels::<T, Bf16, Quads>(y.as_mut_ptr(), scales.as_ptr(), g)
            }
            (Output::F32(y), _) => panels::<T, f32, Pairs>(y.as_mut_ptr(), std::ptr::null(), g),
            (Output::Bf16(y), _) => panels::<T, Bf16, Pairs>(y.as_mut_ptr(), std::ptr::null(), g),
        }
    }
}

/// Takes all rows, block by block, through all panels.
///
/// # Safety
/// As [`gemm`]; there are rows; `y` is the output's first element, and `scales` the input's, in
/// bytes.
#[inline(always)]
unsafe fn panels<T: Tiles, E: Element, P: Product>(
    y: *mut E,
    scales: *const RowScale,
    g: &Gemm<'_>,
) {
    const { assert!(Vector::WIDTH == ROW_WORDS) }
    let linear = g.linear;
    let (words, outputs) = (linear.packed_words(), linear.outputs());
    let step = if linear.shape.gated { Vector::WIDTH } else { PANEL };
    let word_bytes = size_of::<f32>() / linear.format.per_word();
    let block = (BLOCK_BYTES / (4 * words)).next_multiple_of(UNIT_ROWS);
    let mut sums = [const { Sums([MaybeUninit::uninit(); UNIT_ROWS * PANEL]) }; 2];
    let [mut out, mut finished] = sums.each_mut().map(|sums| sums.0.as_mut_ptr().cast::<f32>());
    let mut waiting: Option<Waiting<E, P>> = None;
    // SAFETY: units are rows of x and y, columns first..first + columns are inside y, and a panel
    // holds packed_words() words of each of its columns.
    unsafe {
        let _configured = Configured::<T>::new(g.rows.min(ROWS));
        let mut start = 0;
        while start < g.rows {
            let end = g.rows.min(start + block);
            for (p, weight) in linear.weight.chunks_exact(PANEL * words).enumerate() {
                let first = p * step;
                let columns = step.min(outputs - first);
                let wide = linear.shape.gated || columns > Vector::WIDTH;
                for unit in (Units { start, end }) {
                    let product = Operands {
                        inputs: g.x.start(),
                        stride: g.x_stride * word_bytes,
                        row_bytes: linear.shape.cols * word_bytes,
                        height: g.rows.min(ROWS),
                        weight: weight.as_ptr().cast(),
                        out,
                    };
                    let mut meanwhile = |rows| {
                        if let Some(waiting) = &mut waiting {
                            waiting.store(rows, g.epilogue);
                        }
                    };
                    match (unit.high, wide) {
                        (Some(_), true) => product.run::<T, P, true, true>(&unit, &mut meanwhile),
                        (Some(_), false) => product.run::<T, P, true, false>(&unit, &mut meanwhile),
                        (None, true) => product.run::<T, P, false, true>(&unit, &mut meanwhile),
                        (None, false) => product.run::<T, P, false, false>(&unit, &mut meanwhile),
                    }
                    meanwhile(UNIT_ROWS);
                    let at = p * PANEL;
                    waiting = Some(Waiting(Store {
                        sums: out.add(unit.skip * PANEL),
                        bias: linear.bias.as_ptr().add(at),
                        steps: linear.steps.as_ptr().wrapping_add(at),
                        totals: linear.totals.as_ptr().wrapping_add(at),
                        scales: scales.wrapping_add(unit.first),
                        rows: unit.rows,
                        columns,
                        y: y.add(unit.first * g.y_stride + first),
                        stride: g.y_stride,
                        product: PhantomData,
                    }));
                    std::mem::swap(&mut out, &mut finished);
                }
            }
            start = end;
        }
        if let Some(mut waiting) = waiting {
            waiting.store(UNIT_ROWS, g.epilogue);
        }
    }
}

/// Rows whose sums are there and that are not finished yet.
struct Waiting<E, P>(Store<E, P>);

impl<E: Element, P: Product> Waiting<E, P> {
    /// Finishes up to `rows` of them.
    ///
    /// # Safety
    /// As [`Store::stored`].
    #[inline(always)]
    unsafe fn store(&mut self, rows: usize, epilogue: Epilogue) {
        let all = &mut self.0;
        let rows = rows.min(all.rows);
        if rows == 0 {
            return;
        }
        let now = Store { rows, ..*all };
        all.rows -= rows;
        all.sums = all.sums.wrapping_add(rows * PANEL);
        all.scales = all.scales.wrapping_add(rows);
        all.y = all.y.wrapping_add(rows * all.stride);
        // SAFETY: these are some of the rows that the caller guarantees.
        unsafe { now.stored::<Vector>(epilogue) }
    }
}

/// Rows that are summed at a time: those of one or two tiles.
struct Unit {
    /// The first row to store …
    first: usize,
    /// … and how many there are.
    rows: usize,
    /// The first row of the first tile.
    low: usize,
    /// The first row of the second tile, and the row of the sums that it starts at.
    high: Option<(usize, usize)>,
    /// Rows of sums before those to store.
    skip: usize,
}

/// Cuts rows into units.
struct Units {
    start: usize,
    end: usize,
}

impl Iterator for Units {
    type Item = Unit;

    #[inline(always)]
    fn next(&mut self) -> Option<Unit> {
        let (first, left) = (self.start, self.end - self.start);
        if left == 0 {
            return None;
        }
        let rows = left.min(UNIT_ROWS);
        self.start += rows;
        if rows > ROWS {
            // The second tile ends with the unit; where the two overlap, they agree.
            let at = rows - ROWS;
            return Some(Unit { first, rows, low: first, high: Some((first + at, at)), skip: 0 });
        }
        // A tile that ends with the unit, or, where there are too few rows, starts with it.
        let low = (first + rows).saturating_sub(ROWS);
        Some(Unit { first, rows, low, high: None, skip: first - low })
    }
}

/// A unit's sums over one panel.
struct Operands {
    /// All rows of inputs.
    inputs: *const u8,
    /// Bytes from a row to the next.
    stride: usize,
    /// Bytes of a row that exist.
    row_bytes: usize,
    /// Rows of a tile.
    height: usize,
    weight: *const u8,
    /// Rows of a panel's sums.
    out: *mut f32,
}

impl Operands {
    /// Computes a unit of two tiles of rows, or one if not `TALL`, and two of columns, or one if
    /// not `WIDE`. After each step, `meanwhile` may finish as many rows as
    /// it is told.
    ///
    /// # Safety
    /// The thread's tiles are configured; the unit's tiles are rows of the inputs.
    #[inline(always)]
    unsafe fn run<T: Tiles, P: Product, const TALL: bool, const WIDE: bool>(
        &self,
        unit: &Unit,
        meanwhile: &mut impl FnMut(usize),
    ) {
        let (whole, tail) = (self.row_bytes / ROW_BYTES, self.row_bytes % ROW_BYTES);
        let high = unit.high.unwrap_or_default();
        // SAFETY: steps 0..whole are inside rows and panel, and the tail is inside its buffer; the
        // second tile of sums starts at most 16 rows below the first.
        unsafe {
            let mut a = self.inputs.add(unit.low * self.stride);
            let mut a_high = self.inputs.add(high.0 * self.stride);
            let mut b = self.weight;
            T::zero::<0>();
            T::zero::<1>();
            T::zero::<2>();
            T::zero::<3>();
            for _ in 0..whole {
                step::<T, P, TALL, WIDE>((a, a_high, self.stride), b);
                a = a.add(ROW_BYTES);
                a_high = a_high.add(ROW_BYTES);
                b = b.add(STEP_BYTES);
                meanwhile(FINISH_ROWS);
            }
            if tail > 0 {
                let mut last = [const { MaybeUninit::<[u8; ROW_BYTES]>::uninit() }; UNIT_ROWS];
                for row in 0..self.height {
                    copy_row(a.add(row * self.stride), tail, last[row].as_mut_ptr());
                    if TALL {
                        let to = last[ROWS + row].as_mut_ptr();
                        copy_row(a_high.add(row * self.stride), tail, to);
                    }
                }
                let last = last.as_ptr().cast::<u8>();
                let last_high = last.add(ROWS * ROW_BYTES);
                step::<T, P, TALL, WIDE>((last, last_high, ROW_BYTES), b);
            }
            let stride = PANEL * size_of::<f32>();
            let out = self.out.cast::<u8>();
            T::store::<0>(out, stride);
            if WIDE {
                T::store::<1>(out.add(ROW_BYTES), stride);
            }
            if TALL {
                let out = out.add(high.1 * stride);
                T::store::<2>(out, stride);
                if WIDE {
                    T::store::<3>(out.add(ROW_BYTES), stride);
                }
            }
        }
    }
}

/// Sixteen words of the sums.
///
/// # Safety
/// The thread's tiles are configured; the pointers lead to tiles of inputs, and to two of the
/// weight side by side.
#[inline(always)]
unsafe fn step<T: Tiles, P: Product, const TALL: bool, const WIDE: bool>(
    (a, a_high, stride): (*const u8, *const u8, usize),
    b: *const u8,
) {
    macro_rules! dot {
        ($sums:literal, $a:literal, $b:literal) => {
            match P::FORMAT {
                Format::Int8 => T::dot_int8::<$sums, $a, $b>(),
                _ => T::dot_bf16::<$sums, $a, $b>(),
            }
        };
    }
    // SAFETY: the caller guarantees the tiles.
    unsafe {
        let b_stride = PANEL * size_of::<f32>();
        T::load::<6>(b, b_stride);
        T::load::<4>(a, stride);
        dot!(0, 4, 6);
        if WIDE {
            T::load::<7>(b.add(ROW_BYTES), b_stride);
            dot!(1, 4, 7);
        }
        if TALL {
            T::load::<5>(a_high, stride);
            dot!(2, 5, 6);
            if WIDE {
                dot!(3, 5, 7);
            }
        }
    }
}

/// Copies the first `bytes` of a row, below 64, and fills it up with zeros.
///
/// # Safety
/// The CPU has AVX-512 BW; there are `bytes` to read and 64 to write.
#[inline(always)]
unsafe fn copy_row(from: *const u8, bytes: usize, to: *mut [u8; ROW_BYTES]) {
    // SAFETY: the caller guarantees both; masked-off bytes are not accessed.
    unsafe {
        let row = _mm512_maskz_loadu_epi8((1 << bytes) - 1, from.cast());
        _mm512_storeu_si512(to.cast(), row);
    }
}

#[cfg(test)]
mod tests;
