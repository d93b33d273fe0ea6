//! The same product on AMX's tile registers, for bfloat16 and bytes.
//!
//! A panel of the packed weight is already what tiles want: 16 words of the inner dimension by 16
//! columns are a tile, a panel's two vectors are two tiles side by side. So two tiles of inputs and
//! two of the weight give four tiles of sums, which is one load for a product: loads take half of
//! the products' time.
//!
//! **Caches.** A panel of the weight stays in the first cache for all rows of a block, and the
//! inputs pass it by: without that hint a panel of 384 inputs or more, which is half of that cache,
//! and the inputs push each other out again and again. Few rows stay there themselves.
//!
//! **Epilogue.** Tiles are stored as 32-bit sums and finished by the vector unit, which would leave
//! the tile unit idle. So a row or two of the previous unit's epilogue stand behind each product of
//! the present one, as few instructions as the CPU looks ahead, and both run at the same time. The
//! epilogues of an encoder's large products are compiled into the loop for that; the others, and
//! one that would need many rows behind few products, are called with half a unit behind each step.
//!
//! **Edges.** A tile is always whole. At the right edge the packed weight has zeros; the last words
//! of the inputs are copied to where zeros follow; the last rows are taken together with ones
//! before them, which are not stored twice. Only a product of less than 16 rows has lower tiles.
//! All sums run over the same steps in the same order, so none of this changes a bit.

use std::arch::x86_64::{_mm512_maskz_loadu_epi8, _mm512_storeu_si512};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::store::{Accumulate, Activate, Store};
use super::{BLOCK_BYTES, Gemm, Input, Output};
use crate::isa::Lanes;
use crate::isa::TILE_VECTORS;
use crate::isa::amx::{Configured, ROW_BYTES, ROW_WORDS, ROWS, Tiles};
use crate::isa::avx512::Avx512;
use crate::number::{Bf16, Element, Format, RowScale};
use crate::ops::activation::{Activation, Function, GeluErf, Identity};
use crate::ops::gemm::Epilogue;
use crate::ops::tile::{Pairs, Product, Quads};

/// What finishes the sums.
type Vector = Avx512<true, true>;

/// Columns of a panel.
const PANEL: usize = Vector::WIDTH * TILE_VECTORS;
/// Rows that are summed at a time.
const UNIT_ROWS: usize = 2 * ROWS;
/// Rows that are finished at a time behind a step, where the epilogue is called: enough to be worth
/// it, and few enough to leave no gap between products.
const CALLED_ROWS: usize = UNIT_ROWS / 2;
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
                in_f32::<T, Quads>(y.as_mut_ptr(), scales.as_ptr(), g)
            }
            (Output::Bf16(y), Input::Int8 { scales, .. }) => {
                in_bf16::<T, Quads>(y.as_mut_ptr(), scales.as_ptr(), g)
            }
            (Output::F32(y), _) => in_f32::<T, Pairs>(y.as_mut_ptr(), std::ptr::null(), g),
            (Output::Bf16(y), _) => in_bf16::<T, Pairs>(y.as_mut_ptr(), std::ptr::null(), g),
        }
    }
}

/// The residual stream's epilogue is compiled in.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
unsafe fn in_f32<T: Tiles, P: Product>(y: *mut f32, scales: *const RowScale, g: &Gemm<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match g.epilogue {
            Epilogue::Accumulate => panels::<T, f32, P, Accumulated>(y, scales, g),
            _ => panels::<T, f32, P, Called>(y, scales, g),
        }
    }
}

/// The epilogues of a BERT's products are compiled in.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
unsafe fn in_bf16<T: Tiles, P: Product>(y: *mut Bf16, scales: *const RowScale, g: &Gemm<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match g.epilogue {
            Epilogue::Activate(Activation::Identity) => {
                panels::<T, Bf16, P, Activated<Identity, 4>>(y, scales, g)
            }
            // Two rows of so many instructions are as far as the CPU looks ahead.
            Epilogue::Activate(Activation::GeluErf) => {
                panels::<T, Bf16, P, Activated<GeluErf, 2>>(y, scales, g)
            }
            _ => panels::<T, Bf16, P, Called>(y, scales, g),
        }
    }
}

