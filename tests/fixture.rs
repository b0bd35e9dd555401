//! Agreement with the public implementations, on every reference case (tests/data/README.md).
//!
//! Nothing here knows a case by name, so further cases in the same format run too.

mod common;

use blt::model::Trace;
use blt::vocab::{Id, VOCAB_SIZE};
use blt::{Model, SessionOptions};
use common::{Case, Prompt};

/// Largest absolute difference of any stage. The references' own rounding noise (float32 against
/// float64) is 1.1e-5; an epsilon of 1e-5 instead of 1e-6 in one norm moves logits by 1.3e-4.
const STAGE_TOLERANCE: f32 = 5e-5;
/// Largest absolute difference of entropies in nats; their noise is 5e-6.
const ENTROPY_TOLERANCE: f32 = 2e-5;
/// Largest difference of the sum of surprisals, per id.
const NLL_TOLERANCE: f64 = 1e-5;

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let difference = (f - e).abs();
        assert!(
            difference <= tolerance,
            "{what}: value {i}: expected {e}, found {f}, difference {difference:e}"
        );
    }
}

/// -ln p(ids[i + 1]), summed.
fn nll(logits: &[f32], ids: &[Id]) -> f64 {
    let rows = logits.chunks_exact(VOCAB_SIZE);
    let next = |(row, &id): (&[f32], &Id)| {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&l| f64::from(l - max).exp()).sum();
        sum.ln() - f64::from(row[usize::from(id)] - max)
    };
    rows.zip(&ids[1..]).map(next).sum()
}

fn argmax(logits: &[f32]) -> Id {
    let best = |a: usize, b: usize| if logits[b] > logits[a] { b } else { a };
    (0..logits.len()).reduce(best).unwrap() as Id
}

/// Where patches start according to recorded lengths, as far as `n` ids decide it.
fn recorded_starts(lengths: &[usize], n: usize) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut start = 0;
    for length in lengths {
        starts.push(start);
        start += length;
    }
    starts.retain(|&s| s <= n);
    starts.dedup();
    starts
}

/// transformers drops the empty last patch when `max_patch_length` is set, so the last byte of a
/// text reads an earlier patch than the same byte does when more text follows. We follow Meta,
/// where a byte's logits do not depend on what comes after it.
fn has_last_position_quirk(case: &Case, layout: &str) -> bool {
    layout == "model" && !case.expected["max_patch_length"].is_null()
}

fn check_prompt(case: &Case, layout: &str, model: &Model, prompt: &Prompt<'_>) {
    let at = format!("{}/{layout}/{}", case.name, prompt.name());
    let ids = prompt.ids();
    let n = ids.len();
    let tensor = |what: &str| case.tensor(&format!("{}/{what}", prompt.name()));

    let mut session = common::session(model, SessionOptions::default());
    let mut logits = Vec::new();
    common::feed(&mut session, &ids, &mut logits);

    // Patches, exactly.
    let mut found = session.patch_starts().to_vec();
    let mut expected = recorded_starts(&common::lengths(prompt.list("patch_lengths")), n);
    if has_last_position_quirk(case, layout) {
        found.retain(|&s| s < n);
        expected.retain(|&s| s < n);
    }
    assert_eq!(found, expected, "{at}: patch starts");
    let total: usize = session.patch_lengths().iter().sum();
    assert_eq!(total, n + 1, "{at}: patch lengths count the next byte");

    // Entropies and logits.
    if prompt.has("entropies") {
        let expected: Vec<f32> = (common::numbers(prompt.list("entropies")).into_iter())
            .map(|e| e as f32)
            .collect();
        assert_close(
            &format!("{at}: entropies"),
            session.entropies(),
            &expected,
            ENTROPY_TOLERANCE,
        );
    }
    let quirk = has_last_position_quirk(case, layout) && session.patch_starts().last() == Some(&n);
    let compared = if quirk { n - 1 } else { n };
    if let Some((_, expected)) = tensor("logits") {
        let rows = compared * VOCAB_SIZE;
        assert_close(
            &format!("{at}: logits"),
            &logits[..rows],
            &expected[..rows],
            STAGE_TOLERANCE,
        );
    }
    if let Some((shape, expected)) = tensor("logits_tail") {
        let tail = &logits[(n - shape[0]) * VOCAB_SIZE..];
        assert_close(
            &format!("{at}: last logits"),
            tail,
            &expected,
            STAGE_TOLERANCE,
        );
    }
    if prompt.has("nll_nats") {
        let (found, expected) = (nll(&logits, &ids), prompt.number("nll_nats"));
        let difference = (found - expected).abs();
        assert!(
            difference <= NLL_TOLERANCE * n as f64,
            "{at}: expected {expected} nats, found {found}"
        );
    }

    check_stages(&at, case, model, prompt);

    // Each byte's logits, had the text ended there: the same, except for the quirk.
    if let Some((_, expected)) = tensor("prefix_last_logits") {
        let listed = case.expected["prefix_vs_one_pass"].as_array().unwrap();
        let entry = listed
            .iter()
            .find(|e| e["prompt"] == prompt.name())
            .unwrap();
        let differ = common::lengths(&entry["positions_that_differ"]);
        for i in (0..n).filter(|i| !differ.contains(i)) {
            let row = i * VOCAB_SIZE..(i + 1) * VOCAB_SIZE;
            let what = format!("{at}: logits of the text up to {i}");
            assert_close(&what, &logits[row.clone()], &expected[row], STAGE_TOLERANCE);
        }
        assert!(differ.len() < n, "{at}: nothing left to compare");
    }

    // Greedy continuation; transformers' follows from the quirk where it has one.
    let key = match prompt.has("greedy_ids_ignoring_eos") {
        true => "greedy_ids_ignoring_eos",
        false => "greedy_ids",
    };
    if prompt.has(key) && !has_last_position_quirk(case, layout) {
        let expected = common::ids(prompt.list(key));
        for (i, &id) in expected.iter().enumerate() {
            assert_eq!(argmax(session.logits()), id, "{at}: greedy id {i}");
            session.feed_ids(&[id]).unwrap();
        }
    }
}

