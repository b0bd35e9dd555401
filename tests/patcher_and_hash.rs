//! Patch boundaries and hash rows against those of the original implementation, in batch, pushed
//! one id at a time, and after a rewind to every length.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use blt::config::{HashConfig, PatcherConfig, PatchingMode};
use blt::model::hash::{NgramHasher, hash_row};
use blt::model::patcher::{Patcher, patch_lengths, patch_starts, starts_to_lengths, top_k_starts};
use blt::vocab::Id;
use common::Random;
use serde_json::Value;

/// The cases of that file, from every root that has it.
fn read(name: &str) -> Vec<Value> {
    let mut cases = Vec::new();
    for root in common::roots() {
        let path = root.join("patcher-and-hash").join(name);
        // Other roots may lack these cases; the repository must not.
        let Ok(text) = std::fs::read_to_string(&path) else {
            assert!(!cases.is_empty(), "no {}", path.display());
            continue;
        };
        let value: Value = serde_json::from_str(&text).unwrap();
        let found = value["cases"].as_array().unwrap();
        assert!(found.len() > 40, "{}: too few cases", path.display());
        cases.extend(found.iter().cloned());
    }
    cases
}

fn ids(value: &Value) -> Vec<Id> {
    let list = value.as_array().unwrap();
    list.iter()
        .map(|v| Id::try_from(v.as_u64().unwrap()).unwrap())
        .collect()
}

fn usizes(value: &Value) -> Vec<usize> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn config(case: &Value) -> PatcherConfig {
    let float = |key: &str| case.get(key).map(|v| v.as_f64().unwrap() as f32);
    let size = |key: &str| case.get(key).map(|v| v.as_u64().unwrap() as usize);
    PatcherConfig {
        mode: case["patching_mode"].as_str().unwrap().parse().unwrap(),
        threshold: float("threshold").unwrap_or(0.0),
        threshold_add: float("threshold_add"),
        monotonicity: case
            .get("monotonicity")
            .is_some_and(|v| v.as_bool().unwrap()),
        max_patch_length: size("max_patch_length"),
        patch_size: size("patch_size").unwrap_or(1),
    }
}

/// One text of a case: ids, entropies (empty if the mode has none), the two recorded lengths.
struct Text {
    ids: Vec<Id>,
    entropies: Vec<f32>,
}

/// The texts of a case: one, or several rows for the kind "batch".
fn texts(case: &Value) -> Vec<Text> {
    let text = |tokens: &Value, entropies: Option<&Value>| Text {
        ids: ids(tokens),
        entropies: entropies.map(floats).unwrap_or_default(),
    };
    if case["kind"] != "batch" {
        return vec![text(&case["tokens"], case.get("entropies"))];
    }
    let entropies = case["entropies"].as_array().unwrap();
    let tokens = case["tokens"].as_array().unwrap().iter();
    tokens
        .zip(entropies)
        .map(|(t, e)| text(t, Some(e)))
        .collect()
}

/// The recorded lengths of each text of a case, without the zeros that pad a batch.
fn recorded(case: &Value, key: &str) -> Vec<Vec<usize>> {
    if case["kind"] != "batch" {
        return vec![usizes(&case[key])];
    }
    let rows: Vec<_> = case[key].as_array().unwrap().iter().map(usizes).collect();
    let longest = rows
        .iter()
        .map(|r| r.iter().filter(|&&n| n > 0).count())
        .max();
    rows.into_iter()
        .map(|mut row| {
            assert_eq!(Some(row.len()), longest, "padded to the longest row");
            let used = row.iter().position(|&n| n == 0).unwrap_or(row.len());
            assert!(row[used..].iter().all(|&n| n == 0), "zeros only at the end");
            row.truncate(used);
            row
        })
        .collect()
}

#[test]
fn fixture_patches_are_those_of_the_original_in_both_conventions() {
    let mut n_checked = 0;
    for (i, case) in read("patcher.json").iter().enumerate() {
        if case["kind"] == "topk" {
            continue; // the next test
        }
        let config = config(case);
        for (key, with_next) in [("lengths_with_next", true), ("lengths", false)] {
            // The format allows null for what the original refuses; no recorded case has it, and
            // a new one must be looked at by a person.
            assert!(
                !case[key].is_null(),
                "case {i} {key}: the original raises an error"
            );
            for (text, expected) in texts(case).iter().zip(recorded(case, key)) {
                let found = patch_lengths(&config, &text.ids, &text.entropies, with_next).unwrap();
                assert_eq!(found, expected, "case {i} ({}) {key}", case["kind"]);
                assert_eq!(
                    slow_lengths(&config, &text.ids, &text.entropies, with_next),
                    expected,
                    "case {i}: the reference of this test"
                );
                n_checked += 1;
            }
        }
    }
    assert!(n_checked >= 100, "{n_checked} lists of lengths");
}