/// Takes all rows, block by block, through all panels.
///
/// # Safety
/// As [`gemm`]; there are rows; `y` is the output's first element, and `scales` the input's, in
/// bytes.
#[inline(always)]
unsafe fn panels<T: Tiles, E: Element, P: Product, F: Finish<E, P>>(
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
    let mut waiting = Waiting::<E, P, F>::nothing(g, linear.shape.cols * word_bytes / ROW_BYTES);
    let stays = g.rows <= UNIT_ROWS;
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
                        stays,
                        weight: weight.as_ptr().cast(),
                        out,
                    };
                    match (unit.high, wide) {
                        (Some(_), true) => {
                            product.run::<T, _, _, _, true, true>(&unit, &mut waiting)
                        }
                        (Some(_), _) => product.run::<T, _, _, _, true, false>(&unit, &mut waiting),
                        (_, true) => product.run::<T, _, _, _, false, true>(&unit, &mut waiting),
                        _ => product.run::<T, _, _, _, false, false>(&unit, &mut waiting),
                    }
                    waiting.call(UNIT_ROWS);
                    let at = p * PANEL;
                    waiting.store = Store {
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
                    };
                    std::mem::swap(&mut out, &mut finished);
                }
            }
            start = end;
        }
        waiting.call(UNIT_ROWS);
    }
}

/// An epilogue as a type.
trait Finish<E, P> {
    /// Most rows behind a product that it is compiled into the loop for; 0: it is not.
    const ROWS_MAX: usize;

    /// Finishes rows of a whole panel, if it is compiled in.
    ///
    /// # Safety
    /// As [`Store::stored`].
    unsafe fn rows(store: &Store<E, P>);
}

/// [`Epilogue::Activate`], with at most so many rows behind a product.
struct Activated<F, const ROWS: usize>(PhantomData<F>);
/// [`Epilogue::Accumulate`].
struct Accumulated;
/// Any epilogue.
struct Called;

impl<E, P, F, const ROWS: usize> Finish<E, P> for Activated<F, ROWS>
where
    E: Element,
    P: Product,
    F: Function,
{
    const ROWS_MAX: usize = ROWS;

    #[inline(always)]
    unsafe fn rows(store: &Store<E, P>) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { store.each::<Vector, _>(&Activate::<E, F, P>(store, PhantomData)) }
    }
}

impl<E: Element, P: Product> Finish<E, P> for Accumulated {
    const ROWS_MAX: usize = 4;

    #[inline(always)]
    unsafe fn rows(store: &Store<E, P>) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { store.each::<Vector, _>(&Accumulate::<E, P>(store)) }
    }
}

impl<E, P> Finish<E, P> for Called {
    const ROWS_MAX: usize = 0;

    #[inline(always)]
    unsafe fn rows(_: &Store<E, P>) {}
}

/// A call, so that no epilogue is compiled into the loop over products by chance.
///
/// # Safety
/// As [`Store::stored`].
#[inline(never)]
unsafe fn finish<E: Element, P: Product>(store: &Store<E, P>, epilogue: Epilogue) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { store.stored::<Vector>(epilogue) }
}

/// Rows whose sums are there and that are not finished yet.
struct Waiting<E, P, F> {
    store: Store<E, P>,
    epilogue: Epilogue,
    /// Rows to finish behind each product; 0: behind each step instead.
    behind_product: usize,
    finish: PhantomData<F>,
}

impl<E: Element, P: Product, F: Finish<E, P>> Waiting<E, P, F> {
    /// No rows yet; a unit's products take `steps`.
    #[inline(always)]
    fn nothing(g: &Gemm<'_>, steps: usize) -> Self {
        let store = Store {
            sums: std::ptr::null_mut(),
            bias: std::ptr::null(),
            steps: std::ptr::null(),
            totals: std::ptr::null(),
            scales: std::ptr::null(),
            rows: 0,
            columns: 0,
            y: std::ptr::null_mut(),
            stride: g.y_stride,
            product: PhantomData,
        };
        let rows = UNIT_ROWS.div_ceil(4 * steps.max(1));
        let behind_product = if rows <= F::ROWS_MAX { rows } else { 0 };
        Self { store, epilogue: g.epilogue, behind_product, finish: PhantomData }
    }

    /// Takes up to `rows` of them.
    #[inline(always)]
    fn take(&mut self, rows: usize) -> Store<E, P> {
        let all = &mut self.store;
        let rows = rows.min(all.rows);
        let now = Store { rows, ..*all };
        all.rows -= rows;
        all.sums = all.sums.wrapping_add(rows * PANEL);
        all.scales = all.scales.wrapping_add(rows);
        all.y = all.y.wrapping_add(rows * all.stride);
        now
    }

    /// Finishes up to `rows` of them in a call.
    ///
    /// # Safety
    /// As [`Store::stored`].
    #[inline(always)]
    unsafe fn call(&mut self, rows: usize) {
        if self.store.rows > 0 {
            // SAFETY: these are some of the rows that the caller guarantees.
            unsafe { finish(&self.take(rows), self.epilogue) }
        }
    }
}

/// What the vector unit does while the tile unit multiplies. A trait and no closure, which would
/// not be compiled for the instruction set.
trait Meanwhile {
    /// # Safety
    /// As [`Store::stored`].
    unsafe fn behind_product(&mut self);
}

struct Nothing;

