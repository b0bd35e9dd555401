//! Which files of a folder hold the weights, and what a folder without weights is.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::json;
use crate::error::{Error, Result};
use crate::input;

/// Names that weights go by in a folder, in order of preference. The content of a file decides which container it is.
const WEIGHT_FILES: [&str; 7] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "consolidated.pth",
    "consolidated_with_rope.pth",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The files at `path`: itself, or in a folder one file of weights, one index, or all shards.
///
/// # Errors
/// [`Error::Io`] if there is no such path, [`Error::Format`] if the folder has no weights, more than one set of them, or
/// not all of its shards.
pub fn weights_at(path: &Path) -> Result<Vec<PathBuf>> {
    let meta = std::fs::metadata(path).map_err(|e| not_found(path, e))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let folder = snapshot(path)?;
    let mut known = WEIGHT_FILES.iter().map(|name| folder.join(name));
    if let Some(file) = known.find(|file| file.exists()) {
        return Ok(vec![file]);
    }
    let names = names_in(&folder)?;
    let sets = sets_of_weights(&folder, &names)?;
    match &sets[..] {
        [] => Err(Error::format(path, no_weights(&folder, &names))),
        [(_, files)] => Ok(files.iter().map(|name| folder.join(name)).collect()),
        several => {
            let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
            let names = names.join(", ");
            let what = format!("expected one set of weights, found {names}; pass the path of one");
            Err(Error::format(path, what))
        }
    }
}

/// Whether that is the name of an index of shards: `model.safetensors.index.json`, or that of a variant,
/// `model.safetensors.index.fp16.json`.
pub fn is_index(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.ends_with(".json") && name.contains(".index.")
}

/// The names of the files in a folder, in order.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let io = |e| Error::io(folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// The sets of weights in a folder that has none of the usual names, each with a name for messages: indexes, else whole
/// files of a variant (`model.fp16.safetensors`) and complete sets of shards. Safetensors files win over pickles.
fn sets_of_weights(folder: &Path, names: &[String]) -> Result<Vec<(String, Vec<String>)>> {
    for extension in ["safetensors", "bin", "pth"] {
        let stem = |name: &&String| {
            ["model.", "pytorch_model.", "consolidated."]
                .iter()
                .any(|stem| name.starts_with(stem))
        };
        let index = format!(".{extension}.index.");
        let indexes: Vec<_> = (names.iter())
            .filter(|name| is_index(OsStr::new(name.as_str())) && name.contains(&index))
            .map(|name| (name.clone(), vec![name.clone()]))
            .collect();
        if !indexes.is_empty() {
            return Ok(indexes);
        }
        let end = format!(".{extension}");
        let mut sets: Vec<_> = (names.iter())
            .filter(|name| name.ends_with(&end) && shard(name).is_none())
            .filter(stem)
            .map(|name| (name.clone(), vec![name.clone()]))
            .collect();
        let mut shards: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for name in names.iter().filter(|name| name.ends_with(&end)) {
            if let Some((stem, _, count)) = shard(name) {
                shards.entry((stem, count)).or_default().push(name.clone());
            }
        }
        for ((stem, count), files) in shards {
            let expected = |i: usize| format!("{stem}-{i:05}-of-{count}{end}");
            let n: usize = count.parse().unwrap_or(0);
            if let Some(missing) = (1..=n).map(expected).find(|name| !files.contains(name)) {
                return Err(Error::format(
                    folder,
                    format!(
                        "expected {n} shards, found {}; {missing} is missing",
                        files.len()
                    ),
                ));
            }
            sets.push((expected(1), files));
        }
        if !sets.is_empty() {
            return Ok(sets);
        }
    }
    Ok(Vec::new())
}

/// The stem, the number and the count of a shard's name: `STEM-00001-of-00002.EXTENSION`.
fn shard(name: &str) -> Option<(&str, &str, &str)> {
    let (name, _) = name.rsplit_once('.')?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(number) && is_number(count)).then_some((stem, number, count))
}