#[test]
fn fixture_ranked_patches_are_those_of_the_original() {
    let cases = read("patcher.json");
    let ranked: Vec<_> = cases.iter().filter(|c| c["kind"] == "topk").collect();
    assert!(ranked.len() >= 4);
    for case in ranked {
        let entropies = floats(&case["entropies"]);
        let patch_size = case["patch_size"].as_u64().unwrap() as usize;
        let starts = top_k_starts(&entropies, patch_size);
        assert_eq!(starts, usizes(&case["start_ids"]));
        assert_eq!(
            starts_to_lengths(&starts, entropies.len() + 1),
            usizes(&case["lengths_with_next"])
        );
    }
}

/// Every decision while pushing, checked with the recorded lengths, and every prefix of the text
/// checked with the state a rewind gives.
#[test]
fn fixture_patches_come_out_one_id_at_a_time_and_after_a_rewind() {
    for (i, case) in read("patcher.json").iter().enumerate() {
        if case["kind"] == "topk" {
            continue;
        }
        let config = config(case);
        for (text, lengths) in texts(case).iter().zip(recorded(case, "lengths_with_next")) {
            let n = text.ids.len();
            let mut starts = vec![false; n + 1];
            let mut at = 0;
            for length in &lengths {
                starts[at] = true;
                at += length;
            }
            assert_eq!(at, n + 1);
            // The original never opens a patch at the unknown byte in BPE mode, see `patch_lengths`.
            let trailing_delimiter =
                config.mode == PatchingMode::Bpe && n > 1 && text.ids[n - 1] == 3;
            starts[n] |= trailing_delimiter;
            // Nor does it close the first byte's patch in static mode.
            if n > 0 {
                starts[1] = true;
            }

            let mut patcher = Patcher::new(&config).unwrap();
            for (j, &id) in text.ids.iter().enumerate() {
                let entropy = text.entropies.get(j).copied().unwrap_or(f32::NAN);
                assert_eq!(
                    patcher.push(id, entropy),
                    starts[j + 1],
                    "case {i} ({}), position {}",
                    case["kind"],
                    j + 1
                );
            }
            rewinds_are_fresh(&config, &text.ids, &text.entropies, &format!("case {i}"));
        }
    }
}

/// Rewinds a patcher that took everything to each length, and compares what it says then, up to
/// the end of the text, with a patcher that took the text once.
fn rewinds_are_fresh(config: &PatcherConfig, ids: &[Id], entropies: &[f32], name: &str) {
    let starts = patch_starts(config, ids, entropies).unwrap();
    let entropy = |i: usize| entropies.get(i).copied().unwrap_or(f32::NAN);
    let mut patcher = Patcher::new(config).unwrap();
    for (i, &id) in ids.iter().enumerate() {
        patcher.push(id, entropy(i));
    }
    // Long texts: every length at the ends, every 7th between.
    for n in (0..=ids.len()).filter(|n| ids.len() < 64 || *n < 12 || n % 7 == 0) {
        let patch_start = *starts.iter().rfind(|&&s| s <= n).unwrap();
        patcher.rewind(n, ids, entropies, patch_start);
        assert_eq!(patcher.len(), n);
        assert_eq!(patcher.patch_len(), n - patch_start);
        for (i, &id) in ids.iter().enumerate().skip(n) {
            let found = patcher.push(id, entropy(i));
            let expected = starts.binary_search(&(i + 1)).is_ok();
            assert_eq!(
                found,
                expected,
                "{name}: position {} after rewind to {n}",
                i + 1
            );
        }
        assert_eq!(patcher.len(), ids.len());
        assert_eq!(patcher.patch_start(), *starts.last().unwrap());
    }
}

/// The definition over whole arrays: a mask of all `n + 1` positions from the rule, then long
/// patches split. Shares no code with the patcher.
fn slow_lengths(
    config: &PatcherConfig,
    ids: &[Id],
    entropies: &[f32],
    with_next: bool,
) -> Vec<usize> {
    let n = ids.len();
    let total = n + usize::from(with_next);
    let mut mask = vec![false; n + 1];
    mask[0] = true;
    if n > 0 {
        mask[1] = true;
    }
    match config.mode {
        PatchingMode::Entropy => {
            let rises: Vec<f32> = entropies.windows(2).map(|w| w[1] - w[0]).collect();
            for s in 2..=n {
                mask[s] = if config.monotonicity {
                    s == 2 || rises[s - 2] > config.threshold
                } else if let Some(add) = config.threshold_add {
                    s == 2 || s > 3 && rises[s - 2] > add && entropies[s - 1] > config.threshold
                } else {
                    entropies[s - 1] > config.threshold
                };
            }
        }
        PatchingMode::Space => {
            let letters = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
            let ends: Vec<bool> = ids
                .iter()
                .map(|&id| match id {
                    0..=3 => true,
                    4..=131 => !letters.contains(&(id as u8 - 4)),
                    132..=195 => false,
                    _ => true,
                })
                .collect();
            for s in 2..=n {
                mask[s] = ids[s - 1] < 4 || ends[s - 1] && !ends[s - 2];
            }
        }
        PatchingMode::Static => {
            for (s, start) in mask.iter_mut().enumerate() {
                *start = s % config.patch_size == 0;
            }
        }
        PatchingMode::Byte => mask.fill(true),
        PatchingMode::Bpe => (2..n).for_each(|s| mask[s] = ids[s - 1] == 3),
    }
    let mut lengths = Vec::new();
    let mut at = 0;
    while at < total {
        let next = (at + 1..total).find(|&s| mask[s]).unwrap_or(total);
        let mut rest = next - at;
        while rest > 0 {
            let piece = rest.min(config.max_patch_length.unwrap_or(rest));
            lengths.push(piece);
            rest -= piece;
        }
        at = next;
    }
    lengths
}

