//! The GPU against the recorded numbers of the reference cases and against the CPU: every case, every
//! format, every way to feed a text.
//!
//! The tests are ignored, since they need a device: `cargo test --features cuda --test cuda -- --ignored`.
//! On a machine without one they can run against kernels/cuda/emulate, which executes the kernels on the
//! CPU; the tests of faults run only there (`--skip faults::`).
#![cfg(feature = "cuda")]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod generation;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use blt::checkpoint::Checkpoint;
use blt::config::{PatcherConfig, PatchingMode};
use blt::tensor::DType;
use blt::vocab::{Id, VOCAB_SIZE};
use blt::{Device, KvType, Model, Session, SessionOptions};
use blt_kernels::BlockFormat;
use common::{Case, Prompt};

/// Largest difference of a logit, relative to the largest logit. Both planes sum in f32, in different
/// orders; in products of many rows the GPU's terms have 16 bits.
const TOLERANCE: f32 = 1e-3;
/// The same for entropies, in nats: patches must start alike where none is so near the threshold. No
/// decision within a reference prompt is nearer to it than 5e-3.
const ENTROPY_TOLERANCE: f32 = 1e-3;
/// With keys and values in halves. Where both planes' differ in the last bits some round to neighbours, 2^-11
/// apart; rounding all of them moves an entropy of these texts by 2.4e-3 (the CPU's halves beside its floats).
const HALF_ENTROPY_TOLERANCE: f32 = 3e-3;

/// Whether to shorten long lists: on the emulated driver, unless BLT_CUDA is 1.
fn brief() -> bool {
    let devices = blt::devices().unwrap_or_default();
    let emulated = devices.iter().any(|d| d.name.contains("emulation"));
    emulated && std::env::var("BLT_CUDA").as_deref() != Ok("1")
}

fn on_gpu(model: &Model) -> Model {
    model.on_device(Device::Cuda(0)).unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |m, v| m.max(v.abs()))
}

/// The largest difference, relative to the largest of the expected values.
#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let largest = largest(expected);
    let mut worst = 0.0f32;
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let difference = (f - e).abs() / largest;
        assert!(
            difference <= TOLERANCE,
            "{what}: value {i}: expected {e}, found {f}, difference {difference:e} of the largest"
        );
        worst = worst.max(difference);
    }
    worst
}

#[track_caller]
fn assert_entropies(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of entropies");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            f.is_nan() && e.is_nan() || (f - e).abs() <= tolerance,
            "{what}: entropy {i}: expected {e}, found {f}"
        );
    }
}

/// Reads ids in pieces.
fn read(model: &Model, ids: &[Id], piece: usize) -> (Vec<f32>, Session) {
    read_with(model, SessionOptions::default(), ids, piece)
}

fn read_with(
    model: &Model,
    options: SessionOptions,
    ids: &[Id],
    piece: usize,
) -> (Vec<f32>, Session) {
    let mut session = common::session(model, options);
    let mut logits = Vec::new();
    for ids in ids.chunks(piece) {
        common::feed(&mut session, ids, &mut logits);
    }
    (logits, session)
}

/// Compares two readings of a text: patches, entropies, logits.
fn compare(what: &str, gpu: &(Vec<f32>, Session), cpu: &(Vec<f32>, Session)) {
    let tolerance = match gpu.1.options().kv {
        Some(KvType::F16) => HALF_ENTROPY_TOLERANCE,
        _ => ENTROPY_TOLERANCE,
    };
    assert_entropies(what, gpu.1.entropies(), cpu.1.entropies(), tolerance);
    assert_eq!(
        gpu.1.patch_starts(),
        cpu.1.patch_starts(),
        "{what}: patch starts"
    );
    assert_close(what, &gpu.0, &cpu.0);
}

/// Calls `check` on each item, on a few threads.
fn for_each<T: Sync>(items: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(item);
                }
            });
        }
    });
}

