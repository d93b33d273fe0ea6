//! The kernels' text: WGSL templates from `kernels/`, filled in for one device.
//!
//! Text is all there is to a kernel, so all that a device decides (number format, cooperative
//! tile, lanes of a subgroup) is decided here, and the translation to Metal can be checked on any
//! machine. Cooperative matrices cannot be indexed by a variable, so the loops
//! over them are unrolled while the text is made.

use std::fmt::Write;

use fletcher_core::backend::Epilogue;
use fletcher_core::spec::Activation;
/// The format of weights and activations in the device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
}

impl Element {
    /// Bytes of one value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 => 2,
        }
    }

    fn wgsl(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
        }
    }
}

/// What the texts depend on besides the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) element: Element,
    /// Lanes of a subgroup; the cooperative kernels size their workgroups by it.
    pub(super) lanes: u32,
    /// Bytes of workgroup memory.
    pub(super) memory: u32,
}

/// Rows and features of a workgroup of the plain GEMM.
pub(super) const PLAIN_TILE: u32 = 64;
/// Queries of a workgroup of the plain attention.
pub(super) const QUERIES: usize = 32;
/// Columns of a head that a workgroup of the plain attention takes.
pub(super) const HEAD_CHUNK: usize = 64;
/// Threads of the kernels that take one element or quad each.
pub(super) const POINTWISE_THREADS: usize = 256;
/// Columns of a workgroup of the pooling.
pub(super) const POOL_COLUMNS: usize = 64;
/// Rows of a workgroup of the norm.
pub(super) const NORM_ROWS: usize = 4;
/// Elements between the rows of matrices in workgroup memory: a pad that spreads a tile's rows over
/// the memory's banks.
const ROW_PAD: u32 = 8;

/// One kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Embed,
    /// In place, or from one slot to another.
    Norm {
        in_place: bool,
        /// Fours of a row that each lane keeps in registers, where there are few.
        held: Option<u32>,
    },
    Rotary,
    Pool,
    /// With cooperative matrices, or plain.
    Gemm {
        epilogue: Epilogue,
        tiling: Option<Tiling>,
    },
    /// With cooperative matrices of a tile for heads of a size, or plain.
    Attention {
        relative: bool,
        cooperative: Option<CooperativeAttention>,
    },
}

/// Collects unrolled lines. Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $indent:literal, $($argument:tt)*) => {{
        $text.push_str(&" ".repeat($indent));
        let _ = writeln!($text, $($argument)*);
    }};
}

mod attention;
mod gemm;

pub(super) use attention::fits as attention_fits;
pub(super) use attention::{CooperativeAttention, SUBGROUPS as ATTENTION_SUBGROUPS};
#[cfg(test)]
pub(super) use gemm::Stage;
pub(super) use gemm::Tiling;

/// The kernel's WGSL.
pub(super) fn text(kernel: Kernel, target: Target) -> String {
    let mut text = String::new();
    let cooperative = matches!(
        kernel,
        Kernel::Gemm { tiling: Some(_), .. } | Kernel::Attention { cooperative: Some(_), .. }
    );
    if target.element == Element::F16 {
        text.push_str("enable f16;\n");
    }
    if cooperative {
        text.push_str("enable wgpu_cooperative_matrix;\n");
    }
    text.push_str(&format!("alias E = {};\n", target.element.wgsl()));
    text.push_str(include_str!("kernels/math.wgsl"));
    match kernel {
        Kernel::Embed => text.push_str(&pointwise(include_str!("kernels/embed.wgsl"))),
        Kernel::Rotary => text.push_str(&pointwise(include_str!("kernels/rotary.wgsl"))),
        Kernel::Pool => text.push_str(include_str!("kernels/pool.wgsl")),
        Kernel::Norm { in_place, held } => text.push_str(&norm(in_place, held)),
        Kernel::Gemm { epilogue, tiling } => {
            let stage = tiling.and_then(|tiling| tiling.stage);
            let (y, finish) = epilogue_text(epilogue, stage.is_some());
            text.push_str(&finish);
            let body = match tiling {
                None => include_str!("kernels/gemm_plain.wgsl").to_owned(),
                Some(tiling) => match tiling.stage {
                    Some(stage) => gemm::staged(tiling, stage, epilogue, target.lanes),
                    None => gemm::cooperative(tiling, target.lanes),
                },
            };
            text.push_str(&fill(&body, &[("Y", y.to_owned())]));
        }
        Kernel::Attention { relative, cooperative } => {
            let plain = include_str!("kernels/attention_plain.wgsl");
            let (body, score) = match cooperative {
                None => (plain.to_owned(), plain_score(relative)),
                Some(form) => (attention::text(form, target.lanes), plain_score(relative)),
            };
            text.push_str(&fill(&body, &[("SCORE", score.to_owned())]));
        }
    }
    debug_assert!(!text.contains("{{"), "a template has a name that nothing fills: {text}");
    text
}

