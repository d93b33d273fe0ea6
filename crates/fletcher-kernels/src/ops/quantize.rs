//! Rows to bytes, each row with a step and a zero of its own.
//!
//! The bytes span the row's own range, stretched to contain 0, so that 0 is a byte exactly: a
//! GELU's outputs, nearly all above 0, get nearly all of the 255 steps.

use crate::isa::Lanes;
use crate::number::{Bf16, Element, RowScale};
use crate::ops::gemm::check_rows;

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
    for first in (0..q.rows).step_by(GROUP) {
        let group = first..q.rows.min(first + GROUP);
        // SAFETY: check has established the columns of each row, and the scales.
        unsafe {
            for row in group.clone() {
                q.scales[row] = range::<L, E>(x.add(row * q.x_stride), q.columns);
            }
            for row in group {
                let x = x.add(row * q.x_stride);
                let RowScale { scale, zero } = q.scales[row];
                let (factor, zero) = (L::splat(1.0 / scale), L::splat(zero));
                let bytes = q.bytes.as_mut_ptr().add(row * q.stride);
                let mut at = 0;
                while at + 4 * L::WIDTH <= q.columns {
                    let mut four = [zero; 4];
                    for (i, value) in four.iter_mut().enumerate() {
                        let x: L = E::read(x.add(at + i * L::WIDTH), L::WIDTH);
                        *value = x.fma(factor, zero);
                    }
                    L::store_four_u8(four, bytes.add(at));
                    at += 4 * L::WIDTH;
                }
                while at < q.columns {
                    let lanes = L::WIDTH.min(q.columns - at);
                    let x: L = E::read(x.add(at), lanes);
                    x.fma(factor, zero).store_u8(bytes.add(at), lanes);
                    at += lanes;
                }
            }
        }
    }
}

/// The step and zero of a row.
///
/// # Safety
/// The CPU has the instruction set of `L`; `x` has `columns` elements.
#[inline(always)]
unsafe fn range<L: Lanes, E: Element>(x: *const E, columns: usize) -> RowScale {
    // SAFETY: the caller guarantees the elements.
    let extremes = unsafe { E::extremes::<L>(std::slice::from_raw_parts(x, columns)) };
    let Some((low, high)) = extremes else {
        return RowScale { scale: f32::NAN, zero: 0.0 };
    };
    let span = high - low;
    // A row of zeros, or of numbers too small for a step, is a row of zeros.
    let scale = if span / 255.0 > f32::MIN_POSITIVE { span / 255.0 } else { 1.0 };
    RowScale { scale, zero: (-low / scale).round_ties_even() }
}
