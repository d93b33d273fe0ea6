//! Element-wise functions, to about one unit in the last place of f32.
//!
//! The polynomials were fitted for this project (weighted least squares on Chebyshev nodes); the
//! tests hold them against the definitions in f64. Wherever one operand of `min` or `max` may be
//! NaN it stands second, because then it is the result: NaN goes through every function.

use crate::isa::Lanes;

/// What a matrix kernel can apply to its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x`.
    Identity,
    /// `x/2 * (1 + erf(x/sqrt 2))`, exact: not the tanh form.
    GeluErf,
    /// The tanh form of GELU.
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `tanh(x)`.
    Tanh,
}

/// One function as a type, so that loops are compiled per function.
pub(crate) trait Function {
    /// # Safety
    /// The CPU has the instruction set of `L`.
    unsafe fn apply<L: Lanes>(x: L) -> L;

    /// The same for a result that will be rounded to bfloat16 or to a byte: it may be off by a
    /// small part of that rounding.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`.
    #[inline(always)]
    unsafe fn apply_rounded<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { Self::apply(x) }
    }
}

/// Runs `$body` with `$function` naming the activation's type.
macro_rules! with_function {
    ($activation:expr, $function:ident => $body:expr) => {{
        use $crate::ops::activation as functions;
        match $activation {
            functions::Activation::Identity => {
                type $function = functions::Identity;
                $body
            }
            functions::Activation::GeluErf => {
                type $function = functions::GeluErf;
                $body
            }
            functions::Activation::GeluTanh => {
                type $function = functions::GeluTanh;
                $body
            }
            functions::Activation::Silu => {
                type $function = functions::Silu;
                $body
            }
            functions::Activation::Relu => {
                type $function = functions::Relu;
                $body
            }
            functions::Activation::Tanh => {
                type $function = functions::Tanh;
                $body
            }
        }
    }};
}
pub(crate) use with_function;

pub(crate) struct Identity;
pub(crate) struct GeluErf;
pub(crate) struct GeluTanh;
pub(crate) struct Silu;
pub(crate) struct Relu;
pub(crate) struct Tanh;

/// 1.5 * 2^23 + 127: adding it to `x` leaves the nearest integer to `x`, with the bias of f32
/// exponents, in the low mantissa bits; subtracting it again leaves that integer as a number.
const ROUND_TO_EXPONENT: f32 = 12_583_039.0;

/// Evaluates a polynomial, highest coefficient first.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
unsafe fn polynomial<L: Lanes, const N: usize>(x: L, coefficients: [f32; N]) -> L {
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        let mut value = L::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            value = value.fma(x, L::splat(*coefficient));
        }
        value
    }
}

/// `exp(x)`: `2^n * exp(x - n ln 2)` with `n` the nearest integer to `x * log2 e`.
///
/// Relative error below 1.5 units in the last place; exactly 0 below -87.7 and finite above 88,
/// where f32 ends.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // ln 2 in two parts, the first exact in few bits, so that x - n ln 2 loses nothing.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // (exp(r) - 1 - r) / r^2 on |r| <= ln 2 / 2.
    const C: [f32; 5] = [1.388_888_9e-3, 8.333_334e-3, 4.166_666_8e-2, 1.666_666_7e-1, 5.0e-1];
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        let x = L::splat(88.0).min(L::splat(-88.0).max(x));
        let shifted = x.fma(L::splat(std::f32::consts::LOG2_E), L::splat(ROUND_TO_EXPONENT));
        let n = shifted.sub(L::splat(ROUND_TO_EXPONENT));
        let r = n.fma(L::splat(-LN2_HIGH), x);
        let r = n.fma(L::splat(-LN2_LOW), r);
        let p = polynomial(r, C).fma(r.mul(r), r).add(L::splat(1.0));
        p.mul(shifted.shift_left_23())
    }
}

/// `2^x` for `x` up to 127; 0 (or nearly so) far below -126.
///
/// Relative error below 2e-7, or below 1e-4 where the result is `rounded` to bfloat16, whose own
/// rounding is 2e-3.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn exp2<L: Lanes>(x: L, rounded: bool) -> L {
    // 2^f on |f| <= 1/2.
    const FINE: [f32; 6] =
        [1.327_648_5e-3, 9.675_547e-3, 5.550_713_5e-2, 2.402_212e-1, 6.931_469e-1, 1.000_000_1];
    const COARSE: [f32; 4] = [5.517_166_5e-2, 2.426_111_2e-1, 6.932_61e-1, 9.999_281e-1];
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        // Minus infinity has no fraction to take.
        let x = L::splat(-160.0).max(x);
        let whole = x.round();
        let fraction = x.sub(whole);
        let power = match rounded {
            true => polynomial(fraction, COARSE),
            false => polynomial(fraction, FINE),
        };
        power.times_power_of_two(whole)
    }
}

