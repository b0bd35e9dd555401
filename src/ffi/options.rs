//! Options: numbers and names in, the engine's option structs out.

use std::ffi::{c_char, c_int, c_void};
use std::sync::Mutex;

use blt_kernels::Isa;

use super::guard::{Out, Result, bytes, free, guard, handle, lock, path_of_bytes};
use super::status::{Failure, blt_status};
use crate::config::{PatcherConfig, PatchingMode};
use crate::error::Error;
use crate::generate::{GenerateOptions, MAX_DRAFT};
use crate::model::Model;
use crate::open::ModelOptions;
use crate::session::{Overflow, SessionOptions};

/// Names of settings. The comment gives the kind (which setter takes it), the meaning, and after the
/// semicolon the default. Numbers are never reused.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum blt_option {
    /// Opening, int: number of threads; all of the machine.
    BLT_OPTION_THREADS = 1,
    /// Opening, text: instruction set, as blt-info --isa list names it; the best of the CPU.
    BLT_OPTION_ISA = 2,
    /// Opening, text: path of the configuration; beside the weights.
    BLT_OPTION_CONFIG = 3,
    /// Opening, text: path of a separate entropy model; the checkpoint's own.
    BLT_OPTION_ENTROPY_MODEL = 4,
    /// Opening, int 0 or 1: read all weights now instead of at first use; 0.
    BLT_OPTION_PRELOAD = 5,
    /// Opening from memory, int 0 or 1: copy the bytes, so that you can free them; 0.
    BLT_OPTION_COPY = 6,
    /// Opening and sessions, text: "entropy", "space", "static", "byte" or "bpe"; the model's own.
    BLT_OPTION_PATCHING = 7,
    /// Opening, text: arithmetic with bfloat16 weights, "exact" or "fast" (activations rounded to
    /// bfloat16); "exact".
    BLT_OPTION_PROFILE = 8,
    /// Opening, text: path of the tokenizer of the subword model that a Bolmo model was made from.
    BLT_OPTION_TOKENIZER = 9,
    /// Opening, text: "map" the files, or "read" them into memory, so that they may change; "map".
    BLT_OPTION_LOAD = 10,

    /// Sessions, int 0 or 1: do not start with the begin-of-sequence id; 0.
    BLT_OPTION_NO_BOS = 20,
    /// Sessions, real: nats of entropy above which a patch starts; the model's own.
    BLT_OPTION_THRESHOLD = 21,
    /// Sessions, real: the entropy must also have risen by more than this; the model's own.
    BLT_OPTION_THRESHOLD_ADD = 22,
    /// Sessions, int 0 or 1: patches start where entropy rises by the threshold; the model's own.
    BLT_OPTION_MONOTONICITY = 23,
    /// Sessions, int: maximum bytes in a patch, 0 for no limit; the model's own.
    BLT_OPTION_MAX_PATCH_LENGTH = 24,
    /// Sessions, int: bytes in each patch under "static" patching; the model's own.
    BLT_OPTION_PATCH_SIZE = 25,
    /// Sessions, int 0 or 1: compute entropies even if patching does not need them; 0.
    BLT_OPTION_ENTROPIES = 26,
    /// Sessions, int: restart the entropy model every n bytes; 0, never.
    BLT_OPTION_ENTROPY_RESET = 27,
    /// Sessions, int: maximum number of byte positions; the model's own limit.
    BLT_OPTION_MAX_BYTES = 28,
    /// Sessions, int: maximum number of patches; the model's own limit.
    BLT_OPTION_MAX_PATCHES = 29,
    /// Sessions, int: when the context is full, continue with the last n bytes; fail with
    /// BLT_ERROR_CONTEXT_FULL.
    BLT_OPTION_SLIDE_KEEP = 30,
    /// Sessions, text: type of keys and values, "f32" or "f16" (half the memory); "f16" if the weights
    /// are quantised, else "f32".
    BLT_OPTION_KV = 31,

    /// Sampling, real: temperature, 0 always takes the most probable byte; 0.8.
    BLT_OPTION_TEMPERATURE = 40,
    /// Sampling, int: sample from the k most probable bytes; 0, all.
    BLT_OPTION_TOP_K = 41,
    /// Sampling, real: sample from the smallest set with this total probability, 1 for all; 0.95.
    BLT_OPTION_TOP_P = 42,
    /// Sampling, real: drop bytes below this share of the largest probability, 0 for none; 0.02.
    BLT_OPTION_MIN_P = 43,
    /// Sampling, real: penalty on recent bytes; 1, none.
    BLT_OPTION_REPEAT_PENALTY = 44,
    /// Sampling, int: how many bytes back the penalty looks; 256.
    BLT_OPTION_REPEAT_WINDOW = 45,
    /// Sampling, int: random seed; 0.
    BLT_OPTION_SEED = 46,
    /// Sampling, int 0 or 1: never end with the end-of-sequence id; 0.
    BLT_OPTION_IGNORE_EOS = 47,
    /// Generating, text: bytes that end a generation and are not passed to the callback. May be set
    /// several times; an empty text removes all; none.
    BLT_OPTION_STOP = 48,
    /// Generating, int: bytes to draft at a time (self-speculation: faster, the same bytes, in bursts),
    /// 0 for none, at most 64; automatic.
    BLT_OPTION_DRAFT = 49,
}

