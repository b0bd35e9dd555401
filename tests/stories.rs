//! The trained checkpoint: text, patches and bits per byte as transformers computed them.
//!
//! Random weights cannot show that text comes out as text. The checkpoint (24 MB) and the texts are
//! not in the repository: `BLT_MODELS` and `BLT_TEXT` name them, see [`folder`] and [`scored_text`].

mod common;

use std::path::PathBuf;

use blt::sampler::SamplerConfig;
use blt::vocab::{self, BOS, VOCAB_SIZE};
use blt::{GenerateOptions, Model, Session, SessionOptions};
use serde_json::Value;

/// Largest difference in bits per byte.
const BITS_TOLERANCE: f64 = 1e-4;

/// The folder of the checkpoint: `stories` in `BLT_MODELS`.
fn folder() -> PathBuf {
    let models = std::env::var_os("BLT_MODELS").expect("BLT_MODELS names a folder with stories");
    PathBuf::from(models).join("stories")
}

/// The text that was scored: `BLT_TEXT` names it.
fn scored_text() -> Vec<u8> {
    let path = std::env::var_os("BLT_TEXT").expect("BLT_TEXT names the validation text");
    std::fs::read(path).unwrap()
}

fn open() -> (Model, Value) {
    let stories = folder();
    let expected = std::fs::read(stories.join("expected.json")).unwrap();
    let model = Model::open(&stories).unwrap();
    (model, serde_json::from_slice(&expected).unwrap())
}

#[test]
#[ignore = "needs the trained checkpoint: BLT_MODELS=FOLDER BLT_TEXT=FILE cargo test -- --ignored"]
fn greedy_texts_are_reproduced_byte_for_byte() {
    let (model, expected) = open();
    let texts = expected["greedy"].as_array().unwrap();
    assert!(!texts.is_empty());
    for text in texts {
        let prompt = text["prompt"].as_str().unwrap();
        let ids = common::ids(&text["ids"]);
        let expected = &vocab::decode(&ids)[prompt.len()..];
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        session.feed(prompt.as_bytes()).unwrap();
        let options = GenerateOptions {
            max_bytes: Some(expected.len()),
            sampler: SamplerConfig::greedy(),
            ..GenerateOptions::default()
        };
        let found: Result<Vec<u8>, _> = session.generate(&options).unwrap().collect();
        let found = String::from_utf8_lossy(&found.unwrap()).into_owned();
        assert_eq!(found, String::from_utf8_lossy(expected), "after {prompt:?}");
    }
}

#[test]
#[ignore = "needs the trained checkpoint: BLT_MODELS=FOLDER BLT_TEXT=FILE cargo test -- --ignored"]
fn scores_and_patches_are_reproduced() {
    let (model, expected) = open();
    for piece in expected["score"].as_array().unwrap() {
        let at = |key: &str| piece[key].as_u64().unwrap() as usize;
        let text = scored_text();
        let text = &text[at("offset")..at("offset") + at("bytes")];

        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        let ids = vocab::encode(text, true);
        assert_eq!(ids[0], BOS);
        let mut bits = 0.0;
        let mut next = ids[1..].iter();
        let count = |step: blt::session::Position<'_>| {
            let Some(&id) = next.next() else { return };
            assert_eq!(step.logits.len(), VOCAB_SIZE);
            let max = step.logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = step.logits.iter().map(|&l| f64::from(l - max).exp()).sum();
            bits += (sum.ln() - f64::from(step.logits[usize::from(id)] - max)) / 2f64.ln();
        };
        session.feed_ids_with(&ids, count).unwrap();
        let found = bits / text.len() as f64;
        let wanted = piece["bits_per_byte"].as_f64().unwrap();
        assert!(
            (found - wanted).abs() <= BITS_TOLERANCE,
            "expected {wanted}, found {found}"
        );

        // transformers' lengths sum to n, with a 0 at the end if the next byte starts a patch.
        let mut lengths = session.patch_lengths();
        *lengths.last_mut().unwrap() -= 1;
        assert_eq!(lengths, common::lengths(&piece["patch_lengths"]));
        let recorded = common::numbers(&piece["entropies_first_64"]);
        for (i, (found, wanted)) in session.entropies().iter().zip(&recorded).enumerate() {
            let difference = (f64::from(*found) - wanted).abs();
            assert!(
                difference <= 2e-5,
                "entropy {i}: expected {wanted}, found {found}"
            );
        }
    }
}
