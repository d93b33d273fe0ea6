//! Softmax attention of one sequence over itself, head by head.
//!
//! A head's keys are packed, transposed, into the panels of the matrix kernel, and its values as
//! one panel as wide as the head. Then for each few queries: scores with all visible keys through
//! the matrix kernel, softmax in place, and the weighted values through the matrix kernel again.
//! Only those few queries' scores exist at a time, so memory is linear in the length.

use crate::isa::Lanes;
use crate::ops::activation::exp;
use crate::ops::gemm::{Operands, sums};

/// One sequence's attention.
#[derive(Debug)]
pub struct Attention<'a> {
    /// Tokens x `3 * heads * head_dim`: queries, keys, values, each head by head.
    pub qkv: &'a [f32],
    /// Tokens x `heads * head_dim`, written.
    pub context: &'a mut [f32],
    /// Number of heads.
    pub heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Tokens farther apart than this do not see each other.
    pub window: Option<usize>,
    /// Per head a bias by `key - query`, with the index of distance 0.
    pub relative: Option<(&'a [Vec<f32>], usize)>,
    /// At least [`attention_scratch`] values.
    pub scratch: &'a mut [f32],
}

/// Widest panel of any instruction set, in columns.
const PANEL_MAX: usize = 64;
/// Most queries that are scored at a time.
const QUERIES_MAX: usize = 6;

/// Scratch that one sequence of `tokens` needs, in f32 values.
pub fn attention_scratch(tokens: usize, head_dim: usize) -> usize {
    let padded = tokens.next_multiple_of(PANEL_MAX);
    let values = tokens * head_dim.next_multiple_of(PANEL_MAX);
    padded * head_dim + values + QUERIES_MAX * padded
}

/// The parts of the scratch for one head.
struct Packed<'a> {
    /// Panels of keys: per panel `head_dim` rows of its keys' components.
    keys: &'a [f32],
    /// Panels of values: per panel one row per token.
    values: &'a [f32],
}

/// # Safety
/// The CPU has the instruction set of `L`; the slices' lengths agree as documented.
#[inline(always)]
pub(crate) unsafe fn attention<L: Lanes>(op: Attention<'_>) {
    let panel = L::WIDTH * L::TILE_VECTORS;
    let width = op.heads * op.head_dim;
    let tokens = op.context.len() / width;
    let padded = tokens.next_multiple_of(panel);
    let (keys, rest) = op.scratch.split_at_mut(padded * op.head_dim);
    let (values, scores) = rest.split_at_mut(tokens * op.head_dim.next_multiple_of(panel));
    for head in 0..op.heads {
        let column = head * op.head_dim;
        pack_keys(panel, op.qkv, keys, (tokens, op.head_dim, 3 * width, width + column));
        pack_values(panel, op.qkv, values, (tokens, op.head_dim, 3 * width, 2 * width + column));
        let packed = Packed { keys, values };
        let bias = op.relative.map(|(table, zero)| (&table[head][..], zero));
        let mut query = 0;
        while query < tokens {
            let height = L::TILE_ROWS.min(tokens - query);
            let block = Block { query, tokens, column, padded, window: op.window, bias };
            let shape = (op.head_dim, width);
            // SAFETY: the caller's guarantees; query..query+height are tokens of the sequence.
            unsafe {
                match height {
                    1 => queries::<L, 1>(&block, shape, op.qkv, &packed, scores, op.context),
                    2 => queries::<L, 2>(&block, shape, op.qkv, &packed, scores, op.context),
                    3 => queries::<L, 3>(&block, shape, op.qkv, &packed, scores, op.context),
                    4 => queries::<L, 4>(&block, shape, op.qkv, &packed, scores, op.context),
                    5 => queries::<L, 5>(&block, shape, op.qkv, &packed, scores, op.context),
                    _ => queries::<L, 6>(&block, shape, op.qkv, &packed, scores, op.context),
                }
            }
            query += height;
        }
    }
}

