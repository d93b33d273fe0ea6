//! What this CPU's multipliers can do at most, measured.
//!
//! Sixteen independent sums in registers, nothing loaded, nothing stored: no kernel can be faster.
//! The benchmarks state their speed as a share of it. It is measured and not looked up, because
//! the clock under wide vectors is nowhere to be read.

use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use crate::isa::amx;

/// What is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Multiply {
    /// f32 by f32, summed in f32.
    F32,
    /// bfloat16 by bfloat16, summed in f32.
    Bf16,
    /// Bytes by bytes, summed in 32 bits.
    Int8,
}

/// Sums that are in flight at a time; two units of latency four need eight.
const SUMS: usize = 16;
/// Rounds between two looks at the clock.
const ROUNDS: usize = 4096;

/// Billions of operations a second of one thread, a multiplication and an addition counting as
/// two; `None` where the CPU has no instruction for it. The best of several tries, which takes a
/// tenth of a second.
pub fn peak_gops(what: Multiply) -> Option<f64> {
    let (run, operations) = loop_for(what)?;
    let begin = Instant::now();
    let mut best = f64::MAX;
    while begin.elapsed() < Duration::from_millis(100) {
        let start = Instant::now();
        // SAFETY: `loop_for` found the instruction set.
        unsafe { run() };
        best = best.min(start.elapsed().as_secs_f64());
    }
    Some((ROUNDS * SUMS * operations) as f64 / best / 1e9)
}

/// A loop, and the operations of one of its instructions.
type Loop = (unsafe fn(), usize);

#[cfg(target_arch = "x86_64")]
fn loop_for(what: Multiply) -> Option<Loop> {
    let (wide, narrow) = (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("fma"));
    match what {
        Multiply::F32 if wide => Some((x86::f32_wide, 2 * 16)),
        Multiply::F32 if narrow && is_x86_feature_detected!("avx2") => {
            Some((x86::f32_narrow, 2 * 8))
        }
        Multiply::Bf16 if amx::available() => Some((x86::bf16_tiles, 2 * 16 * 16 * 32)),
        Multiply::Int8 if amx::available() => Some((x86::int8_tiles, 2 * 16 * 16 * 64)),
        Multiply::Bf16 if wide && is_x86_feature_detected!("avx512bf16") => {
            Some((x86::bf16, 2 * 32))
        }
        Multiply::Int8 if wide && is_x86_feature_detected!("avx512vnni") => {
            Some((x86::int8, 2 * 64))
        }
        _ => None,
    }
}

#[cfg(target_arch = "aarch64")]
fn loop_for(what: Multiply) -> Option<Loop> {
    (what == Multiply::F32).then_some((arm::f32_wide as unsafe fn(), 2 * 4))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn loop_for(_: Multiply) -> Option<Loop> {
    None
}

/// `ROUNDS` times, each of `SUMS` sums becomes `$step` of itself; the results are kept alive so
/// that nothing is left out.
macro_rules! rounds {
    ($zero:expr, $step:expr) => {{
        let mut sums = [$zero; SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = $step(*sum);
            }
        }
        std::hint::black_box(sums);
    }};
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{ROUNDS, SUMS, amx};

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn f32_wide() {
        let (a, b) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(0.25)));
        rounds!(_mm512_setzero_ps(), |sum| _mm512_fmadd_ps(a, b, sum));
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn f32_narrow() {
        let (a, b) = black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(0.25)));
        rounds!(_mm256_setzero_ps(), |sum| _mm256_fmadd_ps(a, b, sum));
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16() {
        let halves = _mm512_set1_ps(0.5);
        let (a, b) =
            black_box((_mm512_cvtne2ps_pbh(halves, halves), _mm512_cvtne2ps_pbh(halves, halves)));
        rounds!(_mm512_setzero_ps(), |sum| _mm512_dpbf16_ps(sum, a, b));
    }

    pub(super) unsafe fn bf16_tiles() {
        // SAFETY: the caller guarantees tiles.
        unsafe { amx::multiply::<false>(ROUNDS * SUMS) }
    }

    pub(super) unsafe fn int8_tiles() {
        // SAFETY: as above.
        unsafe { amx::multiply::<true>(ROUNDS * SUMS) }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn int8() {
        let (a, b) = black_box((_mm512_set1_epi8(1), _mm512_set1_epi8(1)));
        rounds!(_mm512_setzero_si512(), |sum| _mm512_dpbusd_epi32(sum, a, b));
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    use super::{ROUNDS, SUMS};

    #[target_feature(enable = "neon")]
    pub(super) unsafe fn f32_wide() {
        let (a, b) = black_box((vdupq_n_f32(0.5), vdupq_n_f32(0.25)));
        rounds!(vdupq_n_f32(0.0), |sum| vfmaq_f32(sum, a, b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Kernels};

    /// How fast is the machine's affair; that there is a rate, and of what, is ours.
    #[test]
    fn what_is_measured_has_a_rate() {
        assert!(peak_gops(Multiply::F32).is_some() || Kernels::detect().isa() == Isa::Scalar);
        for what in [Multiply::F32, Multiply::Bf16, Multiply::Int8] {
            assert!(peak_gops(what).is_none_or(|rate| rate.is_finite() && rate > 0.0));
        }
    }
}
