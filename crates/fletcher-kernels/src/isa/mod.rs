//! Instruction sets as types.
//!
//! [`Lanes`] is a vector of f32 with the two dozen operations that the kernels need; each file
//! beside this one implements it for one instruction set. The kernels in `ops/` are written once,
//! over `Lanes`, and compiled per instruction set by the shells in `dispatch.rs`.

use crate::number::{Bf16, Format};

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

/// An instruction set that kernels exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust; runs everywhere and is the oracle of the others.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// The same with AVX-VNNI: dot products of bytes.
    Avx2Dot,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with VNNI, dot products of bytes: Intel's servers from 2019 on.
    Avx512Vnni,
    /// The same with BF16 too, dot products of bfloat16.
    Avx512Dot,
    /// The same with AMX: products of whole tiles of bfloat16 and of bytes.
    Amx,
    /// 64-bit Arm.
    Neon,
    /// The same with BF16 and I8MM: dot products of bfloat16 and of bytes.
    NeonDot,
}

impl Isa {
    /// The instruction sets that this CPU has, the best last.
    pub fn available() -> Vec<Isa> {
        #[cfg_attr(target_arch = "wasm32", expect(unused_mut))]
        let mut sets = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Isa::Avx2);
                if is_x86_feature_detected!("avxvnni") {
                    sets.push(Isa::Avx2Dot);
                }
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                sets.push(Isa::Avx512);
                if is_x86_feature_detected!("avx512vnni") {
                    sets.push(Isa::Avx512Vnni);
                    if is_x86_feature_detected!("avx512bf16") {
                        sets.push(Isa::Avx512Dot);
                        if amx::available() {
                            sets.push(Isa::Amx);
                        }
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            sets.push(Isa::Neon);
            if is_aarch64_feature_detected!("bf16") && is_aarch64_feature_detected!("i8mm") {
                sets.push(Isa::NeonDot);
            }
        }
        sets
    }

    /// The best one of this CPU.
    pub fn detect() -> Isa {
        Self::available().pop().unwrap_or(Isa::Scalar)
    }

    /// Words of a weight's row of `cols` in a format, as this set packs it: whole tiles, where it
    /// multiplies tiles.
    pub(crate) fn packed_words(self, format: Format, cols: usize) -> usize {
        let words = cols.div_ceil(format.per_word());
        match (self, format) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Format::Bf16 | Format::Int8) => words.next_multiple_of(amx::ROW_WORDS),
            _ => words,
        }
    }

    /// The name for `fletcher info`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "portable",
            Isa::Avx2 => "AVX2+FMA",
            Isa::Avx2Dot => "AVX2+FMA with VNNI",
            Isa::Avx512 => "AVX-512",
            Isa::Avx512Vnni => "AVX-512 with VNNI",
            Isa::Avx512Dot => "AVX-512 with BF16 and VNNI",
            Isa::Amx => "AVX-512 with AMX",
            Isa::Neon => "NEON",
            Isa::NeonDot => "NEON with BF16 and I8MM",
        }
    }
}

/// A part of an algorithm that is compiled by itself for each instruction set; see [`Lanes::call`].
pub(crate) trait Kernel {
    /// # Safety
    /// The CPU has the instruction set of `L`; what else, the implementation says.
    unsafe fn run<L: Lanes>(&self);
}

/// Vectors side by side in a register tile and in a packed panel.
pub(crate) const TILE_VECTORS: usize = 2;

/// A vector of [`Self::WIDTH`] f32 lanes.
///
/// # Safety
/// Every method requires that the CPU has the implementing instruction set, which only the shells
/// in `dispatch.rs` establish; loads and stores also require that the pointed-to lanes are in
/// bounds (all of them, or the first `lanes` for the partial ones). Nothing needs alignment.
pub(crate) trait Lanes: Copy {
    /// Lanes in a vector.
    const WIDTH: usize;
    /// Most rows of the register tile of the matrix kernel; the tile is [`TILE_VECTORS`] vectors
    /// wide, and its sums, those vectors and one broadcast must fit the register file.
    const TILE_ROWS: usize;
    /// Most rows of a tile beside whose products other vectors are worked on, which takes half a
    /// dozen registers; 0 where there are too few of them.
    const BESIDE_ROWS: usize = 0;

