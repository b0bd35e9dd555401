//! The settings of a training run. Each has one name, as a flag of the program and as a key of a TOML or
//! JSON file.

use std::path::Path;
use std::time::Duration;

use blt_kernels::Isa;
use serde_json::{Map, Value};

use super::adamw::AdamConfig;
use super::matmul::Precision;
use super::presets::{hidden_of, is_tied, preset};
use super::schedule::{Decay, Schedule};
use crate::checkpoint::parse_json;
use crate::config::{Config, DifferentialConfig, PatcherConfig, TransformerConfig};
use crate::documents::Format;
use crate::error::{Error, Result};
use crate::input;
use crate::ops::MAX_THREADS;
use crate::tensor::DType;

/// A value that can be read from text and shown as text.
trait Field: Sized {
    fn parse(text: &str) -> Option<Self>;
    fn show(&self) -> String;
    const EXPECTED: &'static str;
}

macro_rules! number_field {
    ($($type:ty: $expected:literal),*) => {$(
        impl Field for $type {
            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn show(&self) -> String {
                self.to_string()
            }
            const EXPECTED: &'static str = $expected;
        }
    )*};
}
number_field!(usize: "a whole number", u64: "a whole number", bool: "true or false");

impl Field for f64 {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|x: &f64| x.is_finite())
    }
    fn show(&self) -> String {
        self.to_string()
    }
    const EXPECTED: &'static str = "a number";
}

impl Field for String {
    fn parse(text: &str) -> Option<Self> {
        Some(text.to_string())
    }
    fn show(&self) -> String {
        self.clone()
    }
    const EXPECTED: &'static str = "a text";
}

impl Field for Precision {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "f32" => Some(Precision::F32),
            "bf16" => Some(Precision::Bf16),
            _ => None,
        }
    }
    fn show(&self) -> String {
        match self {
            Precision::F32 => "f32".into(),
            Precision::Bf16 => "bf16".into(),
        }
    }
    const EXPECTED: &'static str = "f32 or bf16";
}

/// How often something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// After this many steps.
    Steps(u64),
    /// After this many seconds.
    Seconds(u64),
}

impl Interval {
    const UNITS: [(char, u64); 3] = [('h', 3600), ('m', 60), ('s', 1)];

    /// Whether it is time, after this step and this long since the last time.
    pub fn is_due(self, step: u64, elapsed: Duration) -> bool {
        match self {
            Interval::Steps(steps) => step.is_multiple_of(steps),
            Interval::Seconds(seconds) => elapsed.as_secs() >= seconds,
        }
    }
}

impl Field for Interval {
    fn parse(text: &str) -> Option<Self> {
        let unit = Interval::UNITS
            .iter()
            .find(|(unit, _)| text.ends_with(*unit));
        Some(match unit {
            None => Interval::Steps(text.parse().ok().filter(|&n| n > 0)?),
            Some((unit, seconds)) => {
                let n: u64 = text.strip_suffix(*unit)?.parse().ok().filter(|&n| n > 0)?;
                Interval::Seconds(n.checked_mul(*seconds)?)
            }
        })
    }
    fn show(&self) -> String {
        match *self {
            Interval::Steps(steps) => steps.to_string(),
            Interval::Seconds(n) => {
                let fits = |(_, seconds): &&(char, u64)| n.is_multiple_of(*seconds);
                let (unit, seconds) = Interval::UNITS.iter().find(fits).expect("seconds fit");
                format!("{}{unit}", n / seconds)
            }
        }
    }
    const EXPECTED: &'static str = "a number of steps, or of seconds, minutes or hours as in 10m";
}

impl<T: Field> Field for Option<T> {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "null" | "none" => Some(None),
            text => T::parse(text).map(Some),
        }
    }
    fn show(&self) -> String {
        self.as_ref().map_or("none".into(), T::show)
    }
    const EXPECTED: &'static str = T::EXPECTED;
}

impl<T: Field> Field for Vec<T> {
    fn parse(text: &str) -> Option<Self> {
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        parts.map(T::parse).collect()
    }
    fn show(&self) -> String {
        let parts: Vec<String> = self.iter().map(T::show).collect();
        parts.join(",")
    }
    const EXPECTED: &'static str = "a list with commas";
}

