//! The register tile under every matrix product: a few rows times one panel.
//!
//! All sums of a tile stay in registers while it runs over the inner dimension, which it does in
//! one order whatever the tile's height: that is what makes results independent of batching.
//!
//! Both operands are read in 32-bit words, one f32, two bf16 or four bytes; a word of the left one
//! is broadcast and meets the words of all columns of the right one.

use std::marker::PhantomData;

use crate::buffer::{LINE, prefetch_line};
use crate::isa::{Kernel, Lanes, TILE_VECTORS};
use crate::number::Format;

/// Sums of the largest tile of any instruction set: 14 rows of 32 columns.
pub(crate) const MAX_SUMS: usize = 14 * 32;

/// Room for a tile's sums on the stack, on whole cache lines.
#[repr(align(64))]
pub(crate) struct Sums(pub(crate) [f32; MAX_SUMS]);

/// `sum over i < k of a[r][i] * b[i][c]`, for `vectors * WIDTH` columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Rows of the product: 1 to `TILE_ROWS`.
    pub(crate) rows: usize,
    /// Vectors of columns: 1 or 2.
    pub(crate) vectors: usize,
    /// Length of the sums, in words.
    pub(crate) k: usize,
    /// Left operand: words, at any address.
    pub(crate) a: *const u8,
    /// Distance between its rows, in bytes.
    pub(crate) a_stride: usize,
    /// Right operand: words.
    pub(crate) b: *const f32,
    /// Distance between its rows, in words.
    pub(crate) b_stride: usize,
    /// What to ask memory for meanwhile; nothing while there is work beside the product.
    pub(crate) ahead: Option<Lines>,
}

/// Lines of memory that are asked for one by one, each with a step of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    first: *const u8,
    /// Bytes from one to the next.
    apart: usize,
}

impl Lines {
    /// Those from here on.
    pub(crate) fn from(first: *const u8) -> Self {
        Self { first, apart: LINE }
    }

    /// Those of a tile. Without any, one that it reads anyway, again and again: so that there is
    /// one loop for all.
    #[inline(always)]
    fn of(tile: &Tile) -> Self {
        tile.ahead.unwrap_or(Self { first: tile.b.cast(), apart: 0 })
    }

    /// Asks for the next one.
    #[inline(always)]
    fn ask(&mut self) {
        prefetch_line(self.first);
        self.first = self.first.wrapping_add(self.apart);
    }
}

/// What becomes of a tile's sums, which are still in registers.
pub(crate) trait Sink {
    /// Fewest vectors of the tiles that come here: 2 spares the code of narrow ones.
    const VECTORS_MIN: usize = 1;

    /// Takes one vector: f32, or 32-bit integers in the integer format.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`; the row and the vector are the tile's.
    unsafe fn put<L: Lanes>(&self, row: usize, vector: usize, sum: L);
}

/// Puts sums into memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words {
    /// The first.
    pub(crate) to: *mut f32,
    /// Distance between rows, in words.
    pub(crate) stride: usize,
}

impl Sink for Words {
    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, row: usize, vector: usize, sum: L) {
        // SAFETY: whoever made the sink has room for the tile.
        unsafe { sum.store(self.to.add(row * self.stride + vector * L::WIDTH)) }
    }
}

/// Cuts `rows` into tiles that are as high as allowed and as equal as possible: a last tile of
/// one row would keep the multipliers waiting for each other.
pub(crate) struct Heights {
    rows: usize,
    tiles: usize,
}

impl Heights {
    #[inline(always)]
    pub(crate) fn new<L: Lanes>(rows: usize) -> Self {
        Self::at_most(L::TILE_ROWS, rows)
    }

    /// Tiles of at most `most` rows.
    #[inline(always)]
    pub(crate) fn at_most(most: usize, rows: usize) -> Self {
        Self { rows, tiles: rows.div_ceil(most) }
    }

    /// Tiles that are left.
    #[inline(always)]
    pub(crate) fn tiles(&self) -> usize {
        self.tiles
    }

    /// The next tile's height.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<usize> {
        let height = self.rows.checked_div(self.tiles)?;
        self.rows -= height;
        self.tiles -= 1;
        Some(height)
    }
}

