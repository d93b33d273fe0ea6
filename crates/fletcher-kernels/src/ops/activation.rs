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

impl Function for Identity {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        x
    }
}

/// `gelu(x) = max(x, 0) - a Q(a)` with `a = |x|` and `Q(a) = 1 - Phi(a)`, the normal tail.
///
/// `-log2 Q` is so smooth that a polynomial of degree 7 gives `a Q(a)` to 3e-8 on 0..6, and
/// beyond 6 the tail is below 6e-9. The power of two is then split like [`exp`]'s.
impl Function for GeluErf {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        // log2 Q(a).
        const TAIL: [f32; 8] = [
            3.152_014e-6,
            2.934_543_7e-7,
            -6.359_287_7e-4,
            7.810_706_3e-3,
            -5.312_380_6e-2,
            -4.589_283_5e-1,
            -1.151_162_9,
            -9.999_961e-1,
        ];
        // 2^f on |f| <= 1/2.
        const POWER: [f32; 6] =
            [1.327_648_5e-3, 9.675_547e-3, 5.550_713_5e-2, 2.402_212e-1, 6.931_469e-1, 1.000_000_1];
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            let a = L::splat(6.0).min(x.abs());
            let log = polynomial(a, TAIL);
            let shifted = log.add(L::splat(ROUND_TO_EXPONENT));
            let f = log.sub(shifted.sub(L::splat(ROUND_TO_EXPONENT)));
            let tail = polynomial(f, POWER).mul(a.mul(shifted.shift_left_23()));
            L::splat(0.0).max(x).sub(tail)
        }
    }
}

/// `x/2 (1 + tanh(y)) = x / (1 + exp(-2y))` with `y = sqrt(2/pi) (x + 0.044715 x^3)`.
impl Function for GeluTanh {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe {
            let inner = x.mul(x).fma(L::splat(-0.071_354_814), L::splat(-1.595_769)).mul(x);
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
