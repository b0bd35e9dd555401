//! Activations rounded to bfloat16: what bfloat16 weights meet in the fast profile.
//!
//! # The arithmetic
//!
//! It is that of the x86 instruction `vdpbf16ps`, on every path. A dot product over `k` has 16 lanes;
//! lane `j` starts at +0 and takes the products with `k / 2 % 16 == j` in increasing pairs, of each pair
//! the odd `k` first, each by fused multiply-add (the product of two bfloat16 numbers is exact anyway);
//! then the lanes are added as the usual tree.
//!
//! The instruction takes subnormal numbers for zero and gives none back; plain instructions do
//! otherwise. Activations below 2^-40 in magnitude become zero here, so that no partial sum is subnormal
//! unless the matrix has weights below 2^-70, other than zero: all sums are multiples of 2^-124 then.
//! With smaller weights the paths may differ, by about 1e-38.

use crate::view::ViewMut;

/// Elements are padded to a multiple of this: 64 bytes.
pub(crate) const VECTOR: usize = 32;

/// Magnitudes below this become zero.
const SMALLEST: u32 = (127 - 40) << 23;

/// To the nearest bfloat16, ties to even.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    match bits & 0x7fff_ffff {
        0..SMALLEST => 0,
        0x7f80_0001.. => 0x7fc0,
        _ => nearest,
    }
}

/// `n` rows of activations in bfloat16, made by [`crate::round_activations`]. Keep one and reuse it:
/// its memory is allocated when it first grows.
#[derive(Clone, Debug, Default)]
pub struct Bf16Activations {
    pub(crate) cols: usize,
    pub(crate) n: usize,
    /// (n, stride), zeros after `cols`; and what more rows before left behind.
    pub(crate) values: Vec<u16>,
}

impl Bf16Activations {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Makes room for the rows of x (n, cols) and gives them, (n, stride), with old content.
    pub(crate) fn resize(&mut self, x: &[f32], cols: usize) -> ViewMut<'_, u16> {
        self.n = x.len().checked_div(cols).unwrap_or(0);
        self.cols = cols;
        assert_eq!(x.len(), self.n * cols, "inputs");
        let n_values = self.n * stride(cols);
        if self.values.len() < n_values {
            self.values.resize(n_values, 0);
        }
        ViewMut::dense(&mut self.values[..n_values], stride(cols))
    }
}

/// Elements from row to row: an odd number of cache lines, or rows a power of two apart would share the
/// sets of the first-level cache.
pub(crate) fn stride(cols: usize) -> usize {
    (cols.div_ceil(VECTOR) | 1) * VECTOR
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounds_as_the_type_does() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            let found = bf16::from_bits(round(x));
            match x {
                x if x.is_nan() => assert!(found.is_nan(), "{bits:x}"),
                x if x.abs() < 2f32.powi(-40) => assert_eq!(found.to_bits(), 0, "{bits:x}"),
                x => assert_eq!(found, bf16::from_f32(x), "{bits:x}"),
            }
        }
    }
}
