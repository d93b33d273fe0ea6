//! The same on AMX's tile registers, in bfloat16 with heads of whole tile rows.
//!
//! Packed keys and values are the tiles of the right operand as they are. Scores are products of 32
//! queries with 32 keys at a time, answers those of probabilities with 32 values at a time: two
//! tiles by two, as in `gemm`, or one by two for the last few queries. The keys are cut into such
//! groups from the sequence's start on, whatever a tile's queries see of them, so that a query's
//! sums do not depend on the others in its tile: a group of zeros adds nothing.

use std::marker::PhantomData;

use super::{Attention, AttentionRows, Head, Scratch, Softmax, pack_keys, pack_values};
use crate::buffer::row_stride;
use crate::isa::amx::{Configured, ROW_BYTES, ROW_WORDS, ROWS, Tiles};
use crate::isa::avx512::Avx512;
use crate::isa::{Lanes, TILE_VECTORS};
use crate::number::{Bf16, Element, Format};

/// What packs, takes the softmax and stores.
type Vector = Avx512<true, true>;

/// Keys of a panel, and of a step of their values.
const PANEL: usize = Vector::WIDTH * TILE_VECTORS;

/// Queries that are answered at a time.
const UNIT_ROWS: usize = 2 * ROWS;

/// Columns of a head that fill a tile's row.
const ROW_COLUMNS: usize = ROW_BYTES / size_of::<Bf16>();

/// Whether heads are whole rows of tiles.
pub(crate) fn suits(format: Format, head_dim: usize) -> bool {
    format == Format::Bf16 && head_dim.is_multiple_of(ROW_COLUMNS)
}

/// As [`Scratch::new`], with whole tiles of everything.
fn layout(head_dim: usize, tokens: usize) -> Scratch {
    let padded = tokens.next_multiple_of(PANEL);
    let key_words = head_dim / Format::Bf16.per_word();
    let score_stride = row_stride::<f32>(padded + Vector::WIDTH);
    let values = padded * key_words;
    let scores = values + padded / Format::Bf16.per_word() * head_dim;
    let rows = tokens.min(UNIT_ROWS).next_multiple_of(ROWS);
    let queries = scores + rows * score_stride;
    let total = queries + rows * key_words;
    Scratch { key_words, values, scores, score_stride, queries, value_columns: head_dim, total }
}

/// Words of scratch for a sequence of `tokens`.
pub(crate) fn scratch(format: Format, head_dim: usize, tokens: usize) -> usize {
    match suits(format, head_dim) {
        true => layout(head_dim, tokens).total,
        false => super::scratch::<Vector>(format, head_dim, tokens),
    }
}

/// Runs attention whose rows [`suits`].
///
/// # Safety
/// The CPU has AVX-512 with BF16 and VNNI and the tiles of `T`, and [`Attention::check`] has passed
/// with the size given by [`scratch`].
#[inline(always)]
pub(crate) unsafe fn attention<T: Tiles>(a: &mut Attention<'_>) {
    let AttentionRows::Bf16 { qkv, context } = &mut a.rows else { return };
    let (qkv, context) = (qkv.as_ptr(), context.as_mut_ptr());
    if a.queries.is_empty() {
        return;
    }
    let shape = a.shape;
    let layout = layout(shape.head_dim, a.tokens);
    let pairs = a.tokens.div_ceil(Format::Bf16.per_word());
    let all_pairs = a.tokens.next_multiple_of(PANEL) / Format::Bf16.per_word();
    // SAFETY: the offsets are inside the scratch, and the columns inside the rows.
    unsafe {
        let _configured = Configured::<T>::new(ROWS);
        let keys = a.scratch.as_mut_ptr();
        let values = keys.add(layout.values);
        let unused = (all_pairs - pairs) * layout.value_columns;
        values.add(pairs * layout.value_columns).write_bytes(0, unused);
        for kv_head in 0..shape.kv_heads {
            let key = qkv.add((shape.heads + kv_head) * shape.head_dim);
            let value = key.add(shape.kv_heads * shape.head_dim);
            pack_values::<Vector, Bf16>(a, value, values, &layout);
            let head = Head {
                keys,
                values,
                value_stride: layout.value_columns,
                scores: keys.add(layout.scores),
                queries: keys.add(layout.queries),
                layout: &layout,
            };
            pack_keys::<Vector, Bf16>(a, key, &head);
            let group = shape.heads / shape.kv_heads;
            for query_head in kv_head * group..(kv_head + 1) * group {
                let columns = query_head * shape.head_dim;
                attend::<T>(a, query_head, &head, (qkv.add(columns), context.add(columns)));
            }
        }
    }
}

