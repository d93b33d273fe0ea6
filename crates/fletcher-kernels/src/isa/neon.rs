//! 128-bit Arm vectors with fused multiply-add.
//!
//! `Neon<true>` also has the BF16 and I8MM extensions, whose dot products are written in assembly
//! because their intrinsics are not stable yet; without them they are composed, to the same integer
//! sums.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, Lanes};
use crate::dispatch::{neon, neon_dot};
use crate::number::Bf16;

#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>(float32x4_t);

impl<const DOT: bool> Neon<DOT> {
    #[inline(always)]
    unsafe fn bits(self) -> uint32x4_t {
        // SAFETY: NEON is part of the 64-bit Arm baseline.
        unsafe { vreinterpretq_u32_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn from_bits(bits: uint32x4_t) -> Self {
        // SAFETY: NEON is part of the 64-bit Arm baseline.
        unsafe { Self(vreinterpretq_f32_u32(bits)) }
    }
}

// SAFETY, for every block below: NEON is part of the 64-bit Arm baseline, and the trait's contract
// gives the bounds.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all, above")]
impl<const DOT: bool> Lanes for Neon<DOT> {
    const WIDTH: usize = 4;
    // 24 sums, 2 vectors of the right operand and broadcasts: 27 of 32 registers.
    const TILE_ROWS: usize = 12;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: &K) {
        unsafe {
            match DOT {
                true => neon_dot::call(kernel),
                false => neon::call(kernel),
            }
        }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        unsafe { Self::from_bits(vdupq_n_u32(from.cast::<u32>().read_unaligned())) }
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
    unsafe fn shift_right_20(self) -> Self {
        unsafe { Self(vreinterpretq_f32_u32(vshrq_n_u32::<20>(vreinterpretq_u32_f32(self.0)))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        unsafe { vmaxvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const Bf16, lanes: usize) -> Self {
        unsafe {
            let mut halves = [0u16; 4];
            let halves = match lanes {
                4 => vld1_u16(from.cast()),
                _ => {
                    from.cast::<u16>().copy_to(halves.as_mut_ptr(), lanes);
                    vld1_u16(halves.as_ptr())
                }
            };
            Self::from_bits(vshll_n_u16::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut Bf16, lanes: usize) {
        unsafe {
            let bits = self.bits();
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let number = vceqq_f32(self.0, self.0);
            let rounded = vbslq_u32(number, rounded, vdupq_n_u32(0x7fc0_0000));
            let rounded = vshrn_n_u32::<16>(rounded);
            if lanes == 4 {
                return vst1_u16(to.cast(), rounded);
            }
            let mut halves = [0u16; 4];
            vst1_u16(halves.as_mut_ptr(), rounded);
            to.cast::<u16>().copy_from(halves.as_ptr(), lanes);
        }
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, lanes: usize) {
        unsafe {
            // Each narrowing saturates.
            let halves = vqmovun_s32(vcvtnq_s32_f32(self.0));
            let bytes = vqmovn_u16(vcombine_u16(halves, halves));
            let mut copy = [0u8; 8];
            vst1_u8(copy.as_mut_ptr(), bytes);
            to.copy_from(copy.as_ptr(), lanes);
        }
    }
    #[inline(always)]
    unsafe fn max_signed(self, other: Self) -> Self {
        unsafe {
            let [a, b] = [self, other].map(|x| vreinterpretq_s32_u32(x.bits()));
            Self::from_bits(vreinterpretq_u32_s32(vmaxq_s32(a, b)))
        }
    }
    #[inline(always)]
    unsafe fn max_unsigned(self, other: Self) -> Self {
        unsafe { Self::from_bits(vmaxq_u32(self.bits(), other.bits())) }
    }
    #[inline(always)]
    unsafe fn greatest_bits(self) -> u32 {
        unsafe { vmaxvq_u32(self.bits()) }
    }
    #[inline(always)]
    unsafe fn low_half(self) -> Self {
        unsafe { Self::from_bits(vshlq_n_u32::<16>(self.bits())) }
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        unsafe { Self::from_bits(vandq_u32(self.bits(), vdupq_n_u32(0xffff_0000))) }
    }
    #[inline(always)]
    unsafe fn merge_halves(self, high: Self) -> Self {
        unsafe { Self::from_bits(vsriq_n_u32::<16>(high.bits(), self.bits())) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(self, a: Self, b: Self) -> Self {
        unsafe {
            if DOT {
                let mut sum = self.0;
                asm!(
                    ".arch_extension bf16",
                    "bfdot {sum:v}.4s, {a:v}.8h, {b:v}.8h",
                    sum = inout(vreg) sum,
                    a = in(vreg) a.0,
                    b = in(vreg) b.0,
                    options(pure, nomem, nostack, preserves_flags)
                );
                return Self(sum);
            }
            let sum = a.high_half().fma(b.high_half(), self);
            a.low_half().fma(b.low_half(), sum)
        }
    }
    #[inline(always)]
    unsafe fn dot_int8(self, a: Self, b: Self) -> Self {
        unsafe {
            if DOT {
                let mut sum = self.0;
                asm!(
                    ".arch_extension i8mm",
                    "usdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                    sum = inout(vreg) sum,
                    a = in(vreg) a.0,
                    b = in(vreg) b.0,
                    options(pure, nomem, nostack, preserves_flags)
                );
                return Self(sum);
            }
            // Widened to 16 bits, multiplied into 32: nothing saturates.
            let a = vreinterpretq_u8_u32(a.bits());
            let b = vreinterpretq_s8_u32(b.bits());
            let a_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(a)));
            let a_high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(a)));
            let (b_low, b_high) = (vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b)));
            let quad = |a, b| {
                let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
                vpaddq_s32(low, vmull_s16(vget_high_s16(a), vget_high_s16(b)))
            };
            let products = vpaddq_s32(quad(a_low, b_low), quad(a_high, b_high));
            let sum = vaddq_s32(vreinterpretq_s32_u32(self.bits()), products);
            Self::from_bits(vreinterpretq_u32_s32(sum))
        }
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        unsafe { Self(vcvtq_f32_s32(vreinterpretq_s32_u32(self.bits()))) }
    }
    #[inline(always)]
    unsafe fn lookup(self, table: &[f32; 16]) -> Self {
        unsafe {
            // Four bytes an entry: index i becomes the bytes 4 i .. 4 i + 4.
            let from = table.as_ptr().cast::<u8>();
            let rows = uint8x16x4_t(
                vld1q_u8(from),
                vld1q_u8(from.add(16)),
                vld1q_u8(from.add(32)),
                vld1q_u8(from.add(48)),
            );
            let index = vandq_u32(self.bits(), vdupq_n_u32(15));
            let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), index, vdupq_n_u32(0x0404_0404));
            Self::from_bits(vreinterpretq_u32_u8(vqtbl4q_u8(rows, vreinterpretq_u8_u32(bytes))))
        }
    }
}
