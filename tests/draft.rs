//! Self-speculation shows in nothing but the time: every byte, logit, entropy, patch start, saved state
//! and error is what it is without drafts, whatever is done between two bytes.

mod common;

use std::path::Path;

use blt::checkpoint::{Checkpoint, ModelTensor, OpenOptions, expected_tensors};
use blt::generate::MAX_DRAFT;
use blt::sampler::SamplerConfig;
use blt::tensor::{DType, Tensor};
use blt::vocab::{Id, byte_to_id};
use blt::{
    DraftCounts, Error, GenerateOptions, KvType, Model, Overflow, Session, SessionOptions, batch,
};
use blt_kernels::BlockFormat;
use common::{Random, bits};

/// All that shows of a session.
#[derive(Debug, PartialEq)]
struct State {
    ids: Vec<Id>,
    logits: Vec<u32>,
    entropies: Vec<u32>,
    starts: Vec<usize>,
    n_slides: usize,
}

fn state(session: &Session) -> State {
    State {
        ids: session.ids().to_vec(),
        logits: bits(session.logits()),
        entropies: bits(session.entropies()),
        starts: session.patch_starts().to_vec(),
        n_slides: session.n_slides(),
    }
}

/// The model that comes with the project, whose drafts hold as those of a trained model do.
fn trained() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default.safetensors");
    Checkpoint::open(&path, &OpenOptions::default()).unwrap()
}

/// Models of every kind: reference cases, of which few drafts hold, block formats, differential attention,
/// and one that is trained.
fn models() -> Vec<(String, Model)> {
    let cases = common::cases();
    let mut all: Vec<(String, Model)> = (cases.iter())
        .map(|case| (case.name.clone(), case.models().remove(0).1))
        .collect();
    let (_, checkpoint) = cases[0].checkpoints().remove(0);
    for format in [BlockFormat::Q8_0, BlockFormat::Q4K] {
        let quantized = common::quantized(&checkpoint, format);
        all.push((format.name().to_owned(), common::model(&quantized)));
    }
    let packed = common::converted(&checkpoint, DType::Bf12, DType::Bf12);
    all.push(("bf12".into(), common::model(&packed)));
    let differential = common::differential([true, false, true, false]);
    all.push(("differential".into(), common::model(&differential)));
    all.push(("trained".into(), common::model(&trained())));
    all
}

/// Settings that let sessions differ in all that they may.
fn settings(i: usize) -> SessionOptions {
    SessionOptions {
        no_bos: i % 5 == 4,
        kv: Some(KvType::ALL[i % 2]),
        patch_lengths: (i % 3 == 2).then(|| [1, 2, 5, 3].repeat(100)),
        entropy_reset: (i % 4 == 1).then_some(37),
        max_bytes: (i % 4 == 2).then_some(90),
        max_patches: (i % 4 == 3).then_some(30),
        overflow: match i % 8 {
            2 | 3 => Overflow::Slide { keep: 40 },
            _ => Overflow::Error,
        },
        ..SessionOptions::default()
    }
}

fn sampler(i: usize) -> SamplerConfig {
    SamplerConfig {
        seed: i as u64,
        temperature: [0.0, 0.8, 0.8, 1.5][i % 4],
        repeat_penalty: if i % 3 == 1 { 1.3 } else { 1.0 },
        ignore_eos: i.is_multiple_of(2),
        ban_special: i % 5 != 3,
        ..SamplerConfig::default()
    }
}

