//! The cooperative attention's text: keys and values staged for four subgroups, each with a tile
//! of queries.

use std::fmt::Write;

use super::{ROW_PAD, Target, fill, number};

/// Subgroups of the cooperative attention, each with a tile of queries.
pub(in super::super) const SUBGROUPS: u32 = 4;
/// Keys that the cooperative attention takes at a time.
const KEYS: usize = 64;
/// Elements from one row of its scores and weights to the next, with pads that spread a tile's rows
/// over the memory's banks.
const SCORE_PITCH: u32 = KEYS as u32 + 8;
const WEIGHT_PITCH: u32 = KEYS as u32 + ROW_PAD;

/// The cooperative attention's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct CooperativeAttention {
    pub(in super::super) tile: u32,
    pub(in super::super) head_dim: usize,
    /// Whether memory is read in vectors of four, which Metal's matrices cannot be loaded from.
    pub(in super::super) vectors: bool,
}

/// Whether the cooperative attention can take such heads: in whole tiles of either size, with a
/// whole number of lanes for each row of a tile, and in so much workgroup memory.
pub(in super::super) fn fits(target: Target, tile: u32, head_dim: usize) -> bool {
    let memory = AttentionMemory::of(tile, head_dim);
    let bytes = 4 * (tile * tile + memory.scores)
        + target.element.bytes() as u32 * (memory.keys + memory.values);
    head_dim.is_multiple_of(16)
        && target.lanes.is_multiple_of(tile)
        && (target.lanes / tile).is_power_of_two()
        && bytes <= target.memory
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

pub(super) fn text(form: CooperativeAttention, lanes: u32) -> String {
    let (tile, dim) = (form.tile, form.head_dim as u32);
    // Elements of a unit of memory.
    let unit = if form.vectors { 4 } else { 1 };
    let threads = SUBGROUPS * lanes;
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
        ("QUERIES_OF_ALL", number(SUBGROUPS * tile)),
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
    fill(include_str!("../kernels/attention_cooperative.wgsl"), &values)
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
        let rows = SUBGROUPS * tile;
        let lines = KEYS as u32 * (head_dim as u32 + ROW_PAD);
        Self { scores: rows * SCORE_PITCH, keys: lines.max(rows * WEIGHT_PITCH), values: lines }
    }
}
