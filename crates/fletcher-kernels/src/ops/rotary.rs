//! Rotary position embedding (Su et al. 2021): pairs of a head's columns rotated by an angle that
//! grows with the token's position.

use crate::isa::Lanes;
use crate::number::{Bf16, Element};
use crate::ops::gemm::{Output, check_rows};

/// Which columns of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// Column `i` with column `i + rotary_dim / 2` (GPT-NeoX, and every encoder so far).
    Halves,
    /// Column `2 i` with column `2 i + 1` (GPT-J).
    Neighbours,
}

/// The operands of a rotation.
#[derive(Debug)]
pub struct Rotary<'a> {
    /// Which columns belong together.
    pub pairs: RotaryPairs,
    /// Heads that lie side by side at the start of each row: queries, then keys.
    pub heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Columns that are rotated, an even number; the rest of the head stays.
    pub rotary_dim: usize,
    /// Cosines by position: `rotary_dim / 2` each.
    pub cos: &'a [f32],
    /// Sines by position: `rotary_dim / 2` each.
    pub sin: &'a [f32],
    /// Rows; row `i` stands at position `i`.
    pub rows: usize,
    /// `rows` rows of at least `heads * head_dim` columns …
    pub data: Output<'a>,
    /// … that are this many elements apart.
    pub stride: usize,
}

impl Rotary<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self) {
        assert!(self.rotary_dim.is_multiple_of(2), "pairs of columns: {}", self.rotary_dim);
        assert!(self.rotary_dim <= self.head_dim, "{} of {}", self.rotary_dim, self.head_dim);
        let needed = self.rows * self.rotary_dim / 2;
        assert!(self.cos.len() >= needed && self.sin.len() >= needed, "tables too short");
        let columns = self.heads * self.head_dim;
        match &self.data {
            Output::F32(data) => check_rows(data, self.rows, columns, self.stride),
            Output::Bf16(data) => check_rows(data, self.rows, columns, self.stride),
        }
    }
}

/// Runs a rotation.
///
/// # Safety
/// The CPU has the instruction set of `L`, and [`Rotary::check`] has passed.
#[inline(always)]
pub(crate) unsafe fn rotary<L: Lanes>(r: &mut Rotary<'_>) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match &mut r.data {
            Output::F32(data) => rotate::<L, f32>(data.as_mut_ptr(), r),
            Output::Bf16(data) => rotate::<L, Bf16>(data.as_mut_ptr(), r),
        }
    }
}

/// # Safety
/// As [`rotary`]; `data` is the first element.
#[inline(always)]
unsafe fn rotate<L: Lanes, E: Element>(data: *mut E, r: &Rotary<'_>) {
    let half = r.rotary_dim / 2;
    for row in 0..r.rows {
        for head in 0..r.heads {
            // SAFETY: check has established the row's columns and the tables' rows.
            unsafe {
                let x = data.add(row * r.stride + head * r.head_dim);
                let (cos, sin) = (r.cos.as_ptr().add(row * half), r.sin.as_ptr().add(row * half));
                match r.pairs {
                    RotaryPairs::Halves => halves::<L, E>(x, cos, sin, half),
                    RotaryPairs::Neighbours => neighbours::<L, E>(x, cos, sin, half),
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `L`; `x` has `2 * half` elements, the others `half`.
#[inline(always)]
unsafe fn halves<L: Lanes, E: Element>(x: *mut E, cos: *const f32, sin: *const f32, half: usize) {
    let mut at = 0;
    while at < half {
        let lanes = L::WIDTH.min(half - at);
        // SAFETY: lanes at..at+lanes are inside all four ranges.
        unsafe {
            let (low, high) = (x.add(at), x.add(half + at));
            let (cos, sin): (L, L) = (f32::read(cos.add(at), lanes), f32::read(sin.add(at), lanes));
            let (a, b): (L, L) = (E::read(low, lanes), E::read(high, lanes));
            E::write(a.mul(cos).sub(b.mul(sin)), low, lanes);
            E::write(b.mul(cos).add(a.mul(sin)), high, lanes);
        }
        at += lanes;
    }
}

/// # Safety
/// As [`halves`].
#[inline(always)]
unsafe fn neighbours<L: Lanes, E: Element>(
    x: *mut E,
    cos: *const f32,
    sin: *const f32,
    half: usize,
) {
    for pair in 0..half {
        // SAFETY: pair < half.
        unsafe {
            let (low, high) = (x.add(2 * pair), x.add(2 * pair + 1));
            let (cos, sin) = (L::splat(*cos.add(pair)), L::splat(*sin.add(pair)));
            let (a, b): (L, L) = (E::read(low, 1), E::read(high, 1));
            E::write(a.mul(cos).sub(b.mul(sin)), low, 1);
            E::write(b.mul(cos).add(a.mul(sin)), high, 1);
        }
    }
}
