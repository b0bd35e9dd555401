//! Training runs, small ones: they learn, stop and continue exactly, and lose nothing when things fail.
#![cfg(feature = "train")]

mod common;

use std::path::Path;

use blt::checkpoint::Component;
use blt::tensor::DType;
use blt::train::init;
use blt::train::params::{Params, Value};
use blt::train::settings::{Interval, Settings};
use blt::train::state::Saved;
use blt::train::trainer::{Stage, Trainer};
use blt::{Model, Session, SessionOptions};
use common::folder::Folder;

/// Writes a file: its path, as settings have it.
fn file(folder: &Folder, name: &str, bytes: &[u8]) -> String {
    folder.write(name, bytes).display().to_string()
}

/// 4 KB that compress badly: words in a random order.
fn text(n: usize) -> Vec<u8> {
    let words = [
        "cat", "sat", "hill", "ran", "the", "blue", "stone", "over", "deep", "river",
    ];
    let mut rng = blt::random::SplitMix64::mixed(9);
    let mut text = Vec::new();
    while text.len() < n {
        text.extend_from_slice(words[rng.below(words.len())].as_bytes());
        text.push(b" .,\n"[rng.below(4)]);
    }
    text.truncate(n);
    text
}

fn settings(temp: &Folder, set: &[(&str, &str)]) -> Settings {
    let mut settings = Settings::default();
    let out = temp.0.join("run").display().to_string();
    for (name, value) in [("preset", "toy"), ("out", &out), ("valid-share", "0")]
        .iter()
        .chain(set)
    {
        settings.set(name, value).unwrap();
    }
    settings
}

fn main_stage(settings: &Settings) -> Trainer {
    let mut config = settings.architecture().unwrap();
    config.entropy = None;
    let params = init::random(
        &config,
        |t| t.component != Component::Entropy,
        settings.seed,
    )
    .unwrap();
    Trainer::new(Stage::Main, settings.clone(), config, params, None).unwrap()
}

fn weights(params: &Params<f32>) -> Vec<u32> {
    let values = |p: &blt::train::params::Param<f32>| match &p.value {
        Value::Owned(values) => values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
        Value::Frozen(_) => Vec::new(),
    };
    params.iter().flat_map(|(_, p)| values(p)).collect()
}

/// Bits per byte of a text after BOS, by the inference engine.
fn inference_bits(path: &Path, text: &[u8]) -> f64 {
    let model = Model::open(path).unwrap();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    let ids = blt::vocab::encode(text, true);
    let mut nats = 0.0;
    session
        .feed_ids_with(&ids, |step| {
            if let Some(&next) = ids.get(step.position + 1) {
                let max = step.logits.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = step.logits.iter().map(|&l| f64::from(l - max).exp()).sum();
                nats += sum.ln() - f64::from(step.logits[usize::from(next)] - max);
            }
        })
        .unwrap();
    nats / std::f64::consts::LN_2 / text.len() as f64
}

#[test]
fn a_tiny_model_memorises_4_kb_and_inference_agrees() {
    let temp = Folder::new("overfit");
    let text = text(4096);
    let data = file(&temp, "text.txt", &text);
    let settings = settings(
        &temp,
        &[
            ("data", &data),
            ("seq-len", "5000"),
            ("batch", "4096"),
            ("steps", "220"),
            ("lr", "1e-2"),
            ("warmup", "10"),
            ("patching", "space"),
            ("dtype", "f32"),
            ("hash-vocab", "4096"),
            ("weight-decay", "0"),
        ],
    );
    let mut trainer = main_stage(&settings);
    let mut bits = f64::NAN;
    for _ in 0..settings.steps {
        bits = trainer.step().unwrap().score.bits_per_byte();
        if bits < 0.04 {
            break;
        }
    }
    assert!(
        bits < 0.05,
        "{bits} bits per byte after {} steps",
        settings.steps
    );
    let path = trainer.path("model.safetensors");
    trainer.export(&path).unwrap();
    let found = inference_bits(&path, &text);
    assert!(
        found < 0.05,
        "{found} bits per byte in inference, {bits} in training"
    );
}

#[test]
fn accumulated_documents_count_as_in_one_batch() {
    let temp = Folder::new("accumulate");
    // 31 and 1,000 positions.
    let (short, long) = (text(30), text(999));
    let both = [&short[..], b"\n<|endoftext|>\n", &long[..]].concat();
    let data = file(&temp, "text.txt", &both);
    let run = |batch: &str, accumulate: &str| {
        let settings = settings(
            &temp,
            &[
                ("data", &data),
                ("seq-len", "2000"),
                ("batch", batch),
                ("accumulate", accumulate),
                ("shards", "1"),
            ],
        );
        let mut trainer = main_stage(&settings);
        let report = trainer.step().unwrap();
        assert_eq!(report.score.n, 1031);
        (report.score.loss(), report.norm)
    };
    let (whole, parts) = (run("1031", "1"), run("1", "2"));
    /// Rounding of sums in another order.
    const TOLERANCE: f64 = 1e-5;
    for (whole, parts) in [(whole.0, parts.0), (whole.1, parts.1)] {
        let relative = (whole / parts - 1.0).abs();
        assert!(relative < TOLERANCE, "{whole} at once, {parts} in two");
    }
}

