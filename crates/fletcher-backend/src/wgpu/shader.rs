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
}

/// How the sums of a cooperative GEMM are spread: a subgroup holds `down x across` tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Rows and columns of a cooperative matrix.
    pub(super) tile: u32,
    pub(super) down: u32,
    pub(super) across: u32,
    /// Subgroups of a workgroup, one below the other and side by side.
    pub(super) subgroups: (u32, u32),
    /// Columns of the operands that go through workgroup memory at a time; `None`: they do not.
    pub(super) step: Option<u32>,
}

impl Tiling {
    /// For batches that fill the device.
    pub(super) fn large(tile: u32, staged: bool) -> Self {
        match staged {
            false => Self { tile, down: 4, across: 4, subgroups: (2, 2), step: None },
            true => Self { tile, down: 4, across: 2, subgroups: (2, 2), step: Some(32) },
        }
    }

    /// For batches that do not: less work for each workgroup.
    pub(super) fn small(tile: u32, staged: bool) -> Self {
        let step = staged.then_some(32);
        Self { tile, down: 2, across: 2, subgroups: (2, 2), step }
    }

    /// Rows of one workgroup.
    pub(super) fn rows(self) -> u32 {
        self.subgroups.0 * self.down * self.tile
    }

    /// Features of one workgroup.
    pub(super) fn columns(self) -> u32 {
        self.subgroups.1 * self.across * self.tile
    }

    fn all_subgroups(self) -> u32 {
        self.subgroups.0 * self.subgroups.1
    }

    /// Bytes of workgroup memory that the kernel needs.
    pub(super) fn workgroup_bytes(self, element: Element) -> u32 {
        let strip = 4 * self.all_subgroups() * self.tile * self.across * self.tile;
        let staged = |step| self.rows() * (step + ROW_PAD) + self.columns() * step;
        strip + self.step.map_or(0, staged) * element.bytes() as u32
    }
}

/// Rows and features of a workgroup of the plain GEMM.
pub(super) const PLAIN_TILE: u32 = 64;
/// Queries of a workgroup of either attention.
pub(super) const QUERIES: usize = 32;
/// Columns of a head that a workgroup of the plain attention takes.
pub(super) const HEAD_CHUNK: usize = 64;
/// Threads of the kernels that take one element or quad each.
pub(super) const POINTWISE_THREADS: usize = 256;
/// Columns of a workgroup of the pooling.
pub(super) const POOL_COLUMNS: usize = 64;
/// Rows of a workgroup of the norm.
pub(super) const NORM_ROWS: usize = 4;
/// Workgroup memory of the largest kernel; Metal has no more on any device.
const WORKGROUP_BYTES: usize = 32 << 10;
/// Keys that the cooperative attention takes at a time.
const KEYS: usize = 64;
/// Elements from one row of its scores, weights and values to the next: not a multiple of the
/// memory's banks.
const SCORE_PITCH: u32 = KEYS as u32 + 4;
const WEIGHT_PITCH: u32 = KEYS as u32 + 8;
const VALUE_PAD: usize = 8;
const ROW_PAD: u32 = 8;

/// One kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Embed,
    /// In place, or from one slot to another.
    Norm {
        in_place: bool,
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

/// The cooperative attention's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CooperativeAttention {
    pub(super) tile: u32,
    pub(super) head_dim: usize,
    /// Whether memory is read in vectors of four, which Metal's matrices cannot be loaded from.
    pub(super) vectors: bool,
}

