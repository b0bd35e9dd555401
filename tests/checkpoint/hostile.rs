//! Damaged, incomplete and hostile files: one clear error each, no panic.

use std::path::Path;

use blt::checkpoint::{
    Checkpoint, OpenOptions, SafetensorsWriter, TensorSpec, config_to_json, expected_tensors,
    native_file, native_metadata, write_native,
};
use blt::config::Config;
use blt::tensor::{DType, Tensor};

use crate::support::*;

/// A native file of a model as small as the fixtures have it, in memory for good.
fn native_bytes() -> &'static [u8] {
    let (name, path, options) = cases().into_iter().next().unwrap();
    let c = open(&name, &path, &options);
    let folder = Folder::new(&format!("bytes-{:?}", std::thread::current().id()));
    let file = folder.path("x");
    let tensors = c.tensors().map(|(n, t)| (n.to_string(), t.clone()));
    write_native(&file, c.config(), tensors).unwrap();
    std::fs::read(file).unwrap().leak()
}

fn header_end(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn a_native_file_cut_short_anywhere_is_refused() {
    let bytes = native_bytes();
    assert!(Checkpoint::from_bytes(bytes, &OpenOptions::default()).is_ok());
    let ends = (0..header_end(bytes)).chain((header_end(bytes)..bytes.len()).step_by(64));
    for n in ends.chain([bytes.len() - 1]) {
        error(
            &format!("{n} bytes"),
            Checkpoint::from_bytes(&bytes[..n], &OpenOptions::default()),
        );
    }
}

#[test]
fn a_damaged_header_never_panics() {
    let bytes = native_bytes();
    let end = header_end(bytes);
    for at in (0..end).step_by(3) {
        let mut damaged = bytes.to_vec();
        damaged[at] = [b'9', b'"', b'{', 0xff][at / 3 % 4];
        // Some damage is harmless (a longer window, say); the rest is an error.
        if let Err(e) = Checkpoint::from_bytes(damaged, &OpenOptions::default()) {
            assert!(!e.to_string().is_empty());
        }
    }
}

#[test]
fn a_pth_file_cut_short_anywhere_is_refused() {
    let (name, path, _) = case_with("/consolidated", |_| true);
    let pth = path.join("consolidated.pth");
    let folder = copy_of("pth", &path);
    let copy = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.path("consolidated.pth"));
    let copy = copy.unwrap();
    let whole = std::fs::metadata(&pth).unwrap().len();
    for n in (0..whole).rev().step_by(64) {
        copy.set_len(n).unwrap();
        let result = Checkpoint::open(&folder.0, &OpenOptions::default());
        error(&format!("{name}: {n} of {whole} bytes"), result);
    }
}

