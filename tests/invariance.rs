//! The promise of the engine: a byte's logits and entropy are the same bits however the text was
//! fed, on any number of threads and any instruction set's path; and later bytes change nothing
//! before them.

mod common;

use blt::checkpoint::Checkpoint;
use blt::ops::Compute;
use blt::tensor::DType;
use blt::vocab::Id;
use blt::{KvType, Model, Overflow, Profile, Session, SessionOptions};
use blt_kernels::BlockFormat;
use common::{Case, Random, bits};

/// Everything a session decided about a text.
#[derive(Debug, PartialEq, Clone)]
struct Seen {
    logits: Vec<u32>,    // bits, (n, vocab)
    entropies: Vec<u32>, // bits, (n)
    starts: Vec<usize>,
}

fn seen(session: &Session, logits: &[f32]) -> Seen {
    Seen {
        logits: bits(logits),
        entropies: bits(session.entropies()),
        starts: session.patch_starts().to_vec(),
    }
}

fn at_once(model: &Model, ids: &[Id]) -> Seen {
    at_once_in(model, model.default_kv(), ids)
}

fn at_once_in(model: &Model, kv: KvType, ids: &[Id]) -> Seen {
    let mut session = common::session(model, SessionOptions::new().kv(kv));
    let mut logits = Vec::new();
    common::feed(&mut session, ids, &mut logits);
    seen(&session, &logits)
}

/// Each case's models with its longest text (long enough to wrap every ring) and one with special
/// ids, if it has them.
fn models_and_texts() -> Vec<(String, Model, Vec<Vec<Id>>)> {
    let texts = |case: &Case| {
        let mut all: Vec<_> = case.prompts().iter().map(|p| p.ids()).collect();
        all.sort_by_key(|ids| (ids.iter().filter(|&&id| id < 4).count() > 1, ids.len()));
        let with_specials = all.pop();
        let longest = all.pop();
        with_specials.into_iter().chain(longest).collect::<Vec<_>>()
    };
    let cases = common::cases();
    let mut all: Vec<_> = (cases.iter())
        .flat_map(|case| {
            let texts = texts(case);
            let named =
                move |(layout, model)| (format!("{}/{layout}", case.name), model, texts.clone());
            case.models().into_iter().map(named)
        })
        .collect();
    all.extend(stored_models(&cases, texts));
    let model = common::model(&common::differential([true, false, true, false]));
    all.push((DIFFERENTIAL.into(), model, texts(&cases[0])));
    all
}

/// The name of the model with differential attention.
const DIFFERENTIAL: &str = "hf-gqa with differential attention";

/// A case with an entropy model and hash tables.
fn case_with_everything(cases: &[Case]) -> (&Case, Checkpoint) {
    let with_all = |c: &Checkpoint| c.config().entropy.is_some() && c.config().hash.n_tables() > 0;
    (cases.iter())
        .flat_map(|case| case.checkpoints().into_iter().map(move |(_, c)| (case, c)))
        .find(|(_, checkpoint)| with_all(checkpoint))
        .expect("a case with an entropy model and hash tables")
}

/// A model with an entropy model and hash tables, in every block format, and packed.
fn stored_models(
    cases: &[Case],
    texts: impl Fn(&Case) -> Vec<Vec<Id>>,
) -> Vec<(String, Model, Vec<Vec<Id>>)> {
    let (case, checkpoint) = case_with_everything(cases);
    let model = |&format: &BlockFormat| {
        let checkpoint = common::quantized(&checkpoint, format);
        let model = Model::load(&checkpoint, Compute::new(Some(1), None).unwrap()).unwrap();
        (
            format!("{} in {}", case.name, format.name()),
            model,
            texts(case),
        )
    };
    let packed = common::converted(&checkpoint, DType::Bf12, DType::Bf12);
    let packed = Model::load(&packed, Compute::new(Some(1), None).unwrap()).unwrap();
    let packed = (PACKED.into(), packed, texts(case));
    BlockFormat::ALL.iter().map(model).chain([packed]).collect()
}

/// The name of the model in packed bfloat16.
const PACKED: &str = "in bf12";

/// Some of the reference models and all others: for checks whose cost grows with the square of the
/// text.
fn some_models() -> Vec<(String, Model, Vec<Vec<Id>>)> {
    let is_ours = |name: &str| {
        [DIFFERENTIAL, PACKED].contains(&name)
            || BlockFormat::ALL.iter().any(|f| name.ends_with(f.name()))
    };
    let (ours, reference): (Vec<_>, Vec<_>) =
        (models_and_texts().into_iter()).partition(|(name, ..)| is_ours(name));
    reference.into_iter().step_by(3).chain(ours).collect()
}

