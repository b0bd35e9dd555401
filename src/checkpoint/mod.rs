//! Checkpoints: open any published layout, memory-mapped, and serve its tensors under our names.
//!
//! Opening reads configuration and headers and checks that every tensor of the model is present with the right
//! shape. It reads no weights. Each layout has a file with its configuration keys and
//! its name table (`hf`, `meta`, `native`); the containers they come in (`safetensors`, `pth`) know
//! nothing of models.
//!
//! A checkpoint is untrusted data. A hostile one gives an [`Error`]; it cannot run code, open files outside its
//! folder, or make the reader allocate out of proportion to its own size.

#![forbid(unsafe_code)]

mod bolmo;
mod checksums;
mod config_json;
mod entropy;
mod hf;
mod hf_export;
mod json;
mod kind;
mod locate;
mod meta;
mod names;
mod native;
mod pickle;
mod pth;
mod quantized;
mod safetensors;
mod source;
mod spec;
mod tokenizer;
mod weight_files;
mod writer;
mod zip;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use config_json::{config_from_json, config_to_json};
pub use hf_export::{HfLayout, HfTensor, hf_layout};
pub use names::{Component, ModelTensor, Pace, Role, expected_tensors};
pub use native::{native_file, native_metadata, write_native};
pub use spec::{Metadata, NativeTensor, TensorSpec};
pub use weight_files::{FileInfo, WeightFiles};
pub use writer::SafetensorsWriter;

use crate::config::{Config, PatcherConfig, PatchingMode};
use crate::error::{Error, Result};
use crate::subwords::SubwordTable;
use crate::tensor::{Load, Storage, Tensor};
#[cfg(feature = "train")]
pub(crate) use checksums::TRAINING_KEY;
use json::Object;
#[cfg(feature = "train")]
pub(crate) use json::parse as parse_json;
use kind::{Kind, NameTable};
use locate::find_config;
use source::Source;

/// The layout of a checkpoint's files and names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Hugging Face transformers: `config.json` and `model.safetensors` or shards.
    Hf,
    /// The original implementation's hub repositories: `config.json` with `args`.
    MetaHub,
    /// The original implementation's training output: `params.json` and `consolidated.pth`.
    MetaConsolidated,
    /// The Bolmo family's: `config.json` and `model.safetensors` or shards, and a tokenizer of another repository.
    Bolmo,
    /// Our own single file.
    Native,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Hf => "Hugging Face transformers",
            Layout::MetaHub => "Meta hub",
            Layout::MetaConsolidated => "Meta consolidated",
            Layout::Bolmo => "Bolmo",
            Layout::Native => "native",
        })
    }
}

/// How a checkpoint is opened, beyond its path.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Configuration file of the weights, in the spelling of any layout; `None`: `config.json` or
    /// `params.json` beside the weights.
    pub config: Option<PathBuf>,
    /// Path of a separate entropy model: a folder, or a weights file with its configuration beside it; `None`: the
    /// one in the checkpoint or in the folder `entropy_model` beside it.
    pub entropy_model: Option<PathBuf>,
    /// Patching mode instead of the checkpoint's. All but entropy work without an entropy model.
    pub patching: Option<PatchingMode>,
    /// Tokenizer of the subword model that a Bolmo model was made from: `tokenizer.json`, or the folder that holds it
    /// and `tokenizer_config.json`; `None`: the folder `tokenizer` beside the weights.
    pub tokenizer: Option<PathBuf>,
    /// Whether the weights are mapped or read into memory.
    pub load: Load,
    /// Read all weights and compare them with the checksums of native files (see [`Checkpoint::verify`]). It is an error
    /// if there are none.
    pub verify: bool,
}

