//! What strangers can hand to the engine, one function each: files of every layout, configurations, pickles, zip
//! archives, saved sessions, training states, settings, texts, and calls of the C functions. Each must come back, with a
//! result or an error; a panic, a hang or a giant allocation is a finding.
//!
//! `cargo fuzz run TARGET` explores (on the stable toolchain with `RUSTC_BOOTSTRAP=1`); `replay` runs
//! a corpus and simple mutations of it, and needs nothing but Rust.

mod calls;
mod files;

use std::sync::LazyLock;

use blt::checkpoint::{Checkpoint, OpenOptions, config_from_json, config_to_json, read_config};
use blt::documents::{Format, TextFile};
use blt::ops::Compute;
use blt::train::settings::Settings;
use blt::train::state::Saved;
use blt::{GenerateOptions, Model, Session, SessionOptions};

pub use calls::capi;
use files::Folder;

/// A function that takes anything, and says whether the engine did.
pub type Target = fn(&[u8]) -> bool;

/// All targets, by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("layouts", layouts),
    ("pickle", pickle),
    ("zip", zip),
    ("state", state),
    ("config", config),
    ("training", training),
    ("settings", settings),
    ("jsonl", jsonl),
    ("capi", capi),
];

/// The folder of the project's own test models.
fn data(name: &str) -> std::path::PathBuf {
    let project = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data");
    std::path::Path::new(project).join(name)
}

/// A small sound model, which some targets need.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let options = Model::options().threads(1);
    options
        .open(data("meta-space/hub"))
        .expect("a model of the project's own")
});

/// Checkpoints in every layout that keeps its tensors in safetensors files.
///
/// Input: a byte that chooses the layout, then texts, each after its length in two bytes: the
/// configuration, a header, and a second one for the sharded layout or a Bolmo model's tokenizer. The tensors' bytes are zeros,
/// to the number that the header says, so that small inputs make sound models.
pub fn layouts(input: &[u8]) -> bool {
    let Some((&layout, rest)) = input.split_first() else {
        return false;
    };
    let mut texts = files::texts(rest);
    let mut next = || texts.next().unwrap_or_default();
    let folder = Folder::new();
    match layout % 6 {
        0 => {
            folder.write("config.json", next());
            folder.write_weights("model.safetensors", next());
        }
        1 => {
            folder.write("config.json", next());
            folder.write_weights("model.safetensors", next());
            folder.write("train_args.json", next());
        }
        2 => {
            folder.write("params.json", next());
            folder.write_weights("consolidated.safetensors", next());
        }
        3 => {
            folder.write("config.json", next());
            folder.write("model.safetensors.index.json", next());
            folder.write_weights("model-00001-of-00002.safetensors", next());
            folder.write_weights("model-00002-of-00002.safetensors", next());
        }
        5 => {
            folder.write("config.json", next());
            folder.write_weights("model.safetensors", next());
            folder.write("tokenizer/tokenizer.json", next());
            folder.write("tokenizer/tokenizer_config.json", next());
            folder.write("generation_config.json", next());
        }
        _ => {
            folder.write_weights("native.safetensors", next());
            let path = folder.path().join("native.safetensors");
            let bytes = std::fs::read(path).expect("just written");
            return run(Checkpoint::from_bytes(bytes, &OpenOptions::default()));
        }
    }
    run(Checkpoint::open(folder.path(), &OpenOptions::default()))
}

/// The pickle of a `.pth` file, with storages of zeros beside it.
pub fn pickle(input: &[u8]) -> bool {
    let folder = Folder::new();
    folder.write("consolidated.pth", &files::pth(input));
    open_as_entropy_model(&folder)
}

/// A whole `.pth` file.
pub fn zip(input: &[u8]) -> bool {
    let folder = Folder::new();
    folder.write("consolidated.pth", input);
    open_as_entropy_model(&folder)
}

