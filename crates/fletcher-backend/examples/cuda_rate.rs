//! How many sequences of 64 tokens a second the NVIDIA backend encodes, ids on the host to pooled
//! vectors on the host, with random weights: the rates behind the speed claims.
//!
//! `cuda_rate [f16|bf16|f32] [tiny|minilm|base|large|nomic|modernbert]... [--groups N] [--tile N]
//! [--cls] [--rowwise 0|1] [--self-attention 0|1] [--flash-longer-than TOKENS] [--tokens N]
//! [--seconds S] [--profile ROWS] [--linear TOKENS]`
//!
//! `--cls` pools by the first token instead of the mean, for which the last layer has less to do.
//! `--profile` encodes two batches of so many rows and stops: for a profiler. `--linear` times the
//! layer's linear layers alone, over so many tokens.

#![expect(clippy::print_stdout, reason = "a program")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fletcher_backend::cuda::{Arena, Cuda, CudaOptions};
use fletcher_core::backend::{
    Backend, EmbeddingSource, Epilogue, LinearOp, LinearSource, PoolOp, Pooling, Precision, Slot,
};
use fletcher_core::encoder::{EncoderWeights, LayerWeights};
use fletcher_core::pack::PackedBatch;
use fletcher_core::reference::Reference;
use fletcher_core::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
};
use fletcher_core::weights::{StoredDtype, Tensor};

/// Most tokens of a batch.
const BATCH_TOKENS_MAX: usize = 1 << 20;

const MEAN: PoolOp = PoolOp { mode: Pooling::Mean, skip: 0 };
const CLS: PoolOp = PoolOp { mode: Pooling::Cls, skip: 0 };

fn spec(name: &str) -> EncoderSpec {
    let (hidden, layers, heads, intermediate) = match name {
        "tiny" => (128, 2, 2, 512),
        "minilm" => (384, 6, 12, 1536),
        "base" => (768, 12, 12, 3072),
        "large" => (1024, 24, 16, 4096),
        "nomic" => (768, 12, 12, 3072),
        "modernbert" => (768, 22, 12, 1152),
        other => panic!("no shape is called {other}"),
    };
    let layer = LayerSpec { window: None, rotary_theta: 0.0, attention_norm: true };
    let bert = EncoderSpec {
        vocabulary: 30522,
        hidden,
        heads,
        head_dim: hidden / heads,
        intermediate,
        layers: vec![layer.clone(); layers],
        max_tokens: 512,
        position: Position::Learned { offset: 0 },
        token_types: true,
        norm: NormSpec { eps: 1e-12, placement: NormPlacement::Post },
        feed_forward: FeedForward { gated: false, activation: Activation::GeluErf },
        biases: Biases { attention: true, feed_forward: true, norm: true },
    };
    let gated = |activation| FeedForward { gated: true, activation };
    match name {
        "nomic" => EncoderSpec {
            layers: vec![LayerSpec { rotary_theta: 1000.0, ..layer }; layers],
            position: Position::Rotary,
            feed_forward: gated(Activation::Silu),
            biases: Biases { attention: false, feed_forward: false, norm: true },
            ..bert
        },
        "modernbert" => EncoderSpec {
            layers: (0..layers)
                .map(|index| LayerSpec {
                    window: (index % 3 > 0).then_some(64),
                    rotary_theta: if index % 3 > 0 { 1e4 } else { 1.6e5 },
                    attention_norm: index > 0,
                })
                .collect(),
            position: Position::Rotary,
            token_types: false,
            norm: NormSpec { eps: 1e-5, placement: NormPlacement::Pre },
            feed_forward: gated(Activation::GeluErf),
            biases: Biases { attention: false, feed_forward: false, norm: false },
            ..bert
        },
        _ => bert,
    }
}

/// Uniform numbers in -1..1 times `scale`.
fn random(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..count).map(|_| next()).collect()
}

