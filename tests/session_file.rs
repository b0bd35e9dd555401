//! Saved session states: exact, and safe to read from strangers.

mod common;

use blt::session::{Overflow, Session, SessionOptions};
use blt::{Error, KvType, Model};
use common::Random;

fn text(random: &mut Random, n: usize) -> Vec<u8> {
    (0..n)
        .map(|_| b"etaoin shrdlu,.\xc3\xa9"[random.below(17)])
        .collect()
}

fn saved(session: &Session) -> Vec<u8> {
    let mut state = Vec::new();
    session.save_to(&mut state).unwrap();
    state
}

fn bits(session: &Session) -> Vec<u32> {
    let numbers = session.logits().iter().chain(session.entropies());
    numbers.map(|x| x.to_bits()).collect()
}

/// Both say the same now and after the same further calls.
fn assert_same(a: &Session, b: &Session, seed: u64, what: &str) {
    let (mut a, mut b) = (a.clone(), b.clone());
    let mut random = Random(seed);
    for step in 0..4 {
        let at = format!("{what}, seed {seed}, step {step}");
        assert_eq!(a.ids(), b.ids(), "{at}");
        assert_eq!(a.patch_starts(), b.patch_starts(), "{at}");
        assert_eq!(bits(&a), bits(&b), "{at}");
        if step % 2 == 0 {
            let text = text(&mut random, 1 + 40 * step);
            a.feed(&text).unwrap();
            b.feed(&text).unwrap();
        } else {
            let back = random.below(a.len());
            a.rewind(back).unwrap();
            b.rewind(back).unwrap();
        }
    }
}

#[test]
fn a_loaded_session_goes_on_with_the_same_bits() {
    let differential = common::model(&common::differential([true, false, true, false]));
    let mut models = vec![("differential".to_string(), differential)];
    for case in common::cases() {
        let name = |layout| format!("{}/{layout}", case.name);
        models.extend((case.models().into_iter()).map(|(layout, model)| (name(layout), model)));
    }
    let both = |kv| models.iter().map(move |(name, model)| (name, model, kv));
    for (name, model, kv) in KvType::ALL.into_iter().flat_map(both) {
        let seed = name.len() as u64;
        let mut random = Random(seed);
        let mut session = Session::new(model, SessionOptions::new().kv(kv)).unwrap();
        // Empty, short, longer than any window, after going back a little, and a lot.
        let at = |what: &str| format!("{name}, {kv}, {what}");
        let load = |s: &Session| Session::load_from(model, &saved(s)).unwrap();
        assert_same(&session, &load(&session), seed, &at("empty"));
        session.feed(&text(&mut random, 9)).unwrap();
        assert_same(&session, &load(&session), seed, &at("short"));
        let n = session.max_bytes().min(900) - 200;
        session.feed(&text(&mut random, n)).unwrap();
        assert_same(&session, &load(&session), seed, &at("long"));
        session.rewind(session.len() - 60).unwrap();
        assert_same(
            &session,
            &load(&session),
            seed,
            &at("after a short way back"),
        );
        session.rewind(20).unwrap();
        let loaded = load(&session);
        assert_same(&session, &loaded, seed, &at("after a long way back"));
        assert_eq!(saved(&loaded), saved(&session), "{}", at("saved again"));
    }
}

fn first_model() -> Model {
    let (_, model) = common::cases().remove(0).models().remove(0);
    model
}

#[test]
fn settings_come_back() {
    let model = first_model();
    let options = SessionOptions {
        no_bos: true,
        patch_lengths: Some(vec![1, 4, 3, 5]),
        entropies: model.has_entropy_model(),
        entropy_reset: Some(7),
        max_bytes: Some(40),
        max_patches: Some(30),
        overflow: Overflow::Slide { keep: 6 },
        kv: Some(KvType::F16),
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options).unwrap();
    session.feed(&text(&mut Random(1), 90)).unwrap();
    assert!(session.n_slides() > 0);
    let loaded = Session::load_from(&model, &saved(&session)).unwrap();
    assert_eq!(loaded.n_slides(), session.n_slides());
    let expected = SessionOptions {
        patcher: Some(model.config().patcher.clone()),
        ..session.options().clone()
    };
    assert_eq!(format!("{:?}", loaded.options()), format!("{expected:?}"));
    assert_same(&session, &loaded, 1, "sliding session");
}

