//! CPU kernels: slices in, slices out.
//!
//! No errors, no allocation outside of packing, and no threads but the few that share one text
//! (`team.rs`), which is here because it needs `unsafe`. Each algorithm is written once in
//! `ops/`, over the vector type of an instruction set (`isa/`); [`Kernels`] holds the compiled
//! versions of the set that was chosen at run time. This crate holds all of the CPU's `unsafe`:
//! the safe entry points check every length before a pointer is formed.
//!
//! **Batch invariance.** A row's result never depends on what else is computed with it: sums over
//! the inner dimension run in one order per instruction set whatever the tile's height, and tails
//! of vectors are masked instead of taking another path.

mod buffer;
mod dispatch;
mod isa;
mod number;
mod ops;
mod peak;
mod row_copy;
mod team;
mod zeroed;

pub use buffer::{AlignedBuffer, row_stride};
pub use dispatch::Kernels;
pub use isa::Isa;
pub use number::{Bf16, Format, Number, RowScale};
pub use ops::activation::Activation;
pub use ops::attention::{Attention, AttentionBias, AttentionRows, AttentionShape};
pub use ops::gemm::{Epilogue, Gemm, INT8_INPUTS_MAX, Input, Linear, LinearShape, Output};
pub use ops::norm::{Norm, NormKind};
pub use ops::quantize::{Quantize, Source};
pub use ops::rotary::{Rotary, RotaryPairs};
pub use peak::{Multiply, peak_gops};
pub use row_copy::RowCopy;
pub use team::{Barrier, Team};