impl Function for Identity {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        x
    }
}

/// `gelu(x) = max(x, 0) - g(|x|)` with `g(a) = a Q(a)` and `Q` the normal tail.
///
/// `g` is cut into 16 pieces on 0..6, each a polynomial of degree 5 in the distance from its
/// middle, to 2e-8; beyond 6 `g` is below 6e-9. Looking coefficients up takes the place of half of
/// the multiplications that one polynomial for all would need.
impl Function for GeluErf {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        const PIECES_PER_UNIT: f32 = 16.0 / 6.0;
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            // Just below 6, whose piece would be the 17th.
            let a = L::splat(5.999_999).min(x.abs());
            // The middle of piece n is at n.
            let at = a.fma(L::splat(PIECES_PER_UNIT), L::splat(-0.5));
            let piece = at.add(L::splat(ROUND));
            let u = at.sub(piece.sub(L::splat(ROUND)));
            let mut g = piece.lookup(&GELU_PIECES[0]);
            for coefficients in &GELU_PIECES[1..] {
                g = g.fma(u, piece.lookup(coefficients));
            }
            L::splat(0.0).max(x).sub(g)
        }
    }

    /// With cubics in `|x|` itself, eight on 0..2 and eight on 2..6: off by at most 4e-6, where the
    /// rounding of a bfloat16 is that large from 0.001 on. The piece stands in the bits of
    /// `|x| + 2`, so that three multiplications are all that this takes of the units that products
    /// are made by.
    #[inline(always)]
    unsafe fn apply_rounded<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            // Just below 6, whose piece would be the 17th.
            let a = L::splat(5.999_999).min(x.abs());
            let piece = a.add(L::splat(2.0)).shift_right_20();
            let mut g = piece.lookup(&GELU_CUBICS[0]);
            for coefficients in &GELU_CUBICS[1..] {
                g = g.fma(a, piece.lookup(coefficients));
            }
            L::splat(0.0).max(x).sub(g)
        }
    }
}

/// 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// Highest power first, each for the 16 pieces of [`GeluErf`].
#[rustfmt::skip]
static GELU_PIECES: [[f32; 16]; 6] = [
    [
        -7.912_969e-5, -1.713_919_6e-4, -1.347_244_1e-4, -2.800_550_8e-5,
        5.137_297_2e-5, 6.435_134e-5, 3.715_69e-5, 8.759_196e-6,
        -4.484_972_6e-6, -6.039_389_5e-6, -3.672_176e-6, -1.563_893_8e-6,
        -5.148_288e-7, -1.364_250_6e-7, -2.972_821_5e-8, -5.396_297e-9,
    ],
    [
        1.203_707_7e-3, 5.273_56e-4, -2.866_867e-4, -7.005_471e-4,
        -6.164_595e-4, -3.019_102e-4, -4.064_936_7e-5, 6.919_067e-5,
        7.344_818e-5, 4.405_527_6e-5, 1.935_868_6e-5, 6.706_835_4e-6,
        1.892_494_7e-6, 4.427_058e-7, 8.679_586e-8, 1.436_667_9e-8,
    ],
    [
        2.561_084_2e-3, 6.201_871e-3, 6.611_045e-3, 4.429_109e-3,
        1.641_919_4e-3, -2.188_029_8e-4, -8.506_579e-4, -7.387_344_4e-4,
        -4.282_190_6e-4, -1.904_617_2e-4, -6.827_813e-5, -2.020_187_1e-5,
        -5.000_382_8e-6, -1.044_291_8e-6, -1.850_806_4e-7, -2.795_221_8e-8,
    ],
    [
        -5.415_389e-2, -4.031_544_6e-2, -2.026_486_4e-2, -3.288_316e-3,
        5.725_077e-3, 7.536_320_5e-3, 5.668_245_3e-3, 3.176_07e-3,
        1.423_645_4e-3, 5.260_975_4e-4, 1.628_287_9e-4, 4.260_564e-5,
        9.482_184e-6, 1.802_465_4e-6, 2.935_263_4e-7, 4.104_134_3e-8,
    ],
    [
        1.320_51e-1, 3.574_442e-2, -2.503_352_4e-2, -4.747_605_7e-2,
        -4.363_131_5e-2, -2.943_743_6e-2, -1.592_204_3e-2, -7.138_847e-3,
        -2.696_719_3e-3, -8.660_821e-4, -2.378_017_4e-4, -5.602_630_3e-5,
        -1.135_505e-5, -1.983_346_2e-6, -2.989_581_3e-7, -3.892_927e-8,
    ],
    [
        7.980_642_5e-2, 1.613_743_3e-1, 1.633_600_4e-1, 1.242_619_2e-1,
        7.720_925e-2, 4.038_391_3e-2, 1.802_435_1e-2, 6.912_845e-3,
        2.287_165_5e-3, 6.543_243e-4, 1.620_971e-4, 3.480_607e-5,
        6.481_989e-6, 1.047_432e-6, 1.469_070_4e-7, 1.788_778_4e-8,
    ],
];

