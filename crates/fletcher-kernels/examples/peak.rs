//! Prints how fast the kernels are: Gop/s by shape and instruction set, one thread.
//!
//! `cargo run --release -p fletcher-kernels --example peak`

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::time::Instant;

use fletcher_kernels::{
    Activation, AlignedBuffer, Attention, AttentionBias, AttentionShape, Epilogue, Gemm, Isa,
    Kernels, LinearShape, row_stride,
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

/// The shortest of many runs, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::MAX);
    while start.elapsed().as_secs_f64() < 0.2 {
        let begin = Instant::now();
        run();
        best = best.min(begin.elapsed().as_secs_f64());
    }
    best
}

fn numbers(buffer: &mut [f32]) {
    for (i, value) in buffer.iter_mut().enumerate() {
        *value = (i * 7919 % 97) as f32 / 97.0 - 0.5;
    }
}

fn product(kernels: &Kernels, (rows, inputs, outputs): (usize, usize, usize)) {
    let shape = LinearShape { rows: outputs, cols: inputs, gated: false };
    let mut weight = vec![0.0; outputs * inputs];
    numbers(&mut weight);
    let linear = kernels.pack(shape, &weight, None);
    let (x_stride, y_stride) = (row_stride(inputs), row_stride(outputs));
    let mut x = AlignedBuffer::new(rows * x_stride);
    numbers(&mut x);
    let mut y = AlignedBuffer::new(rows * y_stride);
    let mut gops = |epilogue| {
        let seconds = best(|| {
            let (x, y) = (&x[..], &mut y[..]);
            kernels.gemm(Gemm { linear: &linear, rows, x, x_stride, y, y_stride, epilogue });
        });
        2.0 * (rows * inputs * outputs) as f64 / seconds / 1e9
    };
    let plain = gops(Epilogue::Activate(Activation::Identity));
    let gelu = gops(Epilogue::Activate(Activation::GeluErf));
    let add = gops(Epilogue::Accumulate);
    let name = format!("{rows} x {inputs} x {outputs}");
    println!("{name:>18}  store {plain:5.1}  erf-GELU {gelu:5.1}  accumulate {add:5.1}  Gop/s");
}

fn attention(kernels: &Kernels, (tokens, heads, head_dim): (usize, usize, usize)) {
    let shape = AttentionShape { heads, kv_heads: heads, head_dim };
    let (qkv_stride, context_stride) =
        (row_stride(shape.qkv_columns()), row_stride(shape.context_columns()));
    let mut qkv = AlignedBuffer::new(tokens * qkv_stride);
    numbers(&mut qkv);
    let mut context = AlignedBuffer::new(tokens * context_stride);
    let mut scratch = AlignedBuffer::new(kernels.attention_scratch(shape, tokens));
    let seconds = best(|| {
        kernels.attention(Attention {
            shape,
            tokens,
            scale: 0.125,
            window: None,
            causal: false,
            bias: AttentionBias::None,
            qkv: &qkv,
            qkv_stride,
            context: &mut context,
            context_stride,
            scratch: &mut scratch,
        });
    });
    let gops = 4.0 * (tokens * tokens * heads * head_dim) as f64 / seconds / 1e9;
    let name = format!("{tokens} x {heads} x {head_dim}");
    println!("{name:>18}  attention {gops:5.1}  Gop/s");
}

fn elements(kernels: &Kernels) {
    let mut values = vec![0.5; 4096];
    for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu] {
        let seconds = best(|| kernels.map(activation, &mut values));
        let rate = values.len() as f64 / seconds / 1e9;
        println!("{:>18}  {rate:5.2}  elements/ns", format!("{activation:?}"));
    }
}

fn main() {
    for isa in Isa::available().into_iter().rev() {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        println!("{}", isa.name());
        PRODUCTS.iter().for_each(|&shape| product(&kernels, shape));
        ATTENTIONS.iter().for_each(|&shape| attention(&kernels, shape));
        elements(&kernels);
    }
}
