//! Rows to bytes, each row with a step and a zero of its own.
//!
//! A row is mixed first ([`super::mix`]): its bytes stand for the mixed columns, which is what a
//! weight in bytes is packed for. They span the mixed row's own range, stretched to contain 0, so
//! that 0 is a byte exactly and a row of zeros stays one.

use std::mem::MaybeUninit;

use crate::isa::Lanes;
use crate::number::{Bf16, Element, Range, RowScale};
use crate::ops::gemm::check_rows;
use crate::ops::mix;

/// Rows to read.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In single precision.
    F32(&'a [f32]),
    /// In bfloat16.
    Bf16(&'a [Bf16]),
}

/// The operands of a quantisation.
#[derive(Debug)]
pub struct Quantize<'a> {
    /// Rows of `x` and `bytes`.
    pub rows: usize,
    /// Columns of both.
    pub columns: usize,
    /// `rows` rows …
    pub x: Source<'a>,
    /// … that are this many elements apart.
    pub x_stride: usize,
    /// `rows` rows …
    pub bytes: &'a mut [u8],
    /// … that are this many elements apart.
    pub stride: usize,
    /// What the bytes mean, one per row. A row with a value that is not finite gets a NaN.
    pub scales: &'a mut [RowScale],
}

impl Quantize<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self) {
        match self.x {
            Source::F32(x) => check_rows(x, self.rows, self.columns, self.x_stride),
            Source::Bf16(x) => check_rows(x, self.rows, self.columns, self.x_stride),
        }
        check_rows(self.bytes, self.rows, self.columns, self.stride);
        assert!(self.scales.len() >= self.rows, "{} scales of {}", self.scales.len(), self.rows);
    }
}

/// Rows whose ranges are looked for together: the end of each search is a chain of single steps,
/// which others' fill.
const GROUP: usize = 8;

/// Mixed columns of a group: half of a first-level cache, where the rows are read from it.
const GROUP_COLUMNS: usize = 4096;

/// Room for mixed rows, on whole cache lines.
#[repr(align(64))]
struct Mixed([MaybeUninit<f32>; mix::COLUMNS_MAX]);

/// Quantises rows.
///
/// # Safety
/// The CPU has the instruction set of `L`, and [`Quantize::check`] has passed.
#[inline(always)]
pub(crate) unsafe fn quantize<L: Lanes>(q: &mut Quantize<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match q.x {
            Source::F32(x) => rows::<L, f32>(x.as_ptr(), q),
            Source::Bf16(x) => rows::<L, Bf16>(x.as_ptr(), q),
        }
    }
}

/// # Safety
/// As [`quantize`]; `x` is the first element.
#[inline(always)]
unsafe fn rows<L: Lanes, E: Element>(x: *const E, q: &mut Quantize<'_>) {
    // SAFETY: the caller's guarantees are passed on, and the blocks are the columns'.
    unsafe {
        match mix::blocks(q.columns) {
            24 => mixed::<L, E, 24>(x, q),
            16 => mixed::<L, E, 16>(x, q),
            8 => mixed::<L, E, 8>(x, q),
            _ => plain::<L, E>(x, q),
        }
    }
}

/// Rows as they are.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn plain<L: Lanes, E: Element>(x: *const E, q: &mut Quantize<'_>) {
    for first in (0..q.rows).step_by(GROUP) {
        let group = first..q.rows.min(first + GROUP);
        // SAFETY: check has established the columns of each row, and the scales.
        unsafe {
            for row in group.clone() {
                let x = std::slice::from_raw_parts(x.add(row * q.x_stride), q.columns);
                q.scales[row] = scale(E::extremes::<L>(x));
            }
            for row in group {
                let bytes = q.bytes.as_mut_ptr().add(row * q.stride);
                round::<L, E>(x.add(row * q.x_stride), q.columns, q.scales[row], bytes);
            }
        }
    }
}

