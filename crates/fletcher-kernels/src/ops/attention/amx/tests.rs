//! Tiles in software against vectors, and, where the CPU has tiles, those against the software.

use super::*;
use crate::dispatch::Kernels;
use crate::isa::Isa;
use crate::isa::amx::emulated::Emulated;
use crate::isa::amx::{self, Hardware};
use crate::ops::attention::{AttentionBias, AttentionShape};

/// # Safety
/// The CPU has AVX-512 with BF16 and VNNI; see the kernel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn emulated(a: &mut Attention<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { attention::<Emulated>(a) }
}

/// # Safety
/// The same, and tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn hardware(a: &mut Attention<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { attention::<Hardware>(a) }
}

/// # Safety
/// The CPU has AVX-512 with BF16 and VNNI; see the kernel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn vectors(a: &mut Attention<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { crate::ops::attention::attention::<Vector>(a) }
}

/// One sequence.
#[derive(Debug, Clone, Copy)]
struct Case {
    tokens: usize,
    heads: usize,
    head_dim: usize,
    window: Option<usize>,
    causal: bool,
}

impl Case {
    /// The context of some queries; the scratch is full of what must not be used.
    fn run(self, queries: std::ops::Range<usize>, run: unsafe fn(&mut Attention<'_>)) -> Vec<Bf16> {
        let Case { tokens, heads, head_dim, window, causal } = self;
        let shape = AttentionShape { heads, kv_heads: heads / 2, head_dim };
        let (qkv_stride, context_stride) = (shape.qkv_columns() + 2, shape.context_columns() + 1);
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            Bf16::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        // The last row ends with its columns: nothing behind it may be read.
        let length = tokens * qkv_stride - 2;
        let qkv: Vec<Bf16> = (0..length).map(|_| next()).collect();
        let mut context = vec![Bf16(7); queries.len() * context_stride];
        let mut scratch = vec![f32::NAN; scratch(Format::Bf16, head_dim, tokens)];
        let mut a = Attention {
            shape,
            tokens,
            queries,
            scale: 0.3,
            window,
            causal,
            bias: AttentionBias::Alibi { slopes: &[0.1, 0.01, 0.2, 0.02] },
            rows: AttentionRows::Bf16 { qkv: &qkv, context: &mut context },
            qkv_stride,
            context_stride,
            scratch: &mut scratch,
        };
        a.check(a.scratch.len());
        // SAFETY: the lengths are checked; callers have made sure of the instruction set.
        unsafe { run(&mut a) }
        context
    }
}

/// Lengths around those of tiles and panels, and what a query may see.
fn cases() -> impl Iterator<Item = Case> {
    let tokens = [1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 100];
    let ranges =
        [(None, false), (None, true), (Some(0), false), (Some(5), false), (Some(40), true)];
    let cases = tokens.into_iter().flat_map(move |tokens| {
        ranges.into_iter().flat_map(move |(window, causal)| {
            [(2, 32), (4, 64), (2, 96)].map(|(heads, head_dim)| Case {
                tokens,
                heads,
                head_dim,
                window,
                causal,
            })
        })
    });
    cases.filter(|_| Kernels::for_isa(Isa::Avx512Dot).is_some())
}

/// The order of the sums differs, and so may what is rounded of them.
#[test]
fn tiles_agree_with_vectors() {
    for case in cases() {
        let (tiles, vectors) =
            (case.run(0..case.tokens, emulated), case.run(0..case.tokens, vectors));
        for (at, (tiles, vectors)) in tiles.iter().zip(&vectors).enumerate() {
            let (tiles, vectors) = (tiles.to_f32(), vectors.to_f32());
            let error = (tiles - vectors).abs();
            assert!(error <= vectors.abs() / 64.0 + 4e-3, "{case:?} {at}: {tiles}, not {vectors}");
        }
    }
}

/// A query's answer has the same bits with whatever others it is computed.
#[test]
fn queries_do_not_depend_on_each_other() {
    for case in cases() {
        let whole = case.run(0..case.tokens, emulated);
        let stride = whole.len() / case.tokens;
        for first in [1, 3, 16, 40].into_iter().filter(|&first| first < case.tokens) {
            let part = case.run(first..case.tokens, emulated);
            assert!(part == whole[first * stride..], "{case:?} from {first}");
        }
    }
}

/// The CPU's tiles do what the software says, to the bit.
#[test]
fn hardware_is_its_definition() {
    for case in cases().filter(|_| amx::available()) {
        let all = 0..case.tokens;
        assert!(case.run(all.clone(), hardware) == case.run(all, emulated), "{case:?}");
    }
}
