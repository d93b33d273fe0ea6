//! The orthogonal mixing of columns that makes rows fit for bytes.
//!
//! A byte's step is a 255th of its row's range, so one large column costs all others their digits,
//! and the states and weights of real models have such columns. A Hadamard matrix spreads every
//! column over 16 of them with signs: mixed rows look like normal deviates, whose range is half of
//! what it was. Both operands of a product are mixed, the weight once when it is packed, and the
//! product is the same, since `(H w / 16) (H x) = w x`.
//!
//! A row is cut into 16 blocks, or 8, and the columns at the same place of each are mixed, so that
//! vectors of neighbouring columns are mixed by additions alone, in one order on every instruction
//! set. Blocks of whole vectors waste nothing, and 384 columns have no 16 of these: they are cut
//! into 24, which makes three mixtures of 8 blocks. Half of each then meets the other half of the
//! next, and every column is a sum of 16 with signs here too.

use std::hint::black_box;

use crate::isa::Lanes;
use crate::number::{Element, Extremes, Range};

/// Most columns of a row that is mixed: more would not fit the first-level cache.
pub(crate) const COLUMNS_MAX: usize = 8192;
/// Fewest neighbours: a vector of any instruction set.
const APART_MIN: usize = 16;
/// Fewest columns of a row that is mixed: a product with fewer is done so soon that mixing would be
/// a good part of it, and fewer inputs make less error.
const COLUMNS_MIN: usize = 192;

/// Into how many blocks a row is cut, whose columns at the same place are mixed; 1: none.
pub(crate) fn blocks(columns: usize) -> usize {
    let suits = |(blocks, whole): &(usize, usize)| {
        columns.is_multiple_of(blocks * whole) && columns / blocks >= APART_MIN
    };
    // Blocks of whole vectors first: others end with a vector half of which is done twice.
    let all = [(16, APART_MIN), (24, APART_MIN), (16, 1), (8, 1)];
    let mixed = (COLUMNS_MIN..=COLUMNS_MAX).contains(&columns);
    all.into_iter().filter(|_| mixed).find(suits).map_or(1, |(blocks, _)| blocks)
}

/// How often each block meets another: columns are mixed with 2 to this power.
const fn levels(blocks: usize) -> usize {
    match blocks {
        8 => 3,
        _ => 4,
    }
}

/// Which blocks meet: pair `index` of a level.
#[inline(always)]
const fn pair(blocks: usize, level: usize, index: usize) -> (usize, usize) {
    if blocks == 24 && level == 3 {
        // Three mixtures of 8 so far: half of each meets the other half of the next.
        let low = index / 4 * 8 + index % 4;
        return (low, (low + 12) % 24);
    }
    let distance = 1 << level;
    let low = index / distance * 2 * distance + index % distance;
    (low, low + distance)
}

/// Mixes a row of a weight, scaled so that products with mixed inputs are those of the rows before.
pub(crate) fn mix_weight(row: &mut [f32]) {
    let blocks = blocks(row.len());
    if blocks == 1 {
        return;
    }
    let apart = row.len() / blocks;
    for level in 0..levels(blocks) {
        for index in 0..blocks / 2 {
            let (low, high) = pair(blocks, level, index);
            for column in 0..apart {
                let (low, high) = (low * apart + column, high * apart + column);
                (row[low], row[high]) = (row[low] + row[high], row[low] - row[high]);
            }
        }
    }
    // A power of two: nothing is rounded.
    let scale = 1.0 / (1 << levels(blocks)) as f32;
    row.iter_mut().for_each(|value| *value *= scale);
}

