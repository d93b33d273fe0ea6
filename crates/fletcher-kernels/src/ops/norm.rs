//! LayerNorm and RMSNorm, row by row, in two passes over values that stay in L1.

use crate::isa::Lanes;
use crate::number::{Bf16, Element};
use crate::ops::gemm::check_rows;

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + eps) * scale + bias` (Ba et al. 2016).
    Layer,
    /// `x / sqrt(mean of squares + eps) * scale + bias` (Zhang and Sennrich 2019).
    Rms,
}

/// The operands of a norm.
#[derive(Debug)]
pub struct Norm<'a> {
    /// Which.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// One per column.
    pub scale: &'a [f32],
    /// One per column.
    pub bias: Option<&'a [f32]>,
    /// Rows of `output`.
    pub rows: usize,
    /// What is normalised, laid out like `output`; `None`: `output` itself.
    pub input: Option<&'a [f32]>,
    /// `rows` rows as wide as `scale` …
    pub output: &'a mut [f32],
    /// … that are this many elements apart.
    pub stride: usize,
    /// Rows as wide as `scale` that get the same values, rounded.
    pub rounded: Option<&'a mut [Bf16]>,
    /// Elements from one rounded row to the next.
    pub rounded_stride: usize,
}

impl Norm<'_> {
    /// Asserts what the kernel relies on.
    pub(crate) fn check(&self) {
        let columns = self.scale.len();
        assert!(self.bias.is_none_or(|bias| bias.len() == columns), "one bias per column");
        check_rows(self.output, self.rows, columns, self.stride);
        if let Some(input) = self.input {
            check_rows(input, self.rows, columns, self.stride);
        }
        if let Some(rounded) = &self.rounded {
            check_rows(rounded, self.rows, columns, self.rounded_stride);
        }
    }
}

/// Rows that are taken through each pass together: a row's sums end in a chain of single steps,
/// which others' fill.
const GROUP: usize = 8;

/// Runs a norm.
///
/// # Safety
/// The CPU has the instruction set of `L`, and [`Norm::check`] has passed.
#[inline(always)]
pub(crate) unsafe fn norm<L: Lanes>(n: &mut Norm<'_>) {
    let columns = n.scale.len();
    let share = 1.0 / columns as f32;
    let output = n.output.as_mut_ptr();
    let input = n.input.map_or(output.cast_const(), <[f32]>::as_ptr);
    for first in (0..n.rows).step_by(GROUP) {
        let rows = GROUP.min(n.rows - first);
        let (mut means, mut factors) = ([0.0; GROUP], [0.0; GROUP]);
        // SAFETY: check has established `columns` elements in each row of all matrices.
        unsafe {
            let x = |row: usize| input.add((first + row) * n.stride);
            if n.kind == NormKind::Layer {
                for (row, mean) in means.iter_mut().enumerate().take(rows) {
                    *mean = sum_of::<L, _>(x(row), columns, Values) * share;
                }
            }
            for (row, factor) in factors.iter_mut().enumerate().take(rows) {
                let variance = sum_of::<L, _>(x(row), columns, Squares(means[row])) * share;
                *factor = 1.0 / (variance + n.eps).sqrt();
            }
            for row in 0..rows {
                let finish = Finish {
                    mean: means[row],
                    factor: factors[row],
                    scale: n.scale,
                    bias: n.bias,
                    x: x(row),
                    y: output.add((first + row) * n.stride),
                };
                match &mut n.rounded {
                    Some(rounded) => {
                        let rounded = rounded.as_mut_ptr().add((first + row) * n.rounded_stride);
                        finish.run::<L, true>(rounded);
                    }
                    None => finish.run::<L, false>(std::ptr::null_mut()),
                }
            }
        }
    }
}

/// The last pass over a row.
struct Finish<'a> {
    mean: f32,
    factor: f32,
    scale: &'a [f32],
    bias: Option<&'a [f32]>,
    x: *const f32,
    y: *mut f32,
}

impl Finish<'_> {
    /// Stores the normalised row, and also rounded if `ROUND`.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`; `x`, `y` and with `ROUND` also `rounded` are as wide
    /// as `scale`.
    #[inline(always)]
    unsafe fn run<L: Lanes, const ROUND: bool>(&self, rounded: *mut Bf16) {
        let columns = self.scale.len();
        let mut at = 0;
        // SAFETY: lanes at..at+lanes are inside the row.
        unsafe {
            while at + L::WIDTH <= columns {
                self.step::<L, ROUND>(rounded, at, L::WIDTH);
                at += L::WIDTH;
            }
            if at < columns {
                self.step::<L, ROUND>(rounded, at, columns - at);
            }
        }
    }

    /// # Safety
    /// As [`Self::run`]; lanes at..at+lanes are inside the row.
    #[inline(always)]
    unsafe fn step<L: Lanes, const ROUND: bool>(
        &self,
        rounded: *mut Bf16,
        at: usize,
        lanes: usize,
    ) {
        // SAFETY: the caller guarantees the lanes.
        unsafe {
            let centered = f32::read::<L>(self.x.add(at), lanes).sub(L::splat(self.mean));
            let value = centered.mul(L::splat(self.factor));
            let scale = f32::read::<L>(self.scale.as_ptr().add(at), lanes);
            let value = match self.bias {
                Some(bias) => value.fma(scale, f32::read(bias.as_ptr().add(at), lanes)),
                None => value.mul(scale),
            };
            f32::write(value, self.y.add(at), lanes);
            if ROUND {
                Bf16::write(value, rounded.add(at), lanes);
            }
        }
    }
}

