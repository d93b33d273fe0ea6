//! Softmax attention of one sequence over itself, without a score matrix.
//!
//! For each head the keys are transposed into panels and the values copied side by side; then a
//! tile of queries meets all its keys: scores, softmax and weighted values stay in the scratch of
//! one tile, so memory grows with the length and not with its square. Each query has one
//! contiguous range of keys (window, causality), and a tile computes the union of its queries'
//! ranges, with zero probability outside of a query's own.

use std::ops::Range;

use crate::buffer::row_stride;
use crate::isa::{Lanes, TILE_VECTORS};
use crate::ops::activation::exp;
use crate::ops::gemm::check_rows;
use crate::ops::norm::{read, write};
use crate::ops::tile::{Heights, MAX_SUMS, Sums, Tile};

/// How a row of queries, keys and values is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads / kv_heads` query heads share one.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Columns of queries, then keys, then values.
    pub fn qkv_columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the result.
    pub fn context_columns(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// What is added to the scaled scores.
#[derive(Debug, Clone, Copy)]
pub enum AttentionBias<'a> {
    /// Nothing.
    None,
    /// A value by head and distance.
    Relative {
        /// `by_distance[head][key - query + positions - 1]`, `2 * positions - 1` values each.
        by_distance: &'a [Vec<f32>],
        /// Longest sequence that the tables cover.
        positions: usize,
    },
    /// `-slope[head] * |key - query|` (Press et al. 2022).
    Alibi {
        /// One per head.
        slopes: &'a [f32],
    },
}

/// The operands of attention over one sequence.
#[derive(Debug)]
pub struct Attention<'a> {
    /// How a row is divided.
    pub shape: AttentionShape,
    /// Length of the sequence.
    pub tokens: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// A query sees the keys at most this far away.
    pub window: Option<usize>,
    /// A query sees no later key.
    pub causal: bool,
    /// Added to the scores.
    pub bias: AttentionBias<'a>,
    /// `tokens` rows of [`AttentionShape::qkv_columns`] …
    pub qkv: &'a [f32],
    /// … that are this many elements apart.
    pub qkv_stride: usize,
    /// `tokens` rows of [`AttentionShape::context_columns`] …
    pub context: &'a mut [f32],
    /// … that are this many elements apart.
    pub context_stride: usize,
    /// As many elements as `Kernels::attention_scratch` says; their contents do not matter.
    pub scratch: &'a mut [f32],
}

impl Attention<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self, scratch: usize) {
        let shape = self.shape;
        assert!(shape.head_dim > 0 && shape.kv_heads > 0, "{shape:?}");
        assert!(shape.heads.is_multiple_of(shape.kv_heads), "uneven groups of heads: {shape:?}");
        check_rows(self.qkv, self.tokens, shape.qkv_columns(), self.qkv_stride);
        check_rows(self.context, self.tokens, shape.context_columns(), self.context_stride);
        assert!(self.scratch.len() >= scratch, "{} of {scratch}", self.scratch.len());
        match self.bias {
            AttentionBias::None => {}
            AttentionBias::Relative { by_distance, positions } => {
                assert!(self.tokens <= positions, "{} of {positions} positions", self.tokens);
                assert!(by_distance.len() >= shape.heads, "one table per head");
                let whole = |table: &Vec<f32>| table.len() + 1 >= 2 * positions;
                assert!(by_distance.iter().all(whole), "2 * positions - 1 distances");
            }
            AttentionBias::Alibi { slopes } => {
                assert!(slopes.len() >= shape.heads, "one slope per head");
            }
        }
    }

    /// The keys that a query sees: never none, because it always sees itself.
    #[inline(always)]
    fn keys(&self, query: usize) -> Range<usize> {
        let window = self.window.unwrap_or(self.tokens);
        let end = if self.causal { query + 1 } else { self.tokens };
        query.saturating_sub(window)..end.min(query.saturating_add(window).saturating_add(1))
    }
}

