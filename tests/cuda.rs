//! The GPU against the CPU: every reference case, every format, every way to feed a text.
//!
//! Without a device the tests say "skipped: no CUDA device". On a machine without one they can run
//! against kernels/cuda/emulate, which executes the kernels on the CPU.
#![cfg(feature = "cuda")]

mod common;

use blt::checkpoint::{Checkpoint, write_native};
use blt::ops::Compute;
use blt::tensor::{DType, Tensor};
use blt::vocab::{Id, VOCAB_SIZE};
use blt::{Device, Model, Session, SessionOptions};
use blt_kernels::BlockFormat;

/// Largest difference of a logit, relative to the largest logit. Both sides sum in f32, in different
/// orders; in products of many rows the GPU's terms have 16 bits.
const TOLERANCE: f32 = 1e-3;
/// The same for entropies, in nats: patches must start alike where none is so near the threshold.
const ENTROPY_TOLERANCE: f32 = 1e-3;

fn have_device() -> bool {
    let found = blt::devices().is_ok_and(|devices| !devices.is_empty());
    if !found {
        eprintln!("skipped: no CUDA device");
    }
    found
}

fn on_gpu(model: &Model) -> Model {
    model.on_device(Device::Cuda(0)).unwrap()
}

fn load(checkpoint: &Checkpoint) -> Model {
    Model::load(checkpoint, Compute::new(Some(1), None).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let difference = (f - e).abs();
        assert!(
            difference <= TOLERANCE * largest,
            "{what}: value {i}: expected {e}, found {f}, difference {difference:e}"
        );
    }
}

/// Reads ids in pieces.
fn read(model: &Model, ids: &[Id], piece: usize) -> (Vec<f32>, Session) {
    let mut session = common::session(model, SessionOptions::default());
    let mut logits = Vec::new();
    for ids in ids.chunks(piece) {
        common::feed(&mut session, ids, &mut logits);
    }
    (logits, session)
}

/// Compares two readings of a text: patches, entropies, logits. Where an entropy is too near the
/// threshold for a comparison of patches, says so.
fn compare(what: &str, gpu: &(Vec<f32>, Session), cpu: &(Vec<f32>, Session)) {
    for (i, (g, c)) in gpu.1.entropies().iter().zip(cpu.1.entropies()).enumerate() {
        assert!(
            g.is_nan() && c.is_nan() || (g - c).abs() <= ENTROPY_TOLERANCE,
            "{what}: entropy {i}: expected {c}, found {g}"
        );
    }
    assert_eq!(
        gpu.1.patch_starts(),
        cpu.1.patch_starts(),
        "{what}: patch starts"
    );
    assert_close(what, &gpu.0, &cpu.0);
}

#[test]
fn reference_cases_agree_with_the_cpu() {
    if !have_device() {
        return;
    }
    for case in common::cases() {
        for (layout, model) in case.models() {
            let gpu = on_gpu(&model);
            for prompt in case.prompts() {
                let ids = prompt.ids();
                let what = format!("{}/{layout}/{}", case.name, prompt.name());
                compare(&what, &read(&gpu, &ids, 1000), &read(&model, &ids, 1000));
            }
        }
    }
}

