//! Softmax attention of one sequence over itself, without a score matrix.
//!
//! For each head the keys are transposed into panels and the values copied side by side; then a
//! tile of queries meets all its keys: scores, softmax and weighted values stay in the scratch of
//! one tile, so memory grows with the length and not with its square. Each query has one
//! contiguous range of keys (window, causality), and a tile computes the union of its queries'
//! ranges, with zero probability outside of a query's own.
//!
//! Everything is laid out in 32-bit words, as the matrix tile wants it: with bfloat16 a word holds
//! two columns of a key, or one column of two neighbouring keys' values, and the probabilities
//! are rounded to bfloat16; scores, softmax and sums stay in single precision.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
use std::marker::PhantomData;
use std::ops::Range;

use crate::buffer::row_stride;
use crate::isa::{Kernel, Lanes, TILE_VECTORS};
use crate::number::{Bf16, Element, Format};
use crate::ops::activation::exp2;
use crate::ops::gemm::check_rows;
use crate::ops::tile::{self, Heights, MAX_SUMS, Sums, Tile, Words};

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

/// Queries, keys and values to read and the context to write, in one format.
#[derive(Debug)]
pub enum AttentionRows<'a> {
    /// In single precision.
    F32 {
        /// `tokens` rows of [`AttentionShape::qkv_columns`].
        qkv: &'a [f32],
        /// A row of [`AttentionShape::context_columns`] for each query.
        context: &'a mut [f32],
    },
    /// In bfloat16.
    Bf16 {
        /// `tokens` rows of [`AttentionShape::qkv_columns`].
        qkv: &'a [Bf16],
        /// A row of [`AttentionShape::context_columns`] for each query.
        context: &'a mut [Bf16],
    },
}

/// The operands of attention over one sequence.
#[derive(Debug)]
pub struct Attention<'a> {
    /// How a row is divided.
    pub shape: AttentionShape,
    /// Length of the sequence.
    pub tokens: usize,
    /// The queries to answer; the first row of the context is the first one's.
    pub queries: Range<usize>,
    /// Multiplies the scores.
    pub scale: f32,
    /// A query sees the keys at most this far away.
    pub window: Option<usize>,
    /// A query sees no later key.
    pub causal: bool,
    /// Added to the scores.
    pub bias: AttentionBias<'a>,
    /// What is read and written.
    pub rows: AttentionRows<'a>,
    /// Elements from one row of queries, keys and values to the next.
    pub qkv_stride: usize,
    /// Elements from one row of the context to the next.
    pub context_stride: usize,
    /// As many elements as `Kernels::attention_scratch` says; their contents do not matter.
    pub scratch: &'a mut [f32],
}

impl AttentionRows<'_> {
    /// Their format.
    pub(crate) fn format(&self) -> Format {
        match self {
            AttentionRows::F32 { .. } => Format::F32,
            AttentionRows::Bf16 { .. } => Format::Bf16,
        }
    }
}

