//! Tiles in plain Rust: what the instructions mean, and the twin of those that run.

use std::cell::RefCell;

use super::{ROW_BYTES, ROW_WORDS, ROWS, Tiles};

/// A thread's tiles; none are configured at first.
pub(crate) struct Emulated;

#[derive(Default)]
struct Unit {
    rows: Option<usize>,
    tiles: [[[u32; ROW_WORDS]; ROWS]; 8],
}

thread_local! {
    static UNIT: RefCell<Unit> = RefCell::default();
}

impl Unit {
    /// Rows of a tile.
    fn rows(&self, tile: u8) -> usize {
        let rows = self.rows.expect("tiles are configured");
        if tile < 6 { rows } else { ROWS }
    }

    /// Replaces each sum by what `dot` makes of it, the row of `a` and the column of `b`.
    fn dot(
        &mut self,
        [sums, a, b]: [u8; 3],
        dot: impl Fn(u32, &mut dyn Iterator<Item = (u32, u32)>) -> u32,
    ) {
        let rows = self.rows(sums);
        assert_eq!((rows, ROWS), (self.rows(a), self.rows(b)));
        let [a, b] = [a, b].map(|tile| self.tiles[usize::from(tile)]);
        for (row, sums) in a.iter().zip(&mut self.tiles[usize::from(sums)]).take(rows) {
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum = dot(*sum, &mut row.iter().zip(&b).map(|(&a, b)| (a, b[column])));
            }
        }
    }
}

/// Subnormal numbers count as 0, and become 0.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// `a * b + sum`, rounded once.
fn fused(sum: f32, a: u32, b: u32) -> f32 {
    flush(flush(f32::from_bits(a)).mul_add(flush(f32::from_bits(b)), sum))
}

impl Tiles for Emulated {
    unsafe fn configure(rows: usize) {
        assert!((1..=ROWS).contains(&rows), "{rows} rows");
        UNIT.set(Unit { rows: Some(rows), ..Unit::default() });
    }
    unsafe fn release() {
        UNIT.set(Unit::default());
    }
    unsafe fn zero<const TILE: u8>() {
        UNIT.with_borrow_mut(|unit| unit.tiles[usize::from(TILE)] = Default::default());
    }
    unsafe fn load<const TILE: u8>(from: *const u8, stride: usize) {
        UNIT.with_borrow_mut(|unit| {
            let mut tile = [[0; ROW_WORDS]; ROWS];
            for (row, words) in tile.iter_mut().enumerate().take(unit.rows(TILE)) {
                // SAFETY: the caller guarantees the rows.
                let bytes: [u8; ROW_BYTES] =
                    unsafe { from.add(row * stride).cast::<[u8; ROW_BYTES]>().read() };
                for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
                    *word = u32::from_le_bytes(bytes.try_into().unwrap());
                }
            }
            unit.tiles[usize::from(TILE)] = tile;
        });
    }
    unsafe fn stream<const TILE: u8>(from: *const u8, stride: usize) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { Self::load::<TILE>(from, stride) }
    }
    unsafe fn store<const TILE: u8>(to: *mut u8, stride: usize) {
        UNIT.with_borrow(|unit| {
            for row in 0..unit.rows(TILE) {
                let words = unit.tiles[usize::from(TILE)][row];
                // SAFETY: the caller guarantees the rows.
                unsafe { to.add(row * stride).cast::<[u32; ROW_WORDS]>().write_unaligned(words) }
            }
        });
    }
    unsafe fn dot_bf16<const SUMS: u8, const A: u8, const B: u8>() {
        let dot = |sum: u32, words: &mut dyn Iterator<Item = (u32, u32)>| {
            let [mut even, mut odd] = [0.0; 2];
            for (a, b) in words {
                even = fused(even, a << 16, b << 16);
                odd = fused(odd, a & 0xffff_0000, b & 0xffff_0000);
            }
            flush(flush(f32::from_bits(sum)) + flush(even + odd)).to_bits()
        };
        UNIT.with_borrow_mut(|unit| unit.dot([SUMS, A, B], dot));
    }
    unsafe fn dot_int8<const SUMS: u8, const A: u8, const B: u8>() {
        let dot = |sum: u32, words: &mut dyn Iterator<Item = (u32, u32)>| {
            words.fold(sum, |sum, (a, b)| {
                let bytes = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
                let products = bytes.map(|(a, b)| i32::from(a) * i32::from(b as i8));
                sum.wrapping_add_signed(products.sum())
            })
        };
        UNIT.with_borrow_mut(|unit| unit.dot([SUMS, A, B], dot));
    }
}
