//! Rows that one core makes and others read, over and over in the same memory.
//!
//! What another core has read lies in that core's cache too, and an ordinary store waits until it
//! is gone from there: one core of Zen 4 waits 7 nanoseconds for a line of another that shares its
//! third-level cache, and 27 for one of another that does not, however early it asks. A store past
//! the caches waits for nobody (4 and 2 nanoseconds), and the others then read the line from memory
//! (4 and 3) nearly as fast as they read it from the cache it was made in (1 and 3). So what is
//! made for others is a copy of its own, by such stores.

use crate::buffer::prefetch;
use crate::number::Number;

/// Rows between asking for one that another core made and copying it: memory answers many requests
/// in the time of one.
const AHEAD: usize = 8;

/// Rows to copy from a core to another, or what a core has of them.
#[derive(Debug)]
pub struct RowCopy<'a, T: Number> {
    /// Rows to copy.
    pub rows: usize,
    /// Elements of each.
    pub columns: usize,
    /// The first row to copy …
    pub from: &'a [T],
    /// … and elements from one to the next.
    pub from_stride: usize,
    /// Where the first goes …
    pub to: &'a mut [T],
    /// … and elements from one to the next.
    pub to_stride: usize,
}

impl<T: Number> RowCopy<'_, T> {
    /// Copies what other cores will read; whole lines go past the caches. Who learns of it by a
    /// lock or a barrier finds the rows complete.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn hand_over(self) {
        let Self { rows, columns, from, from_stride, to, to_stride } = self;
        for row in 0..rows {
            let from = &from[row * from_stride..][..columns];
            past_caches(from, &mut to[row * to_stride..][..columns]);
        }
        fence();
    }

    /// Copies what another core has handed over.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn take_over(self) {
        let Self { rows, columns, from, from_stride, to, to_stride } = self;
        let theirs = |row: usize| &from[row * from_stride..][..columns];
        (0..rows.min(AHEAD)).for_each(|row| prefetch(theirs(row)));
        for row in 0..rows {
            if row + AHEAD < rows {
                prefetch(theirs(row + AHEAD));
            }
            to[row * to_stride..][..columns].copy_from_slice(theirs(row));
        }
    }
}

/// Copies a row, its whole lines past the caches.
#[cfg(target_arch = "x86_64")]
fn past_caches<T: Number>(from: &[T], to: &mut [T]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    use crate::buffer::LINE;

    let line = LINE / size_of::<T>();
    // Rows begin with a line, as a rule.
    let start = to.as_ptr().align_offset(LINE).min(to.len());
    let ((from_head, from), (to_head, to)) = (from.split_at(start), to.split_at_mut(start));
    to_head.copy_from_slice(from_head);
    let (mut from_lines, mut to_lines) = (from.chunks_exact(line), to.chunks_exact_mut(line));
    for (from, to) in from_lines.by_ref().zip(to_lines.by_ref()) {
        let (from, to) = (from.as_ptr().cast::<__m128i>(), to.as_mut_ptr().cast::<__m128i>());
        for part in 0..LINE / size_of::<__m128i>() {
            // SAFETY: both are a line of plain numbers, and `to` is aligned to one; the
            // instructions are in the x86-64 baseline. `hand_over` orders the stores before it
            // gives the borrow of `to` back.
            unsafe { _mm_stream_si128(to.add(part), _mm_loadu_si128(from.add(part))) }
        }
    }
    to_lines.into_remainder().copy_from_slice(from_lines.remainder());
}

#[cfg(not(target_arch = "x86_64"))]
fn past_caches<T: Number>(from: &[T], to: &mut [T]) {
    to.copy_from_slice(from);
}

/// Orders stores past the caches, which locks and atomics alone do not.
fn fence() {
    // SAFETY: in the x86-64 baseline, and without operands.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number::Bf16;
    use crate::{AlignedBuffer, row_stride};

    /// Whatever the rows' lengths and wherever they begin, the columns arrive, and nothing else is
    /// touched; both ways.
    #[test]
    fn columns_arrive_and_their_neighbours_stay() {
        let rows = AHEAD + 3;
        let value = |at: usize| Bf16(at as u16 + 1);
        for columns in [1, 7, 31, 32, 33, 64, 100, 256, 391] {
            let (from_stride, to_stride) = (columns + 5, row_stride::<Bf16>(columns + 40));
            let from: Vec<Bf16> = (3..3 + rows * from_stride).map(value).collect();
            for (offset, way) in [0, 1, 8, 31, 32, 40].into_iter().zip([true, false].repeat(3)) {
                let mut whole = AlignedBuffer::<Bf16>::new(rows * to_stride);
                let (from, to) = (&from[3..], &mut whole[offset..]);
                let copy = RowCopy { rows, columns, from, from_stride, to, to_stride };
                if way {
                    copy.hand_over()
                } else {
                    copy.take_over()
                }
                for (at, &found) in whole.iter().enumerate() {
                    let place = at.checked_sub(offset).map(|at| (at / to_stride, at % to_stride));
                    let expected = match place {
                        Some((row, column)) if column < columns => from[row * from_stride + column],
                        _ => Bf16(0),
                    };
                    assert_eq!(found, expected, "{at}: {columns} columns behind {offset}");
                }
            }
        }
    }

    #[test]
    fn a_short_slice_is_refused() {
        for way in [true, false] {
            let (from, mut to) = ([0.0; 20], [0.0; 19]);
            let (rows, columns, from_stride, to_stride) = (2, 10, 10, 10);
            let to = &mut to;
            let copy = RowCopy { rows, columns, from: &from, from_stride, to, to_stride };
            let run = std::panic::AssertUnwindSafe(|| match way {
                true => copy.hand_over(),
                false => copy.take_over(),
            });
            assert!(std::panic::catch_unwind(run).is_err());
        }
    }
}
