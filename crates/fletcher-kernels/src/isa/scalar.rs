//! The portable vector: an array that the compiler may or may not vectorise.
//!
//! It has no fused multiply-add, since a software one would be a hundred times slower.

use super::{Kernel, Lanes};
use crate::number::Bf16;

const WIDTH: usize = 4;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; WIDTH]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    fn map_bits(self, f: impl Fn(u32) -> u32) -> Self {
        Self(self.0.map(|value| f32::from_bits(f(value.to_bits()))))
    }
}

impl Lanes for Portable {
    const WIDTH: usize = WIDTH;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: &K) {
        // SAFETY: the caller guarantees what the kernel wants.
        unsafe { crate::dispatch::scalar::call(kernel) }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        // SAFETY: the caller guarantees four readable bytes.
        let bits = unsafe { from.cast::<u32>().read_unaligned() };
        Self([f32::from_bits(bits); WIDTH])
    }
    #[inline(always)]
    unsafe fn columns(from: *const f32, stride: usize) -> [Self; 4] {
        // SAFETY: the caller guarantees four readable columns in each of WIDTH rows.
        std::array::from_fn(|column| unsafe {
            Self(std::array::from_fn(|row| *from.add(row * stride + column)))
        })
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; WIDTH])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees WIDTH readable lanes.
        unsafe { Self(from.cast::<[f32; WIDTH]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self {
        // SAFETY: the caller guarantees the first `lanes` readable; no other is touched.
        Self(std::array::from_fn(|l| if l < lanes { unsafe { *from.add(l) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees WIDTH writable lanes.
        unsafe { to.cast::<[f32; WIDTH]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, lanes: usize) {
        for (lane, value) in self.0.iter().enumerate().take(lanes) {
            // SAFETY: the caller guarantees the first `lanes` writable.
            unsafe { *to.add(lane) = *value }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l] * factor.0[l] + addend.0[l]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // As the x86 instruction: the second operand wins when either is NaN.
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    unsafe fn shift_left_23(self) -> Self {
        self.map_bits(|bits| bits << 23)
    }
    #[inline(always)]
    unsafe fn shift_right_20(self) -> Self {
        self.map_bits(|bits| bits >> 20)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        (self.0[0] + self.0[1]) + (self.0[2] + self.0[3])
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        self.0[0].max(self.0[1]).max(self.0[2].max(self.0[3]))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const Bf16, lanes: usize) -> Self {
        // SAFETY: the caller guarantees the first `lanes` readable; no other is touched.
        let lane = |l| if l < lanes { unsafe { (*from.add(l)).to_f32() } } else { 0.0 };
        Self(std::array::from_fn(lane))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut Bf16, lanes: usize) {
        for (lane, value) in self.0.iter().enumerate().take(lanes) {
            // SAFETY: the caller guarantees the first `lanes` writable.
            unsafe { *to.add(lane) = Bf16::from_f32(*value) }
        }
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, lanes: usize) {
        for (lane, value) in self.0.iter().enumerate().take(lanes) {
            // SAFETY: the caller guarantees the first `lanes` writable.
            unsafe { *to.add(lane) = value.round_ties_even() as u8 }
        }
    }
    #[inline(always)]
    unsafe fn max_signed(self, other: Self) -> Self {
        let max = |a: f32, b: f32| (a.to_bits() as i32).max(b.to_bits() as i32) as u32;
        self.zip(other, |a, b| f32::from_bits(max(a, b)))
    }
    #[inline(always)]
    unsafe fn max_unsigned(self, other: Self) -> Self {
        self.zip(other, |a, b| f32::from_bits(a.to_bits().max(b.to_bits())))
    }
    #[inline(always)]
    unsafe fn greatest_bits(self) -> u32 {
        self.0.into_iter().fold(0, |greatest, value| greatest.max(value.to_bits()))
    }
    #[inline(always)]
    unsafe fn low_half(self) -> Self {
        self.map_bits(|bits| bits << 16)
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        self.map_bits(|bits| bits & 0xffff_0000)
    }
    #[inline(always)]
    unsafe fn merge_halves(self, high: Self) -> Self {
        let merge = |low: f32, high: f32| low.to_bits() >> 16 | high.to_bits() & 0xffff_0000;
        self.zip(high, |low, high| f32::from_bits(merge(low, high)))
    }
    #[inline(always)]
    unsafe fn dot_int8(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            let (a, b) = (a.0[lane].to_bits().to_le_bytes(), b.0[lane].to_bits().to_le_bytes());
            let products = a.iter().zip(b).map(|(&a, b)| i32::from(a) * i32::from(b as i8));
            f32::from_bits((self.0[lane].to_bits() as i32 + products.sum::<i32>()) as u32)
        }))
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        Self(self.0.map(|value| value.to_bits() as i32 as f32))
    }
    #[inline(always)]
    unsafe fn lookup(self, table: &[f32; 16]) -> Self {
        Self(self.0.map(|value| table[value.to_bits() as usize & 15]))
    }
}
