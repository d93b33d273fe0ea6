//! Element-wise functions, to about one unit in the last place of f32.
//!
//! The polynomials were fitted for this project (weighted least squares on Chebyshev nodes); the
//! tests hold them against the definitions in f64.

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

/// Applies the activation to a vector.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn apply<L: Lanes>(activation: Activation, x: L) -> L {
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        match activation {
            Activation::Identity => x,
            Activation::GeluErf => gelu_erf(x),
            Activation::GeluTanh => gelu_tanh(x),
            Activation::Silu => x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(x)))),
            // Zero first: where one operand is NaN, the second is the result.
            Activation::Relu => L::splat(0.0).max(x),
            Activation::Tanh => tanh(x),
        }
    }
}

/// `exp(x)`: `2^n * 2^f` with `n` the nearest integer to `x * log2 e`.
///
/// Relative error below 2e-7; 0 below -87 and finite above 88, where f32 ends.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    /// 1.5 * 2^23 + 127: adding it leaves the integer part, with the exponent's bias, in the low
    /// mantissa bits.
    const MAGIC: f32 = 12_583_039.0;
    // ln 2 in two parts, the first exact in few bits, so that x - n ln 2 loses nothing.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // exp(r) = 1 + r + r^2 (1/2 + …) on |r| <= ln 2 / 2.
    const C: [f32; 5] = [1.388_888_9e-3, 8.333_334e-3, 4.166_666_8e-2, 1.666_666_7e-1, 5.0e-1];
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        // `x` stands second, so that NaN goes through.
        let x = L::splat(88.0).min(L::splat(-88.0).max(x));
        let shifted = x.fma(L::splat(std::f32::consts::LOG2_E), L::splat(MAGIC));
        let n = shifted.sub(L::splat(MAGIC));
        let r = n.fma(L::splat(-LN2_HIGH), x);
        let r = n.fma(L::splat(-LN2_LOW), r);
        let mut p = L::splat(C[0]);
        p = p.fma(r, L::splat(C[1]));
        p = p.fma(r, L::splat(C[2]));
        p = p.fma(r, L::splat(C[3]));
        p = p.fma(r, L::splat(C[4]));
        p = p.fma(r.mul(r), r).add(L::splat(1.0));
        p.mul(shifted.shift_left_23())
    }
}

/// `gelu(x) = max(x, 0) - |x| Q(|x|)` with `Q(a) = 1 - Phi(a)`, the normal tail.
///
/// `Q(a) exp(a^2/2)` is smooth, and a polynomial in `1 / (1 + 0.35 a)` meets it so closely that
/// the result's absolute error is below 2e-7 for |x| < 4 and one rounding beyond.
#[inline(always)]
unsafe fn gelu_erf<L: Lanes>(x: L) -> L {
    const C: [f32; 7] = [
        0.043_041_83,
        -0.280_543_27,
        0.592_568_4,
        -0.267_763_03,
        0.308_426_68,
        0.100_448_8,
        0.003_820_310_3,
    ];
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        let a = x.abs();
        let one = L::splat(1.0);
        let t = one.div(a.fma(L::splat(0.35), one));
        let mut q = L::splat(C[0]);
        for c in &C[1..] {
            q = q.fma(t, L::splat(*c));
        }
        let density = exp(a.mul(a).mul(L::splat(-0.5)));
        let tail = a.mul(density).mul(q);
        L::splat(0.0).max(x).sub(tail)
    }
}

/// `x/2 (1 + tanh(y)) = x / (1 + exp(-2y))`.
#[inline(always)]
unsafe fn gelu_tanh<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        let x2 = x.mul(x);
        // -2 sqrt(2/pi) (x + 0.044715 x^3)
        let inner = x2.fma(L::splat(-0.071_354_82), L::splat(-1.595_769_1)).mul(x);
        x.div(L::splat(1.0).add(exp(inner)))
    }
}

/// `tanh(x) = 1 - 2 / (exp(2x) + 1)`: absolute error of one rounding near 1.
#[inline(always)]
unsafe fn tanh<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        let one = L::splat(1.0);
        let e = exp(x.add(x));
        one.sub(L::splat(2.0).div(e.add(one)))
    }
}