/// One prompt on the GPU against what the reference recorded; returns the worst difference of a logit
/// and whether the greedy continuation was compared too.
fn check_recorded(case: &Case, layout: &str, gpu: &Model, prompt: &Prompt<'_>) -> (f32, bool) {
    let at = format!("{}/{layout}/{}", case.name, prompt.name());
    let ids = prompt.ids();
    let n = ids.len();
    let (logits, mut session) = read(gpu, &ids, 1000);
    // transformers drops an empty last patch where patches have a greatest length: tests/fixture.rs.
    let quirk = layout == "model" && !case.expected["max_patch_length"].is_null();

    let lengths = common::lengths(prompt.list("patch_lengths"));
    let starts = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end - length)
    });
    let mut expected: Vec<usize> = starts.collect();
    let last = if quirk { n - 1 } else { n };
    expected.retain(|&start| start <= last);
    expected.dedup();
    let mut found = session.patch_starts().to_vec();
    found.retain(|&start| start <= last);
    assert_eq!(found, expected, "{at}: patch starts");
    if prompt.has("entropies") {
        let expected = common::numbers(prompt.list("entropies"));
        let expected: Vec<f32> = expected.into_iter().map(|e| e as f32).collect();
        assert_entropies(&at, session.entropies(), &expected, ENTROPY_TOLERANCE);
    }
    let tensor = |what: &str| case.tensor(&format!("{}/{what}", prompt.name()));
    let mut worst = 0.0;
    if let Some((_, expected)) = tensor("logits") {
        let rows = (if quirk { n - 1 } else { n }) * VOCAB_SIZE;
        worst = assert_close(&at, &logits[..rows], &expected[..rows]);
    }
    if let Some((shape, expected)) = tensor("logits_tail") {
        let tail = &logits[(n - shape[0]) * VOCAB_SIZE..];
        worst = assert_close(&at, tail, &expected);
    }

    // Where the reference's own choices were near, another order of sums may choose otherwise.
    let key = match prompt.has("greedy_ids_ignoring_eos") {
        true => "greedy_ids_ignoring_eos",
        false => "greedy_ids",
    };
    let near = |gap: &str, noise: f32| prompt.has(gap) && prompt.number(gap) < f64::from(noise);
    if quirk
        || !prompt.has(key)
        || near("min_threshold_gap", ENTROPY_TOLERANCE)
        || near("min_top2_gap", TOLERANCE * largest(session.logits()))
    {
        return (worst, false);
    }
    for (i, &id) in common::ids(prompt.list(key)).iter().enumerate() {
        let row = session.logits();
        let best = (0..VOCAB_SIZE).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        assert_eq!(best, Some(usize::from(id)), "{at}: greedy id {i}");
        session.feed_ids(&[id]).unwrap();
    }
    (worst, true)
}

#[test]
#[ignore = "needs a CUDA device"]
fn reference_cases_are_as_recorded() {
    let cases = common::cases();
    let mut models = Vec::new();
    for case in &cases {
        let all = case.models().into_iter();
        let taken = if brief() { 1 } else { usize::MAX };
        models.extend(all.take(taken).map(|(layout, model)| (case, layout, model)));
    }
    let seen = Mutex::new((0.0f32, 0, 0)); // worst difference, prompts, continuations
    for_each(&models, |(case, layout, model)| {
        let gpu = on_gpu(model);
        let taken = if brief() { 3 } else { usize::MAX };
        for prompt in case.prompts().iter().take(taken) {
            let (worst, continued) = check_recorded(case, layout, &gpu, prompt);
            let mut seen = seen.lock().unwrap();
            *seen = (
                seen.0.max(worst),
                seen.1 + 1,
                seen.2 + usize::from(continued),
            );
        }
    });
    let (worst, prompts, continued) = *seen.lock().unwrap();
    assert!(prompts > 0 && continued > 0);
    println!(
        "{} models, {prompts} prompts, worst logit {worst:.1e} of the largest, {continued} greedy continuations",
        models.len()
    );
}

#[test]
#[ignore = "needs a CUDA device"]
fn given_patch_lengths_are_as_recorded() {
    for case in common::cases() {
        let runs = case.expected["explicit_patch_lengths"].as_array();
        for run in runs.into_iter().flatten() {
            let (layout, model) = case.models().remove(0);
            let prompts = case.prompts();
            let prompt = prompts.iter().find(|p| run["prompt"] == p.name()).unwrap();
            let options = SessionOptions {
                patch_lengths: Some(common::lengths(&run["patch_lengths"])),
                ..SessionOptions::default()
            };
            let mut session = common::session(&on_gpu(&model), options);
            let mut logits = Vec::new();
            common::feed(&mut session, &prompt.ids(), &mut logits);
            let (_, expected) = case.tensor(run["logits"].as_str().unwrap()).unwrap();
            let at = format!("{}/{layout}/{}", case.name, run["logits"]);
            assert_close(&at, &logits, &expected);
        }
    }
}

/// The checkpoint with its weights as they are after quantisation, in f32: the CPU's products with
/// block formats round the activations too, which the GPU's do not.
fn widened(checkpoint: &Checkpoint) -> Checkpoint {
    common::converted(checkpoint, DType::F32, DType::F32)
}