#[test]
fn drafting_changes_nothing_that_shows() {
    let mut counts = DraftCounts::default();
    for (name, model) in models() {
        for i in 0..8 {
            let draft = [2, 3, 8, 16, MAX_DRAFT][i % 5];
            let what = format!("{name}, settings {i}, drafts of {draft}");
            let options = |draft| GenerateOptions {
                max_bytes: Some(120),
                sampler: sampler(i),
                stop: vec![b"never to be found".to_vec()],
                draft: Some(draft),
                ..GenerateOptions::default()
            };
            let mut plain = common::session(&model, settings(i));
            plain.feed(b"Once upon a time, there was a").unwrap();
            let mut drafting = plain.clone();
            let mut expected = plain.generate(&options(0)).unwrap();
            let mut found = drafting.generate(&options(draft)).unwrap();
            loop {
                let (e, f) = (expected.next(), found.next());
                let text = |byte: &Option<Result<u8, Error>>| {
                    (byte.as_ref()).map(|b| b.as_ref().copied().map_err(Error::to_string))
                };
                assert_eq!(text(&f), text(&e), "{what}");
                assert_eq!(state(found.session()), state(expected.session()), "{what}");
                assert_eq!(found.finish_reason(), expected.finish_reason(), "{what}");
                if e.is_none() {
                    break;
                }
            }
            let ends = [expected.finish(), found.finish()];
            let [e, f] = ends.map(|end| end.map_err(|e| e.to_string()));
            assert_eq!(f, e, "{what}");
            assert_eq!(state(&drafting), state(&plain), "{what}");
            counts += drafting.draft_counts();
            assert_eq!(plain.draft_counts(), DraftCounts::default());
        }
    }
    // Drafts were made, held, failed, and closed patches.
    assert!(counts.n_drafts > 300, "{counts:?}");
    assert!(counts.n_drafted - counts.n_accepted > 300, "{counts:?}");
    assert!(counts.n_accepted > counts.n_drafts + 3000, "{counts:?}");
    assert!(
        counts.n_closing > 300 && counts.n_patches > 300,
        "{counts:?}"
    );
}

#[test]
fn whatever_is_done_between_two_bytes() {
    for (name, model) in models() {
        for seed in 0..4 {
            let random = &mut Random(seed as u64);
            let mut drafting = common::session(&model, settings(seed));
            drafting.feed(b"The little boat").unwrap();
            let mut plain = drafting.clone();
            let mut parted: Vec<[Session; 2]> = Vec::new();
            for step in 0..40 {
                let options = |draft| GenerateOptions {
                    max_bytes: Some(30),
                    sampler: sampler(step),
                    draft: Some(draft),
                    ..GenerateOptions::default()
                };
                let (n, what) = (random.below(20), random.below(9));
                let len = random.below(drafting.len() + 1).max(1);
                let mut both = [(&mut plain, 0), (&mut drafting, 1 + random.below(16))];
                let texts = both.each_mut().map(|(session, draft)| {
                    // A few bytes of a generation, which is left while more of them are known.
                    let mut generator = session.generate(&options(*draft)).unwrap();
                    let bytes: Vec<u8> = (&mut generator).map_while(Result::ok).take(n).collect();
                    if what < 4 {
                        drop(generator);
                    } else {
                        // Once the context is full there is nothing to finish.
                        let _ = generator.finish();
                    }
                    let result = match what {
                        0 | 4 => session.feed(b"x"),
                        1 => session.rewind(session.len() - 1),
                        2 => session.rewind(len),
                        5 => session.feed(b" and all that followed from it"),
                        6 => {
                            // In a batch, where nothing is drafted.
                            let mut other = session.clone();
                            let mut feeds = [(&mut **session, &b"ab"[..]), (&mut other, b"c")];
                            batch::feed(&mut feeds).remove(0)
                        }
                        7 => {
                            let mut saved = Vec::new();
                            session.save_to(&mut saved).unwrap();
                            **session = Session::load_from(&model, &saved).unwrap();
                            Ok(())
                        }
                        _ => Ok(()),
                    };
                    (bytes, result.map_err(|e| e.to_string()))
                });
                let what = format!("{name}, seed {seed}, step {step}, then {what}");
                assert_eq!(texts[1], texts[0], "{what}");
                assert_eq!(state(&drafting), state(&plain), "{what}");
                let saved = [&plain, &drafting].map(|session| {
                    let mut saved = Vec::new();
                    session.save_to(&mut saved).unwrap();
                    let mut again = Session::load_from(&model, &saved).unwrap();
                    let _ = again.feed(b"so");
                    state(&again)
                });
                assert_eq!(saved[1], saved[0], "{what}: saved");
                if random.below(4) == 0 {
                    parted.push([plain.clone(), drafting.clone()]);
                }
            }
            // What a fork shares with a session that continued is as it was.
            for mut pair in parted {
                for session in &mut pair {
                    let _ = session.feed(b"z");
                }
                assert_eq!(
                    state(&pair[1]),
                    state(&pair[0]),
                    "{name}, seed {seed}: a fork"
                );
            }
        }
    }
}

