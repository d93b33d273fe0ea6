//! Matrix products against their definition in f64, and the promise of batch invariance.

mod common;

use common::{all, assert_close, numbers};
use fletcher_kernels::{Activation, Epilogue, Gemm, Kernels, Linear, LinearShape};

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
            x: numbers(3, rows * (shape.cols + 1)),
            y: Vec::new(),
        };
        case.y = numbers(4, rows * (case.outputs() + 3));
        case
    }

    fn outputs(&self) -> usize {
        if self.shape.gated { self.shape.rows / 2 } else { self.shape.rows }
    }

    fn linear(&self, kernels: &Kernels) -> Linear {
        kernels.pack(self.shape, &self.weight, Some(&self.bias))
    }

    /// Rows `first..first + rows` of the result.
    fn run(&self, k: &Kernels, first: usize, rows: usize, epilogue: Epilogue) -> Vec<f32> {
        let (x_stride, y_stride) = (self.shape.cols + 1, self.outputs() + 3);
        let mut y = self.y[first * y_stride..(first + rows) * y_stride].to_vec();
        let linear = &self.linear(k);
        let x = &self.x[first * x_stride..];
        k.gemm(Gemm { linear, rows, x, x_stride, y: &mut y, y_stride, epilogue });
        y
    }

    fn expected(&self, epilogue: Epilogue) -> Vec<f64> {
        let (x_stride, y_stride) = (self.shape.cols + 1, self.outputs() + 3);
        let mut y: Vec<f64> = self.y.iter().map(|&y| f64::from(y)).collect();
        let sum = |row: usize, column: usize| {
            let x = &self.x[row * x_stride..][..self.shape.cols];
            let w = &self.weight[column * self.shape.cols..][..self.shape.cols];
            let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
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

#[test]
fn products_are_their_definition() {
    let rows = (1..18).chain([27, 28, 29, 61]);
    let shapes =
        [(1, 1), (1, 5), (2, 3), (15, 7), (16, 26), (17, 31), (33, 64), (48, 65), (101, 130)];
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
                let what = format!("{kernels:?} {rows} x {cols} x {out} {epilogue:?}");
                let found = case.run(&kernels, 0, rows, epilogue);
                assert_close(&found, &case.expected(epilogue), 3e-6, &what);
            }
        }
    }
}

/// Wide enough inputs that the rows are taken in several blocks.
#[test]
fn blocks_of_rows_do_not_show() {
    let case = Case::new(61, LinearShape { rows: 40, cols: 6000, gated: false });
    let epilogue = Epilogue::Activate(Activation::Identity);
    for kernels in all() {
        let found = case.run(&kernels, 0, 61, epilogue);
        assert_close(&found, &case.expected(epilogue), 1e-5, &format!("{kernels:?}"));
    }
}

/// A row is the same bits wherever it stands in whatever batch.
#[test]
fn rows_do_not_depend_on_their_batch() {
    let case = Case::new(64, LinearShape { rows: 2 * 37, cols: 77, gated: true });
    let epilogue = Epilogue::Gate(Activation::GeluErf);
    let stride = case.outputs() + 3;
    for kernels in all() {
        let whole = case.run(&kernels, 0, 64, epilogue);
        for (first, rows) in (0..64).map(|r| (r, 1)).chain((1..40).map(|r| (64 - r - 3, r))) {
            let part = case.run(&kernels, first, rows, epilogue);
            let same =
                part.iter().zip(&whole[first * stride..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{kernels:?}: rows {first}.. of {rows}");
        }
    }
}

#[test]
#[should_panic(expected = "elements of")]
fn short_slices_are_refused() {
    let mut case = Case::new(4, LinearShape { rows: 8, cols: 8, gated: false });
    case.x.truncate(20);
    case.run(&Kernels::detect(), 0, 4, Epilogue::Accumulate);
}