#[test]
fn files_are_whole_or_absent() {
    let model = first_model();
    let folder = std::env::temp_dir().join(format!("blt-session-file-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("state");
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.feed(b"Hello").unwrap();
    session.save(&path).unwrap();
    session.feed(b" there").unwrap();
    session.save(&path).unwrap();
    assert_same(
        &session,
        &Session::load(&model, &path).unwrap(),
        1,
        "second save",
    );
    let names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(names, [path], "no temporary file is left");

    let nowhere = folder.join("absent/state");
    assert!(matches!(session.save(&nowhere), Err(Error::Io { .. })));
    assert!(matches!(
        Session::load(&model, &nowhere),
        Err(Error::Io { .. })
    ));
    assert!(matches!(
        Session::load(&model, &folder),
        Err(Error::Format { .. })
    ));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The checksum as the format describes it, computed independently of the engine.
fn seal(state: &mut [u8]) {
    let n = state.len() - 8;
    let mut hash = 0u64;
    let mut padded = state[..n].to_vec();
    padded.resize(n / 8 * 8 + 8, 0);
    padded.extend((n as u64).to_le_bytes());
    for word in padded.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().unwrap());
        hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    state[n..].copy_from_slice(&hash.to_le_bytes());
}

#[test]
fn cut_damaged_and_foreign_states_are_refused() {
    let model = first_model();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.feed(b"Once upon a time").unwrap();
    let state = saved(&session);
    let mut sealed = state.clone();
    seal(&mut sealed);
    assert_eq!(sealed, state, "the checksum is the one described");
    let message = |state: &[u8]| match Session::load_from(&model, state) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("a bad state was loaded"),
    };
    for n in (0..state.len()).filter(|n| *n < 400 || n % 97 == 0) {
        message(&state[..n]);
    }
    for bit in (0..state.len() * 8).filter(|b| *b < 400 || b % 97 == 0) {
        let mut damaged = state.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        message(&damaged);
    }
    let cut = message(&state[..state.len() - 1]);
    assert!(cut.contains("cut short or damaged"), "{cut}");
    assert!(message(b"").contains("found 0"));
    assert!(message(b"not a state at all").contains("another kind of file"));
    let mut newer = state.clone();
    newer[8] = 3;
    assert!(message(&newer).contains("expected version 2, found 3"));
    let mut longer = state.clone();
    longer.extend([0; 4]);
    seal(&mut longer);
    assert!(
        message(&longer).contains("expected the end, found 4"),
        "{}",
        message(&longer)
    );

    let other = common::cases().pop().unwrap().models().remove(0).1;
    assert_ne!(other.fingerprint(), model.fingerprint());
    let foreign = Session::load_from(&other, &state).unwrap_err().to_string();
    assert!(foreign.contains("one of another"), "{foreign}");
}

#[test]
fn hostile_states_with_a_sound_checksum_do_no_harm() {
    let model = first_model();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.feed(&text(&mut Random(3), 120)).unwrap();
    let state = saved(&session);
    let mut refused = 0;
    for seed in 0..1000 {
        let mut random = Random(seed);
        let mut hostile = state.clone();
        // Mostly in the settings and counts, where the lengths are; any byte now and then.
        for _ in 0..1 + random.below(3) {
            let near = [20..120, 100..400, 20..state.len() - 8][random.below(3)].clone();
            let at = near.start + random.below(near.len());
            hostile[at] = [0, 1, 127, 128, 255, random.below(256) as u8][random.below(6)];
        }
        seal(&mut hostile);
        match Session::load_from(&model, &hostile) {
            Err(_) => refused += 1,
            // It may say nonsense, and may find out that it does; it must not panic.
            Ok(mut session) => {
                let _ = session.feed(b"more");
                let _ = session.rewind(session.len() / 2);
                let _ = session.feed(b"again");
            }
        }
    }
    assert!(refused > 100, "only {refused} of 1000 refused");
}
