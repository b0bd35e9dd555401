//! Reference cases on disk: where they are, what they hold.
#![allow(dead_code)] // each test program uses its part

pub mod folder;
mod random;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use blt::checkpoint::{Checkpoint, ModelTensor, OpenOptions, expected_tensors, write_native};
use blt::config::{Config, DifferentialConfig};
use blt::ops::Compute;
use blt::tensor::{DType, Tensor};
use blt::vocab::Id;
use blt::{Model, Session, SessionOptions};
use blt_kernels::BlockFormat;
pub use random::Random;
use serde_json::Value;

/// The folders of reference cases: the one in the repository, then the one that `BLT_FIXTURES` names.
/// A test program that was copied to another machine has the latter alone.
pub fn roots() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let more = std::env::var_os("BLT_FIXTURES").map(PathBuf::from);
    let has_own = more.is_none() || own.is_dir();
    has_own.then_some(own).into_iter().chain(more).collect()
}

/// Folders of cases with an `expected.json` that has `key`, and its content: those of each root in
/// order of name. What a case holds decides what it is for. A root without any is an error.
pub fn folders_with(key: &str) -> Vec<(PathBuf, Value)> {
    let in_root = |root: PathBuf| {
        let entries = std::fs::read_dir(&root)
            .unwrap_or_else(|e| panic!("reference cases in {}: {e}", root.display()));
        let mut found: Vec<(PathBuf, Value)> = entries
            .map(|entry| entry.unwrap().path())
            .filter_map(|folder| {
                let text = std::fs::read(folder.join("expected.json")).ok()?;
                let expected: Value = serde_json::from_slice(&text).unwrap();
                expected.get(key)?;
                Some((folder, expected))
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(
            !found.is_empty(),
            "no case with {key} in {}",
            root.display()
        );
        found
    };
    roots().into_iter().flat_map(in_root).collect()
}

/// Checks every item, and fails at the end with the names of all that failed: one failure hides no
/// other.
pub fn check_all<T>(items: impl IntoIterator<Item = (String, T)>, check: impl Fn(&str, T)) {
    let (mut n_items, mut failed) = (0, Vec::new());
    for (name, item) in items {
        n_items += 1;
        let result = catch_unwind(AssertUnwindSafe(|| check(&name, item)));
        if result.is_err() {
            failed.push(name); // its message has been printed
        }
    }
    assert!(n_items > 0, "nothing to check");
    let n_failed = failed.len();
    assert!(n_failed == 0, "{n_failed} of {n_items} failed: {failed:#?}");
}

/// An inference case: one folder with an `expected.json` that has prompts.
pub struct Case {
    pub name: String,
    pub folder: PathBuf,
    pub expected: Value,
    tensors: Vec<u8>,
}

/// All inference cases of BLTs. The Bolmo family has a suite of its own.
pub fn cases() -> Vec<Case> {
    let mut cases = all_cases();
    cases.retain(|case| !is_bolmo(&case.folder));
    cases
}

/// All inference cases.
pub fn all_cases() -> Vec<Case> {
    let folders = folders_with("prompts").into_iter();
    folders
        .map(|(f, expected)| Case::new(f, expected))
        .collect()
}

impl Case {
    fn new(folder: PathBuf, expected: Value) -> Case {
        Case {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            tensors: std::fs::read(folder.join("expected.safetensors")).unwrap(),
            folder,
            expected,
        }
    }

    /// The model in every layout the case holds, with the layout's folder.
    pub fn models(&self) -> Vec<(String, Model)> {
        self.checkpoints()
            .into_iter()
            .map(|(layout, checkpoint)| (layout, model(&checkpoint)))
            .collect()
    }

    /// Every checkpoint of the case, opened, with the name of its folder.
    pub fn checkpoints(&self) -> Vec<(String, Checkpoint)> {
        let open = |(layout, path, options): (String, PathBuf, OpenOptions)| {
            let checkpoint = Checkpoint::open(&path, &options)
                .unwrap_or_else(|e| panic!("{}/{layout}: {e}", self.name));
            (layout, checkpoint)
        };
        self.layouts().into_iter().map(open).collect()
    }

    /// Every folder of the case that holds a checkpoint: its name, its path, and the options that open
    /// it.
    pub fn layouts(&self) -> Vec<(String, PathBuf, OpenOptions)> {
        let separate = self.folder.join("entropy_hub");
        let tokenizer = self.folder.join("tokenizer");
        let entries = std::fs::read_dir(&self.folder).unwrap();
        let mut layouts: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir() && *path != separate && *path != tokenizer)
            .map(|path| {
                let beside = path.join("entropy_model").is_dir();
                let options = OpenOptions {
                    entropy_model: (separate.is_dir() && !beside).then(|| separate.clone()),
                    tokenizer: tokenizer.is_dir().then(|| tokenizer.clone()),
                    ..OpenOptions::default()
                };
                let layout = path.file_name().unwrap().to_string_lossy().into_owned();
                (layout, path, options)
            })
            .collect();
        assert!(!layouts.is_empty(), "{}: no model folder", self.name);
        layouts.sort_by(|a, b| a.0.cmp(&b.0));
        layouts
    }

    /// The prompts.
    pub fn prompts(&self) -> Vec<Prompt<'_>> {
        let prompts = self.expected["prompts"].as_array().unwrap();
        prompts.iter().map(|value| Prompt { value }).collect()
    }

    /// A recorded tensor: shape and values.
    pub fn tensor(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let all = safetensors::SafeTensors::deserialize(&self.tensors).unwrap();
        let view = all.tensor(name).ok()?;
        let values = view.data().chunks_exact(4);
        let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        Some((view.shape().to_vec(), values.collect()))
    }
}

