//! Which tilings are fast on this machine's GPU: not a test, but what the numbers in `Tiling` were
//! chosen by. `cargo test --release -p fletcher-backend --lib tune -- --ignored --nocapture`.

use std::io::Write;

use fletcher_core::backend::{Backend, Epilogue, LinearOp, LinearSource, Precision, Slot};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::Activation;

use super::shader::{Stage, Tiling};
use super::{Api, Wgpu, WgpuOptions, verify};

#[test]
#[ignore = "measures"]
fn tune() {
    let options = WgpuOptions { profiled: true, ..Default::default() };
    let wgpu = Wgpu::open_with(Api::Vulkan, 0, Precision::F16, options).unwrap();
    let tile = wgpu.tile.unwrap();
    let tokens: usize =
        std::env::var("TUNE_TOKENS").ok().and_then(|v| v.parse().ok()).unwrap_or(24576);
    let mut tilings = vec![];
    let staged = [
        (4, 2, (2, 2), 32, 1, 2),
        (4, 2, (2, 2), 32, 2, 2),
        (4, 2, (2, 2), 64, 1, 2),
        (4, 4, (2, 2), 32, 1, 2),
        (4, 4, (2, 2), 32, 2, 1),
        (4, 4, (2, 2), 64, 1, 2),
        (4, 2, (2, 4), 32, 1, 2),
        (4, 2, (2, 4), 64, 1, 1),
        (4, 2, (2, 4), 32, 1, 1),
        (2, 4, (4, 2), 32, 1, 2),
        (2, 4, (4, 2), 64, 1, 1),
        (2, 4, (4, 2), 32, 1, 1),
        (2, 4, (2, 2), 32, 1, 2),
        (2, 4, (2, 2), 32, 2, 2),
        (2, 4, (2, 2), 64, 1, 2),
        (2, 2, (2, 4), 32, 1, 2),
        (2, 2, (2, 4), 64, 1, 2),
        (2, 2, (2, 4), 32, 2, 1),
        (2, 2, (4, 2), 32, 1, 2),
        (2, 2, (4, 2), 64, 1, 2),
        (2, 2, (4, 4), 32, 1, 1),
        (4, 4, (4, 2), 32, 1, 1),
        (2, 2, (2, 2), 32, 1, 2),
        (2, 2, (2, 2), 64, 1, 2),
        (1, 4, (4, 2), 64, 1, 2),
        (1, 8, (4, 1), 64, 1, 2),
        (2, 8, (4, 1), 32, 1, 2),
    ];
    for (down, across, subgroups, step, buffers, strip) in staged {
        let stage = Some(Stage { step, buffers, strip });
        tilings.push(Tiling { tile, down, across, subgroups, stage });
    }
    for (down, across, subgroups) in [(4, 4, (2, 2)), (2, 4, (4, 2))] {
        tilings.push(Tiling { tile, down, across, subgroups, stage: None });
    }
    let most = wgpu.gpu.device.limits().max_compute_workgroup_storage_size;
    for (hidden, intermediate, measured) in [(128, 512, false), (128, 512, true), (384, 1536, true)]
    {
        let spec = verify::spec(hidden, hidden / 32, 32, intermediate);
        let ids: Vec<u32> = (0..tokens).map(|i| (i % 61) as u32).collect();
        let batch = PackedBatch::new(ids.chunks(64));
        let mut arena = wgpu.plan(&spec, tokens).unwrap();
        let linear = |rows: usize, cols: usize| {
            let weight: Vec<f32> =
                (0..rows * cols).map(|i| ((i * 7919) % 97) as f32 / 970.0).collect();
            let source = LinearSource { rows, cols, weight: &weight, bias: None, gated: false };
            wgpu.upload_linear(source).unwrap()
        };
        let shapes = [
            (linear(3 * hidden, hidden), Slot::Hidden, Slot::Qkv, Epilogue::Store),
            (linear(hidden, hidden), Slot::Context, Slot::Hidden, Epilogue::Accumulate),
            (
                linear(intermediate, hidden),
                Slot::Hidden,
                Slot::Inner,
                Epilogue::Activate(Activation::GeluErf),
            ),
            (linear(hidden, intermediate), Slot::Inner, Slot::Hidden, Epilogue::Accumulate),
        ];
        for &tiling in &tilings {
            if tiling.workgroup_bytes(wgpu.gpu.target.element) > most {
                continue;
            }
            let mut text = String::new();
            for (weight, input, output, epilogue) in &shapes {
                for _ in 0..if measured { 4 } else { 1 } {
                    arena.begin(&batch, 0);
                    wgpu.take_profile();
                    for _ in 0..8 {
                        let (input, output, epilogue) = (*input, *output, *epilogue);
                        let op = LinearOp { weight, input, output, epilogue };
                        wgpu.linear_as(&mut arena, op, Some(tiling)).unwrap();
                    }
                    let mut hidden = vec![0.0; 64 * hidden];
                    arena
                        .finish(super::arena::Place::Slot(Slot::Hidden), 256, |b| {
                            hidden[0] = f32::from(b[0])
                        })
                        .unwrap();
                }
                let time = wgpu.take_profile().remove(0);
                let us = time.seconds / time.calls as f64 * 1e6;
                let tera = time.operations / time.seconds * 1e-12;
                text += &format!("{us:8.1} us {tera:6.1} TF |");
            }
            let Tiling { down, across, subgroups, stage, .. } = tiling;
            let stage = stage
                .map_or("direct".to_owned(), |s| format!("{}x{} {}", s.step, s.buffers, s.strip));
            let line = format!("{hidden:4} {down}x{across} {subgroups:?} {stage:7} |{text}");
            if !measured {
                continue;
            }
            writeln!(std::io::stderr(), "{line}").unwrap();
        }
    }
}
