//! The CPU with Accelerate's BLAS for the products, on a Mac: Apple opens its matrix units to that
//! library alone. A device of its own, because the library does not promise what `cpu` does: that a
//! text's vector is the same, bit for bit, in any batch.
//!
//! All else is the CPU backend's. On other systems only the tests build this, with a plain product
//! in the library's place.

use fletcher_core::backend::{
    AttentionOp, Backend, BackendError, EmbeddingSource, Epilogue, LinearOp, LinearSource, NormOp,
    PoolOp,
};
use fletcher_core::pack::PackedBatch;
use fletcher_core::spec::EncoderSpec;

use super::arena::State;
use super::ops::kernel;
use super::{Arena as CpuArena, Cpu, Norm, RelativeBias, Rotary};

/// `y = x * W^T`, or that added to `y`.
struct Product<'a> {
    rows: usize,
    /// `rows` of `inputs`, `x_stride` apart.
    x: &'a [f32],
    x_stride: usize,
    /// `outputs * inputs`.
    weight: &'a [f32],
    inputs: usize,
    outputs: usize,
    y_stride: usize,
    accumulate: bool,
}

/// The CPU backend with another's products, in f32.
#[derive(Debug, Clone)]
pub struct Accelerate {
    cpu: Cpu,
    multiply: fn(&Product<'_>, &mut [f32]),
}

/// A matrix as the library takes it.
#[derive(Debug)]
pub struct Linear {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
}

/// A worker's activations.
#[derive(Debug)]
pub struct Arena {
    cpu: CpuArena,
    /// Gates and values of a gated layer, before they are multiplied.
    gated: Vec<f32>,
}

impl Accelerate {
    /// Uses `threads` workers; 0 stands for the CPUs that this process may use.
    #[cfg(target_os = "macos")]
    pub fn new(threads: usize) -> Self {
        Self { cpu: Cpu::new(threads), multiply: blas::multiply }
    }
}

impl Backend for Accelerate {
    type Linear = Linear;
    type Norm = Norm;
    type Embedding = EmbeddingSource;
    type Rotary = Rotary;
    type RelativeBias = RelativeBias;
    type Arena = Arena;

    fn device_name(&self) -> String {
        "accelerate".to_owned()
    }

    fn preferred_tokens(&self, spec: &EncoderSpec) -> usize {
        self.cpu.preferred_tokens(spec)
    }

    fn workers(&self) -> usize {
        self.cpu.workers()
    }

