//! Models whose files are sound but whose numbers or settings are not: one clear error each.

mod common;

use blt::checkpoint::{Checkpoint, write_native};
use blt::config::{PatcherConfig, PatchingMode};
use blt::ops::Compute;
use blt::tensor::Tensor;
use blt::{Model, Session, SessionOptions};

/// A case's model with an entropy model of its own.
fn some_checkpoint() -> Checkpoint {
    let mut all = common::cases()
        .into_iter()
        .flat_map(|case| case.checkpoints());
    let found = all.find(|(_, c)| c.config().entropy.is_some());
    found.expect("a case with an entropy model").1
}

/// The checkpoint with one tensor's values changed, through a native file.
fn with_changed(name: &str, change: impl Fn(&mut [f32])) -> Result<Model, blt::Error> {
    let checkpoint = some_checkpoint();
    let tensors: Vec<(String, Tensor)> = (checkpoint.tensors())
        .map(|(n, tensor)| {
            if n != name {
                return (n.to_owned(), tensor.clone());
            }
            let mut values = tensor.to_f32_vec();
            change(&mut values);
            let changed = Tensor::from_f32(tensor.shape().to_vec(), values).unwrap();
            (n.to_owned(), changed)
        })
        .collect();
    let folder = std::env::temp_dir().join(format!("blt-damage-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("damaged.safetensors");
    let config = checkpoint.config();
    write_native(&path, config, tensors).unwrap();
    let opened = Checkpoint::open(&path, &Default::default()).unwrap();
    let model = Model::load(&opened, Compute::new(Some(1), None).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
    model
}

#[test]
fn weights_that_are_not_finite_are_reported_and_the_session_survives() {
    for (name, what) in [
        ("entropy.layers.0.wq", "entropy"),
        ("entropy.output", "entropy"),
        ("encoder.layers.0.w1", "logits"),
        ("global.layers.0.wv", "logits"),
        ("decoder.output", "logits"),
    ] {
        for bad in [f32::NAN, f32::INFINITY] {
            let model = with_changed(name, |values| values[7] = bad).unwrap();
            let mut session = common::session(&model, SessionOptions::default());
            let error = session.feed(b"some text").unwrap_err();
            assert!(
                matches!(error, blt::Error::NonFinite { what: w, .. } if w == what),
                "{name} {bad}: {error}"
            );
            assert!(error.to_string().contains("position"), "{error}");
            assert!(session.is_empty(), "{name}: as it was");
        }
    }
}

#[test]
fn a_norm_that_is_not_finite_is_refused_at_once() {
    let error = with_changed("decoder.norm", |values| values[0] = f32::NAN).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("decoder.norm") && text.contains("NaN"),
        "{text}"
    );
}

#[test]
fn settings_out_of_range_are_named() {
    let checkpoint = some_checkpoint();
    let compute = || Compute::new(Some(1), None).unwrap();
    let model = Model::load(&checkpoint, compute()).unwrap();
    let patcher = |change: fn(&mut PatcherConfig)| {
        let mut patcher = model.config().patcher.clone();
        change(&mut patcher);
        SessionOptions {
            patcher: Some(patcher),
            ..SessionOptions::default()
        }
    };
    for (options, named) in [
        (patcher(|p| p.threshold = f32::NAN), "threshold"),
        (
            patcher(|p| p.threshold_add = Some(f32::NAN)),
            "threshold_add",
        ),
        (
            patcher(|p| p.max_patch_length = Some(0)),
            "max_patch_length",
        ),
        (
            patcher(|p| (p.mode, p.patch_size) = (PatchingMode::Static, 0)),
            "patch_size",
        ),
        (
            SessionOptions {
                max_bytes: Some(0),
                ..SessionOptions::default()
            },
            "max_bytes",
        ),
        (
            SessionOptions {
                patch_lengths: Some(vec![1, 0, 2]),
                ..SessionOptions::default()
            },
            "patch_lengths",
        ),
    ] {
        let error = Session::new(&model, options).unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
    let mut session = common::session(&model, SessionOptions::default());
    let error = session.feed_ids(&[1, 260]).unwrap_err().to_string();
    assert!(error.contains("260"), "{error}");
    let error = session.rewind(1).unwrap_err().to_string();
    assert!(error.contains("rewind"), "{error}");
    for threads in [0, 1 << 20] {
        let error = Compute::new(Some(threads), None).unwrap_err().to_string();
        assert!(error.contains("threads"), "{error}");
    }
}