/// `(tokens, head_dim, stride, column)`: where a head lies in the rows of `qkv`.
type HeadPlace = (usize, usize, usize, usize);

/// Keys side by side, component by component; keys beyond the last are zeros.
#[inline(always)]
fn pack_keys(panel: usize, qkv: &[f32], packed: &mut [f32], place: HeadPlace) {
    let (tokens, dim, stride, column) = place;
    for (p, out) in packed.chunks_exact_mut(panel * dim).enumerate() {
        for lane in 0..panel {
            let token = p * panel + lane;
            if token < tokens {
                let key = &qkv[token * stride + column..][..dim];
                for (c, value) in key.iter().enumerate() {
                    out[c * panel + lane] = *value;
                }
            } else {
                (0..dim).for_each(|c| out[c * panel + lane] = 0.0);
            }
        }
    }
}

/// Values row by row, padded with zeros to whole panels.
#[inline(always)]
fn pack_values(panel: usize, qkv: &[f32], packed: &mut [f32], place: HeadPlace) {
    let (tokens, dim, stride, column) = place;
    for (p, out) in packed.chunks_exact_mut(panel * tokens).enumerate() {
        let width = panel.min(dim - p * panel);
        for (token, row) in out.chunks_exact_mut(panel).enumerate() {
            let value = &qkv[token * stride + column + p * panel..][..width];
            row[..width].copy_from_slice(value);
            row[width..].fill(0.0);
        }
    }
}

/// A few queries of one head.
struct Block<'a> {
    query: usize,
    tokens: usize,
    column: usize,
    padded: usize,
    window: Option<usize>,
    bias: Option<(&'a [f32], usize)>,
}

impl Block<'_> {
    /// The keys that any of `rows` queries from `self.query` sees.
    fn visible(&self, rows: usize) -> std::ops::Range<usize> {
        match self.window {
            None => 0..self.tokens,
            Some(w) => {
                let last = (self.query + rows - 1).saturating_add(w).saturating_add(1);
                self.query.saturating_sub(w)..last.min(self.tokens)
            }
        }
    }
}

/// # Safety
/// As [`attention`], and `block.query .. + ROWS` are tokens.
#[inline(always)]
unsafe fn queries<L: Lanes, const ROWS: usize>(
    block: &Block<'_>,
    (dim, width): (usize, usize),
    qkv: &[f32],
    packed: &Packed<'_>,
    scores: &mut [f32],
    context: &mut [f32],
) {
    // SAFETY: the panel's width is a constant of the instruction set, so one branch is compiled;
    // the caller's guarantees are passed on.
    unsafe {
        match L::TILE_VECTORS {
            2 => run::<L, ROWS, 2>(block, (dim, width), qkv, packed, scores, context),
            _ => run::<L, ROWS, 4>(block, (dim, width), qkv, packed, scores, context),
        }
    }
}