use blt_option::*;

impl blt_option {
    const ALL: [blt_option; 32] = [
        BLT_OPTION_THREADS,
        BLT_OPTION_ISA,
        BLT_OPTION_CONFIG,
        BLT_OPTION_ENTROPY_MODEL,
        BLT_OPTION_PRELOAD,
        BLT_OPTION_COPY,
        BLT_OPTION_PATCHING,
        BLT_OPTION_PROFILE,
        BLT_OPTION_TOKENIZER,
        BLT_OPTION_LOAD,
        BLT_OPTION_NO_BOS,
        BLT_OPTION_THRESHOLD,
        BLT_OPTION_THRESHOLD_ADD,
        BLT_OPTION_MONOTONICITY,
        BLT_OPTION_MAX_PATCH_LENGTH,
        BLT_OPTION_PATCH_SIZE,
        BLT_OPTION_ENTROPIES,
        BLT_OPTION_ENTROPY_RESET,
        BLT_OPTION_MAX_BYTES,
        BLT_OPTION_MAX_PATCHES,
        BLT_OPTION_SLIDE_KEEP,
        BLT_OPTION_KV,
        BLT_OPTION_TEMPERATURE,
        BLT_OPTION_TOP_K,
        BLT_OPTION_TOP_P,
        BLT_OPTION_MIN_P,
        BLT_OPTION_REPEAT_PENALTY,
        BLT_OPTION_REPEAT_WINDOW,
        BLT_OPTION_SEED,
        BLT_OPTION_IGNORE_EOS,
        BLT_OPTION_STOP,
        BLT_OPTION_DRAFT,
    ];

    fn find(number: c_int) -> Result<Self> {
        (Self::ALL
            .into_iter()
            .find(|&option| option as c_int == number))
        .ok_or_else(|| {
            Failure::argument("option", format!("expected a blt_option, found {number}"))
        })
    }

    fn name(self) -> String {
        format!("{self:?}")
    }

    fn wrong_kind(self, found: &str) -> Failure {
        Failure::argument(
            &self.name(),
            format!("expected another kind, found {found}"),
        )
    }
}

/// Settings for opening models, for sessions and for generating.
pub struct blt_options(Mutex<Settings>);

/// What the options hold. Functions that take options look at their own part.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub model: ModelOptions,
    pub copy: bool,
    pub generate: GenerateOptions,
    session: SessionOptions,
    patcher: PatcherChanges,
}

/// Settings of the patcher that replace the model's own.
#[derive(Debug, Clone, Default)]
struct PatcherChanges {
    mode: Option<PatchingMode>,
    threshold: Option<f32>,
    threshold_add: Option<f32>,
    monotonicity: Option<bool>,
    max_patch_length: Option<usize>, // 0: no limit
    patch_size: Option<usize>,
}