/// An open checkpoint: a validated configuration and every tensor it calls for.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    layout: Layout,
    files: Vec<FileInfo>,
    entries: Vec<Entry>, // in the order of `expected_tensors`
    number_of: HashMap<String, usize>,
    weights: Vec<WeightFiles>,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`, a file or a folder of any layout.
    ///
    /// The files are mapped, unless [`OpenOptions::load`] has them read: see
    /// [`MappedFile`](crate::tensor::MappedFile) on what happens if they change while they are open.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for files that are missing, damaged or hostile,
    /// [`Error::Config`] for invalid configurations, [`Error::Tensor`] for tensors that are missing
    /// or have another shape, [`Error::Unsupported`] for variants this engine does not compute.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
        let weights = WeightFiles::load(path, options.load)?;
        Unresolved::find(weights, options)?.open(options)
    }

    /// Opens a native file that is in memory: a model embedded in the program, or one that a
    /// caller read.
    ///
    /// # Errors
    /// Same as [`Checkpoint::open`]; [`Error::Format`] if the bytes are in another layout.
    pub fn from_bytes(bytes: impl Into<Storage>, options: &OpenOptions) -> Result<Checkpoint> {
        let path = Path::new("<memory>");
        let mut weights = WeightFiles::from_storage(path, bytes.into())?;
        let config = own_config(&mut weights, options.config.as_deref())?.ok_or_else(|| {
            Error::format(
                path,
                "expected a native blt file, found one without its metadata",
            )
        })?;
        Unresolved::native(weights, config).open(options)
    }

    /// The model's configuration; it is valid.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The layout it was found in.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The files the tensors are in.
    pub fn files(&self) -> &[FileInfo] {
        &self.files
    }

    /// Whether the model has a tensor of that name (our name).
    pub fn has(&self, name: &str) -> bool {
        self.number_of.contains_key(name)
    }

    /// Our names of all tensors of the model, in canonical order.
    pub fn names(&self) -> Vec<String> {
        self.entries.iter().map(|e| e.of.name.clone()).collect()
    }

    /// All tensors of the model under our names, in canonical order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.model_tensors().map(|(of, t)| (of.name.as_str(), t))
    }

    /// All tensors of the model with what each is for, in canonical order.
    pub fn model_tensors(&self) -> impl Iterator<Item = (&ModelTensor, &Tensor)> {
        self.entries.iter().map(|e| (&e.of, &e.tensor))
    }

    /// The name that the file has for the tensor that we call `name`, and the file.
    pub fn source(&self, name: &str) -> Option<(&str, &Path)> {
        let entry = &self.entries[*self.number_of.get(name)?];
        Some((&entry.foreign, &entry.path))
    }

    /// Reads all bytes of the files that have checksums, native ones, and compares them. Returns the number of tensors
    /// compared: 0 if no file has checksums. `progress` is told how many bytes are done and may end the work with an error.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Format`] naming what is damaged, and those of `progress`.
    pub fn verify(&self, mut progress: impl FnMut(u64) -> Result<()>) -> Result<usize> {
        let (mut n, mut before) = (0, 0);
        for weights in &self.weights {
            let mut done = 0;
            n += weights.verify(|bytes| {
                done = bytes;
                progress(before + bytes)
            })?;
            before += done;
        }
        Ok(n)
    }

    /// The tensor of that name (our name); shares the checkpoint's bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the model has no such tensor or it is of another shape; the message has
    /// the tensor's name in the file, and the file.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let entry = self.number_of.get(name).map(|&n| &self.entries[n]);
        let entry = entry.ok_or_else(|| {
            Error::tensor(
                name,
                format!(
                    "expected shape {shape:?}, found no such tensor in a model of this configuration"
                ),
            )
        })?;
        entry.check_shape(&entry.tensor, shape)?;
        Ok(entry.tensor.clone())
    }
}

/// A tensor of the model and where it was found.
#[derive(Debug)]
struct Entry {
    of: ModelTensor,
    foreign: String, // its name in the file
    path: PathBuf,
    tensor: Tensor,
}

impl Entry {
    fn resolve(weights: &WeightFiles, source: &Source, of: ModelTensor) -> Result<Entry> {
        let shape = of.shape.clone();
        let foreign = source
            .names
            .iter()
            .find(|n| weights.has(n))
            .unwrap_or(&source.names[0]);
        let path = weights.path_of(foreign);
        let tensor = weights.tensor(foreign)?.ok_or_else(|| {
            let advice = weights.advice(foreign);
            let path = path.display();
            Error::tensor(
                foreign,
                format!("expected shape {shape:?}, found no such tensor in {path}{advice}"),
            )
        })?;
        let mut entry = Entry {
            of,
            foreign: foreign.clone(),
            path: path.to_path_buf(),
            tensor,
        };
        match source.slice {
            None => entry.check_shape(&entry.tensor, &shape)?,
            Some((number, count)) => {
                let mut whole = shape.to_vec();
                whole[0] = shape[0].checked_mul(count).ok_or_else(|| {
                    Error::tensor(&entry.foreign, "the number of its rows overflows")
                })?;
                entry.check_shape(&entry.tensor, &whole)?;
                let rows = number * shape[0]..(number + 1) * shape[0];
                entry.tensor = entry.tensor.slice_rows(rows)?;
            }
        }
        Ok(entry)
    }

