//! 256-bit vectors with fused multiply-add.

use std::arch::x86_64::*;

use super::Lanes;
use crate::ops::tile::Tile;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

/// Eight ones, then eight zeros: a window into it is the mask of the first lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn mask(lanes: usize) -> __m256i {
    // SAFETY: the window starts at 0 to 8, so its 8 elements are inside the table.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - lanes.min(8)).cast()) }
}

// SAFETY, for every block below: the trait's contract gives the instruction set and the bounds;
// masked-off lanes are not accessed by the hardware.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all, above")]
impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    // 12 sums, 2 vectors of the right operand and a broadcast: 15 of 16 registers.
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn tile(tile: &Tile) {
        unsafe { crate::dispatch::avx2::tile(tile) }
    }
    #[inline(always)]
    unsafe fn columns(from: *const f32, stride: usize) -> [Self; 4] {
        // Lane group g of vector r holds row 4 g + r, so that transposing the 4 x 4 blocks in
        // each group leaves the rows in order.
        unsafe {
            let quad = |row: usize| _mm_loadu_ps(from.add(row * stride));
            let rows =
                |r: usize| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(quad(r)), quad(r + 4));
            let (a, b, c, d) = (rows(0), rows(1), rows(2), rows(3));
            let pair = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let ((ab_low, ab_high), (cd_low, cd_high)) = (pair(a, b), pair(c, d));
            [
                Self(_mm256_shuffle_ps::<0x44>(ab_low, cd_low)),
                Self(_mm256_shuffle_ps::<0xee>(ab_low, cd_low)),
                Self(_mm256_shuffle_ps::<0x44>(ab_high, cd_high)),
                Self(_mm256_shuffle_ps::<0xee>(ab_high, cd_high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self {
        unsafe { Self(_mm256_maskload_ps(from, mask(lanes))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, lanes: usize) {
        unsafe { _mm256_maskstore_ps(to, mask(lanes), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
    }
    #[inline(always)]
    unsafe fn shift_left_23(self) -> Self {
        unsafe { Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0)))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let four =
                _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        unsafe {
            let four =
                _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
