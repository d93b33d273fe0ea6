//! 128-bit Arm vectors with fused multiply-add.

use std::arch::aarch64::*;

use super::Lanes;
use crate::ops::tile::Tile;

#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t);

// SAFETY, for every block below: NEON is part of the 64-bit Arm baseline, and the trait's contract
// gives the bounds.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all, above")]
impl Lanes for Neon {
    const WIDTH: usize = 4;
    // 24 sums, 2 vectors of the right operand and broadcasts: 27 of 32 registers.
    const TILE_ROWS: usize = 12;

    #[inline(always)]
    unsafe fn tile(tile: &Tile) {
        unsafe { crate::dispatch::neon::tile(tile) }
    }
    #[inline(always)]
    unsafe fn columns(from: *const f32, stride: usize) -> [Self; 4] {
        unsafe {
            let row = |r: usize| vld1q_f32(from.add(r * stride));
            let (ab, cd) = (vtrnq_f32(row(0), row(1)), vtrnq_f32(row(2), row(3)));
            let low = |a, b| Self(vcombine_f32(vget_low_f32(a), vget_low_f32(b)));
            let high = |a, b| Self(vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
            [low(ab.0, cd.0), low(ab.1, cd.1), high(ab.0, cd.0), high(ab.1, cd.1)]
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(vdupq_n_f32(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(vld1q_f32(from)) }
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self {
        let values: [f32; 4] =
            std::array::from_fn(|l| if l < lanes { unsafe { *from.add(l) } } else { 0.0 });
        unsafe { Self(vld1q_f32(values.as_ptr())) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, lanes: usize) {
        let mut values = [0.0f32; 4];
        unsafe { vst1q_f32(values.as_mut_ptr(), self.0) };
        for (lane, value) in values.iter().enumerate().take(lanes) {
            unsafe { *to.add(lane) = *value }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(vaddq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(vsubq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(vmulq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(vdivq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(vfmaq_f32(addend.0, self.0, factor.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(vmaxq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(vminq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Self(vabsq_f32(self.0)) }
    }
    #[inline(always)]
    unsafe fn shift_left_23(self) -> Self {
        unsafe { Self(vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(self.0)))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        unsafe { vmaxvq_f32(self.0) }
    }
}
