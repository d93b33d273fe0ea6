//! Matrix products against their definition in f64, and the promise of batch invariance.

mod common;

use common::{all, assert_close, erf, mixed, numbers};
use fletcher_kernels::{
    Activation, Bf16, Epilogue, Format, Gemm, INT8_INPUTS_MAX, Input, Kernels, Linear, LinearShape,
    Output, Quantize, RowScale, Source,
};

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

/// One product's operands, rows a few elements apart so that writing past one shows.
struct Case {
    shape: LinearShape,
    rows: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Case {
    fn new(rows: usize, shape: LinearShape) -> Self {
        let scale = 1.0 / (shape.cols as f32).sqrt();
        let weight = numbers(1, shape.rows * shape.cols).iter().map(|w| w * scale).collect();
        let mut case = Self {
            shape,
            rows,
            weight,
            bias: numbers(2, shape.rows),
            x: Vec::new(),
            y: Vec::new(),
        };
        case.x = numbers(3, rows * case.x_stride());
        case.y = numbers(4, rows * case.y_stride());
        case
    }

    fn outputs(&self) -> usize {
        if self.shape.gated { self.shape.rows / 2 } else { self.shape.rows }
    }

    /// Room for the up to three elements that share the last one's word.
    fn x_stride(&self) -> usize {
        self.shape.cols + 3
    }

    fn y_stride(&self) -> usize {
        self.outputs() + 3
    }

    fn linear(&self, kernels: &Kernels, format: Format) -> Linear {
        kernels.pack(format, self.shape, &self.weight, Some(&self.bias))
    }

    /// Rows `first..first + rows` of the result.
    fn run(
        &self,
        k: &Kernels,
        format: Format,
        (first, rows): (usize, usize),
        epilogue: Epilogue,
    ) -> Vec<f32> {
        let (x_stride, y_stride) = (self.x_stride(), self.y_stride());
        let mut y = self.y[first * y_stride..(first + rows) * y_stride].to_vec();
        let linear = &self.linear(k, format);
        let x = &self.x[first * x_stride..];
        let halves: Vec<Bf16> = x.iter().map(|&x| Bf16::from_f32(x)).collect();
        let (bytes, scales) = self.bytes(k, first, rows);
        let x = match format {
            Format::F32 => Input::F32(x),
            Format::Bf16 => Input::Bf16(&halves),
            Format::Int8 => Input::Int8 { bytes: &bytes, scales: &scales },
        };
        k.gemm(Gemm { linear, rows, x, x_stride, y: Output::F32(&mut y), y_stride, epilogue });
        y
    }

    fn bytes(&self, k: &Kernels, first: usize, rows: usize) -> (Vec<u8>, Vec<RowScale>) {
        let x_stride = self.x_stride();
        let x = &self.x[first * x_stride..];
        let (mut bytes, mut scales) = (vec![0; x.len()], vec![RowScale::default(); rows]);
        k.quantize(Quantize {
            rows,
            columns: self.shape.cols,
            x: Source::F32(x),
            x_stride,
            bytes: &mut bytes,
            stride: x_stride,
            scales: &mut scales,
        });
        (bytes, scales)
    }

    /// The operands as the format rounds them.
    fn rounded(&self, k: &Kernels, format: Format) -> (Vec<f64>, Vec<f64>) {
        let exact = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let bf16 = |values: &[f32]| {
            values.iter().map(|&x| f64::from(Bf16::from_f32(x).to_f32())).collect::<Vec<_>>()
        };
        match format {
            Format::F32 => (exact(&self.x), exact(&self.weight)),
            Format::Bf16 => (bf16(&self.x), bf16(&self.weight)),
            Format::Int8 => {
                let (bytes, scales) = self.bytes(k, 0, self.rows);
                let x = bytes.iter().enumerate().map(|(i, &byte)| {
                    let RowScale { scale, zero } = scales[i / self.x_stride()];
                    f64::from(scale) * (f64::from(byte) - f64::from(zero))
                });
                // Of mixed columns, as the bytes are.
                let weight = self.weight.chunks(self.shape.cols).flat_map(|row| {
                    let square: f32 = mixed(&spike(row.len())).iter().map(|x| x * x).sum();
                    let row: Vec<f32> = mixed(row).iter().map(|w| w / square).collect();
                    let step = row.iter().fold(0.0f32, |m, w| m.max(w.abs())) / 127.0;
                    row.into_iter().map(move |w| f64::from((w / step).round_ties_even() * step))
                });
                (x.collect(), weight.collect())
            }
        }
    }

    fn expected(&self, k: &Kernels, format: Format, epilogue: Epilogue) -> Vec<f64> {
        let (xs, weight) = self.rounded(k, format);
        let (x_stride, y_stride) = (self.x_stride(), self.y_stride());
        let mut y: Vec<f64> = self.y.iter().map(|&y| f64::from(y)).collect();
        let sum = |row: usize, column: usize| {
            let x = &xs[row * x_stride..][..self.shape.cols];
            let w = &weight[column * self.shape.cols..][..self.shape.cols];
            let products = x.iter().zip(w).map(|(x, w)| x * w);
            products.sum::<f64>() + f64::from(self.bias[column])
        };
        for row in 0..self.rows {
            for column in 0..self.outputs() {
                let y = &mut y[row * y_stride + column];
                *y = match epilogue {
                    Epilogue::Accumulate => *y + sum(row, column),
                    Epilogue::Activate(Activation::Relu) => sum(row, column).max(0.0),
                    Epilogue::Activate(_) => sum(row, column),
                    Epilogue::Gate(_) => {
                        let gate = sum(row, column);
                        gate / (1.0 + (-gate).exp()) * sum(row, column + self.outputs())
                    }
                };
            }
        }
        y
    }
}

/// Mixing makes as many ones of it, with signs, as columns are mixed.
fn spike(columns: usize) -> Vec<f32> {
    (0..columns).map(|at| if at == 0 { 1.0 } else { 0.0 }).collect()
}

#[test]
fn products_are_their_definition() {
    let rows = (1..18).chain([27, 28, 29, 61]);
    let shapes = [
        (1, 1),
        (1, 5),
        (2, 3),
        (15, 7),
        (16, 26),
        (17, 31),
        (33, 64),
        (48, 65),
        (101, 130),
        (20, 136),
        (33, 384),
    ];
    for (rows, (out, cols)) in rows.flat_map(|r| shapes.map(|s| (r, s))) {
        let plain = Case::new(rows, LinearShape { rows: out, cols, gated: false });
        let gated = Case::new(rows, LinearShape { rows: 2 * out, cols, gated: true });
        for kernels in all() {
            for (case, epilogue) in [
                (&plain, Epilogue::Activate(Activation::Identity)),
                (&plain, Epilogue::Activate(Activation::Relu)),
                (&plain, Epilogue::Accumulate),
                (&gated, Epilogue::Gate(Activation::Silu)),
            ] {
                for format in FORMATS {
                    let what =
                        format!("{kernels:?} {format:?} {rows} x {cols} x {out} {epilogue:?}");
                    let found = case.run(&kernels, format, (0, rows), epilogue);
                    assert_close(&found, &case.expected(&kernels, format, epilogue), 3e-6, &what);
                }
            }
        }
    }
}

/// A large column, and a large weight, leave the others their digits.
#[test]
fn bytes_bear_outliers() {
    let (rows, out, cols) = (5, 33, 384);
    let mut case = Case::new(rows, LinearShape { rows: out, cols, gated: false });
    case.x.chunks_mut(cols + 3).for_each(|row| row[77] = 12.0);
    case.weight.chunks_mut(cols).for_each(|row| row[200] *= 12.0);
    let epilogue = Epilogue::Activate(Activation::Identity);
    for kernels in all() {
        let found = case.run(&kernels, Format::Int8, (0, rows), epilogue);
        let exact = case.expected(&kernels, Format::F32, epilogue);
        let own = found.iter().zip(&exact).enumerate().filter(|(at, _)| at % (out + 3) < out);
        let square = own.map(|(_, (&f, e))| (f64::from(f) - e).powi(2)).sum::<f64>();
        let error = (square / (rows * out) as f64).sqrt();
        // Without mixing it is 0.017.
        assert!(error < 0.009, "{kernels:?}: {error}");
    }
}

/// Wide enough inputs that the rows are taken in several blocks.
#[test]
fn blocks_of_rows_do_not_show() {
    let case = Case::new(61, LinearShape { rows: 40, cols: 6000, gated: false });
    let epilogue = Epilogue::Activate(Activation::Identity);
    for kernels in all() {
        for format in FORMATS {
            let found = case.run(&kernels, format, (0, 61), epilogue);
            let expected = case.expected(&kernels, format, epilogue);
            assert_close(&found, &expected, 1e-5, &format!("{kernels:?} {format:?}"));
        }
    }
}

/// A row is the same bits wherever it stands in whatever batch.
#[test]
fn rows_do_not_depend_on_their_batch() {
    let case = Case::new(64, LinearShape { rows: 2 * 37, cols: 77, gated: true });
    let epilogue = Epilogue::Gate(Activation::GeluErf);
    let stride = case.y_stride();
    for (kernels, format) in all().into_iter().flat_map(|k| FORMATS.map(|format| (k, format))) {
        let whole = case.run(&kernels, format, (0, 64), epilogue);
        for (first, rows) in (0..64).map(|r| (r, 1)).chain((1..40).map(|r| (64 - r - 3, r))) {
            let part = case.run(&kernels, format, (first, rows), epilogue);
            let same =
                part.iter().zip(&whole[first * stride..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{kernels:?} {format:?}: rows {first}.. of {rows}");
        }
    }
}

#[test]
#[should_panic(expected = "elements of")]
fn short_slices_are_refused() {
    let mut case = Case::new(4, LinearShape { rows: 8, cols: 8, gated: false });
    case.x.truncate(20);
    case.run(&Kernels::detect(), Format::F32, (0, 4), Epilogue::Accumulate);
}

/// The rounded output is the other one, rounded; its GELU may be off by 4e-6 besides.
#[test]
fn outputs_are_rounded_to_bf16() {
    let case = Case::new(19, LinearShape { rows: 45, cols: 64, gated: false });
    let epilogue = Epilogue::Activate(Activation::GeluErf);
    for kernels in all() {
        let linear = &case.linear(&kernels, Format::F32);
        let (x, x_stride, y_stride) = (Input::F32(&case.x), case.x_stride(), case.y_stride());
        let exact = case.run(&kernels, Format::F32, (0, 19), epilogue);
        let mut y = vec![Bf16(7); exact.len()];
        let (rows, output) = (19, Output::Bf16(&mut y));
        kernels.gemm(Gemm { linear, rows, x, x_stride, y: output, y_stride, epilogue });
        for (at, (found, exact)) in y.iter().zip(exact).enumerate() {
            if at % y_stride >= 45 {
                assert_eq!(*found, Bf16(7), "{kernels:?} {at}: wrote past a row");
                continue;
            }
            let error = (found.to_f32() - exact).abs();
            assert!(error <= exact.abs() / 256.0 + 4e-6, "{kernels:?} {at}: {error}");
        }
    }
}

/// GELU of whole panels is taken beside the next tile's product; a column more, and it is not.
/// Either way a sum becomes the same bits, in the last tile, in low ones and across blocks too.
#[test]
fn gelu_beside_a_product_is_the_same() {
    let sizes = (1..40).map(|rows| (rows, 37)).chain([(64, 128), (61, 512), (100, 6000)]);
    for ((rows, cols), kernels) in sizes.flat_map(|size| all().into_iter().map(move |k| (size, k)))
    {
        let wide = Case::new(rows, LinearShape { rows: 97, cols, gated: false });
        for format in FORMATS {
            let (x_stride, x) = (wide.x_stride(), &wide.x[..]);
            let halves: Vec<Bf16> = x.iter().map(|&x| Bf16::from_f32(x)).collect();
            let (bytes, scales) = wide.bytes(&kernels, 0, rows);
            let run = |outputs: usize| {
                let shape = LinearShape { rows: outputs, cols, gated: false };
                let (weight, bias) = (&wide.weight[..outputs * cols], &wide.bias[..outputs]);
                let linear = &kernels.pack(format, shape, weight, Some(bias));
                let x = match format {
                    Format::F32 => Input::F32(x),
                    Format::Bf16 => Input::Bf16(&halves),
                    Format::Int8 => Input::Int8 { bytes: &bytes, scales: &scales },
                };
                let (mut y, mut half_y) = (vec![7.0; rows * 97], vec![Bf16(7); rows * 97]);
                let output = match format {
                    Format::F32 => Output::F32(&mut y),
                    _ => Output::Bf16(&mut half_y),
                };
                let epilogue = Epilogue::Activate(Activation::GeluErf);
                kernels.gemm(Gemm { linear, rows, x, x_stride, y: output, y_stride: 97, epilogue });
                let halves = half_y.iter().map(|y| u32::from(y.0));
                y.iter().map(|y| y.to_bits()).zip(halves).collect::<Vec<_>>()
            };
            let (found, expected) = (run(96), run(97));
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("{kernels:?} {format:?} {rows} x {cols}: [{at}]");
                match at % 97 {
                    96 => assert_eq!(*found, (7f32.to_bits(), 7), "{what}: wrote past a row"),
                    _ => assert_eq!(found, expected, "{what}"),
                }
            }
        }
    }
}

/// GELU over its whole range, into bfloat16: the rounding is all that is seen from 0.02 on.
#[test]
fn rounded_gelu_is_its_definition() {
    let shape = LinearShape { rows: 40, cols: 1, gated: false };
    let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 2.5e-3).collect();
    for kernels in all() {
        let linear = &kernels.pack(Format::F32, shape, &[1.0; 40], None);
        let (rows, mut y) = (x.len(), vec![Bf16(0); 40 * x.len()]);
        kernels.gemm(Gemm {
            linear,
            rows,
            x: Input::F32(&x),
            x_stride: 1,
            y: Output::Bf16(&mut y),
            y_stride: 40,
            epilogue: Epilogue::Activate(Activation::GeluErf),
        });
        for (row, &x) in x.iter().enumerate() {
            let x = f64::from(x);
            let exact = x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2));
            for found in &y[row * 40..][..40] {
                let error = (f64::from(found.to_f32()) - exact).abs();
                assert!(
                    error <= exact.abs() / 255.0 + 4e-6,
                    "{kernels:?}: gelu({x}) off by {error}"
                );
            }
        }
    }
}

