//! How fast this machine reads memory: what generation is limited by.

use std::time::Instant;

use blt::Result;

/// Far beyond any cache that two or three cores can have to themselves.
const BYTES: usize = 512 << 20;
/// Number of passes, of which the best counts: other programs can only slow one down.
const PASSES: usize = 5;

/// Bytes per second that `n_threads` threads read together, one after the other byte.
pub fn read_bandwidth(n_threads: usize) -> Result<f64> {
    let words = vec![1u64; BYTES / size_of::<u64>()];
    let share = words.len().div_ceil(n_threads);
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        let sum: u64 = std::thread::scope(|scope| {
            let parts = words.chunks(share);
            let threads: Vec<_> = parts.map(|part| scope.spawn(|| sum(part))).collect();
            threads.into_iter().filter_map(|t| t.join().ok()).sum()
        });
        let seconds = start.elapsed().as_secs_f64();
        // Looking at the sum keeps the compiler from leaving the reading out.
        if sum != words.len() as u64 {
            return Err(blt::Error::Unsupported(format!(
                "read-bandwidth probe: expected the sum {}, found {sum}",
                words.len()
            )));
        }
        best = best.min(seconds);
    }
    Ok(BYTES as f64 / best)
}

/// Sixteen sums side by side, so that adding is never what takes the time.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    let (chunks, rest) = words.as_chunks::<16>();
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |a, &b| a.wrapping_add(b))
}
