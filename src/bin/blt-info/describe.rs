//! A checkpoint in words and as a record.

use std::fmt::Write;

use blt::checkpoint::{Checkpoint, config_to_json};
use blt::config::{
    BolmoConfig, Config, CrossAttentionConfig, LayerVariant, PatchingMode, QkNorm, RopeScaling,
    TransformerConfig,
};
use serde_json::{Map, Value, json};

use blt::KvType;
use blt::cli::units;
use blt::cli::weights::{Part, Traffic, by_part};

/// What running the model takes, in bytes.
struct Memory {
    traffic: Traffic,
    /// Weights that stay in memory: all but the hash tables, of which only rows are touched.
    resident: u64,
    /// Keys, values and patch vectors of a session as long as the model allows.
    caches: u64,
}

impl Memory {
    fn of(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config();
        let parts = by_part(checkpoint);
        let resident =
            (parts.iter()).filter(|(part, _)| !matches!(part, Part::HashTables | Part::Subwords));
        Memory {
            traffic: Traffic::of(checkpoint, runs_entropy_model(config)),
            resident: resident.map(|(_, weights)| weights.bytes).sum(),
            caches: cache_bytes(config, default_kv(checkpoint)),
        }
    }
}

fn runs_entropy_model(config: &Config) -> bool {
    config.entropy.is_some() && config.patcher.mode == PatchingMode::Entropy
}

/// As sessions keep keys and values unless told.
fn default_kv(checkpoint: &Checkpoint) -> KvType {
    let wq = (checkpoint.tensors()).find(|(name, _)| *name == "global.layers.0.wq");
    wq.map_or(KvType::F32, |(_, wq)| KvType::for_weights(wq.dtype()))
}

/// Keys and values: a window of bytes in the local parts, all patches in the
/// global one, and the global output of each patch. The few hundred positions that a session keeps
/// beyond a window, to go back, are left out.
fn cache_bytes(config: &Config, kv: KvType) -> u64 {
    let stack = |c: &TransformerConfig, positions: usize| {
        let kept = c.window.map_or(positions, |window| window.min(positions));
        (2 * c.n_layers * c.n_kv_heads * c.head_dim * kv.n_bytes()) as u64 * kept as u64
    };
    if config.bolmo.is_some() {
        let patch = (config.global.dim * size_of::<f32>()) as u64;
        let states = recurrent_bytes(&config.encoder) + recurrent_bytes(&config.decoder);
        return states
            + stack(&config.global, config.max_patches)
            + config.max_patches as u64 * patch;
    }
    let entropy = config
        .entropy
        .as_ref()
        .filter(|_| runs_entropy_model(config));
    stack(&config.encoder, config.max_bytes)
        + stack(&config.decoder, config.max_bytes)
        + stack(&config.global, config.max_patches)
        + entropy.map_or(0, |e| stack(e, config.max_bytes))
        + (config.max_patches * config.global.dim * size_of::<f32>()) as u64
}

/// What mLSTM layers carry from byte to byte. Snapshots, by which a session goes back, are left out.
fn recurrent_bytes(c: &TransformerConfig) -> u64 {
    let (keys, values) = (c.head_dim / 2, c.head_dim);
    (c.n_layers * c.n_heads * (keys * values + keys + 1) * size_of::<f32>()) as u64
}

/// For people.
pub fn text(checkpoint: &Checkpoint, checked: Option<(u64, usize)>) -> String {
    let config = checkpoint.config();
    let memory = Memory::of(checkpoint);
    let mut s = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(s, "{name:<20}{value}");
    };
    line("layout", checkpoint.layout().to_string());
    for file in checkpoint.files() {
        let size = units::memory(file.bytes);
        line("file", format!("{} ({size})", file.path.display()));
    }
    line("", String::new());
    for (name, value) in networks(config) {
        line(name, value);
    }
    line(
        "context",
        format!(
            "{} bytes, {} patches",
            units::count(config.max_bytes as u64),
            units::count(config.max_patches as u64)
        ),
    );
    line("", String::new());
    line(
        "part",
        format!("{:>8}{:>16}{:>12}  type", "tensors", "parameters", "size"),
    );
    let (mut tensors, mut parameters, mut bytes) = (0, 0, 0);
    for (part, weights) in by_part(checkpoint) {
        line(
            part.name(),
            row(
                weights.tensors,
                weights.parameters,
                weights.bytes,
                &weights.dtypes,
            ),
        );
        tensors += weights.tensors;
        parameters += weights.parameters;
        bytes += weights.bytes;
    }
    line("all", row(tensors, parameters, bytes, &[]));
    line("", String::new());
    line(
        "weights in memory",
        format!(
            "{}, and rows of the {}",
            units::memory(memory.resident),
            if config.bolmo.is_some() {
                "subword table"
            } else {
                "hash tables"
            }
        ),
    );
    line(
        "caches",
        format!("{} at full context", units::memory(memory.caches)),
    );
    line(
        "read to generate",
        format!(
            "{} of weights per byte and {} per patch",
            units::memory(memory.traffic.weights.per_byte() as u64),
            units::memory(memory.traffic.weights.patch as u64)
        ),
    );
    if let Some(checked) = checked {
        line("checked", found_intact(checked));
    }
    s.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// What a check has found: weights that are finite, checksums that are right.