impl Settings {
    /// The settings that a handle guards; the defaults if there is none.
    pub fn of(options: Option<&blt_options>) -> Result<Settings> {
        match options {
            Some(options) => Ok(lock("options", &options.0)?.clone()),
            None => Ok(Settings::default()),
        }
    }

    /// Options for a session with `model`.
    pub fn session(&self, model: &Model) -> SessionOptions {
        let PatcherChanges {
            mode,
            threshold,
            threshold_add,
            monotonicity,
            max_patch_length,
            patch_size,
        } = self.patcher;
        let own = &model.config().patcher;
        SessionOptions {
            patcher: Some(PatcherConfig {
                mode: mode.unwrap_or(own.mode),
                threshold: threshold.unwrap_or(own.threshold),
                threshold_add: threshold_add.or(own.threshold_add),
                monotonicity: monotonicity.unwrap_or(own.monotonicity),
                max_patch_length: match max_patch_length {
                    Some(n) => non_zero(n),
                    None => own.max_patch_length,
                },
                patch_size: patch_size.unwrap_or(own.patch_size),
            }),
            ..self.session.clone()
        }
    }

    fn set_int(&mut self, option: blt_option, value: u64) -> Result<()> {
        let name = option.name();
        let size = || {
            usize::try_from(value)
                .map_err(|_| Failure::argument(&name, format!("expected a size, found {value}")))
        };
        let flag = || match value {
            0 | 1 => Ok(value == 1),
            _ => Err(Failure::argument(
                &name,
                format!("expected 0 or 1, found {value}"),
            )),
        };
        match option {
            BLT_OPTION_THREADS => self.model = self.model.clone().threads(size()?),
            BLT_OPTION_PRELOAD => self.model = self.model.clone().preload(flag()?),
            BLT_OPTION_COPY => self.copy = flag()?,
            BLT_OPTION_NO_BOS => self.session.no_bos = flag()?,
            BLT_OPTION_MONOTONICITY => self.patcher.monotonicity = Some(flag()?),
            BLT_OPTION_MAX_PATCH_LENGTH => self.patcher.max_patch_length = Some(size()?),
            BLT_OPTION_PATCH_SIZE => self.patcher.patch_size = Some(size()?),
            BLT_OPTION_ENTROPIES => self.session.entropies = flag()?,
            BLT_OPTION_ENTROPY_RESET => self.session.entropy_reset = non_zero(size()?),
            BLT_OPTION_MAX_BYTES => self.session.max_bytes = Some(size()?),
            BLT_OPTION_MAX_PATCHES => self.session.max_patches = Some(size()?),
            BLT_OPTION_SLIDE_KEEP => self.session.overflow = Overflow::Slide { keep: size()? },
            BLT_OPTION_TOP_K => self.generate.sampler.top_k = non_zero(size()?),
            BLT_OPTION_REPEAT_WINDOW => self.generate.sampler.repeat_window = size()?,
            BLT_OPTION_SEED => self.generate.sampler.seed = value,
            BLT_OPTION_IGNORE_EOS => self.generate.sampler.ignore_eos = flag()?,
            BLT_OPTION_DRAFT => match size()? {
                n if n > MAX_DRAFT => {
                    let message = format!("expected at most {MAX_DRAFT}, found {n}");
                    return Err(Failure::argument(&name, message));
                }
                n => self.generate.draft = Some(n),
            },
            _ => return Err(option.wrong_kind("an int")),
        }
        Ok(())
    }