/// Bytes span the mixed row's range, 0 stays 0, and what is not finite is not forgotten.
#[test]
fn rows_of_bytes_are_their_definition() {
    for (kernels, columns) in all()
        .into_iter()
        .flat_map(|k| (1..70).chain([128, 192, 312, 384, 392, 1152, 1536]).map(move |c| (k, c)))
    {
        let stride = columns + 1;
        let mut x = numbers(columns as u64, 6 * stride);
        x[..columns].iter_mut().for_each(|x| *x = x.abs() + 0.5);
        x[stride..][..columns].fill(0.0);
        x[2 * stride + columns / 2] = f32::NAN;
        x[3 * stride + columns - 1] = f32::INFINITY;
        x[4 * stride..][..columns].iter_mut().for_each(|x| *x = -x.abs());
        let halves: Vec<Bf16> = x.iter().map(|&x| Bf16::from_f32(x)).collect();
        let rounded: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        for (source, values) in [(Source::F32(&x), &x), (Source::Bf16(&halves), &rounded)] {
            let (mut bytes, mut scales) = (vec![7; x.len()], vec![RowScale::default(); 6]);
            kernels.quantize(Quantize {
                rows: 6,
                columns,
                x: source,
                x_stride: stride,
                bytes: &mut bytes,
                stride,
                scales: &mut scales,
            });
            for (row, RowScale { scale, zero }) in scales.into_iter().enumerate() {
                let what = format!("{kernels:?} row {row} of {columns} columns");
                assert_eq!(bytes[row * stride + columns], 7, "{what}: wrote past a row");
                assert_eq!(scale.is_nan(), row == 2 || row == 3, "{what}");
                let x = &mixed(&values[row * stride..][..columns]);
                let (low, high) =
                    x.iter().fold((0.0f32, 0.0f32), |(l, h), &x| (l.min(x), h.max(x)));
                for (&x, &byte) in x.iter().zip(&bytes[row * stride..]).filter(|_| !scale.is_nan())
                {
                    let error = (scale * (f32::from(byte) - zero) - x).abs();
                    assert!(error <= 1.01 * (high - low) / 255.0, "{what}: {x} is {byte}");
                }
                assert!(zero == zero.round() && (0.0..=255.0).contains(&zero), "{what}: {zero}");
            }
        }
    }
}