/// Sums that do not wait for each other.
const CHAINS: usize = 4;

/// The sum over a row, or of squared distances from a center, in one order for each number of
/// columns.
///
/// # Safety
/// The CPU has the instruction set of `L`; `x` has `columns` elements.
#[inline(always)]
unsafe fn sum_of<L: Lanes, T: Term>(x: *const f32, columns: usize, term: T) -> f32 {
    // SAFETY: lanes at..at+lanes are inside the row; missing lanes are 0.
    unsafe {
        let (mut totals, mut at) = ([L::splat(0.0); CHAINS], 0);
        while at + CHAINS * L::WIDTH <= columns {
            for (chain, total) in totals.iter_mut().enumerate() {
                *total = term.add(*total, L::load(x.add(at + chain * L::WIDTH)), L::WIDTH);
            }
            at += CHAINS * L::WIDTH;
        }
        while at < columns {
            let lanes = L::WIDTH.min(columns - at);
            totals[0] = term.add(totals[0], f32::read(x.add(at), lanes), lanes);
            at += lanes;
        }
        let [a, b, c, d] = totals;
        a.add(b).add(c.add(d)).sum()
    }
}

/// What is summed up over a row.
trait Term {
    /// Adds the first `lanes` of `x`; the others are 0, and add nothing.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`.
    unsafe fn add<L: Lanes>(&self, total: L, x: L, lanes: usize) -> L;
}

/// The values.
struct Values;
/// Their squared distances from a center.
struct Squares(f32);

impl Term for Values {
    #[inline(always)]
    unsafe fn add<L: Lanes>(&self, total: L, x: L, _lanes: usize) -> L {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { total.add(x) }
    }
}

impl Term for Squares {
    #[inline(always)]
    unsafe fn add<L: Lanes>(&self, total: L, x: L, lanes: usize) -> L {
        // SAFETY: the caller's guarantee is passed on; the mask has as many ones as any vector.
        unsafe {
            let mut center = L::splat(self.0);
            if lanes < L::WIDTH {
                // The missing lanes stand at the center on both sides.
                center = center.mul(L::load_partial([1.0f32; 16].as_ptr(), lanes));
            }
            let distance = x.sub(center);
            distance.fma(distance, total)
        }
    }
}
