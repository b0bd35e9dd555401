//! The limits of this machine: the rate of memory reads, and of arithmetic in registers.
//!
//! `cargo bench -p blt-kernels --bench limits -- [THREADS]` prints one line of JSON: `read` in GB/s (the
//! median and the best pass), `f32`, `bf16` and `int8` in GOP/s, the last two where the CPU has such
//! instructions (512 bits wide), else null. A multiplication and an addition are two operations. Takes two
//! seconds.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use blt_kernels::{Isa, Precision, multiply_adds};

/// Bytes read in a pass, all threads together: far beyond any cache.
const BYTES: usize = 1 << 30;
const PASSES: usize = 7;
/// Rounds of the arithmetic loops.
const ROUNDS: usize = 4_000_000;
/// Independent sums, so that no instruction waits for the previous one.
const CHAINS: usize = 12;

fn main() {
    let number = std::env::args().skip(1).find_map(|a| a.parse().ok());
    let threads =
        number.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let words = vec![1u64; BYTES / size_of::<u64>()];
    let share = words.len() / threads;
    let mut reads = seconds(threads, |t| {
        black_box(sum(&words[t * share..][..share]));
    });
    reads.sort_by(f64::total_cmp);
    let rate = |seconds: f64| (threads * share * size_of::<u64>()) as f64 / seconds / 1e9;
    let peak = |run: Option<&(dyn Fn() -> u64 + Sync)>| match run {
        None => "null".into(),
        Some(run) => {
            let operations = run() * threads as u64;
            let times = seconds(threads, |_| {
                black_box(run());
            });
            let best = times.into_iter().fold(f64::INFINITY, f64::min);
            format!("{:.0}", operations as f64 / best / 1e9)
        }
    };
    let isa = Isa::detect();
    let f32 = || multiply_adds(isa, Precision::F32, ROUNDS / 2);
    let bf16 = || multiply_adds(isa, Precision::Bf16, ROUNDS / 2);
    let has_bf16 = Precision::Bf16.is_available(isa);
    println!(
        r#"{{"threads": {threads}, "read": {:.2}, "read_best": {:.2}, "f32": {}, "bf16": {}, "int8": {}}}"#,
        rate(reads[PASSES / 2]),
        rate(reads[0]),
        peak(Some(&f32)),
        peak(has_bf16.then_some(&bf16)),
        peak(int8_products()),
    );
}

/// The time of each pass of `work(thread)` on all threads.
fn seconds(threads: usize, work: impl Fn(usize) + Sync) -> Vec<f64> {
    let barrier = Barrier::new(threads);
    let run = |thread| {
        let pass = |_| {
            barrier.wait();
            let start = Instant::now();
            work(thread);
            barrier.wait();
            start.elapsed().as_secs_f64()
        };
        (0..PASSES).map(pass).collect::<Vec<f64>>()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads)
            .map(|t| scope.spawn(move || drop(run(t))))
            .collect();
        let times = run(0);
        workers.into_iter().for_each(|t| t.join().unwrap());
        times
    })
}

fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: just checked.
        return unsafe { x86::sum(words) };
    }
    let mut sums = [0u64; 32];
    for chunk in words.as_chunks::<32>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}

/// A loop of int8 arithmetic that returns its number of operations, where this CPU has such instructions.
fn int8_products() -> Option<&'static (dyn Fn() -> u64 + Sync)> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: just checked.
        return Some(&|| unsafe { x86::int8() });
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CHAINS, ROUNDS, black_box};
    use std::arch::x86_64::*;

    /// Written with intrinsics, because the compiler turns the plain loop into scalar loads.
    #[target_feature(enable = "avx512f")]
    pub fn sum(words: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for chunk in words.as_chunks::<32>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunk has 4 times 8 words.
                let eight = unsafe { _mm512_loadu_si512(chunk.as_ptr().add(8 * i).cast()) };
                *sum = _mm512_add_epi64(*sum, eight);
            }
        }
        let sum = sums
            .iter()
            .fold(_mm512_setzero_si512(), |a, &b| _mm512_add_epi64(a, b));
        _mm512_reduce_add_epi64(sum) as u64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn int8() -> u64 {
        let (a, b) = (
            _mm512_set1_epi8(black_box(3)),
            _mm512_set1_epi8(black_box(-5)),
        );
        let mut sums = [_mm512_set1_epi32(black_box(0)); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        (2 * 64 * CHAINS * ROUNDS) as u64
    }
}