/// What a folder without weights is, as far as it can be told.
fn no_weights(folder: &Path, names: &[String]) -> String {
    if let Some(adapter) = adapter(folder) {
        return format!("expected a model, found {adapter}");
    }
    if names.iter().any(|name| name.ends_with(".distcp")) {
        let consolidated = folder.join("consolidated");
        let advice = match consolidated.is_dir() {
            true => format!("pass {}", consolidated.display()),
            false => "consolidate it first: python -m torch.distributed.checkpoint.format_utils \
                      dcp_to_torch FOLDER consolidated.pth"
                .to_string(),
        };
        return format!("expected weights, found a distributed checkpoint of torch; {advice}");
    }
    let found = match names.iter().find(|name| has_extension(Path::new(name))) {
        Some(name) => format!("; pass the path of a file to open another, such as {name}"),
        None => String::new(),
    };
    format!(
        "expected weights in the folder ({}), found none{found}",
        WEIGHT_FILES.join(", ")
    )
}

/// What the adapter in a folder is and what to do about it; `None` if there is none.
pub fn adapter(folder: &Path) -> Option<String> {
    let config = folder.join("adapter_config.json");
    let names = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
    ];
    if !names.iter().any(|name| folder.join(name).exists()) {
        return None;
    }
    let value = json::read(&config).unwrap_or_default();
    let base = match value["base_model_name_or_path"].as_str() {
        Some(base) => format!("{base:?}"),
        None => "another model".into(),
    };
    Some(format!(
        "an adapter of {base}; merge it into that model (merge_and_unload of peft) and pass the result"
    ))
}

/// In a folder of the hub's cache, `models--ORGANISATION--NAME`, the snapshot that `refs/main` names, or the only one; any
/// other folder as it is.
fn snapshot(path: &Path) -> Result<PathBuf> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(path.to_path_buf());
    }
    let main = path.join("refs/main");
    if main.exists() {
        let revision = input::read_text(&main, 256)?;
        let revision = revision.trim();
        let is_plain = !revision.is_empty() && revision.bytes().all(|b| b.is_ascii_hexdigit());
        let folder = snapshots.join(revision);
        if !is_plain || !folder.is_dir() {
            return Err(Error::format(
                &main,
                format!("expected the name of a folder in snapshots, found {revision:?}"),
            ));
        }
        return Ok(folder);
    }
    match &names_in(&snapshots)?[..] {
        [only] => Ok(snapshots.join(only)),
        found => Err(Error::format(
            &snapshots,
            format!(
                "expected one snapshot, found {}; pass the path of one",
                found.len()
            ),
        )),
    }
}

/// Whether files of weights have names that end so.
fn has_extension(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["safetensors", "blt", "bin", "pth", "pt", "ckpt"]
        .iter()
        .any(|known| extension == *known)
}

/// There is no such path; it may be the name of a repository.
fn not_found(path: &Path, error: std::io::Error) -> Error {
    let name = path.to_str().unwrap_or_default();
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match name.split_once('/') {
        Some((owner, repository))
            if error.kind() == std::io::ErrorKind::NotFound
                && is_word(owner)
                && is_word(repository)
                && !has_extension(path)
                && !Path::new(owner).exists() =>
        {
            Error::format(
                path,
                format!(
                    "expected a file or a folder, found none; if this is a repository of the Hugging Face hub, download \
                     it: hf download {name} --local-dir {repository}"
                ),
            )
        }
        _ => Error::io(path, error),
    }
}

