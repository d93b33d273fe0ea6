//! 512-bit vectors with masks for the tails.
//!
//! `BF16` and `VNNI` say which of these extensions there are; without them, dot products of
//! bfloat16 and of bytes are composed of what AVX-512 BW has, to the same sums.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Kernel, Lanes};
use crate::dispatch::{avx512, avx512_dot, avx512_vnni};
use crate::number::Bf16;

#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const VNNI: bool>(__m512);

impl<const BF16: bool, const VNNI: bool> Avx512<BF16, VNNI> {
    #[inline(always)]
    unsafe fn ints(self) -> __m512i {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { _mm512_castps_si512(self.0) }
    }

    #[inline(always)]
    unsafe fn from_ints(ints: __m512i) -> Self {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { Self(_mm512_castsi512_ps(ints)) }
    }

    /// The upper halves, rounded to nearest even.
    #[inline(always)]
    unsafe fn round_bf16(self) -> __m256i {
        // SAFETY: the caller guarantees the instruction set; both types are 32 plain bytes.
        unsafe {
            if BF16 {
                return std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self.0));
            }
            let bits = self.ints();
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, bias);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm512_set1_epi32(0x7fc0_0000);
            let rounded = _mm512_mask_mov_epi32(rounded, nan, quiet);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
        }
    }
}

/// The lowest `lanes` bits.
#[inline(always)]
fn mask(lanes: usize) -> __mmask16 {
    ((1u32 << lanes.min(16)) - 1) as __mmask16
}