/// Rows that are mixed.
///
/// # Safety
/// As [`rows`]; `BLOCKS` is how many the columns have.
#[inline(always)]
unsafe fn mixed<L: Lanes, E: Element, const BLOCKS: usize>(x: *const E, q: &mut Quantize<'_>) {
    let mut room = Mixed([MaybeUninit::uninit(); mix::COLUMNS_MAX]);
    let group_rows = (GROUP_COLUMNS / q.columns).clamp(1, GROUP);
    for first in (0..q.rows).step_by(group_rows) {
        let group = first..q.rows.min(first + group_rows);
        // SAFETY: check has established the columns of each row, and the scales; the room holds a
        // group of rows.
        unsafe {
            let room = room.0.as_mut_ptr().cast::<f32>();
            for row in group.clone() {
                let to = room.add((row - first) * q.columns);
                let range = mix::mix_row::<L, E, BLOCKS>(x.add(row * q.x_stride), q.columns, to);
                q.scales[row] = scale(range);
            }
            for row in group {
                let bytes = q.bytes.as_mut_ptr().add(row * q.stride);
                let from = room.add((row - first) * q.columns);
                round::<L, f32>(from, q.columns, q.scales[row], bytes);
            }
        }
    }
}

/// Rounds a row to bytes.
///
/// # Safety
/// The CPU has the instruction set of `L`; both rows have `columns` elements.
#[inline(always)]
unsafe fn round<L: Lanes, E: Element>(x: *const E, columns: usize, scale: RowScale, to: *mut u8) {
    // SAFETY: at + lanes <= columns.
    unsafe {
        let (factor, zero) = (L::splat(1.0 / scale.scale), L::splat(scale.zero));
        let mut at = 0;
        while at + 4 * L::WIDTH <= columns {
            let mut four = [zero; 4];
            for (i, value) in four.iter_mut().enumerate() {
                let x: L = E::read(x.add(at + i * L::WIDTH), L::WIDTH);
                *value = x.fma(factor, zero);
            }
            L::store_four_u8(four, to.add(at));
            at += 4 * L::WIDTH;
        }
        while at < columns {
            let lanes = L::WIDTH.min(columns - at);
            let x: L = E::read(x.add(at), lanes);
            x.fma(factor, zero).store_u8(to.add(at), lanes);
            at += lanes;
        }
    }
}

/// The step and zero of a row with such a range.
fn scale(range: Range) -> RowScale {
    let Some((low, high)) = range else {
        return RowScale { scale: f32::NAN, zero: 0.0 };
    };
    let span = high - low;
    // A row of zeros, or of numbers too small for a step, is a row of zeros.
    let scale = if span / 255.0 > f32::MIN_POSITIVE { span / 255.0 } else { 1.0 };
    RowScale { scale, zero: (-low / scale).round_ties_even() }
}

/// Mixes a weight's row and rounds it to `-127..=127` of the steps that are returned: NaN if a
/// weight is not finite. Both vectors are overwritten.
pub(crate) fn round_weight(row: &[f32], mixed: &mut Vec<f32>, bytes: &mut Vec<i8>) -> f32 {
    /// 1.5 * 2^23: a sum with it has the nearest integer in its lowest bits; the baseline
    /// instruction set, which this is compiled for, has no other quick way to round.
    const ROUND: f32 = 12_582_912.0;
    mixed.clear();
    mixed.extend_from_slice(row);
    mix::mix_weight(mixed);
    let greatest = mixed.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
    let finite = mixed.iter().all(|value| value.is_finite());
    let step = match (finite, greatest > 0.0) {
        (true, true) => greatest / 127.0,
        // A row of zeros keeps its sums at zero with any step.
        (true, false) => 1.0,
        (false, _) => f32::NAN,
    };
    bytes.clear();
    bytes.extend(mixed.iter().map(|value| (value / step + ROUND).to_bits() as i8));
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_rounded_to_nearest_even_and_never_from_nan() {
        let (mut mixed, mut bytes) = (Vec::new(), Vec::new());
        let mut round = |row: &[f32]| (round_weight(row, &mut mixed, &mut bytes), bytes.clone());
        let row = [127.0, -127.0, 0.5, 1.5, -0.5, -1.5, 2.4, -2.6];
        assert_eq!(round(&row), (1.0, vec![127, -127, 0, 2, 0, -2, 2, -3]));
        assert_eq!(round(&[0.0; 128]), (1.0, vec![0; 128]));
        let mut row = [1.0; 384];
        row[5] = f32::NAN;
        assert!(round(&row).0.is_nan());
        row[5] = f32::INFINITY;
        assert!(round(&row).0.is_nan());
    }
}