/// The configuration file in a folder.
pub(super) fn find_config(folder: &Path) -> Option<PathBuf> {
    ["config.json", "params.json", "train_args.json"]
        .into_iter()
        .map(|name| folder.join(name))
        .find(|p| p.exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::Folder;

    fn folder(name: &str, files: &[(&str, &str)]) -> Folder {
        let folder = Folder::new(name);
        for (file, content) in files {
            folder.write(file, content);
        }
        folder
    }

    #[test]
    fn weights_are_found_under_the_names_people_have() {
        let shards = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        let cases: [(&str, &[&str], &[&str]); 10] = [
            (
                "one",
                &["model.safetensors", "pytorch_model.bin"],
                &["model.safetensors"],
            ),
            (
                "rope",
                &["consolidated_with_rope.pth"],
                &["consolidated_with_rope.pth"],
            ),
            (
                "bin index",
                &["pytorch_model.bin.index.json"],
                &["pytorch_model.bin.index.json"],
            ),
            (
                "fp16",
                &["model.fp16.safetensors", "x.safetensors"],
                &["model.fp16.safetensors"],
            ),
            (
                "fp16 bin",
                &["pytorch_model.fp16.bin", "training_args.bin"],
                &["pytorch_model.fp16.bin"],
            ),
            (
                "fp16 index",
                &[
                    "model.safetensors.index.fp16.json",
                    "model.fp16-00001-of-00001.safetensors",
                ],
                &["model.safetensors.index.fp16.json"],
            ),
            ("shards", &shards, &shards),
            (
                "shards and pickles",
                &[shards[0], shards[1], "pytorch_model-00001-of-00001.bin"],
                &shards,
            ),
            (
                "pickles",
                &["pytorch_model-00001-of-00001.bin"],
                &["pytorch_model-00001-of-00001.bin"],
            ),
            (
                "snapshot",
                &["snapshots/abc/model.safetensors"],
                &["snapshots/abc/model.safetensors"],
            ),
        ];
        for (case, files, expected) in cases {
            let files: Vec<(&str, &str)> = files.iter().map(|name| (*name, "")).collect();
            let folder = folder(&case.replace(' ', "-"), &files);
            let expected: Vec<PathBuf> = expected.iter().map(|name| folder.0.join(name)).collect();
            assert_eq!(weights_at(&folder.0).unwrap(), expected, "{case}");
        }
        let folder = folder(
            "refs",
            &[
                ("refs/main", "abc\n"),
                ("snapshots/abc/model.safetensors", ""),
                ("snapshots/def/model.safetensors", ""),
            ],
        );
        assert_eq!(
            weights_at(&folder.0).unwrap(),
            [folder.0.join("snapshots/abc/model.safetensors")]
        );
    }

    #[test]
    fn folders_without_weights_are_named_for_what_they_are() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let adapter = r#"{"base_model_name_or_path": "itazap/blt-1b-hf"}"#;
        let cases: [Case; 12] = [
            ("empty", &[], "found none"),
            (
                "other name",
                &[("config.json", "{}"), ("last.ckpt", "")],
                "such as last.ckpt",
            ),
            (
                "adapter of nothing",
                &[("adapter_model.bin", "")],
                "adapter of another model",
            ),
            (
                "adapter of null",
                &[("adapter_config.json", "{\"base_model_name_or_path\": null}")],
                "adapter of another model",
            ),
            (
                "adapter",
                &[
                    ("adapter_config.json", adapter),
                    ("adapter_model.safetensors", ""),
                ],
                "adapter of \"itazap/blt-1b-hf\"",
            ),
            (
                "dcp",
                &[("__0_0.distcp", ""), (".metadata", "")],
                "dcp_to_torch",
            ),
            (
                "dcp with",
                &[("__0_0.distcp", ""), ("consolidated/x", "")],
                "pass ",
            ),
            (
                "missing shard",
                &[
                    ("model-00001-of-00003.safetensors", ""),
                    ("model-00003-of-00003.safetensors", ""),
                ],
                "3 shards, found 2; model-00002-of-00003.safetensors is missing",
            ),
            (
                "two variants",
                &[
                    ("model.fp16.safetensors", ""),
                    ("model.fp8.safetensors", ""),
                ],
                "model.fp16.safetensors, model.fp8.safetensors; pass",
            ),
            (
                "two snapshots",
                &[("snapshots/a/x", ""), ("snapshots/b/x", "")],
                "one snapshot, found 2",
            ),
            (
                "bad ref",
                &[("snapshots/a/x", ""), ("refs/main", "../..")],
                "found \"../..\"",
            ),
            (
                "lost ref",
                &[("snapshots/a/x", ""), ("refs/main", "b")],
                "found \"b\"",
            ),
        ];
        for (case, files, expected) in cases {
            let folder = folder(&case.replace(' ', "-"), files);
            let message = weights_at(&folder.0).expect_err(case).to_string();
            assert!(message.contains(expected), "{case}: {message}");
        }
        let message = weights_at(Path::new("facebook/blt-1b"))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("hf download facebook/blt-1b --local-dir blt-1b"),
            "{message}"
        );
        for path in [
            "no-such",
            "/no/such",
            "./no/such",
            "../no",
            "no/such/file",
            "run/model.safetensors",
            "src/no-such",
        ] {
            let message = weights_at(Path::new(path)).unwrap_err().to_string();
            assert!(message.contains("No such file"), "{path}: {message}");
        }
    }
}
