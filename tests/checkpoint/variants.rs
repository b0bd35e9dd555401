//! Checkpoints as people have them: names that wrappers of a model changed, files of other names, folders of the hub's
//! cache, and configurations as Python writes them. They open as the same model, or the message says what they are.

use std::path::{Path, PathBuf};

use blt::checkpoint::{Checkpoint, OpenOptions, write_native};
use blt::tensor::Load;
use serde_json::{Map, Value};

use crate::support::*;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// Rewrites a safetensors file: `name` gives the new name of a tensor, or leaves it out.
fn rename(path: &Path, name: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(path).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let (mut renamed, mut kept) = (Map::new(), Vec::new());
    let mut entries: Vec<_> = header
        .into_iter()
        .filter(|(n, _)| n != "__metadata__")
        .collect();
    entries.sort_by_key(|(_, entry)| entry["data_offsets"][0].as_u64());
    for (old, mut entry) in entries {
        let Some(new) = name(&old) else { continue };
        let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
        let start = kept.len();
        kept.extend_from_slice(&data[offset(0)..offset(1)]);
        entry["data_offsets"] = serde_json::json!([start, kept.len()]);
        renamed.insert(new, entry);
    }
    let header = serde_json::to_vec(&renamed).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], &header, &kept].concat()).unwrap();
}

fn options() -> OpenOptions {
    OpenOptions::default()
}

#[test]
fn names_that_wrappers_changed_are_recognised() {
    type Rename = fn(&str) -> Option<String>;
    let cases: [(&str, Rename); 6] = [
        ("compiled", |n| Some(format!("_orig_mod.{n}"))),
        ("parallel", |n| Some(format!("module.{n}"))),
        ("both", |n| Some(format!("module._orig_mod.{n}"))),
        ("lightning", |n| Some(format!("model.{n}"))),
        ("peft", |n| Some(format!("base_model.model.{n}"))),
        ("without model", |n| {
            Some(n.strip_prefix("model.").unwrap_or(n).into())
        }),
    ];
    for model in [
        "hf-gqa/model",
        "hf-tied/model",
        "bolmo-bwen/model",
        "meta-threshadd/hub",
    ] {
        for (case, renamed) in cases {
            let folder = copy_of("renamed", &data(model));
            let file = folder.path("model.safetensors");
            if case == "without model" && model.starts_with("meta") {
                continue; // Meta's names do not have it.
            }
            rename(&file, renamed);
            let mut options = options();
            if model.starts_with("meta") {
                options.entropy_model = Some(data("meta-threshadd/entropy_hub"));
            }
            if model.starts_with("bolmo") {
                options.tokenizer = Some(data("bolmo-bwen/tokenizer"));
            }
            let name = format!("{model}, {case}");
            let original = open(&name, &data(model), &options);
            assert_same(&name, &open(&name, &folder.0, &options), &original);
        }
    }
}

