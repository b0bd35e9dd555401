//! Bolmo models in every type: the file opens by itself, says what it is, and reads and writes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use blt::checkpoint::{Checkpoint, OpenOptions, Role};
use blt::ops::Compute;
use blt::{GenerateOptions, Model, Session, SessionOptions};
use blt_quantize::evaluate;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data")
        .join(name)
}

fn quantize(case: &str, out: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blt-quantize"))
        .arg(data(case).join("model"))
        .arg(out)
        .arg("--tokenizer")
        .arg(data(case).join("tokenizer"))
        .arg("--quiet")
        .args(args)
        .output()
        .unwrap()
}

fn model(checkpoint: &Checkpoint) -> Model {
    Model::load(checkpoint, Compute::new(Some(1), None).unwrap()).unwrap()
}

#[test]
fn every_type_gives_one_file_that_runs() {
    let folder = std::env::temp_dir().join(format!("blt-quantize-bolmo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = std::fs::read(data("bolmo-sliding/tokenizer/tokenizer_config.json")).unwrap();
    for case in ["bolmo-sliding", "bolmo-bf16", "bolmo-bwen"] {
        let options = OpenOptions {
            tokenizer: Some(data(case).join("tokenizer")),
            ..OpenOptions::default()
        };
        let source = Checkpoint::open(&data(case).join("model"), &options).unwrap();
        let before = model(&source);
        for (option, name) in [
            ("--to", "f32"),
            ("--to", "f16"),
            ("--to", "bf16"),
            ("--to", "bf12"),
            ("--to", "keep"),
            ("--type", "q8_0"),
            ("--type", "q6_k"),
            ("--type", "q4_k"),
            ("--type", "q4_0"),
        ] {
            let out = folder.join(format!("{case}.{name}.safetensors"));
            let result = quantize(case, &out, &[option, name]);
            assert!(
                result.status.success(),
                "{case} {name}: {}",
                String::from_utf8_lossy(&result.stderr)
            );
            let checkpoint = Checkpoint::open(&out, &OpenOptions::default()).unwrap();
            assert_eq!(checkpoint.config(), source.config(), "{case} {name}");
            for (of, tensor) in checkpoint
                .model_tensors()
                .filter(|(of, _)| matches!(of.role, Role::Gate | Role::Bias))
            {
                assert!(!tensor.dtype().is_quantized(), "{case} {name}: {}", of.name);
            }
            let after = model(&checkpoint);
            let mut session = Session::new(&after, SessionOptions::default()).unwrap();
            session.feed(&text).unwrap();
            let bytes = session
                .generate(&GenerateOptions::new().max_bytes(20))
                .unwrap();
            assert!(bytes.collect::<blt::Result<Vec<u8>>>().unwrap().len() <= 20);
            let comparison = evaluate::compare(&before, &after, &text, 64, |_| Ok(())).unwrap();
            assert_eq!(comparison.n, text.len(), "{case} {name}");
            let agreement = comparison.boundary_agreement();
            // Random weights decide closely: what the type costs a trained model is not to be had here.
            let least = match name {
                "f32" | "keep" => 1.0,
                "f16" | "bf16" | "bf12" => 0.8,
                _ => 0.5,
            };
            assert!(
                agreement >= least,
                "{case} {name}: {agreement} of the patches start where they did"
            );
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn other_layouts_are_refused() {
    let folder = std::env::temp_dir().join(format!("blt-quantize-bolmo-hf-{}", std::process::id()));
    let result = quantize("bolmo-sliding", &folder, &["--to", "hf"]);
    assert_eq!(result.status.code(), Some(1));
    let message = String::from_utf8_lossy(&result.stderr);
    assert!(message.contains("Bolmo"), "{message}");
    assert!(!folder.exists());
}
