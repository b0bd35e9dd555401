//! Activations rounded to bfloat16, for products with bfloat16 weights in the fast profile.
//!
//! # The arithmetic
//!
//! Every path computes what the x86 instruction `vdpbf16ps` computes. A dot product over `k` has 16 lanes. Lane `j`
//! starts at +0 and adds the products with `k / 2 % 16 == j`, pair by pair, the odd `k` of a pair first, each with a
//! fused multiply-add. (The product of two bfloat16 numbers is exact anyway.) Then the usual tree adds the lanes.
//!
//! The instruction treats subnormal numbers as zero, in its inputs and in its results; plain instructions do not.
//! Activations below 2^-40 in magnitude therefore become zero here. No partial sum is then subnormal, unless the matrix
//! has non-zero weights below 2^-70: all sums are multiples of 2^-124. With smaller weights the paths may differ by
//! about 1e-38.

use crate::view::ViewMut;

/// Rows are padded to a multiple of this many elements, which are 64 bytes.
pub(crate) const VECTOR: usize = 32;

/// Magnitudes below this become zero.
const SMALLEST: u32 = (127 - 40) << 23;

/// Rounds to the nearest bfloat16, ties to even.
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

/// Rows of bfloat16 activations, written by [`crate::round_activations`]. Reuse one: it allocates only when it grows.
#[derive(Clone, Debug, Default)]
pub struct Bf16Activations {
    pub(crate) cols: usize,
    pub(crate) n: usize,
    /// (n, stride), with zeros after `cols`. May be longer, after an earlier use with more rows.
    pub(crate) values: Vec<u16>,
}

impl Bf16Activations {
    /// Creates an empty buffer.
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

    /// Makes room for the rows of x (n, cols). Returns them as (n, stride), with their old content.
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

/// The number of elements from row to row: an odd number of cache lines, because rows a power of two apart would share
/// the sets of the first-level cache.
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