/// Mixes a row of `columns` inputs into `to`, and finds its range: `None` also when a number was
/// too large to be mixed.
///
/// # Safety
/// The CPU has the instruction set of `L`; both rows have `columns` elements, and `BLOCKS` is
/// how many [`blocks`] they have.
#[inline(always)]
pub(crate) unsafe fn mix_row<L: Lanes, E: Element, const BLOCKS: usize>(
    from: *const E,
    columns: usize,
    to: *mut f32,
) -> Range {
    let apart = columns / BLOCKS;
    // SAFETY: at + WIDTH <= apart, which the choice of blocks sees to, and BLOCKS times that many
    // columns exist.
    unsafe {
        let mut extremes = Extremes::<L>::new();
        // Behind the compiler's back: it would make subtractions of the multiplications.
        let minus = L::splat(black_box(-1.0));
        let mut next = 0;
        while next < apart {
            // The last vector ends with the block: it does again what the one before did.
            let at = next.min(apart - L::WIDTH);
            let mut values = [L::splat(0.0); BLOCKS];
            for (i, value) in values.iter_mut().enumerate() {
                *value = E::read(from.add(i * apart + at), L::WIDTH);
            }
            butterflies::<L, BLOCKS, 0>(&mut values, minus);
            butterflies::<L, BLOCKS, 1>(&mut values, minus);
            butterflies::<L, BLOCKS, 2>(&mut values, minus);
            if levels(BLOCKS) == 4 {
                butterflies::<L, BLOCKS, 3>(&mut values, minus);
            }
            for (i, &value) in values.iter().enumerate() {
                extremes.see(value);
                f32::write(value, to.add(i * apart + at), L::WIDTH);
            }
            next += L::WIDTH;
        }
        extremes.get()
    }
}

/// Sums and differences of the blocks that meet. Differences are made by multiplying with `minus`,
/// -1, so that the units that add do half of the work and those that multiply the other; the
/// results are the same.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
unsafe fn butterflies<L: Lanes, const BLOCKS: usize, const LEVEL: usize>(
    values: &mut [L; BLOCKS],
    minus: L,
) {
    for index in 0..BLOCKS / 2 {
        let (low, high) = pair(BLOCKS, LEVEL, index);
        let (a, b) = (values[low], values[high]);
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            values[low] = a.add(b);
            values[high] = b.fma(minus, a);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::scalar::Portable;

    #[test]
    fn blocks_divide_and_leave_a_vector() {
        for (columns, expected) in [
            (1, 1),
            (64, 1),
            (128, 1),
            (192, 8),
            (256, 16),
            (312, 8),
            (320, 16),
            (384, 24),
            (500, 1),
            (768, 16),
            (1152, 24),
            (1536, 16),
            (8192, 16),
            (8208, 1),
        ] {
            assert_eq!(blocks(columns), expected, "{columns}");
        }
    }

    /// Products stay what they were, and a spike is spread.
    #[test]
    fn mixing_keeps_products() {
        for columns in [192, 312, 320, 384, 392, 1152, 1536] {
            let number = |i: usize, seed: usize| ((i * 7919 + seed) % 97) as f32 / 97.0 - 0.5;
            let x: Vec<f32> = (0..columns).map(|i| number(i, 1)).collect();
            let mut weight: Vec<f32> = (0..columns).map(|i| number(i, 2)).collect();
            let dot = |w: &[f32], x: &[f32]| -> f64 {
                w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
            };
            let expected = dot(&weight, &x);
            let mut mixed = vec![0.0; columns];
            // SAFETY: plain Rust, and both rows have the columns.
            let range = unsafe {
                match blocks(columns) {
                    24 => mix_row::<Portable, f32, 24>(x.as_ptr(), columns, mixed.as_mut_ptr()),
                    16 => mix_row::<Portable, f32, 16>(x.as_ptr(), columns, mixed.as_mut_ptr()),
                    _ => mix_row::<Portable, f32, 8>(x.as_ptr(), columns, mixed.as_mut_ptr()),
                }
            };
            mix_weight(&mut weight);
            assert!((dot(&weight, &mixed) - expected).abs() < 1e-5, "{columns}");
            let least = mixed.iter().fold(0.0, |a: f32, &b| a.min(b));
            let greatest = mixed.iter().fold(0.0, |a: f32, &b| a.max(b));
            assert_eq!(range, Some((least, greatest)), "{columns}");
        }
        let mut spike = vec![0.0; 384];
        spike[100] = 16.0;
        mix_weight(&mut spike);
        assert_eq!(spike.iter().filter(|x| x.abs() == 1.0).count(), 16);
    }
}