impl Meanwhile for Nothing {
    #[inline(always)]
    unsafe fn behind_product(&mut self) {}
}

impl<E: Element, P: Product, F: Finish<E, P>> Meanwhile for Waiting<E, P, F> {
    /// Finishes some rows, if the epilogue is compiled in and the panel whole.
    #[inline(always)]
    unsafe fn behind_product(&mut self) {
        if self.store.rows > 0 && self.store.columns == PANEL {
            // SAFETY: these are some of the rows that the caller guarantees.
            unsafe { F::rows(&Store { columns: PANEL, ..self.take(self.behind_product) }) }
        }
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
    /// Whether the first cache should keep the inputs.
    stays: bool,
    weight: *const u8,
    /// Rows of a panel's sums.
    out: *mut f32,
}

impl Operands {
    /// Computes a unit of two tiles of rows, or one if not `TALL`, and two of columns, or one if
    /// not `WIDE`, while waiting rows are finished.
    ///
    /// # Safety
    /// The thread's tiles are configured; the unit's tiles are rows of the inputs; as
    /// [`Store::stored`] for the waiting rows.
    #[inline(always)]
    unsafe fn run<T, E, P, F, const TALL: bool, const WIDE: bool>(
        &self,
        unit: &Unit,
        waiting: &mut Waiting<E, P, F>,
    ) where
        T: Tiles,
        E: Element,
        P: Product,
        F: Finish<E, P>,
    {
        let (whole, tail) = (self.row_bytes / ROW_BYTES, self.row_bytes % ROW_BYTES);
        let high = unit.high.unwrap_or_default();
        let behind = F::ROWS_MAX > 0 && TALL && WIDE && waiting.behind_product > 0;
        // SAFETY: steps 0..whole are inside rows and panel, and the tail is inside its buffer; the
        // second tile of sums starts at most 16 rows below the first.
        unsafe {
            let mut left = Left {
                low: self.inputs.add(unit.low * self.stride),
                high: self.inputs.add(high.0 * self.stride),
                stride: self.stride,
                stays: self.stays,
            };
            let mut b = self.weight;
            T::zero::<0>();
            T::zero::<1>();
            T::zero::<2>();
            T::zero::<3>();
            for _ in 0..whole {
                if behind {
                    step::<T, P, TALL, WIDE>(left, b, waiting);
                } else {
                    step::<T, P, TALL, WIDE>(left, b, &mut Nothing);
                    waiting.call(CALLED_ROWS);
                }
                left.low = left.low.add(ROW_BYTES);
                left.high = left.high.add(ROW_BYTES);
                b = b.add(STEP_BYTES);
            }
            if tail > 0 {
                let mut last = [const { MaybeUninit::<[u8; ROW_BYTES]>::uninit() }; UNIT_ROWS];
                for row in 0..self.height {
                    let at = row * self.stride;
                    copy_row(left.low.add(at), tail, last[row].as_mut_ptr());
                    if TALL {
                        copy_row(left.high.add(at), tail, last[ROWS + row].as_mut_ptr());
                    }
                }
                let low = last.as_ptr().cast::<u8>();
                let high = low.add(ROWS * ROW_BYTES);
                let left = Left { low, high, stride: ROW_BYTES, stays: true };
                step::<T, P, TALL, WIDE>(left, b, &mut Nothing);
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

/// Two tiles of inputs, one below the other.
#[derive(Clone, Copy)]
struct Left {
    low: *const u8,
    high: *const u8,
    /// Bytes from a row to the next.
    stride: usize,
    /// Whether the first cache should keep them.
    stays: bool,
}

impl Left {
    /// # Safety
    /// As [`Tiles::load`].
    #[inline(always)]
    unsafe fn load<T: Tiles, const TILE: u8>(self, from: *const u8) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            match self.stays {
                true => T::load::<TILE>(from, self.stride),
                false => T::stream::<TILE>(from, self.stride),
            }
        }
    }
}

/// Sixteen words of the sums.
///
/// # Safety
/// The thread's tiles are configured; the pointers lead to tiles of inputs, and to two of the
/// weight side by side; as [`Store::stored`] for what is done meanwhile.
#[inline(always)]
unsafe fn step<T: Tiles, P: Product, const TALL: bool, const WIDE: bool>(
    left: Left,
    b: *const u8,
    meanwhile: &mut impl Meanwhile,
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
        left.load::<T, 4>(left.low);
        dot!(0, 4, 6);
        meanwhile.behind_product();
        if WIDE {
            T::load::<7>(b.add(ROW_BYTES), b_stride);
            dot!(1, 4, 7);
            meanwhile.behind_product();
        }
        if TALL {
            left.load::<T, 5>(left.high);
            dot!(2, 5, 6);
            meanwhile.behind_product();
            if WIDE {
                dot!(3, 5, 7);
                meanwhile.behind_product();
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