/// Steps of 1 and whole weights show the sums of bytes themselves: every set's are the same bits.
#[test]
fn sums_of_bytes_are_the_same_everywhere() {
    for (rows, out, cols) in [(1, 1, 1), (5, 17, 31), (16, 32, 64), (33, 48, 130), (50, 101, 515)] {
        let shape = LinearShape { rows: out, cols, gated: false };
        let whole = |seed, count| numbers(seed, count).into_iter().map(|x| (x * 127.0).round());
        let mut weight: Vec<f32> = whole(1, out * cols).collect();
        weight.iter_mut().step_by(cols).for_each(|first| *first = 127.0);
        let x_stride = cols.next_multiple_of(4);
        let bytes: Vec<u8> = whole(2, rows * x_stride).map(|x| (x + 128.0) as u8).collect();
        let scales = vec![RowScale { scale: 1.0, zero: 0.0 }; rows];
        let sums = all().into_iter().map(|kernels| {
            let mut y = vec![0.0; rows * out];
            kernels.gemm(Gemm {
                linear: &kernels.pack(Format::Int8, shape, &weight, None),
                rows,
                x: Input::Int8 { bytes: &bytes, scales: &scales },
                x_stride,
                y: Output::F32(&mut y),
                y_stride: out,
                epilogue: Epilogue::Activate(Activation::Identity),
            });
            (kernels, y)
        });
        let sums: Vec<_> = sums.collect();
        for (kernels, found) in &sums {
            assert_eq!(found, &sums[0].1, "{kernels:?}: {rows} x {cols} x {out}");
        }
    }
}

