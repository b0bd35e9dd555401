//! Seeded inputs and comparisons for the kernel tests.
#![allow(dead_code)]

#[path = "../../../tests/common/random.rs"]
mod random;

use half::{bf16, f16};
pub use random::Random;

/// Random values in -1..1.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.uniform()).collect()
}

/// `values` as little-endian bytes of a type, `offset` bytes into the buffer.
pub fn encode(kind: Kind, values: &[f32], offset: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; offset];
    for &v in values {
        match kind {
            Kind::F32 => bytes.extend(v.to_le_bytes()),
            Kind::F16 => bytes.extend(f16::from_f32(v).to_le_bytes()),
            Kind::Bf16 => bytes.extend(bf16::from_f32(v).to_le_bytes()),
        }
    }
    bytes
}

/// A type of plain weights.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    F32,
    F16,
    Bf16,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::F32, Kind::F16, Kind::Bf16];

    pub fn weights(self, bytes: &[u8]) -> blt_kernels::Weights<'_> {
        match self {
            Kind::F32 => blt_kernels::Weights::F32(bytes),
            Kind::F16 => blt_kernels::Weights::F16(bytes),
            Kind::Bf16 => blt_kernels::Weights::Bf16(bytes),
        }
    }
}

/// The bits of each value; any NaN counts as the same.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter()
        .map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() })
        .collect()
}