/// Where the parts of the scratch begin, in elements.
struct Scratch {
    values: usize,
    scores: usize,
    /// Distance between the rows of the scores: they have a vector to spare at their end.
    score_stride: usize,
    /// Columns of the copied values: the head's, padded to whole vectors.
    value_columns: usize,
    total: usize,
}

impl Scratch {
    #[inline(always)]
    fn new<L: Lanes>(head_dim: usize, tokens: usize) -> Self {
        let padded = tokens.next_multiple_of(L::WIDTH * TILE_VECTORS);
        let value_columns = head_dim.next_multiple_of(L::WIDTH);
        let score_stride = row_stride(padded + L::WIDTH);
        let values = padded * head_dim;
        let scores = (values + tokens * value_columns).next_multiple_of(16);
        let total = scores + L::TILE_ROWS * score_stride;
        Self { values, scores, score_stride, value_columns, total }
    }
}

/// Elements of scratch for a sequence of `tokens`.
pub(crate) fn scratch<L: Lanes>(head_dim: usize, tokens: usize) -> usize {
    Scratch::new::<L>(head_dim, tokens).total
}

/// Runs attention.
///
/// # Safety
/// The CPU has the instruction set of `L`, and [`Attention::check`] has passed with the size
/// given by [`scratch`].
#[inline(always)]
pub(crate) unsafe fn attention<L: Lanes>(a: &mut Attention<'_>) {
    let AttentionShape { heads, kv_heads, head_dim } = a.shape;
    let layout = Scratch::new::<L>(head_dim, a.tokens);
    // SAFETY: the offsets are inside the scratch, and the columns inside the rows.
    unsafe {
        let keys = a.scratch.as_mut_ptr();
        let head = Head {
            keys,
            values: keys.add(layout.values),
            scores: keys.add(layout.scores),
            layout: &layout,
        };
        for kv_head in 0..kv_heads {
            let key = a.qkv.as_ptr().add((heads + kv_head) * head_dim);
            pack_keys::<L>(a, key, head.keys);
            pack_values::<L>(a, key.add(kv_heads * head_dim), &head);
            let group = heads / kv_heads;
            for query_head in kv_head * group..(kv_head + 1) * group {
                attend::<L>(a, query_head, &head);
            }
        }
    }
}

/// One head's part of the scratch.
struct Head<'a> {
    /// Panels of `head_dim` rows, one column per key.
    keys: *mut f32,
    /// `tokens` rows of `layout.value_columns`.
    values: *mut f32,
    /// A tile's rows of `layout.score_stride`.
    scores: *mut f32,
    layout: &'a Scratch,
}

/// Transposes a head's keys into panels.
///
/// # Safety
/// The CPU has the instruction set of `L`; `from` leads to `tokens` rows of `head_dim` columns,
/// and `to` to whole panels for them.
#[inline(always)]
unsafe fn pack_keys<L: Lanes>(a: &Attention<'_>, from: *const f32, to: *mut f32) {
    let (dim, panel) = (a.shape.head_dim, L::WIDTH * TILE_VECTORS);
    let mut token = 0;
    while token < a.tokens {
        let rows = L::WIDTH.min(a.tokens - token);
        // SAFETY: rows token..token+rows and columns below dim exist; a panel has dim rows, and
        // the vector that starts at token is inside it.
        unsafe {
            let from = from.add(token * a.qkv_stride);
            let to = to.add(token / panel * panel * dim + token % panel);
            let whole = if rows == L::WIDTH { dim / 4 * 4 } else { 0 };
            for column in (0..whole).step_by(4) {
                for (i, values) in L::columns(from.add(column), a.qkv_stride).iter().enumerate() {
                    values.store(to.add((column + i) * panel));
                }
            }
            for column in whole..dim {
                for row in 0..L::WIDTH {
                    let present = row < rows;
                    *to.add(column * panel + row) =
                        if present { *from.add(row * a.qkv_stride + column) } else { 0.0 };
                }
            }
        }
        token += rows;
    }
}

