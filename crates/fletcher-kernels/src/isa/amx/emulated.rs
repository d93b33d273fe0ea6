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

    /// `sums = word(sums, a, b)` for every row's words of `a` and rows of `b`.
    fn dot(
        &mut self,
        [sums, a, b]: [u8; 3],
        row: impl Fn(&mut [u32], &[u32], &dyn Fn(usize, usize) -> u32),
    ) {
        assert_eq!(self.rows(sums), self.rows(a));
        assert_eq!(self.rows(b), ROWS);
        let (a_tile, b_tile) = (self.tiles[usize::from(a)], self.tiles[usize::from(b)]);
        for at in 0..self.rows(sums) {
            let b = |word: usize, column: usize| b_tile[word][column];
            row(&mut self.tiles[usize::from(sums)][at], &a_tile[at], &b);
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
        UNIT.with_borrow_mut(|unit| {
            unit.dot([SUMS, A, B], |sums, a, b| {
                for (column, sum) in sums.iter_mut().enumerate() {
                    let [mut even, mut odd] = [0.0; 2];
                    for (word, &a) in a.iter().enumerate() {
                        let b = b(word, column);
                        even = fused(even, a << 16, b << 16);
                        odd = fused(odd, a & 0xffff_0000, b & 0xffff_0000);
                    }
                    let pairs = flush(even + odd);
                    *sum = flush(flush(f32::from_bits(*sum)) + pairs).to_bits();
                }
            });
        });
    }
    unsafe fn dot_int8<const SUMS: u8, const A: u8, const B: u8>() {
        UNIT.with_borrow_mut(|unit| {
            unit.dot([SUMS, A, B], |sums, a, b| {
                for (column, sum) in sums.iter_mut().enumerate() {
                    for (word, a) in a.iter().enumerate() {
                        let (a, b) = (a.to_le_bytes(), b(word, column).to_le_bytes());
                        for (a, b) in a.into_iter().zip(b) {
                            let product = i32::from(a) * i32::from(b as i8);
                            *sum = sum.wrapping_add_signed(product);
                        }
                    }
                }
            });
        });
    }
}