impl Attention<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self, scratch: usize) {
        let shape = self.shape;
        assert!(shape.head_dim > 0 && shape.kv_heads > 0, "{shape:?}");
        assert!(shape.heads.is_multiple_of(shape.kv_heads), "uneven groups of heads: {shape:?}");
        assert!(self.queries.end <= self.tokens, "{:?} of {}", self.queries, self.tokens);
        let (columns, outputs) = (shape.qkv_columns(), shape.context_columns());
        match &self.rows {
            AttentionRows::F32 { qkv, context } => {
                check_rows(qkv, self.tokens, columns, self.qkv_stride);
                check_rows(context, self.queries.len(), outputs, self.context_stride);
            }
            AttentionRows::Bf16 { qkv, context } => {
                check_rows(qkv, self.tokens, columns, self.qkv_stride);
                check_rows(context, self.queries.len(), outputs, self.context_stride);
            }
        }
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

/// Where the parts of the scratch begin, in words.
struct Scratch {
    /// Words of a key: the inner length of the scores.
    key_words: usize,
    values: usize,
    scores: usize,
    /// Distance between the rows of the scores: they have a vector to spare at their end.
    score_stride: usize,
    queries: usize,
    /// Columns of the copied values: the head's, padded to whole vectors.
    value_columns: usize,
    total: usize,
}

impl Scratch {
    #[inline(always)]
    fn new<L: Lanes>(format: Format, head_dim: usize, tokens: usize) -> Self {
        let padded = tokens.next_multiple_of(L::WIDTH * TILE_VECTORS);
        let key_words = head_dim.div_ceil(format.per_word());
        let value_columns = head_dim.next_multiple_of(L::WIDTH);
        let score_stride = row_stride::<f32>(padded + L::WIDTH);
        let values = padded * key_words;
        let pairs = tokens.div_ceil(format.per_word());
        let scores = (values + pairs * value_columns).next_multiple_of(16);
        let queries = scores + L::TILE_ROWS * score_stride;
        let total = queries + L::TILE_ROWS * key_words;
        Self { key_words, values, scores, score_stride, queries, value_columns, total }
    }
}

/// Words of scratch for a sequence of `tokens`.
pub(crate) fn scratch<L: Lanes>(format: Format, head_dim: usize, tokens: usize) -> usize {
    Scratch::new::<L>(format, head_dim, tokens).total
}

/// Runs attention.
///
/// # Safety
/// The CPU has the instruction set of `L`, and [`Attention::check`] has passed with the size
/// given by [`scratch`].
#[inline(always)]
pub(crate) unsafe fn attention<L: Lanes>(a: &mut Attention<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match &mut a.rows {
            AttentionRows::F32 { qkv, context } => {
                let (qkv, context) = (qkv.as_ptr(), context.as_mut_ptr());
                heads::<L, f32>(a, qkv, context);
            }
            AttentionRows::Bf16 { qkv, context } => {
                let (qkv, context) = (qkv.as_ptr(), context.as_mut_ptr());
                heads::<L, Bf16>(a, qkv, context);
            }
        }
    }
}

/// Takes one head after the other.
///
/// # Safety
/// As [`attention`]; the pointers lead to the first elements of the rows.
#[inline(always)]
unsafe fn heads<L: Lanes, E: Element>(a: &mut Attention<'_>, qkv: *const E, context: *mut E) {
    let AttentionShape { heads, kv_heads, head_dim } = a.shape;
    let layout = Scratch::new::<L>(E::FORMAT, head_dim, a.tokens);
    // SAFETY: the offsets are inside the scratch, and the columns inside the rows.
    unsafe {
        let keys = a.scratch.as_mut_ptr();
        for kv_head in 0..kv_heads {
            let key = qkv.add((heads + kv_head) * head_dim);
            let value = key.add(kv_heads * head_dim);
            // Words that are whole vectors are multiplied where they are.
            let in_place = E::FORMAT == Format::F32 && head_dim.is_multiple_of(L::WIDTH);
            let (values, value_stride) = match in_place {
                true => (value.cast(), a.qkv_stride),
                false => {
                    let copy = keys.add(layout.values);
                    pack_values::<L, E>(a, value, copy, &layout);
                    (copy.cast_const(), layout.value_columns)
                }
            };
            let head = Head {
                keys,
                values,
                value_stride,
                scores: keys.add(layout.scores),
                queries: keys.add(layout.queries),
                layout: &layout,
            };
            pack_keys::<L, E>(a, key, &head);
            let group = heads / kv_heads;
            for query_head in kv_head * group..(kv_head + 1) * group {
                let columns = query_head * head_dim;
                attend::<L, E>(a, query_head, &head, (qkv.add(columns), context.add(columns)));
            }
        }
    }
}

/// One head's part of the scratch.
struct Head<'a> {
    /// Panels of `layout.key_words` rows, one column per key.
    keys: *mut f32,
    /// A row for each token, or pair of tokens, padded to whole vectors …
    values: *const f32,
    /// … and this many words from the next.
    value_stride: usize,
    /// A tile's rows of `layout.score_stride`.
    scores: *mut f32,
    /// A tile's queries, where they have to be padded to whole words.
    queries: *mut f32,
    layout: &'a Scratch,
}

