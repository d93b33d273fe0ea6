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

/// How the sums of a cooperative GEMM are spread: a subgroup holds `down x across` tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Rows and columns of a cooperative matrix.
    pub(super) tile: u32,
    pub(super) down: u32,
    pub(super) across: u32,
    /// Subgroups of a workgroup, one below the other and side by side.
    pub(super) subgroups: (u32, u32),
    /// How the operands go through workgroup memory; `None`: they do not.
    pub(super) stage: Option<Stage>,
}

/// The staging of a GEMM's operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stage {
    /// Columns of the operands at a time.
    pub(super) step: u32,
    /// With two, a step is written while the one before it is multiplied.
    pub(super) buffers: u32,
    /// Tiles of a row of tiles that go through each subgroup's strip to the epilogue at a time.
    pub(super) strip: u32,
}

impl Tiling {
    /// For batches that fill the device; staged where there is memory for it.
    pub(super) fn large(target: Target, tile: u32, staged: bool, depth: usize) -> Self {
        let direct = Self { tile, down: 4, across: 4, subgroups: (2, 2), stage: None };
        let staged = LARGE_STAGES
            .into_iter()
            .filter(|stage| staged && depth.is_multiple_of(stage.step as usize));
        staged
            .map(|stage| Self { down: 2, subgroups: (4, 2), stage: Some(stage), ..direct })
            .find(|tiling| tiling.fits(target))
            .unwrap_or(direct)
    }

    /// Whether the device has the memory, and the lanes to finish whole rows of a strip.
    fn fits(self, target: Target) -> bool {
        let whole = |stage: Stage| {
            let quads = stage.strip * self.tile / 4;
            target.lanes.is_multiple_of(quads) && (quads * self.tile).is_multiple_of(target.lanes)
        };
        self.workgroup_bytes(target.element) <= target.memory && self.stage.is_none_or(whole)
    }

    /// For batches that do not: less work for each workgroup.
    pub(super) fn small(tile: u32, staged: bool) -> Self {
        let stage = staged.then_some(Stage { step: 32, buffers: 1, strip: 2 });
        Self { tile, down: 2, across: 2, subgroups: (2, 2), stage }
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
        let all = self.all_subgroups() * self.tile;
        match self.stage {
            None => 4 * all * self.across * self.tile,
            Some(stage) => {
                let lines = stage.buffers * (self.rows() + self.columns());
                let staged = lines * (stage.step + ROW_PAD) * element.bytes() as u32;
                16 * all * stage.strip_pitch(self.tile) + staged
            }
        }
    }
}

/// How a large GEMM is staged, the faster ways first (`tune.rs` compares them).
const LARGE_STAGES: [Stage; 2] =
    [Stage { step: 64, buffers: 1, strip: 1 }, Stage { step: 32, buffers: 1, strip: 2 }];

impl Stage {
    /// Vectors of four from one row of the strip to the next: the pad spreads a matrix's rows over
    /// the memory's banks.
    fn strip_pitch(self, tile: u32) -> u32 {
        self.strip * tile / 4 + 2
    }
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
/// Subgroups of the cooperative attention, each with a tile of queries.
pub(super) const ATTENTION_SUBGROUPS: u32 = 4;
/// Keys that the cooperative attention takes at a time.
const KEYS: usize = 64;
/// Elements from one row of its scores and weights to the next, with pads that spread a tile's rows
/// over the memory's banks.
const SCORE_PITCH: u32 = KEYS as u32 + 8;
const WEIGHT_PITCH: u32 = KEYS as u32 + ROW_PAD;
/// Elements between the rows of matrices in workgroup memory, for the same reason.
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

/// The cooperative attention's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CooperativeAttention {
    pub(super) tile: u32,
    pub(super) head_dim: usize,
    /// Whether memory is read in vectors of four, which Metal's matrices cannot be loaded from.
    pub(super) vectors: bool,
}

