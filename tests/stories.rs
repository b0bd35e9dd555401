//! The trained checkpoint: text, patches and bits per byte as transformers computed them.
//!
//! Random weights cannot show that text comes out as text. The checkpoint (24 MB) and the texts are
//! not in the repository: they are looked for in `BLT_MODELS`, else beside the project.

mod common;

use std::path::{Path, PathBuf};

use blt::sampler::SamplerConfig;
use blt::vocab::{self, BOS, VOCAB_SIZE};
use blt::{GenerateOptions, Model, Session, SessionOptions};
use serde_json::Value;

/// Largest difference in bits per byte.
const BITS_TOLERANCE: f64 = 1e-4;

fn folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("BLT_MODELS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models"),
    };
    let found = folder.join("stories/expected.json").is_file();
    if !found {
        println!("skipped: no trained checkpoint in {}", folder.display());
    }
    found.then_some(folder)
}

fn open(folder: &Path) -> (Model, Value) {
    let stories = folder.join("stories");
    let expected = std::fs::read(stories.join("expected.json")).unwrap();
    let model = Model::open(&stories).unwrap();
    (model, serde_json::from_slice(&expected).unwrap())
}

#[test]
fn greedy_texts_are_reproduced_byte_for_byte() {
    let Some(folder) = folder() else { return };
    let (model, expected) = open(&folder);
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
fn scores_and_patches_are_reproduced() {
    let Some(folder) = folder() else { return };
    let (model, expected) = open(&folder);
    for piece in expected["score"].as_array().unwrap() {
        let at = |key: &str| piece[key].as_u64().unwrap() as usize;
        let file = folder.join("..").join(piece["file"].as_str().unwrap());
        let text = std::fs::read(&file).unwrap();
        let text = &text[at("offset")..at("offset") + at("bytes")];

        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        let ids = vocab::encode(text, true);
        assert_eq!(ids[0], BOS);
        let mut bits = 0.0;
        let mut next = ids[1..].iter();
        let count = |step: blt::session::Step<'_>| {
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