/// Elements `at..` of a row as a word; one behind its end is 0.
///
/// # Safety
/// `row` has `columns` elements, and `at < columns`.
#[inline(always)]
unsafe fn word<E: Element>(row: *const E, at: usize, columns: usize) -> f32 {
    // SAFETY: the caller guarantees the bounds; a word holds one f32 or two bfloat16.
    unsafe {
        if E::FORMAT == Format::F32 {
            return *row.add(at).cast::<f32>();
        }
        let half = |at: usize| match at < columns {
            true => u32::from(*row.add(at).cast::<u16>()),
            false => 0,
        };
        f32::from_bits(half(at) | half(at + 1) << 16)
    }
}

/// Transposes a head's keys into panels of words.
///
/// # Safety
/// The CPU has the instruction set of `L`; `from` leads to `tokens` rows of `head_dim` columns,
/// and `head.keys` to whole panels for them.
#[inline(always)]
unsafe fn pack_keys<L: Lanes, E: Element>(a: &Attention<'_>, from: *const E, head: &Head<'_>) {
    let (dim, panel) = (a.shape.head_dim, L::WIDTH * TILE_VECTORS);
    let (words, per_word) = (head.layout.key_words, E::FORMAT.per_word());
    // Rows of words: an odd number of halves from row to row has none.
    let regular = a.qkv_stride.is_multiple_of(per_word);
    let mut token = 0;
    while token < a.tokens {
        let rows = L::WIDTH.min(a.tokens - token);
        // SAFETY: rows token..token+rows and columns below dim exist; a panel has a row for each
        // word, and the vector that starts at token is inside it.
        unsafe {
            let from = from.add(token * a.qkv_stride);
            let to = head.keys.add(token / panel * panel * words + token % panel);
            let whole = if rows == L::WIDTH && regular { dim / per_word / 4 * 4 } else { 0 };
            for at in (0..whole).step_by(4) {
                let quads =
                    L::columns(from.add(at * per_word).cast::<f32>(), a.qkv_stride / per_word);
                for (i, values) in quads.iter().enumerate() {
                    values.store(to.add((at + i) * panel));
                }
            }
            for at in whole..words {
                for row in 0..L::WIDTH {
                    *to.add(at * panel + row) = match row < rows {
                        true => word(from.add(row * a.qkv_stride), at * per_word, dim),
                        false => 0.0,
                    };
                }
            }
        }
        token += rows;
    }
}

/// Copies a head's values, padded with zeros to whole vectors; pairs of tokens share words.
///
/// # Safety
/// The CPU has the instruction set of `L`; `from` leads to `tokens` rows of `head_dim` columns,
/// and `to` to as many of `value_columns`.
#[inline(always)]
unsafe fn pack_values<L: Lanes, E: Element>(
    a: &Attention<'_>,
    from: *const E,
    to: *mut f32,
    layout: &Scratch,
) {
    let (dim, columns) = (a.shape.head_dim, layout.value_columns);
    let per_word = E::FORMAT.per_word();
    for token in (0..a.tokens).step_by(per_word) {
        let mut at = 0;
        while at < dim {
            let lanes = L::WIDTH.min(dim - at);
            // SAFETY: lanes at..at+lanes exist in the row; a whole vector does in the copy.
            unsafe {
                let read = |token: usize| match token < a.tokens {
                    true => E::read::<L>(from.add(token * a.qkv_stride + at), lanes),
                    false => L::splat(0.0),
                };
                let values = match E::FORMAT {
                    Format::F32 => read(token),
                    _ => read(token).merge_halves(read(token + 1)),
                };
                values.store(to.add(token / per_word * columns + at));
            }
            at += lanes;
        }
    }
}

