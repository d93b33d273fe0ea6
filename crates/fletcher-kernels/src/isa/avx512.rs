//! 512-bit vectors with masks for the tails.

use std::arch::x86_64::*;

use super::Lanes;
use crate::ops::tile::Tile;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// The lowest `lanes` bits.
#[inline(always)]
fn mask(lanes: usize) -> __mmask16 {
    ((1u32 << lanes.min(16)) - 1) as __mmask16
}

// SAFETY, for every block below: the trait's contract gives the instruction set and the bounds;
// masked-off lanes are not accessed by the hardware.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all, above")]
impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    // 28 sums, 2 vectors of the right operand and a broadcast: 31 of 32 registers.
    const TILE_ROWS: usize = 14;

    #[inline(always)]
    unsafe fn tile(tile: &Tile) {
        unsafe { crate::dispatch::avx512::tile(tile) }
    }
    #[inline(always)]
    unsafe fn columns(from: *const f32, stride: usize) -> [Self; 4] {
        // Lane group g of vector r holds row 4 g + r, so that transposing the 4 x 4 blocks in
        // each group leaves the rows in order.
        unsafe {
            let quad = |row: usize| _mm_loadu_ps(from.add(row * stride));
            let rows = |r: usize| {
                let v = _mm512_castps128_ps512(quad(r));
                let v = _mm512_insertf32x4::<1>(v, quad(r + 4));
                let v = _mm512_insertf32x4::<2>(v, quad(r + 8));
                _mm512_insertf32x4::<3>(v, quad(r + 12))
            };
            let (a, b, c, d) = (rows(0), rows(1), rows(2), rows(3));
            let pair = |a, b| (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let ((ab_low, ab_high), (cd_low, cd_high)) = (pair(a, b), pair(c, d));
            [
                Self(_mm512_shuffle_ps::<0x44>(ab_low, cd_low)),
                Self(_mm512_shuffle_ps::<0xee>(ab_low, cd_low)),
                Self(_mm512_shuffle_ps::<0x44>(ab_high, cd_high)),
                Self(_mm512_shuffle_ps::<0xee>(ab_high, cd_high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self {
        unsafe { Self(_mm512_maskz_loadu_ps(mask(lanes), from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, lanes: usize) {
        unsafe { _mm512_mask_storeu_ps(to, mask(lanes), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn shift_left_23(self) -> Self {
        unsafe { Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0)))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}