/// Computes one head's context, tile of queries by tile of queries.
///
/// # Safety
/// The thread's tiles are configured; the head's keys and values are packed; the pointers lead to
/// the head's columns of the first rows.
#[inline(always)]
unsafe fn attend<T: Tiles>(
    a: &Attention<'_>,
    query_head: usize,
    head: &Head<'_>,
    (queries, context): (*const Bf16, *mut Bf16),
) {
    let (dim, words) = (a.shape.head_dim, head.layout.key_words);
    let stride = head.layout.score_stride;
    for query in a.queries.clone().step_by(UNIT_ROWS) {
        let rows = UNIT_ROWS.min(a.queries.end - query);
        let tall = rows > ROWS;
        let seen = a.keys(query).start / PANEL * PANEL
            ..a.keys(query + rows - 1).end.next_multiple_of(PANEL);
        // SAFETY: rows query..query + rows exist, and others are not read; panels up to the last
        // seen key are packed, and a row of scores has room for all of them.
        unsafe {
            let mut left = Operand {
                start: queries.add(query * a.qkv_stride).cast::<u8>(),
                stride: a.qkv_stride * size_of::<Bf16>(),
            };
            if !rows.is_multiple_of(ROWS) {
                let copy = head.queries.cast::<u8>();
                for row in 0..rows {
                    let from = left.start.add(row * left.stride);
                    from.copy_to_nonoverlapping(copy.add(row * words * 4), words * 4);
                }
                left = Operand { start: copy, stride: words * 4 };
            }
            for first in seen.clone().step_by(PANEL) {
                let right =
                    Operand { start: head.keys.add(first * words).cast(), stride: PANEL * 4 };
                let to = (head.scores.add(first), stride);
                match tall {
                    true => product::<T, true>(left, right, words / ROW_WORDS, to),
                    false => product::<T, false>(left, right, words / ROW_WORDS, to),
                }
            }
            let mut sums = [0.0; UNIT_ROWS];
            for first in (0..rows).step_by(ROWS) {
                Vector::call(&Softmax::<Bf16> {
                    attention: a,
                    head: query_head,
                    query: query + first,
                    rows: ROWS.min(rows - first),
                    seen: seen.clone(),
                    scores: head.scores.add(first * stride),
                    stride,
                    sums: sums.as_mut_ptr().add(first),
                    element: PhantomData,
                });
            }
            let start = seen.start / Format::Bf16.per_word();
            let left = Operand { start: head.scores.add(start).cast(), stride: stride * 4 };
            let mut answers = Answers([0.0; UNIT_ROWS * PANEL]);
            for first in (0..dim).step_by(PANEL) {
                let right = Operand {
                    start: head.values.add(start * head.value_stride + first).cast(),
                    stride: head.value_stride * 4,
                };
                let answers = (answers.0.as_mut_ptr(), PANEL);
                match tall {
                    true => product::<T, true>(left, right, seen.len() / PANEL, answers),
                    false => product::<T, false>(left, right, seen.len() / PANEL, answers),
                }
                let to = context.add((query - a.queries.start) * a.context_stride + first);
                for (row, sum) in sums.iter().enumerate().take(rows) {
                    let factor = Vector::splat(1.0 / sum);
                    for column in (0..PANEL).step_by(Vector::WIDTH) {
                        let value = Vector::load(answers.0.cast_const().add(row * PANEL + column));
                        let to = to.add(row * a.context_stride + column);
                        Bf16::write(value.mul(factor), to, Vector::WIDTH);
                    }
                }
            }
        }
    }
}

/// A unit's answers for a panel of columns, on whole cache lines.
#[repr(align(64))]
struct Answers([f32; UNIT_ROWS * PANEL]);

/// Rows of bytes.
#[derive(Clone, Copy)]
struct Operand {
    start: *const u8,
    /// Bytes from a row to the next.
    stride: usize,
}

/// One tile of rows, or two if `TALL`, by two of columns: `steps` tiles of the left operand lie
/// side by side, and of the right one below each other.
///
/// # Safety
/// The thread's tiles are configured; the operands have 16 rows a tile, and there is room for as
/// many rows of a panel, `stride` words apart, at `out`.
#[inline(always)]
unsafe fn product<T: Tiles, const TALL: bool>(
    left: Operand,
    right: Operand,
    steps: usize,
    (out, stride): (*mut f32, usize),
) {
    // SAFETY: the caller guarantees the tiles.
    unsafe {
        T::zero::<0>();
        T::zero::<1>();
        T::zero::<2>();
        T::zero::<3>();
        for step in 0..steps {
            let a = left.start.add(step * ROW_BYTES);
            let b = right.start.add(step * ROWS * right.stride);
            T::load::<6>(b, right.stride);
            T::load::<4>(a, left.stride);
            T::dot_bf16::<0, 4, 6>();
            T::load::<7>(b.add(ROW_BYTES), right.stride);
            T::dot_bf16::<1, 4, 7>();
            if TALL {
                T::load::<5>(a.add(ROWS * left.stride), left.stride);
                T::dot_bf16::<2, 5, 6>();
                T::dot_bf16::<3, 5, 7>();
            }
        }
        let second = out.add(ROW_WORDS);
        T::store::<0>(out.cast(), stride * 4);
        T::store::<1>(second.cast(), stride * 4);
        if TALL {
            T::store::<2>(out.add(ROWS * stride).cast(), stride * 4);
            T::store::<3>(second.add(ROWS * stride).cast(), stride * 4);
        }
    }
}

#[cfg(test)]
mod tests;