    fn check_shape(&self, tensor: &Tensor, expected: &[usize]) -> Result<()> {
        if tensor.shape() == expected {
            return Ok(());
        }
        Err(Error::tensor(
            &self.foreign,
            format!(
                "expected shape {expected:?}, found {:?} in {}",
                tensor.shape(),
                self.path.display()
            ),
        ))
    }
}

/// Names that the weights of every model of a layout have, tied or not, and no others.
const LANDMARKS: [&str; 3] = [
    "model.local_decoder.layers.0.self_attn.q_proj.weight",
    "model.local_encoder.byte_embedding.weight",
    "local_encoder.tok_embeddings.weight",
];

/// The configuration that a native file carries; `None` if the weights are in another layout.
fn own_config(weights: &mut WeightFiles, config_path: Option<&Path>) -> Result<Option<Config>> {
    let config = native::read(weights)?;
    if config.is_some() && config_path.is_some() {
        return Err(Error::argument(
            "config",
            "expected none for a native file, which carries its own configuration",
        ));
    }
    Ok(config)
}

/// A checkpoint before its entropy model and its tensors are looked up.
struct Unresolved {
    weights: WeightFiles,
    config: Config,
    config_path: Option<PathBuf>,
    layout: Layout,
    table: NameTable,
}

impl Unresolved {
    fn native(weights: WeightFiles, config: Config) -> Unresolved {
        Unresolved {
            weights,
            config,
            config_path: None,
            layout: Layout::Native,
            table: NameTable::Native,
        }
    }