/// Whether the cooperative attention can take such heads: in whole tiles of either size, with a
/// whole number of lanes for each row of a tile, and in so much workgroup memory.
pub(super) fn attention_fits(target: Target, tile: u32, head_dim: usize) -> bool {
    let memory = AttentionMemory::of(tile, head_dim);
    let bytes = 4 * (tile * tile + memory.scores)
        + target.element.bytes() as u32 * (memory.keys + memory.values);
    head_dim.is_multiple_of(16)
        && target.lanes.is_multiple_of(tile)
        && (target.lanes / tile).is_power_of_two()
        && bytes <= target.memory
}

/// Collects unrolled lines. Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $indent:literal, $($argument:tt)*) => {{
        $text.push_str(&" ".repeat($indent));
        let _ = writeln!($text, $($argument)*);
    }};
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
        Kernel::Norm { in_place, held } => text.push_str(&norm(in_place, held)),
        Kernel::Gemm { epilogue, tiling } => {
            let stage = tiling.and_then(|tiling| tiling.stage);
            let (y, finish) = epilogue_text(epilogue, stage.is_some());
            text.push_str(&finish);
            let body = match tiling {
                None => include_str!("kernels/gemm_plain.wgsl").to_owned(),
                Some(tiling) => match tiling.stage {
                    Some(stage) => gemm_staged(tiling, stage, epilogue, target.lanes),
                    None => gemm_cooperative(tiling, target.lanes),
                },
            };
            text.push_str(&fill(&body, &[("Y", y.to_owned())]));
        }
        Kernel::Attention { relative, cooperative } => {
            let plain = include_str!("kernels/attention_plain.wgsl");
            let (body, score) = match cooperative {
                None => (plain.to_owned(), plain_score(relative)),
                Some(form) => (attention_cooperative(form, target.lanes), plain_score(relative)),
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

fn gemm_staged(tiling: Tiling, stage: Stage, epilogue: Epilogue, lanes: u32) -> String {
    let Tiling { tile, down, across, .. } = tiling;
    let Stage { step, buffers, .. } = stage;
    let strip_pitch = stage.strip_pitch(tile);
    let threads = tiling.all_subgroups() * lanes;
    let quads = step / 4;
    let pitch = (step + ROW_PAD) / 4;
    let tile_quads = tile * tile / 4;
    let (mut zero, mut places, mut load, mut store, mut multiply) =
        (String::new(), String::new(), String::new(), String::new(), String::new());
    for (i, j) in tiles(down, across) {
        line!(zero, 4, "var s_{i}_{j} = coopLoadT<Sums>(&strip[0], T / 4u);");
    }
    for i in 0..tiling.rows() * quads / threads {
        line!(places, 4, "let x_row_{i} = (local + {}u) / {quads}u;", i * threads);
        line!(places, 4, "let x_quad_{i} = (local + {}u) % {quads}u;", i * threads);
        line!(places, 4, "let x_at_{i} = x_base + x_row_{i} * (p.x_stride / 4u) + x_quad_{i};");
        line!(places, 4, "let x_to_{i} = x_row_{i} * PITCH + x_quad_{i};");
        line!(places, 4, "var x_{i} = x[x_at_{i}];");
        line!(store, 8, "rows[rows_to + x_to_{i}] = x_{i};");
        line!(load, 8, "x_{i} = x[x_at_{i} + next / 4u];");
    }
    // A row of W's tiles is `depth * tile` long; a step takes `step / tile` tiles of it. In
    // workgroup memory a feature's step lies in one row, as that of a row of x does.
    let line_quads = step / tile * tile_quads;
    for i in 0..tiling.columns() * quads / threads {
        line!(places, 4, "let w_line_{i} = (local + {}u) / {line_quads}u;", i * threads);
        line!(places, 4, "let w_quad_{i} = (local + {}u) % {line_quads}u;", i * threads);
        line!(places, 4, "let w_at_{i} = w_base + w_line_{i} * T * (depth / 4u) + w_quad_{i};");
        line!(
            places,
            4,
            "let w_to_{i} = (w_line_{i} * T + w_quad_{i} % {tile_quads}u / (T / 4u)) * PITCH + \
             w_quad_{i} / {tile_quads}u * (T / 4u) + w_quad_{i} % (T / 4u);"
        );
        line!(places, 4, "var w_{i} = weight[w_at_{i}];");
        line!(store, 8, "features[features_to + w_to_{i}] = w_{i};");
        line!(load, 8, "w_{i} = weight[w_at_{i} + next * T / 4u];");
    }
    for k in 0..step / tile {
        let column = k * tile / 4;
        for i in 0..down {
            line!(
                multiply,
                8,
                "let l_at_{k}_{i} = rows_from + (down * {down}u + {i}u) * T * PITCH + {column}u;"
            );
            line!(multiply, 8, "let l_{k}_{i} = coopLoadT<Rows>(&rows[l_at_{k}_{i}], PITCH);");
        }
        for j in 0..across {
            line!(
                multiply,
                8,
                "let r_at_{k}_{j} = features_from + (across * {across}u + {j}u) * T * PITCH + \
                 {column}u;"
            );
            line!(
                multiply,
                8,
                "let r_{k}_{j} = coopLoad<Features>(&features[r_at_{k}_{j}], PITCH);"
            );
        }
        for (i, j) in tiles(down, across) {
            line!(multiply, 8, "s_{i}_{j} = coopMultiplyAdd(l_{k}_{i}, r_{k}_{j}, s_{i}_{j});");
        }
    }
    // With one buffer, all must have read a step before the next one takes its place.
    let before_store = if buffers == 1 { "        workgroupBarrier();" } else { "" };
    let (rows_buffer, features_buffer) = (tiling.rows() * pitch, tiling.columns() * pitch);
    // As products of constants, so that the compiler can tell how the places are aligned.
    let buffer = |which: &str, size: u32| match buffers {
        1 => "0u".to_owned(),
        _ => format!("{which} * {size}u"),
    };
    let values = [
        ("T", number(tile)),
        ("STEP", number(step)),
        ("PITCH", number(pitch)),
        ("STRIP_PITCH", number(strip_pitch)),
        ("ROWS", number(tiling.rows())),
        ("COLUMNS", number(tiling.columns())),
        ("ROW_QUADS", number(buffers * rows_buffer)),
        ("FEATURE_QUADS", number(buffers * features_buffer)),
        ("ROWS_FROM", buffer("turn", rows_buffer)),
        ("FEATURES_FROM", buffer("turn", features_buffer)),
        ("ROWS_TO", buffer("(1u - turn)", rows_buffer)),
        ("FEATURES_TO", buffer("(1u - turn)", features_buffer)),
        ("DOWN", number(down)),
        ("SUBGROUPS_DOWN", number(tiling.subgroups.0)),
        ("SUBGROUPS_ACROSS", number(tiling.subgroups.1)),
        ("WIDTH", number(across * tile)),
        ("STRIP", number(tiling.all_subgroups() * tile * strip_pitch)),
        ("THREADS", number(threads)),
        ("ZERO", zero),
        ("PLACES", places),
        ("STORE_STEP", store),
        ("LOAD_STEP", load),
        ("MULTIPLY", multiply),
        ("BEFORE_STORE", before_store.to_owned()),
        (
            "FINISH",
            finish_staged_sums(tiling, stage.strip, epilogue == Epilogue::Accumulate, lanes),
        ),
    ];
    fill(include_str!("kernels/gemm_staged.wgsl"), &values)
}

/// As [`finish_sums`], a few tiles of a row of tiles at a time, after all that the epilogue reads
/// from memory was asked for.
fn finish_staged_sums(tiling: Tiling, tiles: u32, accumulate: bool, lanes: u32) -> String {
    let Tiling { tile, down, across, .. } = tiling;
    let quads = tiles * tile / 4;
    // Rows that the subgroup takes at a time, a lane four columns.
    let lines = lanes / quads;
    let mut finish = String::new();
    line!(finish, 4, "let line = lane / {quads}u;");
    line!(finish, 4, "let quad = lane % {quads}u;");
    let strips = || (0..across).step_by(tiles as usize);
    for from in strips() {
        line!(finish, 4, "let column_{from} = column + {}u + quad * 4u;", from * tile);
        line!(finish, 4, "let bias_{from} = bias[column_{from} / 4u];");
    }
    let each = || {
        (0..down).flat_map(move |i| {
            strips().flat_map(move |from| (0..tile / lines).map(move |n| (i, from, n)))
        })
    };
    for (i, from, n) in each().filter(|_| accumulate) {
        line!(
            finish,
            4,
            "let was_{i}_{from}_{n} = \
             y[((row + {}u + line) * p.y_stride + column_{from}) / 4u];",
            i * tile + n * lines
        );
    }
    for (i, from, n) in each() {
        if n == 0 {
            if (i, from) != (0, 0) {
                line!(finish, 4, "workgroupBarrier();");
            }
            for j in from..from + tiles {
                line!(finish, 4, "let to_{i}_{j} = mine + {}u;", (j - from) * tile / 4);
                line!(finish, 4, "let done_{i}_{j} = s_{i}_{j};");
                line!(finish, 4, "coopStoreT(done_{i}_{j}, &strip[to_{i}_{j}], STRIP_PITCH);");
            }
            line!(finish, 4, "workgroupBarrier();");
        }
        let sums = format!("strip[mine + ({}u + line) * STRIP_PITCH + quad]", n * lines);
        let was = match accumulate {
            true => format!(" + vec4<f32>(was_{i}_{from}_{n})"),
            false => String::new(),
        };
        let row = i * tile + n * lines;
        line!(finish, 4, "finish({sums} + bias_{from}{was}, row + {row}u + line, column_{from});");
    }
    finish
}

fn tiles(down: u32, across: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..down).flat_map(move |i| (0..across).map(move |j| (i, j)))
}

/// How a lane reads four scores and writes four weights; the second where memory is in vectors.
const ACCESS: [&str; 2] = [
    "fn scores4(row: u32, column: u32) -> vec4<f32> {
    let at = row * SCORE_PITCH + column;
    return vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
}

fn put_weights(row: u32, column: u32, weight: vec4<f32>) {
    let at = row * WEIGHT_PITCH + column;
    keys[at] = E(weight.x);
    keys[at + 1u] = E(weight.y);
    keys[at + 2u] = E(weight.z);
    keys[at + 3u] = E(weight.w);
}
",
    "fn scores4(row: u32, column: u32) -> vec4<f32> {
    return scores[row * SCORE_PITCH + column / 4u];
}

