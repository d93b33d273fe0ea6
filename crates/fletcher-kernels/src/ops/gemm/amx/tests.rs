//! Tiles in software against vectors, and, where the CPU has tiles, those against the software.

use super::*;
use crate::dispatch::Kernels;
use crate::isa::Isa;
use crate::isa::amx::emulated::Emulated;
use crate::isa::amx::{self, Hardware};
use crate::number::Format;
use crate::ops::activation::Activation;
use crate::ops::gemm::{Linear, LinearShape};

const FORMATS: [Format; 2] = [Format::Bf16, Format::Int8];

/// Elements between the end of a row and the next.
const GAP: usize = 3;

/// A product's operands.
#[derive(Clone)]
struct Case {
    shape: LinearShape,
    rows: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    x: Vec<Bf16>,
    bytes: Vec<u8>,
    scales: Vec<RowScale>,
}

/// Uniform in -1..1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

impl Case {
    fn new(rows: usize, out: usize, cols: usize, gated: bool) -> Self {
        let shape = LinearShape { rows: if gated { 2 * out } else { out }, cols, gated };
        let x = numbers(3, rows * (cols + GAP));
        Self {
            shape,
            rows,
            weight: numbers(1, shape.rows * cols),
            bias: numbers(2, shape.rows),
            bytes: x.iter().map(|x| (x * 127.0 + 128.0) as u8).collect(),
            // What stands behind a row is never part of a sum.
            x: x.iter()
                .enumerate()
                .map(|(at, &x)| Bf16::from_f32(if at % (cols + GAP) < cols { x } else { f32::NAN }))
                .collect(),
            scales: numbers(4, rows)
                .iter()
                .map(|x| RowScale { scale: x / 64.0, zero: (x * 9.0).round() })
                .collect(),
        }
    }

    fn outputs(&self) -> usize {
        self.shape.rows >> u8::from(self.shape.gated)
    }

    fn pack(&self, isa: Isa, format: Format) -> Linear {
        Linear::pack::<Vector>(isa, format, self.shape, &self.weight, Some(&self.bias))
    }

    /// The bits of rows `first..first + rows` of the result, and of the gaps between them.
    fn run(
        &self,
        linear: &Linear,
        (first, rows): (usize, usize),
        epilogue: Epilogue,
        gemm: unsafe fn(&mut Gemm<'_>),
    ) -> Vec<u32> {
        let (x_stride, y_stride) = (self.shape.cols + GAP, self.outputs() + GAP);
        let x = match linear.format() {
            Format::Int8 => Input::Int8 {
                bytes: &self.bytes[first * x_stride..],
                scales: &self.scales[first..],
            },
            _ => Input::Bf16(&self.x[first * x_stride..]),
        };
        let mut y = numbers(5, self.rows * y_stride)[first * y_stride..].to_vec();
        let output = Output::F32(&mut y);
        let mut g = Gemm { linear, rows, x, x_stride, y: output, y_stride, epilogue };
        g.check(linear.isa);
        // SAFETY: the lengths are checked; callers have made sure of the instruction set.
        unsafe { gemm(&mut g) }
        y.truncate(rows * y_stride);
        y.into_iter().map(f32::to_bits).collect()
    }
}

/// # Safety
/// The CPU has AVX-512 with BF16 and VNNI; see the kernel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn emulated(g: &mut Gemm<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { gemm::<Emulated>(g) }
}

/// # Safety
/// The same, and tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn hardware(g: &mut Gemm<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { gemm::<Hardware>(g) }
}

/// # Safety
/// The CPU has AVX-512 with BF16 and VNNI; see the kernel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn vectors(g: &mut Gemm<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe { crate::ops::gemm::gemm::<Vector>(g) }
}

/// Whether this CPU can finish the sums.
fn has_vectors() -> bool {
    Kernels::for_isa(Isa::Avx512Dot).is_some()
}

fn epilogue(gated: bool) -> Epilogue {
    match gated {
        true => Epilogue::Gate(Activation::Silu),
        false => Epilogue::Accumulate,
    }
}

/// Rows and columns around the edges of tiles, units and panels.
fn cases() -> impl Iterator<Item = Case> {
    let rows = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 100];
    let shapes = [(1, 1), (5, 2), (15, 31), (16, 32), (17, 33), (33, 64), (48, 65), (101, 130)];
    rows.into_iter().flat_map(move |rows| {
        shapes.into_iter().flat_map(move |(out, cols)| {
            [false, true].map(|gated| Case::new(rows, out, cols, gated))
        })
    })
}

/// Sums of bytes are exact, so tiles give the bits that vectors give.
#[test]
fn bytes_are_those_of_vectors() {
    for case in cases().filter(|_| has_vectors()) {
        let (all, epilogue) = ((0, case.rows), epilogue(case.shape.gated));
        let tiles = case.run(&case.pack(Isa::Amx, Format::Int8), all, epilogue, emulated);
        let vectors = case.run(&case.pack(Isa::Avx512Dot, Format::Int8), all, epilogue, vectors);
        assert!(tiles == vectors, "{} rows, {:?}", case.rows, case.shape);
    }
}