/// Computes one head's context, tile of queries by tile of queries.
///
/// # Safety
/// The CPU has the instruction set of `L`; the head's keys and values are packed; the pointers lead
/// to the head's columns of the first rows.
#[inline(always)]
unsafe fn attend<L: Lanes, E: Element>(
    a: &Attention<'_>,
    query_head: usize,
    head: &Head<'_>,
    (queries, context): (*const E, *mut E),
) {
    let panel = L::WIDTH * TILE_VECTORS;
    let (dim, stride) = (a.shape.head_dim, head.layout.score_stride);
    let (words, per_word) = (head.layout.key_words, E::FORMAT.per_word());
    let (mut query, mut heights) = (a.queries.start, Heights::new::<L>(a.queries.len()));
    while let Some(rows) = heights.next() {
        // Ranges move with the query, so the first begins first and the last ends last.
        let seen = a.keys(query).start..a.keys(query + rows - 1).end;
        // SAFETY: rows query..query+rows exist; panels up to the last seen key are packed, and a
        // row of scores has room for all of them.
        unsafe {
            let mut left = queries.add(query * a.qkv_stride).cast::<u8>();
            let mut left_stride = a.qkv_stride * size_of::<E>();
            if !dim.is_multiple_of(per_word) {
                for (row, at) in (0..rows).flat_map(|row| (0..words).map(move |at| (row, at))) {
                    let from = queries.add((query + row) * a.qkv_stride);
                    *head.queries.add(row * words + at) = word(from, at * per_word, dim);
                }
                left = head.queries.cast();
                left_stride = words * size_of::<f32>();
            }
            let mut first = seen.start / panel * panel;
            while first < seen.end {
                let scores = Tile {
                    rows,
                    vectors: (seen.end - first).div_ceil(L::WIDTH).min(TILE_VECTORS),
                    k: words,
                    a: left,
                    a_stride: left_stride,
                    b: head.keys.add(first * words),
                    b_stride: panel,
                    ahead: None,
                };
                let words = Words { to: head.scores.add(first), stride };
                tile::run::<L, _>(E::FORMAT, &scores, &words);
                first += panel;
            }
            // Whole words of keys: what is added to the range gets no probability.
            let start = seen.start / per_word * per_word;
            let seen = start..seen.end.next_multiple_of(per_word);
            let mut sums = [0.0; 16];
            let softmax = Softmax::<E> {
                attention: a,
                head: query_head,
                query,
                rows,
                seen: seen.clone(),
                scores: head.scores,
                stride,
                sums: sums.as_mut_ptr(),
                element: PhantomData,
            };
            L::call(&softmax);
            let to = context.add((query - a.queries.start) * a.context_stride);
            L::call(&Weigh { attention: a, head, rows, seen, sums, to });
        }
        query += rows;
    }
}

