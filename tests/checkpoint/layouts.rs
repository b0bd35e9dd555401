//! Every layout opens; the same weights in another layout are the same tensors.

use blt::checkpoint::{
    Checkpoint, Layout, ModelTensor, OpenOptions, expected_tensors, read_config, write_native,
};
use blt::config::{Config, PatchingMode};

use crate::common;
use crate::support::*;

#[test]
fn every_layout_serves_every_tensor_in_its_shape() {
    for (name, path, options) in cases() {
        let checkpoint = open(&name, &path, &options);
        let expected = match name.rsplit_once('/').unwrap().1 {
            "model" => Layout::Hf,
            "hub" => Layout::MetaHub,
            _ => Layout::MetaConsolidated,
        };
        assert_eq!(checkpoint.layout(), expected, "{name}");
        let list = expected_tensors(checkpoint.config());
        assert_eq!(
            checkpoint.names(),
            list.iter().map(|t| t.name.clone()).collect::<Vec<_>>(),
            "{name}"
        );
        for ModelTensor {
            name: tensor,
            shape,
            ..
        } in &list
        {
            let t = checkpoint.tensor(tensor, shape).unwrap();
            assert_eq!(t.shape(), shape, "{name}: {tensor}");
            let values = t.to_f32_vec();
            assert_eq!(
                values.len(),
                shape.iter().product::<usize>(),
                "{name}: {tensor}"
            );
            assert!(values.iter().all(|v| v.is_finite()), "{name}: {tensor}");
        }
        let entropy = checkpoint.config().patcher.mode == PatchingMode::Entropy;
        assert!(!entropy || checkpoint.config().entropy.is_some(), "{name}");
    }
}

#[test]
fn a_native_copy_has_the_same_configuration_and_bits() {
    let folder = Folder::new("native");
    for (name, path, options) in all_cases() {
        let original = open(&name, &path, &options);
        let file = folder.path("model.blt");
        let tensors = original.tensors().map(|(n, t)| (n.to_string(), t.clone()));
        // The other way round: the order must not matter.
        let tensors: Vec<_> = tensors.collect();
        write_native(&file, original.config(), tensors.into_iter().rev()).unwrap();

        let copy = open(&name, &file, &OpenOptions::default());
        assert_eq!(copy.layout(), Layout::Native, "{name}");
        assert_eq!(copy.config(), original.config(), "{name}");
        assert_same(&name, &copy, &original);

        let bytes = std::fs::read(&file).unwrap();
        let start = bytes.as_ptr() as usize;
        for (tensor, t) in Checkpoint::from_bytes(bytes.clone(), &OpenOptions::default())
            .unwrap()
            .tensors()
        {
            assert_eq!(
                t.bytes(),
                original.tensor(tensor, t.shape()).unwrap().bytes(),
                "{name}"
            );
        }
        // In a file that is a multiple of 64 bytes into memory, so is every tensor whose size is.
        let bytes: &'static [u8] = bytes.leak();
        let in_memory = Checkpoint::from_bytes(bytes, &OpenOptions::default()).unwrap();
        for (tensor, t) in in_memory
            .tensors()
            .filter(|(_, t)| t.bytes().len() % 64 == 0)
        {
            let offset = t.bytes().as_ptr() as usize - start;
            assert_eq!(offset % 64, 0, "{name}: {tensor} at {offset}");
        }
    }
}

#[test]
fn layouts_of_the_same_weights_serve_the_same_tensors() {
    let mut n_compared = 0;
    for case in common::cases() {
        let mut layouts = case.checkpoints().into_iter();
        let (_, first) = layouts.next().unwrap();
        for (layout, other) in layouts {
            assert_same(&format!("{}/{layout}", case.name), &first, &other);
            n_compared += 1;
        }
    }
    assert!(n_compared > 0, "no case in two layouts");
}

#[test]
fn every_layout_is_in_the_repository() {
    let found: Vec<(Layout, usize, bool)> = (cases().iter())
        .map(|(name, path, options)| {
            let c = open(name, path, options);
            (
                c.layout(),
                c.files().len(),
                path.join("entropy_model").is_dir(),
            )
        })
        .collect();
    let has = |wanted: &dyn Fn(&(Layout, usize, bool)) -> bool| found.iter().any(wanted);
    assert!(has(&|&(layout, n, _)| layout == Layout::Hf && n == 1));
    assert!(
        has(&|&(layout, n, _)| layout == Layout::Hf && n > 1),
        "shards"
    );
    for layout in [Layout::MetaHub, Layout::MetaConsolidated] {
        assert!(has(&|&(l, _, beside)| l == layout && beside), "{layout}");
    }
    let separate = |(name, _, options): &(String, _, OpenOptions)| {
        name.ends_with("/hub") && options.entropy_model.is_some()
    };
    assert!(cases().iter().any(separate), "a separate entropy model");
}

