//! Makes the seeds of the state target again, for when the format of saved sessions has changed:
//! cargo run --release --no-default-features --bin seeds

use std::path::Path;

use blt::config::{PatcherConfig, PatchingMode};
use blt::{KvType, Model, Overflow, Session, SessionOptions};

fn main() -> blt::Result<()> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = Model::open(fuzz.join("../tests/data/meta-space/hub"))?;
    let patcher = PatcherConfig {
        mode: PatchingMode::Static,
        threshold_add: Some(0.5),
        max_patch_length: Some(6),
        ..model.config().patcher.clone()
    };
    let settings = SessionOptions::new()
        .no_bos(true)
        .patcher(patcher)
        .patch_lengths([2, 3])
        .entropy_reset(9)
        .max_bytes(40)
        .max_patches(20)
        .overflow(Overflow::Slide { keep: 4 });
    let seeds = [
        ("empty", SessionOptions::new(), ""),
        ("short", SessionOptions::new(), "a b"),
        ("half", SessionOptions::new().kv(KvType::F16), "a b"),
        ("settings", settings, "The sun was out."),
    ];
    for (name, options, text) in seeds {
        let mut session = Session::new(&model, options)?;
        if !text.is_empty() {
            session.feed(text.as_bytes())?; // which would give even no bytes a BOS
        }
        session.save(fuzz.join("corpus/state").join(name))?;
    }
    Ok(())
}
