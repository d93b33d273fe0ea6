//! The NVIDIA backend against the reference and against `transformers`, in each number format.
//!
//! Without a card every test here says so and passes. `cargo xtask gpu-test` builds this file as
//! one binary that a machine with a card and no toolchain can run in a copy of the tree.

#![expect(clippy::print_stderr, reason = "a test says when it could not run, and how near it came")]

mod common;

use fletcher_backend::cuda::{Cuda, CudaOptions};
use fletcher_core::backend::Precision;
use fletcher_core::conformance;
use fletcher_core::embedder::{EmbedOptions, Embedder, EmbedderConfig};
use fletcher_core::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
};

/// Formats with what rounding to them may change: in states of order 1, and in a unit vector's
/// cosine.
const FORMATS: [(Precision, f64, f64); 3] = [
    (Precision::F32, 5e-5, 1.0 - 1e-9),
    (Precision::F16, 6e-2, 0.9999),
    (Precision::Bf16, 5e-1, 0.99),
];

fn open(options: CudaOptions) -> Option<Cuda> {
    match Cuda::describe() {
        Ok(_) => Some(Cuda::open(options).unwrap()),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

fn with(precision: Precision) -> Option<Cuda> {
    open(CudaOptions { precision, ..CudaOptions::default() })
}

/// Batches of sequences of these lengths against the reference; many in one batch against each by
/// itself, and time and again.
fn agrees(
    cuda: &Cuda,
    spec: &EncoderSpec,
    (what, tolerance): (&str, f64),
    batches: &[&[usize]],
    many: &[usize],
) {
    let say = |lengths: &str, worst: f64| {
        eprintln!("{what}, {lengths}: {worst:e}");
        assert!(worst <= tolerance, "{what}, {lengths}: differs by {worst:e}");
    };
    for lengths in batches {
        let worst = conformance::worst_of(cuda, spec, lengths).unwrap();
        say(&format!("{lengths:?}"), worst);
    }
    say("many", conformance::worst_of_parts(cuda, spec, many).unwrap());
    conformance::repeats(cuda, spec, many).unwrap();
}

#[test]
fn conformance() {
    for (precision, tolerance, _) in FORMATS {
        let Some(cuda) = with(precision) else { return };
        conformance::check(&cuda, tolerance).unwrap();
    }
}

/// The small encoder's kernel with each number of warpgroups, so that sequences of the suite's
/// batch cross from one to the next in every way; and each variant of Hopper's linear layer.
#[test]
fn conformance_of_every_variant() {
    let groups = [1, 2].map(|groups| CudaOptions { groups, ..CudaOptions::default() });
    let tiles = (0..6).map(|tile| CudaOptions { tile: Some(tile), ..CudaOptions::default() });
    for options in groups.into_iter().chain(tiles) {
        let Some(cuda) = open(options) else { return };
        conformance::check(&cuda, 6e-2).unwrap();
    }
}

/// Each variant of the linear layer in f32.
#[test]
fn conformance_of_every_variant_in_f32() {
    for tile in 0..2 {
        let (precision, tile) = (Precision::F32, Some(tile));
        let Some(cuda) = open(CudaOptions { precision, tile, ..CudaOptions::default() }) else {
            return;
        };
        conformance::check(&cuda, 5e-5).unwrap();
    }
}

/// Linear layers in f32 by every variant and with every epilogue: inputs that end within a step of
/// the kernel, outputs that end within a tile, rows that fill tiles of 128, leave one row for the
/// last, or are one.
#[test]
fn linear_layers_in_f32() {
    let with = |hidden, heads, inner, gated, activation| {
        let feed_forward = FeedForward { gated, activation };
        EncoderSpec { feed_forward, ..conformance::bert_like(hidden, heads, inner, 300) }
    };
    let specs = [
        with(384, 12, 1536, false, Activation::GeluErf),
        with(72, 2, 200, false, Activation::GeluErf),
        with(328, 4, 136, false, Activation::GeluTanh),
        with(72, 2, 40, false, Activation::Relu),
        with(256, 4, 520, true, Activation::GeluErf),
        with(104, 2, 260, true, Activation::Silu),
    ];
    for tile in [Some(0), Some(1), None] {
        for spec in &specs {
            for lengths in [&[64, 64][..], &[1], &[129], &[100, 3, 64, 17, 1]] {
                let precision = Precision::F32;
                let Some(cuda) = open(CudaOptions { precision, tile, ..CudaOptions::default() })
                else {
                    return;
                };
                let worst = conformance::worst_of(&cuda, spec, lengths).unwrap();
                let EncoderSpec { hidden, intermediate, feed_forward, .. } = spec;
                let what = format!("{hidden}, {intermediate}, {feed_forward:?}, {tile:?}");
                eprintln!("{what}, {lengths:?}: {worst:e}");
                assert!(worst <= 1e-5, "{what}, {lengths:?}: differs by {worst:e}");
            }
        }
    }
}

/// In f32 a text's vector is the same to the bit alone, in any batch, and by every variant of the
/// linear layer: more tiles of rows than there are multiprocessors for, and again and again.
#[test]
fn many_tokens_in_f32() {
    let precision = Precision::F32;
    for (hidden, heads, inner) in [(384, 12, 1536), (328, 4, 136)] {
        let spec = conformance::bert_like(hidden, heads, inner, 1000);
        let lengths: Vec<usize> = (0..80).map(|i| 1 + i * 97 % 1000).collect();
        for tile in [Some(0), Some(1), None] {
            let Some(cuda) = open(CudaOptions { precision, tile, ..CudaOptions::default() }) else {
                return;
            };
            let worst = conformance::worst_of_parts(&cuda, &spec, &lengths).unwrap();
            eprintln!("{hidden} wide, {tile:?}: {worst:e}");
            assert!(worst <= 0.0, "{hidden} wide, {tile:?}: differs by {worst:e}");
        }
        let Some(cuda) = with(precision) else { return };
        conformance::repeats(&cuda, &spec, &lengths).unwrap();
    }
}

/// Attention for heads that fill the tiles of its kernels, and such that do not, by whole copies of
/// 16 bytes and by single elements; with a window and without, over several tiles of keys that end
/// within one.
#[test]
fn attention_of_every_width() {
    let widths = [(2, 20), (2, 26), (2, 32), (1, 36), (2, 62), (1, 64), (1, 100), (1, 128)];
    for (precision, tolerance, _) in FORMATS {
        for (heads, dim) in widths {
            for window in [None, Some(30)] {
                let Some(cuda) = with(precision) else { return };
                let bert = conformance::bert_like(heads * dim, heads, 64, 200);
                let layer = LayerSpec { window, ..bert.layers[0].clone() };
                let spec = EncoderSpec { layers: vec![layer; 2], ..bert };
                let worst =
                    conformance::worst_of(&cuda, &spec, &[200, 1, 64, 97, 32, 130]).unwrap();
                let what = format!("{heads} heads of {dim} in {precision:?}, {window:?}");
                eprintln!("{what}: {worst:e}");
                assert!(worst <= tolerance, "{what}: differs by {worst:e}");
            }
        }
    }
}

/// The kernels that keep whole rows, by one block or by a pair, and the composition of operations
/// over the same shapes; batches whose last tile of rows is full, or has one row, and sequences
/// over several tiles. An inner state of 2,048 is too wide for the kernel of everything between two
/// attentions.
#[test]
fn rowwise_layers() {
    let shapes = [(384, 12, 1536), (384, 6, 512), (384, 12, 2048), (768, 12, 1024)];
    for (hidden, heads, inner) in shapes {
        let spec = conformance::bert_like(hidden, heads, inner, 300);
        for (precision, tolerance) in [(Precision::F16, 3e-2), (Precision::Bf16, 2.5e-1)] {
            for lengths in [&[64, 64][..], &[1], &[129], &[300, 3, 64, 17, 1]] {
                for rowwise in [true, false] {
                    let rowwise = Some(rowwise);
                    let options = CudaOptions { precision, rowwise, ..CudaOptions::default() };
                    let Some(cuda) = open(options) else { return };
                    let worst = conformance::worst_of(&cuda, &spec, lengths).unwrap();
                    let what = format!("{hidden} wide, {precision:?}, {lengths:?}, {rowwise:?}");
                    eprintln!("{what}: {worst:e}");
                    assert!(worst <= tolerance, "{what}: differs by {worst:e}");
                }
            }
        }
    }
}

/// Where pooling takes one token, the last layer goes on with it alone: the vectors are those of
/// the whole encoder, but for rounding, by every way that layers go.
#[test]
fn poolings_by_one_token() {
    let specs = [
        conformance::bert_like(384, 12, 1536, 300),
        conformance::bert_like(768, 12, 1024, 300),
        conformance::bert_like(96, 3, 200, 300),
        pre_norm(384, false),
        pre_norm(768, true),
        pre_norm(128, true),
    ];
    let many: Vec<usize> = (0..150).map(|i| 1 + i * 97 % 130).collect();
    for spec in &specs {
        for (precision, tolerance, _) in FORMATS {
            for rowwise in [None, Some(true), Some(false)] {
                let options = CudaOptions { precision, rowwise, ..CudaOptions::default() };
                let Some(cuda) = open(options) else { return };
                for lengths in [&[300, 3, 64, 17, 1][..], &[64; 40], &many, &[5]] {
                    let worst = conformance::worst_of_pooled(&cuda, spec, lengths).unwrap();
                    let what = format!("{} wide, {precision:?}, {rowwise:?}", spec.hidden);
                    eprintln!("{what}, {} sequences: {worst:e}", lengths.len());
                    assert!(worst <= tolerance, "{what}: differs by {worst:e}");
                }
            }
        }
    }
}

/// The small encoder's kernels for sequences beyond a tile: alone, beside short ones, over the ends
/// of tiles and blocks of keys, and so many rows that blocks go from tile to tile.
#[test]
fn small_encoder_over_long_sequences() {
    for (precision, tolerance) in [(Precision::F16, 6e-2), (Precision::Bf16, 5e-1)] {
        let several: &[usize] = &[1, 512, 3, 64, 130, 17, 128, 256, 127, 192];
        let batches: [(usize, &[usize]); 9] = [
            (512, &[129]),
            (512, &[192]),
            (512, &[512]),
            (512, &[2, 800, 1]),
            (512, &[200, 300, 129]),
            (512, &[511; 3]),
            (512, several),
            (64, several),
            (192, several),
        ];
        for (inner, lengths) in batches {
            let Some(cuda) = with(precision) else { return };
            let spec = conformance::bert_like(128, 2, inner, 800);
            let worst = conformance::worst_of(&cuda, &spec, lengths).unwrap();
            let what = format!("{inner} inside, {precision:?}, {lengths:?}");
            eprintln!("{what}: {worst:e}");
            assert!(worst <= tolerance, "{what}: differs by {worst:e}");
        }
        let Some(cuda) = with(precision) else { return };
        let spec = conformance::bert_like(128, 2, 512, 512);
        let lengths: Vec<usize> = (0..200).map(|i| 1 + i * 97 % 512).collect();
        conformance::repeats(&cuda, &spec, &lengths).unwrap();
    }
}

/// A spec like ModernBERT's, with and without biases.
fn pre_norm(hidden: usize, biased: bool) -> EncoderSpec {
    let bert = conformance::bert_like(hidden, hidden / 64, 192, 400);
    let layer =
        |window, attention_norm| LayerSpec { window, rotary_theta: 10_000.0, attention_norm };
    EncoderSpec {
        layers: vec![layer(None, false), layer(Some(30), true), layer(None, true)],
        position: Position::Rotary,
        norm: NormSpec { eps: 1e-5, placement: NormPlacement::Pre },
        feed_forward: FeedForward { gated: true, activation: Activation::GeluErf },
        biases: Biases { attention: biased, feed_forward: biased, norm: biased },
        ..bert
    }
}

/// Pre-norm layers by the same kernels, sums and norms apart, by whole rows and by clusters: with
/// and without biases, rotated where projections are stored and where they stay, over short and
/// long sequences.
#[test]
fn pre_norm_layers() {
    let specs = [pre_norm(384, false), pre_norm(768, false), pre_norm(768, true)];
    let many: Vec<usize> = (0..50).map(|i| 1 + i * 97 % 400).collect();
    for (precision, tolerance) in [(Precision::F16, 3e-2), (Precision::Bf16, 2.5e-1)] {
        for spec in &specs {
            for rowwise in [true, false] {
                let options = CudaOptions { precision, ..CudaOptions::default() };
                let Some(cuda) = open(CudaOptions { rowwise: Some(rowwise), ..options }) else {
                    return;
                };
                let what = format!("{} wide, {precision:?}, {rowwise}", spec.hidden);
                let batches: [&[usize]; 2] = [&[64, 64], &[300, 3, 64, 17, 1]];
                agrees(&cuda, spec, (&what, tolerance), &batches, &many);
            }
        }
    }
}

/// More tiles of rows than there are multiprocessors for.
#[test]
fn rowwise_layers_of_many_tokens() {
    for (hidden, heads, inner) in [(384, 12, 1536), (384, 6, 512), (768, 12, 1024)] {
        let spec = conformance::bert_like(hidden, heads, inner, 1000);
        for precision in [Precision::F16, Precision::Bf16] {
            for rowwise in [true, false] {
                let rowwise = Some(rowwise);
                let options = CudaOptions { precision, rowwise, ..CudaOptions::default() };
                let Some(cuda) = open(options) else { return };
                let lengths: Vec<usize> = (0..48).map(|i| 1000 - i).collect();
                let worst = conformance::worst_of_parts(&cuda, &spec, &lengths).unwrap();
                let what = format!("{hidden} wide, {precision:?}, {rowwise:?}");
                eprintln!("{what}: {worst:e}");
                let tolerance = if precision == Precision::F16 { 3e-2 } else { 2.5e-1 };
                assert!(worst <= tolerance, "{what}: differs by {worst:e}");
            }
        }
    }
}

/// Whatever order blocks and warpgroups run in, results are the same to the bit.
#[test]
fn rowwise_layers_repeat() {
    let spec = conformance::bert_like(384, 12, 1536, 512);
    let lengths: Vec<usize> = (0..150).map(|i| 1 + i * 97 % 512).collect();
    for precision in [Precision::F16, Precision::Bf16] {
        let options = CudaOptions { precision, rowwise: Some(true), ..CudaOptions::default() };
        let Some(cuda) = open(options) else { return };
        conformance::repeats(&cuda, &spec, &lengths).unwrap();
    }
}

/// Queries, keys and values and the attention over them as one kernel, for heads of either width,
/// states that stay in a block and such that stream, queries and keys with and without rotation,
/// and windows: sequences that fill tiles, that share them, that end within sixteen rows, and so
/// many that warpgroups take turns.
#[test]
fn self_attention() {
    let rotary = |hidden, heads, window| {
        let bert = conformance::bert_like(hidden, heads, 512, 128);
        let layer = LayerSpec { window, rotary_theta: 10_000.0, attention_norm: true };
        let layers = vec![layer, LayerSpec { window: None, ..bert.layers[0].clone() }];
        EncoderSpec { layers, position: Position::Rotary, ..bert }
    };
    let specs = [
        conformance::bert_like(384, 12, 512, 128),
        conformance::bert_like(384, 6, 512, 128),
        conformance::bert_like(768, 12, 512, 128),
        rotary(256, 8, Some(20)),
        rotary(768, 12, Some(50)),
    ];
    let ones = [1; 130];
    let batches: [&[usize]; 6] =
        [&[64, 64], &[1], &[128], &[127, 1, 1], &[100, 28, 17, 1, 128, 33, 16, 15, 2], &ones];
    let many: Vec<usize> = (0..300).map(|i| 1 + i * 37 % 128).collect();
    for (precision, tolerance) in [(Precision::F16, 3e-2), (Precision::Bf16, 2.5e-1)] {
        for spec in &specs {
            let options = CudaOptions { precision, ..CudaOptions::default() };
            let Some(cuda) = open(CudaOptions { self_attention: Some(true), ..options }) else {
                return;
            };
            let what = format!("{} wide, {:?}, {precision:?}", spec.hidden, spec.position);
            agrees(&cuda, spec, (&what, tolerance), &batches, &many);
        }
    }
}

/// Attention over long sequences, for heads of either width, with and without windows: sequences
/// that end within a block of keys or with it, beside short ones, and so many that blocks go on.
#[test]
fn flash_attention() {
    let windows = |windows: [Option<usize>; 2], hidden, heads| {
        let bert = conformance::bert_like(hidden, heads, 256, 1000);
        let layer = |window| LayerSpec { window, ..bert.layers[0].clone() };
        EncoderSpec { layers: windows.map(layer).to_vec(), ..bert }
    };
    let specs = [
        windows([None, None], 384, 12),
        windows([None, None], 256, 4),
        windows([Some(20), Some(64)], 256, 4),
        windows([Some(150), Some(1)], 192, 6),
    ];
    let batches: [&[usize]; 6] =
        [&[129], &[256], &[200, 1, 127], &[1, 300, 64, 129], &[385, 128], &[191, 193]];
    let many: Vec<usize> = (0..100).map(|i| 1 + i * 97 % 700).collect();
    for (precision, tolerance) in [(Precision::F16, 3e-2), (Precision::Bf16, 2.5e-1)] {
        for spec in &specs {
            let Some(cuda) = with(precision) else { return };
            let windows = [spec.layers[0].window, spec.layers[1].window];
            let heads = format!("{} heads of {}", spec.heads, spec.head_dim);
            let what = format!("{heads}, {windows:?}, {precision:?}");
            agrees(&cuda, spec, (&what, tolerance), &batches, &many);
        }
    }
}

/// A text whose values overflow has no result, and those beside it, in its tile of rows or not,
/// have theirs, in every kernel of attention.
#[test]
fn an_overflow_is_its_own_sequence() {
    let batches: [(&[usize], usize); 4] =
        [(&[64, 64], 1), (&[30, 20, 60, 18], 1), (&[200, 30, 128, 300], 2), (&[129, 260, 7], 1)];
    for (hidden, heads) in [(128, 2), (384, 12), (256, 4)] {
        let spec = conformance::bert_like(hidden, heads, 512, 512);
        for self_attention in [true, false] {
            for (lengths, spoiled) in batches {
                let self_attention = Some(self_attention);
                let options = CudaOptions { self_attention, ..CudaOptions::default() };
                let Some(cuda) = open(options) else { return };
                conformance::isolates(&cuda, &spec, lengths, spoiled).unwrap();
            }
        }
    }
}

/// The longest sequences of the longest models, beside short ones.
#[test]
fn long_sequences() {
    let spec = conformance::bert_like(32, 1, 64, 8192);
    for (precision, tolerance, _) in FORMATS {
        let Some(cuda) = with(precision) else { return };
        let worst = conformance::worst_of(&cuda, &spec, &[8192, 5, 100]).unwrap();
        eprintln!("8,192 tokens in {precision:?}: {worst:e}");
        assert!(worst <= tolerance, "8,192 tokens in {precision:?}: differs by {worst:e}");
    }
}

fn worst_cosine(found: &[f32], expected: &[f32], dim: usize) -> f64 {
    let cosine = |(a, b): (&[f32], &[f32])| {
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let rows = found.chunks_exact(dim).zip(expected.chunks_exact(dim));
    // NaN must fail, and `min` would swallow it.
    rows.map(cosine).fold(1.0, |worst, c| if c.is_nan() { -1.0 } else { f64::min(worst, c) })
}

#[test]
fn golden_checkpoints() {
    for (precision, _, cosine) in FORMATS {
        for golden in common::all() {
            let Some(cuda) = with(precision) else { return };
            let embedder = Embedder::new(golden.model(), cuda, EmbedderConfig::default()).unwrap();
            let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
            let found = embedder.embed_ids(&sequences).unwrap();
            let worst = worst_cosine(&found.values, &golden.vectors, found.dim);
            eprintln!("{} in {precision:?}: cosine {worst}", golden.name);
            assert!(worst >= cosine, "{} in {precision:?}: cosine {worst}", golden.name);
            let hidden = embedder.hidden(&sequences).unwrap();
            let width = hidden.len() / sequences.iter().map(|s| s.len()).sum::<usize>();
            let worst = worst_cosine(&hidden, &golden.hidden, width);
            assert!(worst >= cosine, "{} in {precision:?}: state's cosine {worst}", golden.name);
        }
    }
}

#[test]
fn golden_texts() {
    for golden in common::all() {
        let Some(cuda) = with(Precision::Auto) else { return };
        let embedder = Embedder::new(golden.model(), cuda, EmbedderConfig::default()).unwrap();
        let texts: Vec<&str> = golden.texts.iter().map(|(text, _)| &text[..]).collect();
        let found = embedder.embed(&texts, &EmbedOptions::default()).unwrap();
        for (row, (text, expected)) in golden.texts.iter().enumerate() {
            let vector = found.vector(row).unwrap_or_else(|| panic!("{:?}", found.rows[row]));
            let worst = worst_cosine(vector, expected, found.dim);
            assert!(worst >= 0.9999, "{}: {text:?}: cosine {worst}", golden.name);
        }
    }
}

/// Many rows, so that several blocks are in flight; each vector must be the one it gets alone.
#[test]
fn rows_keep_their_vectors() {
    for golden in common::all() {
        let Some(cuda) = with(Precision::Auto) else { return };
        let sequences: Vec<&[u32]> = golden.sequences.iter().map(|s| &s[..]).collect();
        let many: Vec<&[u32]> = (0..997).map(|i| sequences[i * 31 % sequences.len()]).collect();
        let config = EmbedderConfig { threads: 4, batch_tokens: 301, ..Default::default() };
        let embedder = Embedder::new(golden.model(), cuda, config).unwrap();
        let alone = embedder.embed_ids(&sequences).unwrap();
        let found = embedder.embed_ids(&many).unwrap();
        for row in 0..many.len() {
            let expected = alone.vector(row * 31 % sequences.len()).unwrap();
            let vector = found.vector(row).unwrap();
            let worst = common::max_abs(vector, expected);
            assert!(worst <= 2e-2, "{}: row {row} differs by {worst:e}", golden.name);
        }
    }
}

#[test]
fn a_limit_on_memory_is_kept() {
    let options = CudaOptions { memory_bytes: 1 << 12, ..CudaOptions::default() };
    let Some(cuda) = open(options) else { return };
    let golden = common::all().swap_remove(0);
    let error = Embedder::new(golden.model(), cuda, EmbedderConfig::default()).unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
}

#[test]
fn an_absent_card_says_so() {
    let error = Cuda::open(CudaOptions { index: 1000, ..CudaOptions::default() }).unwrap_err();
    assert!(error.to_string().starts_with("cuda:1000 cannot be used: "), "{error}");
    let int8 = CudaOptions { precision: Precision::Int8, ..CudaOptions::default() };
    let error = Cuda::open(int8).unwrap_err();
    assert!(error.to_string().contains("no int8 arithmetic"), "{error}");
}