fn fill(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{{{name}}}}}"), value)
    })
}

fn number(value: u32) -> String {
    value.to_string()
}

fn pointwise(template: &str) -> String {
    fill(template, &[("THREADS", number(POINTWISE_THREADS as u32))])
}

fn norm(in_place: bool, held: Option<u32>) -> String {
    let source = "@group(0) @binding(0) var<storage, read> x: array<vec4<E>>;";
    let (source, x) = if in_place { ("", "y") } else { (source, "x") };
    // A subgroup takes a row; subgroups of 32 lanes, the common size, take one each.
    let threads = number(32 * NORM_ROWS as u32);
    let rows = number(NORM_ROWS as u32);
    let row = match held {
        None => include_str!("kernels/norm_row.wgsl").to_owned(),
        Some(held) => {
            let (mut load, mut center, mut store) = (String::new(), String::new(), String::new());
            for n in 0..held {
                line!(load, 8, "let quad_{n} = lane + {n}u * lanes;");
                line!(load, 8, "let inside_{n} = quad_{n} < p.quads;");
                line!(load, 8, "let at_{n} = base + min(quad_{n}, p.quads - 1u);");
                line!(
                    load,
                    8,
                    "let v_{n} = select(vec4<f32>(0.0), vec4<f32>({x}[at_{n}]), inside_{n});"
                );
                line!(load, 8, "sum += v_{n};");
                line!(center, 8, "let d_{n} = centered(v_{n}, mean, quad_{n});");
                line!(center, 8, "squares += d_{n} * d_{n};");
                line!(store, 8, "if (inside_{n}) {{");
                line!(
                    store,
                    8,
                    "    y[base + quad_{n}] = \
                     vec4<E>(d_{n} * factor * scale[quad_{n}] + bias[quad_{n}]);"
                );
                line!(store, 8, "}}");
            }
            let values = [("LOAD", load), ("CENTER", center), ("STORE", store)];
            fill(include_str!("kernels/norm_held_row.wgsl"), &values)
        }
    };
    let row = fill(&row, &[("X", x.into())]);
    let values = [("SOURCE", source.into()), ("ROW", row), ("ROWS", rows), ("THREADS", threads)];
    fill(include_str!("kernels/norm.wgsl"), &values)
}

/// The type of the output's elements, and the functions that finish four sums. Where `prefetched`,
/// the kernel has added the bias and what the output held.
fn epilogue_text(epilogue: Epilogue, prefetched: bool) -> (&'static str, String) {
    let epilogue = match epilogue {
        Epilogue::Accumulate if prefetched => Epilogue::Store,
        epilogue => epilogue,
    };
    let bias = if prefetched { "" } else { " + bias[column / 4u]" };
    let (y, activation, store) = match epilogue {
        Epilogue::Store => ("vec4<E>", None, "y[(row * p.y_stride + column) / 4u] = vec4<E>(s);"),
        Epilogue::Accumulate => (
            "vec4<E>",
            None,
            "let at = (row * p.y_stride + column) / 4u;\n    y[at] = vec4<E>(vec4<f32>(y[at]) + s);",
        ),
        Epilogue::Activate(activation) => (
            "vec4<E>",
            Some(activation),
            "y[(row * p.y_stride + column) / 4u] = vec4<E>(activation(s));",
        ),
        // Gate and value rows were interleaved at upload.
        Epilogue::Gate(activation) => (
            "vec2<E>",
            Some(activation),
            "let gate = activation(s.xzxz).xy;\n    \
             y[(row * p.y_stride + column / 2u) / 2u] = vec2<E>(gate * s.yw);",
        ),
    };
    let activation = activation.map_or("", |activation| match activation {
        Activation::GeluErf => include_str!("kernels/activation_gelu_erf.wgsl"),
        Activation::GeluTanh => include_str!("kernels/activation_gelu_tanh.wgsl"),
        Activation::Silu => include_str!("kernels/activation_silu.wgsl"),
        Activation::Relu => include_str!("kernels/activation_relu.wgsl"),
        Activation::Tanh => include_str!("kernels/activation_tanh.wgsl"),
        Activation::Identity => include_str!("kernels/activation_identity.wgsl"),
    });
    let finish = fill(
        include_str!("kernels/epilogue.wgsl"),
        &[("STORE", store.to_owned()), ("BIAS", bias.to_owned())],
    );
    (y, format!("{activation}{finish}"))
}

fn plain_score(relative: bool) -> &'static str {
    match relative {
        false => "return dot * p.scale;",
        true => {
            "// A key beyond the sequence is masked by the caller, and its entry may not exist.
    let column = key + (p.positions - 1u - min(query, p.positions - 1u));
    let at = head * (2u * p.positions - 1u) + min(column, vec4<u32>(2u * p.positions - 2u));
    return dot * p.scale + vec4<f32>(relative[at.x], relative[at.y], relative[at.z], relative[at.w]);"
        }
    }
}
