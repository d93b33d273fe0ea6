//! What the tests share: deterministic numbers and the kernels of this machine.

#![allow(dead_code, reason = "each test program uses its part")]

use fletcher_kernels::{Isa, Kernels};

/// The kernels of every instruction set that this machine has, the portable ones first.
pub(crate) fn all() -> Vec<Kernels> {
    Isa::available().into_iter().filter_map(Kernels::for_isa).collect()
}

/// Uniform in -1..1, from Knuth's linear congruential generator.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2862933555777941757).wrapping_add(3037000493);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Mixes a row as bytes are, by the definition of `ops::mix`.
pub(crate) fn mixed(row: &[f32]) -> Vec<f32> {
    let columns = row.len();
    let suits = |(blocks, whole): &(usize, usize)| {
        columns.is_multiple_of(blocks * whole) && columns / blocks >= 16
    };
    let all = [(16, 16), (24, 16), (16, 1), (8, 1)].into_iter();
    let blocks = all.filter(|_| (192..=8192).contains(&columns)).find(suits).map_or(1, |b| b.0);
    let (apart, mut values) = (columns / blocks, row.to_vec());
    // The other block and whether this one is the first of the two.
    let by_bit = |block: usize, bit: usize| (block ^ bit, block & bit == 0);
    let by_third = |block: usize| ((block + 12) % 24, block % 8 < 4);
    for bit in [1, 2, 4, 8].into_iter().filter(|&bit| bit < blocks) {
        let before = values.clone();
        for (at, value) in values.iter_mut().enumerate() {
            let (partner, first) = match (blocks, bit) {
                (24, 8) => by_third(at / apart),
                _ => by_bit(at / apart, bit),
            };
            let partner = before[partner * apart + at % apart];
            *value = if first { before[at] + partner } else { partner - before[at] };
        }
    }
    values
}

/// Fails unless the values are equal to within `tolerance`, NaN included.
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= tolerance, "{what}: [{i}] is {found:e}, not {expected:e}");
    }
}

/// The error function by its series and continued fraction (Abramowitz and Stegun 7.1.6, 7.1.14).
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= 2.0 * a * a / f64::from(2 * n + 1);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else {
        let fraction = (1..80).rev().fold(a, |f, n| a + f64::from(n) / 2.0 / f);
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}
