//! The orthogonal mixing of columns that makes rows fit for bytes.
//!
//! A byte's step is a 255th of its row's range, so one large column costs all others their digits,
//! and the states and weights of real models have such columns. A Hadamard matrix spreads every
//! column over `order` of them with signs: mixed rows look like normal deviates, whose range is
//! half of what it was. Both operands of a product are mixed, the weight once when it is packed,
//! and the product is the same, since `(H w / order) (H x) = w x`.
//!
//! Mixed are the columns that are `columns / order` apart, so that vectors of neighbouring columns
//! are mixed by additions alone, in one order on every instruction set.

use std::hint::black_box;

use crate::isa::Lanes;
use crate::number::{Element, Extremes, Range};

/// Most columns of a row that is mixed: more would not fit the first-level cache.
pub(crate) const COLUMNS_MAX: usize = 8192;
/// Most columns that are mixed with each other: that many vectors stay in registers.
pub(crate) const ORDER_MAX: usize = 16;
/// Fewest neighbours: a vector of any instruction set.
const APART_MIN: usize = 16;
/// Fewest columns of a row that is mixed: a product with fewer is done so soon that mixing would be
/// a good part of it, and fewer inputs make less error.
const COLUMNS_MIN: usize = 192;

/// How many columns of a row are mixed with each other; 1: none.
pub(crate) fn order(columns: usize) -> usize {
    let suits = |order: &usize| columns.is_multiple_of(*order) && columns / order >= APART_MIN;
    let orders = [ORDER_MAX, ORDER_MAX / 2]
        .into_iter()
        .filter(|_| (COLUMNS_MIN..=COLUMNS_MAX).contains(&columns));
    orders.into_iter().find(suits).unwrap_or(1)
}

/// Mixes a row of a weight, scaled so that products with mixed inputs are those of the rows before.
pub(crate) fn mix_weight(row: &mut [f32]) {
    let order = order(row.len());
    let (apart, scale) = (row.len() / order, 1.0 / order as f32);
    let mut distance = 1;
    while distance < order {
        for pair in row.chunks_exact_mut(2 * distance * apart) {
            let (low, high) = pair.split_at_mut(distance * apart);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        distance *= 2;
    }
    // A power of two: nothing is rounded.
    row.iter_mut().for_each(|value| *value *= scale);
}

/// Mixes a row of `columns` inputs into `to`, and finds its range: `None` also when a number was
/// too large to be mixed.
///
/// # Safety
/// The CPU has the instruction set of `L`; both rows have `columns` elements, and `ORDER` is
/// their [`order`].
#[inline(always)]
pub(crate) unsafe fn mix_row<L: Lanes, E: Element, const ORDER: usize>(
    from: *const E,
    columns: usize,
    to: *mut f32,
) -> Range {
    let apart = columns / ORDER;
    // SAFETY: at + WIDTH <= apart, which an order sees to, and ORDER times that many columns exist.
    unsafe {
        let mut extremes = Extremes::<L>::new();
        // Behind the compiler's back: it would make subtractions of the multiplications.
        let minus = L::splat(black_box(-1.0));
        let mut next = 0;
        while next < apart {
            // The last vector ends with the columns: it does again what the one before did.
            let at = next.min(apart - L::WIDTH);
            let mut values = [L::splat(0.0); ORDER];
            for (i, value) in values.iter_mut().enumerate() {
                *value = E::read(from.add(i * apart + at), L::WIDTH);
            }
            butterflies::<L, ORDER, 1>(&mut values, minus);
            butterflies::<L, ORDER, 2>(&mut values, minus);
            butterflies::<L, ORDER, 4>(&mut values, minus);
            if ORDER == 16 {
                butterflies::<L, ORDER, 8>(&mut values, minus);
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

/// Sums and differences of columns that are `DISTANCE` places of the order apart. Differences are
/// made by multiplying with `minus`, -1, so that the units that add do half of the work and those
/// that multiply the other; the results are the same.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
unsafe fn butterflies<L: Lanes, const ORDER: usize, const DISTANCE: usize>(
    values: &mut [L; ORDER],
    minus: L,
) {
    for pair in 0..ORDER / 2 {
        let low = pair / DISTANCE * 2 * DISTANCE + pair % DISTANCE;
        let (a, b) = (values[low], values[low + DISTANCE]);
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            values[low] = a.add(b);
            values[low + DISTANCE] = b.fma(minus, a);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::scalar::Portable;

    #[test]
    fn orders_divide_and_leave_a_vector() {
        for (columns, expected) in [
            (1, 1),
            (64, 1),
            (128, 1),
            (192, 8),
            (256, 16),
            (312, 8),
            (384, 16),
            (500, 1),
            (768, 16),
            (8192, 16),
            (8208, 1),
        ] {
            assert_eq!(order(columns), expected, "{columns}");
        }
    }

    /// Products stay what they were, and a spike is spread.
    #[test]
    fn mixing_keeps_products() {
        for columns in [192, 312, 384, 392, 1536] {
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
                match order(columns) {
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