/// The checkpoint with its weights as they are after quantisation, in f32: the CPU's products with
/// block formats round the activations too, which the GPU's do not.
fn widened(checkpoint: &Checkpoint, format: BlockFormat) -> Checkpoint {
    let tensors = checkpoint.tensors().map(|(name, tensor)| {
        let (shape, values) = (tensor.shape().to_vec(), tensor.to_f32_vec());
        (name.to_owned(), Tensor::from_f32(shape, values).unwrap())
    });
    let name = format!("blt-cuda-{}-{}", std::process::id(), format.name());
    let path = std::env::temp_dir().join(name);
    write_native(&path, checkpoint.config(), tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    Checkpoint::from_native_bytes(bytes).unwrap()
}

#[test]
fn every_block_format_agrees_with_its_values() {
    if !have_device() {
        return;
    }
    let case = common::cases()
        .into_iter()
        .find(|c| c.name == "meta-bf16")
        .unwrap();
    let (_, checkpoint) = case.checkpoints().remove(0);
    let ids = case.prompts()[0].ids();
    for format in BlockFormat::ALL {
        let quantized = common::quantized(&checkpoint, format);
        let expected = read(&load(&widened(&quantized, format)), &ids, 1000);
        let gpu = on_gpu(&load(&quantized));
        for piece in [1000, 1] {
            let what = format!("{}, {piece} at once", format.name());
            compare(&what, &read(&gpu, &ids, piece), &expected);
        }
    }
}

#[test]
fn half_precision_agrees_with_the_cpu() {
    if !have_device() {
        return;
    }
    let case = common::cases()
        .into_iter()
        .find(|c| c.name == "hf-gqa")
        .unwrap();
    let (_, checkpoint) = case.checkpoints().remove(0);
    let ids = case.prompts()[0].ids();
    for dtype in DType::FLOATS {
        let tensors = checkpoint.tensors().map(|(name, tensor)| {
            let (shape, values) = (tensor.shape().to_vec(), tensor.to_f32_vec());
            (
                name.to_owned(),
                Tensor::from_values(dtype, shape, &values).unwrap(),
            )
        });
        let path = std::env::temp_dir().join(format!("blt-cuda-{}-{dtype}", std::process::id()));
        write_native(&path, checkpoint.config(), tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let model = load(&Checkpoint::from_native_bytes(bytes).unwrap());
        let expected = read(&model, &ids, 1000);
        for piece in [1000, 1] {
            let what = format!("{dtype}, {piece} at once");
            compare(&what, &read(&on_gpu(&model), &ids, piece), &expected);
        }
    }
}

/// A text longer than windows and scratch, going back near and far, forks that part.
#[test]
fn pieces_rewinds_and_forks_agree_with_one_reading() {
    if !have_device() {
        return;
    }
    let case = common::cases()
        .into_iter()
        .find(|c| c.name == "hf-gqa")
        .unwrap();
    let (_, model) = case.models().remove(0);
    let gpu = on_gpu(&model);
    let mut random = common::Random(7);
    let ids: Vec<Id> = (0..700).map(|_| 4 + random.below(64) as Id).collect();
    let expected = read(&model, &ids, 1000);
    for piece in [1000, 97, 7] {
        compare(
            &format!("{piece} at once"),
            &read(&gpu, &ids, piece),
            &expected,
        );
    }
    let (_, session) = read(&gpu, &ids, 1000);
    for len in [699, 650, 300, 1] {
        let mut fork = session.clone();
        fork.rewind(len).unwrap();
        let row = |at: usize| at * VOCAB_SIZE..(at + 1) * VOCAB_SIZE;
        assert_close(
            &format!("back to {len}"),
            fork.logits(),
            &expected.0[row(len - 1)],
        );
        let mut logits = Vec::new();
        let on = &ids[len..(len + 40).min(ids.len())];
        common::feed(&mut fork, on, &mut logits);
        let rows = &expected.0[len * VOCAB_SIZE..][..on.len() * VOCAB_SIZE];
        assert_close(&format!("on from {len}"), &logits, rows);
    }
    let last = &expected.0[699 * VOCAB_SIZE..];
    assert_close("the session its forks came from", session.logits(), last);
}

#[test]
fn greedy_continuations_are_the_cpus() {
    if !have_device() {
        return;
    }
    let model = Model::open(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/default.safetensors"
    ))
    .unwrap();
    let greedy = |model: &Model| {
        let mut session = Session::new(model, SessionOptions::default()).unwrap();
        session.feed(b"Once upon a time there was a").unwrap();
        let options = blt::GenerateOptions {
            max_bytes: Some(48),
            sampler: blt::sampler::SamplerConfig::greedy(),
            ..Default::default()
        };
        let bytes = session.generate(&options).unwrap();
        bytes.collect::<Result<Vec<u8>, _>>().unwrap()
    };
    let (found, expected) = (greedy(&on_gpu(&model)), greedy(&model));
    assert_eq!(
        String::from_utf8_lossy(&found),
        String::from_utf8_lossy(&expected)
    );
}
