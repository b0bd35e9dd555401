//! Arguments that programs share, and opening the model that they name.

use std::path::{Path, PathBuf};
use std::{env, fmt};

pub use blt_kernels::Isa;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, PatcherConfig, PatchingMode};
use crate::device::Device;
use crate::error::Error;
use crate::model::Model;
use crate::open::ModelOptions;

use super::failure::Failure;
use super::interrupt;
use super::progress::Progress;

/// Declares the arguments of a program: the groups of fields that programs share, and after them in the
/// macro's body the program's own.
///
/// ```ignore
/// program_args! {
///     /// Shows what a checkpoint contains.
///     #[argh(help_triggers("-h", "--help"))]
///     struct Args [model checkpoint] {
///         /// print one JSON object
///         #[argh(switch)]
///         json: bool,
///     }
/// }
/// ```
///
/// argh reads the fields of one struct and cannot include another struct, so a macro writes them into each
/// program's struct. Each rule below is one group:
///
/// | group | fields |
/// |---|---|
/// | `model` | `MODEL` |
/// | `checkpoint` | `--entropy-model`, `--config`, `--tokenizer`, `--load`, `--verify`, `--patching`; `checkpoint_options()` |
/// | `compute` | `--threads`, `--profile`, `--kv`, `--device`, `--isa`; `model_options()` |
/// | `patches` | `--threshold`, `--entropy-reset` |
#[macro_export]
#[doc(hidden)]
macro_rules! program_args {
    ($(#[$attr:meta])* struct $name:ident [] { $($fields:tt)* }) => {
        #[derive(::argh::FromArgs, ::argh::ArgsInfo)]
        $(#[$attr])*
        struct $name {
            $($fields)*
        }
    };
    ($(#[$attr:meta])* struct $name:ident [model $($group:ident)*] { $($fields:tt)* }) => {
        $crate::program_args! {
            $(#[$attr])*
            struct $name [$($group)*] {
                $($fields)*

                /// the model: a file or a folder
                #[argh(positional, arg_name = "MODEL", from_str_fn($crate::cli::bytes::path))]
                model: Option<std::path::PathBuf>,
            }
        }
    };
    ($(#[$attr:meta])* struct $name:ident [checkpoint $($group:ident)*] { $($fields:tt)* }) => {
        $crate::program_args! {
            $(#[$attr])*
            struct $name [$($group)*] {
                $($fields)*

                /// the entropy model, if it is a separate file or folder
                #[argh(option, arg_name = "path", from_str_fn($crate::cli::bytes::path))]
                entropy_model: Option<std::path::PathBuf>,

                /// the configuration, if it is not beside the weights
                #[argh(option, arg_name = "file", from_str_fn($crate::cli::bytes::path))]
                config: Option<std::path::PathBuf>,

                /// tokenizer.json of the subword model that a Bolmo model was made from, or its folder (default: the
                /// folder tokenizer beside the weights)
                #[argh(option, arg_name = "path", from_str_fn($crate::cli::bytes::path))]
                tokenizer: Option<std::path::PathBuf>,

                /// map the files of the model, or read them into memory: slower to start, but then they may change
                /// (default: map)
                #[argh(option, arg_name = "map|read", default = "blt::tensor::Load::Map")]
                load: $crate::tensor::Load,

                /// read the whole model first and compare it with its checksums (native files)
                #[argh(switch)]
                verify: bool,

                /// how to cut patches: entropy, space, static, byte or bpe (default: as the model says); all
                /// but entropy work without an entropy model
                #[argh(option, arg_name = "mode")]
                patching: Option<$crate::config::PatchingMode>,
            }
        }

        impl $name {
            /// Options that open the checkpoint.
            fn checkpoint_options(&self) -> $crate::ModelOptions {
                let mut options = $crate::Model::options().files(self.load).verify(self.verify);
                if let Some(path) = &self.config {
                    options = options.config(path);
                }
                if let Some(path) = &self.entropy_model {
                    options = options.entropy_model(path);
                }
                if let Some(path) = &self.tokenizer {
                    options = options.tokenizer(path);
                }
                if let Some(mode) = self.patching {
                    options = options.patching(mode);
                }
                options
            }
        }
    };
    ($(#[$attr:meta])* struct $name:ident [compute $($group:ident)*] { $($fields:tt)* }) => {
        $crate::program_args! {
            $(#[$attr])*
            struct $name [$($group)*] {
                $($fields)*

                /// number of threads (default: all); results do not depend on it
                #[argh(option, short = 't', arg_name = "count")]
                threads: Option<usize>,

                /// arithmetic with bfloat16 weights: exact, or fast, which rounds activations to bfloat16
                /// (default: exact)
                #[argh(option, arg_name = "name", default = "blt::Profile::Exact")]
                profile: $crate::Profile,

                /// type of cached keys and values: f32, or f16 in half the memory, rounded (default: f16 if
                /// the weights are quantised, else f32)
                #[argh(option, arg_name = "type")]
                kv: Option<$crate::KvType>,

                /// device: cpu, cuda, cuda:N, or auto, which is the GPU if it can run the model and else the
                /// CPU (default: cpu)
                #[argh(option, arg_name = "device", default = "blt::Device::Cpu")]
                device: $crate::Device,

                /// instruction set (default: the fastest of this machine); all but portable, which has no fused
                /// multiply-add, give the same bits
                #[argh(option, arg_name = "name", from_str_fn($crate::cli::model::parse_isa))]
                isa: Option<$crate::cli::model::Isa>,
            }
        }

        impl $name {
            /// Options that open the checkpoint and load the model.
            fn model_options(&self) -> $crate::ModelOptions {
                let mut options = self.checkpoint_options().profile(self.profile).device(self.device);
                if let Some(n) = self.threads {
                    options = options.threads(n);
                }
                if let Some(isa) = self.isa {
                    options = options.isa(isa);
                }
                options
            }
        }
    };
    ($(#[$attr:meta])* struct $name:ident [patches $($group:ident)*] { $($fields:tt)* }) => {
        $crate::program_args! {
            $(#[$attr])*
            struct $name [$($group)*] {
                $($fields)*

                /// entropy in nats above which a patch starts (default: the model's own)
                #[argh(option, arg_name = "nats")]
                threshold: Option<f32>,

                /// restart the entropy model after this many bytes (Meta's patcher: 8192; default: never)
                #[argh(option, arg_name = "bytes")]
                entropy_reset: Option<usize>,
            }
        }
    };
}

/// Opens the checkpoint at `path`, or the default model.
pub fn open(options: &ModelOptions, path: Option<&Path>) -> Result<Checkpoint, Failure> {
    Ok(match source_or_default(path)? {
        Source::Path(path) => options.open_checkpoint(path)?,
        Source::BuiltIn(bytes) => options.open_checkpoint_bytes(bytes)?,
    })
}

/// Loads the model in a checkpoint. With [`Device::Auto`] standard error says which device it is on.
pub fn load(options: &ModelOptions, checkpoint: &Checkpoint) -> Result<Model, Failure> {
    if options.chosen_device() != Device::Auto {
        return Ok(options.load(checkpoint)?);
    }
    let model = options.clone().device(Device::Cpu).load(checkpoint)?;
    match model.on_device_with(Device::Cuda(0), options.chosen_gpu()) {
        Ok(on_gpu) => {
            crate::errln!("computing on {}", on_gpu.gpu_name().unwrap_or_default());
            Ok(on_gpu)
        }
        Err(reason) => {
            crate::errln!("computing on the CPU: {reason}");
            Ok(model)
        }
    }
}

/// Compares the files of a checkpoint with their checksums, with a progress line. Returns the number of tensors compared;
/// 0: the files have no checksums.
pub fn verify(checkpoint: &Checkpoint, quiet: bool) -> Result<usize, Failure> {
    let total = checkpoint.files().iter().map(|file| file.bytes).sum();
    let mut progress = Progress::new("verifying", Some(total), quiet);
    let result = checkpoint.verify(|done| {
        progress.set(done);
        match interrupt::requested() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    });
    progress.finish();
    match result {
        Err(Error::Cancelled) => Err(Failure::failed("interrupted while verifying the model")),
        result => Ok(result?),
    }
}

/// `path`, or where the default model is.
pub fn source_or_default(path: Option<&Path>) -> Result<Source, Failure> {
    match path {
        Some(path) => Ok(Source::Path(path.to_path_buf())),
        None => default_model(),
    }
}

/// The source of a model.
#[derive(Debug)]
pub enum Source {
    /// A file or folder.
    Path(PathBuf),
    /// The program itself: the bytes of a native file.
    BuiltIn(&'static [u8]),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Path(path) => path.display().fmt(f),
            Source::BuiltIn(_) => f.write_str("the built-in model"),
        }
    }
}

/// The model used when none is named: `BLT_MODEL`, else `blt/default` in the user's data folder, else
/// the one that is part of the program.
fn default_model() -> Result<Source, Failure> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = variable("BLT_MODEL") {
        return Ok(Source::Path(path.into()));
    }
    let data = variable("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".local/share")));
    if let Some(path) = data.map(|folder| folder.join("blt/default"))
        && path.exists()
    {
        return Ok(Source::Path(path));
    }
    BUILT_IN.map(Source::BuiltIn).ok_or_else(|| {
        Failure::usage(
            "MODEL: expected a file or folder, found none; this program was built without a default \
             model (feature \"default-model\")",
        )
    })
}

#[cfg(not(feature = "default-model"))]
const BUILT_IN: Option<&[u8]> = None;

#[cfg(feature = "default-model")]
static BUILT_IN: Option<&[u8]> = {
    /// Puts a file where its tensors, which begin at multiples of 64 bytes of it, are aligned as well.
    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);
    static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/default.safetensors"));
    Some(&FILE.0)
};

/// The names of the instruction sets this machine has, fastest first.
pub fn isa_names() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

/// The instruction set of that name; for `from_str_fn`.
pub fn parse_isa(name: &str) -> Result<Isa, String> {
    Isa::by_name(name).ok_or_else(|| {
        let known = isa_names().join(", ");
        format!("expected one this machine has ({known}), found \"{name}\"")
    })
}

/// The model's patcher settings with the threshold of the arguments; `None` without one.
pub fn patcher_config(
    config: &Config,
    threshold: Option<f32>,
    entropy_reset: Option<usize>,
) -> Result<Option<PatcherConfig>, Failure> {
    let by_entropy = config.patcher.mode == PatchingMode::Entropy;
    if entropy_reset.is_some() && !by_entropy {
        return Err(no_entropy("--entropy-reset", config));
    }
    let Some(threshold) = threshold else {
        return Ok(None);
    };
    if threshold.is_nan() {
        return Err(Failure::Usage(
            "--threshold: expected a number of nats, found NaN".into(),
        ));
    }
    if !by_entropy {
        return Err(no_entropy("--threshold", config));
    }
    let mut patcher = config.patcher.clone();
    patcher.threshold = threshold;
    Ok(Some(patcher))
}

fn no_entropy(flag: &str, config: &Config) -> Failure {
    Failure::usage(format!(
        "{flag}: expected entropy patching, found {}; add --patching entropy",
        config.patcher.mode
    ))
}

/// Checks that a model which does not draft is not asked to.
///
/// # Errors
/// [`Failure::Usage`].
pub fn check_draft(model: &Model, draft: Option<usize>) -> Result<(), Failure> {
    match draft {
        Some(n) if n > 0 && model.config().bolmo.is_some() => Err(Failure::usage(
            "--draft: expected none with a Bolmo model, which does not draft",
        )),
        _ => Ok(()),
    }
}
