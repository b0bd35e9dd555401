//! The program and the library on whole checkpoints: what comes out opens, says what it is, and stands
//! for the same numbers; what must not happen does not.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use blt::checkpoint::{
    Checkpoint, Layout, ModelTensor, OpenOptions, expected_tensors, write_native,
};
use blt::config::DifferentialConfig;
use blt::error::Error;
use blt::ops::{Compute, Profile};
use blt::output_file::OutputFile;
use blt::tensor::{DType, Tensor};
use blt::{Model, Session, SessionOptions};
use blt_kernels::BlockFormat;
use blt_quantize::convert::{Importance, Job};
use blt_quantize::policy::{Policy, Target};
use blt_quantize::{calibrate, evaluate, export};

#[path = "../../tests/common/folder.rs"]
mod folder;
use folder::Folder;

/// A model of the engine's tests, in HF layout with an entropy model inside.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hf-gqa/model")
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default()).unwrap()
}

fn program(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_blt-quantize");
    Command::new(program)
        .args(args)
        .arg("--quiet")
        .output()
        .unwrap()
}

fn run(args: &[&str]) -> String {
    let output = program(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code and the message.
fn fails(args: &[&str]) -> (i32, String) {
    let output = program(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    (output.status.code().unwrap(), error)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The largest difference between two models' logits after a text, as a share of the first model's.
fn difference(a: &Checkpoint, b: &Checkpoint) -> f32 {
    let logits = |checkpoint: &Checkpoint| {
        let model = Model::load(checkpoint, Compute::new(Some(1), None).unwrap()).unwrap();
        let options = SessionOptions {
            patch_lengths: Some(vec![1, 4]),
            ..SessionOptions::default()
        };
        let mut session = Session::new(&model, options).unwrap();
        session.feed(b"The quick brown fox").unwrap();
        session.logits().to_vec()
    };
    let (a, b) = (logits(a), logits(b));
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
}

#[test]
fn every_type_makes_a_file_that_opens_and_runs() {
    let folder = Folder::new("types");
    let (input, out) = (model(), folder.path("out.safetensors"));
    let sample = folder.path("sample.txt");
    std::fs::write(&sample, "a sample of text, not long. ".repeat(40)).unwrap();
    for format in BlockFormat::ALL {
        let name = format.name();
        let rules = ["*.w*", "*_embeddings*", "*.output"].map(|p| format!("{p}={name}"));
        let mut args = vec![
            text(&input),
            text(&out),
            "--type",
            name,
            "--eval",
            text(&sample),
        ];
        for rule in &rules {
            args.extend(["--tensor-type", rule]);
        }
        let printed = run(&args);
        for part in [
            "global transformer",
            "bits per byte after",
            "patch boundaries",
            &format!("-> {name}"),
        ] {
            assert!(printed.contains(part), "{name}: {printed}");
        }
        let checkpoint = open(&out);
        assert_eq!(checkpoint.layout(), Layout::Native);
        assert_eq!(checkpoint.config(), open(&input).config());
        for (tensor, t) in checkpoint.tensors() {
            let expected = match t.shape().len() {
                1 => DType::F32,
                _ if tensor.contains("_embeddings") => DType::Table(format),
                _ if tensor.contains("projection") => continue,
                _ => DType::Tiles(format),
            };
            assert_eq!(t.dtype(), expected, "{name}: {tensor}");
        }
        // What it computes is near to what the original computes.
        let error = difference(&open(&input), &checkpoint);
        // Random weights spread errors more than trained ones; about 3 times what a matrix loses.
        let bound = match format {
            BlockFormat::Q8_0 => 0.03,
            BlockFormat::Q6K => 0.12,
            _ => 0.5,
        };
        assert!(error > 0.0 && error < bound, "{name}: {error}");
    }
    assert_eq!(folder.names(), ["out.safetensors", "sample.txt"]);
}

#[test]
fn native_to_hf_and_back_is_lossless() {
    let folder = Folder::new("hf");
    let (input, native) = (model(), folder.path("native.safetensors"));
    let (hf, again) = (folder.path("hf"), folder.path("again.safetensors"));
    run(&[text(&input), text(&native), "--to", "keep"]);
    run(&[text(&native), text(&hf), "--to", "hf"]);
    run(&[text(&hf), text(&again), "--to", "keep"]);
    let (original, copy) = (open(&input), open(&hf));
    assert_eq!(copy.layout(), Layout::Hf);
    assert_eq!(copy.config(), original.config());
    for (name, t) in original.tensors() {
        let c = copy.tensor(name, t.shape()).unwrap();
        assert_eq!((c.dtype(), c.bytes()), (t.dtype(), t.bytes()), "{name}");
    }
    assert!(std::fs::read(&native).unwrap() == std::fs::read(&again).unwrap());

    // The same tensors under the same names as transformers itself wrote, and no others.
    let tensors = |folder: &Path| {
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> = (file.tensors().into_iter())
            .map(|(name, t)| (name, t.dtype(), t.shape().to_vec(), t.data().to_vec()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let (ours, theirs) = (tensors(&hf), tensors(&input));
    let names = |all: &[(String, safetensors::Dtype, Vec<usize>, Vec<u8>)]| {
        all.iter().map(|t| t.0.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&ours), names(&theirs));
    assert!(ours == theirs);
    // And no configuration value differs from theirs.
    let config = |folder: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
    };
    let (ours, theirs) = (config(&hf), config(&input));
    let parts = [
        "/encoder_config",
        "/decoder_config",
        "/global_config",
        "/patcher_config",
        "",
    ];
    for part in parts {
        let (ours, theirs) = (ours.pointer(part).unwrap(), theirs.pointer(part).unwrap());
        for (key, value) in ours.as_object().unwrap() {
            // The entropy model's limit is not used by anybody and not kept.
            if value.is_object() && key != "rope_parameters" || key == "max_position_embeddings" {
                continue;
            }
            let theirs = &theirs[key];
            if !theirs.is_null() || value.is_null() {
                assert_eq!(value, theirs, "{part}/{key}");
            }
        }
    }
    assert_eq!(
        folder.names(),
        ["again.safetensors", "hf", "native.safetensors"]
    );
}

#[test]
fn float_conversions_round_and_come_back() {
    let folder = Folder::new("floats");
    let input = model();
    for (name, dtype) in [
        ("bf16", DType::Bf16),
        ("f16", DType::F16),
        ("f32", DType::F32),
    ] {
        let out = folder.path(name);
        run(&[text(&input), text(&out), "--to", name]);
        let (original, copy) = (open(&input), open(&out));
        for (tensor, t) in copy.tensors() {
            assert_eq!(t.dtype(), dtype, "{tensor}");
            let source = original.tensor(tensor, t.shape()).unwrap().to_f32_vec();
            for (x, y) in source.iter().zip(t.to_f32_vec()) {
                assert!((x - y).abs() <= x.abs() / 256.0 + 1e-7, "{tensor}: {x} {y}");
            }
        }
    }
}

/// Nothing is lost: the same bytes come back, and the packed model computes the same bits.
#[test]
fn packed_bfloat16_is_bfloat16() {
    let folder = Folder::new("packed");
    let input = model();
    let [plain, packed, back] = ["plain", "packed", "back"].map(|name| folder.path(name));
    run(&[text(&input), text(&plain), "--to", "bf16"]);
    let rules = ["*.w*=bf12", "*_embeddings*=bf12", "*.output=bf12"];
    let mut args = vec![text(&plain), text(&packed), "--to", "bf12"];
    rules
        .iter()
        .for_each(|rule| args.extend(["--tensor-type", rule]));
    let printed = run(&args);
    assert!(printed.contains("bf16 -> bf12"), "{printed}");
    run(&[text(&packed), text(&back), "--to", "bf16"]);
    let read = |path: &Path| std::fs::read(path).unwrap();
    assert!(read(&plain) == read(&back), "other bytes came back");

    let checkpoint = open(&packed);
    let is_packed = |name: &str| {
        let tensor = checkpoint.tensors().find(|(n, _)| *n == name).unwrap().1;
        tensor.dtype() == DType::Bf12
    };
    assert!(is_packed("global.layers.0.wq") && is_packed("encoder.hash_embeddings.0"));
    let logits = |checkpoint: &Checkpoint, profile| {
        let compute = Compute::new(Some(2), None).unwrap().profiled(profile);
        let model = Model::load(checkpoint, compute).unwrap();
        let mut session = Session::new(&model, SessionOptions::new()).unwrap();
        session.feed(b"The quick brown fox").unwrap();
        let mut logits = session.logits().to_vec();
        for byte in b" jumps over" {
            session.feed(&[*byte]).unwrap();
            logits.extend_from_slice(session.logits());
        }
        logits
    };
    for profile in [Profile::Exact, Profile::Fast] {
        assert_eq!(
            logits(&checkpoint, profile),
            logits(&open(&plain), profile),
            "{profile}"
        );
    }
    // To another layout, and to few bits, as the plain one.
    run(&[
        text(&packed),
        text(&folder.path("q4.safetensors")),
        "--type",
        "q4_k",
    ]);
    run(&[text(&packed), text(&folder.path("hf")), "--to", "hf"]);
    let (hf, original) = (open(&folder.path("hf")), open(&plain));
    for (name, tensor) in original.tensors() {
        let found = hf.tensor(name, tensor.shape()).unwrap();
        assert_eq!(found.to_f32_vec(), tensor.to_f32_vec(), "{name}");
    }
}

#[test]
fn wrong_usage_and_wrong_inputs_write_nothing() {
    let folder = Folder::new("refused");
    let (input, out) = (model(), folder.path("out"));
    let (input, out) = (text(&input), text(&out));
    for (args, code, message) in [
        (vec![input, out], 2, "--type and --to"),
        (
            vec![input, out, "--type", "q8_0", "--to", "hf"],
            2,
            "--type and --to",
        ),
        (vec![input, out, "--type", "q3"], 2, "\"q3\""),
        (vec![input, out, "--to", "q8_0"], 2, "\"q8_0\""),
        (vec![input, "--type", "q8_0"], 2, "OUT"),
        (
            vec![input, out, "--type", "q8_0", "--tensor-type", "x"],
            2,
            "PATTERN=TYPE",
        ),
        (
            vec![input, out, "--type", "q8_0", "--tensor-type", "nix=f32"],
            2,
            "--tensor-type: expected a pattern that matches a tensor",
        ),
        (
            vec![
                input,
                out,
                "--type",
                "q8_0",
                "--tensor-type",
                "decoder.norm=q4_0",
            ],
            2,
            "norm",
        ),
        (vec![input, out, "--to", "hf", "--dry-run"], 2, "--dry-run"),
        (
            vec![input, out, "--type", "q8_0", "--threads", "0"],
            2,
            "threads",
        ),
        (
            vec![input, out, "--type", "q8_0", "--eval", "nowhere"],
            1,
            "nowhere",
        ),
        (
            vec![input, out, "--type", "q8_0", "--calibrate", "nowhere"],
            1,
            "nowhere",
        ),
        (vec!["nowhere", out, "--type", "q8_0"], 1, "nowhere"),
        (
            vec![input, "no/such/folder", "--type", "q8_0"],
            1,
            "no/such/folder",
        ),
    ] {
        let (found, error) = fails(&args);
        assert_eq!(found, code, "{args:?}: {error}");
        assert!(error.contains(message), "{args:?}: {error}");
        assert!(folder.names().is_empty(), "{args:?}");
    }
    let printed = run(&[input, "--type", "q4_0", "--dry-run"]);
    assert!(printed.contains("of a sample"), "{printed}");
    assert!(folder.names().is_empty());
}

#[test]
fn the_input_is_never_overwritten() {
    let folder = Folder::new("overwrite");
    let (input, native) = (model(), folder.path("a.safetensors"));
    run(&[text(&input), text(&native), "--to", "bf16"]);
    let before = std::fs::read(&native).unwrap();
    let roundabout = folder.path("./x/../a.safetensors");
    std::fs::create_dir(folder.path("x")).unwrap();
    for out in [&native, &roundabout] {
        let (code, error) = fails(&[text(&native), text(out), "--type", "q8_0"]);
        assert!(code == 2 && error.contains("another file"), "{error}");
    }
    #[cfg(unix)]
    {
        let link = folder.path("link");
        std::os::unix::fs::symlink(&native, &link).unwrap();
        let (_, error) = fails(&[text(&native), text(&link), "--type", "q8_0"]);
        assert!(error.contains("another file"), "{error}");
    }
    // Nor is a folder with something in it.
    let (_, error) = fails(&[text(&native), text(&folder.0), "--to", "hf"]);
    assert!(error.contains("new or empty"), "{error}");
    assert!(std::fs::read(&native).unwrap() == before);
}

#[cfg(unix)]
#[test]
fn an_output_need_not_be_a_file() {
    let folder = Folder::new("streams");
    let (input, out) = (model(), folder.path("a.safetensors"));
    let table = run(&[text(&input), text(&out), "--type", "q8_0", "--quiet"]);
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_blt-quantize"));
    for stdout in ["-", "/dev/stdout", "/dev/fd/1"] {
        let mut command = program();
        let command = command.args([text(&input), stdout, "--type", "q8_0", "--quiet"]);
        let result = command.output().unwrap();
        assert!(result.stdout == std::fs::read(&out).unwrap());
        assert_eq!(String::from_utf8(result.stderr).unwrap(), table);
    }
    run(&[text(&input), "/dev/null", "--type", "q8_0"]);
    let null = std::fs::metadata("/dev/null").unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&null));
    // What cannot be written is said before the work.
    for wrong in [text(&folder.0), text(&folder.path("no/a"))] {
        let (code, error) = fails(&[text(&input), wrong, "--type", "q8_0"]);
        assert!(code == 1 && error.contains(wrong), "{error}");
    }
    let (code, error) = fails(&[
        text(&input),
        "/dev/stdout",
        "--type",
        "q8_0",
        "--eval",
        text(&out),
    ]);
    assert!(code == 2 && error.contains("--eval"), "{error}");
}

#[test]
fn quantised_inputs_are_refused_or_dequantised() {
    let folder = Folder::new("twice");
    let (input, quantized) = (model(), folder.path("q.safetensors"));
    let out = folder.path("out.safetensors");
    run(&[
        text(&input),
        text(&quantized),
        "--type",
        "q8_0",
        "--tensor-type",
        "*.w*=q8_0",
    ]);
    for to in [["--type", "q4_0"], ["--to", "bf16"], ["--to", "hf"]] {
        let (code, error) = fails(&[text(&quantized), text(&out), to[0], to[1]]);
        assert!(code == 1 && error.contains("--dequantize"), "{error}");
    }
    let source = open(&quantized);
    run(&[text(&quantized), text(&out), "--to", "f32", "--dequantize"]);
    let floats = open(&out);
    for (name, t) in source.tensors() {
        assert_eq!(
            floats.tensor(name, t.shape()).unwrap().to_f32_vec(),
            t.to_f32_vec(),
            "{name}"
        );
    }
    run(&[
        text(&quantized),
        text(&out),
        "--type",
        "q4_0",
        "--dequantize",
    ]);
    run(&[
        text(&quantized),
        text(&folder.path("hf")),
        "--to",
        "hf",
        "--dequantize",
    ]);
    assert!(
        open(&folder.path("hf"))
            .tensors()
            .all(|(_, t)| t.dtype() == DType::Bf16)
    );
}

#[test]
fn work_that_is_stopped_leaves_nothing() {
    let folder = Folder::new("stopped");
    let checkpoint = open(&model());
    let policy = Policy {
        main: Target::Blocks(BlockFormat::Q8_0),
        rules: Vec::new(),
    };
    let plan = policy.plan(&checkpoint).unwrap();
    let job = Job {
        checkpoint: &checkpoint,
        plan: &plan,
        importance: &Importance::new(),
        threads: 2,
    };
    let stop = |done| match done < job.total_bytes() / 2 {
        true => Ok(()),
        false => Err(Error::argument("interrupted", "by the test")),
    };
    let error = job
        .write(|| OutputFile::create(&folder.path("out")), stop)
        .unwrap_err()
        .to_string();
    assert!(error.contains("by the test"), "{error}");
    let error = export::write(&checkpoint, None, &folder.path("hf"), 2, stop).unwrap_err();
    assert!(error.to_string().contains("by the test"), "{error}");
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn what_hf_cannot_say_is_named() {
    let hub = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/meta-space/hub");
    let folder = Folder::new("lossy");
    let out = folder.path("hf");
    let (code, error) = fails(&[text(&hub), text(&out), "--to", "hf"]);
    assert!(
        code == 1 && error.contains("patcher.mode") && error.contains("--allow-loss"),
        "{error}"
    );
    assert!(folder.names().is_empty());
    run(&[text(&hub), text(&out), "--to", "hf", "--allow-loss"]);
    let (original, copy) = (open(&hub), open(&out));
    for (name, t) in original.tensors() {
        assert_eq!(
            copy.tensor(name, t.shape()).unwrap().bytes(),
            t.bytes(),
            "{name}"
        );
    }
}

#[test]
fn differential_attention_comes_through() {
    let folder = Folder::new("differential");
    let (input, out) = (folder.path("input"), folder.path("out"));
    let plain = open(&model());
    let mut config = plain.config().clone();
    config.global.differential = Some(DifferentialConfig { head_norm: true });
    config.decoder.differential = Some(DifferentialConfig { head_norm: false });
    let tensors =
        expected_tensors(&config)
            .into_iter()
            .map(|ModelTensor { name, shape, .. }| {
                let vector = |n| (0..n).map(|i| 0.3 + 0.01 * i as f32).collect();
                let tensor = (plain.tensor(&name, &shape))
                    .unwrap_or_else(|_| Tensor::from_f32(shape.clone(), vector(shape[0])).unwrap());
                (name, tensor)
            });
    write_native(&input, &config, tensors).unwrap();
    run(&[text(&input), text(&out), "--type", "q8_0"]);
    let (before, after) = (open(&input), open(&out));
    assert_eq!(after.config(), &config);
    for (name, t) in before.tensors().filter(|(_, t)| t.shape().len() == 1) {
        let same = after.tensor(name, t.shape()).unwrap();
        assert_eq!(
            (same.dtype(), same.bytes()),
            (DType::F32, t.bytes()),
            "{name}"
        );
    }
    assert!(difference(&plain, &before) > 0.1);
    let error = difference(&before, &after);
    assert!(error > 0.0 && error < 0.03, "{error}");
    let hf = folder.path("hf");
    let (code, error) = fails(&[text(&input), text(&hf), "--to", "hf", "--allow-loss"]);
    let expected = "no differential attention, the model's global transformer has";
    assert!(code == 1 && error.contains(expected), "{error}");
}

#[test]
fn calibration_sees_every_matrix_and_helps_where_it_looked() {
    let checkpoint = open(&model());
    let sample = "Some words that come again and again, some words that come again. ".repeat(8);
    let importance = calibrate::importance(&checkpoint, sample.as_bytes(), 2, |_| Ok(())).unwrap();
    for (name, t) in checkpoint.tensors().filter(|(_, t)| t.shape().len() == 2) {
        // Tables are looked up, not multiplied with; of some models a projection is never read.
        if name.contains("_embeddings") {
            assert!(!importance.contains_key(name), "{name}");
            continue;
        }
        let weights = importance
            .get(name)
            .unwrap_or_else(|| panic!("{name} was not seen"));
        assert_eq!(weights.len(), t.cols(), "{name}");
        assert!(weights.iter().all(|w| w.is_finite() && *w > 0.0), "{name}");
    }
    let folder = Folder::new("calibrated");
    let policy = Policy {
        main: Target::Blocks(BlockFormat::Q4_0),
        rules: vec!["*.w*=q4_0".parse().unwrap()],
    };
    let plan = policy.plan(&checkpoint).unwrap();
    let compute = || Compute::new(Some(1), None).unwrap();
    let before = Model::load(&checkpoint, compute()).unwrap();
    let divergence = |importance: &Importance| {
        let job = Job {
            checkpoint: &checkpoint,
            plan: &plan,
            importance,
            threads: 1,
        };
        let out = folder.path("out");
        job.write(|| OutputFile::create(&out), |_| Ok(())).unwrap();
        let after = Model::load(&open(&out), compute()).unwrap();
        let c = evaluate::compare(&before, &after, sample.as_bytes(), 128, |_| Ok(())).unwrap();
        assert_eq!(c.n, sample.len());
        c.mean_divergence()
    };
    let (plain, calibrated) = (divergence(&Importance::new()), divergence(&importance));
    assert!(
        plain > 0.0 && calibrated > 0.0 && calibrated != plain,
        "{plain} {calibrated}"
    );
    // The same model twice: nothing differs.
    let c = evaluate::compare(&before, &before, sample.as_bytes(), 100, |_| Ok(())).unwrap();
    assert_eq!((c.mean_divergence(), c.growth()), (0.0, 0.0));
    assert_eq!((c.boundary_agreement(), c.greedy_agreement()), (1.0, 1.0));
}
