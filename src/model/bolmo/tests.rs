//! The engine against recorded numbers of the publisher's implementation, and its bits against itself.
//!
//! Cases are folders with an `expected.json` and a model of the family, in `tests/data` and in the folders that
//! `BLT_FIXTURES` and `BLT_FIXTURES_BOLMO` name. Tolerances
//! are those of the recordings: about ten times the rounding noise of the reference (float32 against float64).

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use super::Bolmo;
use super::state::{Flag, State};
use crate::cache::KvType;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::model::Trace;
use crate::model::sequence::{LogitRows, SequenceInput};
use crate::ops::Compute;
use crate::vocab::{Id, VOCAB_SIZE};

const STATE_TOLERANCE: f32 = 1e-4;
const BOUNDARY_TOLERANCE: f32 = 2e-5;
const GLOBAL_TOLERANCE: f32 = 4e-4;
const LOGIT_TOLERANCE: f32 = 2e-3;

/// Logits of a row.
const N_LOGITS: usize = 2 * VOCAB_SIZE;

struct Case {
    name: String,
    path: PathBuf,
    expected: Value,
    tensors: Vec<u8>,
    model: Bolmo,
}

fn cases() -> Vec<Case> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let named = ["BLT_FIXTURES", "BLT_FIXTURES_BOLMO"]
        .map(|name| std::env::var_os(name).map(PathBuf::from));
    let folders = named.into_iter().flatten().chain([data]);
    let mut paths: Vec<PathBuf> = folders
        .flat_map(|folder| {
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        })
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.join("expected.json").exists() && is_bolmo(&path.join("model/config.json"))
        })
        .collect();
    // A case that several folders hold counts once.
    paths.sort_by_key(|path| path.file_name().map(|name| name.to_owned()));
    paths.dedup_by_key(|path| path.file_name().map(|name| name.to_owned()));
    assert!(!paths.is_empty(), "no cases");
    paths.into_iter().map(Case::open).collect()
}

fn is_bolmo(config: &Path) -> bool {
    let config = std::fs::read(config).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    config["model_type"] == "bolmo"
}

impl Case {
    fn open(path: PathBuf) -> Case {
        let tokenizer = path.join("tokenizer");
        let options = OpenOptions {
            tokenizer: tokenizer.exists().then_some(tokenizer),
            ..OpenOptions::default()
        };
        let checkpoint = Checkpoint::open(&path.join("model"), &options)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let expected = std::fs::read(path.join("expected.json")).unwrap();
        Case {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            expected: serde_json::from_slice(&expected).unwrap(),
            tensors: std::fs::read(path.join("expected.safetensors")).unwrap(),
            model: Bolmo::load(&checkpoint, checkpoint.config()).unwrap(),
            path,
        }
    }

    /// Names of the prompts with what is expected of them.
    fn prompts(&self) -> impl Iterator<Item = (&str, &Value)> {
        let prompts = self.expected["prompts"].as_array().expect("prompts");
        prompts
            .iter()
            .map(|prompt| (prompt["name"].as_str().expect("a name"), prompt))
    }

    /// A recorded tensor; of one whose last rows alone were kept, those.
    fn tensor(&self, prompt: &str, what: &str) -> Option<Vec<f32>> {
        let all = SafeTensors::deserialize(&self.tensors).unwrap();
        let view = [format!("{prompt}/{what}"), format!("{prompt}/{what}_tail")];
        let view = view.iter().find_map(|name| all.tensor(name).ok())?;
        let (values, _) = view.data().as_chunks::<4>();
        Some(values.iter().map(|v| f32::from_le_bytes(*v)).collect())
    }
}

fn ids(value: &Value) -> Vec<Id> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(|id| id.as_u64().unwrap() as Id)
        .collect()
}

fn compute() -> Compute {
    Compute::new(Some(2), None).unwrap().split_everything()
}