fn put_weights(row: u32, column: u32, weight: vec4<f32>) {
    keys[row * WEIGHT_PITCH + column / 4u] = vec4<E>(weight);
}
",
];

fn attention_cooperative(form: CooperativeAttention, lanes: u32) -> String {
    let (tile, dim) = (form.tile, form.head_dim as u32);
    // Elements of a unit of memory.
    let unit = if form.vectors { 4 } else { 1 };
    let threads = ATTENTION_SUBGROUPS * lanes;
    let row_lanes = lanes / tile;
    let column_tiles = dim / tile;
    let (mut queries, mut scores) = (String::new(), String::new());
    let (mut zero, mut multiply, mut finish) = (String::new(), String::new(), String::new());
    for d in 0..column_tiles {
        let at = d * tile / unit;
        line!(queries, 4, "let q_{d} = coopLoadT<Left>(&x[query_at + {at}u], stride);");
    }
    for i in 0..KEYS as u32 / tile {
        line!(scores, 8, "var s_{i} = coopLoadT<Sums>(&zeros[0], T / {unit}u);");
        for d in 0..column_tiles {
            line!(
                scores,
                8,
                "let k_{i}_{d} = coopLoad<Right>(&keys[{}u * PITCH + {}u], PITCH);",
                i * tile,
                d * tile / unit
            );
            line!(scores, 8, "s_{i} = coopMultiplyAdd(q_{d}, k_{i}_{d}, s_{i});");
        }
        line!(scores, 8, "let score_at_{i} = mine * SCORE_PITCH + {}u;", i * tile / unit);
        line!(scores, 8, "let scored_{i} = s_{i};");
        line!(scores, 8, "coopStoreT(scored_{i}, &scores[score_at_{i}], SCORE_PITCH);");
    }
    for j in 0..column_tiles {
        line!(zero, 4, "var o_{j} = coopLoadT<Sums>(&zeros[0], T / {unit}u);");
        let at = j * tile / unit;
        line!(multiply, 12, "let v_{j} = coopLoadT<Right>(&values[value_at + {at}u], PITCH);");
        line!(multiply, 12, "o_{j} = coopMultiplyAdd(l, v_{j}, o_{j});");
    }
    let stage = AttentionStaging { threads, head: dim / unit, unrolled: form.vectors };
    // A lane's part of its row: every so manyth four of the keys.
    let (mut read, mut largest, mut weights) = (String::new(), String::new(), String::new());
    for n in 0..KEYS as u32 / (4 * row_lanes) {
        let first = n * 4 * row_lanes;
        line!(read, 8, "let c_{n} = part * 4u + {first}u;");
        line!(read, 8, "let dot_{n} = score(scores4(row, c_{n}), group.y, query, block + c_{n});");
        line!(read, 8, "let p_{n} = masked(dot_{n}, visible(query, block + c_{n}, high));");
        line!(largest, 12, "poison = max(poison, largest_bits(p_{n}));");
        line!(largest, 12, "most = max(most, largest(p_{n}));");
        line!(weights, 8, "let w_{n} = exp(p_{n} - most);");
        line!(weights, 8, "total += w_{n}.x + w_{n}.y + w_{n}.z + w_{n}.w;");
        line!(weights, 8, "put_weights(row, c_{n}, w_{n});");
    }
    // What the lanes of a row found, each in its part of the keys.
    let (mut share_most, mut share_total) = (String::new(), String::new());
    for step in (0..row_lanes.ilog2()).map(|bit| 1u32 << bit) {
        line!(share_most, 8, "most = max(most, subgroupShuffleXor(most, {step}u));");
        line!(share_total, 4, "total += subgroupShuffleXor(total, {step}u);");
        line!(share_total, 4, "poison = max(poison, subgroupShuffleXor(poison, {step}u));");
    }
    for from in (0..dim).step_by(KEYS) {
        let width = (dim - from).min(KEYS as u32);
        if from > 0 {
            line!(finish, 4, "workgroupBarrier();");
        }
        for j in from / tile..(from + width) / tile {
            let at = (j * tile - from) / unit;
            line!(finish, 4, "let to_{j} = mine * SCORE_PITCH + {at}u;");
            line!(finish, 4, "let done_{j} = o_{j};");
            line!(finish, 4, "coopStoreT(done_{j}, &scores[to_{j}], SCORE_PITCH);");
        }
        line!(finish, 4, "workgroupBarrier();");
        line!(finish, 4, "if (query < length) {{");
        line!(
            finish,
            4,
            "    let to = ((start + query) * p.y_stride + group.y * DIM + {from}u) / 4u;"
        );
        line!(finish, 4, "    for (var c = part * 4u; c < {width}u; c += 4u * LANES) {{");
        line!(finish, 4, "        y[to + c / 4u] = vec4<E>(scores4(row, c) * factor);");
        line!(finish, 4, "    }}");
        line!(finish, 4, "}}");
    }
    let of_e = if form.vectors { "vec4<E>" } else { "E" };
    let of_f32 = if form.vectors { "vec4<f32>" } else { "f32" };
    let memory = AttentionMemory::of(tile, form.head_dim);
    let values = [
        ("T", number(tile)),
        ("DIM", number(dim)),
        ("QUERIES_OF_ALL", number(ATTENTION_SUBGROUPS * tile)),
        ("LANES", number(row_lanes)),
        ("THREADS", number(threads)),
        ("UNIT", number(unit)),
        ("HEAD", number(dim / unit)),
        ("PITCH", number((dim + ROW_PAD) / unit)),
        ("WEIGHT_PITCH", number(WEIGHT_PITCH / unit)),
        ("SCORE_PITCH", number(SCORE_PITCH / unit)),
        ("X", of_e.into()),
        ("S", of_f32.into()),
        ("ZEROS", number(tile * tile / unit)),
        ("SCORE_UNITS", number(memory.scores / unit)),
        ("KEY_UNITS", number(memory.keys / unit)),
        ("VALUE_UNITS", number(memory.values / unit)),
        ("QUERIES", queries),
        ("SCORES", scores),
        ("ZERO", zero),
        ("STAGE_KEYS", stage.text(false)),
        ("STAGE_BOTH", stage.text(true)),
        ("READ", read),
        ("LARGEST", largest),
        ("WEIGHTS", weights),
        ("SHARE_MOST", share_most),
        ("SHARE_TOTAL", share_total),
        ("MULTIPLY", multiply),
        ("FINISH", finish),
        ("ACCESS", ACCESS[usize::from(form.vectors)].into()),
    ];
    fill(include_str!("kernels/attention_cooperative.wgsl"), &values)
}

