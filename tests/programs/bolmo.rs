//! The programs on a model of the Bolmo family.

use serde_json::Value;

use super::{BENCH, INFO, RUN, SCORE, call, file, json, output};

const CASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/bolmo-sliding");

fn model() -> [String; 3] {
    let tokenizer = format!("{CASE}/tokenizer/tokenizer.json");
    [format!("{CASE}/model"), "--tokenizer".into(), tokenizer]
}

fn with<'a>(model: &'a [String; 3], more: &[&'a str]) -> Vec<&'a str> {
    model
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect()
}

/// The recorded prompt of that name.
fn prompt(name: &str) -> Value {
    let expected = std::fs::read(format!("{CASE}/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let prompts = expected["prompts"].as_array().unwrap();
    let found = prompts.iter().find(|prompt| prompt["name"] == name);
    found.unwrap().clone()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn greedy_text_is_that_of_the_reference() {
    let (model, prompt) = (model(), prompt("ascii"));
    let text = file("bolmo-prompt", &bytes(&prompt["bytes_hex"]));
    let expected = bytes(&prompt["greedy"]["bytes_hex"]);
    let n = expected.len().to_string();
    assert!(prompt["greedy"]["first_unsafe_step"].is_null());
    let found = output(
        RUN,
        &with(&model, &["-f", &text, "-n", &n, "--temp", "0", "--quiet"]),
        b"",
    );
    assert!(
        found.starts_with(&expected),
        "{:?}",
        String::from_utf8_lossy(&found)
    );
}

#[test]
fn drafts_are_refused() {
    let model = model();
    for program in [RUN, BENCH] {
        let result = call(program, &with(&model, &["-p", "1", "--draft", "4"]), b"");
        let message = String::from_utf8(result.stderr).unwrap();
        assert_eq!(result.status.code(), Some(2), "{message}");
        assert!(message.contains("--draft: expected none"), "{message}");
    }
}

#[test]
fn three_scores_are_printed_and_only_the_codes_are_called_so() {
    let (model, prompt) = (model(), prompt("ascii"));
    let text = file("bolmo-text", &bytes(&prompt["bytes_hex"]));
    let report = output(SCORE, &with(&model, &["-f", &text, "--quiet"]), b"");
    let report = String::from_utf8(report).unwrap();
    let lines: Vec<&str> = report.lines().collect();
    assert!(
        lines[0].contains("causal") && lines[0].ends_with("a code length"),
        "{report}"
    );
    assert!(
        lines[1].contains("joint") && lines[1].ends_with("; a code length"),
        "{report}"
    );
    assert!(
        lines[2].contains("folded") && lines[2].ends_with("not a code length"),
        "{report}"
    );
    let record = json(SCORE, &with(&model, &["-f", &text, "--quiet", "--json"]));
    let n_bytes = prompt["bytes_scored"].as_f64().unwrap();
    assert_eq!(record["bytes"], prompt["bytes_scored"]);
    for (ours, theirs) in [
        ("bits_per_byte", "causal"),
        ("joint_bits_per_byte", "joint"),
        ("folded_bits_per_byte", "folded"),
    ] {
        let found = record[ours].as_f64().unwrap() * n_bytes * std::f64::consts::LN_2;
        let expected = prompt["nll_nats"][theirs].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 5e-5 * n_bytes,
            "{ours}: {found} {expected}"
        );
    }
    let page = file("bolmo.html", b"");
    let result = call(SCORE, &with(&model, &["-f", &text, "--html", &page]), b"");
    assert_eq!(result.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&result.stderr).contains("--html"));
}

#[test]
fn the_parts_are_described_and_measured() {
    let model = model();
    let text = String::from_utf8(output(INFO, &with(&model, &[]), b"")).unwrap();
    for part in [
        "Bolmo",
        "subwords",
        "example-org/tiny-subword-tokenizer",
        "mLSTM",
        "YaRN",
        "stop ids",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        !text.contains("hash") && !text.contains("cross-attention"),
        "{text}"
    );
    let record = json(INFO, &with(&model, &["--json"]));
    assert_eq!(record["layout"], "Bolmo");
    let result = call(
        BENCH,
        &with(&model, &["-p", "64", "-n", "16", "-r", "1", "--quiet"]),
        b"",
    );
    assert!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
}

#[test]
fn what_these_models_lack_is_refused_in_one_line() {
    let model = model();
    let run = |args: &[&str]| call(RUN, &with(&model, args), b"");
    for (args, part) in [
        (&["-p", "a", "-n", "1", "--device", "cuda"][..], "CPU"),
        (&["-p", "a", "-n", "1", "--patching", "space"], "patching"),
    ] {
        let result = run(args);
        let message = String::from_utf8_lossy(&result.stderr);
        assert!(
            !result.status.success() && message.contains(part) && message.lines().count() == 1,
            "{args:?}: {message}"
        );
    }
    let result = call(RUN, &[&model[0], "-p", "a", "-n", "1"], b"");
    let message = String::from_utf8_lossy(&result.stderr);
    assert!(
        message.contains("fetch tokenizer.json") && message.lines().count() == 1,
        "{message}"
    );
}