/// The intermediate tensors. Patches that are still open are read by no byte and never computed.
fn check_stages(at: &str, case: &Case, model: &Model, prompt: &Prompt<'_>) {
    let mut session = common::session(model, SessionOptions::default());
    let mut trace = Trace::default();
    session.feed_ids_traced(&prompt.ids(), &mut trace).unwrap();
    for (what, found, open_patches) in [
        ("input_embeds", &trace.input_embeds, false),
        ("encoder_hidden", &trace.encoder_hidden, false),
        ("encoder_cross", &trace.encoder_cross, true),
        ("global_out", &trace.global_out, true),
        ("entropy_logits", &trace.entropy_logits, false),
    ] {
        let Some((_, expected)) = case.tensor(&format!("{}/{what}", prompt.name())) else {
            continue;
        };
        let n = if open_patches {
            found.len()
        } else {
            expected.len()
        };
        assert!(n <= expected.len() && n > 0, "{at}: {what}: {n} values");
        assert_close(
            &format!("{at}: {what}"),
            found,
            &expected[..n],
            STAGE_TOLERANCE,
        );
    }
}

/// Runs with patch lengths handed in.
fn check_given_lengths(case: &Case, layout: &str, model: &Model) {
    let runs = case.expected["explicit_patch_lengths"].as_array();
    for run in runs.into_iter().flatten() {
        let prompts = case.prompts();
        let prompt = prompts.iter().find(|p| run["prompt"] == p.name()).unwrap();
        let at = format!("{}/{layout}/{}", case.name, run["logits"]);
        let options = SessionOptions {
            patch_lengths: Some(common::lengths(&run["patch_lengths"])),
            ..SessionOptions::default()
        };
        let mut session = common::session(model, options);
        let mut logits = Vec::new();
        common::feed(&mut session, &prompt.ids(), &mut logits);
        let (_, expected) = case.tensor(run["logits"].as_str().unwrap()).unwrap();
        assert_close(&at, &logits, &expected, STAGE_TOLERANCE);
    }
}

#[test]
fn fixture_cases_agree_with_their_references() {
    let cases = common::cases();
    let models = cases.iter().flat_map(|case| {
        let layouts = case.models().into_iter();
        layouts.map(move |(layout, model)| (case, layout, model))
    });
    let checks = models.flat_map(|(case, layout, model)| {
        let prompts = case.prompts().into_iter().map(Some).chain([None]);
        prompts.map(move |prompt| {
            let what = prompt.as_ref().map_or("given patch lengths", Prompt::name);
            let name = format!("{}, {what}", case.folder.join(&layout).display());
            (name, (case, layout.clone(), model.clone(), prompt))
        })
    });
    common::check_all(checks, |_, (case, layout, model, prompt)| match prompt {
        Some(prompt) => check_prompt(case, &layout, &model, &prompt),
        None => check_given_lengths(case, &layout, &model),
    });
}

#[test]
fn every_kind_of_reference_number_is_in_the_repository() {
    let cases = common::cases();
    let tensors = ["logits", "prefix_last_logits", "entropies"];
    let stages = [
        "input_embeds",
        "encoder_hidden",
        "encoder_cross",
        "global_out",
    ];
    for what in tensors.into_iter().chain(stages) {
        let has = |case: &Case| {
            let mut prompts = case.prompts().into_iter();
            prompts.any(|p| case.tensor(&format!("{}/{what}", p.name())).is_some())
        };
        assert!(cases.iter().any(has), "no case with {what}");
    }
    let given = |case: &Case| case.expected["explicit_patch_lengths"].is_array();
    assert!(cases.iter().any(given), "no case with given patch lengths");
}
