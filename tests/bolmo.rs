//! Models of the Bolmo family through the public interface: the recorded texts and scores, and the promises of a session.
//!
//! Cases are folders with an `expected.json` and a model of the family, in `tests/data` and in the folders that
//! `BLT_FIXTURES` and `BLT_FIXTURES_BOLMO` name. States and logits are compared in `src/model/bolmo/tests.rs`.

mod common;

use std::path::{Path, PathBuf};

use blt::checkpoint::{Checkpoint, OpenOptions, write_native};
use blt::ops::Compute;
use blt::sampler::SamplerConfig;
use blt::session::FlagScorer;
use blt::vocab::Id;
use blt::{Error, FinishReason, GenerateOptions, Model, Session, SessionOptions, batch};
use serde_json::Value;

/// Difference of a score in nats per byte: that of the recordings.
const SCORE_TOLERANCE: f64 = 5e-5;

struct Case {
    name: String,
    folder: PathBuf,
    expected: Value,
}

fn cases() -> Vec<Case> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let named = ["BLT_FIXTURES", "BLT_FIXTURES_BOLMO"]
        .map(|name| std::env::var_os(name).map(PathBuf::from));
    let mut cases: Vec<Case> = (named.into_iter().flatten().chain([data]))
        .flat_map(|folder| {
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        })
        .map(|entry| entry.unwrap().path())
        .filter(|folder| folder.join("expected.json").exists() && common::is_bolmo(folder))
        .map(|folder| Case {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            expected: serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap())
                .unwrap(),
            folder,
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases.dedup_by(|a, b| a.name == b.name);
    assert!(!cases.is_empty(), "no cases");
    cases
}

impl Case {
    fn checkpoint(&self) -> Checkpoint {
        let tokenizer = self.folder.join("tokenizer");
        let options = OpenOptions {
            tokenizer: tokenizer.exists().then_some(tokenizer),
            ..OpenOptions::default()
        };
        Checkpoint::open(&self.folder.join("model"), &options)
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    fn model(&self) -> Model {
        let compute = Compute::new(Some(2), None).unwrap().split_everything();
        Model::load(&self.checkpoint(), compute).unwrap()
    }

    fn prompts(&self) -> impl Iterator<Item = Prompt<'_>> {
        self.expected["prompts"]
            .as_array()
            .expect("prompts")
            .iter()
            .map(|value| Prompt {
                name: format!("{} {}", self.name, value["name"]),
                value,
            })
    }
}

struct Prompt<'a> {
    name: String,
    value: &'a Value,
}

