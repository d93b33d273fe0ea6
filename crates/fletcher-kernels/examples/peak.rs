//! Prints how fast the kernels are: operations a cycle by shape, format and instruction set, on one
//! thread. The arithmetic peak of a core with two 256-bit multipliers (Zen 4) is 32 in f32, 64 in
//! bf16 and 128 in int8. The clock is that of plain integers, which wide multiplications may lower:
//! what the multipliers do at most is measured, in billions of operations a second.
//!
//! `cargo run --release -p fletcher-kernels --example peak [WORD IN A SET'S NAME]`

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::hint::black_box;
use std::time::Instant;

use fletcher_kernels::{
    Activation, AlignedBuffer, Attention, AttentionBias, AttentionRows, AttentionShape, Bf16,
    Epilogue, Format, Gemm, Input, Isa, Kernels, LinearShape, Multiply, Norm, NormKind, Output,
    Quantize, RowScale, Source, peak_gops, row_stride,
};

/// Rows, inputs and outputs: BERT-tiny, MiniLM, BERT-base, and one short text.
const PRODUCTS: [(usize, usize, usize); 11] = [
    (512, 128, 384),
    (512, 128, 128),
    (512, 128, 512),
    (512, 512, 128),
    (512, 384, 1152),
    (512, 384, 384),
    (512, 384, 1536),
    (512, 1536, 384),
    (512, 768, 3072),
    (512, 3072, 768),
    (16, 384, 1536),
];

/// Tokens, heads and columns of a head.
const ATTENTIONS: [(usize, usize, usize); 5] =
    [(64, 2, 64), (64, 12, 32), (256, 12, 32), (512, 12, 64), (4096, 1, 64)];

/// Cycles a nanosecond, by a chain of multiplications of three cycles and additions of one.
fn clock() -> f64 {
    let chain = || {
        let (mut x, begin) = (black_box(3u64), Instant::now());
        for _ in 0..2_000_000 {
            x = x.wrapping_mul(x).wrapping_add(1);
        }
        black_box(x);
        8e6 / begin.elapsed().as_nanos() as f64
    };
    (0..20).map(|_| chain()).fold(0.0, f64::max)
}

/// The shortest of many runs, in nanoseconds: what a neighbour takes does not count.
fn best(mut run: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::MAX);
    while start.elapsed().as_secs_f64() < 0.1 {
        let begin = Instant::now();
        run();
        best = best.min(begin.elapsed().as_nanos() as f64);
    }
    best
}

fn numbers(buffer: &mut [f32]) {
    for (i, value) in buffer.iter_mut().enumerate() {
        *value = (i * 7919 % 97) as f32 / 97.0 - 0.5;
    }
}

/// The same on whole cache lines, as the engine's rows are: those of a tile that lie across two
/// lines take twice as long to load.
fn rounded(numbers: &[f32]) -> AlignedBuffer<Bf16> {
    let mut halves = AlignedBuffer::new(numbers.len());
    halves.iter_mut().zip(numbers).for_each(|(half, &number)| *half = Bf16::from_f32(number));
    halves
}

struct Bench {
    kernels: Kernels,
    format: Format,
    /// Cycles a nanosecond.
    clock: f64,
}

impl Bench {
    fn product(&self, (rows, inputs, outputs): (usize, usize, usize)) {
        let (kernels, format) = (&self.kernels, self.format);
        let shape = LinearShape { rows: outputs, cols: inputs, gated: false };
        let mut weight = vec![0.0; outputs * inputs];
        numbers(&mut weight);
        let linear = kernels.pack(format, shape, &weight, None);
        let x_stride = match format {
            Format::F32 => row_stride::<f32>(inputs),
            Format::Bf16 => row_stride::<Bf16>(inputs),
            Format::Int8 => row_stride::<u8>(inputs),
        };
        let mut x = AlignedBuffer::<f32>::new(rows * x_stride);
        numbers(&mut x);
        let halves = rounded(&x);
        let mut bytes = AlignedBuffer::<u8>::new(x.len());
        let mut scales = vec![RowScale::default(); rows];
        kernels.quantize(Quantize {
            rows,
            columns: inputs,
            x: Source::F32(&x),
            x_stride,
            bytes: &mut bytes,
            stride: x_stride,
            scales: &mut scales,
        });
        let mut y = AlignedBuffer::<f32>::new(rows * row_stride::<f32>(outputs));
        let mut half_y = AlignedBuffer::<Bf16>::new(rows * row_stride::<Bf16>(outputs));
        let mut ops = |epilogue| {
            let ns = best(|| {
                let x = match format {
                    Format::F32 => Input::F32(&x),
                    Format::Bf16 => Input::Bf16(&halves),
                    Format::Int8 => Input::Int8 { bytes: &bytes, scales: &scales },
                };
                let (y, y_stride) = match (format, epilogue) {
                    (Format::F32, _) | (_, Epilogue::Accumulate) => {
                        (Output::F32(&mut y), row_stride::<f32>(outputs))
                    }
                    _ => (Output::Bf16(&mut half_y), row_stride::<Bf16>(outputs)),
                };
                kernels.gemm(Gemm { linear: &linear, rows, x, x_stride, y, y_stride, epilogue });
            });
            2.0 * (rows * inputs * outputs) as f64 / (ns * self.clock)
        };
        let plain = ops(Epilogue::Activate(Activation::Identity));
        let gelu = ops(Epilogue::Activate(Activation::GeluErf));
        let add = ops(Epilogue::Accumulate);
        let name = format!("{rows} x {inputs} x {outputs}");
        println!(
            "{name:>18}  store {plain:5.1}  erf-GELU {gelu:5.1}  accumulate {add:5.1}  op/cycle"
        );
    }

