//! The cooperative kernels against the definition, on this device, before their first use.
//!
//! Cooperative matrices are experimental in wgpu and differ from driver to driver; a shape that a
//! driver does not support has been seen to run and compute wrong numbers. So a kernel that uses
//! them first computes something small that [`Reference`] computes too. One that is wrong is not
//! used: the plain kernels of the same device take its place, and `fletcher info` says so.

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, EmbeddingSource, Epilogue, LinearOp, LinearSource, Slot,
};
use fletcher_core::pack::PackedBatch;
use fletcher_core::reference::Reference;
use fletcher_core::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
};
use fletcher_core::weights::{StoredDtype, Tensor};

use super::Wgpu;
use super::arena::Arena;
use super::device::Gpu;
use super::pipelines::compile_text;
use super::shader::{CooperativeAttention, Element, Tiling};

/// Sequences that fill no tile, one tile, and several blocks of keys.
const LENGTHS: [usize; 4] = [1, 31, 70, 150];
const VOCABULARY: usize = 61;

/// The lanes of a subgroup, as a kernel sees them: adapters report a range, some a made-up one.
pub(super) fn lanes(gpu: &Gpu) -> Result<u32, BackendError> {
    const TEXT: &str = "
        @group(0) @binding(1) var<storage, read_write> y: array<u32>;
        @compute @workgroup_size(128)
        fn main(@builtin(subgroup_size) lanes: u32, @builtin(local_invocation_index) local: u32) {
            if (local == 0u) { y[0] = lanes; }
        }";
    let pipeline = gpu.guard("a kernel", 0, || compile_text(gpu, TEXT, "lanes"))?;
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let y = gpu.buffer("a subgroup's size", 16, usage)?;
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let returned = gpu.buffer("a subgroup's size", 16, usage)?;
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &gpu.rows(&gpu.nothing, &y, &gpu.nothing), &[]);
        pass.set_bind_group(1, &gpu.parameters(&[]), &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&y, 0, &returned, 0, 16);
    gpu.queue.submit([encoder.finish()]);
    returned.slice(..).map_async(wgpu::MapMode::Read, |_| {});
    let waited = gpu.device.poll(wgpu::PollType::wait_indefinitely());
    gpu.check()?;
    waited.map_err(|e| gpu.failure(e.to_string()))?;
    let view = returned.get_mapped_range(..).map_err(|e| gpu.failure(e.to_string()))?;
    Ok(u32::from_ne_bytes([view[0], view[1], view[2], view[3]]))
}