/// Copies a head's values side by side, padded with zeros to whole vectors.
///
/// # Safety
/// The CPU has the instruction set of `L`; `from` leads to `tokens` rows of `head_dim` columns,
/// and `head.values` to as many of `value_columns`.
#[inline(always)]
unsafe fn pack_values<L: Lanes>(a: &Attention<'_>, from: *const f32, head: &Head<'_>) {
    let (dim, columns) = (a.shape.head_dim, head.layout.value_columns);
    for token in 0..a.tokens {
        let mut at = 0;
        while at < dim {
            let lanes = L::WIDTH.min(dim - at);
            // SAFETY: lanes at..at+lanes exist in the row; a whole vector does in the copy.
            unsafe {
                let values: L = read(from.add(token * a.qkv_stride + at), lanes);
                values.store(head.values.add(token * columns + at));
            }
            at += lanes;
        }
    }
}

/// Computes one head's context, tile of queries by tile of queries.
///
/// # Safety
/// The CPU has the instruction set of `L`; the head's keys and values are packed.
#[inline(always)]
unsafe fn attend<L: Lanes>(a: &mut Attention<'_>, query_head: usize, head: &Head<'_>) {
    let panel = L::WIDTH * TILE_VECTORS;
    let (dim, stride) = (a.shape.head_dim, head.layout.score_stride);
    let (mut query, mut heights) = (0, Heights::new::<L>(a.tokens));
    while let Some(rows) = heights.next() {
        // Ranges move with the query, so the first begins first and the last ends last.
        let seen = a.keys(query).start..a.keys(query + rows - 1).end;
        // SAFETY: rows query..query+rows exist; panels up to the last seen key are packed, and a
        // row of scores has room for all of them.
        unsafe {
            let mut first = seen.start / panel * panel;
            while first < seen.end {
                L::tile(&Tile {
                    rows,
                    vectors: (seen.end - first).div_ceil(L::WIDTH).min(TILE_VECTORS),
                    k: dim,
                    a: a.qkv.as_ptr().add(query * a.qkv_stride + query_head * dim),
                    a_stride: a.qkv_stride,
                    b: head.keys.add(first * dim),
                    b_stride: panel,
                    out: head.scores.add(first),
                    out_stride: stride,
                });
                first += panel;
            }
            let mut sums = [0.0; 16];
            for (row, sum) in sums.iter_mut().enumerate().take(rows) {
                let scores = head.scores.add(row * stride);
                *sum = softmax::<L>(a, query_head, query + row, scores);
                let own = a.keys(query + row);
                std::slice::from_raw_parts_mut(scores.add(seen.start), own.start - seen.start)
                    .fill(0.0);
                std::slice::from_raw_parts_mut(scores.add(own.end), seen.end - own.end).fill(0.0);
            }
            weigh::<L>(a, head, Queries { head: query_head, first: query, rows, seen, sums });
        }
        query += rows;
    }
}

/// Turns a row of raw scores into unnormalised probabilities and returns their sum.
///
/// # Safety
/// The CPU has the instruction set of `L`; `scores` has room for all keys and a vector more.
#[inline(always)]
unsafe fn softmax<L: Lanes>(a: &Attention<'_>, head: usize, query: usize, scores: *mut f32) -> f32 {
    let keys = a.keys(query);
    // SAFETY: every vector starts inside the keys, so it ends inside the row's spare vector.
    unsafe {
        // Vectors may pass the end: what they find there must not count.
        let nothing = L::splat(f32::NEG_INFINITY);
        nothing.store(scores.add(keys.end));
        let scale = match add_bias::<L>(a, head, query, scores) {
            true => 1.0,
            false => a.scale,
        };
        let (mut greatest, mut at) = (nothing, keys.start);
        while at < keys.end {
            greatest = L::load(scores.add(at)).max(greatest);
            at += L::WIDTH;
        }
        // Scale and shift in one step: exp(scale * score - scale * max).
        let shift = L::splat(-scale * greatest.greatest());
        let scale = L::splat(scale);
        let (mut total, mut at) = (L::splat(0.0), keys.start);
        while at < keys.end {
            let probability = exp(L::load(scores.add(at)).fma(scale, shift));
            probability.store(scores.add(at));
            total = total.add(probability);
            at += L::WIDTH;
        }
        total.sum()
    }
}