    fn urgent_arenas(&self) -> usize {
        self.cpu.urgent_arenas()
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Linear, BackendError> {
        Ok(Linear {
            weight: source.weight.to_vec(),
            bias: source.bias.map(<[f32]>::to_vec),
            inputs: source.cols,
            outputs: source.rows,
        })
    }

    fn upload_norm(
        &self,
        scale: &[f32],
        bias: Option<&[f32]>,
        eps: f64,
    ) -> Result<Norm, BackendError> {
        self.cpu.upload_norm(scale, bias, eps)
    }

    fn upload_embedding(&self, source: EmbeddingSource) -> Result<EmbeddingSource, BackendError> {
        self.cpu.upload_embedding(source)
    }

    fn upload_rotary(
        &self,
        theta: f64,
        head_dim: usize,
        positions: usize,
    ) -> Result<Rotary, BackendError> {
        self.cpu.upload_rotary(theta, head_dim, positions)
    }

    fn upload_relative_bias(
        &self,
        by_distance: &[Vec<f32>],
        positions: usize,
    ) -> Result<RelativeBias, BackendError> {
        self.cpu.upload_relative_bias(by_distance, positions)
    }

    fn plan(&self, spec: &EncoderSpec, max_tokens: usize) -> Result<Arena, BackendError> {
        let both = if spec.feed_forward.gated { 2 * spec.intermediate } else { 0 };
        let cpu = self.cpu.plan(spec, max_tokens)?;
        Ok(Arena { cpu, gated: vec![0.0; max_tokens * both] })
    }

    fn embed(
        &self,
        arena: &mut Arena,
        embedding: &EmbeddingSource,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self.cpu.embed(&mut arena.cpu, embedding, batch)
    }

    fn linear(&self, arena: &mut Arena, op: LinearOp<'_, Self>) -> Result<(), BackendError> {
        let Linear { weight, bias, inputs, outputs } = op.weight;
        let Arena { cpu: arena, gated } = arena;
        let rows = arena.tokens;
        let (input, output) = arena.pair(op.input, op.output);
        let (State::F32(x), State::F32(y)) = (&input.state, &mut output.state) else {
            unreachable!("everything is in f32");
        };
        let (is_gated, accumulate) =
            (matches!(op.epilogue, Epilogue::Gate(_)), op.epilogue == Epilogue::Accumulate);
        let y_stride = if is_gated { *outputs } else { y.stride };
        let product = Product {
            rows,
            x: x.rows(rows),
            x_stride: x.stride,
            weight,
            inputs: *inputs,
            outputs: *outputs,
            y_stride,
            accumulate,
        };
        let stride = y.stride;
        let y = y.rows_mut(rows);
        let sums = if is_gated { &mut gated[..rows * outputs] } else { &mut *y };
        (self.multiply)(&product, sums);
        for row in sums.chunks_mut(y_stride) {
            let row = &mut row[..*outputs];
            if let Some(bias) = bias {
                self.cpu.kernels.add_scaled(row, bias, 1.0);
            }
            match op.epilogue {
                Epilogue::Store | Epilogue::Accumulate => {}
                Epilogue::Activate(activation) => self.cpu.kernels.map(kernel(activation), row),
                // The first half of the rows is the gate.
                Epilogue::Gate(activation) => {
                    let gate = &mut row[..outputs / 2];
                    self.cpu.kernels.map(kernel(activation), gate);
                }
            }
        }
        if is_gated {
            for (y, both) in y.chunks_mut(stride).zip(gated.chunks(*outputs)) {
                let (gate, value) = both.split_at(outputs / 2);
                y.iter_mut().zip(gate).zip(value).for_each(|((y, gate), value)| *y = gate * value);
            }
        }
        Ok(())
    }

    fn norm(&self, arena: &mut Arena, op: NormOp<'_, Self>) -> Result<(), BackendError> {
        let NormOp { norm, input, output } = op;
        self.cpu.norm(&mut arena.cpu, NormOp { norm, input, output })
    }

    fn rotary(
        &self,
        arena: &mut Arena,
        rotary: &Rotary,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        self.cpu.rotary(&mut arena.cpu, rotary, batch)
    }

    fn attention(
        &self,
        arena: &mut Arena,
        op: AttentionOp<'_, Self>,
        batch: &PackedBatch,
    ) -> Result<(), BackendError> {
        let AttentionOp { relative, window } = op;
        self.cpu.attention(&mut arena.cpu, AttentionOp { relative, window }, batch)
    }

    fn pool(
        &self,
        arena: &mut Arena,
        op: PoolOp,
        batch: &PackedBatch,
        vectors: &mut [f32],
    ) -> Result<(), BackendError> {
        self.cpu.pool(&mut arena.cpu, op, batch, vectors)
    }

    fn download_hidden(
        &self,
        arena: &mut Arena,
        batch: &PackedBatch,
        hidden: &mut [f32],
    ) -> Result<(), BackendError> {
        self.cpu.download_hidden(&mut arena.cpu, batch, hidden)
    }
}

/// Bounds that every product keeps.
fn check(p: &Product<'_>, y: &[f32]) {
    let last = |rows: usize, stride: usize, columns: usize| match rows {
        0 => 0,
        rows => (rows - 1) * stride + columns,
    };
    assert!(p.inputs <= p.x_stride && p.outputs <= p.y_stride, "rows do not overlap");
    assert!(p.x.len() >= last(p.rows, p.x_stride, p.inputs), "x has its rows");
    assert!(y.len() >= last(p.rows, p.y_stride, p.outputs), "y has its rows");
    assert_eq!(p.weight.len(), p.outputs * p.inputs, "W has its rows");
}

#[cfg(target_os = "macos")]
mod blas {
    use super::{Product, check};

    const ROW_MAJOR: i32 = 101;
    const PLAIN: i32 = 111;
    const TRANSPOSED: i32 = 112;

    #[link(name = "Accelerate", kind = "framework")]
    unsafe extern "C" {
        fn cblas_sgemm(
            order: i32,
            transpose_a: i32,
            transpose_b: i32,
            m: i32,
            n: i32,
            k: i32,
            alpha: f32,
            a: *const f32,
            lda: i32,
            b: *const f32,
            ldb: i32,
            beta: f32,
            c: *mut f32,
            ldc: i32,
        );
    }

    pub(super) fn multiply(p: &Product<'_>, y: &mut [f32]) {
        check(p, y);
        let int = |value: usize| i32::try_from(value).expect("a matrix of less than 2^31");
        // SAFETY: `check` saw that each matrix lies in its slice with the strides given, and `y` is
        // ours alone to write.
        unsafe {
            cblas_sgemm(
                ROW_MAJOR,
                PLAIN,
                TRANSPOSED,
                int(p.rows),
                int(p.outputs),
                int(p.inputs),
                1.0,
                p.x.as_ptr(),
                int(p.x_stride),
                p.weight.as_ptr(),
                int(p.inputs),
                if p.accumulate { 1.0 } else { 0.0 },
                y.as_mut_ptr(),
                int(p.y_stride),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use fletcher_core::conformance;

    use super::*;

    fn multiply(p: &Product<'_>, y: &mut [f32]) {
        check(p, y);
        for row in 0..p.rows {
            let x = &p.x[row * p.x_stride..][..p.inputs];
            for (output, weight) in p.weight.chunks_exact(p.inputs).enumerate() {
                let y = &mut y[row * p.y_stride + output];
                let before = if p.accumulate { *y } else { 0.0 };
                *y = before + x.iter().zip(weight).map(|(a, b)| a * b).sum::<f32>();
            }
        }
    }

    /// All but the library itself, which only a Mac has.
    #[test]
    fn the_network_around_the_products_is_right() {
        let backend = Accelerate { cpu: Cpu::new(1), multiply };
        conformance::check(&backend, 1e-5).unwrap();
    }

    #[cfg(target_os = "macos")]
    #[test]
    fn the_library_is_right() {
        conformance::check(&Accelerate::new(1), 1e-5).unwrap();
    }
}
