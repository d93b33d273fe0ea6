//! Attention against its definition in f64.

mod common;

use std::ops::Range;

use common::{all, assert_close, numbers};
use fletcher_kernels::{
    Attention, AttentionBias, AttentionRows, AttentionShape, Bf16, Format, Kernels,
};

/// What varies; the operands follow from it.
#[derive(Debug, Clone, Copy)]
struct Case {
    tokens: usize,
    shape: AttentionShape,
    window: Option<usize>,
    causal: bool,
    bias: Bias,
}

#[derive(Debug, Clone, Copy)]
enum Bias {
    None,
    Relative,
    Alibi,
}

const SLOPES: [f32; 4] = [0.5, 0.25, 0.125, 0.0625];
const POSITIONS: usize = 200;

fn tables() -> Vec<Vec<f32>> {
    (0..4).map(|head| numbers(20 + head, 2 * POSITIONS - 1)).collect()
}

impl Case {
    fn qkv(&self) -> Vec<f32> {
        // Values that bfloat16 has exactly, so that both formats start from the same.
        let values = numbers(9, self.tokens * (self.shape.qkv_columns() + 3));
        values.iter().map(|x| Bf16::from_f32(2.0 * x).to_f32()).collect()
    }

    /// The context of some queries, with whatever stood between its rows.
    fn run(&self, kernels: &Kernels, format: Format, queries: Range<usize>) -> Vec<f32> {
        let columns = self.shape.context_columns();
        let (qkv, elements) = (self.qkv(), queries.len() * (columns + 1));
        let halves: Vec<Bf16> = qkv.iter().map(|&x| Bf16::from_f32(x)).collect();
        let (mut context, mut half_context) = (vec![7.0; elements], vec![Bf16(0x40e0); elements]);
        let rows = match format {
            Format::F32 => AttentionRows::F32 { qkv: &qkv, context: &mut context },
            _ => AttentionRows::Bf16 { qkv: &halves, context: &mut half_context },
        };
        // What an earlier sequence left there must not count.
        let mut scratch =
            vec![f32::NAN; kernels.attention_scratch(format, self.shape, self.tokens)];
        let tables = tables();
        kernels.attention(Attention {
            shape: self.shape,
            tokens: self.tokens,
            queries,
            scale: 0.3,
            window: self.window,
            causal: self.causal,
            bias: match self.bias {
                Bias::None => AttentionBias::None,
                Bias::Relative => {
                    AttentionBias::Relative { by_distance: &tables, positions: POSITIONS }
                }
                Bias::Alibi => AttentionBias::Alibi { slopes: &SLOPES },
            },
            rows,
            qkv_stride: self.shape.qkv_columns() + 3,
            context_stride: columns + 1,
            scratch: &mut scratch,
        });
        match format {
            Format::F32 => context,
            _ => half_context.iter().map(|x| x.to_f32()).collect(),
        }
    }

    fn expected(&self) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let (qkv, stride) = (self.qkv(), self.shape.qkv_columns() + 3);
        let columns = self.shape.context_columns();
        let tables = tables();
        let part = |token: usize, head: usize| {
            let head = &qkv[token * stride + head * head_dim..][..head_dim];
            head.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()
        };
        let mut context = vec![7.0; self.tokens * (columns + 1)];
        for (query, head) in (0..self.tokens).flat_map(|q| (0..heads).map(move |h| (q, h))) {
            let kv = head / (heads / kv_heads);
            let seen: Vec<usize> = (0..self.tokens)
                .filter(|key| key.abs_diff(query) <= self.window.unwrap_or(usize::MAX))
                .filter(|&key| !self.causal || key <= query)
                .collect();
            let q = part(query, head);
            let scores: Vec<f64> = (seen.iter())
                .map(|&key| {
                    let dot: f64 = q.iter().zip(part(key, heads + kv)).map(|(q, k)| q * k).sum();
                    let bias = match self.bias {
                        Bias::None => 0.0,
                        Bias::Relative => tables[head][key + POSITIONS - 1 - query],
                        Bias::Alibi => -SLOPES[head] * key.abs_diff(query) as f32,
                    };
                    dot * f64::from(0.3f32) + f64::from(bias)
                })
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let out = &mut context[query * (columns + 1) + head * head_dim..][..head_dim];
            out.fill(0.0);
            for (key, score) in seen.iter().zip(scores) {
                let value = part(*key, heads + kv_heads + kv);
                let weight = (score - max).exp() / sum;
                out.iter_mut().zip(value).for_each(|(out, v)| *out += weight * v);
            }
        }
        context
    }

    fn check(&self) {
        let expected = self.expected();
        // Scores reach 40, where one rounding moves a probability by 4e-6 of itself. Probabilities
        // and results of at most 2 are rounded to 8 bits in bfloat16.
        for (format, tolerance) in [(Format::F32, 2e-5), (Format::Bf16, 1.6e-2)] {
            for kernels in all() {
                let found = self.run(&kernels, format, 0..self.tokens);
                assert_close(&found, &expected, tolerance, &format!("{kernels:?} {self:?}"));
                let cut = self.tokens / 3;
                let mut parts = self.run(&kernels, format, 0..cut);
                parts.extend(self.run(&kernels, format, cut..self.tokens));
                let same = parts.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{kernels:?} {format:?} {self:?} in two parts");
            }
        }
    }
}

const PLAIN: AttentionShape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 8 };

/// Every length around the tiles and panels of every instruction set.
#[test]
fn lengths() {
    for tokens in (1..70).chain([95, 96, 97, 130]) {
        Case { tokens, shape: PLAIN, window: None, causal: false, bias: Bias::None }.check();
    }
}

#[test]
fn head_sizes_and_groups() {
    for (heads, kv_heads, head_dim) in
        [(1, 1, 1), (3, 3, 26), (2, 1, 32), (4, 2, 33), (1, 1, 64), (2, 2, 130)]
    {
        let shape = AttentionShape { heads, kv_heads, head_dim };
        for tokens in [1, 5, 16, 47] {
            Case { tokens, shape, window: None, causal: false, bias: Bias::None }.check();
        }
    }
}

#[test]
fn windows_causality_and_biases() {
    for tokens in [1, 2, 17, 40, 81, 150] {
        for window in [None, Some(0), Some(1), Some(5), Some(64)] {
            for causal in [false, true] {
                for bias in [Bias::None, Bias::Relative, Bias::Alibi] {
                    Case { tokens, shape: PLAIN, window, causal, bias }.check();
                }
            }
        }
    }
}

/// Scores far apart: the greatest is subtracted before exponentials are taken.
#[test]
fn large_scores_do_not_overflow() {
    for kernels in all() {
        let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 1 };
        let qkv = [1e4, 1e4, 1.0, 1e4, -1e4, 2.0];
        let mut context = [0.0; 2];
        let mut scratch = vec![0.0; kernels.attention_scratch(Format::F32, shape, 2)];
        kernels.attention(Attention {
            shape,
            tokens: 2,
            queries: 0..2,
            scale: 1.0,
            window: None,
            causal: false,
            bias: AttentionBias::None,
            rows: AttentionRows::F32 { qkv: &qkv, context: &mut context },
            qkv_stride: 3,
            context_stride: 1,
            scratch: &mut scratch,
        });
        assert_eq!(context, [1.0, 1.0], "{kernels:?}");
    }
}
