//! Which tilings are fast on this machine's GPU: not a test, but what the numbers in [`Tiling`] and
//! its stages were chosen by.
//!
//! `cargo test --release -p fletcher-backend --lib wgpu::tune -- --ignored --nocapture` prints a
//! line for each tiling: microseconds and TFLOP/s of the four products of a layer, by the GPU's
//! clock. All kernels are compiled first, because a GPU that waits for a compiler slows its clock.

use std::io::Write;

use fletcher_core::backend::{Backend, Epilogue, LinearOp, LinearSource, Precision, Slot};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::Activation;

use super::arena::{Arena, Place};
use super::shader::{Stage, Tiling};
use super::{Api, Linear, Wgpu, WgpuOptions, verify};

const TOKENS: usize = 24_576;
const LAUNCHES: usize = 8;
const ROUNDS: usize = 4;

/// The tilings, as `Tiling`'s and `Stage`'s fields.
#[rustfmt::skip]
const STAGED: [[u32; 7]; 16] = [
    // down, across, subgroups down and across, step, buffers, strip
    [4, 2, 2, 2, 32, 1, 2],
    [4, 2, 2, 2, 64, 1, 2],
    [4, 4, 2, 2, 32, 1, 2],
    [4, 4, 2, 2, 32, 2, 1],
    [4, 4, 2, 2, 64, 1, 2],
    [4, 2, 2, 4, 32, 1, 2],
    [4, 2, 2, 4, 64, 1, 1],
    [2, 4, 4, 2, 32, 1, 2],
    [2, 4, 4, 2, 32, 1, 1],
    [2, 4, 4, 2, 64, 1, 1],
    [2, 4, 2, 2, 64, 1, 2],
    [2, 2, 2, 4, 64, 1, 2],
    [2, 2, 4, 2, 64, 1, 2],
    [2, 2, 4, 4, 32, 1, 1],
    [4, 4, 4, 2, 32, 1, 1],
    [1, 4, 4, 2, 64, 1, 2],
];

struct Product {
    weight: Linear,
    input: Slot,
    output: Slot,
    epilogue: Epilogue,
}

#[test]
#[ignore = "measures"]
fn tilings() {
    let options = WgpuOptions { profiled: true, ..Default::default() };
    let wgpu = Wgpu::open_with(Api::Vulkan, 0, Precision::F16, options).unwrap();
    let tile = wgpu.tile.expect("cooperative matrices");
    let staged = STAGED.map(|[down, across, rows, columns, step, buffers, strip]| {
        let stage = Some(Stage { step, buffers, strip });
        Tiling { tile, down, across, subgroups: (rows, columns), stage }
    });
    let direct = Tiling { tile, down: 4, across: 4, subgroups: (2, 2), stage: None };
    let tilings: Vec<Tiling> = (staged.into_iter().chain([direct]))
        .filter(|tiling| tiling.fits(wgpu.gpu.target))
        .collect();
    for (hidden, inner, measured) in [(128, 512, false), (128, 512, true), (384, 1536, true)] {
        let spec = verify::spec(hidden, hidden / 32, 32, inner);
        let ids: Vec<u32> = (0..TOKENS).map(|i| (i % 61) as u32).collect();
        let batch = PackedBatch::new(ids.chunks(64));
        let mut arena = wgpu.plan(&spec, TOKENS).unwrap();
        let products = products(&wgpu, hidden, inner);
        for &tiling in &tilings {
            let mut text = format!("{hidden:4} {tiling:?}:");
            for product in &products {
                let rounds = if measured { ROUNDS } else { 1 };
                let (seconds, operations) =
                    time(&wgpu, &mut arena, &batch, (product, tiling), rounds);
                let (us, tera) = (seconds * 1e6, operations / seconds * 1e-12);
                text += &format!(" {us:.1} us {tera:.1} TFLOP/s,");
            }
            if measured {
                writeln!(std::io::stderr(), "{text}").unwrap();
            }
        }
    }
}

/// The products of a layer, with any weights.
fn products(wgpu: &Wgpu, hidden: usize, inner: usize) -> [Product; 4] {
    let product = |rows: usize, cols: usize, input, output, epilogue| {
        let weight: Vec<f32> = (0..rows * cols).map(|i| (i * 7919 % 97) as f32 / 970.0).collect();
        let source = LinearSource { rows, cols, weight: &weight, bias: None, gated: false };
        Product { weight: wgpu.upload_linear(source).unwrap(), input, output, epilogue }
    };
    let gelu = Epilogue::Activate(Activation::GeluErf);
    [
        product(3 * hidden, hidden, Slot::Hidden, Slot::Qkv, Epilogue::Store),
        product(hidden, hidden, Slot::Context, Slot::Hidden, Epilogue::Accumulate),
        product(inner, hidden, Slot::Hidden, Slot::Inner, gelu),
        product(hidden, inner, Slot::Inner, Slot::Hidden, Epilogue::Accumulate),
    ]
}

/// Seconds of one launch, and its operations.
fn time(
    wgpu: &Wgpu,
    arena: &mut Arena,
    batch: &PackedBatch,
    (product, tiling): (&Product, Tiling),
    rounds: usize,
) -> (f64, f64) {
    let mut times = Vec::new();
    for _ in 0..rounds {
        arena.begin(batch, 0);
        for _ in 0..LAUNCHES {
            let Product { weight, input, output, epilogue } = product;
            let (input, output, epilogue) = (*input, *output, *epilogue);
            let op = LinearOp { weight, input, output, epilogue };
            wgpu.linear_as(arena, op, Some(tiling)).unwrap();
        }
        arena.finish(Place::Slot(Slot::Hidden), 256, |_| ()).unwrap();
        // The last round's, when the clock has risen.
        times = wgpu.take_profile();
    }
    let calls = times[0].calls as f64;
    (times[0].seconds / calls, times[0].operations / calls)
}