/// Reads or writes ids and gives the logits.
fn run(
    case: &Case,
    compute: &Compute,
    state: &mut State,
    ids: &[Id],
    written: bool,
    logits: LogitRows,
) -> Vec<f32> {
    let input = SequenceInput {
        written,
        logits,
        ..SequenceInput::new(&mut *state, ids)
    };
    let outputs = case.model.forward(compute, &mut [input]).unwrap();
    state.evict();
    outputs[0].logits.to_vec()
}

/// Largest difference between the last rows of `found` and `expected`, which may have fewer.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let found = &found[found.len() - expected.len()..];
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(
        0.0,
        |a, b| if b.is_nan() { f32::INFINITY } else { a.max(b) },
    )
}

/// Checks that nothing was said against a case, after all of them have run.
fn report(faults: &[String]) {
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn every_stage_agrees_with_the_reference() {
    let compute = compute();
    let mut faults = Vec::new();
    for case in cases() {
        for (prompt, expected) in case.prompts() {
            let at = format!("{} {prompt}", case.name);
            let ids = ids(&expected["ids"]);
            if let Some(rows) = expected["subword_ids"].as_array() {
                for (position, row) in rows.iter().enumerate() {
                    let found = case.model.encoder.subword(&ids[..=position]);
                    if found.map(u64::from) != row.as_u64() {
                        faults.push(format!(
                            "{at}: subword {found:?} at {position}, expected {row}"
                        ));
                    }
                }
            }
            let mut state = State::new(&case.model, KvType::F32, None);
            let mut trace = Trace::default();
            let input = SequenceInput {
                trace: Some(&mut trace),
                ..SequenceInput::new(&mut state, &ids)
            };
            let outputs = case.model.forward(&compute, &mut [input]).unwrap();
            let logits = &outputs[0].logits;

            let mask = expected["boundary_mask"].as_array().unwrap();
            let mask: Vec<bool> = mask.iter().map(|flag| flag == 1).collect();
            let found: Vec<bool> = state.flags.iter().map(|flag| flag.ends_patch()).collect();
            if found != mask {
                faults.push(format!("{at}: boundaries {found:?}, expected {mask:?}"));
                continue;
            }
            let mut check = |what: &str, found: &[f32], tolerance: f32, skipped: usize| {
                let Some(mut expected) = case.tensor(prompt, what) else {
                    return;
                };
                expected.truncate(expected.len() - skipped);
                // Only the tails of some were kept, and an empty tail says nothing.
                let n = found.len().min(expected.len());
                let difference = difference(found, &expected[expected.len() - n..]);
                if difference > tolerance || n == 0 {
                    faults.push(format!(
                        "{at}: {what} differs by {difference} in {n} values"
                    ));
                }
            };
            check("encoder_hidden", &trace.encoder_hidden, STATE_TOLERANCE, 0);
            check("patches", &trace.encoder_cross, STATE_TOLERANCE, 0);
            check("global_out", &trace.global_out, GLOBAL_TOLERANCE, 0);
            if ids.len() > 2 {
                // The first is 0 by definition, the last has no next byte.
                check(
                    "boundary_logprobs",
                    &trace.boundary_log_probs,
                    BOUNDARY_TOLERANCE,
                    1,
                );
            }
            // The last row of the reference closes the last byte with flag 0; ours waits for the byte after it.
            let pending = usize::from(ids.len() > 1);
            check("logits", logits, LOGIT_TOLERANCE, pending * N_LOGITS);
        }
        eprintln!("checked {}", case.path.display());
    }
    report(&faults);
}

/// The id with the largest logit, the first of equal ones.
fn best(logits: &[f32]) -> usize {
    (0..logits.len()).fold(
        0,
        |best, id| if logits[id] > logits[best] { id } else { best },
    )
}

/// Greedy ids with their flags, from the forced one on; logits of each step; the state at the end.
fn generate(
    case: &Case,
    compute: &Compute,
    prompt: &[Id],
    n_steps: usize,
) -> (Vec<usize>, Vec<Vec<f32>>, State) {
    let mut state = State::new(&case.model, KvType::F32, None);
    let mut logits = run(case, compute, &mut state, prompt, false, LogitRows::Last);
    let (mut chosen, mut rows) = (Vec::new(), Vec::new());
    if prompt.len() > 1 {
        // The reference counts the forced choice as the first.
        let flag = state.flags.last().unwrap().ends_patch();
        chosen.push(usize::from(prompt[prompt.len() - 1]) + if flag { VOCAB_SIZE } else { 0 });
        rows.push(state.logits.clone());
    }
    while chosen.len() < n_steps {
        let id = best(&logits);
        chosen.push(id);
        rows.push(logits);
        if chosen.len() == n_steps {
            break;
        }
        logits = run(
            case,
            compute,
            &mut state,
            &[id as Id],
            true,
            LogitRows::Last,
        );
    }
    (chosen, rows, state)
}

#[test]
fn greedy_generation_chooses_the_ids_of_the_reference() {
    let compute = compute();
    let mut faults = Vec::new();
    for case in cases() {
        for (prompt, expected) in case.prompts() {
            let at = format!("{} {prompt}", case.name);
            let wanted: Vec<usize> = ids(&expected["greedy"]["ids"])
                .into_iter()
                .map(usize::from)
                .collect();
            let (chosen, rows, _) = generate(&case, &compute, &ids(&expected["ids"]), wanted.len());
            let sure = expected["greedy"]["first_unsafe_step"]
                .as_u64()
                .map_or(wanted.len(), |n| n as usize);
            if chosen[..sure] != wanted[..sure] {
                faults.push(format!("{at}: chose {chosen:?}, expected {wanted:?}"));
                continue;
            }
            let mut check = |what: &str, found: &[f32]| {
                let Some(expected) = case.tensor(prompt, what) else {
                    return;
                };
                let n = found.len().min(expected.len());
                let difference = difference(&found[..n], &expected[..n]);
                if difference > LOGIT_TOLERANCE {
                    faults.push(format!("{at}: {what} differs by {difference}"));
                }
            };
            check("gen_logits", &rows.concat());
            // Before masking, so of the forced step too.
            let best: Vec<f32> = rows[..sure].iter().map(|row| row[best(row)]).collect();
            check("gen_best", &best);
        }
    }
    report(&faults);
}

/// All that the future depends on.
fn bits(state: &State) -> Vec<u32> {
    let logits = state.last_logits().iter().chain(&state.logits);
    logits.map(|l| l.to_bits()).collect()
}

#[test]
fn pieces_threads_batches_and_going_back_give_the_same_bits() {
    let plain = Compute::new(Some(1), None).unwrap();
    let compute = compute();
    for case in cases() {
        let prompts: Vec<Vec<Id>> = case.prompts().map(|(_, p)| ids(&p["ids"])).collect();
        let mut straight = Vec::new();
        for ids in &prompts {
            let mut state = State::new(&case.model, KvType::F32, None);
            run(&case, &plain, &mut state, ids, false, LogitRows::Last);
            straight.push(state);
        }
        for (ids, straight) in prompts.iter().zip(&straight) {
            for piece in [1, 2, 7, 50] {
                let mut state = State::new(&case.model, KvType::F32, None);
                for (i, part) in ids.chunks(piece).enumerate() {
                    let last = (i + 1) * piece >= ids.len();
                    // Guesses in between are undone.
                    let wanted = if last || i % 2 == 0 {
                        LogitRows::Last
                    } else {
                        LogitRows::None
                    };
                    run(&case, &compute, &mut state, part, false, wanted);
                }
                assert_eq!(
                    state.flags, straight.flags,
                    "{}, pieces of {piece}",
                    case.name
                );
                assert_eq!(
                    bits(&state),
                    bits(straight),
                    "{}, pieces of {piece}",
                    case.name
                );
                // Back into the text, and on.
                for back in [1, 2, ids.len() / 2, ids.len().saturating_sub(5)] {
                    let back = back.clamp(1, ids.len());
                    let mut fork = state.clone();
                    fork.rewind(&case.model, &compute, back);
                    let mut fresh = State::new(&case.model, KvType::F32, None);
                    let expected = run(
                        &case,
                        &compute,
                        &mut fresh,
                        &ids[..back],
                        false,
                        LogitRows::Last,
                    );
                    let found = run(&case, &compute, &mut fork, &[], false, LogitRows::Last);
                    let what = format!("{}, back to {back} of {}", case.name, ids.len());
                    assert_eq!(fork.flags, fresh.flags, "{what}");
                    assert_eq!(difference(&found, &expected), 0.0, "{what}");
                    run(
                        &case,
                        &compute,
                        &mut fork,
                        &ids[back..],
                        false,
                        LogitRows::Last,
                    );
                    assert_eq!(bits(&fork), bits(straight), "{what} and on");
                }
            }
        }
        // All of them together, in pieces of different lengths.
        let mut states: Vec<State> = prompts
            .iter()
            .map(|_| State::new(&case.model, KvType::F32, None))
            .collect();
        let mut done = vec![0; prompts.len()];
        while done
            .iter()
            .zip(&prompts)
            .any(|(done, ids)| *done < ids.len())
        {
            let mut inputs = Vec::new();
            for (i, (state, ids)) in states.iter_mut().zip(&prompts).enumerate() {
                let end = ids.len().min(done[i] + 3 + 5 * i);
                if done[i] < end {
                    inputs.push(SequenceInput {
                        logits: LogitRows::Last,
                        ..SequenceInput::new(state, &ids[done[i]..end])
                    });
                    done[i] = end;
                }
            }
            case.model.forward(&compute, &mut inputs).unwrap();
        }
        for (state, straight) in states.iter().zip(&straight) {
            assert_eq!(bits(state), bits(straight), "{}, together", case.name);
        }
    }
}

#[test]
fn written_bytes_keep_their_flags() {
    let compute = compute();
    for case in cases() {
        for (prompt, expected) in case.prompts().filter(|(_, p)| ids(&p["ids"]).len() > 2) {
            let what = format!("{} {prompt}", case.name);
            let prompt = ids(&expected["ids"]);
            let (chosen, _, written) = generate(&case, &compute, &prompt, 30);
            let forced = prompt.len() - 1;
            assert!(matches!(written.flags[forced], Flag::Forced(_)), "{what}");
            for (flag, id) in written.flags[forced + 1..].iter().zip(&chosen[1..]) {
                assert_eq!(*flag, Flag::Chosen(*id >= VOCAB_SIZE), "{what}");
            }
            // Within what was written, the flag of the last byte stays; at the end of the prompt it is open again.
            for len in [prompt.len() + 10, prompt.len() + 1, prompt.len()] {
                let mut back = written.clone();
                back.rewind(&case.model, &compute, len);
                let mut fresh = State::new(&case.model, KvType::F32, None);
                run(&case, &compute, &mut fresh, &prompt, false, LogitRows::Last);
                for id in &chosen[1..][..len - prompt.len()] {
                    run(
                        &case,
                        &compute,
                        &mut fresh,
                        &[*id as Id],
                        true,
                        LogitRows::Last,
                    );
                }
                let found = run(&case, &compute, &mut back, &[], false, LogitRows::Last);
                assert_eq!(back.flags, fresh.flags, "{what}, back to {len}");
                assert_eq!(
                    difference(&found, fresh.last_logits()),
                    0.0,
                    "{what}, back to {len}"
                );
            }
            // What is read after it leaves it alone.
            let mut more = written.clone();
            run(
                &case,
                &compute,
                &mut more,
                &prompt[1..],
                false,
                LogitRows::None,
            );
            assert_eq!(more.flags[..written.flags.len()], written.flags, "{what}");
            // A loaded session continues as the saved one would have.
            let mut file = crate::wire::Writer::new(Vec::new());
            more.save(&compute, &mut file).unwrap();
        }
    }
}
