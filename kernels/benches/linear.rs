//! The speed of `linear` at the shapes of blt-1b, next to the limits of the machine measured in the same minute.
//!
//! For one input, weights come from memory, so the rate is in GB/s, next to a plain read of the same bytes in alternating
//! passes. For many inputs it is in GFLOP/s, next to a loop of fused multiply-adds in registers. Every case is first
//! checked against the scalar path.
//!
//! `cargo bench -p blt-kernels --bench linear -- [word...]` keeps the cases whose line contains all the
//! words: types (`bf16`), shapes (`2048x2048`), `n=1`, `threads=2`, instruction sets (`avx2`; by default
//! only the best is run).

#[path = "../../tests/common/random.rs"]
mod random;

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use blt_kernels::{
    Bf12, Bf16Activations, BlockFormat, Isa, Precision, QuantizedActivations, Terms, ViewMut,
    Weights, linear, linear_bf16_bf16, linear_quantized, multiply_adds, quantize_activations,
    round_activations,
};
use half::{bf16, f16};
use random::Random;

/// (rows, cols)
const SHAPES: [(usize, usize); 7] = [
    (2048, 2048),
    (5632, 2048),
    (2048, 5632),
    (1024, 2816),
    (768, 2048),
    (2048, 768),
    (2816, 1024),
];

/// Bytes of weights per pass: more than any cache holds.
const ROTATION: usize = 320 << 20;

const PASSES: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F32,
    F16,
    Bf16,
    Bf12,
    /// bf16 weights times bf16 activations.
    Bf16Fast,
    /// With activations in one term or in two.
    Blocks(BlockFormat, Terms),
}

impl Kind {
    const ALL: [Kind; 11] = [
        Kind::Bf12,
        Kind::F32,
        Kind::F16,
        Kind::Bf16,
        Kind::Bf16Fast,
        Kind::Blocks(BlockFormat::Q8_0, Terms::One),
        Kind::Blocks(BlockFormat::Q8_0, Terms::Two),
        Kind::Blocks(BlockFormat::Q4_0, Terms::One),
        Kind::Blocks(BlockFormat::Q4K, Terms::One),
        Kind::Blocks(BlockFormat::Q6K, Terms::One),
        Kind::Blocks(BlockFormat::Q6K, Terms::Two),
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::F32 => "f32",
            Kind::F16 => "f16",
            Kind::Bf16 => "bf16",
            Kind::Bf12 => "bf12",
            Kind::Bf16Fast => "bf16fast",
            Kind::Blocks(BlockFormat::Q8_0, Terms::Two) => "q8_0two",
            Kind::Blocks(BlockFormat::Q6K, Terms::Two) => "q6_ktwo",
            Kind::Blocks(format, _) => format.name(),
        }
    }

    fn weights(self, bytes: &[u8]) -> Weights<'_> {
        match self {
            Kind::F32 => Weights::F32(bytes),
            Kind::F16 => Weights::F16(bytes),
            Kind::Bf16 | Kind::Bf16Fast => Weights::Bf16(bytes),
            Kind::Bf12 => Weights::Bf12(bytes),
            Kind::Blocks(format, _) => Weights::Blocks(format, bytes),
        }
    }

    /// `len` bytes of weights: a short run of noise, repeated.
    fn fill(self, len: usize, cols: usize) -> Vec<u8> {
        let values = noise(1 << 18, 1);
        let stretch: Vec<u8> = match self {
            Kind::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Kind::F16 => encode(&values, |v| f16::from_f32(v).to_le_bytes()),
            Kind::Bf16 | Kind::Bf16Fast => encode(&values, |v| bf16::from_f32(v).to_le_bytes()),
            Kind::Bf12 => {
                let row_bytes = Bf12::row_bytes(cols).unwrap();
                let mut rows = vec![0; values.len() / cols * row_bytes];
                let to = rows.chunks_exact_mut(row_bytes);
                values
                    .chunks_exact(cols)
                    .zip(to)
                    .for_each(|(row, to)| Bf12::pack_row(row, to));
                rows
            }
            Kind::Blocks(format, _) => {
                // A chunk does not depend on the shape of the matrix, so one tile serves every shape.
                let cols = values.len() / 16;
                let mut tile = vec![0; format.tile_bytes(cols).unwrap()];
                format.encode_tile(&values, cols, None, &mut tile);
                tile
            }
        };
        stretch.iter().copied().cycle().take(len).collect()
    }
}