/// Whether the cooperative attention can take such heads: in whole tiles of either size, and in the
/// workgroup memory that every device has.
pub(super) fn attention_fits(target: Target, tile: u32, head_dim: usize) -> bool {
    let element = target.element.bytes();
    let f32s = (tile * tile + QUERIES as u32 * SCORE_PITCH + 2 * 4 * target.lanes + QUERIES as u32)
        as usize;
    let values = KEYS * value_pitch(tile, head_dim as u32) as usize;
    let elements = QUERIES * WEIGHT_PITCH as usize + values;
    head_dim.is_multiple_of(16) && 4 * f32s + element * elements <= WORKGROUP_BYTES
}

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
        Kernel::Norm { in_place } => text.push_str(&norm(in_place)),
        Kernel::Gemm { epilogue, tiling } => {
            let (y, finish) = epilogue_text(epilogue);
            text.push_str(&finish);
            let body = match tiling {
                None => include_str!("kernels/gemm_plain.wgsl").to_owned(),
                Some(tiling) => match tiling.step {
                    Some(step) => gemm_staged(tiling, step, target.lanes),
                    None => gemm_cooperative(tiling, target.lanes),
                },
            };
            text.push_str(&fill(&body, &[("Y", y.to_owned())]));
        }
        Kernel::Attention { relative, cooperative } => {
            let plain = include_str!("kernels/attention_plain.wgsl");
            let (body, score) = match cooperative {
                None => (plain.to_owned(), plain_score(relative)),
                Some(form) => (attention_cooperative(form, target.lanes), one_score(relative)),
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

fn norm(in_place: bool) -> String {
    let source = "@group(0) @binding(0) var<storage, read> x: array<vec4<E>>;";
    let (source, x) = if in_place { ("", "y") } else { (source, "x") };
    // A subgroup takes a row; subgroups of 32 lanes, the common size, take one each.
    let threads = number(32 * NORM_ROWS as u32);
    let rows = number(NORM_ROWS as u32);
    let values = [("SOURCE", source.into()), ("X", x.into()), ("ROWS", rows), ("THREADS", threads)];
    fill(include_str!("kernels/norm.wgsl"), &values)
}

/// The type of the output's elements, and the functions that finish four sums.
fn epilogue_text(epilogue: Epilogue) -> (&'static str, String) {
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
    let finish = fill(include_str!("kernels/epilogue.wgsl"), &[("STORE", store.to_owned())]);
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

fn one_score(relative: bool) -> &'static str {
    match relative {
        false => "return dot * p.scale;",
        true => {
            "// A key beyond the sequence is masked by the caller, and its entry may not exist.
    let column = key + p.positions - 1u - min(query, p.positions - 1u);
    let at = head * (2u * p.positions - 1u) + min(column, 2u * p.positions - 2u);
    return dot * p.scale + relative[at];"
        }
    }
}

/// Collects unrolled lines. Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $indent:literal, $($argument:tt)*) => {{
        $text.push_str(&" ".repeat($indent));
        let _ = writeln!($text, $($argument)*);
    }};
}

fn gemm_cooperative(tiling: Tiling, lanes: u32) -> String {
    let Tiling { tile, down, across, .. } = tiling;
    let width = across * tile;
    let (mut zero, mut multiply) = (String::new(), String::new());
    for (i, j) in tiles(down, across) {
        line!(zero, 4, "var s_{i}_{j} = coopLoadT<Sums>(&strip[0], T);");
    }
    for i in 0..down {
        line!(
            multiply,
            8,
            "let l_{i} = coopLoadT<Rows>(&x[x_at + {}u * x_stride + k], x_stride);",
            i * tile
        );
    }
    for j in 0..across {
        // Tiles of one row of W lie one after the other, each column-major.
        line!(
            multiply,
            8,
            "let r_{j} = coopLoad<Features>(&weight[w_at + {}u * depth + k * T], T);",
            j * tile
        );
    }
    for (i, j) in tiles(down, across) {
        line!(multiply, 8, "s_{i}_{j} = coopMultiplyAdd(l_{i}, r_{j}, s_{i}_{j});");
    }
    let finish = finish_sums(tiling);
    let subgroups = tiling.all_subgroups();
    let values = [
        ("T", number(tile)),
        ("DOWN", number(down)),
        ("ACROSS", number(across)),
        ("SUBGROUPS_DOWN", number(tiling.subgroups.0)),
        ("SUBGROUPS_ACROSS", number(tiling.subgroups.1)),
        ("WIDTH", number(width)),
        ("STRIP", number(subgroups * tile * width)),
        ("THREADS", number(subgroups * lanes)),
        ("ZERO", zero),
        ("MULTIPLY", multiply),
        ("FINISH", finish),
    ];
    fill(include_str!("kernels/gemm_cooperative.wgsl"), &values)
}

/// The sums through the subgroup's strip to the epilogue, one row of tiles at a time.
fn finish_sums(tiling: Tiling) -> String {
    let Tiling { tile, down, across, .. } = tiling;
    let mut finish = String::new();
    for i in 0..down {
        for j in 0..across {
            // The two `let`s keep the order of load and store: without them naga 30 emits the
            // arguments after the statement that uses them.
            line!(finish, 4, "let to_{i}_{j} = mine + {}u;", j * tile);
            line!(finish, 4, "let done_{i}_{j} = s_{i}_{j};");
            line!(finish, 4, "coopStoreT(done_{i}_{j}, &strip[to_{i}_{j}], WIDTH);");
        }
        line!(finish, 4, "workgroupBarrier();");
        line!(finish, 4, "for (var q = lane; q < T * WIDTH / 4u; q += lanes) {{");
        line!(finish, 4, "    let at = mine + q * 4u;");
        line!(
            finish,
            4,
            "    let sums = vec4<f32>(strip[at], strip[at + 1u], strip[at + 2u], strip[at + 3u]);"
        );
        line!(
            finish,
            4,
            "    finish(sums, row + {}u + q / (WIDTH / 4u), column + q % (WIDTH / 4u) * 4u);",
            i * tile
        );
        line!(finish, 4, "}}");
        if i + 1 < down {
            line!(finish, 4, "workgroupBarrier();");
        }
    }
    finish
}