#[test]
fn a_wrapper_that_lacks_a_tensor_is_named() {
    let folder = copy_of("lacking", &data("hf-gqa/model"));
    rename(&folder.path("model.safetensors"), |n| {
        (n != "model.local_decoder.norm.weight").then(|| format!("module.{n}"))
    });
    let message = error("lacking", Checkpoint::open(&folder.0, &options()));
    for part in [
        "local_decoder.norm.weight",
        "names begin with \"module.\"",
        "save the unwrapped one",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn nobody_is_told_to_pass_an_entropy_model_that_the_file_holds() {
    let folder = copy_of("patcher", &data("hf-gqa/model"));
    rename(&folder.path("model.safetensors"), |n| {
        Some(n.replace("patcher.embed_tokens", "patcher.tok_embeddings"))
    });
    let message = error("patcher", Checkpoint::open(&folder.0, &options()));
    assert!(message.contains("model.patcher."), "{message}");
    assert!(!message.contains("--entropy-model"), "{message}");
}

/// `model.model.patcher.save_pretrained(...)` of transformers.
#[test]
fn an_entropy_model_saved_by_itself_opens() {
    let folder = copy_of("alone", &data("hf-gqa/model"));
    rename(&folder.path("model.safetensors"), |n| {
        n.strip_prefix("model.patcher.").map(Into::into)
    });
    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path("config.json")).unwrap()).unwrap();
    let mut patcher = config["patcher_config"].clone();
    patcher["model_type"] = "blt_patcher".into();
    std::fs::write(folder.path("config.json"), patcher.to_string()).unwrap();
    let options = OpenOptions {
        entropy_model: Some(folder.0.clone()),
        ..options()
    };
    let original = open("hf-gqa", &data("hf-gqa/model"), &OpenOptions::default());
    let joined = open("alone", &data("hf-gqa/model"), &options);
    assert_eq!(joined.config(), original.config());
    assert_same("alone", &joined, &original);
    assert!(joined.files().len() == 2);
    let message = error(
        "alone",
        Checkpoint::open(&folder.0, &OpenOptions::default()),
    );
    assert!(
        message.contains("an entropy model; pass it with --entropy-model"),
        "{message}"
    );
}

#[test]
fn files_of_other_names_open() {
    let original = open("hf-gqa", &data("hf-gqa/model"), &options());
    for name in [
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "pytorch_model-00001-of-00001.bin",
    ] {
        let folder = copy_of("other-name", &data("hf-gqa/model"));
        std::fs::rename(folder.path("model.safetensors"), folder.path(name)).unwrap();
        assert_same(name, &open(name, &folder.0, &options()), &original);
    }
    let original = open("hf-sharded", &data("hf-sharded/model"), &options());
    let folder = copy_of("shards", &data("hf-sharded/model"));
    let index = folder.path("model.safetensors.index.json");
    for name in [
        "model.safetensors.index.fp16.json",
        "pytorch_model.bin.index.json",
    ] {
        std::fs::rename(&index, folder.path(name)).unwrap();
        assert_same(name, &open(name, &folder.0, &options()), &original);
        std::fs::rename(folder.path(name), &index).unwrap();
    }
    std::fs::remove_file(index).unwrap();
    let opened = open("no index", &folder.0, &options());
    assert_same("no index", &opened, &original);
    assert_eq!(opened.files().len(), 9);
    std::fs::copy(
        folder.path("model-00001-of-00009.safetensors"),
        folder.path("model-00002-of-00009.safetensors"),
    )
    .unwrap();
    let message = error("twice", Checkpoint::open(&folder.0, &options()));
    assert!(message.contains("each tensor in one shard"), "{message}");
    std::fs::remove_file(folder.path("model-00002-of-00009.safetensors")).unwrap();
    let message = error("missing", Checkpoint::open(&folder.0, &options()));
    assert!(
        message.contains("model-00002-of-00009.safetensors is missing"),
        "{message}"
    );
}

#[test]
fn a_repository_in_the_hubs_cache_opens() {
    let cache = Folder::new("models--someone--blt");
    let snapshot = cache.path("snapshots/0123abcd");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(cache.path("refs")).unwrap();
    std::fs::write(cache.path("refs/main"), "0123abcd").unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(data("hf-gqa/model").join(name), snapshot.join(name)).unwrap();
    }
    let original = open("hf-gqa", &data("hf-gqa/model"), &options());
    assert_same("cache", &open("cache", &cache.0, &options()), &original);
}

