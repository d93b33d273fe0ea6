//! The arithmetic peak of the workers together, which the benchmarks compare with.

use fletcher_core::backend::Precision;
use fletcher_kernels::{Multiply, peak_gops};

/// Times that each thread measures. The first begins before the others do and the last goes on
/// after they have ended; what is measured between has all of them busy.
const TIMES: usize = 3;

/// Billions of operations a second of `threads` threads at once in this number format; `None`
/// where the CPU has no instruction for it. Takes a third of a second.
///
/// Two CPUs may be the two threads of one core, which share its multipliers, so a rate counts only
/// while the others multiply too. More threads than CPUs take turns and add nothing.
pub fn peak(precision: Precision, threads: usize) -> Option<f64> {
    let what = match precision {
        Precision::F32 => Multiply::F32,
        Precision::Bf16 => Multiply::Bf16,
        Precision::Int8 => Multiply::Int8,
        Precision::Auto | Precision::F16 => return None,
    };
    let cpus = std::thread::available_parallelism().map_or(threads, usize::from);
    let measure = || [(); TIMES].map(|()| peak_gops(what))[TIMES / 2];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(cpus)).map(|_| scope.spawn(measure)).collect();
        workers.into_iter().map(|worker| worker.join().ok().flatten()).sum()
    })
}
