//! Files made of what the fuzzer says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of tensors; a header that speaks of more gets fewer, which is an error of its own.
const MAX_TENSORS: u64 = 4 << 20;

/// A folder that goes with its value; in memory where there is such a place.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let base = match memory.is_dir() {
            true => memory.to_path_buf(),
            false => std::env::temp_dir(),
        };
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("blt-fuzz-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for files");
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("inside the folder")).expect("room for a folder");
        fs::write(path, bytes).expect("room for a file");
    }

    /// A safetensors file: its length, the header, and zeros for the tensors it speaks of.
    pub fn write_weights(&self, name: &str, header: &[u8]) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        self.write(name, &bytes);
        let n_zeros = n_tensor_bytes(header).min(MAX_TENSORS);
        let file = File::options()
            .write(true)
            .open(self.0.join(name))
            .expect("written above");
        file.set_len(bytes.len() as u64 + n_zeros)
            .expect("room for zeros");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where the last tensor of a header ends; 0 if it is no header.
fn n_tensor_bytes(header: &[u8]) -> u64 {
    let Ok(serde_json::Value::Object(header)) = serde_json::from_slice(header) else {
        return 0;
    };
    let end = |tensor: &serde_json::Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    header.values().filter_map(end).max().unwrap_or(0)
}

/// Texts, each after its length in two bytes; the last ends with the input at the latest.
pub fn texts(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first_chunk::<2>()?;
        let n = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (text, rest) = rest.split_at(n);
        input = rest;
        Some(text)
    })
}

/// The configuration of the byte model that `seeds.py` makes.
pub const ENTROPY_PARAMS: &[u8] = br#"{"entropy_model": {"dim": 4, "n_layers": 1, "n_heads": 2,
    "ffn_dim_multiplier": 1.0, "multiple_of": 256, "norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_seqlen": 8192, "attn_bias_type": "local_block_causal", "vocab_size": 260,
    "weight_tying": false, "sliding_window": 512}}"#;

/// A `.pth` file as torch writes it: the pickle, and storages of zeros as large as those of the
/// seeds.
pub fn pth(pickle: &[u8]) -> Vec<u8> {
    const N_BYTES: [usize; 12] = [2080, 32, 32, 32, 32, 2048, 2048, 2048, 8, 8, 8, 2080];
    let zeros = [0; 2080];
    let mut entries = vec![
        ("archive/data.pkl".to_string(), pickle),
        ("archive/byteorder".to_string(), b"little"),
    ];
    let storage = |(i, &n): (usize, &usize)| (format!("archive/data/{i}"), &zeros[..n]);
    entries.extend(N_BYTES.iter().enumerate().map(storage));

    let mut out = Vec::new();
    let mut directory = Vec::new();
    let n_entries = entries.len() as u16;
    for (name, bytes) in entries {
        let offset = out.len() as u32;
        // Version, flags, method (stored), time, date, checksum, both sizes, length of the name.
        let mut common = Vec::new();
        common.extend([0; 2 + 2 + 2 + 2 + 2 + 4]);
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]); // no extra field
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(bytes);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(&common);
        directory.extend([0; 2 + 2 + 2 + 4]); // comment, disk, attributes
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(n_entries.to_le_bytes());
    out.extend(n_entries.to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}
