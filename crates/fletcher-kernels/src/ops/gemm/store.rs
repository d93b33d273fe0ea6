//! What becomes of a tile's sums: bias, activation or residual sum, rounding.

use std::marker::PhantomData;

use super::{Epilogue, Gemm};
use crate::isa::{Kernel, Lanes, TILE_VECTORS};
use crate::number::{Element, Format, RowScale};
use crate::ops::activation::{Activation, Function, GeluErf, with_function};
use crate::ops::tile::{
    self, BESIDE_ROWS_MIN, Beside, Multiply, MultiplyBeside, Product, Sink, Tile, Words,
};

/// Where a tile's sums go.
pub(super) struct Store<E, P> {
    /// Room for `rows` rows of a whole panel.
    pub(super) sums: *mut f32,
    /// A whole panel.
    pub(super) bias: *const f32,
    /// In bytes, a whole panel.
    pub(super) steps: *const f32,
    /// In bytes, a whole panel.
    pub(super) totals: *const f32,
    /// In bytes, one per row.
    pub(super) scales: *const RowScale,
    pub(super) rows: usize,
    /// Output columns of this tile that exist.
    pub(super) columns: usize,
    pub(super) y: *mut E,
    /// Elements from one output row to the next.
    pub(super) stride: usize,
    pub(super) product: PhantomData<P>,
}

impl<E: Element, P: Product> Store<E, P> {
    /// Multiplies and stores. The two epilogues that need no register of their own take a whole
    /// panel's sums as they are; others find them in memory, where the code for each is one loop.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`; the pointers lead to what the fields say.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&self, tile: &Tile, epilogue: Epilogue) {
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
    pub(super) unsafe fn stored<L: Lanes>(&self, epilogue: Epilogue) {
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
    pub(super) unsafe fn each<L: Lanes, T: Put<E>>(&self, put: &T) {
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
pub(super) trait Put<E> {
    /// # Safety
    /// The CPU has the instruction set of `L`; `y` leads to `lanes` outputs, those of the row and
    /// from the column on.
    unsafe fn put<L: Lanes>(&self, y: *mut E, lanes: usize, at: (usize, usize));
}

/// [`Epilogue::Activate`].
pub(super) struct Activate<'a, E, F, P: Product>(
    pub(super) &'a Store<E, P>,
    pub(super) PhantomData<F>,
);
/// [`Epilogue::Accumulate`].
pub(super) struct Accumulate<'a, E, P: Product>(pub(super) &'a Store<E, P>);
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

/// Bytes of a panel that the common first-level caches hold.
const PANEL_BYTES_MAX: usize = 32 << 10;

/// GELU of the sums before the present ones: its vectors are finished between the steps of the next
/// tile's product. Its multiplications are a tenth of a product of 384 inputs in bytes, what else
/// it takes as long again, and waits for results of its own; so none of that is seen.
pub(super) struct Waiting<E, P>(Option<Store<E, P>>);

impl<E: Element, P: Product> Waiting<E, P> {
    /// No sums wait.
    #[inline(always)]
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Whether a product is one whose epilogue can wait: whole panels of outputs as they are stored
    /// in this format, enough rows, and panels that stay in the first-level cache, since those that
    /// do not are read again for each tile, of which there are more.
    #[inline(always)]
    pub(super) fn suits<L: Lanes>(g: &Gemm<'_>) -> bool {
        let stored = (P::FORMAT == Format::F32) == (E::FORMAT == Format::F32);
        L::BESIDE_ROWS > 0
            && stored
            && g.epilogue == Epilogue::Activate(Activation::GeluErf)
            && g.linear.outputs().is_multiple_of(TILE_VECTORS * L::WIDTH)
            && g.rows >= BESIDE_ROWS_MIN
            && g.linear.words() * TILE_VECTORS * size_of::<L>() <= PANEL_BYTES_MAX
    }

    /// Multiplies, finishes the sums that wait meanwhile, and lets the new ones wait.
    ///
    /// # Safety
    /// As [`Store::run`]; the product [suits](Self::suits), and the sums that wait are elsewhere
    /// than the new ones.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&mut self, tile: &Tile, next: Store<E, P>) {
        if L::BESIDE_ROWS == 0 {
            return;
        }
        let words = Words { to: next.sums, stride: TILE_VECTORS * L::WIDTH };
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            match self.0.take() {
                Some(store) if tile.rows >= BESIDE_ROWS_MIN => {
                    let beside = &Activate(&store, PhantomData::<GeluErf>);
                    let product = PhantomData::<P>;
                    L::call(&MultiplyBeside { tile, product, words, beside });
                }
                store => {
                    tile::run::<L, _>(P::FORMAT, tile, &words);
                    Self(store).finish::<L>();
                }
            }
        }
        self.0 = Some(next);
    }

    /// Finishes the sums that wait.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    pub(super) unsafe fn finish<L: Lanes>(self) {
        if let Some(store) = self.0 {
            // SAFETY: the caller's guarantees are passed on.
            unsafe { L::call(&Activate(&store, PhantomData::<GeluErf>)) }
        }
    }
}

impl<E: Element, F: Function, P: Product> Beside for Activate<'_, E, F, P> {
    #[inline(always)]
    fn pieces(&self) -> usize {
        self.0.rows * TILE_VECTORS
    }

    #[inline(always)]
    unsafe fn piece<L: Lanes>(&self, piece: usize) {
        let (row, column) = (piece / TILE_VECTORS, piece % TILE_VECTORS * L::WIDTH);
        // SAFETY: the piece is one of the panel's vectors, all of which exist.
        unsafe {
            let y = self.0.y.add(row * self.0.stride + column);
            self.put::<L>(y, L::WIDTH, (row, column));
        }
    }
}