/// Opens a sound model with the entropy model in `folder`: one small file is read and no more.
fn open_as_entropy_model(folder: &Folder) -> bool {
    folder.write("params.json", files::ENTROPY_PARAMS);
    let options = OpenOptions {
        entropy_model: Some(folder.path().to_path_buf()),
        ..OpenOptions::default()
    };
    run(Checkpoint::open(&data("meta-space/hub"), &options))
}

/// Lets a model that could be opened read and write a little.
fn run(checkpoint: blt::Result<Checkpoint>) -> bool {
    let Ok(checkpoint) = checkpoint else {
        return false;
    };
    let compute = Compute::new(Some(1), None).expect("one thread");
    let session = Model::load(&checkpoint, compute)
        .and_then(|model| Session::new(&model, SessionOptions::default()));
    session.map(talk).is_ok()
}

fn talk(mut session: Session) {
    let _ = session.feed(b"a b");
    if let Ok(bytes) = session.generate(&GenerateOptions::new().max_bytes(3)) {
        bytes.take_while(|byte| byte.is_ok()).for_each(drop);
    }
    let _ = session.rewind(session.len() / 2);
    let _ = session.feed(b"c");
}

/// A saved session. What can be loaded must also continue, go back, and be saved again as it was.
pub fn state(input: &[u8]) -> bool {
    let Ok(session) = Session::load_from(&MODEL, input) else {
        return false;
    };
    let mut saved = Vec::new();
    session
        .save_to(&mut saved)
        .expect("memory takes everything");
    let again = Session::load_from(&MODEL, &saved).expect("what was saved is sound");
    assert_eq!(again.ids(), session.ids());
    assert_eq!(again.patch_starts(), session.patch_starts());
    talk(session);
    true
}

/// A configuration: that of a native file, which must be the same when it is written again, or a file of a published
/// layout.
pub fn config(input: &[u8]) -> bool {
    let own = std::str::from_utf8(input).map(config_from_json);
    if let Ok(Ok(config)) = own {
        let again = config_from_json(&config_to_json(&config)).expect("what was written is sound");
        assert_eq!(again, config);
        return true;
    }
    let folder = Folder::new();
    folder.write("config.json", input);
    read_config(&folder.path().join("config.json"), None).is_ok()
}

/// The state of a training run: a header, and zeros as many as it says.
pub fn training(input: &[u8]) -> bool {
    let folder = Folder::new();
    folder.write_weights("state.safetensors", input);
    let Ok(saved) = Saved::open(&folder.path().join("state.safetensors")) else {
        return false;
    };
    let _ = Settings::default().set_json(&saved.settings);
    let _ = saved.param("entropy.tok_embeddings", &[260, 4]);
    true
}

/// Settings of a training run: TOML, or JSON if it begins so. What is read must be the same when it is written again.
pub fn settings(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let mut settings = Settings::default();
    let read = match text.starts_with('{') {
        true => settings.set_json(text),
        false => settings.set_toml(text),
    };
    if read.is_err() {
        return false;
    }
    let mut again = Settings::default();
    again.set_json(&settings.to_json().to_string()).expect("what was written is sound");
    assert_eq!(again, settings);
    let _ = settings.validate();
    let _ = settings.architecture();
    true
}

/// Texts: JSON lines, and the same bytes as text with separators.
pub fn jsonl(input: &[u8]) -> bool {
    let folder = Folder::new();
    folder.write("a.jsonl", input);
    folder.write("a.txt", input);
    let open = |name: &str| TextFile::open(&folder.path().join(name), &Format::default());
    for text in [open("a.txt"), open("a.jsonl")].into_iter().flatten() {
        let mut end = 0;
        for document in text.documents() {
            assert!(end <= document.start && document.start < document.end);
            end = document.end;
        }
        assert!(end <= text.bytes().len());
    }
    open("a.jsonl").is_ok_and(|text| !text.documents().is_empty())
}
