//! The programs as a user runs them: exit codes, what goes to which stream, files left behind.
//!
//! Behaviour is tested on one small model in tests/data, figures on all reference cases.

mod bolmo;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "default-model")]
mod default_model;
#[cfg(target_os = "linux")]
mod hostile;
mod outputs;
mod run;
mod score;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use blt::Model;
use common::Case;
use serde_json::Value;

const RUN: &str = env!("CARGO_BIN_EXE_blt-run");
const SCORE: &str = env!("CARGO_BIN_EXE_blt-score");
const INFO: &str = env!("CARGO_BIN_EXE_blt-info");
const BENCH: &str = env!("CARGO_BIN_EXE_blt-bench");

/// The small model: entropy patching, entropy model inside.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/hf-gqa/model");
/// A model whose entropy model is separate.
const SEPARATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/meta-threshadd");

fn call(program: &str, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .env_remove("NO_COLOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input closes it; that is not what is tested.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// Standard output of a call that must succeed.
fn output(program: &str, args: &[&str], stdin: &[u8]) -> Vec<u8> {
    let result = call(program, args, stdin);
    let errors = String::from_utf8_lossy(&result.stderr).into_owned();
    assert_eq!(
        result.status.code(),
        Some(0),
        "{program} {args:?}: {errors}"
    );
    result.stdout
}

fn json(program: &str, args: &[&str]) -> Value {
    let text = output(program, args, b"");
    serde_json::from_slice(&text)
        .unwrap_or_else(|e| panic!("{args:?}: {e} in {}", String::from_utf8_lossy(&text)))
}

/// A file of this test run.
fn file(name: &str, content: &[u8]) -> String {
    let path = temporary(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().into()
}

fn temporary(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

#[test]
fn errors_are_one_line_with_the_right_code() {
    let empty = file("empty.safetensors", b"");
    let not_ids = file("not-ids.json", b"[1, 300]");
    let no_ids = file("no-ids.json", b"[]");
    let hub = format!("{SEPARATE}/hub");
    let long = "x".repeat(3000);
    let cases: &[(&str, &[&str], i32, &str)] = &[
        (RUN, &["--nonsense"], 2, "--nonsense: unknown flag (see"),
        (
            RUN,
            &["--tepm", "1"],
            2,
            "--tepm: unknown flag; did you mean --temp?",
        ),
        (RUN, &["--entropy", "x"], 2, "did you mean --entropy-model?"),
        (
            RUN,
            &[MODEL, "-n"],
            2,
            "-n: expected a value after it, found none",
        ),
        (
            RUN,
            &[MODEL, "-nx"],
            2,
            "-n: expected a whole number, found \"x\"",
        ),
        (
            RUN,
            &[MODEL, "--seed=x"],
            2,
            "--seed: expected a whole number, found \"x\"",
        ),
        (
            RUN,
            &[MODEL, "--temp", "warm"],
            2,
            "--temp: expected a number, found \"warm\"",
        ),
        (RUN, &[MODEL, "--quiet=1"], 2, "--quiet: expected no value"),
        (
            RUN,
            &[MODEL, "-n1", "-n2"],
            2,
            "-n: expected once, found twice",
        ),
        (
            RUN,
            &[MODEL, "x", "-p", "a"],
            2,
            "no further argument, found \"x\"",
        ),
        (RUN, &["--verbose", "--quiet"], 2, "--verbose"),
        (
            RUN,
            &["-p", "a", "--draft", "999"],
            2,
            "--draft: expected at most",
        ),
        (
            RUN,
            &["-p", "a", "--context", "0"],
            2,
            "--context: expected at least 1",
        ),
        (
            SCORE,
            &["-f", "-", "--context", "0"],
            2,
            "--context: expected at least 1",
        ),
        (
            BENCH,
            &["--type", "q8_0"],
            2,
            "--type: expected --synthetic",
        ),
        (BENCH, &["--synthetic", "9b"], 2, "--synthetic: "),
        (
            BENCH,
            &["--synthetic", "small", "--type", "q9"],
            2,
            "--type: ",
        ),
        (RUN, &[MODEL, "-p", "a", "-f", "b"], 2, "found both"),
        (RUN, &[MODEL, "-p", "a", "--temp", "-1"], 2, "--temp: "),
        (RUN, &[MODEL, "-p", "a", "--temp", "nan"], 2, "--temp: "),
        (RUN, &[MODEL, "-p", "a", "--top-p", "2"], 2, "--top-p: "),
        (RUN, &[MODEL, "-p", "a", "--seed", "x"], 2, "--seed"),
        (RUN, &[MODEL, "-p", "a", "--stop", ""], 2, "--stop"),
        (RUN, &[MODEL, "-p", "a", "--isa", "mmx"], 2, "portable"),
        (RUN, &[MODEL, "-p", "a", "-t", "0"], 2, "-t: expected"),
        (RUN, &[MODEL, "-p", "a", "--patching", "words"], 2, "static"),
        (
            RUN,
            &[MODEL, "-p", "a", "--threshold", "nan"],
            2,
            "--threshold",
        ),
        (RUN, &[MODEL, "-p", "", "--no-bos"], 2, "empty prompt"),
        (RUN, &[MODEL, "-p", "a", "--json", "--echo"], 2, "--json"),
        (RUN, &["/no/such/model", "-p", "a"], 1, "/no/such/model"),
        (RUN, &[&empty, "-p", "a"], 1, "empty"),
        (RUN, &[MODEL, "-f", "/no/such/file"], 1, "/no/such/file"),
        (
            RUN,
            &[MODEL, "-p", &long, "--context", "50"],
            1,
            "at most 50 bytes, found 3001",
        ),
        (RUN, &[&hub, "-p", "a"], 1, "--entropy-model"),
        (SCORE, &[MODEL], 2, "neither"),
        (
            SCORE,
            &[MODEL, "-f", "x", "--context", "20", "--overlap", "19"],
            1,
            "x: ",
        ),
        (
            SCORE,
            &[MODEL, "-f", "-", "--context", "20", "--overlap", "19"],
            2,
            "overlap",
        ),
        (SCORE, &[MODEL, "--raw-ids", &not_ids], 1, "found 300 at 1"),
        (SCORE, &[MODEL, "--raw-ids", &no_ids], 1, "at least one id"),
        (SCORE, &[MODEL, "--raw-ids", &empty], 1, "JSON"),
        (INFO, &["/no/such/model"], 1, "/no/such/model"),
        (INFO, &["--isa", "x"], 2, "--isa"),
        (
            INFO,
            &["--isa", "list", MODEL],
            2,
            "--isa: expected nothing else",
        ),
        (INFO, &["--devices", "--json"], 2, "--devices: "),
        (
            RUN,
            &[MODEL, "--patching", "space", "--entropy-reset", "9"],
            2,
            "--entropy-reset: expected entropy patching",
        ),
        (
            BENCH,
            &[MODEL, "--tables", "host"],
            2,
            "--tables: expected --device",
        ),
        (
            BENCH,
            &[MODEL, "-p", "0", "-n", "0"],
            2,
            "something to measure",
        ),
        (BENCH, &[MODEL, "--patch-length", "0"], 2, "--patch-length"),
    ];
    for (program, args, code, expected) in cases {
        let result = call(program, args, b"");
        let message = String::from_utf8(result.stderr).unwrap();
        let name = Path::new(program).file_stem().unwrap().to_str().unwrap();
        assert_eq!(
            result.status.code(),
            Some(*code),
            "{name} {args:?}: {message}"
        );
        assert_eq!(message.lines().count(), 1, "{name} {args:?}: {message}");
        assert!(
            message.starts_with(&format!("{name}: ")),
            "{args:?}: {message}"
        );
        assert!(message.contains(expected), "{args:?}: {message}");
        assert!(result.stdout.is_empty(), "{name} {args:?}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for program in [RUN, SCORE, INFO, BENCH] {
        for flag in ["--help", "-h"] {
            let help = String::from_utf8(output(program, &[flag], b"")).unwrap();
            for part in [
                "Usage:",
                "\nModel:\n",
                "\nOutput:\n",
                "--json",
                "-V, --version",
                "130",
            ] {
                assert!(help.contains(part), "{part} in {help}");
            }
            assert!(
                help.lines().all(|line| line.chars().count() <= 100),
                "{help}"
            );
        }
        for flag in ["--version", "-V"] {
            let version = String::from_utf8(output(program, &[flag], b"")).unwrap();
            let expected = concat!(" ", env!("CARGO_PKG_VERSION"), "\n");
            assert!(version.ends_with(expected), "{version}");
        }
    }
}

/// The checkpoints of a case, each with the further arguments that it needs.
fn models(case: &Case) -> Vec<(String, Vec<String>)> {
    let text = |path: &Path| path.to_str().unwrap().to_string();
    (case.layouts().iter())
        .map(|(_, folder, options)| {
            let more = match &options.entropy_model {
                Some(path) => vec!["--entropy-model".into(), text(path)],
                None => vec![],
            };
            (text(folder), more)
        })
        .collect()
}

#[test]
fn info_adds_up() {
    let record = json(INFO, &[MODEL, "--json", "--check", "--quiet"]);
    let parts = record["parts"].as_object().unwrap();
    let sum: u64 = parts
        .values()
        .map(|p| p["parameters"].as_u64().unwrap())
        .sum();
    assert_eq!(record["parameters"], sum);
    assert_eq!(record["checked"], sum);
    assert_eq!(record["checksums"], 0, "native files have them");
    let bytes: u64 = parts.values().map(|p| p["bytes"].as_u64().unwrap()).sum();
    assert!(bytes <= record["files"][0]["bytes"].as_u64().unwrap());
    assert_eq!(record["config"]["patcher"]["mode"], "entropy");
    let text = String::from_utf8(output(INFO, &[MODEL], b"")).unwrap();
    assert!(
        text.contains("Hugging Face") && text.contains("hash tables"),
        "{text}"
    );
    let record = json(INFO, &[MODEL, "--json", "--tensors"]);
    let tensors = record["tensors"].as_array().unwrap();
    let sum: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(record["bytes"], sum);
    let list = String::from_utf8(output(INFO, &[MODEL, "--tensors"], b"")).unwrap();
    assert_eq!(list.lines().count(), tensors.len());
    assert!(
        list.contains("decoder.output") && list.contains("f32"),
        "{list}"
    );
    let checked = output(INFO, &[MODEL, "--tensors", "--check"], b"");
    assert!(checked.starts_with(list.as_bytes()) && checked.ends_with(b"no checksums\n"));
    let names = String::from_utf8(output(INFO, &["--isa", "list"], b"")).unwrap();
    assert!(names.lines().any(|name| name == "portable"), "{names}");
}

#[test]
fn info_finds_a_weight_that_is_no_number() {
    let folder = temporary("damaged");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(format!("{MODEL}/config.json"), folder.join("config.json")).unwrap();
    let mut bytes = std::fs::read(format!("{MODEL}/model.safetensors")).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    let folder = folder.to_str().unwrap();
    assert_eq!(call(INFO, &[folder], b"").status.code(), Some(0));
    let result = call(INFO, &[folder, "--check"], b"");
    let message = String::from_utf8(result.stderr).unwrap();
    assert_eq!(result.status.code(), Some(1), "{message}");
    assert!(
        message.contains("tensor \"") && message.contains("NaN") && message.contains(folder),
        "{message}"
    );
}

/// Damage of a native file that no shape betrays is found by `blt-info --check` and by `--verify` of any program.
#[test]
fn a_damaged_native_file_is_found() {
    let model = Model::open(MODEL).unwrap();
    let source = Model::options().open_checkpoint(MODEL).unwrap();
    let path = temporary("damaged.blt");
    let tensors = source
        .tensors()
        .map(|(name, t)| (name.to_string(), t.clone()));
    blt::checkpoint::write_native(&path, model.config(), tensors).unwrap();
    let text = path.to_str().unwrap();
    let record = json(INFO, &[text, "--check", "--json", "--quiet"]);
    assert_eq!(record["checksums"], source.names().len());
    output(RUN, &[text, "-p", "a", "-n", "1", "--verify"], b"");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    output(RUN, &[text, "-p", "a", "-n", "1"], b"");
    for args in [
        &[RUN, text, "-p", "a", "--verify"][..],
        &[INFO, text, "--check"],
        &[INFO, text, "--verify"],
    ] {
        let result = call(args[0], &args[1..], b"");
        let message = String::from_utf8(result.stderr).unwrap();
        assert_eq!(result.status.code(), Some(1), "{args:?}: {message}");
        assert!(
            message.contains("damaged.blt is damaged"),
            "{args:?}: {message}"
        );
    }
    let result = call(RUN, &[MODEL, "-p", "a", "--verify"], b"");
    assert!(String::from_utf8_lossy(&result.stderr).contains("expected checksums, found none"));
}

#[test]
fn bench_gives_figures_that_fit_together() {
    let args = [
        MODEL,
        "-p",
        "24",
        "-n",
        "12",
        "-r",
        "2",
        "--patch-length",
        "4",
    ];
    let record = json(BENCH, &[&args[..], &["--json"]].concat());
    assert_eq!(record["generate"]["mean_patch_length"], 4.0);
    assert_eq!(record["prompt"]["seconds"].as_array().unwrap().len(), 2);
    let number = |key: &str| record[key].as_f64().unwrap();
    let per_byte =
        number("weight_bytes_per_byte_path") + number("weight_bytes_per_patch_path") / 4.0;
    assert!((number("weight_bytes_per_generated_byte") - per_byte).abs() < 1.0);
    let csv = String::from_utf8(output(BENCH, &[&args[..], &["--csv"]].concat(), b"")).unwrap();
    let columns: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(columns, [18, 18, 18], "{csv}");
    // Sessions in step read the weights once for all of them.
    let together = json(BENCH, &[&args[..], &["--json", "--batch", "3"]].concat());
    let weights = together["weight_bytes_per_generated_byte"]
        .as_f64()
        .unwrap();
    assert!((3.0 * weights - per_byte).abs() < 1.0);
    assert_eq!(together["sessions"], 3);
}

#[test]
fn bench_makes_its_own_weights() {
    let args = ["--synthetic", "small", "-p", "8", "-n", "4", "-r", "1"];
    for dtype in ["bf16", "q4_k"] {
        let more = ["--type", dtype, "--patch-length", "4", "--json"];
        let record = json(BENCH, &[&args[..], &more].concat());
        assert_eq!(record["model"], format!("synthetic small {dtype}"));
        assert!(record["generate"]["bytes_per_second"].as_f64().unwrap() > 0.0);
    }
}
