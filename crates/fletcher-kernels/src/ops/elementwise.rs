//! Small row operations: sums, scaling, maxima and rotary embedding.

use crate::isa::Lanes;
use crate::ops::norm::chunks;

/// `sum[i] += row[i] * factor`.
///
/// # Safety
/// The CPU has the instruction set of `L`; both slices have the same length.
#[inline(always)]
pub(crate) unsafe fn add_scaled<L: Lanes>(sum: &mut [f32], row: &[f32], factor: f32) {
    for (start, lanes) in chunks::<L>(row.len()) {
        // SAFETY: the chunk lies inside both slices.
        unsafe {
            let at = sum.as_mut_ptr().add(start);
            let value = L::load_partial(row.as_ptr().add(start), lanes);
            let old = L::load_partial(at, lanes);
            value.fma(L::splat(factor), old).store_partial(at, lanes);
        }
    }
}

/// `greatest[i] = max(greatest[i], row[i])`; a NaN in `row` goes through.
///
/// # Safety
/// The CPU has the instruction set of `L`; both slices have the same length.
#[inline(always)]
pub(crate) unsafe fn keep_greatest<L: Lanes>(greatest: &mut [f32], row: &[f32]) {
    for (start, lanes) in chunks::<L>(row.len()) {
        // SAFETY: the chunk lies inside both slices.
        unsafe {
            let at = greatest.as_mut_ptr().add(start);
            let value = L::load_partial(row.as_ptr().add(start), lanes);
            L::load_partial(at, lanes).max(value).store_partial(at, lanes);
        }
    }
}

/// Rotary embedding of one head: its halves `a`, `b` become `a cos - b sin`, `b cos + a sin`
/// (Su et al. 2021, in the rotate-half form of `transformers`).
///
/// # Safety
/// The CPU has the instruction set of `L`; `head` is twice as long as `cos` and `sin`.
#[inline(always)]
pub(crate) unsafe fn rotate<L: Lanes>(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for (start, lanes) in chunks::<L>(half) {
        // SAFETY: the chunk lies inside both halves of the head and inside the tables.
        unsafe {
            let (at_a, at_b) = (head.as_mut_ptr().add(start), head.as_mut_ptr().add(half + start));
            let (a, b) = (L::load_partial(at_a, lanes), L::load_partial(at_b, lanes));
            let cos = L::load_partial(cos.as_ptr().add(start), lanes);
            let sin = L::load_partial(sin.as_ptr().add(start), lanes);
            a.mul(cos).sub(b.mul(sin)).store_partial(at_a, lanes);
            b.mul(cos).add(a.mul(sin)).store_partial(at_b, lanes);
        }
    }
}
