//! Adding the difference of two subword models to a byte model: the sums are right, nothing else changes, and what does
//! not fit is refused before anything is written.

use std::path::{Path, PathBuf};
use std::process::Command;

use blt::checkpoint::{
    Checkpoint, Component, OpenOptions, SafetensorsWriter, TensorSpec, WeightFiles,
    bolmo_tensor_name,
};
use blt::output_file::OutputFile;
use blt::tensor::{DType, Tensor};
use blt_quantize::merge::{Merge, Merged};

#[path = "../../tests/common/folder.rs"]
mod folder;
use folder::Folder;

/// A byte model of the engine's tests.
fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bolmo-sliding")
}

fn byte_model() -> Checkpoint {
    let options = OpenOptions {
        tokenizer: Some(case().join("tokenizer")),
        ..OpenOptions::default()
    };
    Checkpoint::open(&case().join("model"), &options).unwrap()
}

/// Whether a subword model has the tensor.
fn is_shared(name: &str, component: Component) -> bool {
    component == Component::Global || name == "decoder.norm"
}

/// A subword model: what the byte model shares with it, each value changed by `change`, and an embedding of its own.
fn subword_model(path: &Path, checkpoint: &Checkpoint, change: impl Fn(f32) -> f32) {
    let mut tensors = vec![(
        "model.embed_tokens.weight".to_string(),
        Tensor::from_values(DType::F32, vec![7, 3], &[0.5; 21]).unwrap(),
    )];
    for (of, tensor) in checkpoint
        .model_tensors()
        .filter(|(of, _)| is_shared(&of.name, of.component))
    {
        let values: Vec<f32> = tensor.to_f32_vec().into_iter().map(&change).collect();
        let changed = Tensor::from_values(DType::F32, tensor.shape().to_vec(), &values).unwrap();
        tensors.push((bolmo_tensor_name(&of.name, checkpoint.config()), changed));
    }
    let specs = tensors
        .iter()
        .map(|(name, tensor)| TensorSpec::of(name, tensor))
        .collect();
    let mut writer = SafetensorsWriter::create(path, &Vec::new(), specs).unwrap();
    for (name, tensor) in &tensors {
        writer.write(name, tensor.bytes()).unwrap();
    }
    writer.finish().unwrap();
}

fn merge(
    byte: &Checkpoint,
    [base, instruct]: [&Path; 2],
    alpha: f32,
    out: &Path,
) -> blt::Result<Merged> {
    let (base, instruct) = (WeightFiles::open(base)?, WeightFiles::open(instruct)?);
    let merge = Merge {
        checkpoint: byte,
        base: &base,
        instruct: &instruct,
        alpha,
    };
    merge.write(|| OutputFile::create(out), |_| Ok(()))
}

#[test]
fn the_difference_is_added_to_what_both_share() {
    let (folder, byte) = (Folder::new("sums"), byte_model());
    let [base, instruct, out] =
        ["base", "instruct", "out"].map(|name| folder.0.join(format!("{name}.safetensors")));
    subword_model(&base, &byte, |w| 0.5 * w);
    subword_model(&instruct, &byte, |w| 2.0 * w + 0.25);
    for alpha in [1.0, 0.5, 0.0] {
        let merged = merge(&byte, [&base, &instruct], alpha, &out).unwrap();
        let result = Checkpoint::open(&out, &OpenOptions::default()).unwrap();
        assert_eq!(result.config(), byte.config());
        let (mut n_changed, mut n_kept) = (0, 0);
        for ((of, before), (_, after)) in byte.model_tensors().zip(result.model_tensors()) {
            if !is_shared(&of.name, of.component) {
                n_kept += 1;
                assert_eq!(after.bytes(), before.bytes(), "{}", of.name);
                continue;
            }
            n_changed += 1;
            let sums = before
                .to_f32_vec()
                .into_iter()
                .map(|w| w + alpha * ((2.0 * w + 0.25) - 0.5 * w));
            let sums: Vec<f32> = sums.collect();
            let expected =
                Tensor::from_values(before.dtype(), before.shape().to_vec(), &sums).unwrap();
            assert_eq!(after.bytes(), expected.bytes(), "{}", of.name);
        }
        assert_eq!((merged.n_changed, merged.n_kept), (n_changed, n_kept));
        assert_eq!(merged.relative_change > 0.0, alpha > 0.0);
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_no_file() {
    let (folder, byte) = (Folder::new("refused"), byte_model());
    let [base, out] = ["base", "out"].map(|name| folder.0.join(format!("{name}.safetensors")));
    subword_model(&base, &byte, |w| w);
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bolmo-bwen/model");
    let blt = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hf-gqa/model");
    // Another subword model, and a model that is not of the family.
    let message = merge(&byte, [&base, &other], 1.0, &out)
        .unwrap_err()
        .to_string();
    assert!(message.contains("model.layers.0"), "{message}");
    let blt = Checkpoint::open(&blt, &OpenOptions::default()).unwrap();
    let message = merge(&blt, [&base, &base], 1.0, &out)
        .unwrap_err()
        .to_string();
    assert!(message.contains("Bolmo"), "{message}");
    assert!(!out.exists());
}

#[test]
fn the_program_writes_a_model_that_opens() {
    let (folder, byte) = (Folder::new("program"), byte_model());
    let [base, instruct, out] =
        ["base", "instruct", "out"].map(|name| folder.0.join(format!("{name}.safetensors")));
    subword_model(&base, &byte, |w| w);
    subword_model(&instruct, &byte, |w| 1.5 * w);
    let program = |args: &[&std::ffi::OsStr]| {
        Command::new(env!("CARGO_BIN_EXE_blt-merge"))
            .args(args)
            .output()
            .unwrap()
    };
    let model = case().join("model");
    let tokenizer = case().join("tokenizer");
    let [byte_path, base, instruct, out_path] =
        [&model, &base, &instruct, &out].map(|path| path.as_os_str());
    let with = [
        "--quiet".as_ref(),
        "--tokenizer".as_ref(),
        tokenizer.as_os_str(),
    ];
    let result = program(&[&[byte_path, base, instruct, out_path], &with[..]].concat());
    assert!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
    assert!(Checkpoint::open(&out, &OpenOptions::default()).is_ok());
    let result = program(
        &[
            &[
                byte_path,
                base,
                instruct,
                out_path,
                "--alpha".as_ref(),
                "NaN".as_ref(),
            ],
            &with[..],
        ]
        .concat(),
    );
    assert_eq!(result.status.code(), Some(2));
}