macro_rules! settings {
    (@shape $name:ident) => {
        stringify!($name)
    };
    ($($(#[doc = $doc:literal])+ $(@$shape:ident)? $name:ident: $type:ty = $default:expr;)*) => {
        /// All settings. A field `seq_len` is the flag `--seq-len` and the key `seq_len` of a
        /// file.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Settings {
            $($(#[doc = $doc])+ pub $name: $type,)*
        }

        impl Default for Settings {
            fn default() -> Self {
                Settings { $($name: $default,)* }
            }
        }

        impl Settings {
            /// Name, meaning and default of each.
            pub fn list() -> Vec<(&'static str, String, String)> {
                let default = Settings::default();
                vec![$((
                    stringify!($name),
                    [$($doc),+].concat().trim().to_string(),
                    Field::show(&default.$name),
                ),)*]
            }

            /// Sets the one of this name; `-` and `_` are the same.
            ///
            /// # Errors
            /// [`Error::Config`] for an unknown name or a text that is not a value of that setting.
            pub fn set(&mut self, name: &str, text: &str) -> Result<()> {
                let name = name.replace('-', "_");
                match name.as_str() {
                    $(stringify!($name) => {
                        self.$name = <$type as Field>::parse(text).ok_or_else(|| {
                            let expected = <$type as Field>::EXPECTED;
                            Error::config(&name, format!("expected {expected}, found \"{text}\""))
                        })?;
                    })*
                    _ => return Err(Error::config(&name, "expected the name of a setting, found an unknown name")),
                }
                Ok(())
            }

            /// The settings that a model which exists has its own of: those marked `@shape`.
            const SHAPE: &[&str] = &[$($(settings!(@$shape $name),)?)*];

            /// All settings as JSON text.
            pub fn to_json(&self) -> Value {
                let mut map = Map::new();
                $(map.insert(stringify!($name).into(), Value::String(self.$name.show()));)*
                Value::Object(map)
            }
        }
    };
}

settings! {
    /// Texts to train on: files, .jsonl files, folders, - for standard input; with commas between.
    data: Vec<String> = Vec::new();
    /// Texts to validate on.
    valid: Vec<String> = Vec::new();
    /// Share of the data held out for validation if there is no --valid: whole documents, drawn by the seed.
    valid_share: f64 = 0.05;
    /// Line that separates documents.
    separator: String = crate::documents::SEPARATOR.into();
    /// Key of the texts in .jsonl files.
    text_key: String = crate::documents::TEXT_KEY.into();
    /// Folder of the run: checkpoints, log, models.
    out: String = "run".into();
    /// Sizes to start from: toy, tiny, small or 55m.
    @shape preset: String = "small".into();
    /// Run folder or checkpoint whose entropy model cuts the patches (stage main).
    entropy_model: Option<String> = None;
    /// Seed of everything random.
    seed: u64 = 1;
    /// Threads; none: all of the machine.
    threads: Option<usize> = None;
    /// Number of parts that a batch is computed in; at most this many threads work. Results depend on it, not
    /// on the number of threads.
    shards: usize = 2;
    /// Precision of matrix products in training: f32, or bf16 (factors rounded, sums in f32; faster, needs
    /// AVX-512 BF16). Weights, validation and patching stay in f32.
    precision: Precision = Precision::F32;
    /// Steps of the optimiser.
    steps: u64 = 1000;
    /// Ids read per micro-batch (one per step, see accumulate): on average, and within one document each time.
    batch: usize = 8192;
    /// Longest sequence, in ids.
    seq_len: usize = 1024;
    /// Micro-batches per step.
    accumulate: usize = 1;
    /// Highest learning rate; none: 2e-3, for finetune 1e-4, from 100 M parameters on 2e-5, with adapters 2e-4.
    lr: Option<f64> = None;
    /// Last learning rate, as a share of the highest.
    lr_floor: f64 = 0.05;
    /// Steps over which the learning rate rises; none: 100, but at most a tenth of the steps, for finetune a
    /// twentieth.
    warmup: Option<u64> = None;
    /// How the learning rate falls: cosine, linear, trapezoid or constant.
    decay: String = "cosine".into();
    /// Share of the steps over which a trapezoid falls.
    cooldown: f64 = 0.4;
    /// AdamW: decay of the mean of gradients.
    beta1: f64 = 0.9;
    /// AdamW: decay of the mean of squared gradients.
    beta2: f64 = 0.95;
    /// AdamW: added to the root of the mean square.
    adam_eps: f64 = 1e-8;
    /// AdamW: weight decay of matrices (norms and embeddings have none); none: 0.1, for finetune 0.01.
    weight_decay: Option<f64> = None;
    /// Largest global norm of the gradient; 0: no limit.
    clip: f64 = 1.0;
    /// Dropout of embeddings and residual branches.
    dropout: f64 = 0.0;
    /// Share of positions whose n-gram embeddings are dropped, so that the tables do not memorise the text.
    hash_dropout: f64 = 0.0;
    /// One tensor for byte embedding and output; none: as the preset, or for finetune the checkpoint, has it.
    tied: Option<bool> = None;
    /// Steps between lines of the log.
    log_every: u64 = 20;
    /// Steps between validations.
    valid_every: u64 = 250;
    /// Bytes per validation: a random sample of the validation text, the same each time.
    valid_bytes: usize = 131_072;
    /// Between checkpoints: steps, or a time such as 10m (s, m or h).
    save_every: Interval = Interval::Steps(250);
    /// Stop after this many validations in a row without a better one; 0: never.
    patience: u64 = 0;
    /// Weights of the model files: best (lowest loss on validation text, if there is any) or last.
    keep: String = "best".into();
    /// Element type of the model files: bf16 or f32.
    dtype: String = "bf16".into();
    /// Rank of the adapters that are trained instead of all weights; 0: none.
    lora_rank: usize = 0;
    /// Strength of the adapters: they count alpha / rank.
    lora_alpha: f64 = 16.0;
    /// Matrices that get adapters, by the last part of their names.
    lora_targets: Vec<String> = vec!["wq".into(), "wk".into(), "wv".into(), "wo".into()];
    /// Mean patch length for which the entropy stage chooses the threshold.
    @shape patch_length: f64 = 4.5;
    /// How patches are cut: entropy, space, static or byte; none: the preset's.
    patching: Option<String> = None;
    /// Bytes per patch in static mode.
    patch_size: Option<usize> = None;
    /// Longest patch; 0: no limit.
    max_patch_length: Option<usize> = None;
    /// Width of the local encoder and decoder.
    @shape local_dim: Option<usize> = None;
    /// Heads of the local encoder and decoder.
    @shape local_heads: Option<usize> = None;
    /// Feed-forward width of the local encoder and decoder.
    @shape local_hidden: Option<usize> = None;
    /// Layers of the local encoder.
    @shape encoder_layers: Option<usize> = None;
    /// Layers of the local decoder.
    @shape decoder_layers: Option<usize> = None;
    /// Bytes a byte sees in the local encoder and decoder.
    @shape local_window: Option<usize> = None;
    /// Width of the global transformer.
    @shape global_dim: Option<usize> = None;
    /// Heads of the global transformer.
    @shape global_heads: Option<usize> = None;
    /// Layers of the global transformer.
    @shape global_layers: Option<usize> = None;
    /// Feed-forward width of the global transformer.
    @shape global_hidden: Option<usize> = None;
    /// Vectors each patch is given in cross-attention.
    @shape cross_k: Option<usize> = None;
    /// Rows of each hash table.
    @shape hash_vocab: Option<usize> = None;
    /// Lengths of the hashed n-grams; a list of one 0: none.
    @shape hash_sizes: Option<Vec<usize>> = None;
    /// Hash functions per n-gram length.
    @shape hash_functions: Option<usize> = None;
    /// Width of the entropy model.
    @shape entropy_dim: Option<usize> = None;
    /// Heads of the entropy model.
    @shape entropy_heads: Option<usize> = None;
    /// Layers of the entropy model.
    @shape entropy_layers: Option<usize> = None;
    /// Bytes a byte sees in the entropy model.
    @shape entropy_window: Option<usize> = None;
    /// Parts with differential attention: entropy, encoder, global, decoder or all.
    @shape diff_attention: Vec<String> = Vec::new();
    /// Parts whose differential attention has the head-wise norm, as above.
    @shape diff_norm: Vec<String> = vec!["all".into()];
}

/// Largest file of settings that is read.
const MAX_FILE: usize = 1 << 20;

/// The first line that nests lists, tables or parts of a name deeper than any setting does: the parser calls itself for
/// each level, and would run out of stack.
fn deep_toml_line(text: &str) -> Option<usize> {
    const MAX_DEPTH: usize = 4;
    let (mut depth, mut n_dots) = (0usize, 0);
    for (number, line) in text.lines().enumerate() {
        let mut quote = None;
        for c in line.chars() {
            match (c, quote) {
                (c, Some(q)) if c == q => quote = None,
                (_, Some(_)) => continue,
                ('"' | '\'', None) => quote = Some(c),
                ('#', None) => break,
                ('[' | '{', None) => depth += 1,
                (']' | '}', None) => depth = depth.saturating_sub(1),
                ('.', None) => n_dots += 1,
                ('=' | ',', None) => n_dots = 0,
                _ => {}
            }
            if depth.max(n_dots) > MAX_DEPTH {
                return Some(number + 1);
            }
        }
        n_dots = 0;
    }
    None
}

impl Settings {
    /// Takes the settings of a file: TOML if its name ends in `.toml`, else JSON.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, else as [`Settings::set_json`].
    pub fn set_file(&mut self, path: &Path) -> Result<()> {
        let text = input::read_text(path, MAX_FILE)?;
        let set = match path.extension().is_some_and(|e| e == "toml") {
            true => self.set_toml(&text),
            false => self.set_json(&text),
        };
        set.map_err(|e| match e {
            Error::Config { key, what } => Error::format(path, format!("{key}: {what}")),
            e => e,
        })
    }

    /// Takes the keys of a JSON object: numbers, texts, flags, lists of them.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown key or a value that does not fit it.
    pub fn set_json(&mut self, text: &str) -> Result<()> {
        let fault = |what: String| Error::config("config", what);
        match parse_json(text.as_bytes()) {
            Ok(Value::Object(map)) => self.set_all(map),
            Ok(_) => Err(fault("expected a JSON object, found another value".into())),
            Err(e) => Err(fault(format!("expected a JSON object, found a fault: {e}"))),
        }
    }

    /// Takes settings from TOML without tables.
    ///
    /// # Errors
    /// Same as [`Settings::set_json`].
    pub fn set_toml(&mut self, text: &str) -> Result<()> {
        let fault = |what: String| Error::config("config", what);
        if let Some(line) = deep_toml_line(text) {
            return Err(fault(format!(
                "expected TOML of names and values, found nested ones in line {line}"
            )));
        }
        let map = basic_toml::from_str(text)
            .map_err(|e| fault(format!("expected TOML, found a fault: {e}")))?;
        self.set_all(map)
    }

    fn set_all(&mut self, map: Map<String, Value>) -> Result<()> {
        let plain = |v: &Value| match v {
            Value::String(s) => s.clone(),
            other => other.to_string(),
        };
        for (key, value) in &map {
            let text = match value {
                Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
                other => plain(other),
            };
            self.set(key, &text)?;
        }
        Ok(())
    }

    /// Gives rate, decay and warm-up that were not set the values for fine-tuning a model of that many parameters:
    /// it has been trained already, and a rate for new weights would destroy that.
    pub fn fill_for_finetune(&mut self, n_parameters: usize) {
        let lr = match (self.lora_rank > 0, n_parameters < 100_000_000) {
            (true, _) => 2e-4,
            (false, true) => 1e-4,
            (false, false) => 2e-5,
        };
        self.lr.get_or_insert(lr);
        self.weight_decay.get_or_insert(0.01);
        self.warmup.get_or_insert((self.steps / 20).min(100));
    }

    /// Whether byte embedding and output are one tensor.
    pub fn is_tied(&self) -> bool {
        self.tied.unwrap_or(is_tied(&self.preset))
    }

    /// How documents are told apart.
    pub fn format(&self) -> Format {
        Format {
            separator: self.separator.clone(),
            text_key: self.text_key.clone(),
        }
    }

    /// Element type of the model files.
    pub fn dtype(&self) -> DType {
        match self.dtype.as_str() {
            "f32" => DType::F32,
            _ => DType::Bf16,
        }
    }

    /// The optimiser's settings.
    pub fn adam(&self) -> AdamConfig {
        AdamConfig {
            betas: (self.beta1, self.beta2),
            eps: self.adam_eps,
            weight_decay: self.weight_decay.unwrap_or(0.1),
            clip: self.clip,
        }
    }

    /// The learning rates.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown decay.
    pub fn schedule(&self) -> Result<Schedule> {
        Ok(Schedule {
            peak: self.lr.unwrap_or(2e-3),
            floor: self.lr_floor,
            warmup: self.warmup.unwrap_or((self.steps / 10).min(100)),
            steps: self.steps,
            cooldown: self.cooldown,
            decay: self.decay.parse::<Decay>()?,
        })
    }

    /// Checks what can be checked without files.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        let threads = self.threads.unwrap_or(1);
        for (name, value, most) in [
            ("steps", self.steps, 1 << 40),
            ("batch", self.batch as u64, 1 << 40),
            ("seq_len", self.seq_len as u64, 1 << 31),
            ("accumulate", self.accumulate as u64, 1 << 16),
            ("log_every", self.log_every, 1 << 40),
            ("valid_every", self.valid_every, 1 << 40),
            ("shards", self.shards as u64, MAX_THREADS as u64),
            ("threads", threads as u64, MAX_THREADS as u64),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::config(
                    name,
                    format!("expected 1 to {most}, found {value}"),
                ));
            }
        }
        for (name, value) in [
            ("dropout", self.dropout),
            ("hash_dropout", self.hash_dropout),
            ("valid_share", self.valid_share),
            ("beta1", self.beta1),
            ("beta2", self.beta2),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::config(
                    name,
                    format!("expected 0 to below 1, found {value}"),
                ));
            }
        }
        for (name, value, lowest, highest) in [
            ("lr", self.lr.unwrap_or(0.0), 0.0, 10.0),
            ("lr_floor", self.lr_floor, 0.0, 1.0),
            ("cooldown", self.cooldown, 0.0, 1.0),
            ("weight_decay", self.weight_decay.unwrap_or(0.0), 0.0, 1e3),
            ("clip", self.clip, 0.0, f64::INFINITY),
            ("adam_eps", self.adam_eps, f64::MIN_POSITIVE, 1.0),
            ("lora_alpha", self.lora_alpha, f64::MIN_POSITIVE, 1e6),
            ("patch_length", self.patch_length, 1.0, 1e6),
        ] {
            if !(lowest..=highest).contains(&value) {
                return Err(Error::config(
                    name,
                    match (lowest, highest) {
                        (l, h) if l == f64::MIN_POSITIVE => {
                            format!("expected more than 0 and at most {h}, found {value}")
                        }
                        (l, f64::INFINITY) => format!("expected at least {l}, found {value}"),
                        (l, h) => format!("expected {l} to {h}, found {value}"),
                    },
                ));
            }
        }
        if let Some(warmup) = self.warmup.filter(|&warmup| warmup > self.steps) {
            return Err(Error::config(
                "warmup",
                format!("expected at most --steps {}, found {warmup}", self.steps),
            ));
        }
        if !self.precision.is_available(Isa::detect()) {
            return Err(Error::config(
                "precision",
                "expected a CPU with AVX-512 BF16, found none; --precision f32 runs everywhere",
            ));
        }
        if !["bf16", "f32"].contains(&self.dtype.as_str()) {
            return Err(Error::config(
                "dtype",
                format!("expected bf16 or f32, found \"{}\"", self.dtype),
            ));
        }
        if !["best", "last"].contains(&self.keep.as_str()) {
            return Err(Error::config(
                "keep",
                format!("expected best or last, found \"{}\"", self.keep),
            ));
        }
        self.schedule().map(|_| ())
    }

    /// The first setting of a shape (or of the threshold) that is not at its default: a model that exists
    /// has its own.
    pub fn changed_shape(&self) -> Option<&'static str> {
        let (now, default) = (self.to_json(), Settings::default().to_json());
        let changed = |name: &&&str| now[**name] != default[**name];
        Settings::SHAPE.iter().find(changed).copied()
    }

    /// The architecture: the preset's, changed by the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown preset or sizes that do not fit together.
    pub fn architecture(&self) -> Result<Config> {
        let mut c = preset(&self.preset)?;
        let local_dim = self.local_dim.unwrap_or(c.encoder.dim);
        let local_heads = self.local_heads.unwrap_or(c.encoder.n_heads);
        for (stack, layers) in [
            (&mut c.encoder, self.encoder_layers),
            (&mut c.decoder, self.decoder_layers),
        ] {
            resize(
                "local_heads",
                stack,
                Some(local_dim),
                Some(local_heads),
                layers,
                self.local_hidden,
            )?;
            if let Some(window) = self.local_window {
                stack.window = Some(window);
            }
        }
        for cross in [&mut c.encoder_cross, &mut c.decoder_cross] {
            (cross.n_heads, cross.n_kv_heads) = (local_heads, local_heads);
            cross.head_dim = local_dim / local_heads;
        }
        resize(
            "global_heads",
            &mut c.global,
            self.global_dim,
            self.global_heads,
            self.global_layers,
            self.global_hidden,
        )?;
        if let Some(entropy) = &mut c.entropy {
            resize(
                "entropy_heads",
                entropy,
                self.entropy_dim,
                self.entropy_heads,
                self.entropy_layers,
                None,
            )?;
            if let Some(window) = self.entropy_window {
                entropy.window = Some(window);
            }
        }
        c.cross_attn_k = self.cross_k.unwrap_or(c.cross_attn_k);
        c.hash.vocab = self.hash_vocab.unwrap_or(c.hash.vocab);
        c.hash.n_functions = self.hash_functions.unwrap_or(c.hash.n_functions);
        if let Some(sizes) = &self.hash_sizes {
            c.hash.group_sizes = sizes.iter().copied().filter(|&s| s > 0).collect();
        }
        self.differential_into(&mut c)?;
        self.patching_into(&mut c.patcher)?;
        c.max_bytes = c.max_bytes.max(self.seq_len);
        c.max_patches = c.max_patches.max(self.seq_len);
        match c.validate() {
            Ok(()) => Ok(c),
            Err(Error::Config { key, what }) => Err(Error::config(setting_of(&key), what)),
            Err(error) => Err(error),
        }
    }

    /// Gives the parts named differential attention, and those also named head-wise norms.
    fn differential_into(&self, config: &mut Config) -> Result<()> {
        let stacks = [
            ("entropy", config.entropy.as_mut()),
            ("encoder", Some(&mut config.encoder)),
            ("global", Some(&mut config.global)),
            ("decoder", Some(&mut config.decoder)),
        ];
        let parts = stacks.each_ref().map(|(part, _)| *part);
        for (setting, list) in [
            ("diff_attention", &self.diff_attention),
            ("diff_norm", &self.diff_norm),
        ] {
            let known = |name: &str| ["all", "none"].contains(&name) || parts.contains(&name);
            if let Some(other) = list.iter().find(|name| !known(name)) {
                let expected = format!("expected {}, all or none", parts.join(", "));
                return Err(Error::config(
                    setting,
                    format!("{expected}, found \"{other}\""),
                ));
            }
        }
        let names = |list: &[String], part| list.iter().any(|n| n == part || n == "all");
        for (part, stack) in stacks {
            let differential = names(&self.diff_attention, part).then(|| DifferentialConfig {
                head_norm: names(&self.diff_norm, part),
            });
            if let Some(stack) = stack {
                stack.differential = differential;
            }
        }
        Ok(())
    }

    /// Changes how patches are cut as far as the settings say.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown mode.
    pub fn patching_into(&self, patcher: &mut PatcherConfig) -> Result<()> {
        if let Some(mode) = &self.patching {
            patcher.mode = mode.parse()?;
        }
        if let Some(size) = self.patch_size {
            patcher.patch_size = size;
        }
        if let Some(max) = self.max_patch_length {
            patcher.max_patch_length = Some(max).filter(|&m| m > 0);
        }
        Ok(())
    }
}