fn encode(values: &[f32], f: impl Fn(f32) -> [u8; 2]) -> Vec<u8> {
    values.iter().flat_map(|&v| f(v)).collect()
}

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.uniform()).collect()
}

/// A barrier that spins: sleeping and waking would cost as much as a small matrix.
struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
}

impl Barrier {
    fn wait(&self) {
        let ticket = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (ticket / self.threads + 1) * self.threads;
        let mut spins = 0;
        while self.arrived.load(Ordering::Acquire) < all {
            spin_loop();
            spins += 1;
            if spins > 10_000 {
                // The other thread has lost its core.
                std::thread::yield_now();
            }
        }
    }
}

/// Runs `work(thread, barrier)` on every thread, `PASSES` times; the seconds of each pass.
fn timed(threads: usize, work: impl Fn(usize, &Barrier) + Sync) -> Vec<f64> {
    let barrier = Barrier {
        threads,
        arrived: AtomicUsize::new(0),
    };
    let run = |thread| {
        let mut times = Vec::new();
        for _ in 0..PASSES {
            barrier.wait();
            let start = Instant::now();
            work(thread, &barrier);
            barrier.wait();
            times.push(start.elapsed().as_secs_f64());
        }
        times
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|t| scope.spawn(move || run(t))).collect();
        let times = run(0);
        workers.into_iter().for_each(|t| drop(t.join().unwrap()));
        times
    })
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// A plain read of all bytes.
fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in bytes.as_chunks::<256>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_avx512(bytes: &[u8]) -> u64 {
    read(bytes)
}

fn probe(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: just checked.
        return unsafe { read_avx512(bytes) };
    }
    read(bytes)
}

/// GFLOP/s of fused multiply-adds in registers on all threads.
fn peak(threads: usize) -> f64 {
    const ROUNDS: usize = 500_000;
    let isa = Isa::detect();
    let times = timed(threads, |_, _| {
        multiply_adds(isa, Precision::F32, ROUNDS);
    });
    let n = threads as u64 * multiply_adds(isa, Precision::F32, ROUNDS);
    n as f64 / median(times) / 1e9
}

/// One multiplication of `rows`, split over the threads.
struct Job<'a> {
    isa: Isa,
    kind: Kind,
    rows: usize,
    cols: usize,
    n: usize,
    threads: usize,
    bytes: &'a [u8],
    x: &'a [f32],
}