    fn set_real(&mut self, option: blt_option, value: f64) -> Result<()> {
        let value = value as f32;
        if !value.is_finite() {
            return Err(Failure::argument(
                &option.name(),
                format!("expected a finite number, found {value}"),
            ));
        }
        let mut sampler = self.generate.sampler.clone();
        match option {
            BLT_OPTION_THRESHOLD => self.patcher.threshold = Some(value),
            BLT_OPTION_THRESHOLD_ADD => self.patcher.threshold_add = Some(value),
            BLT_OPTION_TEMPERATURE => sampler.temperature = value,
            BLT_OPTION_TOP_P => sampler.top_p = (value != 1.0).then_some(value),
            BLT_OPTION_MIN_P => sampler.min_p = (value != 0.0).then_some(value),
            BLT_OPTION_REPEAT_PENALTY => sampler.repeat_penalty = value,
            _ => return Err(option.wrong_kind("a real")),
        }
        sampler.validate()?;
        self.generate.sampler = sampler;
        Ok(())
    }

    fn set_text(&mut self, option: blt_option, text: &[u8]) -> Result<()> {
        let name = option.name();
        let path = || path_of_bytes(&name, text);
        let word = String::from_utf8_lossy(text);
        match option {
            BLT_OPTION_ISA => {
                let isa = Isa::by_name(&word).ok_or_else(|| {
                    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
                    let names = names.join(", ");
                    Failure::argument(&name, format!("expected one of {names}, found {word:?}"))
                })?;
                self.model = self.model.clone().isa(isa);
            }
            BLT_OPTION_CONFIG => self.model = self.model.clone().config(path()?),
            BLT_OPTION_ENTROPY_MODEL => self.model = self.model.clone().entropy_model(path()?),
            BLT_OPTION_TOKENIZER => self.model = self.model.clone().tokenizer(path()?),
            BLT_OPTION_LOAD => {
                let load =
                    (word.parse()).map_err(|e: Error| Failure::argument(&name, e.to_string()))?;
                self.model = self.model.clone().files(load);
            }
            BLT_OPTION_PATCHING => {
                let mode = (word.parse::<PatchingMode>())
                    .map_err(|e| Failure::argument(&name, e.to_string()))?;
                self.model = self.model.clone().patching(mode);
                self.patcher.mode = Some(mode);
            }
            BLT_OPTION_PROFILE => {
                let profile =
                    (word.parse()).map_err(|e: Error| Failure::argument(&name, e.to_string()))?;
                self.model = self.model.clone().profile(profile);
            }
            BLT_OPTION_KV => {
                let kv =
                    (word.parse()).map_err(|e: Error| Failure::argument(&name, e.to_string()))?;
                self.session.kv = Some(kv);
            }
            BLT_OPTION_STOP if text.is_empty() => self.generate.stop.clear(),
            BLT_OPTION_STOP => self.generate.stop.push(text.to_vec()),
            _ => return Err(option.wrong_kind("a text")),
        }
        Ok(())
    }
}

fn non_zero(n: usize) -> Option<usize> {
    (n > 0).then_some(n)
}

/// Makes options with default settings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_options_new(out: *mut *mut blt_options) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let out = unsafe { Out::new("out", out)? };
        let options = blt_options(Mutex::new(Settings::default()));
        out.set(Box::into_raw(Box::new(options)));
        Ok(())
    })
}

/// Frees options. Models and sessions made with them stay valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_options_free(options: *mut blt_options) {
    // SAFETY: the header's rules.
    unsafe { free(options) };
}

/// Sets an option whose kind is int.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_options_set_int(
    options: *mut blt_options,
    option: c_int,
    value: u64,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let options = unsafe { handle("options", options)? };
        lock("options", &options.0)?.set_int(blt_option::find(option)?, value)
    })
}

/// Sets an option whose kind is real.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_options_set_real(
    options: *mut blt_options,
    option: c_int,
    value: f64,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let options = unsafe { handle("options", options)? };
        lock("options", &options.0)?.set_real(blt_option::find(option)?, value)
    })
}

/// Sets an option whose kind is text: any bytes, n_bytes of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_options_set_text(
    options: *mut blt_options,
    option: c_int,
    text: *const c_char,
    n_bytes: usize,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let options = unsafe { handle("options", options)? };
        // SAFETY: as above.
        let text = unsafe { bytes("text", text.cast::<c_void>(), n_bytes)? };
        lock("options", &options.0)?.set_text(blt_option::find(option)?, text)
    })
}