/// The setting that gives a key of the configuration its value; the key itself if there is none.
fn setting_of(key: &str) -> &str {
    match key {
        "max_bytes" | "max_patches" => "seq_len",
        "patcher.patch_size" => "patch_size",
        "patcher.max_patch_length" => "max_patch_length",
        "cross_attn_k" => "cross_k",
        "encoder_hash_byte_group_vocab" => "hash_vocab",
        "encoder_hash_byte_group_nb_functions" => "hash_functions",
        "encoder_hash_byte_group_size" => "hash_sizes",
        "local_encoder.n_layers" => "encoder_layers",
        "local_decoder.n_layers" => "decoder_layers",
        "local_encoder.dim" => "local_dim",
        "local_encoder.hidden_dim" => "local_hidden",
        "local_encoder.window" => "local_window",
        "global_transformer.n_layers" => "global_layers",
        "global_transformer.dim" => "global_dim",
        "global_transformer.hidden_dim" => "global_hidden",
        "entropy_model.n_layers" => "entropy_layers",
        "entropy_model.dim" => "entropy_dim",
        "entropy_model.window" => "entropy_window",
        key => key,
    }
}

fn resize(
    name: &str,
    stack: &mut TransformerConfig,
    dim: Option<usize>,
    heads: Option<usize>,
    layers: Option<usize>,
    hidden: Option<usize>,
) -> Result<()> {
    if dim.is_some_and(|d| d != stack.dim) && hidden.is_none() {
        stack.hidden_dim = hidden_of(dim.unwrap_or(stack.dim));
    }
    stack.dim = dim.unwrap_or(stack.dim);
    stack.n_heads = heads.unwrap_or(stack.n_heads);
    stack.n_kv_heads = stack.n_heads;
    stack.n_layers = layers.unwrap_or(stack.n_layers);
    stack.hidden_dim = hidden.unwrap_or(stack.hidden_dim);
    if stack.n_heads == 0 || !stack.dim.is_multiple_of(stack.n_heads) {
        return Err(Error::config(
            name,
            format!(
                "expected a divisor of the width {}, found {}",
                stack.dim, stack.n_heads
            ),
        ));
    }
    stack.head_dim = stack.dim / stack.n_heads;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Component, ModelTensor, Role};

    #[test]
    fn flags_and_files_set_the_same() {
        let mut a = Settings::default();
        for (name, text) in [
            ("seq-len", "77"),
            ("lr", "0.5"),
            ("hash-sizes", "3,4"),
            ("tied", "true"),
        ] {
            a.set(name, text).unwrap();
        }
        let mut b = Settings::default();
        b.set_json("{\"seq_len\": 77, \"lr\": 0.5, \"hash_sizes\": [3, 4], \"tied\": true}")
            .unwrap();
        assert_eq!(a, b);
        let mut b = Settings::default();
        b.set_toml("# a run\nseq_len = 77\nlr = 0.5\nhash-sizes = [3, 4]\ntied = true\n")
            .unwrap();
        assert_eq!(a, b);
        for bad in [
            "seq_len = ",
            "[model]\nseq_len = 77",
            "seq_len = \"x\"",
            "{\"seq_len\": 77}",
        ] {
            assert!(b.set_toml(bad).is_err(), "{bad}");
        }
        for bad in ["[]", "{", "{\"seq_len\": {}}", "seq_len = 77"] {
            assert!(b.set_json(bad).is_err(), "{bad}");
        }
        let mut c = Settings::default();
        c.set_json(&a.to_json().to_string()).unwrap();
        assert_eq!(a, c);
        for (name, text) in [("seq-len", "x"), ("nonsense", "1"), ("lr", "nan")] {
            assert!(a.set(name, text).is_err(), "{name}");
        }
    }

    #[test]
    fn finetune_has_its_own_defaults_and_leaves_what_was_set() {
        let of = |n: usize, set: &[(&str, &str)]| {
            let mut s = Settings::default();
            set.iter()
                .for_each(|(name, text)| s.set(name, text).unwrap());
            s.fill_for_finetune(n);
            let schedule = s.schedule().unwrap();
            (schedule.peak, schedule.warmup, s.adam().weight_decay)
        };
        assert_eq!(of(7_000_000, &[]), (1e-4, 50, 0.01));
        assert_eq!(of(500_000_000, &[]), (2e-5, 50, 0.01));
        assert_eq!(of(500_000_000, &[("lora-rank", "8")]), (2e-4, 50, 0.01));
        let set = [("lr", "0.5"), ("warmup", "3"), ("weight-decay", "0.2")];
        assert_eq!(of(7_000_000, &set), (0.5, 3, 0.2));
        let schedule = Settings::default().schedule().unwrap();
        assert_eq!((schedule.peak, schedule.warmup), (2e-3, 100));
    }

    #[test]
    fn a_changed_shape_is_found_wherever_it_is_declared() {
        assert_eq!(Settings::default().changed_shape(), None);
        let texts = [
            ("preset", "toy"),
            ("patch-length", "3"),
            ("local-dim", "48"),
            ("hash-sizes", "3"),
            ("entropy-window", "9"),
            ("diff-norm", "none"),
        ];
        for (name, text) in texts {
            let mut s = Settings::default();
            s.set(name, text).unwrap();
            assert_eq!(s.changed_shape(), Some(&*name.replace('-', "_")));
        }
        // All settings of the architecture, and no setting of the run.
        assert_eq!(Settings::SHAPE.len(), 22);
        let mut s = Settings::default();
        for (name, text) in [("lr", "0.5"), ("lora-rank", "4"), ("patching", "space")] {
            s.set(name, text).unwrap();
        }
        assert_eq!(s.changed_shape(), None);
    }

    #[test]
    fn presets_are_valid_and_can_be_changed() {
        for name in ["toy", "tiny", "small", "55m"] {
            let mut s = Settings::default();
            s.set("preset", name).unwrap();
            s.validate().unwrap();
            s.architecture().unwrap();
            s.set("local-dim", "48").unwrap();
            s.set("local-heads", "3").unwrap();
            assert_eq!(s.architecture().unwrap().decoder.head_dim, 16);
            s.set("global-heads", "7").unwrap();
            assert!(s.architecture().is_err());
        }
        assert!(preset("huge").is_err());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for name in [
            "steps",
            "batch",
            "seq_len",
            "accumulate",
            "shards",
            "threads",
            "patch_size",
            "cross_k",
            "hash_vocab",
            "hash_functions",
            "encoder_layers",
            "decoder_layers",
            "local_dim",
            "local_hidden",
            "local_heads",
            "global_layers",
            "global_dim",
            "global_hidden",
            "global_heads",
            "entropy_layers",
            "entropy_dim",
            "entropy_heads",
        ] {
            let mut s = Settings::default();
            s.set(name, "115448720916480").unwrap();
            let checked = s.validate().and_then(|()| s.architecture().map(|_| ()));
            let message = checked.expect_err(name).to_string();
            assert!(message.contains(&format!("\"{name}\"")), "{message}");
        }
    }

    #[test]
    fn nested_toml_is_refused_before_it_is_parsed() {
        let mut s = Settings::default();
        let good = "steps = 5 # [[[[[\ndata = [\"[[[[[a.b.c.d.e.f\", 'x.y']\nlr = 0.5\nhash_sizes = [3, 4]\n";
        s.set_toml(good).unwrap();
        assert_eq!((s.steps, s.data.len(), s.lr), (5, 2, Some(0.5)));
        let deep = |text: &str| s.clone().set_toml(text).unwrap_err().to_string();
        for text in ["[", "a=[", "{a=", "a={a="].map(|part| part.repeat(32 << 10)) {
            assert!(deep(&text).contains("line 1"), "{}", &text[..8]);
        }
        let message = deep(&format!("steps = 1\n{}steps = 2", "a.".repeat(32 << 10)));
        assert!(message.contains("line 2"), "{message}");
        assert!(deep("[table]\nsteps = 1").contains("table"));
    }

    #[test]
    fn the_preset_55m_has_the_size_of_its_name() {
        let mut s = Settings::default();
        assert!(!s.is_tied());
        s.set("preset", "55m").unwrap();
        let config = s.architecture().unwrap();
        let n = |of_entropy: bool| -> usize {
            let all = crate::checkpoint::expected_tensors(&config).into_iter();
            let tied = |t: &ModelTensor| t.component == Component::Decoder && t.role == Role::Head;
            all.filter(|t| (t.component == Component::Entropy) == of_entropy && !tied(t))
                .map(|t| t.shape.iter().product::<usize>())
                .sum()
        };
        assert!(s.is_tied() && config.cross_attn_k == 3 && !config.has_global_projection());
        assert_eq!((n(false), n(true)), (55_404_288, 1_740_032));
    }

    #[test]
    fn differential_attention_is_a_switch_for_every_part() {
        let of = |set: &[(&str, &str)]| {
            let mut s = Settings::default();
            set.iter()
                .for_each(|(name, text)| s.set(name, text).unwrap());
            s.architecture().map(|c| {
                let stacks = [&c.entropy.unwrap(), &c.encoder, &c.global, &c.decoder];
                stacks.map(|stack| stack.differential.as_ref().map(|d| d.head_norm))
            })
        };
        assert_eq!(of(&[]).unwrap(), [None; 4]);
        let all = ("diff-attention", "all");
        assert_eq!(of(&[all]).unwrap(), [Some(true); 4]);
        assert_eq!(of(&[all, ("diff-norm", "none")]).unwrap(), [Some(false); 4]);
        assert_eq!(
            of(&[
                ("diff-attention", "entropy,decoder"),
                ("diff-norm", "decoder")
            ])
            .unwrap(),
            [Some(false), None, None, Some(true)]
        );
        let odd = ("local-dim", "102"); // heads of 34
        for set in [
            &[("diff-norm", "wq")][..],
            &[("diff-attention", "head")],
            &[all, odd],
        ] {
            let message = of(set).unwrap_err().to_string();
            assert!(message.contains("expected"), "{message}");
        }
    }
}
