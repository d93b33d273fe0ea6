//! The formulas of the reference backend that stand alone.

use crate::backend::{PoolOp, Pooling};
use crate::spec::Activation;

/// The element-wise function, in f64.
pub fn activate(activation: Activation, x: f64) -> f64 {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};
    match activation {
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Identity => x,
    }
}

/// The error function to about 1e-15: its Taylor series near zero, and the continued fraction of
/// the complementary function (Abramowitz & Stegun 7.1.5 and 7.1.14) beyond.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        // erf(x) = 2/sqrt(pi) * exp(-x^2) * sum of 2^n x^(2n+1) / (2n+1)!!: all terms positive.
        let (mut term, mut sum) = (a, a);
        let mut n = 1.0;
        while term > sum * 1e-17 {
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        return (2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum).copysign(x);
    }
    let mut fraction = a;
    for k in (1..=80).rev() {
        fraction = a + f64::from(k) / 2.0 / fraction;
    }
    (1.0 - (-a * a).exp() / (std::f64::consts::PI.sqrt() * fraction)).copysign(x)
}

/// Pools one sequence's hidden states (`tokens x out.len()`) into `out`.
pub fn pool(hidden: &[f64], op: PoolOp, out: &mut [f32]) {
    let d = out.len();
    let tokens = hidden.len() / d;
    let first = op.first(tokens);
    let column = |c: usize| (first..tokens).map(move |t| hidden[t * d + c]);
    let count = (tokens - first) as f64;
    for (c, out) in out.iter_mut().enumerate() {
        let value = match op.mode {
            Pooling::Cls => hidden[first * d + c],
            Pooling::LastToken => hidden[(tokens - 1) * d + c],
            Pooling::Max => column(c).fold(f64::NEG_INFINITY, f64::max),
            Pooling::Mean => column(c).sum::<f64>() / count,
            Pooling::MeanSqrtLen => column(c).sum::<f64>() / count.sqrt(),
            Pooling::WeightedMean => {
                let weights = || (first..tokens).map(|t| (t + 1) as f64);
                let sum: f64 = column(c).zip(weights()).map(|(x, w)| x * w).sum();
                sum / weights().sum::<f64>()
            }
        };
        *out = value as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the error function from Python's `math.erf`.
    #[test]
    fn erf_is_exact() {
        let cases = [
            (0.0, 0.0),
            (1e-9, 1.1283791670955127e-9),
            (0.1, 0.1124629160182849),
            (0.5, 0.5204998778130465),
            (1.0, 0.8427007929497149),
            (2.0, 0.9953222650189527),
            (2.999, 0.9999777698314002),
            (3.5, 0.9999992569016276),
            (6.0, 1.0),
        ];
        for (x, expected) in cases {
            assert!((erf(x) - expected).abs() < 2e-15, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + expected).abs() < 2e-15, "erf(-{x})");
        }
    }

    #[test]
    fn every_pooling_of_three_tokens() {
        let hidden = [1.0, -1.0, 2.0, -2.0, 6.0, -6.0];
        let cases = [
            (Pooling::Cls, 0, 1.0),
            (Pooling::Cls, 1, 2.0),
            (Pooling::LastToken, 0, 6.0),
            (Pooling::Mean, 0, 3.0),
            (Pooling::Mean, 1, 4.0),
            (Pooling::Mean, 3, 3.0),
            (Pooling::MeanSqrtLen, 0, (9.0 / 3f64.sqrt()) as f32),
            (Pooling::WeightedMean, 0, 23.0 / 6.0),
            (Pooling::WeightedMean, 1, 22.0 / 5.0),
        ];
        for (mode, skip, expected) in cases {
            let mut out = [0.0f32; 2];
            pool(&hidden, PoolOp { mode, skip }, &mut out);
            assert_eq!(out, [expected, -expected], "{mode:?} {skip}");
        }
        let mut out = [0.0f32; 2];
        pool(&hidden, PoolOp { mode: Pooling::Max, skip: 0 }, &mut out);
        assert_eq!(out, [6.0, -1.0]);
    }
}