/// The definition of a product of bfloat16: 32 elements at a time, even and odd ones apart.
#[test]
fn bf16_is_its_definition() {
    let activate = Epilogue::Activate(Activation::Identity);
    for case in cases().filter(|case| has_vectors() && !case.shape.gated) {
        let (cols, stride) = (case.shape.cols, case.outputs() + GAP);
        let found =
            case.run(&case.pack(Isa::Amx, Format::Bf16), (0, case.rows), activate, emulated);
        for (row, column) in (0..case.rows).flat_map(|r| (0..case.outputs()).map(move |c| (r, c))) {
            let x = &case.x[row * (cols + GAP)..][..cols];
            let w = &case.weight[column * cols..][..cols];
            let mut sum = 0.0f32;
            for (x, w) in x.chunks(32).zip(w.chunks(32)) {
                let chain = |parity: usize| {
                    let pairs = x.iter().zip(w).skip(parity).step_by(2);
                    pairs.fold(0.0f32, |sum, (x, &w)| {
                        x.to_f32().mul_add(Bf16::from_f32(w).to_f32(), sum)
                    })
                };
                sum += chain(0) + chain(1);
            }
            let expected = sum + case.bias[column];
            let found = f32::from_bits(found[row * stride + column]);
            assert_eq!(found, expected, "row {row} of {}, {column} of {:?}", case.rows, case.shape);
        }
    }
}

/// Rows of several blocks: wide inputs.
#[test]
fn blocks_of_rows_do_not_show() {
    for format in FORMATS.into_iter().filter(|_| has_vectors()) {
        let case = Case::new(70, 40, if format == Format::Int8 { 24_000 } else { 12_000 }, false);
        let linear = &case.pack(Isa::Amx, format);
        let whole = case.run(linear, (0, 70), Epilogue::Accumulate, emulated);
        let part = case.run(linear, (33, 37), Epilogue::Accumulate, emulated);
        assert!(whole[33 * (40 + GAP)..] == part, "{format:?}");
    }
}

/// A row has the same bits wherever it stands in whatever batch.
#[test]
fn rows_do_not_depend_on_their_batch() {
    for (format, gated) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)])
    {
        if !has_vectors() {
            return;
        }
        let case = Case::new(70, 37, 77, gated);
        let (linear, stride) = (&case.pack(Isa::Amx, format), case.outputs() + GAP);
        let whole = case.run(linear, (0, 70), epilogue(gated), emulated);
        for (first, rows) in (0..70).map(|r| (r, 1)).chain((1..60).map(|r| (70 - r - 3, r))) {
            let part = case.run(linear, (first, rows), epilogue(gated), emulated);
            let expected = &whole[first * stride..][..rows * stride];
            assert!(part == expected, "{format:?} {gated}: rows {first}.. of {rows}");
        }
    }
}

/// The CPU's tiles do what the software says, to the bit, subnormal numbers included.
#[test]
fn hardware_is_its_definition() {
    if !(has_vectors() && amx::available()) {
        return;
    }
    for (mut case, format) in cases().flat_map(|case| FORMATS.map(|format| (case.clone(), format)))
    {
        let (all, epilogue) = ((0, case.rows), epilogue(case.shape.gated));
        for small in [false, true] {
            if small {
                case.weight.iter_mut().for_each(|w| *w *= 1e-18);
                case.x.iter_mut().for_each(|x| *x = Bf16::from_f32(x.to_f32() * 1e-20));
            }
            let linear = &case.pack(Isa::Amx, format);
            let found = case.run(linear, all, epilogue, hardware);
            let expected = case.run(linear, all, epilogue, emulated);
            assert!(found == expected, "{format:?}, {} rows, {:?}", case.rows, case.shape);
        }
    }
}

/// A thread that has multiplied carries no tiles on.
#[test]
fn tiles_are_released() {
    if !amx::available() {
        return;
    }
    let in_use = || {
        let state: u32;
        // SAFETY: register 1 of xgetbv exists where there are tiles; it is the set of states that
        // differ from their initial ones.
        unsafe {
            std::arch::asm!(
                "xgetbv", in("ecx") 1, out("eax") state, out("edx") _, options(nomem, nostack)
            );
        }
        state >> 17 & 0b11 != 0
    };
    let case = Case::new(33, 40, 64, false);
    case.run(&case.pack(Isa::Amx, Format::Bf16), (0, 33), epilogue(false), hardware);
    assert!(!in_use());
    // SAFETY: the tiles are available.
    let configured = unsafe { Configured::<Hardware>::new(16) };
    assert!(in_use());
    drop(configured);
    assert!(!in_use());
}
