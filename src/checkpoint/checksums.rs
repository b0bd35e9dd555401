//! Checksums of native files and training states: they find damage that no shape betrays, such as a flipped bit of a disk.
//!
//! The last tensor of a file, `blt.checksums`, holds the XXH3 sums (64 bits, little-endian) of its header and of every
//! other tensor, in the order of the file. Readers that do not know it skip it. It is written and read in one pass, and
//! opening a file does not touch it. It proves nothing about who wrote a file.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::spec::{TensorSpec, VERSION_KEY};

/// The key of a training state's metadata.
pub const TRAINING_KEY: &str = "blt.train";

/// The name of the tensor.
pub const NAME: &str = "blt.checksums";

/// Bytes of a sum.
pub const LENGTH: usize = 8;

/// What the tensor looks like in a file with `n` others.
pub fn spec(n: usize) -> TensorSpec {
    TensorSpec {
        name: NAME.into(),
        dtype: "U64".into(),
        shape: vec![n + 1],
        n_bytes: ((n + 1) * LENGTH) as u64,
    }
}

/// Whether a file with this metadata is one of ours, which has checksums: a native file or a training state.
pub fn are_written(metadata: &[(String, String)]) -> bool {
    (metadata.iter()).any(|(key, _)| key == VERSION_KEY || key == TRAINING_KEY)
}

/// The checksum of bytes.
pub fn of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The checksums of a file, tensor by tensor.
#[derive(Default)]
pub struct Sums {
    done: Vec<u8>,
    current: Xxh3,
}

impl Sums {
    /// Begins with the sum of the header.
    pub fn new(header: &[u8]) -> Sums {
        Sums {
            done: of(header).to_le_bytes().to_vec(),
            current: Xxh3::new(),
        }
    }

    /// Takes more bytes of the current tensor.
    pub fn update(&mut self, bytes: &[u8]) {
        self.current.update(bytes);
    }

    /// The sum of the current tensor.
    pub fn of_tensor(&self) -> u64 {
        self.current.digest()
    }

    /// Ends the current tensor.
    pub fn end_tensor(&mut self) {
        self.done.extend(self.of_tensor().to_le_bytes());
        self.current.reset();
    }

    /// The content of the tensor.
    pub fn into_bytes(self) -> Vec<u8> {
        self.done
    }
}

impl std::fmt::Debug for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sums({})", self.done.len() / LENGTH)
    }
}
