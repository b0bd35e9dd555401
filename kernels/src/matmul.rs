//! The parameters of [`crate::matmul`], and the memory it packs its operands into.

use crate::isa::Isa;

/// What a matrix product does with the values already in the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// Replaces them.
    Overwrite,
    /// Adds to them.
    Add,
}

/// The type that the factors of a matrix product are rounded to. Sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// No rounding.
    #[default]
    F32,
    /// bfloat16, on CPUs with instructions for it: half the time.
    Bf16,
}

impl Precision {
    /// Whether [`crate::matmul`] supports this precision on a path.
    pub fn is_available(self, isa: Isa) -> bool {
        match (self, isa) {
            (Precision::F32, _) => true,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx512(token)) => token.has_bf16(),
            _ => false,
        }
    }
}

/// Operands in the order in which the kernel reads them. Each thread keeps its own for the next product.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
}
