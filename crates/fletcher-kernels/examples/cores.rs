//! How near two cores are to each other at this moment.
//!
//! `cores [SECONDS]` prints, once a second, what two threads have of the multipliers compared with
//! one, how long a cache line takes to another core and back, and what a line costs that one core
//! writes and another reads, over and over: by plain stores and as `RowCopy` hands it over. Virtual
//! CPUs are moved about by their host: on the same machine they are now two halves of one core, now
//! cores that share a cache and now cores that share none, and one text's time on two cores changes
//! with it. Pin the two threads to what should be compared (`taskset`) where there are more.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fletcher_kernels::{
    Activation, AlignedBuffer, Barrier, Epilogue, Format, Gemm, Input, Kernels, LinearShape,
    Output, RowCopy,
};

/// Measurements of a line that goes to and fro,
const BALLS: usize = 40;
/// this many times.
const VOLLEY: usize = 100;
/// Products that are timed.
const PRODUCTS: usize = 2_000;
/// A row of keys and values of 384 columns in bfloat16, in f32 …
const COLUMNS: usize = 384;
/// … and a text's half of them.
const ROWS: usize = 64;
/// Times that they are handed over.
const TURNS: usize = 200;

/// What both threads give, run at the same time.
fn both<R: Send>(run: impl Fn(usize) -> R + Sync) -> [R; 2] {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let own = run(0);
        match other.join() {
            Ok(other) => [own, other],
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e9
}

/// Nanoseconds of a line to the other core and back.
fn round_trip() -> f64 {
    let ball = AtomicUsize::new(0);
    let [mut times, _] = both(|side| {
        let rounds = (0..BALLS).map(|round| {
            let start = Instant::now();
            for turn in round * VOLLEY..(round + 1) * VOLLEY {
                while ball.load(Ordering::Acquire) != 2 * turn + side {
                    std::hint::spin_loop();
                }
                ball.store(2 * turn + side + 1, Ordering::Release);
            }
            start.elapsed()
        });
        rounds.collect::<Vec<_>>()
    });
    median(&mut times) / VOLLEY as f64
}

/// Nanoseconds of a product whose operands are at hand, for one thread or for two at once.
fn product(threads: usize) -> f64 {
    let kernels = Kernels::detect();
    let barrier = Barrier::new(threads);
    let time = |_| {
        let shape = LinearShape { rows: 64, cols: 64, gated: false };
        let linear = kernels.pack(Format::F32, shape, &[0.5; 64 * 64], None);
        let (x, mut y) = ([0.5; 64 * 64], [0.0; 64 * 64]);
        barrier.wait();
        let times = (0..PRODUCTS).map(|_| {
            let (x, y) = (Input::F32(&x), Output::F32(&mut y));
            let epilogue = Epilogue::Activate(Activation::Identity);
            let (x_stride, y_stride) = (64, 64);
            let start = Instant::now();
            kernels.gemm(Gemm { linear: &linear, rows: 64, x, x_stride, y, y_stride, epilogue });
            start.elapsed()
        });
        median(&mut times.collect::<Vec<_>>())
    };
    if threads == 1 { time(0) } else { both(time).into_iter().fold(0.0, f64::max) }
}

/// Nanoseconds a line, of the core that writes it and of the one that reads it.
fn exchange(past_caches: bool) -> [f64; 2] {
    let outboxes = [0, 1].map(|_| RwLock::new(AlignedBuffer::<f32>::new(ROWS * COLUMNS)));
    let barrier = Barrier::new(2);
    let [mut times, _] = both(|side| {
        let (rows, columns, from_stride, to_stride) = (ROWS, COLUMNS, COLUMNS, COLUMNS);
        let mut own = AlignedBuffer::<f32>::new(ROWS * COLUMNS);
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            barrier.wait();
            let start = Instant::now();
            if let Ok(mut to) = outboxes[side].write() {
                match past_caches {
                    true => {
                        let (from, to) = (&own[..], &mut to[..]);
                        RowCopy { rows, columns, from, from_stride, to, to_stride }.hand_over();
                    }
                    false => to.copy_from_slice(&own),
                }
            }
            writes.push(start.elapsed());
            barrier.wait();
            let start = Instant::now();
            if let Ok(from) = outboxes[1 - side].read() {
                let (from, to) = (&from[..], &mut own[..]);
                RowCopy { rows, columns, from, from_stride, to, to_stride }.take_over();
            }
            reads.push(start.elapsed());
        }
        [writes, reads]
    });
    let lines = (ROWS * COLUMNS * size_of::<f32>() / 64) as f64;
    [median(&mut times[0]) / lines, median(&mut times[1]) / lines]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds: u64 = std::env::args().nth(1).map_or(Ok(1), |word| word.parse())?;
    println!("multipliers of both   round trip   ns a line, plain: write read   past the caches");
    for second in 0..seconds {
        if second > 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
        let multipliers = 2.0 * product(1) / product(2);
        let ([write, read], [write_past, read_past]) = (exchange(false), exchange(true));
        println!(
            "{:>19.2}   {:>7.0} ns   {write:>23.1} {read:>4.1}   {write_past:>10.1} {read_past:>4.1}",
            multipliers,
            round_trip(),
        );
    }
    Ok(())
}