impl Prompt<'_> {
    fn bytes(&self) -> Vec<u8> {
        hex(&self.value["bytes_hex"])
    }

    /// Bytes of the greedy text up to the first choice that rounding could turn.
    fn greedy(&self) -> (Vec<u8>, bool) {
        let greedy = &self.value["greedy"];
        let ids: Vec<u64> = greedy["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect();
        let first = usize::from(greedy["first_is_forced"] == true);
        let sure = greedy["first_unsafe_step"]
            .as_u64()
            .map_or(ids.len(), |n| n as usize);
        let bytes = ids[first.min(sure)..sure]
            .iter()
            .filter_map(|id| u8::try_from((id % 260).checked_sub(4)?).ok());
        (
            bytes.collect(),
            sure == ids.len() && greedy["stopped_at_eos"] == true,
        )
    }
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hexadecimal digits");
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn session(model: &Model) -> Session {
    Session::new(model, SessionOptions::new()).unwrap()
}

/// Every special id but the stop ids is out of the question anyway.
fn greedy(max_bytes: usize) -> GenerateOptions {
    GenerateOptions {
        max_bytes: Some(max_bytes),
        sampler: SamplerConfig {
            ban_special: false,
            ..SamplerConfig::greedy()
        },
        ..GenerateOptions::default()
    }
}

fn sampling(max_bytes: usize) -> GenerateOptions {
    GenerateOptions {
        max_bytes: Some(max_bytes),
        sampler: SamplerConfig {
            seed: 7,
            ..SamplerConfig::default()
        },
        ..GenerateOptions::default()
    }
}

fn write(session: &mut Session, options: &GenerateOptions) -> Vec<u8> {
    let mut generator = session.generate(options).unwrap();
    let bytes = generator.by_ref().map(|byte| byte.unwrap()).collect();
    generator.finish().unwrap();
    bytes
}

fn bits(session: &Session) -> Vec<u32> {
    session.logits().iter().map(|l| l.to_bits()).collect()
}

#[track_caller]
fn assert_same(what: &str, a: &Session, b: &Session) {
    assert_eq!(a.ids(), b.ids(), "{what}");
    assert_eq!(a.patch_starts(), b.patch_starts(), "{what}");
    assert_eq!(bits(a), bits(b), "{what}");
}

#[test]
fn greedy_bytes_are_those_of_the_reference() {
    for case in cases() {
        let model = case.model();
        for prompt in case.prompts() {
            let mut session = session(&model);
            session.feed(&prompt.bytes()).unwrap();
            let (expected, stops) = prompt.greedy();
            let mut generator = session
                .generate(&greedy(expected.len() + usize::from(stops)))
                .unwrap();
            let found: Vec<u8> = generator.by_ref().map(|byte| byte.unwrap()).collect();
            assert_eq!(found, expected, "{}", prompt.name);
            let reason = if stops {
                FinishReason::Eos
            } else {
                FinishReason::MaxBytes
            };
            assert_eq!(generator.finish_reason(), Some(reason), "{}", prompt.name);
        }
    }
}

#[test]
fn the_three_scores_are_those_of_the_reference() {
    for case in cases() {
        let model = case.model();
        for prompt in case.prompts() {
            let (what, bytes) = (&prompt.name, prompt.bytes());
            let mut scorer = FlagScorer::new(session(&model)).unwrap();
            for piece in bytes.chunks(11) {
                scorer.push(piece).unwrap();
            }
            let score = scorer.finish();
            assert_eq!(
                score.n_bytes,
                prompt.value["bytes_scored"].as_u64().unwrap() as usize,
                "{what}"
            );
            let nats = &prompt.value["nll_nats"];
            let check = |key: &str, bits: f64| {
                let expected = nats[key].as_f64().unwrap_or(0.0);
                let difference = (bits * std::f64::consts::LN_2 - expected).abs();
                assert!(
                    difference <= SCORE_TOLERANCE * bytes.len() as f64,
                    "{what}: {key} differs by {difference}"
                );
            };
            check("joint", score.joint_bits);
            check("folded", score.folded_bits);
            // A flag that rounding could turn changes all that follow.
            let gap = prompt.value["causal_min_flag_gap"].as_f64();
            if gap.is_none_or(|gap| gap > 2e-3) {
                check("causal", score.causal_bits);
            }
            let mut whole = FlagScorer::new(session(&model)).unwrap();
            whole.push(&bytes).unwrap();
            assert_eq!(whole.finish(), score, "{what}: in one piece");
        }
    }
}

#[test]
fn pieces_batches_and_forks_give_the_same_bits() {
    for case in cases() {
        let model = case.model();
        let texts: Vec<Vec<u8>> = case.prompts().map(|p| p.bytes()).collect();
        let mut straight: Vec<Session> = Vec::new();
        for text in &texts {
            let mut whole = session(&model);
            whole.feed(text).unwrap();
            let mut pieces = session(&model);
            for piece in text.chunks(3) {
                pieces.feed(piece).unwrap();
            }
            whole.begin().unwrap();
            pieces.begin().unwrap();
            assert_same(&case.name, &pieces, &whole);
            // A fork that writes leaves the other alone, and both write the same.
            let mut fork = whole.clone();
            let written = write(&mut fork, &sampling(40));
            assert_same(&case.name, &pieces, &whole);
            assert_eq!(write(&mut pieces, &sampling(40)), written, "{}", case.name);
            assert_same(&case.name, &pieces, &fork);
            // Written in two goes it is the same text, greedily: nothing is forced between them.
            let (mut at_once, mut in_two) = (whole.clone(), whole.clone());
            let all = write(&mut at_once, &greedy(30));
            let mut halves = write(&mut in_two, &greedy(13));
            if halves.len() == 13 {
                halves.extend(write(&mut in_two, &greedy(17)));
                assert_eq!(halves, all, "{}", case.name);
                assert_same(&case.name, &in_two, &at_once);
            }
            straight.push(fork);
        }
        let mut together: Vec<Session> = texts.iter().map(|_| session(&model)).collect();
        let mut feeds: Vec<(&mut Session, &[u8])> = together
            .iter_mut()
            .zip(texts.iter().map(Vec::as_slice))
            .collect();
        for result in batch::feed(&mut feeds) {
            result.unwrap();
        }
        let generators = together
            .iter_mut()
            .map(|session| session.generate(&sampling(40)).unwrap());
        let mut generators: Vec<_> = generators.collect();
        loop {
            let mut all: Vec<_> = generators.iter_mut().collect();
            if batch::next_bytes(&mut all).iter().all(Option::is_none) {
                break;
            }
        }
        for result in batch::finish(generators) {
            result.unwrap();
        }
        for (session, straight) in together.iter().zip(&straight) {
            assert_same(&case.name, session, straight);
        }
    }
}

#[test]
fn going_back_is_never_having_gone() {
    for case in cases() {
        let model = case.model();
        for prompt in case.prompts().filter(|p| p.bytes().len() > 20) {
            let (what, text) = (&prompt.name, prompt.bytes());
            let mut read = session(&model);
            read.feed(&text).unwrap();
            let mut written = read.clone();
            write(&mut written, &greedy(40));
            // To the end of the prompt, whose last byte is open again.
            let mut back = written.clone();
            back.rewind(read.len()).unwrap();
            assert_same(what, &back, &read);
            write(&mut back, &greedy(40));
            assert_same(what, &back, &written);
            // Into the prompt, and on.
            for len in [1, 2, text.len() / 2, text.len()] {
                let mut back = written.clone();
                back.rewind(len).unwrap();
                let mut fresh = session(&model);
                fresh.begin().unwrap();
                fresh.feed(&text[..len - 1]).unwrap();
                assert_same(what, &back, &fresh);
                back.feed(&text[len - 1..]).unwrap();
                assert_same(what, &back, &read);
            }
            let mut reset = written.clone();
            reset.rewind(0).unwrap();
            assert!(reset.is_empty());
            reset.feed(&text).unwrap();
            assert_same(what, &reset, &read);
        }
    }
}

#[test]
fn reading_again_gives_the_state_of_the_whole_text() {
    for case in cases() {
        let model = case.model();
        for prompt in case.prompts() {
            let mut written = session(&model);
            written.feed(&prompt.bytes()).unwrap();
            write(&mut written, &greedy(30));
            let ids: Vec<Id> = written.ids().to_vec();
            written.reread().unwrap();
            let mut whole = session(&model);
            whole.feed_ids(&ids).unwrap();
            assert_same(&prompt.name, &written, &whole);
        }
    }
}

#[test]
fn saved_sessions_and_native_files_go_on_with_the_same_bits() {
    let folder = std::env::temp_dir().join(format!("blt-bolmo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for case in cases() {
        let (model, checkpoint) = (case.model(), case.checkpoint());
        let path = folder.join(format!("{}.safetensors", case.name));
        let tensors = checkpoint
            .tensors()
            .map(|(name, tensor)| (name.to_string(), tensor.clone()));
        write_native(&path, checkpoint.config(), tensors).unwrap();
        let native = Model::open(&path).unwrap();
        assert_eq!(native.config(), model.config(), "{}", case.name);
        for prompt in case.prompts() {
            let mut at = session(&model);
            at.feed(&prompt.bytes()).unwrap();
            for n_written in [0, 9] {
                write(&mut at, &greedy(n_written));
                let mut file = Vec::new();
                at.save_to(&mut file).unwrap();
                let mut back = Session::load_from(&model, &file).unwrap();
                assert_same(&prompt.name, &back, &at);
                let mut on = at.clone();
                assert_eq!(
                    write(&mut back, &sampling(20)),
                    write(&mut on, &sampling(20)),
                    "{}",
                    prompt.name
                );
                assert_same(&prompt.name, &back, &on);
            }
            let mut other = session(&native);
            other.feed(&prompt.bytes()).unwrap();
            write(&mut other, &greedy(9));
            assert_same(&prompt.name, &other, &at);
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let case = &cases()[0];
    let model = case.model();
    let mut at = session(&model);
    at.feed(b"some text").unwrap();
    let before = at.clone();
    for bad in [3, 260, 261, 300, 520, 65535] {
        let message = at.feed_ids(&[40, bad]).unwrap_err().to_string();
        assert!(
            message.starts_with("ids: ") && message.contains(&bad.to_string()),
            "{message}"
        );
    }
    let message = at.feed_written(&[520]).unwrap_err().to_string();
    assert!(message.starts_with("ids: "), "{message}");
    assert_same("after refusals", &at, &before);
    let options = SessionOptions::new().no_bos(true);
    let message = Session::new(&model, options).unwrap_err().to_string();
    assert!(message.starts_with("no_bos: "), "{message}");
    let options = SessionOptions::new().max_patches(3);
    let mut short = Session::new(&model, options).unwrap();
    let text: Vec<u8> = case.prompts().flat_map(|prompt| prompt.bytes()).collect();
    match short.feed(&text) {
        Err(Error::ContextFull { .. }) => {}
        other => panic!(
            "expected a full context, found {other:?} with {} patches",
            short.patch_starts().len()
        ),
    }
    assert!(short.is_empty(), "as before");

    // Without its tokenizer the model does not open, and the message says what to fetch.
    let with_subwords = cases()
        .into_iter()
        .find(|case| case.folder.join("tokenizer").exists())
        .unwrap();
    let message = Model::open(with_subwords.folder.join("model"))
        .unwrap_err()
        .to_string();
    for part in [
        "tokenizer.json",
        "tokenizer_config.json",
        "example-org/tiny-subword-tokenizer",
        "--tokenizer",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn damaged_and_foreign_tokenizers_are_refused() {
    let case = cases()
        .into_iter()
        .find(|case| case.folder.join("tokenizer").exists())
        .unwrap();
    let folder = std::env::temp_dir().join(format!("blt-bolmo-damaged-{}", std::process::id()));
    let tokenizer = folder.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).unwrap();
    for file in std::fs::read_dir(case.folder.join("model")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let [vocabulary, settings] =
        ["tokenizer.json", "tokenizer_config.json"].map(|name| tokenizer.join(name));
    let [sound, sound_settings] = ["tokenizer.json", "tokenizer_config.json"]
        .map(|name| std::fs::read(case.folder.join("tokenizer").join(name)).unwrap());
    let open = || Checkpoint::open(&folder, &OpenOptions::default()).map(|_| ());
    std::fs::write(&settings, &sound_settings).unwrap();
    std::fs::write(&vocabulary, &sound).unwrap();
    open().expect("found beside the weights");
    for n in (0..sound.len()).step_by(97) {
        std::fs::write(&vocabulary, &sound[..n]).unwrap();
        let message = open().expect_err("cut short").to_string();
        assert!(message.contains("tokenizer.json"), "{n}: {message}");
    }
    std::fs::write(&vocabulary, &sound).unwrap();
    for n in 0..sound_settings.len() {
        std::fs::write(&settings, &sound_settings[..n]).unwrap();
        assert!(open().is_err(), "settings of {n} bytes");
    }
    // The byte model's own file has the same name and no vocabulary.
    std::fs::copy(case.folder.join("model/tokenizer_config.json"), &settings).unwrap();
    let message = open().unwrap_err().to_string();
    assert!(
        message.contains("example-org/tiny-subword-tokenizer"),
        "{message}"
    );
    std::fs::write(&settings, &sound_settings).unwrap();
    // A tensor that no part of the model reads, a missing one, and one of another shape.
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    for (key, value) in [
        ("num_local_decoder_layers", "1"),
        ("num_local_decoder_layers", "9"),
        ("local_intermediate_size", "75"),
    ] {
        let changed: String = (config.lines())
            .map(
                |line| match line.trim_start().starts_with(&format!("\"{key}\"")) {
                    true => format!("\"{key}\": {value},\n"),
                    false => format!("{line}\n"),
                },
            )
            .collect();
        std::fs::write(folder.join("config.json"), changed).unwrap();
        let message = open().unwrap_err().to_string();
        assert!(message.contains("model.local_"), "{key} {value}: {message}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