/// Whether both tilings of the cooperative GEMM compute what the definition says.
pub(super) fn gemm(wgpu: &Wgpu, tile: u32, staged: bool) -> Result<bool, BackendError> {
    // Neither width is a multiple of a tile.
    let spec = spec(72, 1, 72, 180);
    let expected = products(&Reference, &spec, |arena, op| Reference.linear(arena, op))?;
    for large in [false, true] {
        let linear = |arena: &mut Arena, op: LinearOp<'_, Wgpu>| {
            let tiling = match large {
                true => Tiling::large(wgpu.gpu.target, tile, staged, op.weight.depth),
                false => Tiling::small(tile, staged),
            };
            wgpu.linear_as(arena, op, Some(tiling))
        };
        if !agree(wgpu, &expected, &products(wgpu, &spec, linear)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the cooperative attention computes what the definition says for heads of this size.
pub(super) fn attention(
    wgpu: &Wgpu,
    form: CooperativeAttention,
    relative: bool,
) -> Result<bool, BackendError> {
    let spec = spec(64, 2, form.head_dim, 64);
    for window in [None, Some(9)] {
        let expected = attended(&Reference, &spec, (window, relative), |arena, op, batch| {
            Reference.attention(arena, op, batch)
        })?;
        let found = attended(wgpu, &spec, (window, relative), |arena, op, _| {
            wgpu.attention_as(arena, op, Some(form))
        })?;
        if !agree(wgpu, &expected, &found) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A wrong tile is off by about 1; the bounds are what the formats' roundings can add up to.
fn agree(wgpu: &Wgpu, expected: &[f32], found: &[f32]) -> bool {
    let tolerance = match wgpu.gpu.target.element {
        Element::F32 => 2e-5,
        Element::F16 => 2e-2,
    };
    // NaN must not pass.
    expected.iter().zip(found).all(|(a, b)| (a - b).abs() <= tolerance)
}

/// Up and down a random feed-forward network, on top of the residual.
fn products<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
    linear: impl Fn(&mut B::Arena, LinearOp<'_, B>) -> Result<(), BackendError>,
) -> Result<Vec<f32>, BackendError> {
    let mut random = Random(7);
    let (mut arena, batch) = embedded(b, spec, &mut random)?;
    let up = random.linear(b, spec.intermediate, spec.hidden)?;
    let down = random.linear(b, spec.hidden, spec.intermediate)?;
    let (hidden, inner) = (Slot::Hidden, Slot::Inner);
    let epilogue = Epilogue::Activate(Activation::GeluErf);
    linear(&mut arena, LinearOp { weight: &up, input: hidden, output: inner, epilogue })?;
    let epilogue = Epilogue::Accumulate;
    linear(&mut arena, LinearOp { weight: &down, input: inner, output: hidden, epilogue })?;
    download(b, &mut arena, spec, &batch)
}

/// Projection, attention and projection back, on top of the residual.
fn attended<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
    (window, relative): (Option<usize>, bool),
    attention: impl Fn(&mut B::Arena, AttentionOp<'_, B>, &PackedBatch) -> Result<(), BackendError>,
) -> Result<Vec<f32>, BackendError> {
    let mut random = Random(11);
    let (mut arena, batch) = embedded(b, spec, &mut random)?;
    let positions = LENGTHS[LENGTHS.len() - 1];
    let qkv = random.linear(b, spec.qkv_width(), spec.hidden)?;
    let out = random.linear(b, spec.hidden, spec.context_width())?;
    let bias: Vec<Vec<f32>> = (0..spec.heads).map(|_| random.values(2 * positions - 1)).collect();
    let bias = b.upload_relative_bias(&bias, positions)?;
    let relative = relative.then_some(&bias);
    let (input, output, epilogue) = (Slot::Hidden, Slot::Qkv, Epilogue::Store);
    b.linear(&mut arena, LinearOp { weight: &qkv, input, output, epilogue })?;
    attention(&mut arena, AttentionOp { relative, window }, &batch)?;
    let (input, output, epilogue) = (Slot::Context, Slot::Hidden, Epilogue::Accumulate);
    b.linear(&mut arena, LinearOp { weight: &out, input, output, epilogue })?;
    download(b, &mut arena, spec, &batch)
}

fn embedded<B: Backend>(
    b: &B,
    spec: &EncoderSpec,
    random: &mut Random,
) -> Result<(B::Arena, PackedBatch), BackendError> {
    let ids: Vec<u32> =
        (0..LENGTHS.iter().sum::<usize>()).map(|i| (i * 7919 % VOCABULARY) as u32).collect();
    let mut rest = &ids[..];
    let batch = PackedBatch::new(LENGTHS.iter().map(|&length| {
        let (sequence, tail) = rest.split_at(length);
        rest = tail;
        sequence
    }));
    let embedding = b.upload_embedding(EmbeddingSource {
        word: random.tensor(VOCABULARY, spec.hidden),
        position: None,
        token_type: None,
        position_offset: 0,
    })?;
    let mut arena = b.plan(spec, batch.tokens())?;
    b.embed(&mut arena, &embedding, &batch)?;
    Ok((arena, batch))
}

fn download<B: Backend>(
    b: &B,
    arena: &mut B::Arena,
    spec: &EncoderSpec,
    batch: &PackedBatch,
) -> Result<Vec<f32>, BackendError> {
    let mut hidden = vec![f32::NAN; batch.tokens() * spec.hidden];
    b.download_hidden(arena, batch, &mut hidden)?;
    Ok(hidden)
}

pub(super) fn spec(
    hidden: usize,
    heads: usize,
    head_dim: usize,
    intermediate: usize,
) -> EncoderSpec {
    EncoderSpec {
        vocabulary: VOCABULARY,
        hidden,
        heads,
        head_dim,
        intermediate,
        layers: vec![LayerSpec { window: None, rotary_theta: 1.0, attention_norm: true }],
        max_tokens: LENGTHS[LENGTHS.len() - 1],
        position: Position::Rotary,
        token_types: false,
        norm: NormSpec { eps: 1e-5, placement: NormPlacement::Post },
        feed_forward: FeedForward { gated: false, activation: Activation::GeluErf },
        biases: Biases { attention: true, feed_forward: true, norm: true },
    }
}

/// A linear congruential generator (Knuth's MMIX constants), rounded so that f16 holds the values
/// exactly.
struct Random(u64);

impl Random {
    /// Uniform in -1..1, in steps of 1/512.
    fn values(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 54) as f32 / 512.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn tensor(&mut self, rows: usize, columns: usize) -> Tensor {
        let values = self.values(rows * columns);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor {
            file: "verify".into(),
            name: "random".into(),
            dtype: StoredDtype::F32,
            shape: vec![rows, columns],
            bytes: bytes.into(),
        }
    }

    fn linear<B: Backend>(
        &mut self,
        b: &B,
        rows: usize,
        cols: usize,
    ) -> Result<B::Linear, BackendError> {
        // A power of two near 1 / sqrt(cols) keeps sums of order 1 and the values exact.
        let scale = 0.5f32.powi((cols as f32).log2() as i32 / 2);
        let weight: Vec<f32> = self.values(rows * cols).iter().map(|v| v * scale).collect();
        let bias = self.values(rows);
        let source = LinearSource { rows, cols, weight: &weight, bias: Some(&bias), gated: false };
        b.upload_linear(source)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use fletcher_core::backend::Precision;

    use super::super::{Api, Wgpu, shader};
    use super::*;

    /// Where the device lists cooperative matrices, ours must pass: else the other tests would
    /// quietly test the plain kernels.
    #[test]
    fn cooperative_kernels_are_right_here() {
        let api = if cfg!(target_os = "macos") { Api::Metal } else { Api::Vulkan };
        for precision in [Precision::F32, Precision::F16] {
            let opened = Wgpu::open(api, 0, precision);
            let Some(wgpu) = opened.ok().filter(|wgpu| wgpu.gpu.tile.is_some()) else {
                let message = "NOT RUN: no device that lists cooperative matrices for";
                say(&format!("{message} {precision:?}"));
                continue;
            };
            let tile = wgpu.tile.expect("the cooperative GEMM computes what the definition says");
            let vectors = api == Api::Vulkan;
            for staged in [false, vectors] {
                assert!(gemm(&wgpu, tile, staged).unwrap(), "staged: {staged}");
            }
            for dim in [16, 48, 64] {
                if shader::attention_fits(wgpu.gpu.target, tile, dim) {
                    for relative in [false, true] {
                        for form in [false, vectors].map(|vectors| CooperativeAttention {
                            tile,
                            head_dim: dim,
                            vectors,
                        }) {
                            let right = attention(&wgpu, form, relative).unwrap();
                            assert!(right, "{form:?}, relative: {relative}");
                        }
                    }
                }
            }
        }
    }

    /// What is compared must tell right from wrong.
    #[test]
    fn a_wrong_number_is_seen() {
        let Ok(wgpu) = Wgpu::open(Api::Vulkan, 0, Precision::F16) else {
            return;
        };
        let spec = spec(72, 1, 72, 180);
        let right = products(&Reference, &spec, |arena, op| Reference.linear(arena, op)).unwrap();
        assert!(agree(&wgpu, &right, &right));
        let mut wrong = right.clone();
        wrong[77] += 0.1;
        assert!(!agree(&wgpu, &right, &wrong));
        wrong[77] = f32::NAN;
        assert!(!agree(&wgpu, &right, &wrong));
    }

    fn say(message: &str) {
        writeln!(std::io::stderr(), "wgpu: {message}").unwrap();
    }

    /// A device, or a line that says that there is none.
    fn device() -> Option<Wgpu> {
        match Wgpu::open(Api::Vulkan, 0, Precision::F32) {
            Ok(wgpu) => Some(wgpu),
            Err(error) => {
                say(&format!("NOT RUN: {error}"));
                None
            }
        }
    }

    #[test]
    fn a_kernel_that_does_not_compile_is_an_error() {
        let Some(wgpu) = device() else { return };
        let compile = || compile_text(&wgpu.gpu, "fn main() { nonsense }", "broken");
        let error = wgpu.gpu.guard("a kernel", 0, compile).unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
        // And the device goes on.
        assert!(lanes(&wgpu.gpu).unwrap() > 0);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some(wgpu) = device() else { return };
        let spec = spec(1 << 14, 1, 64, 64);
        let error = wgpu.plan(&spec, 60_000).unwrap_err();
        assert!(error.to_string().contains("activations"), "{error}");
        let error = wgpu.plan(&spec, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("1048576 tokens"), "{error}");
        // And the device goes on.
        assert!(lanes(&wgpu.gpu).unwrap() > 0);
    }

    #[test]
    fn memory_that_ran_out_is_told_with_what_it_was_for() {
        let Some(wgpu) = device() else { return };
        let error = wgpu::Error::OutOfMemory { source: "none left".into() };
        let error = wgpu.gpu.refusal("weights", 4096, &error).to_string();
        assert!(error.ends_with("out of memory: 4096 bytes needed for weights"), "{error}");
    }

    /// The same by taking all there is: for a GPU's own memory, never a software driver's.
    #[test]
    #[ignore = "takes all of the GPU's memory"]
    fn memory_that_really_ran_out_is_an_error() {
        let wgpu = device().expect("a device");
        assert!(!wgpu.gpu.software, "this would take the machine's memory");
        // No buffer of it is larger than a binding may be.
        let spec = spec(1024, 1, 1024, 1024);
        let mut arenas = Vec::new();
        let error = loop {
            match wgpu.plan(&spec, 60_000) {
                Ok(arena) => arenas.push(arena),
                Err(error) => break error,
            }
            assert!(arenas.len() < 1000, "a terabyte");
        };
        say(&format!("after {} arenas: {error}", arenas.len()));
        assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
        drop(arenas);
        let mut random = Random(3);
        let (mut arena, batch) = embedded(&wgpu, &spec, &mut random).unwrap();
        download(&wgpu, &mut arena, &spec, &batch).unwrap();
    }

    /// A block that was on its way, the next one, and what is uploaded after that.
    #[test]
    fn a_lost_device_is_an_error() {
        let Some(wgpu) = device() else { return };
        let spec = spec(32, 1, 32, 32);
        let mut random = Random(3);
        let (mut arena, batch) = embedded(&wgpu, &spec, &mut random).unwrap();
        download(&wgpu, &mut arena, &spec, &batch).unwrap();
        wgpu.gpu.device.destroy();
        let mut hidden = vec![0.0; batch.tokens() * spec.hidden];
        let mut errors = Vec::new();
        for _ in 0..2 {
            errors.push(wgpu.download_hidden(&mut arena, &batch, &mut hidden).unwrap_err());
        }
        errors.push(random.linear(&wgpu, 32, 32).unwrap_err());
        errors.push(wgpu.plan(&spec, 64).map(drop).unwrap_err());
        for error in errors {
            assert!(error.to_string().contains("lost"), "{error}");
        }
    }
}