    fn find(mut weights: WeightFiles, options: &OpenOptions) -> Result<Unresolved> {
        let config_path = options.config.as_deref();
        if let Some(config) = own_config(&mut weights, config_path)? {
            return Ok(Unresolved::native(weights, config));
        }
        let config_path = match config_path {
            Some(path) => path.to_path_buf(),
            None => find_config(weights.folder()).ok_or_else(|| {
                let what = match locate::adapter(weights.folder()) {
                    Some(adapter) => format!("expected a model, found {adapter}"),
                    None => "expected config.json or params.json beside the weights, found neither; pass --config FILE"
                        .into(),
                };
                Error::format(weights.path(), what)
            })?,
        };
        weights.recognise(&LANDMARKS, &["model."]);
        let folder = weights.folder();
        let open_subwords = |wanted: &tokenizer::Wanted<'_>| {
            tokenizer::open(options.tokenizer.as_deref(), folder, wanted)
        };
        let (layout, table, config) = translate(
            &config_path,
            |_| weights.has(hf::PATCHER_TENSOR),
            open_subwords,
        )?;
        if let NameTable::Meta { .. } = table
            && let Some(name) = meta::TOKEN_PROJECTIONS.into_iter().find(|n| weights.has(n))
        {
            return Err(Error::tensor(
                name,
                "expected token embeddings of the local width, found a projection of them (keys \
                 dim_token, dim_token_emb); this variant is not supported",
            ));
        }
        Ok(Unresolved {
            weights,
            config,
            config_path: Some(config_path),
            layout,
            table,
        })
    }

    /// Opens the entropy model if it is separate, then looks up every tensor.
    fn open(mut self, options: &OpenOptions) -> Result<Checkpoint> {
        if self.config.bolmo.is_some() {
            self.check_bolmo(options)?;
        }
        if let (Some(path), false) = (
            &options.tokenizer,
            matches!(self.table, NameTable::Bolmo { .. }),
        ) {
            let what = format!(
                "expected none with a model of the layout {}, found {}",
                self.layout,
                path.display()
            );
            return Err(Error::argument("tokenizer", what));
        }
        if let Some(mode) = options.patching {
            self.config.patcher.mode = mode;
        }
        let is_meta = matches!(self.table, NameTable::Meta { .. });
        let entropy_path = options.entropy_model.clone().or_else(|| {
            let config_folder = self.config_path.as_deref().and_then(Path::parent);
            let folders = [Some(self.weights.folder()), config_folder];
            let beside = |folder: &Path| folder.join("entropy_model");
            let mut found = folders.into_iter().flatten().map(beside);
            found.find(|path| is_meta && path.exists())
        });
        let open = |path: &Path| entropy::open(path, options.load);
        let apart = entropy_path.as_deref().map(open).transpose()?;
        let path = self.weights.path().to_path_buf();
        let checkpoint = self.serve(apart)?;
        if options.verify && checkpoint.verify(|_| Ok(()))? == 0 {
            return Err(Error::format(
                path,
                "expected checksums, found none: native files have them, except those of early versions",
            ));
        }
        Ok(checkpoint)
    }

    /// Refuses what would be ignored: options for another kind of model, and tensors that no part of the model reads.
    fn check_bolmo(&self, options: &OpenOptions) -> Result<()> {
        if let Some(path) = &options.entropy_model {
            return Err(Error::argument(
                "entropy_model",
                format!(
                    "expected none with a Bolmo model, which has a boundary predictor, found {}",
                    path.display()
                ),
            ));
        }
        if let Some(mode) = options.patching {
            return Err(Error::argument(
                "patching",
                format!(
                    "expected none with a Bolmo model, whose patches are its own, found {mode}"
                ),
            ));
        }
        let NameTable::Bolmo { tied } = self.table else {
            return Ok(());
        };
        let known: HashSet<String> = (expected_tensors(&self.config).iter())
            .flat_map(|tensor| bolmo::source(&tensor.name, &self.config, tied).names)
            .chain(tied.then(|| "lm_head.weight".into()))
            .map(|name| self.weights.in_files(&name).into_owned())
            .collect();
        let is_known =
            |name: &String| known.contains(name) || name.ends_with(".rotary_emb.inv_freq");
        match self
            .weights
            .names()
            .into_iter()
            .find(|name| !is_known(name))
        {
            None => Ok(()),
            Some(name) => Err(Error::tensor(
                name,
                format!(
                    "expected no such tensor in a model of this configuration, found it in {}; is it a newer variant?",
                    self.weights.path().display()
                ),
            )),
        }
    }

    /// Looks every tensor up. `apart`: an entropy model that replaces the one inside, if any.
    fn serve(mut self, apart: Option<entropy::EntropyModel>) -> Result<Checkpoint> {
        if let Some(apart) = &apart {
            self.config.entropy = Some(apart.config.clone());
        }
        self.config.validate()?;
        if self.config.patcher.mode == PatchingMode::Entropy && self.config.entropy.is_none() {
            let names = self.weights.names();
            let what = match names.iter().find(|name| name.contains("patcher.")) {
                Some(name) => format!(
                    "expected {:?} for patching by entropy, found none, but {name:?}{}",
                    hf::PATCHER_TENSOR,
                    match self.weights.advice(hf::PATCHER_TENSOR) {
                        advice if advice.is_empty() => "; is the entropy model complete?".into(),
                        advice => advice,
                    }
                ),
                None => "expected an entropy model for patching by entropy, found none in or beside the checkpoint; pass \
                         --entropy-model PATH"
                    .into(),
            };
            return Err(Error::format(self.weights.path(), what));
        }
        let mut entries = Vec::new();
        let mut number_of = HashMap::new();
        for tensor in expected_tensors(&self.config) {
            let (weights, table) = match &apart {
                Some(apart) if tensor.component == Component::Entropy => {
                    (&apart.weights, &apart.table)
                }
                _ => (&self.weights, &self.table),
            };
            let source = table.source(&tensor.name, &self.config);
            number_of.insert(tensor.name.clone(), entries.len());
            entries.push(Entry::resolve(weights, &source, tensor)?);
        }
        let mut files: Vec<FileInfo> = self.weights.files().cloned().collect();
        if let Some(apart) = &apart {
            files.extend(apart.weights.files().cloned());
        }
        let apart = apart.map(|apart| apart.weights);
        Ok(Checkpoint {
            config: self.config,
            layout: self.layout,
            files,
            entries,
            number_of,
            weights: [self.weights].into_iter().chain(apart).collect(),
        })
    }
}