#[test]
fn a_step_reads_the_ids_asked_for() {
    let temp = Folder::new("batch");
    let documents: Vec<Vec<u8>> = (0..60).map(|i| text(100 + i * 37 % 900)).collect();
    let data = file(
        &temp,
        "text.txt",
        &documents.join(&b"\n<|endoftext|>\n"[..]),
    );
    let batch = 1024;
    let settings = settings(
        &temp,
        &[
            ("data", &data),
            ("seq-len", "1024"),
            ("batch", &batch.to_string()),
            ("patching", "space"),
        ],
    );
    let mut trainer = main_stage(&settings);
    let sizes: Vec<usize> = (0..24).map(|_| trainer.step().unwrap().score.n).collect();
    for n in &sizes {
        assert!(n.abs_diff(batch) <= 1024, "{sizes:?}");
    }
    // Within one document in all.
    let sum: usize = sizes.iter().sum();
    assert!(sum.abs_diff(24 * batch) <= 1024, "{sum}: {sizes:?}");
    assert!(
        sizes.iter().any(|&n| n < batch) && sizes.iter().any(|&n| n > batch),
        "{sizes:?}"
    );
}

#[test]
fn resumed_runs_are_the_same_bit_for_bit_whatever_the_threads() {
    let temp = Folder::new("resume");
    let data = file(&temp, "text.txt", &text(6000));
    let settings = settings(
        &temp,
        &[
            ("data", &data),
            ("seq-len", "200"),
            ("batch", "500"),
            ("steps", "8"),
            ("dropout", "0.1"),
            ("shards", "3"),
            ("accumulate", "2"),
            ("tied", "true"),
        ],
    );
    let on = |threads: usize, work: &(dyn Fn() -> Vec<u32> + Sync)| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(work)
    };
    let whole = on(2, &|| {
        let mut trainer = main_stage(&settings);
        for _ in 0..8 {
            trainer.step().unwrap();
        }
        weights(&trainer.params)
    });
    let halves = on(1, &|| {
        let mut trainer = main_stage(&settings);
        for _ in 0..5 {
            trainer.step().unwrap();
        }
        trainer.save("main").unwrap();
        drop(trainer);
        let mut trainer = main_stage(&settings);
        let saved = Saved::open(&trainer.path("state.safetensors")).unwrap();
        let mut of_file = Settings::default();
        of_file.set_json(&saved.settings).unwrap();
        assert_eq!(of_file, settings);
        trainer.resume(&saved, false).unwrap();
        for _ in 5..8 {
            trainer.step().unwrap();
        }
        weights(&trainer.params)
    });
    assert!(whole == halves);
}

#[test]
fn what_is_not_finite_stops_the_run_and_leaves_the_checkpoint() {
    let temp = Folder::new("nan");
    let data = file(&temp, "text.txt", &text(2000));
    let settings = settings(
        &temp,
        &[("data", &data), ("seq-len", "200"), ("batch", "500")],
    );
    let mut trainer = main_stage(&settings);
    trainer.step().unwrap();
    trainer.save("main").unwrap();
    let before = std::fs::read(trainer.path("state.safetensors")).unwrap();
    let Value::Owned(values) = &mut trainer.params.list_mut()[0].value else {
        unreachable!()
    };
    values.fill(f32::NAN);
    let message = trainer.step().unwrap_err().to_string();
    assert!(
        message.starts_with("step 2: ") && message.contains("NaN"),
        "{message}"
    );
    assert!(before == std::fs::read(trainer.path("state.safetensors")).unwrap());
}

#[test]
fn a_state_that_is_damaged_is_refused() {
    let temp = Folder::new("damaged");
    let data = file(&temp, "text.txt", &text(2000));
    let settings = settings(
        &temp,
        &[("data", &data), ("seq-len", "200"), ("batch", "500")],
    );
    let mut trainer = main_stage(&settings);
    trainer.save("main").unwrap();
    let bytes = std::fs::read(trainer.path("state.safetensors")).unwrap();
    for cut in [0, 1, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        let path = file(&temp, "cut.safetensors", &bytes[..cut]);
        assert!(Saved::open(Path::new(&path)).is_err(), "{cut}");
    }
    let mut other = settings.clone();
    other.set("local-dim", "48").unwrap();
    let saved = Saved::open(&trainer.path("state.safetensors")).unwrap();
    assert!(main_stage(&other).resume(&saved, false).is_err());
}

