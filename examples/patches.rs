//! Shows where a model cuts a text and why: cargo run --release --example patches -- MODEL TEXT [THRESHOLD]

use blt::config::PatcherConfig;
use blt::{Model, Session, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let (model, text, threshold) = match &args[..] {
        [_, model, text] => (model, text, None),
        [_, model, text, threshold] => (model, text, Some(threshold.parse()?)),
        _ => return Err("usage: patches MODEL TEXT [THRESHOLD]".into()),
    };
    let model = Model::open(model)?;
    let own = &model.config().patcher;
    let patcher = PatcherConfig {
        threshold: threshold.unwrap_or(own.threshold),
        ..own.clone()
    };
    println!(
        "{} patching, threshold {} nats",
        patcher.mode, patcher.threshold
    );
    let options = SessionOptions::new()
        .patcher(patcher)
        .entropies(model.has_entropy_model());
    let mut session = Session::new(&model, options)?;
    session.feed(text.as_bytes())?;

    // Position 0 is the begin-of-sequence id, so the byte at position p is p - 1 of the text. Each
    // patch is shown with the entropy of its first byte, which is why it starts there.
    let starts = session.patch_starts();
    for (i, &start) in starts.iter().enumerate().skip(1) {
        let end = starts.get(i + 1).copied().unwrap_or(session.len());
        let patch = &text.as_bytes()[start - 1..end - 1];
        let entropy = session.entropies()[start - 1];
        println!("{entropy:6.3}  {}", patch.escape_ascii());
    }
    Ok(())
}