#[test]
fn one_generator_of_a_batch_drafts_once_it_is_alone() {
    let model = common::model(&trained());
    let options = |max_bytes| GenerateOptions::new().max_bytes(max_bytes).seed(3);
    let mut first = common::session(&model, SessionOptions::default());
    first.feed(b"Once upon a time").unwrap();
    let mut sessions = [first.clone(), first.clone()];
    let mut expected = Vec::new();
    let mut plain = first.generate(&options(60).draft(0)).unwrap();
    expected.extend((&mut plain).map(Result::unwrap));
    plain.finish().unwrap();

    let lengths = [60, 20];
    let mut generators: Vec<_> = (sessions.iter_mut().zip(lengths))
        .map(|(session, n)| session.generate(&options(n)).unwrap())
        .collect();
    let mut found = vec![Vec::new(); 2];
    for step in 0..60 {
        let mut all: Vec<_> = generators.iter_mut().collect();
        if step >= 20 {
            all.truncate(1);
        }
        for (text, byte) in found.iter_mut().zip(batch::next_bytes(&mut all)) {
            text.extend(byte.transpose().unwrap());
        }
    }
    assert_eq!(found[0], expected);
    assert_eq!(found[1], expected[..20]);
    for result in batch::finish(generators) {
        result.unwrap();
    }
    assert_eq!(state(&sessions[0]), state(&first));
    assert!(sessions[0].draft_counts().n_drafts > 0);
    assert_eq!(sessions[1].draft_counts().n_drafts, 0);
}

/// Sessions with different texts, settings and samplers draft together, each the number of bytes that it is given.
/// What each writes is what it writes alone without drafts.
#[test]
fn batches_draft_if_told_to() {
    for (name, model) in models() {
        let options = |i: usize, draft| GenerateOptions {
            max_bytes: Some(50 + 7 * i),
            sampler: sampler(i),
            draft: Some(draft),
            ..GenerateOptions::default()
        };
        let mut sessions: Vec<Session> = (0..5)
            .map(|i| common::session(&model, settings(i)))
            .collect();
        for (i, session) in sessions.iter_mut().enumerate() {
            session.feed(&b"Once upon a time, there"[i..]).unwrap();
        }
        let mut alone = sessions.clone();
        let expected: Vec<Vec<u8>> = (alone.iter_mut().enumerate())
            .map(|(i, session)| {
                let mut generator = session.generate(&options(i, 0)).unwrap();
                let text = (&mut generator).map_while(Result::ok).collect();
                let _ = generator.finish();
                text
            })
            .collect();
        let mut generators: Vec<_> = (sessions.iter_mut().enumerate())
            .map(|(i, session)| session.generate(&options(i, 3 + 4 * (i % 3))).unwrap())
            .collect();
        let mut found = vec![Vec::new(); generators.len()];
        loop {
            let mut all: Vec<_> = generators.iter_mut().collect();
            let bytes = batch::next_bytes(&mut all);
            if bytes.iter().all(Option::is_none) {
                break;
            }
            for (text, byte) in found.iter_mut().zip(bytes) {
                text.extend(byte.and_then(Result::ok));
            }
        }
        batch::finish(generators);
        assert_eq!(found, expected, "{name}");
        for (session, alone) in sessions.iter().zip(&alone) {
            assert_eq!(state(session), state(alone), "{name}");
            assert!(session.draft_counts().n_drafts > 0, "{name}");
        }
    }
}