    /// Runs a kernel in a compiled function of its own, where it has all registers to itself.
    unsafe fn call<K: Kernel>(kernel: &K);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The four bytes at `from`, whatever they mean, in every lane.
    unsafe fn broadcast(from: *const u8) -> Self;
    /// The same, for what is multiplied as floating-point numbers.
    #[inline(always)]
    unsafe fn broadcast_float(from: *const u8) -> Self {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { Self::broadcast(from) }
    }
    /// Columns 0 to 3 of a matrix of `WIDTH` rows that are `stride` elements apart.
    unsafe fn columns(from: *const f32, stride: usize) -> [Self; 4];
    /// Missing lanes are 0.
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_partial(self, to: *mut f32, lanes: usize);
    /// The first `lanes` as f32; the others are 0.
    unsafe fn load_bf16(from: *const Bf16, lanes: usize) -> Self;
    /// The first `lanes`, rounded to nearest even; NaN stays NaN.
    unsafe fn store_bf16(self, to: *mut Bf16, lanes: usize);
    /// The first `lanes`, rounded to nearest even and clamped to 0..=255.
    unsafe fn store_u8(self, to: *mut u8, lanes: usize);
    /// Four vectors side by side, as [`Self::store_u8`].
    #[inline(always)]
    unsafe fn store_four_u8(vectors: [Self; 4], to: *mut u8) {
        for (i, vector) in vectors.into_iter().enumerate() {
            // SAFETY: the caller guarantees four vectors' lanes.
            unsafe { vector.store_u8(to.add(i * Self::WIDTH), Self::WIDTH) }
        }
    }
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the hardware can.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// The bits moved left by 23 places: an integer in the low mantissa bits becomes an exponent.
    unsafe fn shift_left_23(self) -> Self;
    /// The bits moved right by 20 places: below them are the exponent and three bits of mantissa.
    unsafe fn shift_right_20(self) -> Self;
    /// The sum of all lanes, in a fixed order.
    unsafe fn sum(self) -> f32;
    /// The greatest lane.
    unsafe fn greatest(self) -> f32;
    /// The greater bits in each lane, as a signed number: of floats and 0, the greatest.
    unsafe fn max_signed(self, other: Self) -> Self;
    /// The greater bits in each lane, as an unsigned number: of floats among which are negative
    /// ones, the least.
    unsafe fn max_unsigned(self, other: Self) -> Self;
    /// The greatest lane's bits, as an unsigned number.
    unsafe fn greatest_bits(self) -> u32;
    /// Each lane's low half, a bfloat16, as f32.
    unsafe fn low_half(self) -> Self;
    /// Each lane's high half, a bfloat16, as f32.
    unsafe fn high_half(self) -> Self;
    /// Lanes whose low halves are the upper halves of `self` and whose high halves are those of
    /// `high`.
    unsafe fn merge_halves(self, high: Self) -> Self;
    /// `self + a.high * b.high + a.low * b.low` for pairs of bfloat16.
    #[inline(always)]
    unsafe fn dot_bf16(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            let sum = a.high_half().fma(b.high_half(), self);
            a.low_half().fma(b.low_half(), sum)
        }
    }
    /// Adds the products of four unsigned bytes in `a` with four signed bytes in `b`; all lanes
    /// are 32-bit integers, and every sum is exact.
    unsafe fn dot_int8(self, a: Self, b: Self) -> Self;
    /// 32-bit integers to the nearest f32.
    unsafe fn int_to_float(self) -> Self;
    /// The nearest integer, for values below 2^22; NaN stays NaN.
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            // 1.5 * 2^23: a number this large has no fraction.
            let shift = Self::splat(12_582_912.0);
            self.add(shift).sub(shift)
        }
    }
    /// `self * 2^power` for a whole power of at most 127, and 0 for one below -126.
    #[inline(always)]
    unsafe fn times_power_of_two(self, power: Self) -> Self {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            // 1.5 * 2^23 + 127: leaves the exponent of 2^power in the low mantissa bits.
            let biased = Self::splat(-127.0).max(power).add(Self::splat(12_583_039.0));
            self.mul(biased.shift_left_23())
        }
    }
    /// `table[self & 15]`, by the bits of each lane.
    unsafe fn lookup(self, table: &[f32; 16]) -> Self;
}