/// Whether the case in `folder` is of the Bolmo family, which has a suite of its own.
pub fn is_bolmo(folder: &Path) -> bool {
    let config = std::fs::read(folder.join("model/config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    config["model_type"] == "bolmo"
}

/// One prompt of a case.
pub struct Prompt<'a> {
    value: &'a Value,
}

impl Prompt<'_> {
    pub fn name(&self) -> &str {
        self.value["name"].as_str().unwrap()
    }

    pub fn ids(&self) -> Vec<Id> {
        ids(&self.value["ids"])
    }

    pub fn has(&self, key: &str) -> bool {
        !self.value[key].is_null()
    }

    pub fn list(&self, key: &str) -> &Value {
        &self.value[key]
    }

    pub fn number(&self, key: &str) -> f64 {
        self.value[key].as_f64().unwrap()
    }

    pub fn flag(&self, key: &str) -> bool {
        self.value[key].as_bool().unwrap()
    }
}

/// A JSON list of ids.
pub fn ids(value: &Value) -> Vec<Id> {
    numbers(value).into_iter().map(|n| n as Id).collect()
}

/// A JSON list of numbers.
pub fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list of numbers");
    list.iter().map(|n| n.as_f64().unwrap()).collect()
}

/// A JSON list of lengths.
pub fn lengths(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|n| n as usize).collect()
}

/// The checkpoint with every matrix and table in that block format.
pub fn quantized(checkpoint: &Checkpoint, format: BlockFormat) -> Checkpoint {
    converted(checkpoint, DType::Tiles(format), DType::Table(format))
}

/// The checkpoint with every matrix and every table in those types, through the bytes of a native
/// file.
pub fn converted(checkpoint: &Checkpoint, matrix: DType, table: DType) -> Checkpoint {
    let tensors = checkpoint.tensors().map(|(name, tensor)| {
        let is_table = name.contains("_embeddings");
        let dtype = match (tensor.shape().len(), is_table) {
            (1, _) => DType::F32,
            (_, true) => table,
            (_, false) => matrix,
        };
        let tensor = Tensor::from_values(dtype, tensor.shape().to_vec(), &tensor.to_f32_vec());
        (name.to_owned(), tensor.unwrap())
    });
    native(checkpoint.config(), tensors.collect())
}

/// The checkpoint of the case `hf-gqa` (an entropy model, hash tables, fewer heads for keys than for
/// queries) with differential attention in every part: same matrices, random vectors. `head_norms` says
/// which of entropy model, encoder, global transformer and decoder have the head-wise norm.
pub fn differential(head_norms: [bool; 4]) -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf-gqa/model");
    let plain = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
    let mut config = plain.config().clone();
    let stacks = [
        config.entropy.as_mut().unwrap(),
        &mut config.encoder,
        &mut config.global,
        &mut config.decoder,
    ];
    for (stack, head_norm) in stacks.into_iter().zip(head_norms) {
        stack.differential = Some(DifferentialConfig { head_norm });
    }
    let tensors =
        expected_tensors(&config)
            .into_iter()
            .map(|ModelTensor { name, shape, .. }| {
                if let Ok(tensor) = plain.tensor(&name, &shape) {
                    return (name, tensor);
                }
                let mut random = Random(name.bytes().map(u64::from).sum());
                let mean = if name.ends_with("head_norm") {
                    1.0
                } else {
                    0.0
                };
                let values: Vec<f32> = (0..shape[0])
                    .map(|_| mean + random.below(1000) as f32 / 1000.0 - 0.5)
                    .collect();
                (name, Tensor::from_f32(shape, values).unwrap())
            });
    native(&config, tensors.collect())
}

/// The case of that name in the repository, and the model in its first layout.
pub fn case(name: &str) -> (Case, Model) {
    let folder = roots().remove(0).join(name);
    let expected = std::fs::read(folder.join("expected.json")).unwrap();
    let case = Case::new(folder, serde_json::from_slice(&expected).unwrap());
    let (_, model) = case.models().remove(0);
    (case, model)
}

/// The model of a checkpoint, on one thread.
pub fn model(checkpoint: &Checkpoint) -> Model {
    Model::load(checkpoint, Compute::new(Some(1), None).unwrap()).unwrap()
}

/// A checkpoint of these tensors, through the bytes of a native file.
pub fn native(config: &Config, tensors: Vec<(String, Tensor)>) -> Checkpoint {
    let thread = std::thread::current().id();
    let name = format!("blt-native-{}-{thread:?}", std::process::id());
    let path = std::env::temp_dir().join(name);
    write_native(&path, config, tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    Checkpoint::from_bytes(bytes, &OpenOptions::default()).unwrap()
}

/// Everything a session gave while it read ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    pub logits: Vec<u32>,    // bits, (n, vocab)
    pub entropies: Vec<u32>, // bits, (n)
    pub starts: Vec<usize>,
}

/// A session that also runs the entropy model if there is one.
pub fn session(model: &Model, options: SessionOptions) -> Session {
    let options = SessionOptions {
        entropies: model.has_entropy_model(),
        ..options
    };
    Session::new(model, options).unwrap()
}

/// Reads `ids` on top of what the session holds and appends the logits to `logits`.
pub fn feed(session: &mut Session, ids: &[Id], logits: &mut Vec<f32>) {
    session
        .feed_ids_with(ids, |step| logits.extend_from_slice(step.logits))
        .unwrap();
}

/// Bits of floats, for exact comparison.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