/// # Safety
/// As [`queries`].
#[inline(always)]
unsafe fn run<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    block: &Block<'_>,
    (dim, width): (usize, usize),
    qkv: &[f32],
    packed: &Packed<'_>,
    scores: &mut [f32],
    context: &mut [f32],
) {
    let panel = L::WIDTH * VECTORS;
    let scale = 1.0 / (dim as f32).sqrt();
    let keys = block.visible(ROWS);
    let first_panel = keys.start / panel;
    let a_stride = 3 * width;
    // SAFETY: panels up to the one that holds the last visible key lie in the packed keys, and
    // `scores` has ROWS rows of `padded`; the query rows lie in `qkv`.
    unsafe {
        let a = qkv.as_ptr().add(block.query * a_stride + block.column);
        for p in first_panel..keys.end.div_ceil(panel) {
            let b = packed.keys.as_ptr().add(p * panel * dim);
            let tile = sums::<L, ROWS, VECTORS>(Operands { a, a_stride, b, k: dim });
            for (row, tile) in tile.iter().enumerate() {
                for (v, value) in tile.iter().enumerate() {
                    let at = row * block.padded + p * panel + v * L::WIDTH;
                    value.mul(L::splat(scale)).store(scores.as_mut_ptr().add(at));
                }
            }
        }
    }
    let mut inverse = [0.0f32; ROWS];
    for (row, inverse) in inverse.iter_mut().enumerate() {
        let start = row * block.padded;
        let all = &mut scores[start + keys.start..start + keys.end];
        mask_and_bias(block, row, keys.start, all);
        // SAFETY: the caller's guarantee of the instruction set.
        *inverse = 1.0 / unsafe { softmax_numerators::<L>(all) };
    }
    let visible = keys.len();
    for (p, values) in packed.values.chunks_exact(panel * block.tokens).enumerate() {
        if p * panel >= dim {
            break;
        }
        // SAFETY: rows of `scores` from the first visible key on hold `visible` values, the panel
        // holds a row for each, and the output columns lie in the head.
        unsafe {
            let a = scores.as_ptr().add(keys.start);
            let b = values.as_ptr().add(keys.start * panel);
            let operands = Operands { a, a_stride: block.padded, b, k: visible };
            let tile = sums::<L, ROWS, VECTORS>(operands);
            for (row, tile) in tile.iter().enumerate() {
                let to = (block.query + row) * width + block.column + p * panel;
                for (v, value) in tile.iter().enumerate() {
                    let lanes = (dim - p * panel).saturating_sub(v * L::WIDTH).min(L::WIDTH);
                    if lanes > 0 {
                        let out = context.as_mut_ptr().add(to + v * L::WIDTH);
                        value.mul(L::splat(inverse[row])).store_partial(out, lanes);
                    }
                }
            }
        }
    }
}

/// Adds the distance bias and hides the keys outside of the row's own window.
#[inline(always)]
fn mask_and_bias(block: &Block<'_>, row: usize, first_key: usize, scores: &mut [f32]) {
    let query = block.query + row;
    if let Some((bias, zero)) = block.bias {
        let bias = &bias[zero + first_key - query..];
        scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
    }
    if let Some(window) = block.window {
        let before = query.saturating_sub(window).saturating_sub(first_key).min(scores.len());
        let after = (query - first_key).saturating_add(window + 1).min(scores.len());
        scores[..before].fill(f32::NEG_INFINITY);
        scores[after..].fill(f32::NEG_INFINITY);
    }
}

/// Replaces scores by `exp(score - max)` and returns their sum.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
unsafe fn softmax_numerators<L: Lanes>(scores: &mut [f32]) -> f32 {
    // SAFETY: the caller guarantees the instruction set; every range lies in the slice.
    unsafe {
        let whole = scores.len() / L::WIDTH * L::WIDTH;
        let tail = scores.len() - whole;
        let mut greatest = L::splat(f32::NEG_INFINITY);
        for start in (0..whole).step_by(L::WIDTH) {
            greatest = greatest.max(L::load(scores.as_ptr().add(start)));
        }
        let mut max = greatest.greatest();
        for &score in &scores[whole..] {
            max = max.max(score);
        }
        let max = L::splat(max);
        let mut sum = L::splat(0.0);
        for start in (0..whole).step_by(L::WIDTH) {
            let at = scores.as_mut_ptr().add(start);
            let value = exp(L::load(at).sub(max));
            value.store(at);
            sum = sum.add(value);
        }
        if tail > 0 {
            let at = scores.as_mut_ptr().add(whole);
            let mut padded = [f32::NEG_INFINITY; 16];
            padded[..tail].copy_from_slice(&scores[whole..]);
            let value = exp(L::load(padded.as_ptr()).sub(max));
            value.store_partial(at, tail);
            let mut kept = [0.0f32; 16];
            value.store_partial(kept.as_mut_ptr(), tail);
            sum = sum.add(L::load(kept.as_ptr()));
        }
        sum.sum()
    }
}
