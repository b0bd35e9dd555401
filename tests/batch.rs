//! Sessions that read together: each has the same bits as alone, whatever the others are and do.

mod common;

use blt::sampler::SamplerConfig;
use blt::vocab::Id;
use blt::{Error, GenerateOptions, KvType, Model, Overflow, Session, SessionOptions, batch};
use blt_kernels::BlockFormat;
use common::{Case, Random, bits};

/// Every case once, one also in a block format, and differential attention; each with its texts.
fn models_and_texts() -> Vec<(String, Model, Vec<Vec<Id>>)> {
    let texts = |case: &Case| case.prompts().iter().map(|p| p.ids()).collect::<Vec<_>>();
    let cases = common::cases();
    let mut all: Vec<_> = (cases.iter())
        .map(|case| (case.name.clone(), case.models().remove(0).1, texts(case)))
        .collect();
    let (_, checkpoint) = cases[0].checkpoints().remove(0);
    let quantized = common::quantized(&checkpoint, BlockFormat::Q4K);
    let name = format!("{} in q4_k", cases[0].name);
    all.push((name, common::model(&quantized), texts(&cases[0])));
    let differential = common::differential([true, false, true, false]);
    let name = "differential attention".to_owned();
    all.push((name, common::model(&differential), texts(&cases[0])));
    all
}

/// Settings that let sessions differ in all that they may.
fn settings(i: usize) -> SessionOptions {
    SessionOptions {
        no_bos: true, // the texts have it, where it belongs
        kv: Some(KvType::ALL[i % 2]),
        patch_lengths: (i % 3 == 2).then(|| vec![1, 2, 5, 3, 1]),
        entropy_reset: (i % 4 == 1).then_some(37),
        ..SessionOptions::default()
    }
}

/// What a session holds, as bits.
#[derive(PartialEq)]
struct State {
    logits: Vec<u32>,
    entropies: Vec<u32>,
    starts: Vec<usize>,
    ids: Vec<Id>,
}

fn state(session: &Session) -> State {
    State {
        logits: bits(session.logits()),
        entropies: bits(session.entropies()),
        starts: session.patch_starts().to_vec(),
        ids: session.ids().to_vec(),
    }
}

#[test]
fn sessions_that_read_together_have_the_bits_of_sessions_alone() {
    for (name, model, texts) in models_and_texts() {
        let mut random = Random(5);
        let mut together: Vec<Session> = (0..5)
            .map(|i| common::session(&model, settings(i)))
            .collect();
        let mut alone = together.clone();
        // Pieces of any length, of some sessions at a time, so that they stand at different places.
        let mut left: Vec<&[Id]> = texts.iter().cycle().take(5).map(|t| &t[..]).collect();
        while left.iter().any(|text| !text.is_empty()) {
            let pieces: Vec<&[Id]> = (left.iter_mut())
                .map(|text| {
                    let n = [0, 1, 1, 9, 300][random.below(5)].min(text.len());
                    let (piece, rest) = text.split_at(n);
                    *text = rest;
                    piece
                })
                .collect();
            let mut feeds: Vec<(&mut Session, &[Id])> =
                together.iter_mut().zip(pieces.iter().copied()).collect();
            for result in batch::feed_ids(&mut feeds) {
                result.unwrap();
            }
            for (session, piece) in alone.iter_mut().zip(pieces) {
                session.feed_ids(piece).unwrap();
            }
            for (i, (one, other)) in together.iter().zip(&alone).enumerate() {
                let len = other.len();
                assert!(state(one) == state(other), "{name}: session {i} at {len}");
            }
        }
    }
}

/// What a position gave, as bits.
fn shown(position: &blt::session::Position<'_>) -> (usize, Id, u32, bool, Vec<u32>) {
    (
        position.position,
        position.id,
        position.entropy.to_bits(),
        position.next_starts_patch,
        bits(position.logits),
    )
}

#[test]
fn positions_shown_together_are_those_shown_alone() {
    for (name, model, texts) in models_and_texts() {
        let mut sessions: Vec<Session> = (0..3)
            .map(|i| common::session(&model, settings(i)))
            .collect();
        let mut alone = sessions.clone();
        let texts: Vec<&[Id]> = texts.iter().cycle().take(3).map(|t| &t[..]).collect();
        let texts = [texts[0], &texts[1][..1], texts[2]];
        let mut feeds: Vec<_> = sessions.iter_mut().zip(texts).collect();
        let mut together = vec![Vec::new(); 3];
        let results = batch::feed_ids_with(&mut feeds, |i, position| {
            together[i].push(shown(&position));
        });
        assert!(results.iter().all(Result::is_ok), "{name}: {results:?}");
        for (i, (session, text)) in alone.iter_mut().zip(texts).enumerate() {
            let mut expected = Vec::new();
            let show = |position: blt::session::Position<'_>| expected.push(shown(&position));
            session.feed_ids_with(text, show).unwrap();
            assert!(together[i] == expected, "{name}, session {i}");
            assert!(state(session) == state(&sessions[i]), "{name}, session {i}");
        }
    }
}