fn weights<B: Backend>(b: &B, spec: &EncoderSpec) -> EncoderWeights<B> {
    let d = spec.hidden;
    let table = |rows: usize, seed| {
        let values = random(rows * d, seed, 0.05);
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Tensor {
            file: "random".into(),
            name: "random".into(),
            dtype: StoredDtype::F32,
            shape: vec![rows, d],
            bytes: bytes.into(),
        }
    };
    let norm = |seed| {
        let scale: Vec<f32> = random(d, seed, 0.2).iter().map(|v| 1.0 + v).collect();
        let bias = spec.biases.norm.then(|| random(d, seed + 1, 0.1));
        b.upload_norm(&scale, bias.as_deref(), spec.norm.eps).unwrap()
    };
    let linear = |rows: usize, cols: usize, seed, (biased, gated): (bool, bool)| {
        let weight = random(rows * cols, seed, 1.5 / (cols as f32).sqrt());
        let bias = biased.then(|| random(rows, seed + 1, 0.1));
        let source = LinearSource { rows, cols, weight: &weight, bias: bias.as_deref(), gated };
        b.upload_linear(source).unwrap()
    };
    let (attention, inner) = (spec.biases.attention, spec.biases.feed_forward);
    let gated = spec.feed_forward.gated;
    let up_rows = spec.intermediate * (1 + usize::from(gated));
    let rotary = |theta| b.upload_rotary(theta, spec.head_dim, spec.max_tokens).unwrap();
    let learned = spec.position != Position::Rotary;
    let layer = |(index, layer): (usize, &LayerSpec)| {
        let seed = 100 * index as u64 + 1000;
        LayerWeights {
            qkv: linear(3 * d, d, seed, (attention, false)),
            attention_out: linear(d, d, seed + 10, (attention, false)),
            attention_norm: layer.attention_norm.then(|| norm(seed + 20)),
            up: linear(up_rows, d, seed + 30, (inner, gated)),
            down: linear(d, spec.intermediate, seed + 40, (inner, false)),
            feed_forward_norm: norm(seed + 50),
            rotary: (!learned).then(|| Arc::new(rotary(layer.rotary_theta))),
            window: layer.window,
        }
    };
    let embedding = b
        .upload_embedding(EmbeddingSource {
            word: table(spec.vocabulary, 1),
            position: learned.then(|| table(spec.max_tokens, 2)),
            token_type: spec.token_types.then(|| table(2, 3)),
            position_offset: 0,
        })
        .unwrap();
    EncoderWeights {
        embedding,
        embedding_norm: norm(4),
        relative_bias: None,
        layers: spec.layers.iter().enumerate().map(layer).collect(),
        final_norm: (spec.norm.placement == NormPlacement::Pre).then(|| norm(6)),
        spec: spec.clone(),
    }
}

fn sequences(rows: usize, tokens: usize, seed: u64) -> Vec<Vec<u32>> {
    let ids = random(rows * tokens, seed, 14_000.0);
    ids.chunks(tokens).map(|row| row.iter().map(|v| (v + 15_000.0) as u32).collect()).collect()
}

fn pack(rows: &[Vec<u32>]) -> PackedBatch {
    PackedBatch::new(rows.iter().map(|row| &row[..]))
}

fn encode<B: Backend>(
    b: &B,
    arena: &mut B::Arena,
    model: &EncoderWeights<B>,
    (rows, pool): (&[Vec<u32>], PoolOp),
    vectors: &mut [f32],
) {
    b.encode_pooled(arena, model, pool, &pack(rows), vectors).unwrap();
}

