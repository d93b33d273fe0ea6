//! 256-bit vectors with fused multiply-add.
//!
//! `Avx2<true>` also has AVX-VNNI; without it, dot products of bytes are composed of what AVX2 has,
//! to the same sums.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};
use crate::dispatch::{avx2, avx2_dot};
use crate::number::Bf16;

#[derive(Clone, Copy)]
pub(crate) struct Avx2<const DOT: bool>(__m256);

impl<const DOT: bool> Avx2<DOT> {
    #[inline(always)]
    unsafe fn ints(self) -> __m256i {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { _mm256_castps_si256(self.0) }
    }

    #[inline(always)]
    unsafe fn from_ints(ints: __m256i) -> Self {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { Self(_mm256_castsi256_ps(ints)) }
    }

    /// The upper halves, rounded to nearest even.
    #[inline(always)]
    unsafe fn round_bf16(self) -> __m128i {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            let bits = self.ints();
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_castsi256_ps(_mm256_add_epi32(bits, bias));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc0_0000));
            let rounded = _mm256_castps_si256(_mm256_blendv_ps(rounded, quiet, nan));
            let halves = _mm256_srli_epi32::<16>(rounded);
            let packed = _mm256_packus_epi32(halves, halves);
            _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed))
        }
    }
}

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
impl<const DOT: bool> Lanes for Avx2<DOT> {
    const WIDTH: usize = 8;
    // 12 sums, 2 vectors of the right operand and a broadcast: 15 of 16 registers.
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: &K) {
        unsafe {
            match DOT {
                true => avx2_dot::call(kernel),
                false => avx2::call(kernel),
            }
        }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        unsafe { Self::from_ints(_mm256_set1_epi32(from.cast::<i32>().read_unaligned())) }
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
    unsafe fn shift_right_20(self) -> Self {
        unsafe { Self(_mm256_castsi256_ps(_mm256_srli_epi32::<20>(_mm256_castps_si256(self.0)))) }
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
    #[inline(always)]
    unsafe fn load_bf16(from: *const Bf16, lanes: usize) -> Self {
        unsafe {
            let mut halves = [0u16; 8];
            let halves = match lanes {
                8 => _mm_loadu_si128(from.cast()),
                _ => {
                    from.cast::<u16>().copy_to(halves.as_mut_ptr(), lanes);
                    _mm_loadu_si128(halves.as_ptr().cast())
                }
            };
            Self::from_ints(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut Bf16, lanes: usize) {
        unsafe {
            let rounded = self.round_bf16();
            if lanes == 8 {
                return _mm_storeu_si128(to.cast(), rounded);
            }
            let mut halves = [0u16; 8];
            _mm_storeu_si128(halves.as_mut_ptr().cast(), rounded);
            to.cast::<u16>().copy_from(halves.as_ptr(), lanes);
        }
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, lanes: usize) {
        unsafe {
            // Both packs saturate, the second one to unsigned bytes.
            let ints = _mm256_cvtps_epi32(self.0);
            let halves =
                _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints));
            let bytes = _mm_packus_epi16(halves, halves);
            if lanes == 8 {
                return _mm_storel_epi64(to.cast(), bytes);
            }
            let mut copy = [0u8; 16];
            _mm_storeu_si128(copy.as_mut_ptr().cast(), bytes);
            to.copy_from(copy.as_ptr(), lanes);
        }
    }
    #[inline(always)]
    unsafe fn max_signed(self, other: Self) -> Self {
        unsafe { Self::from_ints(_mm256_max_epi32(self.ints(), other.ints())) }
    }
    #[inline(always)]
    unsafe fn max_unsigned(self, other: Self) -> Self {
        unsafe { Self::from_ints(_mm256_max_epu32(self.ints(), other.ints())) }
    }
    #[inline(always)]
    unsafe fn greatest_bits(self) -> u32 {
        unsafe {
            let ints = self.ints();
            let four =
                _mm_max_epu32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints));
            let two = _mm_max_epu32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))) as u32
        }
    }
    #[inline(always)]
    unsafe fn low_half(self) -> Self {
        unsafe { Self::from_ints(_mm256_slli_epi32::<16>(self.ints())) }
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        unsafe { Self::from_ints(_mm256_and_si256(self.ints(), _mm256_set1_epi32(-1 << 16))) }
    }
    #[inline(always)]
    unsafe fn merge_halves(self, high: Self) -> Self {
        unsafe {
            let low = _mm256_srli_epi32::<16>(self.ints());
            Self::from_ints(_mm256_blend_epi16::<0x55>(high.ints(), low))
        }
    }
    #[inline(always)]
    unsafe fn dot_int8(self, a: Self, b: Self) -> Self {
        unsafe {
            let (sum, a, b) = (self.ints(), a.ints(), b.ints());
            if DOT {
                return Self::from_ints(_mm256_dpbusd_avx_epi32(sum, a, b));
            }
            // Widened to 16 bits first: products of bytes summed in 16 bits would saturate.
            let a_even = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
            let a_odd = _mm256_srli_epi16::<8>(a);
            let b_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
            let b_odd = _mm256_srai_epi16::<8>(b);
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a_even, b_even));
            Self::from_ints(_mm256_add_epi32(sum, _mm256_madd_epi16(a_odd, b_odd)))
        }
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(self.ints())) }
    }
    #[inline(always)]
    unsafe fn lookup(self, table: &[f32; 16]) -> Self {
        unsafe {
            // The permutation reads three bits of an index; the fourth chooses the half.
            let (table, indices) = (table.as_ptr(), self.ints());
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), indices);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(8)), indices);
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices));
            Self(_mm256_blendv_ps(low, high, upper))
        }
    }
}