/// Scales a row of scores and adds its bias; returns whether there was one to add.
///
/// # Safety
/// As [`softmax`].
#[inline(always)]
unsafe fn add_bias<L: Lanes>(
    a: &Attention<'_>,
    head: usize,
    query: usize,
    scores: *mut f32,
) -> bool {
    const COUNT: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    let keys = a.keys(query);
    let scale = a.scale;
    let mut at = keys.start;
    // SAFETY: vectors start inside the keys and are cut where the tables end; distances of keys
    // below `positions` are inside the tables.
    unsafe {
        let add = |at: usize, bias: L| {
            let slot = scores.add(at);
            L::load(slot).fma(L::splat(scale), bias).store(slot);
        };
        match a.bias {
            AttentionBias::None => return false,
            AttentionBias::Relative { by_distance, positions } => {
                let table = by_distance[head].as_ptr().add(positions - 1 - query);
                while at < keys.end {
                    add(at, read(table.add(at), L::WIDTH.min(keys.end - at)));
                    at += L::WIDTH;
                }
            }
            AttentionBias::Alibi { slopes } => {
                let slope = L::splat(-slopes[head]);
                while at < keys.end {
                    let distance = L::splat(at as f32 - query as f32).add(L::load(COUNT.as_ptr()));
                    add(at, distance.abs().mul(slope));
                    at += L::WIDTH;
                }
            }
        }
    }
    true
}

/// A tile of queries with its probabilities.
struct Queries {
    head: usize,
    first: usize,
    rows: usize,
    /// Keys that any of them sees.
    seen: Range<usize>,
    /// Sum of each row's probabilities.
    sums: [f32; 16],
}

/// Stores the values weighted by a tile's probabilities.
///
/// # Safety
/// The CPU has the instruction set of `L`; the head's values are packed and the tile's
/// probabilities are in the scratch.
#[inline(always)]
unsafe fn weigh<L: Lanes>(a: &mut Attention<'_>, head: &Head<'_>, q: Queries) {
    let panel = L::WIDTH * TILE_VECTORS;
    let (dim, columns) = (a.shape.head_dim, head.layout.value_columns);
    let mut sums = Sums([0.0; MAX_SUMS]);
    let mut first = 0;
    while first < dim {
        // SAFETY: the seen keys' probabilities and values exist; columns first.. are inside the
        // head, and partial stores keep to it.
        unsafe {
            L::tile(&Tile {
                rows: q.rows,
                vectors: (columns - first).div_ceil(L::WIDTH).min(TILE_VECTORS),
                k: q.seen.len(),
                a: head.scores.add(q.seen.start),
                a_stride: head.layout.score_stride,
                b: head.values.add(q.seen.start * columns + first),
                b_stride: columns,
                out: sums.0.as_mut_ptr(),
                out_stride: panel,
            });
            for row in 0..q.rows {
                let factor = L::splat(1.0 / q.sums[row]);
                let context = (q.first + row) * a.context_stride + q.head * dim;
                let mut at = first;
                while at < dim.min(first + panel) {
                    let lanes = L::WIDTH.min(dim - at);
                    let value = L::load(sums.0.as_ptr().add(row * panel + at - first));
                    write(value.mul(factor), a.context.as_mut_ptr().add(context + at), lanes);
                    at += L::WIDTH;
                }
            }
        }
        first += panel;
    }
}
