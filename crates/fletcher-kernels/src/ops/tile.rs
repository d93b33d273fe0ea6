//! The register tile under every matrix product: a few rows times one panel.
//!
//! All sums of a tile stay in registers while it runs over the inner dimension, which it does in
//! one order whatever the tile's height: that is what makes results independent of batching.

use crate::isa::{Lanes, TILE_VECTORS};

/// Sums of the largest tile of any instruction set: 14 rows of 32 columns.
pub(crate) const MAX_SUMS: usize = 14 * 32;

/// Room for a tile's sums on the stack, on whole cache lines.
#[repr(align(64))]
pub(crate) struct Sums(pub(crate) [f32; MAX_SUMS]);

/// `out[r][c] = sum over i < k of a[r][i] * b[i][c]`, for `vectors * WIDTH` columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Rows of the product: 1 to `TILE_ROWS`.
    pub(crate) rows: usize,
    /// Vectors of columns: 1 or 2.
    pub(crate) vectors: usize,
    /// Length of the sums.
    pub(crate) k: usize,
    /// Left operand and the distance between its rows.
    pub(crate) a: *const f32,
    pub(crate) a_stride: usize,
    /// Right operand and the distance between its rows.
    pub(crate) b: *const f32,
    pub(crate) b_stride: usize,
    /// Product and the distance between its rows.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
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
        Self { rows, tiles: rows.div_ceil(L::TILE_ROWS) }
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

/// Runs a tile.
///
/// # Safety
/// The CPU has the instruction set of `L`, and the three operands have the rows and columns that
/// the fields name.
#[inline(always)]
pub(crate) unsafe fn multiply<L: Lanes>(tile: &Tile) {
    macro_rules! by_height {
        ($($rows:literal)*) => {
            match tile.rows {
                // A height beyond the instruction set's tile compiles to nothing.
                $($rows if $rows <= L::TILE_ROWS => fixed::<L, $rows>(tile),)*
                rows => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    // SAFETY: the caller's guarantees are passed on.
    unsafe { by_height!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

/// # Safety
/// As [`multiply`], and `tile.rows` is `ROWS`.
#[inline(always)]
unsafe fn fixed<L: Lanes, const ROWS: usize>(tile: &Tile) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match tile.vectors {
            TILE_VECTORS => unrolled::<L, ROWS, TILE_VECTORS>(tile),
            _ => unrolled::<L, ROWS, 1>(tile),
        }
    }
}

/// # Safety
/// As [`fixed`], and `tile.vectors` is `VECTORS`.
#[inline(always)]
unsafe fn unrolled<L: Lanes, const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
    // SAFETY: row < rows, i < k and v < vectors keep every access inside the operands.
    unsafe {
        let mut sums = [[L::splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.k {
            let mut right = [L::splat(0.0); VECTORS];
            for (v, right) in right.iter_mut().enumerate() {
                *right = L::load(b.add(v * L::WIDTH));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = L::splat(*a.add(row * tile.a_stride));
                for v in 0..VECTORS {
                    sums[v] = left.fma(right[v], sums[v]);
                }
            }
            a = a.add(1);
            b = b.add(tile.b_stride);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(tile.out.add(row * tile.out_stride + v * L::WIDTH));
            }
        }
    }
}