/// A format's multiplication as a type, so that tiles are compiled per format.
pub(crate) trait Product {
    const FORMAT: Format;

    /// `sum + a * b`, word by word.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`.
    unsafe fn add<L: Lanes>(sum: L, a: L, b: L) -> L;
}

/// [`Format::F32`].
pub(crate) struct Singles;
/// [`Format::Bf16`].
pub(crate) struct Pairs;
/// [`Format::Int8`].
pub(crate) struct Quads;

impl Product for Singles {
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    unsafe fn add<L: Lanes>(sum: L, a: L, b: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { a.fma(b, sum) }
    }
}

impl Product for Pairs {
    const FORMAT: Format = Format::Bf16;

    #[inline(always)]
    unsafe fn add<L: Lanes>(sum: L, a: L, b: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { sum.dot_bf16(a, b) }
    }
}

impl Product for Quads {
    const FORMAT: Format = Format::Int8;

    #[inline(always)]
    unsafe fn add<L: Lanes>(sum: L, a: L, b: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { sum.dot_int8(a, b) }
    }
}

/// Runs a tile.
///
/// # Safety
/// The CPU has the instruction set of `L`, both operands have the rows and columns that the fields
/// name, and the sink takes tiles of this size.
#[inline(always)]
pub(crate) unsafe fn run<L: Lanes, S: Sink>(format: Format, tile: &Tile, sink: &S) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match format {
            Format::F32 => L::call(&Multiply(tile, PhantomData::<Singles>, sink)),
            Format::Bf16 => L::call(&Multiply(tile, PhantomData::<Pairs>, sink)),
            Format::Int8 => L::call(&Multiply(tile, PhantomData::<Quads>, sink)),
        }
    }
}

/// A tile in a format.
pub(crate) struct Multiply<'a, P, S>(
    pub(crate) &'a Tile,
    pub(crate) PhantomData<P>,
    pub(crate) &'a S,
);

impl<P: Product, S: Sink> Kernel for Multiply<'_, P, S> {
    /// # Safety
    /// As [`run`].
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let (tile, sink) = (self.0, self.2);
        macro_rules! by_height {
            ($($rows:literal)*) => {
                match tile.rows {
                    // A height beyond the instruction set's tile compiles to nothing.
                    $($rows if $rows <= L::TILE_ROWS => fixed::<L, P, S, $rows>(tile, sink),)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        // SAFETY: the caller's guarantees are passed on.
        unsafe { by_height!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
    }
}

/// # Safety
/// As [`run`], and `tile.rows` is `ROWS`.
#[inline(always)]
unsafe fn fixed<L: Lanes, P: Product, S: Sink, const ROWS: usize>(tile: &Tile, sink: &S) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        if S::VECTORS_MIN == TILE_VECTORS || tile.vectors == TILE_VECTORS {
            return unrolled::<L, P, S, ROWS, TILE_VECTORS>(tile, sink);
        }
        unrolled::<L, P, S, ROWS, 1>(tile, sink)
    }
}

