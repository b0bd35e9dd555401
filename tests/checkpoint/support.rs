//! The fixtures and what the tests ask of them.

use std::path::{Path, PathBuf};

use blt::checkpoint::{Checkpoint, OpenOptions};

/// The fixtures: what the environment says, the workspace's, or the subset in this repository.
pub fn fixtures() -> PathBuf {
    if let Some(path) = std::env::var_os("BLT_FIXTURES") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = root.join("../shared/fixtures");
    if shared.is_dir() {
        return shared;
    }
    root.join("tests/data")
}

/// Every checkpoint among the fixtures, with the entropy model that lies apart from it.
pub fn cases() -> Vec<(String, PathBuf, OpenOptions)> {
    let mut cases = Vec::new();
    for case in std::fs::read_dir(fixtures()).expect("fixtures") {
        let case = case.unwrap().path();
        for form in ["model", "hub", "consolidated"] {
            let folder = case.join(form);
            if !folder.is_dir() {
                continue;
            }
            let apart = case.join("entropy_hub");
            let options = OpenOptions {
                entropy_model: apart.is_dir().then_some(apart),
                ..Default::default()
            };
            let name = format!("{}/{form}", case.file_name().unwrap().to_string_lossy());
            cases.push((name, folder, options));
        }
    }
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(
        !cases.is_empty(),
        "no checkpoints in {}",
        fixtures().display()
    );
    cases
}

/// A folder that is removed with what is in it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("blt-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The files of `from`, not its folders.
    pub fn copy_of(name: &str, from: &Path) -> Folder {
        let folder = Folder::new(name);
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                // Not fs::copy: it would copy the read-only mode of the fixtures.
                let bytes = std::fs::read(file.path()).unwrap();
                std::fs::write(folder.0.join(file.file_name()), bytes).unwrap();
            }
        }
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The first case of that form for which `wanted` holds, if the fixtures at hand have one.
pub fn case_with(
    form: &str,
    wanted: impl Fn(&Checkpoint) -> bool,
) -> Option<(String, PathBuf, OpenOptions)> {
    cases()
        .into_iter()
        .filter(|(name, ..)| name.ends_with(form))
        .find(|(name, path, options)| wanted(&open(name, path, options)))
}

pub fn assert_same(name: &str, a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.names(), b.names(), "{name}");
    for ((tensor, x), (_, y)) in a.tensors().zip(b.tensors()) {
        assert_eq!(
            (x.dtype(), x.shape()),
            (y.dtype(), y.shape()),
            "{name}: {tensor}"
        );
        assert!(x.bytes() == y.bytes(), "{name}: {tensor} differs");
    }
}

pub fn error(what: &str, result: blt::error::Result<Checkpoint>) -> String {
    let message = result
        .err()
        .unwrap_or_else(|| panic!("{what} was opened"))
        .to_string();
    assert!(!message.contains('\n'), "{what}: {message}");
    message
}

pub fn open(name: &str, path: &Path, options: &OpenOptions) -> Checkpoint {
    Checkpoint::open(path, options).unwrap_or_else(|e| panic!("{name}: {e}"))
}