impl Job<'_> {
    /// The rows of one thread.
    fn rows_of_thread(&self, thread: usize) -> std::ops::Range<usize> {
        let unit = 16;
        let blocks = self.rows / unit;
        let at = |t: usize| blocks * t / self.threads * unit;
        let end = if thread + 1 == self.threads {
            self.rows
        } else {
            at(thread + 1)
        };
        at(thread)..end
    }

    /// Multiplies `count` matrices one after the other, with a barrier after each, as between layers. Every thread
    /// quantises the activations itself, once per matrix.
    fn run(&self, thread: usize, count: usize, barrier: &Barrier, out: &mut [f32]) {
        let size = self.size();
        let range = self.rows_of_thread(thread);
        let mut quantized = QuantizedActivations::new();
        let mut rounded = Bf16Activations::new();
        for bytes in self.bytes.chunks_exact(size).cycle().take(count) {
            let w = self
                .kind
                .weights(bytes)
                .slice_rows(range.clone(), self.cols);
            let views = ViewMut::dense(out, range.len());
            if let Kind::Blocks(_, terms) = self.kind {
                quantize_activations(self.isa, terms, self.x, self.cols, &mut quantized);
                linear_quantized(self.isa, w, &quantized, views);
            } else if self.kind == Kind::Bf16Fast {
                round_activations(self.isa, self.x, self.cols, &mut rounded);
                linear_bf16_bf16(self.isa, w, &rounded, views);
            } else {
                linear(self.isa, w, self.cols, self.x, views);
            }
            barrier.wait();
        }
    }

    /// Bytes of the matrix.
    fn size(&self) -> usize {
        self.kind.weights(&[]).row_bytes(self.cols) * self.rows
    }

    fn check(&self) {
        let w = self.kind.weights(self.bytes).slice_rows(0..16, self.cols);
        let run = |isa| {
            let mut out = vec![0.0; 16 * self.n];
            let views = ViewMut::dense(&mut out, 16);
            if self.kind == Kind::Bf16Fast {
                let mut rounded = Bf16Activations::new();
                round_activations(isa, self.x, self.cols, &mut rounded);
                linear_bf16_bf16(isa, w, &rounded, views);
            } else if let Kind::Blocks(_, terms) = self.kind {
                let mut quantized = QuantizedActivations::new();
                quantize_activations(isa, terms, self.x, self.cols, &mut quantized);
                linear_quantized(isa, w, &quantized, views);
            } else {
                linear(isa, w, self.cols, self.x, views);
            }
            out
        };
        let (got, want) = (run(self.isa), run(Isa::Scalar));
        if self.isa == Isa::Portable {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
            assert!(
                got.iter().zip(&want).all(near),
                "{} is wrong",
                self.isa.name()
            );
        } else {
            assert_eq!(
                got,
                want,
                "{} differs from the scalar path",
                self.isa.name()
            );
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| !w.starts_with("--"))
        .collect();
    let named: Vec<Isa> = words.iter().filter_map(|w| Isa::by_name(w)).collect();
    let isas = if named.is_empty() {
        vec![Isa::detect()]
    } else {
        named
    };
    for kind in Kind::ALL {
        let mut bytes = Vec::new();
        for isa in &isas {
            for n in [1, 4, 16, 128, 512] {
                for threads in [1, 2] {
                    for (rows, cols) in SHAPES {
                        let line = format!(
                            "{:10} {:4} {rows}x{cols} n={n} threads={threads}",
                            isa.name(),
                            kind.name()
                        );
                        let mut tokens = line.split_whitespace();
                        if !words.iter().all(|w| tokens.clone().any(|t| t == w)) {
                            continue;
                        }
                        let _ = tokens.next();
                        if bytes.is_empty() || kind == Kind::Bf12 {
                            bytes = kind.fill(ROTATION, cols);
                        }
                        let x = noise(n * cols, 2);
                        let job = Job {
                            isa: *isa,
                            kind,
                            rows,
                            cols,
                            n,
                            threads,
                            bytes: &bytes,
                            x: &x,
                        };
                        job.check();
                        report(&job, &line);
                    }
                }
            }
        }
    }
}

fn report(job: &Job, line: &str) {
    let size = job.size();
    let flops = 2 * job.rows * job.cols * job.n;
    let new_out = |thread| vec![0.0; job.rows_of_thread(thread).len() * job.n];
    if job.n <= 8 {
        let count = job.bytes.len() / size;
        let used = count * size;
        // Each pass reads everything twice: once plainly, once as weights.
        let reads = std::sync::Mutex::new(Vec::new());
        let times = timed(job.threads, |thread, barrier| {
            let mut out = new_out(thread);
            let half = used / job.threads;
            barrier.wait();
            let start = Instant::now();
            black_box(probe(&job.bytes[thread * half..][..half]));
            barrier.wait();
            if thread == 0 {
                reads.lock().unwrap().push(start.elapsed().as_secs_f64());
            }
            job.run(thread, count, barrier, &mut out);
            black_box(out);
        });
        let reads = reads.into_inner().unwrap();
        let ours: Vec<f64> = times
            .iter()
            .zip(&reads)
            .map(|(all, read)| all - read)
            .collect();
        let rate = |t: f64| used as f64 / t / 1e9;
        let ratio = median(
            ours.iter()
                .zip(&reads)
                .map(|(ours, read)| read / ours)
                .collect(),
        );
        let best = |t: &[f64]| rate(t.iter().copied().fold(f64::INFINITY, f64::min));
        println!(
            "{line}: {:5.1} GB/s (best {:5.1}), probe {:5.1} (best {:5.1}), ratio {ratio:.2}",
            rate(median(ours.clone())),
            best(&ours),
            rate(median(reads.clone())),
            best(&reads),
        );
    } else {
        let count = (20_000_000_000 / flops).clamp(1, job.bytes.len() / size);
        let times = timed(job.threads, |thread, barrier| {
            let mut out = new_out(thread);
            job.run(thread, count, barrier, &mut out);
            black_box(out);
        });
        let rate = (count * flops) as f64 / median(times.clone()) / 1e9;
        let peak = peak(job.threads);
        let share = rate / peak;
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let best = (count * flops) as f64 / best / 1e9;
        println!(
            "{line}: {rate:5.0} GFLOP/s (best {best:.0}), f32 peak {peak:.0}, share {share:.2}"
        );
    }
}
