//! How a turn went: a line for people, a record for programs.

use serde_json::{Value, json};

use super::turn::{Runner, Turn};
use blt::cli::{memory, units};

/// One line: bytes, speed and seed, or with `verbose` all there is.
pub fn summary(turn: &Turn, runner: &Runner, verbose: bool) -> String {
    let generated = format!(
        "generated {} bytes ({}), {:.1} bytes/s",
        turn.generated.len(),
        turn.finish.unwrap_or("failed"),
        units::per_second(turn.generated.len(), turn.generate_time)
    );
    let seed = format!("seed {}", runner.generate.sampler.seed);
    if !verbose {
        return [generated, seed].join("; ");
    }
    let (patches, mean) = patches(runner);
    let prompt = format!(
        "prompt {} bytes, {:.0} bytes/s",
        turn.prompt_bytes,
        units::per_second(turn.prompt_bytes, turn.prompt_time)
    );
    let mut parts = vec![
        prompt,
        generated,
        format!("{patches} patches of {mean:.2} bytes"),
    ];
    let drafts = runner.session.draft_counts();
    if drafts.n_drafts > 0 {
        let (accepted, drafted) = (drafts.n_accepted, drafts.n_drafted);
        parts.push(format!("{accepted} of {drafted} drafted bytes accepted"));
    }
    if runner.session.n_slides() > 0 {
        parts.push(format!("context slid {} times", runner.session.n_slides()));
    }
    if let Some(bytes) = memory::peak_bytes() {
        parts.push(format!("peak memory {}", units::memory(bytes)));
    }
    parts.push(seed);
    parts.join("; ")
}

/// One object.
pub fn record(turn: &Turn, runner: &Runner) -> Value {
    let (patches, mean) = patches(runner);
    let hex: String = turn.generated.iter().map(|b| format!("{b:02x}")).collect();
    json!({
        "text": String::from_utf8_lossy(&turn.generated),
        "generated_hex": hex,
        "finish": turn.finish,
        "prompt_bytes": turn.prompt_bytes,
        "generated_bytes": turn.generated.len(),
        "prompt_bytes_per_second": units::per_second(turn.prompt_bytes, turn.prompt_time),
        "generated_bytes_per_second": units::per_second(turn.generated.len(), turn.generate_time),
        "patches": patches,
        "mean_patch_length": mean,
        "patch_starts": runner.session.patch_starts(),
        "drafted_bytes": runner.session.draft_counts().n_drafted,
        "accepted_bytes": runner.session.draft_counts().n_accepted,
        "slides": runner.session.n_slides(),
        "seed": runner.generate.sampler.seed,
        "peak_memory_bytes": memory::peak_bytes(),
    })
}

/// Number of patches that the text in view fills or has begun, BOS's own included, and their mean
/// length.
fn patches(runner: &Runner) -> (usize, f64) {
    let session = &runner.session;
    let n = session
        .patch_starts()
        .iter()
        .filter(|&&s| s < session.len())
        .count();
    (n, units::ratio(session.len(), n))
}
