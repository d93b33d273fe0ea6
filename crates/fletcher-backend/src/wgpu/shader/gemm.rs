//! The cooperative GEMM's text: tiles of sums in registers, the operands straight from memory or
//! staged, and the sums through a strip of workgroup memory to the epilogue.

use std::fmt::Write;

use fletcher_core::backend::Epilogue;

use super::{Element, ROW_PAD, Target, fill, number};

/// How the sums of a cooperative GEMM are spread: a subgroup holds `down x across` tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Tiling {
    /// Rows and columns of a cooperative matrix.
    pub(in super::super) tile: u32,
    pub(in super::super) down: u32,
    pub(in super::super) across: u32,
    /// Subgroups of a workgroup, one below the other and side by side.
    pub(in super::super) subgroups: (u32, u32),
    /// How the operands go through workgroup memory; `None`: they do not.
    pub(in super::super) stage: Option<Stage>,
}

/// The staging of a GEMM's operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Stage {
    /// Columns of the operands at a time.
    pub(in super::super) step: u32,
    /// With two, a step is written while the one before it is multiplied.
    pub(in super::super) buffers: u32,
    /// Tiles of a row of tiles that go through each subgroup's strip to the epilogue at a time.
    pub(in super::super) strip: u32,
}

impl Tiling {
    /// For batches that fill the device; staged where there is memory for it.
    pub(in super::super) fn large(target: Target, tile: u32, staged: bool, depth: usize) -> Self {
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
    pub(in super::super) fn fits(self, target: Target) -> bool {
        let whole = |stage: Stage| {
            let quads = stage.strip * self.tile / 4;
            target.lanes.is_multiple_of(quads) && (quads * self.tile).is_multiple_of(target.lanes)
        };
        self.workgroup_bytes(target.element) <= target.memory && self.stage.is_none_or(whole)
    }

    /// For batches that do not: less work for each workgroup.
    pub(in super::super) fn small(tile: u32, staged: bool) -> Self {
        let stage = staged.then_some(Stage { step: 32, buffers: 1, strip: 2 });
        Self { tile, down: 2, across: 2, subgroups: (2, 2), stage }
    }

    /// Rows of one workgroup.
    pub(in super::super) fn rows(self) -> u32 {
        self.subgroups.0 * self.down * self.tile
    }

    /// Features of one workgroup.
    pub(in super::super) fn columns(self) -> u32 {
        self.subgroups.1 * self.across * self.tile
    }

    fn all_subgroups(self) -> u32 {
        self.subgroups.0 * self.subgroups.1
    }

    /// Bytes of workgroup memory that the kernel needs.
    pub(in super::super) fn workgroup_bytes(self, element: Element) -> u32 {
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

pub(super) fn cooperative(tiling: Tiling, lanes: u32) -> String {
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
    fill(include_str!("../kernels/gemm_cooperative.wgsl"), &values)
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

pub(super) fn staged(tiling: Tiling, stage: Stage, epilogue: Epilogue, lanes: u32) -> String {
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
    fill(include_str!("../kernels/gemm_staged.wgsl"), &values)
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
