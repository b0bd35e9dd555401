//! 8-bit activations, for products with quantised weights.
//!
//! A row is split into blocks of 32 values. If `amax` is the largest magnitude in a block, its scale is `amax / 127` and
//! its integers are `x * (127 / amax)`, rounded half to even. A block with a NaN or infinity gets the scale NaN, so that
//! every result that uses it is NaN. A block whose `amax` is below 2^-100 becomes zero.
//!
//! With [`Terms::Two`], the rounding error `fma(-scale, integer, x)` is quantised the same way, and a product is the sum
//! of the products with the two terms.

use crate::scalar::exp::MAGIC;
use crate::view::ViewMut;

/// Values that share a scale.
pub(crate) const BLOCK: usize = 32;

/// Rows are padded with zero blocks to a multiple of this many values: the widest chunk of all formats.
pub(super) const ROW_MULTIPLE: usize = 256;

/// Blocks with smaller magnitudes become zero, so that the factor `127 / amax` stays finite.
pub(crate) const SMALLEST: f32 = f32::from_bits((127 - 100) << 23);

/// 32 activations and the sums that the kernels need: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct ActivationBlock {
    /// The integers, -127..=127, four to an element in memory order.
    pub(crate) q: [[i8; 4]; BLOCK / 4],
    /// The value of one step of the integers.
    pub(crate) scale: f32,
    /// The scale times the sum of the integers.
    pub(crate) weighted_sum: f32,
    /// Minus the sum of the integers.
    pub(crate) neg_sum: i32,
    /// Minus the sums of the first and of the last 16 integers.
    pub(crate) neg_halves: [i32; 2],
}

impl ActivationBlock {
    /// Quantises 32 values, by definition. Returns the block and the rounding errors.
    pub(crate) fn quantize(x: &[f32; BLOCK]) -> (Self, [f32; BLOCK]) {
        let (scale, factor) = scale_and_factor(largest_magnitude(x));
        let mut block = ActivationBlock::default();
        for (q, x) in block.q.as_flattened_mut().iter_mut().zip(x) {
            *q = round(x * factor);
        }
        let sum = |q: &[[i8; 4]]| q.as_flattened().iter().map(|&q| q as i32).sum::<i32>();
        let sums = [sum(&block.q[..4]), sum(&block.q[4..])];
        block.finish(scale, sums);
        let rest = |i: usize| (block.q.as_flattened()[i] as f32).mul_add(-block.scale, x[i]);
        (block, core::array::from_fn(rest))
    }

    /// Fills in the fields that follow from the scale and the sums of the halves.
    #[inline(always)]
    pub(crate) fn finish(&mut self, scale: f32, mut halves: [i32; 2]) {
        if scale.is_nan() {
            self.q = Default::default();
            halves = [0, 0];
        }
        let total = halves[0] + halves[1];
        self.scale = scale;
        self.weighted_sum = scale * total as f32;
        self.neg_sum = -total;
        self.neg_halves = halves.map(|h| -h);
    }
}

/// The largest magnitude; NaN if any value is NaN. As an integer, NaN is larger than infinity.
#[inline(always)]
pub(crate) fn largest_magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0))
}

/// The scale of a block, and the factor that scales its values to integers.
#[inline(always)]
pub(crate) fn scale_and_factor(amax: f32) -> (f32, f32) {
    if amax < SMALLEST {
        (0.0, 0.0)
    } else if amax < f32::INFINITY {
        (amax / 127.0, 127.0 / amax)
    } else {
        (f32::NAN, 0.0)
    }
}

/// Rounds to the nearest integer, ties to even. `x` is within -127.5..127.5 or NaN.
#[inline(always)]
pub(crate) fn round(x: f32) -> i8 {
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i8
}

/// The number of 8-bit terms that represent an activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terms {
    /// One term: 8 bits.
    #[default]
    One,
    /// A second term for the rounding error of the first: 15 bits, for twice the arithmetic.
    Two,
}

impl Terms {
    /// The number of rows of blocks for a row of activations.
    pub(crate) fn count(self) -> usize {
        match self {
            Terms::One => 1,
            Terms::Two => 2,
        }
    }
}

/// Rows of 8-bit activations, written by [`crate::quantize_activations`]. Reuse one: it allocates only when it grows.
#[derive(Clone, Debug, Default)]
pub struct QuantizedActivations {
    pub(crate) cols: usize,
    pub(crate) n: usize,
    pub(crate) terms: Terms,
    /// (n, terms, blocks_per_row). May be longer, after an earlier use with more rows.
    pub(crate) blocks: Vec<ActivationBlock>,
}

impl QuantizedActivations {
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

    /// Makes room for the rows of x (n, cols). Returns their blocks as (n, terms * blocks_per_row), with their old
    /// content.
    pub(crate) fn resize(
        &mut self,
        terms: Terms,
        x: &[f32],
        cols: usize,
    ) -> ViewMut<'_, ActivationBlock> {
        self.terms = terms;
        self.n = x.len().checked_div(cols).unwrap_or(0);
        self.cols = cols;
        assert_eq!(x.len(), self.n * cols, "inputs");
        let per_row = terms.count() * blocks_per_row(cols);
        let n_blocks = self.n * per_row;
        if self.blocks.len() < n_blocks {
            self.blocks.resize(n_blocks, ActivationBlock::default());
        }
        ViewMut::dense(&mut self.blocks[..n_blocks], per_row)
    }

    pub(crate) fn blocks_per_row(&self) -> usize {
        blocks_per_row(self.cols)
    }
}

/// One more than needed, because rows a power of two apart would share the sets of the first-level cache.
pub(crate) fn blocks_per_row(cols: usize) -> usize {
    cols.div_ceil(ROW_MULTIPLE) * (ROW_MULTIPLE / BLOCK) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_its_values_within_half_a_step() {
        let x: [f32; BLOCK] = core::array::from_fn(|i| (i as f32 - 11.3) * 0.37);
        let (block, rest) = ActivationBlock::quantize(&x);
        let q = block.q.as_flattened();
        for (q, x) in q.iter().zip(x) {
            assert!((*q as f32 * block.scale - x).abs() <= block.scale * 0.5001);
        }
        let (second, _) = ActivationBlock::quantize(&rest);
        for ((q, r), x) in q.iter().zip(second.q.as_flattened()).zip(x) {
            let found = *q as f32 * block.scale + *r as f32 * second.scale;
            assert!((found - x).abs() <= block.scale / 500.0, "{found} for {x}");
        }
        assert_eq!(block.neg_sum, -q.iter().map(|&q| q as i32).sum::<i32>());
        assert_eq!(block.neg_sum, block.neg_halves[0] + block.neg_halves[1]);
        assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(127));
    }

    #[test]
    fn blocks_without_a_finite_scale() {
        let mut x = [0.0; BLOCK];
        assert_eq!(ActivationBlock::quantize(&x).0, ActivationBlock::default());
        x[3] = 1e-40;
        assert_eq!(ActivationBlock::quantize(&x).0, ActivationBlock::default());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[7] = bad;
            x[8] = 1.0;
            let (block, _) = ActivationBlock::quantize(&x);
            assert!(block.scale.is_nan() && block.weighted_sum.is_nan());
            assert!(block.q.as_flattened().iter().all(|&q| q == 0));
        }
    }
}