fn found_intact((n_weights, n_sums): (u64, usize)) -> String {
    let sums = match n_sums {
        0 => "the files have no checksums".to_string(),
        n => format!("all {n} checksums are right"),
    };
    format!("all {} weights are finite, {sums}", units::count(n_weights))
}

/// The networks and what joins them.
fn networks(config: &Config) -> Vec<(&'static str, String)> {
    if let Some(bolmo) = &config.bolmo {
        return bolmo_networks(config, bolmo);
    }
    let entropy = config.entropy.as_ref().map_or("none".into(), stack);
    vec![
        (Part::Entropy.name(), entropy),
        ("hash tables", hash(config)),
        (Part::Encoder.name(), stack(&config.encoder)),
        ("  cross-attention", cross(&config.encoder_cross, "after")),
        (Part::Global.name(), stack(&config.global)),
        (Part::Decoder.name(), stack(&config.decoder)),
        ("  cross-attention", cross(&config.decoder_cross, "before")),
        ("vectors per patch", config.cross_attn_k.to_string()),
        ("patching", patching(config)),
    ]
}

fn bolmo_networks(config: &Config, bolmo: &BolmoConfig) -> Vec<(&'static str, String)> {
    let subwords = match &bolmo.subwords {
        None => "none".into(),
        Some(subwords) => format!(
            "{} rows, {} entries of up to {} bytes, of {}",
            units::count(subwords.n_rows as u64),
            units::count(subwords.table.n_entries() as u64),
            subwords.table.longest(),
            bolmo.tokenizer
        ),
    };
    let stops: Vec<String> = bolmo.stop_ids.iter().map(u16::to_string).collect();
    vec![
        ("subwords", subwords),
        (Part::Encoder.name(), mlstm(&config.encoder)),
        (Part::Global.name(), stack(&config.global)),
        (Part::Decoder.name(), mlstm(&config.decoder)),
        (
            "patching",
            "reading: a predictor with one byte of lookahead; writing: the decoder".into(),
        ),
        ("stop ids", stops.join(", ")),
    ]
}

fn mlstm(c: &TransformerConfig) -> String {
    format!(
        "{} of {}, feed-forward {}, mLSTM with {} heads of {} (keys of {}), eps {}",
        units::plural(c.n_layers, "layer"),
        c.dim,
        c.hidden_dim,
        c.n_heads,
        c.head_dim,
        c.head_dim / 2,
        c.norm_eps,
    )
}

fn variant(v: &LayerVariant) -> String {
    let order = if v.norm_after {
        "norms after"
    } else {
        "norms before"
    };
    let qk = match v.qk_norm {
        None => "",
        Some(QkNorm::Row) => ", norms of queries and keys",
        Some(QkNorm::Head) => ", norms of queries and keys by head",
    };
    let bias = if v.attention_bias {
        ", attention biases"
    } else {
        ""
    };
    let sliding: Vec<usize> = v.windows.iter().flatten().copied().collect();
    let windows = match sliding.first() {
        None => String::new(),
        Some(window) => format!(
            ", {} with a window of {window} patches",
            units::plural(sliding.len(), "layer")
        ),
    };
    let scaling = match v.rope_scaling {
        RopeScaling::None => "",
        RopeScaling::Linear { .. } => ", linear rotary scaling",
        RopeScaling::Llama3 { .. } => ", rotary scaling of Llama 3",
        RopeScaling::Yarn { .. } => ", YaRN",
    };
    format!(", {order}{qk}{bias}{windows}{scaling}")
}

fn row(tensors: usize, parameters: u64, bytes: u64, dtypes: &[String]) -> String {
    let (parameters, bytes) = (units::count(parameters), units::memory(bytes));
    format!(
        "{tensors:>8}{parameters:>16}{bytes:>12}  {}",
        dtypes.join(", ")
    )
}

fn stack(c: &TransformerConfig) -> String {
    let window = c
        .window
        .map_or("no window".into(), |w| format!("window {w}"));
    let segments = if c.eos_segments {
        ", segments end at EOS"
    } else {
        ""
    };
    let differential = match &c.differential {
        None => "",
        Some(d) if d.head_norm => ", differential attention with head-wise norm",
        Some(_) => ", differential attention",
    };
    let variant = c.variant.as_deref().map_or(String::new(), variant);
    format!(
        "{} of {}, feed-forward {}, {}, {window}, theta {}, eps {}{segments}{differential}{variant}",
        units::plural(c.n_layers, "layer"),
        c.dim,
        c.hidden_dim,
        heads(c.n_heads, c.n_kv_heads, c.head_dim),
        c.rope_theta,
        c.norm_eps,
    )
}