/// The four bytes at `from` in every lane. For floating-point numbers the compiler takes the
/// floating-point form of the instruction, which on Zen 4 costs a shuffle; this one is done where
/// the load is.
///
/// # Safety
/// Four bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn broadcast_word(from: *const u8) -> __m512 {
    let word: __m512;
    // SAFETY: the caller guarantees the bytes, and the feature is on.
    unsafe {
        asm!(
            "vpbroadcastd {word}, dword ptr [{from}]",
            word = lateout(zmm_reg) word,
            from = in(reg) from,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    word
}

// SAFETY, for every block below: the trait's contract gives the instruction set and the bounds;
// masked-off lanes are not accessed by the hardware.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all, above")]
impl<const BF16: bool, const VNNI: bool> Lanes for Avx512<BF16, VNNI> {
    const WIDTH: usize = 16;
    // 28 sums, 2 vectors of the right operand and a broadcast: 31 of 32 registers.
    const TILE_ROWS: usize = 14;
    // 24 sums: 5 registers are left.
    const BESIDE_ROWS: usize = 12;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: &K) {
        unsafe {
            match (BF16, VNNI) {
                (true, _) => avx512_dot::call(kernel),
                (false, true) => avx512_vnni::call(kernel),
                (false, false) => avx512::call(kernel),
            }
        }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        unsafe { Self::from_ints(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn broadcast_float(from: *const u8) -> Self {
        unsafe { Self(broadcast_word(from)) }
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
    unsafe fn shift_right_20(self) -> Self {
        unsafe { Self::from_ints(_mm512_srli_epi32::<20>(self.ints())) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const Bf16, lanes: usize) -> Self {
        unsafe {
            let halves = match lanes {
                16 => _mm256_loadu_si256(from.cast()),
                _ => _mm256_maskz_loadu_epi16(mask(lanes), from.cast()),
            };
            // One shuffle, where widening takes one and a shift.
            const PLACES: [u16; 32] = {
                let mut places = [0; 32];
                let mut lane = 0;
                while lane < 16 {
                    places[2 * lane + 1] = lane as u16;
                    lane += 1;
                }
                places
            };
            let places = _mm512_loadu_si512(PLACES.as_ptr().cast());
            let halves = _mm512_castsi256_si512(halves);
            Self::from_ints(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, places, halves))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut Bf16, lanes: usize) {
        unsafe {
            match lanes {
                16 => _mm256_storeu_si256(to.cast(), self.round_bf16()),
                _ => _mm256_mask_storeu_epi16(to.cast(), mask(lanes), self.round_bf16()),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, lanes: usize) {
        unsafe {
            let ints = _mm512_max_epi32(_mm512_cvtps_epi32(self.0), _mm512_setzero_si512());
            match lanes {
                16 => _mm_storeu_si128(to.cast(), _mm512_cvtusepi32_epi8(ints)),
                _ => _mm512_mask_cvtusepi32_storeu_epi8(to.cast(), mask(lanes), ints),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_four_u8(vectors: [Self; 4], to: *mut u8) {
        unsafe {
            // The packs saturate, and work within each 128 bits: word i of lane l is vector i's
            // quad l, which the permutation puts behind vector i's earlier ones.
            let [a, b, c, d] = vectors;
            let ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a.0), _mm512_cvtps_epi32(b.0));
            let cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c.0), _mm512_cvtps_epi32(d.0));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
            _mm512_storeu_si512(to.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            Self(_mm512_roundscale_ps::<NEAREST>(self.0))
        }
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, power: Self) -> Self {
        unsafe { Self(_mm512_scalef_ps(self.0, power.0)) }
    }
    #[inline(always)]
    unsafe fn max_signed(self, other: Self) -> Self {
        unsafe { Self::from_ints(_mm512_max_epi32(self.ints(), other.ints())) }
    }
    #[inline(always)]
    unsafe fn max_unsigned(self, other: Self) -> Self {
        unsafe { Self::from_ints(_mm512_max_epu32(self.ints(), other.ints())) }
    }
    #[inline(always)]
    unsafe fn greatest_bits(self) -> u32 {
        unsafe { _mm512_reduce_max_epu32(self.ints()) }
    }
    #[inline(always)]
    unsafe fn low_half(self) -> Self {
        unsafe { Self::from_ints(_mm512_slli_epi32::<16>(self.ints())) }
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        unsafe { Self::from_ints(_mm512_and_si512(self.ints(), _mm512_set1_epi32(-1 << 16))) }
    }
    #[inline(always)]
    unsafe fn merge_halves(self, high: Self) -> Self {
        unsafe {
            let low = _mm512_srli_epi32::<16>(self.ints());
            Self::from_ints(_mm512_mask_mov_epi16(high.ints(), 0x5555_5555, low))
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(self, a: Self, b: Self) -> Self {
        unsafe {
            if BF16 {
                let pairs = |x: Self| std::mem::transmute::<__m512, __m512bh>(x.0);
                return Self(_mm512_dpbf16_ps(self.0, pairs(a), pairs(b)));
            }
            let sum = a.high_half().fma(b.high_half(), self);
            a.low_half().fma(b.low_half(), sum)
        }
    }
    #[inline(always)]
    unsafe fn dot_int8(self, a: Self, b: Self) -> Self {
        unsafe {
            let (sum, a, b) = (self.ints(), a.ints(), b.ints());
            if VNNI {
                return Self::from_ints(_mm512_dpbusd_epi32(sum, a, b));
            }
            // Widened to 16 bits first: products of bytes summed in 16 bits would saturate.
            let bytes = _mm512_set1_epi16(0xff);
            let a_even = _mm512_and_si512(a, bytes);
            let a_odd = _mm512_srli_epi16::<8>(a);
            let b_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
            let b_odd = _mm512_srai_epi16::<8>(b);
            let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a_even, b_even));
            Self::from_ints(_mm512_add_epi32(sum, _mm512_madd_epi16(a_odd, b_odd)))
        }
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(self.ints())) }
    }
    #[inline(always)]
    unsafe fn lookup(self, table: &[f32; 16]) -> Self {
        unsafe { Self(_mm512_permutexvar_ps(self.ints(), _mm512_loadu_ps(table.as_ptr()))) }
    }
}