/// The widest weight of bytes sums to the last number that 32 bits hold; a wider one is refused.
#[test]
fn sums_of_bytes_do_not_overflow() {
    let cols = INT8_INPUTS_MAX;
    let shape = LinearShape { rows: 1, cols, gated: false };
    let x_stride = cols.next_multiple_of(4);
    let bytes = vec![255; x_stride];
    let scales = [RowScale { scale: 1.0, zero: 0.0 }];
    for (kernels, sign) in all().into_iter().flat_map(|k| [(k, 1.0), (k, -1.0)]) {
        let linear = &kernels.pack(Format::Int8, shape, &vec![sign; cols], None);
        let mut y = [0.0];
        kernels.gemm(Gemm {
            linear,
            rows: 1,
            x: Input::Int8 { bytes: &bytes, scales: &scales },
            x_stride,
            y: Output::F32(&mut y),
            y_stride: 1,
            epilogue: Epilogue::Activate(Activation::Identity),
        });
        let expected = f64::from(sign) * 255.0 * cols as f64;
        assert!((f64::from(y[0]) / expected - 1.0).abs() < 1e-6, "{kernels:?}: {}", y[0]);
    }
    let shape = LinearShape { cols: cols + 1, ..shape };
    let pack = || Kernels::detect().pack(Format::Int8, shape, &vec![1.0; cols + 1], None);
    assert!(std::panic::catch_unwind(pack).is_err());
}