#[test]
fn fused_and_tied_tensors_are_views_of_one() {
    for (name, path, options) in cases() {
        let c = open(&name, &path, &options);
        if c.layout() != Layout::Hf {
            continue;
        }
        let (dim, vocab) = (c.config().encoder.dim, c.config().hash.vocab);
        let table = |t: usize| {
            let name = format!("encoder.hash_embeddings.{t}");
            c.tensor(&name, &[vocab, dim]).unwrap()
        };
        for t in 1..c.config().hash.n_tables() {
            assert_eq!(
                table(t - 1).bytes().as_ptr_range().end,
                table(t).bytes().as_ptr(),
                "{name}: table {t} follows table {}",
                t - 1
            );
        }
        let text = std::fs::read_to_string(path.join("config.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let input = c.tensor("encoder.tok_embeddings", &[260, dim]).unwrap();
        let output = c.tensor("decoder.output", &[260, dim]).unwrap();
        assert_eq!(
            input.bytes().as_ptr() == output.bytes().as_ptr(),
            value["tie_word_embeddings"] == true,
            "{name}"
        );
    }
}

#[test]
#[ignore = "needs the published configurations: BLT_FIXTURES=FOLDER with a folder configs"]
fn published_configurations_have_the_released_values() {
    let root = std::env::var_os("BLT_FIXTURES").expect("BLT_FIXTURES names the folder");
    let configs = std::path::PathBuf::from(root).join("configs");
    let read = |file: &str, entropy: Option<&str>| -> Config {
        let entropy = entropy.map(|e| configs.join(e));
        read_config(&configs.join(file), entropy.as_deref())
            .unwrap_or_else(|e| panic!("{file}: {e}"))
    };
    fn pick<T>(big: bool, small: T, large: T) -> T {
        if big { large } else { small }
    }
    let mut count = 0;
    for file in std::fs::read_dir(&configs).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".json") || name.starts_with("meta-entropy") {
            continue;
        }
        count += 1;
        let meta = name.starts_with("meta-");
        let entropy = match name.contains("hub") {
            true => "meta-entropy.hub-config.json",
            false => "meta-entropy.params.json",
        };
        let c = read(&name, meta.then_some(entropy));
        let big = name.contains("7b");

        let e = c.entropy.as_ref().expect(&name);
        assert_eq!(
            (e.dim, e.n_layers, e.n_heads, e.hidden_dim),
            (768, 14, 12, 2048),
            "{name}"
        );
        assert_eq!(
            (e.window, e.rope_theta, e.norm_eps),
            (Some(512), 1e4, 1e-5),
            "{name}"
        );
        let size = |t: &blt::config::TransformerConfig| {
            assert_eq!(
                (t.rope_theta, t.norm_eps, t.n_kv_heads),
                (5e5, 1e-5, t.n_heads),
                "{name}"
            );
            assert_eq!(t.head_dim, t.dim / t.n_heads, "{name}");
            (t.dim, t.n_layers, t.n_heads, t.hidden_dim)
        };
        let encoder = pick(big, (1024, 1, 16, 2816), (1280, 1, 20, 3584));
        assert_eq!(size(&c.encoder), encoder, "{name}");
        let decoder = pick(big, (1024, 9, 16, 2816), (1280, 6, 20, 3584));
        assert_eq!(size(&c.decoder), decoder, "{name}");
        let global = pick(big, (2048, 25, 16, 5632), (4096, 32, 32, 11008));
        assert_eq!(size(&c.global), global, "{name}");
        let windows = [c.encoder.window, c.decoder.window, c.global.window];
        assert_eq!(windows, [Some(512), Some(512), None], "{name}");
        for part in [e, &c.encoder, &c.global, &c.decoder] {
            assert_eq!(part.eos_segments, meta, "{name}");
        }
        assert_eq!(c.cross_attn_k, pick(big, 2, 4), "{name}");
        assert_eq!(c.has_global_projection(), big, "{name}");
        for (cross, all) in [(&c.encoder_cross, false), (&c.decoder_cross, true)] {
            let heads = pick(big, 16, 20);
            assert_eq!((cross.n_heads, cross.n_kv_heads), (heads, heads), "{name}");
            assert_eq!((cross.all_layers, cross.window), (all, None), "{name}");
            assert_eq!((cross.head_dim, cross.norm_eps), (64, 1e-5), "{name}");
        }
        assert_eq!(c.hash.group_sizes, [3, 4, 5, 6, 7, 8], "{name}");
        assert_eq!((c.hash.vocab, c.hash.n_functions), (500_002, 1), "{name}");
        assert_eq!(c.patcher.mode, PatchingMode::Entropy, "{name}");
        assert_eq!(c.patcher.threshold.to_bits(), 0x3faa_efc4, "{name}");
        assert_eq!(c.patcher.threshold_add, None, "{name}");
        assert_eq!(c.patcher.max_patch_length, None, "{name}");
        assert!(!c.patcher.monotonicity, "{name}");
        assert_eq!((c.max_bytes, c.max_patches), (24_576, 4096), "{name}");

        // The counts of the released files: 386 (405) and 129 tensors, 4,633,391,872 parameters.
        let list = expected_tensors(&c);
        assert_eq!(list.len(), pick(big, 386, 405) + 129, "{name}");
        let parameters: usize = list.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        assert_eq!(
            parameters,
            pick(big, 4_633_391_872, 10_653_082_624),
            "{name}"
        );
    }
    assert!(count >= 5, "found {count} configurations");
    // An entropy model's configuration is not a BLT's.
    for file in ["meta-entropy.params.json", "meta-entropy.hub-config.json"] {
        let message = read_config(&configs.join(file), None)
            .unwrap_err()
            .to_string();
        assert!(message.contains("--entropy-model"), "{message}");
    }
}

