//! What quantising costs a trained model, held to what is promised of it.
//!
//! The model (24 MB) and the text are not in the repository: they are looked for in `BLT_MODELS` and
//! `BLT_TEXT`, else beside the project.

use std::path::{Path, PathBuf};

use blt::Model;
use blt::checkpoint::{Checkpoint, OpenOptions};
use blt::ops::Compute;
use blt_kernels::BlockFormat;
use blt_quantize::convert::{Importance, Job};
use blt_quantize::evaluate;
use blt_quantize::policy::{Policy, Target};

/// Bytes read; a longer text takes too long for a test.
const TEXT: usize = 6144;

fn found(variable: &str, beside: &str) -> Option<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(beside),
    };
    let found = path.exists();
    if !found {
        println!("skipped: {} is not there", path.display());
    }
    found.then_some(path)
}

#[test]
fn a_trained_model_keeps_its_quality() {
    let model = found("BLT_MODELS", "../../shared/models").map(|folder| folder.join("stories"));
    let text = found("BLT_TEXT", "../../shared/data/tinystories.valid.txt");
    let (Some(model), Some(text)) = (model, text) else {
        return;
    };
    let text = std::fs::read(text).unwrap();
    let text = &text[..TEXT.min(text.len())];
    let checkpoint = Checkpoint::open(&model, &OpenOptions::default()).unwrap();
    let load = |c: &Checkpoint| Model::load(c, Compute::new(None, None).unwrap()).unwrap();
    let before = load(&checkpoint);
    // (format, most growth of bits per byte, least share of boundaries unchanged)
    for (format, growth, boundaries) in [
        (BlockFormat::Q8_0, 0.002, 0.999),
        (BlockFormat::Q4K, 0.02, 0.99),
    ] {
        let policy = Policy {
            main: Target::Blocks(format),
            rules: Vec::new(),
        };
        let plan = policy.plan(&checkpoint).unwrap();
        let job = Job {
            checkpoint: &checkpoint,
            plan: &plan,
            importance: &Importance::new(),
            threads: 2,
        };
        let name = format!("blt-stories-{}-{}", std::process::id(), format.name());
        let out = std::env::temp_dir().join(name);
        job.write(&out, |_| Ok(())).unwrap();
        let after = load(&Checkpoint::open(&out, &OpenOptions::default()).unwrap());
        std::fs::remove_file(&out).unwrap();
        let c = evaluate::compare(&before, &after, text, 512, |_| Ok(())).unwrap();
        let report = blt_quantize::report::comparison(&c);
        assert!(c.growth() <= growth, "{}\n{report}", format.name());
        assert!(
            c.boundary_agreement() >= boundaries,
            "{}\n{report}",
            format.name()
        );
    }
}
