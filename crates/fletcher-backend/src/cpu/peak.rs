//! The arithmetic peak of the workers together, which the benchmarks compare with.

use fletcher_core::backend::Precision;
use fletcher_kernels::{Multiply, peak_gops};

/// Billions of operations a second of `threads` threads at once in this number format; `None`
/// where the CPU has no instruction for it. Takes a tenth of a second.
pub fn peak(precision: Precision, threads: usize) -> Option<f64> {
    let what = match precision {
        Precision::F32 => Multiply::F32,
        Precision::Bf16 => Multiply::Bf16,
        Precision::Int8 => Multiply::Int8,
        Precision::Auto | Precision::F16 => return None,
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(move || peak_gops(what))).collect();
        workers.into_iter().map(|worker| worker.join().ok().flatten()).sum()
    })
}