#[test]
fn weights_apart_from_their_configuration_open_with_it() {
    for (name, path, options) in cases() {
        let Some(weights) = ["model.safetensors", "consolidated.pth"]
            .map(|f| path.join(f))
            .into_iter()
            .find(|f| f.exists())
        else {
            continue; // shards
        };
        let original = open(&name, &path, &options);
        // A name that tells nothing: content decides what a file is.
        let folder = Folder::new("apart");
        let bare = folder.path("weights.bin");
        std::fs::copy(&weights, &bare).unwrap();
        let beside = path.join("entropy_model");
        let config = ["config.json", "params.json"].map(|f| path.join(f));
        let with_config = OpenOptions {
            config: config.into_iter().find(|f| f.exists()),
            entropy_model: options.entropy_model.or(beside.is_dir().then_some(beside)),
            ..Default::default()
        };
        let found = open(&name, &bare, &with_config);
        assert_eq!(found.config(), original.config(), "{name}");
        assert_same(&name, &found, &original);

        let message = error(&name, Checkpoint::open(&bare, &OpenOptions::default()));
        assert!(message.contains("--config FILE"), "{name}: {message}");
        // The weights file beside its configuration needs no help.
        let inside = OpenOptions {
            config: None,
            ..with_config
        };
        assert_same(&name, &open(&name, &weights, &inside), &original);
    }
}

#[test]
fn a_missing_entropy_model_is_said_how_to_pass() {
    for (name, path, options) in cases() {
        if options.entropy_model.is_none() {
            continue;
        }
        let message = error(&name, Checkpoint::open(&path, &OpenOptions::default()));
        assert!(
            message.contains("pass --entropy-model PATH"),
            "{name}: {message}"
        );
        // Another way to patch needs none.
        let bytes = OpenOptions {
            patching: Some(PatchingMode::Byte),
            ..Default::default()
        };
        let c = open(&name, &path, &bytes);
        assert_eq!(
            (c.config().patcher.mode, &c.config().entropy),
            (PatchingMode::Byte, &None)
        );
        // A weights file serves as well as its folder; a missing one is an error.
        let folder = options.entropy_model.clone().unwrap();
        let file = OpenOptions {
            entropy_model: Some(folder.join("model.safetensors")),
            ..Default::default()
        };
        assert_same(
            &name,
            &open(&name, &path, &file),
            &open(&name, &path, &options),
        );
        let nowhere = OpenOptions {
            entropy_model: Some(folder.join("nowhere")),
            ..Default::default()
        };
        assert!(error(&name, Checkpoint::open(&path, &nowhere)).contains("nowhere"));
    }
}

#[test]
fn any_checkpoint_with_an_entropy_model_inside_lends_it() {
    let (_, path, _) = case_with("/model", |c| c.config().entropy.is_some());
    let lender = open("the lender", &path, &OpenOptions::default());
    let entropy = OpenOptions {
        entropy_model: Some(path),
        ..Default::default()
    };
    for (name, path, _) in cases() {
        let c = open(&name, &path, &entropy);
        assert_eq!(c.config().entropy, lender.config().entropy, "{name}");
        let part = |c: &Checkpoint| -> Vec<Vec<u8>> {
            let all = c.tensors().filter(|(n, _)| n.starts_with("entropy."));
            all.map(|(_, t)| t.bytes().to_vec()).collect()
        };
        assert!(part(&c) == part(&lender), "{name}");
    }
}
