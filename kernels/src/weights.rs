//! [`Weights`]: a weight matrix in the bytes of its file.

use std::ops::Range;

use half::{bf16, f16};

use crate::bf12::Bf12;
use crate::block::{BlockFormat, TILE_ROWS};

/// A row-major (rows, cols) matrix of weights: little-endian bytes at any alignment, as mapped from a file. The number of
/// columns is not stored; each use passes it.
///
/// Quantised matrices are stored in tiles of 16 rows ([`Weights::row_multiple`]). They can only be split between tiles,
/// and the last tile is padded.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Weights<'a> {
    /// 32-bit floats.
    F32(&'a [u8]),
    /// IEEE half floats.
    F16(&'a [u8]),
    /// bfloat16: the upper half of a 32-bit float.
    Bf16(&'a [u8]),
    /// bfloat16 in 12 bits, packed by [`Bf12`]. Products have the same bits as with [`Weights::Bf16`]. Packing is
    /// lossless unless a row has more than 8 weights that are over 2^14 times smaller than the largest of their group
    /// of 128. The last of those weights are rounded to zero or to a value close to them.
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

    /// The matrix can be split at multiples of this many rows: 1, or 16 for block formats.
    pub fn row_multiple(self) -> usize {
        match self {
            Weights::Blocks(..) => TILE_ROWS,
            _ => 1,
        }
    }

    /// The size in bytes of one row of `cols` weights. In a block format this is a 16th of a tile.
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

    /// The number of rows of `cols` weights, padding included; 0 if `cols` is 0.
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

    /// The rows in `range` as a matrix. In a block format the range starts at a multiple of 16, and ends at a multiple of
    /// 16 or in the last tile.
    ///
    /// # Panics
    /// If the range is out of bounds or splits a tile.
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

    /// Weight `index` in row-major order as f32, exactly. The scalar definitions use this; the fast paths load many
    /// weights at a time.
    ///
    /// # Panics
    /// If the index is out of bounds, or the weights are bf12 or have a block format.
    #[inline]
    pub(crate) fn get(self, index: usize) -> f32 {
        match self {
            Weights::F32(b) => f32::from_le_bytes(array(b, index)),
            Weights::F16(b) => f16::from_le_bytes(array(b, index)).to_f32(),
            Weights::Bf16(b) => bf16::from_le_bytes(array(b, index)).to_f32(),
            Weights::Bf12(_) => panic!("a bf12 row is not an array of weights"),
            Weights::Blocks(..) => panic!("a row of a block format is not contiguous"),
        }
    }
}

/// Element `index` of an array of elements of `BYTES` bytes.
#[inline]
fn array<const BYTES: usize>(bytes: &[u8], index: usize) -> [u8; BYTES] {
    bytes[index * BYTES..][..BYTES].try_into().unwrap()
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
    fn an_incomplete_row_is_rejected() {
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