fn gemm_staged(tiling: Tiling, step: u32, lanes: u32) -> String {
    let Tiling { tile, down, across, .. } = tiling;
    let width = across * tile;
    let subgroups = tiling.all_subgroups();
    let threads = subgroups * lanes;
    let quads = step / 4;
    let row_pitch = (step + ROW_PAD) / 4;
    let tile_quads = tile * tile / 4;
    let (mut zero, mut places, mut load, mut store, mut multiply) =
        (String::new(), String::new(), String::new(), String::new(), String::new());
    for (i, j) in tiles(down, across) {
        line!(zero, 4, "var s_{i}_{j} = coopLoadT<Sums>(&strip[0], T);");
    }
    for i in 0..tiling.rows() * quads / threads {
        line!(places, 4, "let x_row_{i} = (local + {}u) / {quads}u;", i * threads);
        line!(places, 4, "let x_quad_{i} = (local + {}u) % {quads}u;", i * threads);
        line!(places, 4, "let x_at_{i} = x_base + x_row_{i} * (p.x_stride / 4u) + x_quad_{i};");
        line!(places, 4, "var x_{i} = x[x_at_{i}];");
        line!(store, 8, "rows[x_row_{i} * ROW_PITCH + x_quad_{i}] = x_{i};");
        line!(load, 8, "x_{i} = x[x_at_{i} + next / 4u];");
    }
    // A row of W's tiles is `depth * tile` long; a step takes `step / tile` tiles of it.
    let line_quads = step / tile * tile_quads;
    for i in 0..tiling.columns() * quads / threads {
        line!(places, 4, "let w_line_{i} = (local + {}u) / {line_quads}u;", i * threads);
        line!(places, 4, "let w_quad_{i} = (local + {}u) % {line_quads}u;", i * threads);
        line!(places, 4, "let w_at_{i} = w_base + w_line_{i} * T * (depth / 4u) + w_quad_{i};");
        line!(places, 4, "var w_{i} = weight[w_at_{i}];");
        line!(store, 8, "features[local + {}u] = w_{i};", i * threads);
        line!(load, 8, "w_{i} = weight[w_at_{i} + next * T / 4u];");
    }
    for k in 0..step / tile {
        for i in 0..down {
            line!(
                multiply,
                8,
                "let l_at_{k}_{i} = (down * {down}u + {i}u) * T * ROW_PITCH + {}u;",
                k * tile / 4
            );
            line!(multiply, 8, "let l_{k}_{i} = coopLoadT<Rows>(&rows[l_at_{k}_{i}], ROW_PITCH);");
        }
        for j in 0..across {
            line!(
                multiply,
                8,
                "let r_at_{k}_{j} = (across * {across}u + {j}u) * {line_quads}u + {}u;",
                k * tile_quads
            );
            line!(
                multiply,
                8,
                "let r_{k}_{j} = coopLoad<Features>(&features[r_at_{k}_{j}], TILE_PITCH);"
            );
        }
        for (i, j) in tiles(down, across) {
            line!(multiply, 8, "s_{i}_{j} = coopMultiplyAdd(l_{k}_{i}, r_{k}_{j}, s_{i}_{j});");
        }
    }
    let values = [
        ("T", number(tile)),
        ("STEP", number(step)),
        ("ROW_PITCH", number(row_pitch)),
        ("TILE_PITCH", number(tile / 4)),
        ("ROWS", number(tiling.rows())),
        ("COLUMNS", number(tiling.columns())),
        ("ROW_QUADS", number(tiling.rows() * row_pitch)),
        ("FEATURE_QUADS", number(tiling.columns() * quads)),
        ("DOWN", number(down)),
        ("SUBGROUPS_DOWN", number(tiling.subgroups.0)),
        ("SUBGROUPS_ACROSS", number(tiling.subgroups.1)),
        ("WIDTH", number(width)),
        ("STRIP", number(subgroups * tile * width)),
        ("THREADS", number(threads)),
        ("ZERO", zero),
        ("PLACES", places),
        ("STORE_STEP", store),
        ("LOAD_STEP", load),
        ("MULTIPLY", multiply),
        ("FINISH", finish_sums(tiling)),
    ];
    fill(include_str!("kernels/gemm_staged.wgsl"), &values)
}

fn tiles(down: u32, across: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..down).flat_map(move |i| (0..across).map(move |j| (i, j)))
}

/// Elements from one row of the attention's values to the next. Where the tiles of a head do not
/// divide among the subgroups, the last ones multiply what is there and nobody reads the result:
/// matrix operations must be executed by all.
fn value_pitch(tile: u32, dim: u32) -> u32 {
    let step = 4 * tile / QUERIES as u32;
    dim.next_multiple_of(step * tile) + VALUE_PAD as u32
}

