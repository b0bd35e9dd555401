//! The checkpoints of the reference cases, and what the tests do with them.

use std::path::{Path, PathBuf};

use blt::checkpoint::{Checkpoint, OpenOptions};

use crate::common;
pub use crate::common::folder::Folder;

/// Every BLT checkpoint of the reference cases, with the options that open it.
pub fn cases() -> Vec<(String, PathBuf, OpenOptions)> {
    opened(common::cases())
}

/// Every checkpoint of the reference cases, the Bolmo family included.
pub fn all_cases() -> Vec<(String, PathBuf, OpenOptions)> {
    opened(common::all_cases())
}

fn opened(cases: Vec<common::Case>) -> Vec<(String, PathBuf, OpenOptions)> {
    let cases = cases.into_iter();
    cases
        .flat_map(|case| {
            let layouts = case.layouts().into_iter();
            layouts.map(move |(layout, path, options)| {
                (format!("{}/{layout}", case.name), path, options)
            })
        })
        .collect()
}

/// A new folder with the files of `from`, not its folders.
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

/// The first case of that form for which `wanted` holds. The repository has one of each kind.
pub fn case_with(
    form: &str,
    wanted: impl Fn(&Checkpoint) -> bool,
) -> (String, PathBuf, OpenOptions) {
    let mut cases = cases().into_iter();
    let found = cases
        .find(|(name, path, options)| name.ends_with(form) && wanted(&open(name, path, options)));
    found.expect("a case of this kind")
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
