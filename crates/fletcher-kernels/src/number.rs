//! The number formats that rows are stored and multiplied in.

use crate::isa::Lanes;

/// The format in which a weight and its inputs are multiplied. Sums are 32 bits wide in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Single precision.
    F32,
    /// bfloat16 times bfloat16, summed in single precision.
    Bf16,
    /// Unsigned bytes (inputs, a scale and a zero per row) times signed bytes (weights, a scale per
    /// output), summed exactly in 32-bit integers.
    Int8,
}

impl Format {
    /// Inputs that share 32 bits.
    pub(crate) const fn per_word(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Int8 => 4,
        }
    }
}

/// The upper half of an f32, rounded to nearest even.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// The nearest bfloat16; NaN stays NaN.
    pub fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        match value.is_nan() {
            true => Self((bits >> 16) as u16 | 0x40),
            false => Self(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16),
        }
    }

    /// The same value.
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// What a row of bytes means: byte `q` stands for `scale * (q - zero)`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowScale {
    /// The value of one step.
    pub scale: f32,
    /// The byte that stands for 0, an integer.
    pub zero: f32,
}

/// A plain number that all-zero bits are a value of.
///
/// Sealed: [`crate::AlignedBuffer`] relies on the list.
pub trait Number: Copy + sealed::Sealed + 'static {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(
            impl sealed::Sealed for $number {}
            impl Number for $number {}
        )*
    };
}
numbers!(f32 Bf16 u8);

/// The least and the greatest of a row and 0; `None` when a number is not finite.
pub(crate) type Range = Option<(f32, f32)>;

/// The bits of infinity: those of NaN are greater, those of finite numbers less.
const INFINITY: u32 = f32::INFINITY.to_bits();

/// Finds a [`Range`] by the bits: read as signed numbers, the greatest is the greatest positive
/// one; as unsigned ones, it is the negative one of the greatest size. Infinities and NaN stand
/// beyond all numbers. Integers are compared by any vector unit, floats by those that add.
#[derive(Clone, Copy)]
pub(crate) struct Extremes<L> {
    signed: L,
    unsigned: L,
}

impl<L: Lanes> Extremes<L> {
    /// # Safety
    /// The CPU has the instruction set of `L`.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { Self { signed: L::splat(0.0), unsigned: L::splat(0.0) } }
    }

    /// # Safety
    /// As [`Self::new`].
    #[inline(always)]
    pub(crate) unsafe fn see(&mut self, values: L) {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            self.signed = self.signed.max_signed(values);
            self.unsigned = self.unsigned.max_unsigned(values);
        }
    }

    /// # Safety
    /// As [`Self::new`].
    #[inline(always)]
    pub(crate) unsafe fn get(self) -> Range {
        // SAFETY: the caller's guarantee is passed on. No lane of the first is negative.
        let (high, low) = unsafe { (self.signed.greatest_bits(), self.unsigned.greatest_bits()) };
        let finite = high < INFINITY && low & !(1 << 31) < INFINITY;
        let low = if low > 1 << 31 { low } else { 0 };
        finite.then(|| (f32::from_bits(low), f32::from_bits(high)))
    }
}

/// A number that vectors of f32 are loaded from and stored to.
pub(crate) trait Element: Number {
    /// How these numbers are multiplied.
    const FORMAT: Format;

    /// # Safety
    /// The CPU has the instruction set of `L`; `from` has `lanes <= WIDTH` elements. Missing lanes
    /// are 0.
    unsafe fn read<L: Lanes>(from: *const Self, lanes: usize) -> L;

    /// # Safety
    /// The CPU has the instruction set of `L`; `to` has `lanes <= WIDTH` elements.
    unsafe fn write<L: Lanes>(value: L, to: *mut Self, lanes: usize);

    /// # Safety
    /// The CPU has the instruction set of `L`.
    unsafe fn extremes<L: Lanes>(row: &[Self]) -> Range;
}

impl Element for f32 {
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    unsafe fn read<L: Lanes>(from: *const f32, lanes: usize) -> L {
        // SAFETY: the caller guarantees the lanes.
        unsafe {
            match lanes == L::WIDTH {
                true => L::load(from),
                false => L::load_partial(from, lanes),
            }
        }
    }

    #[inline(always)]
    unsafe fn write<L: Lanes>(value: L, to: *mut f32, lanes: usize) {
        // SAFETY: the caller guarantees the lanes.
        unsafe {
            match lanes == L::WIDTH {
                true => value.store(to),
                false => value.store_partial(to, lanes),
            }
        }
    }

    #[inline(always)]
    unsafe fn extremes<L: Lanes>(row: &[f32]) -> Range {
        // SAFETY: lanes at..at+lanes are inside the row; missing lanes are 0, which takes part.
        unsafe {
            let (mut extremes, mut at) = (Extremes::<L>::new(), 0);
            while at < row.len() {
                let lanes = L::WIDTH.min(row.len() - at);
                extremes.see(f32::read(row.as_ptr().add(at), lanes));
                at += lanes;
            }
            extremes.get()
        }
    }
}

impl Element for Bf16 {
    const FORMAT: Format = Format::Bf16;

    #[inline(always)]
    unsafe fn read<L: Lanes>(from: *const Bf16, lanes: usize) -> L {
        // SAFETY: the caller guarantees the lanes.
        unsafe { L::load_bf16(from, lanes) }
    }

    #[inline(always)]
    unsafe fn write<L: Lanes>(value: L, to: *mut Bf16, lanes: usize) {
        // SAFETY: the caller guarantees the lanes.
        unsafe { value.store_bf16(to, lanes) }
    }

    /// By the bits, as [`Extremes`]; the compiler makes vectors of it.
    #[inline(always)]
    unsafe fn extremes<L: Lanes>(row: &[Bf16]) -> Range {
        const INFINITY: u16 = 0x7f80;
        let (mut signed, mut unsigned) = (0i16, 0u16);
        for value in row {
            signed = signed.max(value.0 as i16);
            unsigned = unsigned.max(value.0);
        }
        let high = Bf16(signed as u16);
        let low = if unsigned > 0x8000 { Bf16(unsigned) } else { Bf16(0) };
        let finite = high.0 < INFINITY && low.0 & 0x7fff < INFINITY;
        finite.then(|| (low.to_f32(), high.to_f32()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (value, bits) in [
            (1.0, 0x3f80),
            (-2.0, 0xc000),
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (f32::MAX, 0x7f80),
            (f32::INFINITY, 0x7f80),
        ] {
            assert_eq!(Bf16::from_f32(value), Bf16(bits), "{value}");
        }
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
        assert!(Bf16::from_f32(f32::from_bits(0x7fff_ffff)).to_f32().is_nan());
    }
}