#[test]
fn any_chunking_gives_the_same_bits() {
    for (name, model, texts) in models_and_texts() {
        for ids in texts {
            let expected = at_once(&model, &ids);
            for seed in 0..3 {
                let mut random = Random(seed);
                let mut session = common::session(&model, SessionOptions::default());
                let mut logits = Vec::new();
                let mut rest = &ids[..];
                while !rest.is_empty() {
                    // Seed 0 feeds byte by byte.
                    let most = [1, 7, 97][seed as usize];
                    let n = (1 + random.below(most)).min(rest.len());
                    common::feed(&mut session, &rest[..n], &mut logits);
                    rest = &rest[n..];
                }
                assert!(seen(&session, &logits) == expected, "{name}: seed {seed}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (name, model, texts) in models_and_texts() {
        for ids in texts {
            let expected = at_once(&model, &ids);
            for threads in 2..=4 {
                let compute = Compute::new(Some(threads), None)
                    .unwrap()
                    .split_everything();
                let found = at_once(&model.with_compute(compute), &ids);
                assert!(found == expected, "{name}: {threads} threads");
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_scalar_bits() {
    use blt_kernels::Isa;
    for (name, model, texts) in some_models() {
        let with = |isa| model.with_compute(Compute::new(Some(1), Some(isa)).unwrap());
        for ids in texts {
            let expected = at_once(&with(Isa::Scalar), &ids);
            for isa in Isa::available() {
                // The portable path does not fuse multiply and add; it has bits of its own, which
                // `any_chunking` of it below holds to.
                if isa != Isa::Portable {
                    let found = at_once(&with(isa), &ids);
                    assert!(found == expected, "{name}: {}", isa.name());
                }
            }
            let portable = with(Isa::Portable);
            let expected = at_once(&portable, &ids);
            let mut session = common::session(&portable, SessionOptions::default());
            let mut logits = Vec::new();
            for &id in &ids {
                common::feed(&mut session, &[id], &mut logits);
            }
            assert!(
                seen(&session, &logits) == expected,
                "{name}: portable, byte by byte"
            );
        }
    }
}

#[test]
fn caches_of_the_other_type_keep_the_promise() {
    use blt_kernels::Isa;
    let mut n_differ = 0;
    for (name, model, texts) in some_models() {
        let ids = &texts[0];
        let is_quantized = BlockFormat::ALL.iter().any(|f| name.ends_with(f.name()));
        let (usual, kv) = match is_quantized {
            true => (KvType::F16, KvType::F32),
            false => (KvType::F32, KvType::F16),
        };
        assert_eq!(model.default_kv(), usual, "{name}");
        let options = || SessionOptions::new().kv(kv);
        let expected = at_once_in(&model, kv, ids);
        n_differ += usize::from(expected.logits != at_once(&model, ids).logits);
        for most in [1, 7] {
            let mut random = Random(most as u64);
            let mut session = common::session(&model, options());
            let (mut logits, mut rest) = (Vec::new(), &ids[..]);
            while !rest.is_empty() {
                let n = (1 + random.below(most)).min(rest.len());
                common::feed(&mut session, &rest[..n], &mut logits);
                rest = &rest[n..];
            }
            assert!(seen(&session, &logits) == expected, "{name}: up to {most}");
            let mut other = common::session(&model, SessionOptions::new());
            other.feed_ids(ids).unwrap();
            let smaller = session.cache_bytes() < other.cache_bytes();
            assert_eq!(smaller, kv == KvType::F16, "{name}");
            // Back, and on from there.
            let half = ids.len() / 2;
            session.rewind(half).unwrap();
            logits.truncate(half * 260);
            common::feed(&mut session, &ids[half..], &mut logits);
            assert!(
                seen(&session, &logits) == expected,
                "{name}: after going back"
            );
        }
        let threads = Compute::new(Some(3), None).unwrap().split_everything();
        let found = at_once_in(&model.with_compute(threads), kv, ids);
        assert!(found == expected, "{name}: threads");
        for isa in Isa::available() {
            let model = model.with_compute(Compute::new(Some(1), Some(isa)).unwrap());
            let found = at_once_in(&model, kv, ids);
            let same = found == expected;
            assert!(same || isa == Isa::Portable, "{name}: {}", isa.name());
        }
    }
    assert!(n_differ > 0, "half floats were kept");
}

#[test]
fn the_fast_profile_keeps_the_promise() {
    use blt_kernels::Isa;
    let cases = common::cases();
    let (case, checkpoint) = case_with_everything(&cases);
    let checkpoint = common::converted(&checkpoint, DType::Bf16, DType::Bf16);
    let with = |threads, isa| {
        let compute = Compute::new(Some(threads), Some(isa)).unwrap();
        let compute = compute.profiled(Profile::Fast).split_everything();
        Model::load(&checkpoint, compute).unwrap()
    };
    let fast = with(1, Isa::detect());
    let exact = fast.with_compute(Compute::new(Some(1), None).unwrap());
    for prompt in case.prompts() {
        let ids = prompt.ids();
        let expected = at_once(&fast, &ids);
        assert_ne!(expected.logits, at_once(&exact, &ids).logits, "rounded");
        for most in [1, 7, 97] {
            let mut random = Random(most as u64);
            let mut session = common::session(&fast, SessionOptions::new());
            let (mut logits, mut rest) = (Vec::new(), &ids[..]);
            while !rest.is_empty() {
                let n = (1 + random.below(most)).min(rest.len());
                common::feed(&mut session, &rest[..n], &mut logits);
                rest = &rest[n..];
            }
            assert!(seen(&session, &logits) == expected, "up to {most}");
        }
        for (threads, isa) in Isa::available().into_iter().enumerate() {
            let found = at_once(&with(1 + threads % 3, isa), &ids);
            let same = found == expected || isa == Isa::Portable;
            assert!(same, "{}", isa.name());
        }
    }
}

#[test]
fn rewinding_to_any_length_gives_the_same_bits() {
    for (name, model, texts) in some_models() {
        let ids = &texts[0];
        let expected = at_once(&model, ids);
        let mut full = common::session(&model, SessionOptions::default());
        common::feed(&mut full, ids, &mut Vec::new());
        for len in 0..=ids.len() {
            let mut session = full.clone();
            session.rewind(len).unwrap();
            assert_eq!(session.ids(), &ids[..len], "{name}");
            let vocab = len.saturating_sub(1) * 260..len * 260;
            assert_eq!(
                bits(session.logits()),
                expected.logits[vocab],
                "{name}: back to {len}"
            );
            let mut logits = Vec::new();
            let next = &ids[len..(len + 9).min(ids.len())];
            common::feed(&mut session, next, &mut logits);
            let to = len + next.len();
            assert_eq!(
                bits(&logits),
                expected.logits[len * 260..to * 260],
                "{name}: on from {len}"
            );
            assert_eq!(
                bits(session.entropies()),
                expected.entropies[..to],
                "{name}: from {len}"
            );
        }
    }
}

#[test]
fn a_rewind_beyond_what_is_kept_reads_again() {
    // Longer than window + slack of the short-window cases, so that old keys are overwritten.
    let (name, model, _) = &models_and_texts()[0];
    let mut random = Random(5);
    let ids: Vec<Id> = (0..900).map(|_| 4 + random.below(256) as Id).collect();
    let expected = at_once(model, &ids);
    let mut session = common::session(model, SessionOptions::default());
    common::feed(&mut session, &ids, &mut Vec::new());
    for len in [899, 700, 643, 500, 499, 100, 3] {
        session.rewind(len).unwrap();
        assert_eq!(
            bits(session.entropies()),
            expected.entropies[..len],
            "{name}: {len}"
        );
        let last = (len - 1) * 260..len * 260;
        assert_eq!(
            bits(session.logits()),
            expected.logits[last],
            "{name}: {len}"
        );
        let mut logits = Vec::new();
        common::feed(&mut session, &ids[len..], &mut logits);
        assert!(
            bits(&logits) == expected.logits[len * 260..],
            "{name}: on from {len}"
        );
    }
}

#[test]
fn a_fork_and_its_origin_go_their_own_ways() {
    for (name, model, texts) in some_models() {
        let ids = &texts[0];
        let half = ids.len() / 2;
        let other: Vec<Id> = ids.iter().rev().copied().collect();
        let mut session = common::session(&model, SessionOptions::default());
        let mut logits = Vec::new();
        common::feed(&mut session, &ids[..half], &mut logits);
        let mut fork = session.clone();
        let mut fork_logits = logits.clone();
        // In turns, so that each would see the other's writes.
        for i in half..ids.len() {
            common::feed(&mut fork, &other[i..i + 1], &mut fork_logits);
            common::feed(&mut session, &ids[i..i + 1], &mut logits);
        }
        assert!(
            seen(&session, &logits) == at_once(&model, ids),
            "{name}: origin"
        );
        let joined = [&ids[..half], &other[half..]].concat();
        assert!(
            seen(&fork, &fork_logits) == at_once(&model, &joined),
            "{name}: fork"
        );
    }
}

#[test]
fn later_bytes_change_nothing_before_them() {
    for (name, model, texts) in models_and_texts() {
        let ids = &texts[0];
        let expected = at_once(&model, ids);
        let mut random = Random(11);
        for _ in 0..6 {
            let at = random.below(ids.len());
            let mut changed = ids.clone();
            changed[at] = 4 + (changed[at] + 100) % 256;
            let found = at_once(&model, &changed);
            assert_eq!(
                found.logits[..at * 260],
                expected.logits[..at * 260],
                "{name}: {at}"
            );
            assert_eq!(
                found.entropies[..at],
                expected.entropies[..at],
                "{name}: {at}"
            );
            let before = |s: &Seen| {
                s.starts
                    .iter()
                    .copied()
                    .filter(|&s| s <= at)
                    .collect::<Vec<_>>()
            };
            assert_eq!(before(&found), before(&expected), "{name}: {at}");
            assert_ne!(
                found.logits[at * 260..],
                expected.logits[at * 260..],
                "{name}: {at}"
            );
        }
    }
}

#[test]
fn the_entropy_model_begins_anew_where_told() {
    let found = models_and_texts()
        .into_iter()
        .find(|(_, model, _)| model.has_entropy_model());
    let (name, model, texts) = found.expect("a case with an entropy model");
    let ids = &texts[0];
    let options = |reset| SessionOptions {
        entropy_reset: Some(reset),
        ..SessionOptions::default()
    };
    let reset = 40;
    let mut session = common::session(&model, options(reset));
    for &id in ids {
        common::feed(&mut session, &[id], &mut Vec::new());
    }
    // Each piece as if it stood alone.
    for (i, piece) in ids.chunks(reset).enumerate() {
        let alone = at_once(&model, piece);
        let from = i * reset;
        let found = bits(&session.entropies()[from..from + piece.len()]);
        assert_eq!(found, alone.entropies, "{name}: piece {i}");
    }
    let mut at_once = common::session(&model, options(reset));
    common::feed(&mut at_once, ids, &mut Vec::new());
    assert_eq!(
        bits(at_once.entropies()),
        bits(session.entropies()),
        "{name}"
    );
}

#[test]
fn limits_are_errors_or_slides_and_never_silent() {
    let (name, model, _) = &models_and_texts()[0];
    let ids: Vec<Id> = (0..100).map(|i| 4 + i % 256).collect();
    let with = |overflow| SessionOptions {
        max_bytes: Some(40),
        overflow,
        ..SessionOptions::default()
    };

    let mut session = common::session(model, with(Overflow::Error));
    session.feed_ids(&ids[..30]).unwrap();
    let before = bits(session.logits());
    let error = session.feed_ids(&ids[30..]).unwrap_err().to_string();
    assert!(
        error.contains("at most 40 bytes") && error.contains("100"),
        "{error}"
    );
    assert_eq!(
        (session.len(), bits(session.logits())),
        (30, before),
        "{name}: as it was"
    );
    session.feed_ids(&ids[30..40]).unwrap();

    let mut session = common::session(model, with(Overflow::Slide { keep: 8 }));
    session.feed_ids(&ids).unwrap();
    assert!(session.n_slides() > 0 && session.len() <= 40, "{name}");
    // What it holds is BOS and an unbroken run of the last ids.
    let kept = session.len() - 1;
    assert_eq!(session.ids()[0], blt::vocab::BOS);
    assert_eq!(session.ids()[1..], ids[100 - kept..], "{name}");
    let mut fresh = common::session(model, SessionOptions::default());
    fresh.feed_ids(session.ids()).unwrap();
    assert_eq!(bits(session.logits()), bits(fresh.logits()), "{name}");

    let few = SessionOptions {
        max_patches: Some(3),
        patcher: Some(blt::config::PatcherConfig {
            mode: blt::config::PatchingMode::Byte,
            ..model.config().patcher.clone()
        }),
        ..SessionOptions::default()
    };
    let mut session = common::session(model, few);
    let error = session.feed_ids(&ids).unwrap_err().to_string();
    assert!(error.contains("3 patches"), "{error}");
    assert!(session.is_empty(), "{name}: as it was");
}
