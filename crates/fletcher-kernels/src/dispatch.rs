//! The kernels compiled per instruction set, and the table that is chosen once.
//!
//! A shell is a function that enables the instruction set's features and inlines the generic
//! algorithm into itself; it is the only place where features are enabled. [`Kernels`] can only
//! be made for a set that the CPU has, which is what makes its safe methods sound.

use crate::buffer;
use crate::isa::{Isa, Kernel};
use crate::number::Format;
use crate::ops::activation::Activation;
use crate::ops::attention::{Attention, AttentionShape};
use crate::ops::gemm::{Gemm, Linear, LinearShape};
use crate::ops::norm::Norm;
use crate::ops::quantize::Quantize;
use crate::ops::rotary::Rotary;

/// Packs a weight with its bias.
type Pack = fn(Format, LinearShape, &[f32], Option<&[f32]>) -> Linear;

/// One instruction set's shells.
struct Table {
    isa: Isa,
    pack: Pack,
    attention_scratch: fn(Format, usize, usize) -> usize,
    gemm: unsafe fn(&mut Gemm<'_>),
    attention: unsafe fn(&mut Attention<'_>),
    norm: unsafe fn(&mut Norm<'_>),
    quantize: unsafe fn(&mut Quantize<'_>),
    rotary: unsafe fn(&mut Rotary<'_>),
    map: unsafe fn(Activation, &mut [f32]),
    add_scaled: unsafe fn(&mut [f32], &[f32], f32),
    max: unsafe fn(&mut [f32], &[f32]),
    scale: unsafe fn(&mut [f32], f32),
    dot: unsafe fn(&[f32], &[f32]) -> f32,
}

macro_rules! shells {
    ($module:ident, $isa:expr, $lanes:ty, #[$features:meta]) => {
        pub(crate) mod $module {
            use super::*;
            use crate::ops::{
                activation, attention as attend, elementwise, gemm as product, norm as norms,
                quantize as quantization, rotary as rotation,
            };

            /// # Safety
            /// The CPU has the features; see the kernel.
            #[$features]
            pub(crate) unsafe fn call<K: Kernel>(kernel: &K) {
                // SAFETY: the caller's guarantees are passed on.
                unsafe { kernel.run::<$lanes>() }
            }

            shells!(#[$features]
                gemm(arguments: &mut Gemm<'_>) = product::gemm::<$lanes>;
                attention(arguments: &mut Attention<'_>) = attend::attention::<$lanes>;
                norm(arguments: &mut Norm<'_>) = norms::norm::<$lanes>;
                quantize(arguments: &mut Quantize<'_>) = quantization::quantize::<$lanes>;
                rotary(arguments: &mut Rotary<'_>) = rotation::rotary::<$lanes>;
                map(activation: Activation, values: &mut [f32]) = activation::map::<$lanes>;
                add_scaled(y: &mut [f32], x: &[f32], factor: f32)
                    = elementwise::add_scaled::<$lanes>;
                max(y: &mut [f32], x: &[f32]) = elementwise::max::<$lanes>;
                scale(y: &mut [f32], factor: f32) = elementwise::scale::<$lanes>;
            );

            /// # Safety
            /// The CPU has the features; see [`elementwise::dot`].
            #[$features]
            unsafe fn dot(x: &[f32], y: &[f32]) -> f32 {
                // SAFETY: the caller's guarantees are passed on.
                unsafe { elementwise::dot::<$lanes>(x, y) }
            }

            fn pack(
                format: Format,
                shape: LinearShape,
                weight: &[f32],
                bias: Option<&[f32]>,
            ) -> Linear {
                Linear::pack::<$lanes>($isa, format, shape, weight, bias)
            }

            pub(super) static TABLE: Table = Table {
                isa: $isa,
                pack,
                attention_scratch: attend::scratch::<$lanes>,
                gemm,
                attention,
                norm,
                quantize,
                rotary,
                map,
                add_scaled,
                max,
                scale,
                dot,
            };
        }
    };
    (#[$features:meta] $($name:ident($($arg:ident: $type:ty),*) = $generic:expr;)*) => {
        $(
            /// # Safety
            /// The CPU has the features; see the generic kernel.
            #[$features]
            unsafe fn $name($($arg: $type),*) {
                // SAFETY: the caller's guarantees are passed on.
                unsafe { $generic($($arg),*) }
            }
        )*
    };
}

shells!(scalar, Isa::Scalar, crate::isa::scalar::Portable, #[inline(never)]);
#[cfg(target_arch = "x86_64")]
shells!(avx2, Isa::Avx2, crate::isa::avx2::Avx2<false>, #[target_feature(enable = "avx2,fma")]);
#[cfg(target_arch = "x86_64")]
shells!(
    avx2_dot,
    Isa::Avx2Dot,
    crate::isa::avx2::Avx2<true>,
    #[target_feature(enable = "avx2,fma,avxvnni")]
);
#[cfg(target_arch = "x86_64")]
shells!(
    avx512,
    Isa::Avx512,
    crate::isa::avx512::Avx512<false, false>,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
);
#[cfg(target_arch = "x86_64")]
shells!(
    avx512_vnni,
    Isa::Avx512Vnni,
    crate::isa::avx512::Avx512<false, true>,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
);
#[cfg(target_arch = "x86_64")]
shells!(
    avx512_dot,
    Isa::Avx512Dot,
    crate::isa::avx512::Avx512<true, true>,
    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma"
    )]
);
#[cfg(target_arch = "x86_64")]
mod amx {
    use super::*;
    use crate::isa::amx::Hardware;
    use crate::ops::attention::amx as attend;
    use crate::ops::gemm::amx as product;

    /// # Safety
    /// The CPU has the features, and tiles; see the kernel.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
    unsafe fn gemm(arguments: &mut Gemm<'_>) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe {
            match arguments.linear.format() {
                Format::F32 => (avx512_dot::TABLE.gemm)(arguments),
                Format::Bf16 | Format::Int8 => product::gemm::<Hardware>(arguments),
            }
        }
    }

    /// # Safety
    /// As [`gemm`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
    unsafe fn attention(arguments: &mut Attention<'_>) {
        // SAFETY: the caller's guarantees are passed on; the scratch that tiles ask for is what
        // vectors ask for where they take over.
        unsafe {
            match attend::suits(arguments.rows.format(), arguments.shape.head_dim) {
                true => attend::attention::<Hardware>(arguments),
                false => (avx512_dot::TABLE.attention)(arguments),
            }
        }
    }

    fn pack(format: Format, shape: LinearShape, weight: &[f32], bias: Option<&[f32]>) -> Linear {
        Linear::pack::<crate::isa::avx512::Avx512<true, true>>(
            Isa::Amx,
            format,
            shape,
            weight,
            bias,
        )
    }

    /// Everything but products of narrow numbers is that of the vectors below.
    pub(super) static TABLE: Table = Table {
        isa: Isa::Amx,
        pack,
        attention_scratch: attend::scratch,
        gemm,
        attention,
        ..avx512_dot::TABLE
    };
}
#[cfg(target_arch = "aarch64")]
shells!(neon, Isa::Neon, crate::isa::neon::Neon<false>, #[target_feature(enable = "neon")]);
#[cfg(target_arch = "aarch64")]
shells!(
    neon_dot,
    Isa::NeonDot,
    crate::isa::neon::Neon<true>,
    #[target_feature(enable = "neon,bf16,i8mm")]
);

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    table: &'static Table,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.table.isa.name())
    }
}

impl Kernels {
    /// The kernels of the best instruction set of this CPU.
    pub fn detect() -> Self {
        Self::for_isa(Isa::detect()).unwrap_or(Self { table: &scalar::TABLE })
    }

    /// The kernels of one instruction set; `None` when this CPU does not have it.
    pub fn for_isa(isa: Isa) -> Option<Self> {
        if !Isa::available().contains(&isa) {
            return None;
        }
        let table = match isa {
            Isa::Scalar => &scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Dot => &avx2_dot::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &avx512_vnni::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Dot => &avx512_dot::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => &amx::TABLE,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::TABLE,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => &neon_dot::TABLE,
            #[allow(unreachable_patterns, reason = "the sets of other architectures")]
            _ => return None,
        };
        Some(Self { table })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.table.isa
    }

    /// Packs a row-major weight of `shape.rows x shape.cols` for these kernels.
    ///
    /// # Panics
    /// When the lengths do not agree with the shape.
    pub fn pack(
        &self,
        format: Format,
        shape: LinearShape,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Linear {
        (self.table.pack)(format, shape, weight, bias)
    }

    /// `y = epilogue(x W^T + b)`.
    ///
    /// # Panics
    /// When a slice is too short, or the weight was packed for other kernels.
    pub fn gemm(&self, mut g: Gemm<'_>) {
        g.check(self.table.isa);
        // SAFETY: `self` exists, so the CPU has the instruction set; the bounds are checked.
        unsafe { (self.table.gemm)(&mut g) }
    }

    /// Elements of scratch that attention over `tokens` needs, in [`Format::F32`] or
    /// [`Format::Bf16`].
    pub fn attention_scratch(&self, format: Format, shape: AttentionShape, tokens: usize) -> usize {
        (self.table.attention_scratch)(format, shape.head_dim, tokens)
    }

    /// Softmax attention of one sequence over itself.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn attention(&self, mut a: Attention<'_>) {
        a.check(self.attention_scratch(a.rows.format(), a.shape, a.tokens));
        // SAFETY: `self` exists, so the CPU has the instruction set; the bounds are checked.
        unsafe { (self.table.attention)(&mut a) }
    }

    /// LayerNorm or RMSNorm of rows.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn norm(&self, mut n: Norm<'_>) {
        n.check();
        // SAFETY: `self` exists, so the CPU has the instruction set; the bounds are checked.
        unsafe { (self.table.norm)(&mut n) }
    }

    /// Turns rows into bytes.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn quantize(&self, mut q: Quantize<'_>) {
        q.check();
        // SAFETY: `self` exists, so the CPU has the instruction set; the bounds are checked.
        unsafe { (self.table.quantize)(&mut q) }
    }

    /// Rotates queries and keys by their positions.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn rotary(&self, mut r: Rotary<'_>) {
        r.check();
        // SAFETY: `self` exists, so the CPU has the instruction set; the bounds are checked.
        unsafe { (self.table.rotary)(&mut r) }
    }

    /// Applies a function to every element.
    pub fn map(&self, activation: Activation, values: &mut [f32]) {
        // SAFETY: `self` exists, so the CPU has the instruction set.
        unsafe { (self.table.map)(activation, values) }
    }

    /// `y += factor * x`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add_scaled(&self, y: &mut [f32], x: &[f32], factor: f32) {
        assert_eq!(y.len(), x.len());
        // SAFETY: `self` exists, so the CPU has the instruction set; the lengths agree.
        unsafe { (self.table.add_scaled)(y, x, factor) }
    }

    /// `y = max(y, x)`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn max(&self, y: &mut [f32], x: &[f32]) {
        assert_eq!(y.len(), x.len());
        // SAFETY: `self` exists, so the CPU has the instruction set; the lengths agree.
        unsafe { (self.table.max)(y, x) }
    }

    /// `y *= factor`.
    pub fn scale(&self, y: &mut [f32], factor: f32) {
        // SAFETY: `self` exists, so the CPU has the instruction set.
        unsafe { (self.table.scale)(y, factor) }
    }

    /// The dot product.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dot(&self, x: &[f32], y: &[f32]) -> f32 {
        assert_eq!(y.len(), x.len());
        // SAFETY: `self` exists, so the CPU has the instruction set; the lengths agree.
        unsafe { (self.table.dot)(x, y) }
    }

    /// Asks for bytes that will be read soon, where the instruction set has a way to.
    pub fn prefetch(&self, bytes: &[u8]) {
        buffer::prefetch(bytes);
    }

    /// Divides a vector by its Euclidean length; zeros stay zeros.
    pub fn normalize(&self, y: &mut [f32]) {
        let length = self.dot(y, y).sqrt();
        if length > 0.0 {
            self.scale(y, 1.0 / length);
        }
    }
}
