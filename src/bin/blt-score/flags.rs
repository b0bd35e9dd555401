//! Scores of a model whose bytes carry flags: three numbers, of which two are code lengths.

use std::io::Write;
use std::time::{Duration, Instant};

use blt::session::{BYTES_PER_PASS, FlagScore, FlagScorer};
use blt::vocab::id_to_byte;
use blt::{Model, Session, SessionOptions};
use serde_json::json;

use blt::cli::args::Failure;
use blt::cli::progress::Progress;
use blt::cli::{interrupt, memory, units};

use super::Args;
use super::input::Input;

/// Scores a text in one piece: it must fit into the context.
pub fn run(args: &Args, model: &Model, mut input: Input) -> Result<(), Failure> {
    let refused = [
        ("--per-byte", args.per_byte.is_some()),
        ("--html", args.html.is_some()),
        ("--dump", args.dump.is_some()),
        ("--raw-ids", args.raw_ids.is_some()),
        ("--overlap", args.overlap > 0),
        ("--threshold", args.threshold.is_some()),
        ("--entropy-reset", args.entropy_reset.is_some()),
    ];
    if let Some((name, _)) = refused.iter().find(|(_, given)| *given) {
        return Err(Failure::Usage(format!(
            "{name}: expected none with a Bolmo model"
        )));
    }
    let options = SessionOptions {
        max_bytes: args.context,
        kv: args.kv,
        ..SessionOptions::default()
    };
    let mut scorer = FlagScorer::new(Session::new(model, options)?)?;
    let start = Instant::now();
    let mut progress = Progress::new("scoring", input.total, args.quiet);
    let (mut done, mut interrupted) = (0, false);
    while let Some(piece) = input.next_piece(None)? {
        if input.n_documents > 1 {
            return Err(Failure::failed(format!(
                "{}: expected one document with a Bolmo model, found more; --separator \"\" reads a file as one",
                input.name()
            )));
        }
        for start in piece.range.clone().step_by(BYTES_PER_PASS) {
            let ids = piece.ids(start..piece.range.end.min(start + BYTES_PER_PASS));
            let bytes: Vec<u8> = ids.iter().copied().filter_map(id_to_byte).collect();
            scorer.push(&bytes)?;
            done += bytes.len() as u64;
            progress.set(done);
            if interrupt::requested() {
                interrupted = true;
                break;
            }
        }
        if interrupted {
            break;
        }
    }
    progress.finish();
    let time = start.elapsed();
    let n_patches = scorer.session().patch_starts().len();
    let n_ids = scorer.session().len();
    let score = scorer.finish();
    let patch_length = n_ids as f64 / n_patches as f64;
    let report = match args.json {
        true => record(&score, patch_length, time, interrupted),
        false => figures(&score, patch_length, time),
    };
    let mut out = std::io::stdout().lock();
    (out.write_all(report.as_bytes()).and_then(|()| out.flush())).map_err(Failure::of_output)?;
    match interrupted {
        false => Ok(()),
        true => Err(Failure::Interrupted(format!(
            "interrupted: the figures are those of the first {done} bytes"
        ))),
    }
}

fn figures(score: &FlagScore, patch_length: f64, time: Duration) -> String {
    if score.n_bytes == 0 {
        return "nothing to score: the text is empty\n".into();
    }
    let per_byte = |bits: f64| bits / score.n_bytes as f64;
    format!(
        "{:.4} bits per byte, causal: each flag is the one the model would choose; a code length\n\
         {:.4} bits per byte, joint: flags sent with the bytes; a code length\n\
         {:.4} bits per byte, folded: each flag has seen the next byte; not a code length\n\
         {:.2} % of bytes were the most probable (causal)\n\
         {} bytes, patches of {patch_length:.2} bytes when read\n\
         {}, {:.0} bytes/s\n",
        per_byte(score.causal_bits),
        per_byte(score.joint_bits),
        per_byte(score.folded_bits),
        100.0 * per_byte(score.n_hits as f64),
        units::count(score.n_bytes as u64),
        units::duration(time),
        units::per_second(score.n_bytes, time),
    )
}

fn record(score: &FlagScore, patch_length: f64, time: Duration, interrupted: bool) -> String {
    let per_byte = |bits: f64| bits / score.n_bytes as f64;
    let record = json!({
        "bits_per_byte": per_byte(score.causal_bits),
        "joint_bits_per_byte": per_byte(score.joint_bits),
        "folded_bits_per_byte": per_byte(score.folded_bits),
        "perplexity": per_byte(score.causal_bits).exp2(),
        "accuracy": per_byte(score.n_hits as f64),
        "bytes": score.n_bytes,
        "mean_patch_length": patch_length,
        "seconds": time.as_secs_f64(),
        "bytes_per_second": units::per_second(score.n_bytes, time),
        "peak_memory_bytes": memory::peak_bytes(),
        "interrupted": interrupted,
    });
    format!("{record}\n")
}