/// Turns a tile's raw scores into unnormalised probabilities and their sums. Narrower probabilities
/// take the place of the scores from each row's start on: none is written before the score there
/// has been read.
///
/// All rows go through each step together, because a row's greatest score and its sum end in a
/// chain of single steps, which others' fill.
struct Softmax<'a, E> {
    attention: &'a Attention<'a>,
    head: usize,
    /// The first row's.
    query: usize,
    rows: usize,
    /// Keys that any of the queries sees, in whole words.
    seen: Range<usize>,
    /// Rows with room for all keys and a vector more …
    scores: *mut f32,
    /// … that are this many words apart.
    stride: usize,
    /// Written: one sum per row.
    sums: *mut f32,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Softmax<'_, E> {
    /// # Safety
    /// The CPU has the instruction set of `L`; the pointers lead to what the fields say.
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let a = self.attention;
        let (mut scales, mut shifts) = ([0.0; 16], [0.0; 16]);
        // SAFETY: every vector starts inside the keys, so it ends inside the row's spare vector.
        unsafe {
            for row in 0..self.rows {
                let (keys, scores) = (a.keys(self.query + row), self.scores.add(row * self.stride));
                // Vectors may pass the end: what they find there must not count.
                let nothing = L::splat(f32::NEG_INFINITY);
                nothing.store(scores.add(keys.end));
                let scale = match add_bias::<L>(a, self.head, self.query + row, scores) {
                    true => 1.0,
                    false => a.scale,
                };
                let (mut greatest, mut at) = (nothing, keys.start);
                while at < keys.end {
                    greatest = L::load(scores.add(at)).max(greatest);
                    at += L::WIDTH;
                }
                // Scale and shift in one step: exp(scale * score - scale * max), as a power of two.
                scales[row] = scale * std::f32::consts::LOG2_E;
                shifts[row] = -scales[row] * greatest.greatest();
            }
            for row in 0..self.rows {
                let (keys, scores) = (a.keys(self.query + row), self.scores.add(row * self.stride));
                let (scale, shift) = (L::splat(scales[row]), L::splat(shifts[row]));
                let (mut total, mut at) = (L::splat(0.0), keys.start);
                while at < keys.end {
                    let exponent = L::load(scores.add(at)).fma(scale, shift);
                    let probability = exp2(exponent, E::FORMAT != Format::F32);
                    E::write(probability, scores.cast::<E>().add(at), L::WIDTH);
                    total = total.add(probability);
                    at += L::WIDTH;
                }
                *self.sums.add(row) = total.sum();
                let probabilities = scores.cast::<E>();
                let (before, behind) = (keys.start - self.seen.start, self.seen.end - keys.end);
                if before > 0 {
                    probabilities.add(self.seen.start).write_bytes(0, before);
                }
                if behind > 0 {
                    probabilities.add(keys.end).write_bytes(0, behind);
                }
            }
        }
    }
}

/// Scales a row of scores and adds its bias; returns whether there was one to add.
///
/// # Safety
/// As [`Softmax`]; `scores` is the query's row.
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
                    add(at, f32::read(table.add(at), L::WIDTH.min(keys.end - at)));
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

/// Stores the values weighted by a tile's probabilities.
struct Weigh<'a, E> {
    attention: &'a Attention<'a>,
    head: &'a Head<'a>,
    rows: usize,
    /// Keys that any of the queries sees, in whole words.
    seen: Range<usize>,
    /// Sum of each row's probabilities.
    sums: [f32; 16],
    /// The head's columns of the tile's first row of context.
    to: *mut E,
}

impl<E: Element> Kernel for Weigh<'_, E> {
    /// # Safety
    /// The CPU has the instruction set of `L`; the head's values are packed, and the tile's
    /// probabilities are in the scratch.
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let (a, head) = (self.attention, self.head);
        let panel = L::WIDTH * TILE_VECTORS;
        let (dim, columns) = (a.shape.head_dim, head.layout.value_columns);
        let per_word = E::FORMAT.per_word();
        let (start, words) = (self.seen.start / per_word, self.seen.len() / per_word);
        let factors = self.sums.map(|sum| 1.0 / sum);
        let mut sums = Sums([0.0; MAX_SUMS]);
        let mut first = 0;
        while first < dim {
            // SAFETY: the seen keys' probabilities and values exist; columns first.. are inside the
            // head, and partial stores keep to it.
            unsafe {
                let product = Tile {
                    rows: self.rows,
                    vectors: (columns - first).div_ceil(L::WIDTH).min(TILE_VECTORS),
                    k: words,
                    a: head.scores.add(start).cast(),
                    a_stride: head.layout.score_stride * size_of::<f32>(),
                    b: head.values.add(start * head.value_stride + first),
                    b_stride: head.value_stride,
                    ahead: None,
                };
                let words = Words { to: sums.0.as_mut_ptr(), stride: panel };
                tile::run::<L, _>(E::FORMAT, &product, &words);
                for (row, factor) in factors.iter().enumerate().take(self.rows) {
                    let factor = L::splat(*factor);
                    let to = self.to.add(row * a.context_stride);
                    let mut at = first;
                    while at < dim.min(first + panel) {
                        let value = L::load(sums.0.as_ptr().add(row * panel + at - first));
                        E::write(value.mul(factor), to.add(at), L::WIDTH.min(dim - at));
                        at += L::WIDTH;
                    }
                }
            }
            first += panel;
        }
    }
}