    fn attention(&self, (tokens, heads, head_dim): (usize, usize, usize)) {
        let shape = AttentionShape { heads, kv_heads: heads, head_dim };
        let qkv_stride = row_stride::<Bf16>(shape.qkv_columns());
        let context_stride = row_stride::<Bf16>(shape.context_columns());
        let mut qkv = AlignedBuffer::<f32>::new(tokens * qkv_stride);
        numbers(&mut qkv);
        let halves = rounded(&qkv);
        let mut context = AlignedBuffer::<f32>::new(tokens * context_stride);
        let mut half_context = AlignedBuffer::<Bf16>::new(tokens * context_stride);
        let words = self.kernels.attention_scratch(self.format, shape, tokens);
        let mut scratch = AlignedBuffer::<f32>::new(words);
        let ns = best(|| {
            let rows = match self.format {
                Format::F32 => AttentionRows::F32 { qkv: &qkv, context: &mut context },
                _ => AttentionRows::Bf16 { qkv: &halves, context: &mut half_context },
            };
            self.kernels.attention(Attention {
                shape,
                tokens,
                queries: 0..tokens,
                scale: 0.125,
                window: None,
                causal: false,
                bias: AttentionBias::None,
                rows,
                qkv_stride,
                context_stride,
                scratch: &mut scratch,
            });
        });
        let ops = 4.0 * (tokens * tokens * heads * head_dim) as f64 / (ns * self.clock);
        let name = format!("{tokens} x {heads} x {head_dim}");
        println!("{name:>18}  attention {ops:5.1}  op/cycle");
    }

    fn rows(&self, columns: usize) {
        let (rows, stride) = (128, row_stride::<f32>(columns));
        let mut x = AlignedBuffer::<f32>::new(rows * stride);
        numbers(&mut x);
        let mut y = AlignedBuffer::<f32>::new(rows * stride);
        let mut rounded = AlignedBuffer::<Bf16>::new(rows * stride);
        let scale = vec![1.0; columns];
        let mut norm = |rounds: bool| {
            best(|| {
                self.kernels.norm(Norm {
                    kind: NormKind::Layer,
                    eps: 1e-12,
                    scale: &scale,
                    bias: Some(&scale),
                    rows,
                    input: Some(&x),
                    output: &mut y,
                    stride,
                    rounded: rounds.then_some(&mut rounded),
                    rounded_stride: stride,
                });
            })
        };
        let per_row = |ns: f64| ns * self.clock / rows as f64;
        let (plain, rounds) = (per_row(norm(false)), per_row(norm(true)));
        let (mut bytes, mut scales) = (vec![0u8; x.len()], vec![RowScale::default(); rows]);
        let mut quantize = |x: Source<'_>| {
            per_row(best(|| {
                self.kernels.quantize(Quantize {
                    rows,
                    columns,
                    x,
                    x_stride: stride,
                    bytes: &mut bytes,
                    stride,
                    scales: &mut scales,
                });
            }))
        };
        let (wide, narrow) = (quantize(Source::F32(&x)), quantize(Source::Bf16(&rounded)));
        println!(
            "{columns:>10} columns  norm {plain:4.0}, with bf16 {rounds:4.0}; to bytes from f32 {wide:4.0}, \
             from bf16 {narrow:4.0}  cycles/row"
        );
    }

    fn elements(&self) {
        let mut values = vec![0.5; 4096];
        for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu] {
            let ns = best(|| self.kernels.map(activation, &mut values));
            let cycles = ns * self.clock / values.len() as f64 * 16.0;
            println!("{:>18}  {cycles:5.1}  cycles/16 elements", format!("{activation:?}"));
        }
    }
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let clock = clock();
    let peaks = [Multiply::F32, Multiply::Bf16, Multiply::Int8];
    let [f32, bf16, int8] = peaks.map(|what| peak_gops(what).unwrap_or(0.0));
    println!("{clock:.2} GHz; at most {f32:.0} Gop/s in f32, {bf16:.0} in bf16, {int8:.0} in int8");
    for isa in Isa::available().into_iter().rev().filter(|isa| isa.name().contains(&wanted)) {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        for format in [Format::F32, Format::Bf16, Format::Int8] {
            println!("{}, {format:?}", isa.name());
            let bench = Bench { kernels, format, clock };
            PRODUCTS.iter().for_each(|&shape| bench.product(shape));
            if format != Format::Int8 {
                ATTENTIONS.iter().for_each(|&shape| bench.attention(shape));
            }
        }
        let bench = Bench { kernels, format: Format::F32, clock };
        [128, 384, 512, 1536].iter().for_each(|&columns| bench.rows(columns));
        bench.elements();
    }
}
