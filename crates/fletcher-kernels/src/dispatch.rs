//! The kernels of one instruction set behind safe entry points.
//!
//! The macro makes, per instruction set, a shell with the right `#[target_feature]` around each
//! generic kernel; everything is inlined into it and compiled with those features. A [`Kernels`]
//! is only made for a set that the CPU has, which is what every shell's safety rests on.

use crate::isa::{Isa, scalar::Portable};
use crate::ops::attention::{Attention, attention_scratch};
use crate::ops::gemm::{Epilogue, Gemm, Linear, LinearShape, LinearSource};
use crate::ops::norm::LayerNorm;
use crate::ops::{attention, elementwise, gemm, norm};

/// The shells of one instruction set.
struct Table {
    pack: fn(LinearSource<'_>) -> Linear,
    gemm: unsafe fn(Gemm<'_>),
    layer_norm: unsafe fn(LayerNorm<'_>),
    attention: unsafe fn(Attention<'_>),
    add_scaled: unsafe fn(&mut [f32], &[f32], f32),
    keep_greatest: unsafe fn(&mut [f32], &[f32]),
    rotate: unsafe fn(&mut [f32], &[f32], &[f32]),
}

macro_rules! shells {
    ($name:ident, $lanes:ty $(, $features:literal)?) => {
        mod $name {
            use super::*;

            // SAFETY, for every shell: the caller of a shell guarantees the instruction set, by
            // having got it from a `Kernels`, and the bounds, by the checks of its entry points.
            $(#[target_feature(enable = $features)])?
            unsafe fn run_gemm(op: Gemm<'_>) {
                // SAFETY: see above.
                unsafe { gemm::gemm::<$lanes>(op) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn run_layer_norm(op: LayerNorm<'_>) {
                // SAFETY: see above.
                unsafe { norm::layer_norm::<$lanes>(op) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn run_attention(op: Attention<'_>) {
                // SAFETY: see above.
                unsafe { attention::attention::<$lanes>(op) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn run_add_scaled(sum: &mut [f32], row: &[f32], factor: f32) {
                // SAFETY: see above.
                unsafe { elementwise::add_scaled::<$lanes>(sum, row, factor) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn run_keep_greatest(greatest: &mut [f32], row: &[f32]) {
                // SAFETY: see above.
                unsafe { elementwise::keep_greatest::<$lanes>(greatest, row) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn run_rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
                // SAFETY: see above.
                unsafe { elementwise::rotate::<$lanes>(head, cos, sin) }
            }

            pub(super) static TABLE: Table = Table {
                pack: Linear::pack::<$lanes>,
                gemm: run_gemm,
                layer_norm: run_layer_norm,
                attention: run_attention,
                add_scaled: run_add_scaled,
                keep_greatest: run_keep_greatest,
                rotate: run_rotate,
            };
        }
    };
}

shells!(portable, Portable);
#[cfg(target_arch = "x86_64")]
shells!(avx2, crate::isa::avx2::Avx2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
shells!(avx512, crate::isa::avx512::Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
#[cfg(target_arch = "aarch64")]
shells!(neon, crate::isa::neon::Neon, "neon");

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    table: &'static Table,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}

impl Kernels {
    /// The kernels of the best instruction set of this CPU.
    pub fn detect() -> Self {
        Self::for_isa(Isa::detect()).unwrap_or(Self { isa: Isa::Scalar, table: &portable::TABLE })
    }

    /// The kernels of one instruction set; `None` if this CPU does not have it.
    pub fn for_isa(isa: Isa) -> Option<Self> {
        if !Isa::available().contains(&isa) {
            return None;
        }
        let table = match isa {
            Isa::Scalar => &portable::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => return None,
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon => return None,
        };
        Some(Self { isa, table })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Packs a row-major weight of `shape.rows x shape.cols` for [`Self::linear`] of the same
    /// `Kernels`.
    ///
    /// # Panics
    /// If the slices' lengths do not agree with the shape.
    pub fn pack(&self, shape: LinearShape, weight: &[f32], bias: Option<&[f32]>) -> Linear {
        (self.table.pack)(LinearSource { isa: self.isa, shape, weight, bias })
    }

    /// `y = epilogue(x W^T + b)` for dense rows of `x`.
    ///
    /// # Panics
    /// If the slices do not hold the same number of rows, or the epilogue does not fit the weight.
    pub fn linear(&self, linear: &Linear, x: &[f32], y: &mut [f32], epilogue: Epilogue) {
        let rows = x.len() / linear.inputs().max(1);
        assert_eq!(x.len(), rows * linear.inputs(), "x");
        assert_eq!(y.len(), rows * linear.outputs(), "y");
        assert_eq!(matches!(epilogue, Epilogue::Gate(_)), linear.shape.gated, "gate");
        assert_eq!(linear.isa, self.isa, "packed for another instruction set");
        // SAFETY: `self` exists only on a CPU with its instruction set, the weight was packed for
        // it, and the operands' lengths agree, as asserted.
        unsafe { (self.table.gemm)(Gemm { linear, rows, x, y, epilogue }) }
    }

    /// LayerNorm of each row, in place; `eps` is added to the variance.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn layer_norm(&self, rows: &mut [f32], scale: &[f32], bias: Option<&[f32]>, eps: f32) {
        assert!(rows.len().is_multiple_of(scale.len()), "rows");
        assert!(bias.is_none_or(|bias| bias.len() == scale.len()), "bias");
        // SAFETY: the instruction set as in `linear`; the lengths agree, as asserted.
        unsafe { (self.table.layer_norm)(LayerNorm { rows, scale, bias, eps }) }
    }

    /// Attention of one sequence over itself.
    ///
    /// # Panics
    /// If the lengths do not agree with each other.
    pub fn attention(&self, op: Attention<'_>) {
        let width = op.heads * op.head_dim;
        let tokens = op.context.len() / width;
        assert_eq!(op.context.len(), tokens * width, "context");
        assert_eq!(op.qkv.len(), 3 * op.context.len(), "qkv");
        assert!(op.scratch.len() >= attention_scratch(tokens, op.head_dim), "scratch");
        if let Some((table, zero)) = op.relative {
            assert_eq!(table.len(), op.heads, "relative");
            assert!(table.iter().all(|row| zero + 1 >= tokens && row.len() >= zero + tokens));
        }
        // SAFETY: the instruction set as in `linear`; the lengths agree, as asserted.
        unsafe { (self.table.attention)(op) }
    }

    /// `sum[i] += row[i] * factor`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_scaled(&self, sum: &mut [f32], row: &[f32], factor: f32) {
        assert_eq!(sum.len(), row.len());
        // SAFETY: the instruction set as in `linear`; the lengths agree, as asserted.
        unsafe { (self.table.add_scaled)(sum, row, factor) }
    }

    /// `greatest[i] = max(greatest[i], row[i])`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn keep_greatest(&self, greatest: &mut [f32], row: &[f32]) {
        assert_eq!(greatest.len(), row.len());
        // SAFETY: the instruction set as in `linear`; the lengths agree, as asserted.
        unsafe { (self.table.keep_greatest)(greatest, row) }
    }

    /// Rotates one head by the angles whose cosines and sines are given.
    ///
    /// # Panics
    /// If the head is not twice as long as the tables.
    pub fn rotate(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert_eq!(cos.len(), sin.len());
        assert_eq!(head.len(), 2 * cos.len());
        // SAFETY: the instruction set as in `linear`; the lengths agree, as asserted.
        unsafe { (self.table.rotate)(head, cos, sin) }
    }
}