#[test]
fn texts_generated_together_are_those_generated_alone() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.safetensors");
    let model = Model::open(path).unwrap();
    let options = |i: usize| GenerateOptions {
        max_bytes: Some([5, 40, 23, 40][i]),
        sampler: match i {
            0 => SamplerConfig::greedy(),
            _ => SamplerConfig {
                seed: i as u64,
                repeat_penalty: [1.0, 1.0, 1.2, 1.0][i],
                ..SamplerConfig::default()
            },
        },
        stop: vec![[&b"zzz"[..], b"e", b"e ", b"qq"][i].to_vec()],
        ..GenerateOptions::default()
    };
    let prompts = [&b"Once upon a time"[..], b"The dog", b"", b"Tom said: \"I"];
    let new = |_| Session::new(&model, SessionOptions::default()).unwrap();
    let mut sessions: Vec<Session> = (0..4).map(new).collect();
    let mut feeds: Vec<(&mut Session, &[u8])> = sessions.iter_mut().zip(prompts).collect();
    for result in batch::feed(&mut feeds) {
        result.unwrap();
    }

    let mut expected = Vec::new();
    for (i, mut session) in sessions.clone().into_iter().enumerate() {
        let mut generator = session.generate(&options(i)).unwrap();
        let text: Vec<u8> = generator.by_ref().map(Result::unwrap).collect();
        let reason = generator.finish_reason();
        generator.finish().unwrap();
        expected.push((text, reason, state(&session)));
    }
    let mut generators: Vec<_> = (sessions.iter_mut().enumerate())
        .map(|(i, session)| session.generate(&options(i)).unwrap())
        .collect();
    let mut texts = vec![Vec::new(); 4];
    loop {
        let mut all: Vec<_> = generators.iter_mut().collect();
        let bytes = batch::next_bytes(&mut all);
        if bytes.iter().all(Option::is_none) {
            break;
        }
        for (text, byte) in texts.iter_mut().zip(bytes) {
            text.extend(byte.map(Result::unwrap));
        }
    }
    let mut reasons = Vec::new();
    for generator in generators {
        reasons.push(generator.finish_reason());
        generator.finish().unwrap();
    }
    for (i, (text, reason, of_session)) in expected.iter().enumerate() {
        assert_eq!(&texts[i], text, "text {i}");
        assert_eq!(&reasons[i], reason, "text {i}");
        assert!(&state(&sessions[i]) == of_session, "session {i}");
    }
    assert!(expected[3].0.len() == 40, "a text that runs to its end");
    assert!(
        expected[1].0.len() < 40,
        "a text that reaches its stop string"
    );
}

#[test]
fn an_error_is_of_its_session_alone() {
    let model = common::cases().remove(0).models().remove(0).1;
    let other = common::cases().remove(1).models().remove(0).1;
    let options = |max_bytes, overflow| SessionOptions {
        max_bytes: Some(max_bytes),
        overflow,
        ..SessionOptions::default()
    };
    let mut full = Session::new(&model, options(8, Overflow::Error)).unwrap();
    let mut slides = Session::new(&model, options(8, Overflow::Slide { keep: 3 })).unwrap();
    let mut cancelled = Session::new(&model, options(100, Overflow::Error)).unwrap();
    let mut foreign = Session::new(&other, SessionOptions::default()).unwrap();
    let mut good = Session::new(&model, SessionOptions::default()).unwrap();
    full.feed(b"abc").unwrap();
    let before = state(&full);
    cancelled.canceller().cancel();
    let text: &[u8] = b"some more text than eight";
    let results = batch::feed(&mut [
        (&mut full, text),
        (&mut slides, text),
        (&mut cancelled, text),
        (&mut foreign, text),
        (&mut good, text),
    ]);
    assert!(matches!(results[0], Err(Error::ContextFull { .. })));
    assert!(state(&full) == before);
    assert!(results[1].is_ok() && slides.n_slides() > 0);
    assert!(matches!(results[2], Err(Error::Cancelled)));
    assert!(cancelled.is_empty());
    let message = results[3].as_ref().unwrap_err().to_string();
    assert!(message.contains("one model"), "{message}");
    assert!(results[4].is_ok());
    let mut alone = Session::new(&model, SessionOptions::default()).unwrap();
    alone.feed(text).unwrap();
    assert!(state(&good) == state(&alone));
}