#[test]
fn random_texts_agree_with_the_definition_and_rewind_to_every_length() {
    for seed in 0..600 {
        let mut r = Random(seed);
        let n = r.below(40);
        let ids: Vec<Id> = (0..n)
            .map(|_| match r.below(4) {
                0 => r.below(5) as Id,
                1 => 36,
                _ => r.below(260) as Id,
            })
            .collect();
        // Quarters, so that entropies and rises often equal a threshold.
        let entropies: Vec<f32> = (0..n).map(|_| r.below(12) as f32 / 4.0).collect();
        let config = PatcherConfig {
            mode: PatchingMode::ALL[seed as usize % 5],
            threshold: r.below(7) as f32 / 4.0,
            threshold_add: (r.below(2) == 0).then(|| r.below(5) as f32 / 4.0 - 0.25),
            monotonicity: r.below(3) == 0,
            max_patch_length: (r.below(2) == 0).then(|| 1 + r.below(6)),
            patch_size: 1 + r.below(6),
        };
        let name = || {
            let mut name = String::new();
            write!(name, "seed {seed}, {config:?}, ids {ids:?}").unwrap();
            name
        };
        for with_next in [true, false] {
            let found = patch_lengths(&config, &ids, &entropies, with_next).unwrap();
            let expected = slow_lengths(&config, &ids, &entropies, with_next);
            assert_eq!(found, expected, "{} {with_next}", name());
            assert_eq!(found.iter().sum::<usize>(), n + usize::from(with_next));
        }
        rewinds_are_fresh(&config, &ids, &entropies, &name());

        // The same patches given as lengths.
        let lengths = patch_lengths(&config, &ids, &entropies, true).unwrap();
        let mut given = Patcher::with_lengths(&lengths).unwrap();
        let found: Vec<usize> = (1..=n)
            .filter(|&s| given.push(ids[s - 1], f32::NAN))
            .collect();
        let mut end = 0;
        let ends = lengths.iter().map(|length| {
            end += length;
            end
        });
        let expected: BTreeSet<usize> = ends.chain([1]).filter(|&s| s <= n).collect();
        assert_eq!(found, Vec::from_iter(expected), "{}", name());
    }
}

/// What the causality of the patcher means: a prefix has the prefix of the decisions.
#[test]
fn later_bytes_change_no_earlier_boundary() {
    for seed in 1000..1100 {
        let mut r = Random(seed);
        let config = PatcherConfig {
            mode: PatchingMode::ALL[seed as usize % 5],
            threshold: 1.0,
            threshold_add: (r.below(2) == 0).then_some(0.25),
            monotonicity: false,
            max_patch_length: (r.below(2) == 0).then_some(4),
            patch_size: 3,
        };
        let ids: Vec<Id> = (0..30).map(|_| r.below(260) as Id).collect();
        let entropies: Vec<f32> = (0..30).map(|_| r.below(9) as f32 / 4.0).collect();
        let starts = patch_starts(&config, &ids, &entropies).unwrap();
        for n in 0..=30 {
            let prefix = patch_starts(&config, &ids[..n], &entropies[..n]).unwrap();
            let expected: Vec<_> = starts.iter().copied().filter(|&s| s <= n).collect();
            assert_eq!(prefix, expected, "seed {seed}, prefix of {n}");
        }
    }
}

#[test]
fn fixture_hash_rows_are_those_of_the_original() {
    let mut n_rows = 0;
    for case in read("hash.json") {
        let ids = ids(&case["ids"]);
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (group_size, vocab, function) = (size("group_size"), size("vocab"), size("function"));
        let expected = usizes(&case["hashes"]);
        assert_eq!(expected.len(), ids.len());
        let hasher = NgramHasher::new(&HashConfig {
            group_sizes: vec![group_size],
            vocab,
            n_functions: function + 1,
        })
        .unwrap();
        let mut rows = vec![0; hasher.n_tables()];
        for (position, &row) in expected.iter().enumerate() {
            let window = &ids[(position + 1).saturating_sub(group_size)..=position];
            let name = format!("group {group_size}, vocab {vocab}, function {function}");
            assert_eq!(
                hash_row(window, group_size, function, vocab),
                row,
                "{name}, position {position}"
            );
            hasher.rows(&ids, position, &mut rows);
            assert_eq!(rows[function], row, "{name}, position {position}");
            n_rows += 1;
        }
    }
    assert!(n_rows > 1000, "{n_rows} rows");
}