/// Highest power first, each for the 16 pieces of [`GeluErf`] where the result is rounded.
#[rustfmt::skip]
static GELU_CUBICS: [[f32; 16]; 4] = [
    [
        3.268_585_4e-2, 8.924_821e-2, 1.228_276_8e-1, 1.278_530_2e-1,
        1.083_639_9e-1, 7.489_986e-2, 3.936_058_3e-2, 1.062_073_8e-2,
        -1.197_688_3e-2, -1.468_984_3e-2, -7.279_905e-3, -2.280_444e-3,
        -4.985_786_5e-4, -7.920_884e-5, -9.337_727_5e-6, -8.271_212e-7,
    ],
    [
        -4.040_02e-1, -4.453_799_4e-1, -4.940_664_2e-1, -5.036_583e-1,
        -4.439_745_8e-1, -3.180_089e-1, -1.582_774_5e-1, -7.983_791e-3,
        1.289_599_2e-1, 1.466_722_5e-1, 7.988_491e-2, 2.787_698e-2,
        6.765_818e-3, 1.185_199_7e-3, 1.529_807_8e-4, 1.473_998_05e-5,
    ],
    [
        5.002_513e-1, 5.107_702_6e-1, 5.345_321e-1, 5.404_808_5e-1,
        4.794_329_4e-1, 3.211_258_6e-1, 8.154_797_6e-2, -1.806_553_8e-1,
        -4.576_243_8e-1, -4.954_524_3e-1, -2.945_858_8e-1, -1.141_036_4e-1,
        -3.068_435_4e-2, -5.920_711_4e-3, -8.362_588_7e-4, -8.761_504_4e-5,
    ],
    [
        -1.951_549_2e-6, -9.288_355e-4, -4.834_746e-3, -6.020_06e-3,
        1.483_378e-2, 8.125_613e-2, 2.011_721_4e-1, 3.537_809_8e-1,
        5.407_283e-1, 5.669_809_6e-1, 3.653_989_4e-1, 1.564_571_9e-1,
        4.651_983_5e-2, 9.876_063e-3, 1.525_419e-3, 1.737_145_5e-4,
    ],
];

/// `x/2 (1 + tanh(y)) = x / (1 + exp(-2y))` with `y = sqrt(2/pi) (x + 4.471_5e-2 x^3)`.
impl Function for GeluTanh {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            let inner = x.mul(x).fma(L::splat(-7.135_481_4e-2), L::splat(-1.595_769)).mul(x);
            x.div(L::splat(1.0).add(exp(inner)))
        }
    }
}

impl Function for Silu {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(x)))) }
    }
}

impl Function for Relu {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { L::splat(0.0).max(x) }
    }
}

/// `tanh(x) = 1 - 2 / (exp(2x) + 1)`: absolute error of one rounding near 1.
impl Function for Tanh {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            let one = L::splat(1.0);
            one.sub(L::splat(2.0).div(exp(x.add(x)).add(one)))
        }
    }
}

/// Applies a function to every element of a slice.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn map<L: Lanes>(activation: Activation, values: &mut [f32]) {
    let mut at = 0;
    while at < values.len() {
        let lanes = L::WIDTH.min(values.len() - at);
        // SAFETY: `lanes` elements exist from `at` on.
        unsafe {
            let slot = values.as_mut_ptr().add(at);
            let x = L::load_partial(slot, lanes);
            with_function!(activation, F => F::apply(x)).store_partial(slot, lanes);
        }
        at += lanes;
    }
}