#[test]
fn configurations_as_python_and_editors_write_them_open() {
    let folder = copy_of("python", &data("hf-gqa/model"));
    let text = std::fs::read_to_string(folder.path("config.json")).unwrap();
    let mut config: Map<String, Value> = serde_json::from_str(&text).unwrap();
    config.remove("patching_threshold");
    let text = Value::Object(config).to_string();
    for (threshold, expected) in [
        ("Infinity", f32::INFINITY),
        ("-Infinity", f32::NEG_INFINITY),
        ("{\"__float__\": \"Infinity\"}", f32::INFINITY),
        ("1.5", 1.5),
    ] {
        let text = text.replacen(
            '{',
            &format!("\u{feff}{{\"junk\": NaN, \"patching_threshold\": {threshold},"),
            1,
        );
        std::fs::write(folder.path("config.json"), text).unwrap();
        let config = open(threshold, &folder.0, &options()).config().clone();
        assert_eq!(config.patcher.threshold, expected, "{threshold}");
    }
}

#[test]
fn a_file_cut_short_says_how_long_it_should_be() {
    let folder = copy_of("cut", &data("hf-gqa/model"));
    let path = folder.path("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
    let message = error("cut", Checkpoint::open(&folder.0, &options()));
    let expected = format!(
        "expected a file of {} bytes, found {}",
        bytes.len(),
        bytes.len() - 1000
    );
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn weights_that_are_read_are_those_that_are_mapped() {
    for (name, path, options) in all_cases() {
        let read = OpenOptions {
            load: Load::Read,
            ..options.clone()
        };
        assert_same(
            &name,
            &open(&name, &path, &read),
            &open(&name, &path, &options),
        );
    }
}

/// A native copy of a small model; its bytes.
fn native_copy(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let original = open("hf-maxpatch", &data("hf-maxpatch/model"), &options());
    let path = folder.path("model.blt");
    let tensors = original.tensors().map(|(n, t)| (n.to_string(), t.clone()));
    write_native(&path, original.config(), tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

/// Every damaged byte of a native file is found, also those that change neither a name nor a shape.
#[test]
fn checksums_find_what_no_shape_betrays() {
    let folder = Folder::new("checksums");
    let (path, good) = native_copy(&folder);
    let verified = OpenOptions {
        verify: true,
        ..options()
    };
    let checkpoint = open("good", &path, &verified);
    assert_eq!(
        checkpoint.verify(|_| Ok(())).unwrap(),
        checkpoint.names().len()
    );
    let silent = std::cell::Cell::new(0);
    let damaged = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        let opens = Checkpoint::from_bytes(bytes.clone(), &options()).is_ok();
        silent.set(silent.get() + usize::from(opens));
        let result = Checkpoint::from_bytes(bytes, &verified);
        assert!(result.is_err(), "byte {at} of {}", good.len());
        result.unwrap_err().to_string()
    };
    let step = good.len() / 1500 + 1;
    for at in (0..good.len()).step_by(step) {
        damaged(at);
    }
    let message = damaged(good.len() / 2);
    assert!(
        message.contains("tensor \"") && message.contains("is damaged"),
        "{message}"
    );
    assert!(silent.get() > 1000, "{}", silent.get());
    // The last byte is part of the checksums themselves.
    damaged(good.len() - 1);
    // Other layouts have none.
    let message = error("hf", Checkpoint::open(&data("hf-gqa/model"), &verified));
    assert!(
        message.contains("expected checksums, found none"),
        "{message}"
    );
}

/// Files written before there were checksums, and those of readers that do not know them.
#[test]
fn a_native_file_without_checksums_opens() {
    let folder = Folder::new("no-checksums");
    let (path, good) = native_copy(&folder);
    let length = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let mut header: Map<String, Value> = serde_json::from_slice(&good[8..8 + length]).unwrap();
    let entry = header.remove("blt.checksums").unwrap();
    let end = 8 + length + entry["data_offsets"][0].as_u64().unwrap() as usize;
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [
        &(header.len() as u64).to_le_bytes(),
        &header[..],
        &good[8 + length..end],
    ]
    .concat();
    let old = Checkpoint::from_bytes(bytes, &options()).unwrap();
    assert_eq!(old.verify(|_| Ok(())).unwrap(), 0);
    assert_same("old", &old, &open("new", &path, &options()));
}
