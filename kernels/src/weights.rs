//! [`Weights`]: a matrix as it lies in a file.

use std::ops::Range;

use half::{bf16, f16};

use crate::bf12::Bf12;
use crate::block::{BlockFormat, TILE_ROWS};

/// A row-major matrix (rows, cols) of weights: little-endian bytes at any alignment, as mapped from a
/// file. The number of columns is not stored; every use names it.
///
/// Quantised matrices lie in tiles of 16 rows ([`Weights::row_multiple`]): they can be split between
/// tiles only, and a last tile that is not full is padded.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Weights<'a> {
    /// 32-bit floats.
    F32(&'a [u8]),
    /// IEEE half floats.
    F16(&'a [u8]),
    /// bfloat16: the upper half of a 32-bit float.
    Bf16(&'a [u8]),
    /// bfloat16 in 12 bits, which [`Bf12`] makes: products have the bits that they have with
    /// [`Weights::Bf16`]. Lossless but for a row with more than 8 weights over 2^14 times smaller than the
    /// largest of the 128 about them: of those, the last become zero or what else is near.
    Bf12(&'a [u8]),
    /// A block format: tiles of 16 rows.
    Blocks(BlockFormat, &'a [u8]),
}

impl<'a> Weights<'a> {
    /// The bytes of the matrix.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Weights::F32(b)
            | Weights::F16(b)
            | Weights::Bf16(b)
            | Weights::Bf12(b)
            | Weights::Blocks(_, b) => b,
        }
    }

    /// A matrix of the same type over other bytes.
    fn with_bytes(self, bytes: &'a [u8]) -> Weights<'a> {
        match self {
            Weights::F32(_) => Weights::F32(bytes),
            Weights::F16(_) => Weights::F16(bytes),
            Weights::Bf16(_) => Weights::Bf16(bytes),
            Weights::Bf12(_) => Weights::Bf12(bytes),
            Weights::Blocks(format, _) => Weights::Blocks(format, bytes),
        }
    }

    /// Rows can be split at multiples of this: 1, or 16 for block formats.
    pub fn row_multiple(self) -> usize {
        match self {
            Weights::Blocks(..) => TILE_ROWS,
            _ => 1,
        }
    }

    /// Bytes that one row of `cols` weights takes; in a block format, a 16th of a tile.
    ///
    /// # Panics
    /// If the size overflows `usize`.
    pub fn row_bytes(self, cols: usize) -> usize {
        let width = match self {
            Weights::F32(_) => 4,
            Weights::F16(_) | Weights::Bf16(_) => 2,
            Weights::Bf12(_) => return Bf12::row_bytes(cols).expect("row size overflows"),
            Weights::Blocks(format, _) => {
                let tile = format.tile_bytes(cols).expect("row size overflows");
                return tile / TILE_ROWS;
            }
        };
        cols.checked_mul(width).expect("row size overflows")
    }

    /// The number of rows, padding included, if a row has `cols` weights; 0 if `cols` is 0.
    ///
    /// # Panics
    /// If the bytes are not a whole number of rows.
    pub fn rows(self, cols: usize) -> usize {
        let row = self.row_bytes(cols);
        if row == 0 {
            return 0;
        }
        let len = self.bytes().len();
        assert!(
            len.is_multiple_of(row),
            "{len} bytes are not a whole number of rows of {row} bytes"
        );
        len / row
    }

    /// The rows `range` as a matrix of their own. In a block format it starts at a multiple of 16 and
    /// ends at one or in the last tile.
    ///
    /// # Panics
    /// If the range does not lie inside the matrix or cuts a tile in two.
    pub fn slice_rows(self, range: Range<usize>, cols: usize) -> Weights<'a> {
        let row = self.row_bytes(cols);
        let multiple = self.row_multiple();
        assert!(
            range.start.is_multiple_of(multiple),
            "row {} is inside a tile",
            range.start
        );
        let end = range.end.next_multiple_of(multiple) * row;
        assert!(
            range.end.is_multiple_of(multiple) || end == self.bytes().len(),
            "row {} is inside a tile",
            range.end
        );
        self.with_bytes(&self.bytes()[range.start * row..end])
    }

    /// Weight `index`, counted through the rows, widened exactly. The plain definition: the fast paths
    /// load many at a time.
    ///
    /// # Panics
    /// If there are not that many, or in a block format.
    #[inline]
    pub(crate) fn get(self, index: usize) -> f32 {
        match self {
            Weights::F32(b) => f32::from_le_bytes(array(b, index)),
            Weights::F16(b) => f16::from_le_bytes(array(b, index)).to_f32(),
            Weights::Bf16(b) => bf16::from_le_bytes(array(b, index)).to_f32(),
            Weights::Bf12(_) => panic!("where a weight lies depends on its row"),
            Weights::Blocks(..) => panic!("a row of a block format is not contiguous"),
        }
    }
}

/// Bytes `index * N ..` of `bytes`.
#[inline]
fn array<const N: usize>(bytes: &[u8], index: usize) -> [u8; N] {
    bytes[index * N..][..N].try_into().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_counts_rows() {
        let bytes: Vec<u8> = (0..24).collect();
        let w = Weights::Bf16(&bytes);
        assert_eq!(w.row_bytes(4), 8);
        assert_eq!(w.rows(4), 3);
        assert_eq!(w.slice_rows(1..2, 4).bytes(), &bytes[8..16]);
        assert_eq!(w.rows(0), 0);
    }

    #[test]
    #[should_panic(expected = "whole number of rows")]
    fn a_torn_matrix_is_refused() {
        Weights::F32(&[0; 10]).rows(2);
    }

    #[test]
    fn widens_every_type() {
        let f = 1.5f32.to_le_bytes();
        assert_eq!(Weights::F32(&f).get(0), 1.5);
        let h = f16::from_f32(-0.25).to_le_bytes();
        assert_eq!(Weights::F16(&h).get(0), -0.25);
        let b = bf16::from_f32(3.0).to_le_bytes();
        assert_eq!(Weights::Bf16(&b).get(0), 3.0);
    }
}