/// Feeding drafted bytes by hand advances the draft and its sampler: an earlier sampler must not get the choices that the
/// draft has stored.
#[test]
fn drafted_bytes_fed_by_hand_do_not_choose_for_an_earlier_sampler() {
    let model = common::model(&trained());
    let mut n_accepted = 0;
    for seed in 0..12 {
        let options = |draft| GenerateOptions::new().seed(seed).max_bytes(20).draft(draft);
        let mut start = common::session(&model, SessionOptions::default());
        start.feed(b"Once upon a time").unwrap();
        // The text, and the sampler after each of its bytes.
        let mut plain = start.clone();
        let mut generator = plain.generate(&options(0)).unwrap();
        let mut text = Vec::new();
        let mut samplers = Vec::new();
        while let Some(byte) = generator.next() {
            text.push(byte.unwrap());
            samplers.push(generator.sampler().clone());
        }
        for n_fed in [1, 2, 4] {
            let sessions = [0, 16].map(|draft| {
                let mut session = start.clone();
                let generator = session.generate(&options(draft)).unwrap();
                assert_eq!(generator.take(3).map(Result::unwrap).count(), 3);
                session.feed(&text[2..2 + n_fed]).unwrap();
                (session, draft)
            });
            n_accepted += sessions[1].0.draft_counts().n_accepted;
            for sampler in &samplers[..2 + n_fed] {
                let [plain, drafting] = sessions.clone().map(|(mut session, draft)| {
                    let mut generator = session.generate(&options(draft)).unwrap();
                    generator.set_sampler(sampler.clone());
                    let text: Vec<u8> = (&mut generator).map(Result::unwrap).collect();
                    generator.finish().unwrap();
                    (text, state(&session))
                });
                assert_eq!(drafting, plain, "seed {seed}, {n_fed} bytes by hand");
            }
        }
    }
    assert!(n_accepted > 200, "{n_accepted}");
}

/// The trained model with weights changed.
fn changed(change: impl Fn(&str, &mut [f32])) -> Model {
    let checkpoint = trained();
    let tensors = expected_tensors(checkpoint.config()).into_iter();
    let tensors = tensors.map(|ModelTensor { name, shape, .. }| {
        let mut values = checkpoint.tensor(&name, &shape).unwrap().to_f32_vec();
        change(&name, &mut values);
        (name, Tensor::from_f32(shape, values).unwrap())
    });
    common::model(&common::native(checkpoint.config(), tensors.collect()))
}

#[test]
fn damage_is_found_at_the_byte_that_has_it() {
    let generate = |model: &Model, draft| {
        let mut session = common::session(model, SessionOptions::default());
        session.feed(b"Once upon a time").unwrap();
        let options = GenerateOptions::new().max_bytes(200).seed(1).draft(draft);
        let mut bytes = Vec::new();
        let mut error = None;
        for byte in session.generate(&options).unwrap() {
            match byte {
                Ok(byte) => bytes.push(byte),
                Err(e) => error = Some(e.to_string()),
            }
        }
        (bytes, error, state(&session), session.draft_counts())
    };
    // A byte that comes late.
    let (text, ..) = generate(&common::model(&trained()), 0);
    let late = (60..text.len()).find(|&i| !text[..i].contains(&text[i]));
    let at = late.expect("another byte");
    let poisoned = byte_to_id(text[at]);
    for part in ["entropy", "encoder"] {
        let table = format!("{part}.tok_embeddings");
        let model = changed(|name, values| {
            if name == table {
                let dim = values.len() / blt::vocab::VOCAB_SIZE;
                values[usize::from(poisoned) * dim] = f32::NAN;
            }
        });
        let [plain, drafting] = [0, 16].map(|draft| generate(&model, draft));
        let error = plain.1.as_ref().expect("a text with that byte");
        assert!(error.contains("position"), "{error}");
        assert_eq!(plain.0, text[..=at], "{part}");
        assert!(drafting.3.n_accepted > 40, "{part}");
        assert_eq!(drafting.0, plain.0, "{part}");
        assert_eq!(drafting.1, plain.1, "{part}");
        assert_eq!(drafting.2, plain.2, "{part}");
    }
}

#[test]
fn drafts_are_not_longer_than_is_good() {
    let model = common::model(&trained());
    let mut session = common::session(&model, SessionOptions::default());
    let options = GenerateOptions::new().draft(MAX_DRAFT + 1);
    let error = session.generate(&options).unwrap_err().to_string();
    assert!(
        error.contains("draft") && error.contains("64") && error.contains("65"),
        "{error}"
    );
}
