//! What quantising costs trained models, held to what is promised of it.
//!
//! The default model reads its own stories. A second model (24 MB) and its text are not in the
//! repository: `BLT_MODELS` names a folder with the model `stories`, `BLT_TEXT` the text.

use std::path::{Path, PathBuf};

use blt::checkpoint::{Checkpoint, OpenOptions};
use blt::ops::Compute;
use blt::output_file::OutputFile;
use blt::sampler::SamplerConfig;
use blt::{GenerateOptions, Model, Session, SessionOptions};
use blt_kernels::BlockFormat;
use blt_quantize::convert::{Importance, Job};
use blt_quantize::policy::{Policy, Target};
use blt_quantize::{evaluate, report};

/// Format, most growth of bits per byte, least share of patch starts unchanged.
const PROMISES: [(BlockFormat, f64, f64); 2] = [
    (BlockFormat::Q8_0, 0.002, 0.999),
    (BlockFormat::Q4K, 0.02, 0.99),
];

fn load(checkpoint: &Checkpoint) -> Model {
    Model::load(checkpoint, Compute::new(None, None).unwrap()).unwrap()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default()).unwrap()
}

fn keeps_its_promises(model: &Path, text: &[u8]) {
    let checkpoint = open(model);
    let before = load(&checkpoint);
    for (format, growth, boundaries) in PROMISES {
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
        let name = model.file_stem().unwrap().display();
        let name = format!("blt-{name}-{}-{}", std::process::id(), format.name());
        let out = std::env::temp_dir().join(name);
        job.write(|| OutputFile::create(&out), |_| Ok(())).unwrap();
        let after = load(&open(&out));
        std::fs::remove_file(&out).unwrap();
        let c = evaluate::compare(&before, &after, text, 512, |_| Ok(())).unwrap();
        let report = format!("{}\n{}", format.name(), report::comparison(&c));
        println!("{report}");
        assert!(c.n == text.len() && c.growth() <= growth, "{report}");
        assert!(c.boundary_agreement() >= boundaries, "{report}");
    }
}

#[test]
fn the_default_model_keeps_its_quality() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/default.safetensors");
    let model = load(&open(&path));
    let mut text = Vec::new();
    for seed in 0..3 {
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        let options = GenerateOptions {
            max_bytes: Some(6000),
            sampler: SamplerConfig {
                seed,
                ignore_eos: true,
                ..SamplerConfig::default()
            },
            ..GenerateOptions::default()
        };
        session.feed(b"Once upon a time").unwrap();
        for byte in session.generate(&options).unwrap() {
            text.push(byte.unwrap());
        }
    }
    keeps_its_promises(&path, &text);
}

#[test]
#[ignore = "needs a trained checkpoint: BLT_MODELS=FOLDER BLT_TEXT=FILE cargo test -- --ignored"]
fn the_stories_model_keeps_its_quality() {
    let variable = |name: &str| PathBuf::from(std::env::var_os(name).expect(name));
    let text = std::fs::read(variable("BLT_TEXT")).unwrap();
    // More would take too long for a test.
    let text = &text[..text.len().min(6144)];
    keeps_its_promises(&variable("BLT_MODELS").join("stories"), text);
}
