//! Small operations on vectors of equal length: what embedding and pooling are made of.

use crate::isa::Lanes;
use crate::number::Element;

/// `y += factor * x`, element by element.
///
/// # Safety
/// The CPU has the instruction set of `L`; both slices have the same length.
#[inline(always)]
pub(crate) unsafe fn add_scaled<L: Lanes>(y: &mut [f32], x: &[f32], factor: f32) {
    let mut at = 0;
    while at < y.len() {
        let lanes = L::WIDTH.min(y.len() - at);
        // SAFETY: lanes at..at+lanes are inside both slices.
        unsafe {
            let slot = y.as_mut_ptr().add(at);
            let x: L = f32::read(x.as_ptr().add(at), lanes);
            f32::write(x.fma(L::splat(factor), f32::read(slot, lanes)), slot, lanes);
        }
        at += lanes;
    }
}

/// `y = max(y, x)`, element by element.
///
/// # Safety
/// As [`add_scaled`].
#[inline(always)]
pub(crate) unsafe fn max<L: Lanes>(y: &mut [f32], x: &[f32]) {
    let mut at = 0;
    while at < y.len() {
        let lanes = L::WIDTH.min(y.len() - at);
        // SAFETY: lanes at..at+lanes are inside both slices.
        unsafe {
            let slot = y.as_mut_ptr().add(at);
            let x: L = f32::read(x.as_ptr().add(at), lanes);
            f32::write(x.max(f32::read(slot, lanes)), slot, lanes);
        }
        at += lanes;
    }
}

/// `y *= factor`, element by element.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn scale<L: Lanes>(y: &mut [f32], factor: f32) {
    let mut at = 0;
    while at < y.len() {
        let lanes = L::WIDTH.min(y.len() - at);
        // SAFETY: lanes at..at+lanes are inside the slice.
        unsafe {
            let slot = y.as_mut_ptr().add(at);
            f32::write(f32::read::<L>(slot, lanes).mul(L::splat(factor)), slot, lanes);
        }
        at += lanes;
    }
}

/// The dot product, summed in one order for each length.
///
/// # Safety
/// As [`add_scaled`].
#[inline(always)]
pub(crate) unsafe fn dot<L: Lanes>(x: &[f32], y: &[f32]) -> f32 {
    // SAFETY: lanes at..at+lanes are inside both slices; missing lanes are zeros.
    unsafe {
        let (mut total, mut at) = (L::splat(0.0), 0);
        while at < x.len() {
            let lanes = L::WIDTH.min(x.len() - at);
            let x: L = f32::read(x.as_ptr().add(at), lanes);
            total = x.fma(f32::read(y.as_ptr().add(at), lanes), total);
            at += lanes;
        }
        total.sum()
    }
}
