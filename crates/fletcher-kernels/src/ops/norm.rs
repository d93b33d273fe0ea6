//! LayerNorm and RMSNorm, row by row, in two passes over values that stay in L1.

use crate::isa::Lanes;
use crate::number::{Bf16, Element};
use crate::ops::gemm::check_rows;

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + eps) * scale + bias` (Ba et al. 2016).
    Layer,
    /// `x / sqrt(mean of squares + eps) * scale + bias` (Zhang and Sennrich 2019).
    Rms,
}

/// The operands of a norm.
#[derive(Debug)]
pub struct Norm<'a> {
    /// Which.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// One per column.
    pub scale: &'a [f32],
    /// One per column.
    pub bias: Option<&'a [f32]>,
    /// Rows of `output`.
    pub rows: usize,
    /// What is normalised, laid out like `output`; `None`: `output` itself.
    pub input: Option<&'a [f32]>,
    /// `rows` rows as wide as `scale` …
    pub output: &'a mut [f32],
    /// … that are this many elements apart.
    pub stride: usize,
    /// Rows as wide as `scale` that get the same values, rounded.
    pub rounded: Option<&'a mut [Bf16]>,
    /// Elements from one rounded row to the next.
    pub rounded_stride: usize,
}

impl Norm<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self) {
        let columns = self.scale.len();
        assert!(self.bias.is_none_or(|bias| bias.len() == columns), "one bias per column");
        check_rows(self.output, self.rows, columns, self.stride);
        if let Some(input) = self.input {
            check_rows(input, self.rows, columns, self.stride);
        }
        if let Some(rounded) = &self.rounded {
            check_rows(rounded, self.rows, columns, self.rounded_stride);
        }
    }
}

/// Runs a norm.
///
/// # Safety
/// The CPU has the instruction set of `L`, and [`Norm::check`] has passed.
#[inline(always)]
pub(crate) unsafe fn norm<L: Lanes>(n: &mut Norm<'_>) {
    let columns = n.scale.len();
    let share = 1.0 / columns as f32;
    for row in 0..n.rows {
        // SAFETY: check has established `columns` elements in each row of both matrices.
        unsafe {
            let y = n.output.as_mut_ptr().add(row * n.stride);
            let x = n.input.map_or(y.cast_const(), |input| input.as_ptr().add(row * n.stride));
            let mean = match n.kind {
                NormKind::Layer => sum::<L>(x, columns) * share,
                NormKind::Rms => 0.0,
            };
            let variance = squares::<L>(x, columns, mean) * share;
            let factor = L::splat(1.0 / (variance + n.eps).sqrt());
            let mean = L::splat(mean);
            let rounded = n.rounded.as_mut().map(|r| r.as_mut_ptr().add(row * n.rounded_stride));
            let mut at = 0;
            while at < columns {
                let lanes = L::WIDTH.min(columns - at);
                let value = f32::read::<L>(x.add(at), lanes).sub(mean).mul(factor);
                let scale = f32::read::<L>(n.scale.as_ptr().add(at), lanes);
                let value = match n.bias {
                    Some(bias) => value.fma(scale, f32::read(bias.as_ptr().add(at), lanes)),
                    None => value.mul(scale),
                };
                f32::write(value, y.add(at), lanes);
                if let Some(rounded) = rounded {
                    Bf16::write(value, rounded.add(at), lanes);
                }
                at += lanes;
            }
        }
    }
}

/// Sums that do not wait for each other.
const CHAINS: usize = 4;

/// The sum of `term` over a row, in one order for each number of columns.
///
/// # Safety
/// The CPU has the instruction set of `L`; `x` has `columns` elements. Missing lanes are 0.
#[inline(always)]
unsafe fn sum_of<L: Lanes>(
    x: *const f32,
    columns: usize,
    mut add: impl FnMut(L, L, usize) -> L,
) -> f32 {
    // SAFETY: lanes at..at+lanes are inside the row.
    unsafe {
        let (mut totals, mut at) = ([L::splat(0.0); CHAINS], 0);
        while at + CHAINS * L::WIDTH <= columns {
            for (chain, total) in totals.iter_mut().enumerate() {
                *total = add(*total, L::load(x.add(at + chain * L::WIDTH)), L::WIDTH);
            }
            at += CHAINS * L::WIDTH;
        }
        while at < columns {
            let lanes = L::WIDTH.min(columns - at);
            totals[0] = add(totals[0], f32::read(x.add(at), lanes), lanes);
            at += lanes;
        }
        let [a, b, c, d] = totals;
        a.add(b).add(c.add(d)).sum()
    }
}

/// # Safety
/// The CPU has the instruction set of `L`; `x` has `columns` elements.
#[inline(always)]
unsafe fn sum<L: Lanes>(x: *const f32, columns: usize) -> f32 {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { sum_of::<L>(x, columns, |total, x, _| total.add(x)) }
}

/// The sum of squared distances from `center`.
///
/// # Safety
/// As [`sum`].
#[inline(always)]
unsafe fn squares<L: Lanes>(x: *const f32, columns: usize, center: f32) -> f32 {
    // SAFETY: the caller's guarantees are passed on; the mask has as many ones as any vector.
    unsafe {
        let center = L::splat(center);
        sum_of::<L>(x, columns, |total, x, lanes| {
            let distance = match lanes == L::WIDTH {
                true => x.sub(center),
                // The missing lanes stand at the center on both sides, so that they add nothing.
                false => x.sub(center.mul(L::load_partial([1.0f32; 16].as_ptr(), lanes))),
            };
            distance.fma(distance, total)
        })
    }
}