fn cross(c: &CrossAttentionConfig, when: &str) -> String {
    let layers = match (c.all_layers, when) {
        (true, _) => "every layer",
        (false, "after") => "the last layer",
        (false, _) => "the first layer",
    };
    let window = c
        .window
        .map_or(String::new(), |w| format!(", over {w} patches"));
    format!(
        "{when} {layers}, {}, eps {}{window}",
        heads(c.n_heads, c.n_kv_heads, c.head_dim),
        c.norm_eps
    )
}

fn heads(n: usize, n_kv: usize, dim: usize) -> String {
    match n == n_kv {
        true => format!("{n} heads of {dim}"),
        false => format!("{n} heads of {dim} ({n_kv} of keys and values)"),
    }
}

fn hash(config: &Config) -> String {
    let hash = &config.hash;
    let sizes: Vec<String> = hash.group_sizes.iter().map(usize::to_string).collect();
    match hash.n_tables() {
        0 => "none".into(),
        _ => format!(
            "n-grams of {} bytes, {} rows each, {}",
            sizes.join(" "),
            units::count(hash.vocab as u64),
            units::plural(hash.n_functions, "function")
        ),
    }
}

fn patching(config: &Config) -> String {
    let p = &config.patcher;
    let rule = match p.mode {
        PatchingMode::Entropy if p.monotonicity => {
            format!("entropy rises by more than {}", p.threshold)
        }
        PatchingMode::Entropy => format!("entropy above {} nats", p.threshold),
        PatchingMode::Static => format!("static, every {} bytes", p.patch_size),
        mode => mode.to_string(),
    };
    let add = match p.threshold_add {
        Some(add) if !p.monotonicity && p.mode == PatchingMode::Entropy => {
            format!(" and risen by {add}")
        }
        _ => String::new(),
    };
    let max = p
        .max_patch_length
        .map_or(String::new(), |max| format!(", at most {max} bytes"));
    format!("{rule}{add}{max}")
}

/// A line for each tensor: name, type, shape, size.
pub fn tensors(checkpoint: &Checkpoint, checked: Option<(u64, usize)>) -> String {
    let names = checkpoint.tensors().map(|(name, _)| name.len());
    let width = names.max().unwrap_or(0);
    let mut s = String::new();
    for (name, tensor) in checkpoint.tensors() {
        let dtype = tensor.dtype().to_string();
        let shape: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
        let (shape, size) = (
            shape.join(" x "),
            units::memory(tensor.bytes().len() as u64),
        );
        let _ = writeln!(s, "{name:width$}  {dtype:<6}  {shape:>16}  {size:>10}");
    }
    if let Some(checked) = checked {
        let _ = writeln!(s, "\n{}", found_intact(checked));
    }
    s
}

/// For programs.
pub fn record(checkpoint: &Checkpoint, checked: Option<(u64, usize)>, with_tensors: bool) -> Value {
    let memory = Memory::of(checkpoint);
    let parts = by_part(checkpoint);
    let files = checkpoint.files().iter();
    let files: Vec<Value> = files
        .map(|f| json!({"path": f.path, "bytes": f.bytes}))
        .collect();
    let by_name: Map<String, Value> = (parts.iter())
        .map(|(part, w)| {
            let record = json!({
                "tensors": w.tensors,
                "parameters": w.parameters,
                "bytes": w.bytes,
                "dtypes": w.dtypes,
            });
            (part.key().to_string(), record)
        })
        .collect();
    let config: Value =
        serde_json::from_str(&config_to_json(checkpoint.config())).unwrap_or_default();
    let mut record = json!({
        "layout": checkpoint.layout().to_string(),
        "files": files,
        "parameters": parts.iter().map(|(_, w)| w.parameters).sum::<u64>(),
        "bytes": parts.iter().map(|(_, w)| w.bytes).sum::<u64>(),
        "parts": by_name,
        "config": config,
        "memory": {
            "weight_bytes_per_byte": memory.traffic.weights.per_byte() as u64,
            "weight_bytes_per_patch": memory.traffic.weights.patch as u64,
            "resident_weight_bytes": memory.resident,
            "cache_bytes_at_full_context": memory.caches,
        },
    });
    if with_tensors {
        let list = checkpoint.tensors().map(|(name, t)| {
            json!({
                "name": name,
                "dtype": t.dtype().to_string(),
                "shape": t.shape(),
                "bytes": t.bytes().len(),
            })
        });
        record["tensors"] = list.collect();
    }
    if let Some((n, n_sums)) = checked {
        record["checked"] = n.into();
        record["checksums"] = n_sums.into();
    }
    record
}