/// # Safety
/// As [`fixed`], and `tile.vectors` is `VECTORS`.
#[inline(always)]
unsafe fn unrolled<L: Lanes, P: Product, S: Sink, const ROWS: usize, const VECTORS: usize>(
    tile: &Tile,
    sink: &S,
) {
    // SAFETY: i < k keeps every step inside the operands, row < ROWS and v < VECTORS what is put
    // inside the tile.
    unsafe {
        let mut sums = [[L::splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b, mut ahead) = (tile.a, tile.b, Lines::of(tile));
        for _ in 0..tile.k {
            ahead.ask();
            step::<L, P, ROWS, VECTORS>(&mut sums, (a, tile.a_stride), b);
            a = a.add(4);
            b = b.add(tile.b_stride);
        }
        put(&sums, sink);
    }
}

/// Adds one word of each row times one row of the right operand.
///
/// # Safety
/// The CPU has the instruction set of `L`; `a` leads to a word in each of `ROWS` rows that are so
/// many bytes apart, `b` to `VECTORS` vectors.
#[inline(always)]
unsafe fn step<L: Lanes, P: Product, const ROWS: usize, const VECTORS: usize>(
    sums: &mut [[L; VECTORS]; ROWS],
    (a, a_stride): (*const u8, usize),
    b: *const f32,
) {
    // SAFETY: the caller guarantees the rows and vectors.
    unsafe {
        let mut right = [L::splat(0.0); VECTORS];
        for (v, right) in right.iter_mut().enumerate() {
            *right = L::load(b.add(v * L::WIDTH));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let left = match P::FORMAT {
                Format::Int8 => L::broadcast(a.add(row * a_stride)),
                _ => L::broadcast_float(a.add(row * a_stride)),
            };
            for v in 0..VECTORS {
                sums[v] = P::add(sums[v], left, right[v]);
            }
        }
    }
}

/// Columns outside: what a sink needs for each column is loaded once.
///
/// # Safety
/// The CPU has the instruction set of `L`, and the sink takes a tile of this size.
#[inline(always)]
unsafe fn put<L: Lanes, S: Sink, const ROWS: usize, const VECTORS: usize>(
    sums: &[[L; VECTORS]; ROWS],
    sink: &S,
) {
    for v in 0..VECTORS {
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: the caller guarantees the tile's size.
            unsafe { sink.put(row, v, sums[v]) }
        }
    }
}

/// Work on vectors of another tile. Its pieces stand between the steps of a product, where they
/// find units of the core idle: products keep those busy that multiply, and wait for nothing else.
pub(crate) trait Beside {
    /// How many pieces.
    fn pieces(&self) -> usize;

    /// Does one.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`, `piece < pieces`, and each is done once.
    unsafe fn piece<L: Lanes>(&self, piece: usize);
}

/// Least rows of a tile that has work beside it; fewer rows than this are not worth code of their
/// own.
pub(crate) const BESIDE_ROWS_MIN: usize = 6;

/// A tile in a format, two vectors wide and [`BESIDE_ROWS_MIN`] to [`Lanes::BESIDE_ROWS`] high, and
/// the work beside it.
pub(crate) struct MultiplyBeside<'a, P, B> {
    pub(crate) tile: &'a Tile,
    pub(crate) product: PhantomData<P>,
    /// Where the sums go.
    pub(crate) words: Words,
    /// Nothing that is read here is written by the sums.
    pub(crate) beside: &'a B,
}

impl<P: Product, B: Beside> Kernel for MultiplyBeside<'_, P, B> {
    /// # Safety
    /// As [`run`], and as [`Beside::piece`].
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        macro_rules! by_height {
            ($($rows:literal)*) => {
                match self.tile.rows {
                    $($rows if $rows <= L::BESIDE_ROWS => self.unrolled::<L, $rows>(),)*
                    rows => unreachable!("a tile of {rows} rows with work beside it"),
                }
            };
        }
        // SAFETY: the caller's guarantees are passed on.
        unsafe { by_height!(6 7 8 9 10 11 12) }
    }
}

impl<P: Product, B: Beside> MultiplyBeside<'_, P, B> {
    /// # Safety
    /// As [`Kernel::run`], and the tile has `ROWS` rows.
    #[inline(always)]
    unsafe fn unrolled<L: Lanes, const ROWS: usize>(&self) {
        let (tile, beside) = (self.tile, self.beside);
        let pieces = beside.pieces();
        let both = pieces.min(tile.k);
        // SAFETY: i < k keeps every step inside the operands; pieces are counted to their number.
        unsafe {
            let mut sums = [[L::splat(0.0); TILE_VECTORS]; ROWS];
            let (mut a, mut b) = (tile.a, tile.b);
            for piece in 0..both {
                step::<L, P, ROWS, TILE_VECTORS>(&mut sums, (a, tile.a_stride), b);
                a = a.add(4);
                b = b.add(tile.b_stride);
                beside.piece::<L>(piece);
            }
            for _ in both..tile.k {
                step::<L, P, ROWS, TILE_VECTORS>(&mut sums, (a, tile.a_stride), b);
                a = a.add(4);
                b = b.add(tile.b_stride);
            }
            put(&sums, &self.words);
            for piece in both..pieces {
                beside.piece::<L>(piece);
            }
        }
    }
}