/// How 64 keys, and values, get to workgroup memory.
struct AttentionStaging {
    threads: u32,
    /// Units of a head's row.
    head: u32,
    /// All loads before the first store, or a loop.
    unrolled: bool,
}

impl AttentionStaging {
    fn text(&self, values: bool) -> String {
        let units = KEYS as u32 * self.head;
        let zero = if self.unrolled { "vec4<E>" } else { "E" };
        let (mut load, mut store) = (String::new(), String::new());
        let count = units / self.threads;
        let mut one = |n: &str, index: &str| {
            line!(load, 8, "let line_{n} = ({index}) / HEAD;");
            line!(load, 8, "let place_{n} = ({index}) % HEAD;");
            line!(load, 8, "let from_{n} = key_at + line_{n} * stride + place_{n};");
            line!(load, 8, "let key_{n} = x[from_{n}];");
            line!(store, 8, "keys[line_{n} * PITCH + place_{n}] = key_{n};");
            if values {
                line!(load, 8, "let value_{n} = x[from_{n} + context];");
                line!(
                    store,
                    8,
                    "values[line_{n} * PITCH + place_{n}] = \
                     select({zero}(), value_{n}, block + line_{n} < high);"
                );
            }
        };
        if self.unrolled && units.is_multiple_of(self.threads) {
            (0..count).for_each(|n| one(&n.to_string(), &format!("local + {}u", n * self.threads)));
            return load + &store;
        }
        one("i", "i");
        format!(
            "        for (var i = local; i < {units}u; i += THREADS) {{\n{load}{store}        }}\n"
        )
    }
}

/// The elements of the cooperative attention's workgroup memory.
struct AttentionMemory {
    scores: u32,
    keys: u32,
    values: u32,
}

impl AttentionMemory {
    fn of(tile: u32, head_dim: usize) -> Self {
        let rows = ATTENTION_SUBGROUPS * tile;
        let lines = KEYS as u32 * (head_dim as u32 + ROW_PAD);
        Self { scores: rows * SCORE_PITCH, keys: lines.max(rows * WEIGHT_PITCH), values: lines }
    }
}