/// Reads a configuration file of any published layout. `has_patcher` decides from the file's content
/// whether weights in HF layout hold an entropy model; Meta's have none, it is a model of its own.
fn translate(
    path: &Path,
    has_patcher: impl Fn(&Value) -> bool,
    open_subwords: impl FnOnce(&tokenizer::Wanted<'_>) -> Result<SubwordTable>,
) -> Result<(Layout, NameTable, Config)> {
    let value = json::read(path)?;
    let in_file = |e: Error| e.in_file(path);
    let root = Object::root(&value).map_err(in_file)?;
    match Kind::of(&value) {
        Some(Kind::Bolmo) => {
            let tied = hf::tied(&value).map_err(in_file)?;
            let generation = path.with_file_name("generation_config.json");
            let stops = match generation.exists() {
                true => bolmo::more_stops(&json::read(&generation)?)
                    .map_err(|e| e.in_file(&generation))?,
                false => Vec::new(),
            };
            let config = bolmo::config(&value, stops, open_subwords).map_err(in_file)?;
            Ok((Layout::Bolmo, NameTable::Bolmo { tied }, config))
        }
        Some(Kind::Hf) => {
            let tied = hf::tied(&value).map_err(in_file)?;
            let config = hf::config(&value, has_patcher(&value)).map_err(in_file)?;
            Ok((Layout::Hf, NameTable::Hf { tied }, config))
        }
        Some(Kind::MetaHub) => {
            let train = path.with_file_name("train_args.json");
            let patcher = match train.exists() {
                true => Object::root(&json::read(&train)?)
                    .and_then(|root| meta::patcher_args(&root))
                    .map_err(|e| e.in_file(&train))?,
                false => None,
            };
            let args = root.required_object("args").map_err(in_file)?;
            let config = meta_config(path, &args, patcher).map_err(in_file)?;
            Ok((Layout::MetaHub, META, config))
        }
        Some(Kind::MetaParams) => {
            let model = || {
                let patcher = meta::patcher_args(&root)?;
                meta_config(path, &root.required_object("model")?, patcher)
            };
            Ok((Layout::MetaConsolidated, META, model().map_err(in_file)?))
        }
        Some(Kind::HfPatcher) => Err(not_a_model(path, true)),
        None => Err(not_a_model(path, root.has("entropy_model"))),
    }
}

/// The configuration in a file of any published layout, without any weights: to make a model of
/// that shape. `entropy_model` is the configuration file of Meta's separate entropy model.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`], [`Error::Config`] and [`Error::Unsupported`] as
/// [`Checkpoint::open`].
pub fn read_config(path: &Path, entropy_model: Option<&Path>) -> Result<Config> {
    let has_patcher =
        |value: &Value| value["patcher_config"].is_object() && value["patch_in_forward"] != false;
    let no_subwords = |_: &tokenizer::Wanted<'_>| {
        Err(Error::Unsupported(
            "a Bolmo model cannot be trained yet".into(),
        ))
    };
    let (.., mut config) = translate(path, has_patcher, no_subwords)?;
    if config.bolmo.is_some() {
        return Err(Error::Unsupported(
            "a Bolmo model cannot be trained yet".into(),
        ));
    }
    if let Some(path) = entropy_model {
        config.entropy = Some(entropy::meta_config(path, &json::read(path)?)?.0);
        config.validate()?;
    }
    Ok(config)
}

const META: NameTable = NameTable::Meta {
    tied_entropy: false,
};

/// A BLT of Meta's from its arguments and, if it has them, those of its patcher.
fn meta_config(path: &Path, args: &Object, patcher: Option<PatcherConfig>) -> Result<Config> {
    if !args.has("dim_global") && args.has("sliding_window") {
        return Err(not_a_model(path, true));
    }
    meta::config(args, patcher)
}

fn not_a_model(path: &Path, entropy_model: bool) -> Error {
    let found = match entropy_model {
        true => "that of an entropy model; pass it with --entropy-model PATH",
        false => "another",
    };
    Error::format(
        path,
        format!(
            "expected a BLT's configuration (\"model_type\": \"blt\" or \"bolmo\", \"args\" or \"model\"), found \
             {found}"
        ),
    )
}

/// The name of a tensor in the published files of a Bolmo model, from our name. Global layers have the same name in the
/// subword model that it was made from.
pub fn bolmo_tensor_name(name: &str, config: &Config) -> String {
    bolmo::source(name, config, false).names.swap_remove(0)
}