#[test]
#[ignore = "needs a CUDA device"]
fn every_block_format_agrees_with_its_values() {
    let (case, _) = common::case("meta-bf16");
    let (_, checkpoint) = case.checkpoints().remove(0);
    let ids = case.prompts()[0].ids();
    for_each(&BlockFormat::ALL, |&format| {
        let quantized = common::quantized(&checkpoint, format);
        let expected = read(&common::model(&widened(&quantized)), &ids, 1000);
        let gpu = on_gpu(&common::model(&quantized));
        for piece in [1000, 1] {
            let what = format!("{}, {piece} at once", format.name());
            compare(&what, &read(&gpu, &ids, piece), &expected);
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn half_precision_agrees_with_the_cpu() {
    let (case, _) = common::case("hf-gqa");
    let (_, checkpoint) = case.checkpoints().remove(0);
    let ids = case.prompts()[0].ids();
    for_each(&DType::FLOATS, |&dtype| {
        let model = common::model(&common::converted(&checkpoint, dtype, dtype));
        let expected = read(&model, &ids, 1000);
        for piece in [1000, 1] {
            let what = format!("{dtype}, {piece} at once");
            compare(&what, &read(&on_gpu(&model), &ids, piece), &expected);
        }
    });
}

/// A text longer than windows and scratch, going back near and far, forks that part; keys and values in floats
/// and in halves.
#[test]
#[ignore = "needs a CUDA device"]
fn pieces_rewinds_and_forks_agree_with_one_reading() {
    let (_, model) = common::case("hf-gqa");
    let gpu = on_gpu(&model);
    let mut random = common::Random(7);
    let n = if brief() { 400 } else { 700 };
    let ids: Vec<Id> = (0..n).map(|_| 4 + random.below(64) as Id).collect();
    let sessions = KvType::ALL.map(|kv| {
        let options = SessionOptions::new().kv(kv);
        let expected = read_with(&model, options.clone(), &ids, 1000);
        for_each(&[1000, 97, 7], |&piece| {
            let what = format!("{kv}, {piece} at once");
            let found = read_with(&gpu, options.clone(), &ids, piece);
            compare(&what, &found, &expected);
        });
        let (logits, session) = read_with(&gpu, options, &ids, 1000);
        let row = |at: usize| &expected.0[at * VOCAB_SIZE..(at + 1) * VOCAB_SIZE];
        for_each(&[n - 1, n - 50, n - 300, 1], |&len| {
            let mut fork = session.clone();
            fork.rewind(len).unwrap();
            let what = format!("{kv}, back to {len}");
            assert_close(&what, fork.logits(), row(len - 1));
            let mut logits = Vec::new();
            let on = &ids[len..(len + 40).min(ids.len())];
            common::feed(&mut fork, on, &mut logits);
            let rows = &expected.0[len * VOCAB_SIZE..][..on.len() * VOCAB_SIZE];
            assert_close(&format!("{kv}, on from {len}"), &logits, rows);
        });
        let what = format!("{kv}, the session its forks came from");
        assert_close(&what, session.logits(), row(n - 1));
        (logits, session)
    });
    // Halves are other numbers, in less memory.
    let [exact, halves] = &sessions;
    assert_ne!(exact.0, halves.0);
    assert!(exact.1.cache_bytes() > halves.1.cache_bytes());
}

/// A patch for each byte, so that the global transformer sees more than a block attends to by itself.
#[test]
#[ignore = "needs a CUDA device"]
fn long_contexts_agree_with_the_cpu() {
    let (_, model) = common::case("hf-gqa");
    let options = |kv| SessionOptions {
        patcher: Some(PatcherConfig {
            mode: PatchingMode::Byte,
            ..model.config().patcher.clone()
        }),
        kv: Some(kv),
        ..SessionOptions::default()
    };
    let mut random = common::Random(8);
    let n = if brief() { 270 } else { 900 };
    let ids: Vec<Id> = (0..n).map(|_| 4 + random.below(64) as Id).collect();
    let gpu = on_gpu(&model);
    for_each(&KvType::ALL, |&kv| {
        let expected = read_with(&model, options(kv), &ids, 1000);
        for piece in [1000, 1] {
            let found = read_with(&gpu, options(kv), &ids, piece);
            compare(&format!("{kv}, {piece} at once"), &found, &expected);
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn greedy_continuations_are_the_cpus() {
    // Set where the tests were carried to another machine.
    let path = std::env::var("BLT_DEFAULT_MODEL").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.safetensors").into()
    });
    let model = Model::open(path).unwrap();
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
