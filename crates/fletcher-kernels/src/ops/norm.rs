//! LayerNorm over rows (Ba et al. 2016), mean and variance in two passes.

use crate::isa::Lanes;

/// One call's operands; `rows` is in place, `width` wide.
#[derive(Debug)]
pub(crate) struct LayerNorm<'a> {
    pub(crate) rows: &'a mut [f32],
    pub(crate) scale: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

/// # Safety
/// The CPU has the instruction set of `L`; `rows` is a multiple of `scale`'s length, and `bias`
/// as long as `scale`.
#[inline(always)]
pub(crate) unsafe fn layer_norm<L: Lanes>(op: LayerNorm<'_>) {
    let width = op.scale.len();
    let per_element = 1.0 / width as f32;
    for row in op.rows.chunks_exact_mut(width) {
        // SAFETY: all accesses go through `chunk`, whose ranges lie inside a row, and scale and
        // bias are as long as a row.
        unsafe {
            let mut sum = L::splat(0.0);
            for (start, lanes) in chunks::<L>(width) {
                sum = sum.add(L::load_partial(row.as_ptr().add(start), lanes));
            }
            let mean = sum.sum() * per_element;
            let mut square = L::splat(0.0);
            for (start, lanes) in chunks::<L>(width) {
                // Missing lanes load the mean itself and so add nothing.
                let centred = centred::<L>(row.as_ptr().add(start), lanes, mean);
                square = centred.fma(centred, square);
            }
            let variance = square.sum() * per_element;
            let factor = L::splat(1.0 / (variance + op.eps).sqrt());
            for (start, lanes) in chunks::<L>(width) {
                let at = row.as_mut_ptr().add(start);
                let scale = L::load_partial(op.scale.as_ptr().add(start), lanes);
                let scaled = centred::<L>(at, lanes, mean).mul(factor);
                let value = match op.bias {
                    Some(bias) => {
                        scaled.fma(scale, L::load_partial(bias.as_ptr().add(start), lanes))
                    }
                    None => scaled.mul(scale),
                };
                value.store_partial(at, lanes);
            }
        }
    }
}

/// `x - mean`, and 0 in missing lanes.
///
/// # Safety
/// The CPU has the instruction set of `L`; `lanes` values are readable.
#[inline(always)]
unsafe fn centred<L: Lanes>(from: *const f32, lanes: usize, mean: f32) -> L {
    // SAFETY: the caller's guarantee; the array holds the widest vector.
    unsafe {
        let value = L::load_partial(from, lanes).sub(L::splat(mean));
        if lanes == L::WIDTH {
            return value;
        }
        let mut kept = [0.0f32; 16];
        value.store_partial(kept.as_mut_ptr(), lanes);
        L::load_partial(kept.as_ptr(), L::WIDTH)
    }
}

/// Starts and lengths of the vectors that cover `width` elements.
#[inline(always)]
pub(crate) fn chunks<L: Lanes>(width: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..width).step_by(L::WIDTH).map(move |start| (start, L::WIDTH.min(width - start)))
}
