//! Runs a target on its corpus and on mutations of it:
//! RUSTFLAGS="--cfg fuzzing" cargo run --release --no-default-features --bin replay -- TARGET SECONDS [SEED]
//!
//! Not a fuzzer: it does not see what code an input reaches. The numbers come from the seed, so a
//! finding can be had again; the input is written to `finding-TARGET` before it is run.

#[path = "../../../tests/common/random.rs"]
mod random;

use std::time::{Duration, Instant};

use random::Random;

/// Half of the mutations are of the first `n_sound` inputs, which the target accepts.
fn mutate(random: &mut Random, corpus: &[Vec<u8>], n_sound: usize) -> Vec<u8> {
    let n = [n_sound, corpus.len()][random.below(2)];
    let mut input = corpus[random.below(n.max(1))].clone();
    for _ in 0..1 + random.below(6) {
        let at = random.below(input.len() + 1);
        let scale = random.below(9);
        let n = random.below(1 << scale);
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 if at < input.len() => input[at] = random.below(256) as u8,
            3 => input.truncate(at),
            4 => drop(input.drain(at..(at + n).min(input.len()))),
            5 => {
                let piece = input[at..(at + n).min(input.len())].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let piece = other[from..(from + n).min(other.len())].to_vec();
                let end = (at + piece.len()).min(input.len());
                input.splice(at..end, piece);
            }
        }
    }
    input
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, name, seconds, seed @ ..] = &args[..] else {
        eprintln!("usage: replay TARGET SECONDS [SEED]");
        std::process::exit(2);
    };
    let seconds: u64 = seconds.parse().expect("a number of seconds");
    let seed = seed.first().map_or(0, |s| s.parse().expect("a number"));
    let target = blt_fuzz::TARGETS.iter().find(|(n, _)| n == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target {name:?}"));

    let folder = format!("{}/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut paths: Vec<_> = entries
        .map(|e| e.expect("a readable folder").path())
        .collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| std::fs::read(path).expect("a readable file");
    let mut corpus: Vec<Vec<u8>> = paths.iter().map(read).collect();
    assert!(!corpus.is_empty(), "{folder} is empty");
    corpus.sort_by_cached_key(|input| !target(input));
    let n_sound = corpus.partition_point(|input| target(input));
    assert!(
        n_sound > 0,
        "nothing of the corpus is accepted any more: if a format has changed, make the seeds again"
    );

    let (start, mut n, mut n_accepted) = (Instant::now(), 0u64, 0u64);
    let mut random = Random(seed);
    let finding = format!("finding-{name}");
    while start.elapsed() < Duration::from_secs(seconds) {
        let input = mutate(&mut random, &corpus, n_sound);
        std::fs::write(&finding, &input).expect("room for the input");
        n_accepted += u64::from(target(&input));
        n += 1;
    }
    let _ = std::fs::remove_file(&finding);
    println!(
        "{name}: {} inputs ({n_sound} accepted) and {n} mutations ({n_accepted}), seed {seed}",
        corpus.len()
    );
}
