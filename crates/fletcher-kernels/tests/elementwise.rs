//! Functions, norms, rotations and the pooling helpers against their definitions in f64.

mod common;

use common::{all, assert_close, erf, numbers};
use fletcher_kernels::{Activation, Bf16, Norm, NormKind, Output, Rotary, RotaryPairs};

fn defined(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::GeluErf => x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / 2.0 * (1.0 + inner.tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
    }
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Relu,
    Activation::Tanh,
];

/// Dense over the range where the functions bend, then far outside of it.
#[test]
fn activations_are_their_definitions() {
    let dense = (-120_000..=120_000).map(|i| i as f32 * 1e-4);
    let far = [-1e30, -1e4, -100.0, -20.0, 20.0, 100.0, 1e4, 1e30, 1e-30, -0.0];
    let inputs: Vec<f32> = dense.chain(far).collect();
    for kernels in all() {
        for activation in ACTIVATIONS {
            let mut found = inputs.clone();
            kernels.map(activation, &mut found);
            for (&x, &found) in inputs.iter().zip(&found) {
                let expected = defined(activation, f64::from(x));
                let tolerance = 2.5e-7 * expected.abs().max(1.0);
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error <= tolerance,
                    "{kernels:?} {activation:?}({x}) = {found}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn not_a_number_stays_so() {
    for kernels in all() {
        for activation in ACTIVATIONS {
            for length in 1..40 {
                let mut values = vec![1.0; length];
                values[length - 1] = f32::NAN;
                kernels.map(activation, &mut values);
                assert!(values[length - 1].is_nan(), "{kernels:?} {activation:?}");
                assert!(values[..length - 1].iter().all(|v| v.is_finite()));
            }
        }
    }
}

#[test]
fn norms_are_their_definitions() {
    for kernels in all() {
        for columns in (1..70).chain([128, 384, 1000]) {
            let (rows, stride) = (3, columns + 5);
            let input: Vec<f32> =
                numbers(columns as u64, rows * stride).iter().map(|x| 100.0 + x).collect();
            let (scale, bias) = (numbers(1, columns), numbers(2, columns));
            for kind in [NormKind::Layer, NormKind::Rms] {
                for (bias, in_place) in [(Some(&bias[..]), true), (None, false)] {
                    let mut output = if in_place { input.clone() } else { vec![7.0; input.len()] };
                    let mut rounded = vec![Bf16(0); rows * columns];
                    kernels.norm(Norm {
                        kind,
                        eps: 1e-5,
                        scale: &scale,
                        bias,
                        rows,
                        input: (!in_place).then_some(&input[..]),
                        output: &mut output,
                        stride,
                        rounded: Some(&mut rounded),
                        rounded_stride: columns,
                    });
                    for row in 0..rows {
                        let x: Vec<f64> = (input[row * stride..][..columns].iter())
                            .map(|&x| f64::from(x))
                            .collect();
                        let count = columns as f64;
                        let mean = match kind {
                            NormKind::Layer => x.iter().sum::<f64>() / count,
                            NormKind::Rms => 0.0,
                        };
                        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                        let expected: Vec<f64> = (0..columns)
                            .map(|c| {
                                let bias = bias.map_or(0.0, |bias| f64::from(bias[c]));
                                (x[c] - mean) / (variance + 1e-5f64).sqrt() * f64::from(scale[c])
                                    + bias
                            })
                            .collect();
                        let what = format!("{kernels:?} {kind:?} {columns} columns");
                        // The mean of values around 100 is only known to their rounding.
                        assert_close(&output[row * stride..][..columns], &expected, 2e-4, &what);
                        let pairs = output[row * stride..].iter().zip(&rounded[row * columns..]);
                        for (&value, &rounded) in pairs.take(columns) {
                            assert_eq!(rounded, Bf16::from_f32(value), "{what}");
                        }
                        let between = row * stride + columns..((row + 1) * stride).min(input.len());
                        let untouched = if in_place { input[between.start] } else { 7.0 };
                        assert_eq!(output[between.start], untouched, "{what}: wrote past a row");
                    }
                }
            }
        }
    }
}

#[test]
fn rotations_are_their_definitions() {
    for kernels in all() {
        for (head_dim, rotary_dim) in [(2, 2), (26, 26), (64, 64), (64, 32), (70, 34), (80, 78)] {
            for pairs in [RotaryPairs::Halves, RotaryPairs::Neighbours] {
                let (rows, heads, half) = (3, 2, rotary_dim / 2);
                let stride = heads * head_dim + 3;
                let before = numbers(3, rows * stride);
                let angles = numbers(4, rows * half);
                let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
                let mut data = before.clone();
                kernels.rotary(Rotary {
                    pairs,
                    heads,
                    head_dim,
                    rotary_dim,
                    cos: &cos,
                    sin: &sin,
                    rows,
                    data: Output::F32(&mut data),
                    stride,
                });
                let mut halves: Vec<Bf16> = before.iter().map(|&x| Bf16::from_f32(x)).collect();
                kernels.rotary(Rotary {
                    pairs,
                    heads,
                    head_dim,
                    rotary_dim,
                    cos: &cos,
                    sin: &sin,
                    rows,
                    data: Output::Bf16(&mut halves),
                    stride,
                });
                let halves: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
                let mut expected: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
                for (row, head) in (0..rows).flat_map(|r| (0..heads).map(move |h| (r, h))) {
                    for pair in 0..half {
                        let at = row * stride + head * head_dim;
                        let (low, high) = match pairs {
                            RotaryPairs::Halves => (at + pair, at + pair + half),
                            RotaryPairs::Neighbours => (at + 2 * pair, at + 2 * pair + 1),
                        };
                        let (c, s) = (cos[row * half + pair], sin[row * half + pair]);
                        let (a, b) = (f64::from(before[low]), f64::from(before[high]));
                        expected[low] = a * f64::from(c) - b * f64::from(s);
                        expected[high] = b * f64::from(c) + a * f64::from(s);
                    }
                }
                let what = format!("{kernels:?} {pairs:?} {head_dim}");
                assert_close(&data, &expected, 3e-7, &what);
                assert_close(&halves, &expected, 1e-2, &what);
            }
        }
    }
}

#[test]
fn helpers_are_their_definitions_at_every_length() {
    for kernels in all() {
        for length in 0..67 {
            let (x, y) = (numbers(5, length), numbers(6, length));
            let pairs = || x.iter().zip(&y).map(|(&x, &y)| (f64::from(x), f64::from(y)));
            let what = format!("{kernels:?} {length}");
            let mut out = y.clone();
            kernels.add_scaled(&mut out, &x, 0.5);
            assert_close(&out, &pairs().map(|(x, y)| y + 0.5 * x).collect::<Vec<_>>(), 2e-7, &what);
            let mut out = y.clone();
            kernels.max(&mut out, &x);
            assert_close(&out, &pairs().map(|(x, y)| x.max(y)).collect::<Vec<_>>(), 0.0, &what);
            let dot = pairs().map(|(x, y)| x * y).sum::<f64>();
            assert_close(&[kernels.dot(&x, &y)], &[dot], 1e-5, &what);
            let mut out = y.clone();
            kernels.normalize(&mut out);
            let norm = y.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>().sqrt();
            let expected: Vec<f64> = y.iter().map(|&y| f64::from(y) / norm).collect();
            assert_close(&out, &expected, 3e-7, &what);
        }
        let mut zeros = [0.0; 5];
        kernels.normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 5]);
    }
}