/// Writes the tensors of a native file under other conditions.
fn rewrite(
    path: &Path,
    config: &Config,
    change: impl Fn(&str, &Tensor) -> Option<(String, Tensor)>,
    source: &Checkpoint,
) {
    let list: Vec<_> = source.tensors().filter_map(|(n, t)| change(n, t)).collect();
    let specs = list.iter().map(|(n, t)| TensorSpec::of(n, t)).collect();
    let mut writer = SafetensorsWriter::create(path, &native_metadata(config), specs).unwrap();
    for (name, tensor) in &list {
        writer.write(name, tensor.bytes()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn missing_and_misshapen_tensors_are_named_with_their_file() {
    let source = Checkpoint::from_bytes(native_bytes(), &OpenOptions::default()).unwrap();
    let folder = Folder::new("misshapen");
    let file = folder.path("model.blt");
    for tensor in expected_tensors(source.config()) {
        let (victim, shape) = (tensor.name, tensor.shape);
        let keep = |n: &str, t: &Tensor| (n != victim).then(|| (n.to_string(), t.clone()));
        rewrite(&file, source.config(), keep, &source);
        let message = error(&victim, Checkpoint::open(&file, &OpenOptions::default()));
        for part in [
            &victim,
            "model.blt",
            "no such tensor",
            &format!("{shape:?}"),
        ] {
            assert!(message.contains(part), "{victim}: {message}");
        }
        let transpose = |n: &str, t: &Tensor| {
            let mut shape = t.shape().to_vec();
            shape.insert(0, 1);
            let t = if n == victim {
                t.reshape(shape).unwrap()
            } else {
                t.clone()
            };
            Some((n.to_string(), t))
        };
        rewrite(&file, source.config(), transpose, &source);
        let message = error(&victim, Checkpoint::open(&file, &OpenOptions::default()));
        for part in [&victim, "model.blt", "found [1, ", &format!("{shape:?}")] {
            assert!(message.contains(part), "{victim}: {message}");
        }
        // The writer refuses to make such files in the first place.
        let tensors = source.tensors().filter_map(|(n, t)| keep(n, t));
        let message = write_native(&file, source.config(), tensors)
            .unwrap_err()
            .to_string();
        assert!(message.contains(&victim), "{message}");
    }
    assert!(source.tensor("encoder.nothing", &[1]).is_err());
    assert!(source.tensor("encoder.tok_embeddings", &[1]).is_err());
}

#[test]
fn foreign_names_are_in_the_message() {
    let (name, path, _) = case_with("/model", |c| c.files().len() == 1);
    let folder = copy_of("foreign", &path);
    let file = folder.path("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["global_config"]["num_hidden_layers"] = 77.into();
    std::fs::write(&file, config.to_string()).unwrap();
    let message = error(&name, Checkpoint::open(&folder.0, &OpenOptions::default()));
    assert!(
        message.contains("model.global_transformer.layers."),
        "{message}"
    );
    assert!(message.contains("model.safetensors"), "{message}");
}

#[test]
fn native_files_of_other_versions_and_hostile_configurations_are_refused() {
    let source = Checkpoint::from_bytes(native_bytes(), &OpenOptions::default()).unwrap();
    let good = config_to_json(source.config());
    let with = |pointer: &str, text: &str| {
        let mut value: serde_json::Value = serde_json::from_str(&good).unwrap();
        *value.pointer_mut(pointer).unwrap() = serde_json::from_str(text).unwrap();
        value.to_string()
    };
    let threshold = |text: &str| {
        let key = "\"threshold\":";
        let start = good.find(key).unwrap() + key.len();
        let end = start + good[start..].find([',', '}']).unwrap();
        format!("{}{text}{}", &good[..start], &good[end..])
    };
    let cases = [
        ("newer version", "3", good.clone(), "\"3\""),
        ("NaN", "1", threshold("NaN"), "threshold"),
        ("infinite", "1", threshold("1e999"), "JSON"),
        ("infinite as f32", "1", threshold("1e39"), "threshold"),
        ("NaN as text", "1", threshold("\"NaN\""), "threshold"),
        ("no threshold", "1", threshold("null"), "threshold"),
        ("zero heads", "1", with("/global/n_heads", "0"), "n_heads"),
        (
            "zero kv heads",
            "1",
            with("/encoder/n_kv_heads", "0"),
            "n_kv_heads",
        ),
        (
            "huge width",
            "1",
            with("/global/dim", "9007199254740992"),
            "dim",
        ),
        (
            "wider than 64 bits",
            "1",
            with("/global/dim", "1e300"),
            "dim",
        ),
        (
            "huge table",
            "1",
            with("/hash/vocab", "2147483648"),
            "hash_embeddings",
        ),
        (
            "many layers",
            "1",
            with("/global/n_layers", "4096"),
            "global.layers",
        ),
        (
            "too many layers",
            "1",
            with("/global/n_layers", "4097"),
            "n_layers",
        ),
        ("zero bytes", "1", with("/max_bytes", "0"), "max_bytes"),
        (
            "differential attention without its vectors",
            "1",
            good.replacen(
                "\"dim\"",
                "\"differential\":{\"head_norm\":true},\"dim\"",
                1,
            ),
            "lambda_q1",
        ),
        ("not JSON", "1", "model".into(), "JSON"),
        ("deep", "1", "[".repeat(10_000), "JSON"),
        ("a list", "1", "[]".into(), "an object"),
    ];
    let folder = Folder::new("hostile");
    let file = folder.path("x");
    for (case, version, config, expected) in cases {
        let metadata = [
            ("blt.format_version".to_string(), version.to_string()),
            ("blt.config".to_string(), config),
        ];
        let specs = source
            .tensors()
            .map(|(n, t)| TensorSpec::of(n, t))
            .collect();
        let mut writer = SafetensorsWriter::create(&file, &metadata, specs).unwrap();
        for (name, tensor) in source.tensors() {
            writer.write(name, tensor.bytes()).unwrap();
        }
        writer.finish().unwrap();
        let message = error(case, Checkpoint::open(&file, &OpenOptions::default()));
        assert!(message.contains(expected), "{case}: {message}");
    }
    // A native file carries its own configuration.
    let with_config = OpenOptions {
        config: Some(file.clone()),
        ..Default::default()
    };
    write_native(
        &file,
        source.config(),
        source.tensors().map(|(n, t)| (n.to_string(), t.clone())),
    )
    .unwrap();
    assert!(error("--config", Checkpoint::open(&file, &with_config)).contains("its own"));
}

#[test]
fn quantised_tensors_are_exactly_what_the_file_says_or_refused() {
    use blt_kernels::BlockFormat;
    const VICTIM: &str = "global.layers.0.w1";
    let source = Checkpoint::from_bytes(native_bytes(), &OpenOptions::default()).unwrap();
    let tensors = source.tensors().map(|(name, t)| {
        let dtype = match name == VICTIM {
            true => DType::Tiles(BlockFormat::Q8_0),
            false => t.dtype(),
        };
        let t = Tensor::from_values(dtype, t.shape().to_vec(), &t.to_f32_vec()).unwrap();
        (name.to_string(), t)
    });
    let tensors: Vec<_> = tensors.collect();
    let list = (tensors.iter()).map(|(n, t)| (n.clone(), t.dtype(), t.shape().to_vec()));
    let (metadata, specs) = native_file(source.config(), list).unwrap();
    let declared = &metadata.iter().find(|(k, _)| k == "blt.tensors").unwrap().1;
    let victim = tensors.iter().find(|(n, _)| n == VICTIM).unwrap().1.clone();
    let (rows, cols) = (victim.rows(), victim.cols());
    let shape = format!("[{rows},{cols}]");
    assert!(declared.contains(&shape), "{declared}");

    let folder = Folder::new("quantised");
    let file = folder.path("model.blt");
    let write = |metadata: &[(String, String)], specs: &[TensorSpec], n_bytes: usize| {
        let mut writer = SafetensorsWriter::create(&file, metadata, specs.to_vec()).unwrap();
        for spec in specs {
            let tensor = &tensors.iter().find(|(n, _)| *n == spec.name).unwrap().1;
            let mut bytes = tensor.bytes().to_vec();
            if spec.name == VICTIM {
                bytes.resize(n_bytes, 0);
            }
            writer.write(&spec.name, &bytes).unwrap();
        }
        writer.finish().unwrap();
        Checkpoint::open(&file, &OpenOptions::default())
    };
    let n = victim.bytes().len();
    let good = write(&metadata, &specs, n).unwrap();
    let found = good.tensor(VICTIM, &[rows, cols]).unwrap();
    assert_eq!(
        (found.dtype(), found.bytes()),
        (victim.dtype(), victim.bytes())
    );

    // What the list says does not fit the file.
    let with = |key: &str, from: &str, to: &str| {
        let mut metadata = metadata.clone();
        let value = &mut metadata.iter_mut().find(|(k, _)| k == key).unwrap().1;
        assert!(value.contains(from), "{value}");
        *value = value.replacen(from, to, 1);
        metadata
    };
    let more_rows = format!("[{},{cols}]", rows + 16);
    let (huge, overflow) = (
        format!("[{},{cols}]", 1u64 << 52),
        format!("[{0},{0}]", 1u64 << 52),
    );
    for (case, metadata, expected) in [
        (
            "another format",
            with("blt.tensors", "q8_0", "q4_0"),
            "bytes (U8) for q4_0",
        ),
        (
            "more rows",
            with("blt.tensors", &shape, &more_rows),
            "bytes (U8) for q8_0",
        ),
        ("huge", with("blt.tensors", &shape, &huge), "q8_0"),
        (
            "overflowing",
            with("blt.tensors", &shape, &overflow),
            "a shape that q8_0 can hold",
        ),
        (
            "a vector",
            with("blt.tensors", &shape, &format!("[{cols}]")),
            "can hold",
        ),
        (
            "no such tensor",
            with("blt.tensors", VICTIM, "nothing"),
            "no such tensor",
        ),
        (
            "not bytes",
            with("blt.tensors", VICTIM, "global.layers.0.w2"),
            "bytes (U8)",
        ),
        (
            "not listed",
            with("blt.tensors", declared, "{}"),
            "found U8",
        ),
        (
            "not a list",
            with("blt.tensors", declared, "[]"),
            "an object",
        ),
        (
            "unknown format",
            with("blt.tensors", "q8_0", "q1_0"),
            "format",
        ),
        (
            "unknown arrangement",
            with("blt.tensors", "tiles", "rings"),
            "arrangement",
        ),
        (
            "unknown layout",
            with("blt.block_layout", "1", "9"),
            "blt.block_layout",
        ),
        (
            "old version",
            with("blt.format_version", "2", "1"),
            "found U8",
        ),
    ] {
        let message = error(case, write(&metadata, &specs, n));
        assert!(message.contains(expected), "{case}: {message}");
    }
    let missing: Vec<_> = (metadata.iter().filter(|(k, _)| k != "blt.tensors").cloned()).collect();
    assert!(error("no list", write(&missing, &specs, n)).contains("blt.tensors"));
    // Bytes missing or left over.
    for other in [0, 64, n - 64, n - 1, n + 1, n + 64] {
        let mut specs = specs.clone();
        let spec = specs.iter_mut().find(|s| s.name == VICTIM).unwrap();
        (spec.shape, spec.n_bytes) = (vec![other], other as u64);
        let message = error("bytes", write(&metadata, &specs, other));
        assert!(message.contains(VICTIM), "{other}: {message}");
    }
    // A table cannot be multiplied with, nor a norm be quantised.
    let table = Tensor::from_values(
        DType::Table(BlockFormat::Q8_0),
        vec![rows, cols],
        &victim.to_f32_vec(),
    );
    let swapped = tensors.iter().map(|(n, t)| match n == VICTIM {
        true => (n.clone(), table.as_ref().unwrap().clone()),
        false => (n.clone(), t.clone()),
    });
    write_native(&file, source.config(), swapped).unwrap();
    let opened = Checkpoint::open(&file, &OpenOptions::default()).unwrap();
    let compute = blt::ops::Compute::new(Some(1), None).unwrap();
    let message = blt::Model::load(&opened, compute).unwrap_err().to_string();
    assert!(
        message.contains(VICTIM) && message.contains("table"),
        "{message}"
    );
    assert!(TensorSpec::typed("norm", DType::Tiles(BlockFormat::Q8_0), &[64]).is_err());
}

#[test]
fn folders_and_files_that_are_no_checkpoints_are_refused() {
    let folder = Folder::new("no-checkpoint");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path(name), bytes).unwrap();
    let at = |path: &Path| Checkpoint::open(path, &OpenOptions::default());

    assert!(error("empty folder", at(&folder.0)).contains("expected weights"));
    assert!(error("nothing", at(&folder.path("nothing"))).contains("nothing"));
    write("model.safetensors", b"");
    assert!(error("empty file", at(&folder.0)).contains("empty file"));
    for (bytes, expected) in [
        (&b"{\"model_type\": \"blt\"}"[..], "found JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x80\x02}q\x00.", "newer torch"),
        (b"PK\x03\x04", "zip archive"),
        (b"hello, world", "is this a weights file?"),
    ] {
        write("model.safetensors", bytes);
        let message = error(expected, at(&folder.0));
        assert!(message.contains(expected), "{message}");
    }

    // Sound weights, and something else for a configuration.
    let header = b"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}  ";
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend([0; 4]);
    write("model.safetensors", &weights);
    assert!(error("no configuration", at(&folder.0)).contains("--config FILE"));
    for (config, expected) in [
        (&b"not json"[..], "expected JSON"),
        (b"", "expected JSON"),
        (b"[1, 2]", "an object"),
        (b"{}", "a BLT's configuration"),
        (b"{\"args\": 3}", "a BLT's configuration"),
        (b"{\"args\": {}}", "args.vocab_size"),
        (b"{\"model_type\": \"llama\"}", "a BLT's configuration"),
        (b"{\"model_type\": \"blt\"}", "encoder_config"),
        (
            b"{\"model_type\": \"blt\", \"vocab_size\": NaN}",
            "vocab_size",
        ),
        (&[b'['; 200_000], "expected JSON"),
        (&[0xff; 10], "expected JSON"),
    ] {
        write("config.json", config);
        let message = error(expected, at(&folder.0));
        assert!(message.contains(expected), "{message}");
    }
    let giant = std::fs::File::create(folder.path("config.json")).unwrap();
    giant.set_len(1 << 40).unwrap();
    assert!(error("giant configuration", at(&folder.0)).contains("at most"));
}

#[test]
fn shards_are_only_read_from_their_own_folder() {
    let (name, path, _) = case_with("/model", |c| c.files().len() > 1);
    let folder = copy_of("shards", &path);
    let index = folder.path("model.safetensors.index.json");
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    let at = || Checkpoint::open(&folder.0, &OpenOptions::default());
    assert!(at().is_ok());
    assert!(
        Checkpoint::open(&index, &OpenOptions::default()).is_ok(),
        "the index itself"
    );

    let map = good["weight_map"].as_object().unwrap();
    let own = map["lm_head.weight"].as_str().unwrap();
    let absolute = path.join(own);
    let mut shards = map.values().map(|v| v.as_str().unwrap());
    let another = shards.find(|&s| s != own).unwrap();
    for (shard, expected) in [
        (format!("../{own}").as_str(), "plain name"),
        (absolute.to_str().unwrap(), "plain name"),
        ("", "plain name"),
        ("..", "plain name"),
        ("missing.safetensors", "missing.safetensors"),
        ("config.json", "found JSON"),
        // A shard that is there but holds another tensor.
        (another, "no such tensor"),
    ] {
        let mut value = good.clone();
        value["weight_map"]["lm_head.weight"] = shard.into();
        std::fs::write(&index, value.to_string()).unwrap();
        let message = error(&name, at());
        assert!(message.contains(expected), "{shard}: {message}");
    }
    for (text, expected) in [
        ("{}", "weight_map"),
        ("{\"weight_map\": {}}", "empty weight_map"),
        ("{\"weight_map\": {\"a\": 3}}", "weight_map.a"),
        ("{\"weight_map\": [", "JSON"),
    ] {
        std::fs::write(&index, text).unwrap();
        let message = error(text, at());
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn a_projection_of_token_embeddings_is_refused() {
    let (name, path, options) = case_with("/hub", |_| true);
    let source = open(&name, &path, &options);
    let weights = std::fs::read(path.join("model.safetensors")).unwrap();
    let end = header_end(&weights);
    let header: serde_json::Value = serde_json::from_slice(&weights[8..end]).unwrap();
    let folder = copy_of("projection", &path);
    let extra = "local_encoder.token_embedding_projection.weight";
    let extended = header.to_string().replace(
        "\"local_encoder.tok_embeddings.weight\"",
        &format!("\"{extra}\""),
    );
    let mut bytes = (extended.len() as u64).to_le_bytes().to_vec();
    bytes.extend(extended.as_bytes());
    bytes.extend(&weights[end..]);
    std::fs::write(folder.path("model.safetensors"), bytes).unwrap();
    let patching = Some(source.config().patcher.mode);
    let message = error(
        &name,
        Checkpoint::open(
            &folder.0,
            &OpenOptions {
                patching,
                ..options
            },
        ),
    );
    assert!(
        message.contains(extra) && message.contains("not supported"),
        "{message}"
    );
}