fn attention_cooperative(form: CooperativeAttention, lanes: u32) -> String {
    let (tile, dim) = (form.tile, form.head_dim as u32);
    // Elements of a unit of memory.
    let unit = if form.vectors { 4 } else { 1 };
    let threads = 4 * lanes;
    let down = QUERIES as u32 / tile;
    // The four subgroups stand `down` by `step` over the tiles of scores and of values.
    let step = 4 / down;
    let value_tiles = (dim / tile).div_ceil(step);
    let (mut queries, mut scores) = (String::new(), String::new());
    let (mut zero, mut multiply, mut finish) = (String::new(), String::new(), String::new());
    for d in 0..dim / tile {
        line!(
            queries,
            4,
            "let q_{d} = coopLoadT<Left>(&x[query_at + {}u], stride);",
            d * tile / unit
        );
    }
    for i in 0..64 / tile / step {
        line!(scores, 8, "let key_{i} = (across + {}u) * T;", i * step);
        line!(scores, 8, "var s_{i} = coopLoadT<Sums>(&zeros[0], T);");
        for d in 0..dim / tile {
            line!(
                scores,
                8,
                "let k_{i}_{d} = coopLoad<Right>(&x[key_at + key_{i} * stride + {}u], stride);",
                d * tile / unit
            );
            line!(scores, 8, "s_{i} = coopMultiplyAdd(q_{d}, k_{i}_{d}, s_{i});");
        }
        line!(scores, 8, "let score_at_{i} = down * T * SCORE_PITCH + key_{i};");
        line!(scores, 8, "let scored_{i} = s_{i};");
        line!(scores, 8, "coopStoreT(scored_{i}, &scores[score_at_{i}], SCORE_PITCH);");
    }
    for i in 0..value_tiles {
        line!(zero, 4, "var o_{i} = coopLoadT<Sums>(&zeros[0], T);");
        line!(multiply, 12, "{{");
        line!(
            multiply,
            12,
            "    let v = coopLoadT<Right>(&values[value_at + {}u], VALUE_PITCH);",
            i * step * tile / unit
        );
        line!(multiply, 12, "    o_{i} = coopMultiplyAdd(l, v, o_{i});");
        line!(multiply, 12, "}}");
    }
    let per_chunk = 64 / tile / step;
    for chunk in 0..dim.div_ceil(64) {
        let width = (dim - chunk * 64).min(64);
        if chunk > 0 {
            line!(finish, 4, "workgroupBarrier();");
        }
        for i in chunk * per_chunk..((chunk + 1) * per_chunk).min(value_tiles) {
            line!(finish, 4, "{{");
            let column = i * step * tile - chunk * 64;
            line!(finish, 4, "    let to = down * T * SCORE_PITCH + across * T + {column}u;");
            line!(finish, 4, "    let done = o_{i};");
            line!(finish, 4, "    coopStoreT(done, &scores[to], SCORE_PITCH);");
            line!(finish, 4, "}}");
        }
        line!(finish, 4, "workgroupBarrier();");
        line!(finish, 4, "for (var i = local; i < 32u * {width}u; i += THREADS) {{");
        line!(finish, 4, "    let r = i / {width}u;");
        line!(finish, 4, "    if (first + r < length) {{");
        line!(
            finish,
            4,
            "        let to = (start + first + r) * p.y_stride + head + {}u + i % {width}u;",
            chunk * 64
        );
        line!(finish, 4, "        y[to] = E(scores[r * SCORE_PITCH + i % {width}u] * factors[r]);");
        line!(finish, 4, "    }}");
        line!(finish, 4, "}}");
    }
    let pitch = value_pitch(tile, dim);
    let values = [
        ("T", number(tile)),
        ("DIM", number(dim)),
        ("DOWN", number(down)),
        ("LANES", number(threads / QUERIES as u32)),
        ("THREADS", number(threads)),
        ("TILE", number(tile * tile)),
        ("SCORE_PITCH", number(SCORE_PITCH)),
        ("SCORE_VALUES", number(QUERIES as u32 * SCORE_PITCH)),
        ("WEIGHT_PITCH", number(WEIGHT_PITCH)),
        ("WEIGHT_VALUES", number(QUERIES as u32 * WEIGHT_PITCH)),
        ("UNIT", number(unit)),
        ("X", if form.vectors { "vec4<E>".into() } else { "E".into() }),
        ("VALUE_PITCH", number(pitch / unit)),
        ("VALUES", number(KEYS as u32 * pitch / unit)),
        ("QUERIES", queries),
        ("SCORES", scores),
        ("ZERO", zero),
        ("MULTIPLY", multiply),
        ("FINISH", finish),
    ];
    fill(include_str!("kernels/attention_cooperative.wgsl"), &values)
}
