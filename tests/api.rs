//! The conveniences of the public interface: scores, strings, writing, options, stopping.

mod common;

use std::io::Write;
use std::ops::ControlFlow;
use std::thread;

use blt::checkpoint::{Checkpoint, OpenOptions, write_native};
use blt::vocab::{self, BOS};
use blt::{Error, GenerateOptions, Model, Session, SessionOptions};

/// Nats per id by which the reference implementations' own rounding can move a text's surprise.
const NATS_TOLERANCE: f64 = 1e-5;

fn first_model() -> Model {
    common::cases().remove(0).models().remove(0).1
}

#[test]
fn scores_are_the_reference_s() {
    let cases = common::cases();
    let mut checks = Vec::new();
    for case in &cases {
        for (layout, model) in case.models() {
            for prompt in case.prompts() {
                let ids = prompt.ids();
                let text = vocab::decode(&ids);
                let plain = vocab::encode(&text, true) == ids;
                if !plain || ids[0] != BOS || text.is_empty() || !prompt.has("nll_nats") {
                    continue;
                }
                let name = format!("{}, {}", case.folder.join(&layout).display(), prompt.name());
                checks.push((name, (model.clone(), text, prompt.number("nll_nats"))));
            }
        }
    }
    common::check_all(checks, |name, (model, text, expected)| {
        let mut session = Session::new(&model, SessionOptions::new()).unwrap();
        // In two pieces: the first byte of a piece is predicted from the one before.
        let (a, b) = text.split_at(text.len() / 3);
        let bits = session.score(a).unwrap().bits + session.score(b).unwrap().bits;
        let nats = bits * std::f64::consts::LN_2;
        let difference = (nats - expected).abs() / text.len() as f64;
        assert!(difference < NATS_TOLERANCE, "{name}: off by {difference}");
    });
}

#[test]
fn strings_are_the_bytes_as_lossy_utf8() {
    let model = first_model();
    let mut session = Session::new(&model, SessionOptions::new()).unwrap();
    let what = "sun";
    write!(session, "The {what}").unwrap();
    assert_eq!(vocab::decode(session.ids()), b"The sun");
    let options = GenerateOptions::new().max_bytes(80).seed(5);
    let mut fork = session.clone();
    let bytes: Vec<u8> = fork
        .generate(&options)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let mut strings = session.generate(&options).unwrap().strings();
    let text: String = strings.by_ref().map(Result::unwrap).collect();
    assert_eq!(text, String::from_utf8_lossy(&bytes));
    strings.into_generator().finish().unwrap();
    assert_eq!(vocab::decode(&session.ids()[8..]), bytes);
}

#[test]
fn errors_of_writing_can_be_told_apart() {
    let options = SessionOptions::new().max_bytes(4);
    let mut session = Session::new(&first_model(), options).unwrap();
    let error = session.write_all(b"too long").unwrap_err();
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    assert!(matches!(inner, Some(Error::ContextFull { .. })), "{error}");
}

#[test]
fn progress_is_told_and_can_stop_the_opening() {
    let model = first_model();
    let path = std::env::temp_dir().join(format!("blt-api-{}.safetensors", std::process::id()));
    let case = common::cases().remove(0);
    let (_, checkpoint) = case.checkpoints().remove(0);
    let tensors = checkpoint
        .tensors()
        .map(|(name, t)| (name.to_string(), t.clone()));
    write_native(&path, checkpoint.config(), tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();

    let mut told = Vec::new();
    let options = Model::options().threads(1).preload(true);
    let opened = options.open_with(&path, |done, total| {
        told.push((done, total));
        ControlFlow::Continue(())
    });
    assert_eq!(opened.unwrap().fingerprint(), model.fingerprint());
    let total = model.weight_bytes();
    assert_eq!(
        (told[0], told[told.len() - 1]),
        ((0, total), (total, total))
    );
    assert!(told.is_sorted() && told.len() > 2, "{told:?}");
    let memory = options.open_bytes(bytes.clone(), |_, _| ControlFlow::Continue(()));
    assert_eq!(memory.unwrap().fingerprint(), model.fingerprint());
    for n_calls in 1..4 {
        let mut left = n_calls;
        let stopped = options.open_bytes(bytes.clone(), |_, _| {
            left -= 1;
            if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(
            matches!(stopped, Err(Error::Cancelled)),
            "at call {n_calls}"
        );
    }
    let elsewhere = options.clone().config("config.json");
    let refused = elsewhere.open_bytes(bytes, |_, _| ControlFlow::Continue(()));
    assert!(matches!(
        refused,
        Err(Error::Argument { name: "config", .. })
    ));
    std::fs::remove_file(&path).unwrap();
    let missing = Checkpoint::open(&path, &OpenOptions::default());
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn another_thread_stops_a_call_and_nothing_is_lost() {
    let options = SessionOptions::new()
        .max_bytes(1 << 20)
        .max_patches(1 << 20);
    let mut session = Session::new(&first_model(), options).unwrap();
    session.feed(b"before").unwrap();
    let untouched = session.clone();
    let canceller = session.canceller();
    let text = vec![b'x'; 1 << 19];
    let result = thread::scope(|scope| {
        let feeding = scope.spawn(|| session.feed(&text));
        thread::sleep(std::time::Duration::from_millis(20));
        canceller.cancel();
        feeding.join().unwrap()
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(session.ids(), untouched.ids());
    assert_eq!(session.logits(), untouched.logits());
    assert!(!canceller.withdraw(), "one request stops one call");

    // With no call running the next one is stopped; a fork is not concerned.
    canceller.cancel();
    session.clone().feed(b"x").unwrap();
    assert!(matches!(session.feed(b"x"), Err(Error::Cancelled)));
    session.feed(b"x").unwrap();
    canceller.cancel();
    assert!(canceller.withdraw());
    session.feed(b"x").unwrap();
    // Going back is never stopped halfway.
    canceller.cancel();
    session.rewind(3).unwrap();
    assert_eq!(session.len(), 3);
}