#[test]
fn the_entropy_stage_gives_the_patch_length_asked_for() {
    let temp = Folder::new("entropy");
    let data = file(&temp, "text.txt", &text(8000));
    let settings = settings(
        &temp,
        &[
            ("data", &data),
            ("seq-len", "512"),
            ("batch", "2048"),
            ("steps", "30"),
            ("lr", "1e-2"),
            ("warmup", "5"),
            ("patch-length", "3.5"),
        ],
    );
    let config = settings.architecture().unwrap();
    let params = init::random(&config, |t| t.component == Component::Entropy, 1).unwrap();
    let mut trainer = Trainer::new(Stage::Entropy, settings, config, params, None).unwrap();
    let first = trainer.step().unwrap().score.loss();
    let last = (1..30)
        .map(|_| trainer.step().unwrap().score.loss())
        .last()
        .unwrap();
    assert!(last < 0.6 * first, "loss {first} to {last}");
    let (threshold, length) = trainer.choose_threshold().unwrap();
    assert!((3.0..4.0).contains(&length), "{length} at {threshold}");
    assert_eq!(trainer.config.patcher.threshold, threshold);
    // The threshold is chosen with the weights as they are stored: rounding them first changes nothing.
    blt::train::export::round_as_saved(&mut trainer.params, DType::Bf16);
    assert_eq!(trainer.choose_threshold().unwrap(), (threshold, length));
}

#[test]
fn settings_and_data_that_make_no_sense_are_clear_errors() {
    let temp = Folder::new("hostile");
    let data = file(&temp, "text.txt", b"");
    let missing = temp.0.join("missing").display().to_string();
    for (set, expected) in [
        (("data", ""), "data: expected at least one"),
        (("data", &missing[..]), "No such file"),
        (("data", &data[..]), "expected text, found none in"),
        (("seq-len", "2"), "seq-len"),
        (("lora-rank", "4000"), "lora-rank"),
        (("dtype", "q4"), "dtype"),
        (("decay", "never"), "decay"),
        (("lr", "-1"), "key \"lr\": expected 0 to 10, found -1"),
        (
            ("lr-floor", "2"),
            "key \"lr_floor\": expected 0 to 1, found 2",
        ),
        (
            ("clip", "-1"),
            "key \"clip\": expected at least 0, found -1",
        ),
        (("adam-eps", "0"), "key \"adam_eps\": expected more than 0"),
        (("weight-decay", "-0.1"), "weight_decay"),
        (("patch-length", "0"), "key \"patch_length\": expected 1 to"),
        (
            ("warmup", "1001"),
            "key \"warmup\": expected at most --steps 1000, found 1001",
        ),
        (("keep", "all"), "key \"keep\": expected best or last"),
        (("patience", "3"), "patience: expected text to validate on"),
    ] {
        let good = file(&temp, "good.txt", b"some text");
        let mut settings = settings(&temp, &[("data", &good)]);
        settings.set(set.0, set.1).unwrap();
        let mut config = settings.architecture().unwrap();
        config.entropy = None;
        let params = init::random(&config, |t| t.component != Component::Entropy, 1).unwrap();
        let error = Trainer::new(Stage::Main, settings, config, params, None)
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{set:?}: {error}");
    }
}

/// The checkpoint that is there stays unless the weights are finite and give a finite loss.
#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let temp = Folder::new("finite");
    let data = file(&temp, "text.txt", &text(2000));
    let settings = settings(
        &temp,
        &[
            ("data", &data),
            ("seq-len", "200"),
            ("batch", "500"),
            ("keep", "last"),
        ],
    );
    let mut trainer = main_stage(&settings);
    trainer.step().unwrap();
    trainer.save("main").unwrap();
    trainer.finish(None).unwrap();
    let of = |name: &str| std::fs::read(Path::new(&settings.out).join(name)).unwrap();
    let before = (of("state.safetensors"), of("model.safetensors"));
    trainer.step().unwrap();
    let sound = trainer.params.clone();
    // The last is finite in f32, and neither in bf16 nor in its products.
    for bad in [f32::NAN, f32::INFINITY, 3.4e38, 1e30] {
        for param in trainer.params.list_mut() {
            if let Value::Owned(values) = &mut param.value {
                values.fill(bad);
            }
        }
        let message = trainer.save("main").unwrap_err().to_string();
        assert!(
            message.contains("step 2: expected finite"),
            "{bad}: {message}"
        );
        assert!(trainer.finish(None).is_err(), "{bad}");
        assert!(
            before == (of("state.safetensors"), of("model.safetensors")),
            "{bad}"
        );
        trainer.params = sound.clone();
    }
    trainer.save("main").unwrap();
    assert!(before.0 != of("state.safetensors"));
    assert!(before.0 == of("state.previous.safetensors"));
}

#[test]
fn checkpoints_are_saved_by_steps_or_by_time() {
    let mut settings = Settings::default();
    for (text, interval) in [
        ("250", Interval::Steps(250)),
        ("90s", Interval::Seconds(90)),
        ("10m", Interval::Seconds(600)),
        ("2h", Interval::Seconds(7200)),
    ] {
        settings.set("save-every", text).unwrap();
        assert_eq!(settings.save_every, interval);
        let json = settings.to_json();
        assert_eq!(json["save_every"], text);
        let mut again = Settings::default();
        again.set_json(&json.to_string()).unwrap();
        assert_eq!(again, settings);
    }
    for wrong in ["0", "0m", "m", "-1s", "1.5h", "1d", "99999999999999999h"] {
        assert!(settings.set("save-every", wrong).is_err(), "{wrong}");
    }
}