/// Batches of `rows` by `workers` threads for `time`: sequences a second.
fn rate(
    cuda: &Cuda,
    model: &EncoderWeights<Cuda>,
    (rows, tokens, pool): (usize, usize, PoolOp),
    workers: usize,
    time: Duration,
) -> f64 {
    let d = model.spec.hidden;
    let data = sequences(rows, tokens, 7);
    let mut arenas: Vec<Arena> =
        (0..workers).map(|_| cuda.plan(&model.spec, rows * tokens).unwrap()).collect();
    let mut vectors = vec![vec![0.0; rows * d]; workers];
    for (arena, vectors) in arenas.iter_mut().zip(&mut vectors) {
        encode(cuda, arena, model, (&data, pool), vectors);
    }
    let done = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (arena, vectors) in arenas.iter_mut().zip(&mut vectors) {
            scope.spawn(|| {
                while start.elapsed() < time {
                    encode(cuda, arena, model, (&data, pool), vectors);
                    done.fetch_add(rows, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

fn worst_cosine(a: &[f32], b: &[f32], d: usize) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let rows = a.chunks_exact(d).zip(b.chunks_exact(d));
    rows.map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt())
        .fold(1.0, |worst, c| if c.is_nan() { -1.0 } else { f64::min(worst, c) })
}

/// The rate of each linear layer over a batch of so many tokens, one launch behind the other.
fn say_linear(cuda: &Cuda, model: &EncoderWeights<Cuda>, tokens: usize, time: Duration) {
    let (spec, layer) = (&model.spec, &model.layers[0]);
    let data = sequences(tokens / 64, 64, 7);
    let batch = pack(&data);
    let mut arena = cuda.plan(spec, batch.tokens()).unwrap();
    let mut vectors = vec![0.0; batch.rows() * spec.hidden];
    encode(cuda, &mut arena, model, (&data, MEAN), &mut vectors);
    let (d, inner) = (spec.hidden, spec.intermediate);
    let FeedForward { gated, activation } = spec.feed_forward;
    let (up, up_rows) = match gated {
        true => (Epilogue::Gate(activation), 2 * inner),
        false => (Epilogue::Activate(activation), inner),
    };
    let store = Epilogue::Store;
    for (what, weight, (cols, rows), input, output, epilogue) in [
        ("store", &layer.qkv, (d, 3 * d), Slot::Hidden, Slot::Qkv, store),
        ("store", &layer.attention_out, (d, d), Slot::Context, Slot::Normed, store),
        ("activate", &layer.up, (d, up_rows), Slot::Hidden, Slot::Inner, up),
        ("store", &layer.down, (inner, d), Slot::Inner, Slot::Normed, store),
    ] {
        let start = Instant::now();
        let mut launches = 0;
        while start.elapsed() < time {
            for _ in 0..20 {
                let op = LinearOp { weight, input, output, epilogue };
                cuda.linear(&mut arena, op).unwrap();
            }
            cuda.pool(&mut arena, MEAN, &batch, &mut vectors).unwrap(); // waits
            launches += 20;
        }
        let each = start.elapsed().as_secs_f64() / f64::from(launches);
        let tflops = 2.0 * (batch.tokens() * cols * rows) as f64 / each / 1e12;
        println!("linear {cols} to {rows}, {what}: {:.1} us, {tflops:.0} TFLOP/s", each * 1e6);
    }
}

fn main() {
    let mut options = CudaOptions::default();
    let mut names = Vec::new();
    let (mut profile, mut linear, mut tokens) = (0, 0, 64);
    let mut pool = MEAN;
    let mut time = Duration::from_millis(700);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse::<f64>().ok()).expect("a number");
        match &arg[..] {
            "--groups" => options.groups = number() as usize,
            "--tile" => options.tile = Some(number() as usize),
            "--cls" => pool = CLS,
            "--rowwise" => options.rowwise = Some(number() != 0.0),
            "--flash-longer-than" => options.flash_longer_than = Some(number() as usize),
            "--self-attention" => options.self_attention = Some(number() != 0.0),
            "--tokens" => tokens = number() as usize,
            "--profile" => profile = number() as usize,
            "--linear" => linear = number() as usize,
            "--seconds" => time = Duration::from_secs_f64(number()),
            name => match Precision::ALL.into_iter().find(|p| p.name() == name) {
                Some(precision) => options.precision = precision,
                None => names.push(arg),
            },
        }
    }
    for name in names {
        let spec = EncoderSpec { max_tokens: tokens.max(512), ..spec(&name) };
        let cuda = Cuda::open(options).unwrap();
        let model = weights(&cuda, &spec);
        if profile > 0 {
            let data = sequences(profile, tokens, 5);
            let mut arena = cuda.plan(&spec, profile * tokens).unwrap();
            let mut vectors = vec![0.0; profile * spec.hidden];
            for _ in 0..2 {
                encode(&cuda, &mut arena, &model, (&data, pool), &mut vectors);
            }
            continue;
        }
        if linear > 0 {
            say_linear(&cuda, &model, linear, time);
            continue;
        }
        // Vectors first: a rate of wrong vectors is worth nothing. The reference takes its time.
        let small = spec.hidden < 768;
        let rows = if name == "tiny" { 64 } else { 4 };
        let data = sequences(rows, if small { tokens } else { tokens.min(16) }, 5);
        let mut found = vec![0.0; data.len() * spec.hidden];
        let mut expected = found.clone();
        let mut arena = cuda.plan(&spec, data.len() * tokens).unwrap();
        encode(&cuda, &mut arena, &model, (&data, pool), &mut found);
        let oracle = weights(&Reference, &spec);
        let count = if small { 4 } else { 1 };
        let mut plan = Reference.plan(&spec, 0).unwrap();
        encode(
            &Reference,
            &mut plan,
            &oracle,
            (&data[..count], pool),
            &mut expected[..count * spec.hidden],
        );
        let cosine = worst_cosine(
            &found[..count * spec.hidden],
            &expected[..count * spec.hidden],
            spec.hidden,
        );
        let tflops = |rate: f64| rate * spec.flops(tokens) / 1e12;
        let say = |what: &str, rate: f64| {
            println!(
                "{name} {} groups {} tile {:?}: {what}: {:.0} /s, {:.1} TFLOP/s",
                options.precision.name(),
                options.groups,
                options.tile,
                rate,
                tflops(rate)
            );
        };
        println!("{name} {}: {}: cosine to f64 {cosine:.7}", options.precision.name(), cuda.card());
        // Of long sequences a batch has fewer.
        let most = (BATCH_TOKENS_MAX / tokens).max(1);
        let small = most.min(32);
        say(
            &format!("{small}, one at a time"),
            rate(&cuda, &model, (small, tokens, pool), 1, time),
        );
        for workers in [4, 8, 14] {
            say(
                &format!("{small}, {workers} in flight"),
                rate(&cuda, &model, (small, tokens, pool), workers, time),
            );
        }
        let large: &[usize] = match &name[..] {
            "tiny" => &[264, 792, 1056, 4224, 8192],
            _ => &[264, 528, 1056],
        };
        for &rows in large.iter().filter(|&&rows| rows <= most) {
            for workers in [1, 2, 4, 8] {
                say(
                    &format!("{rows}, {workers} in flight"),
                    rate(&cuda, &model, (rows, tokens, pool), workers, time),
                );
            }
        }
    }
}
