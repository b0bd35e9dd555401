//! Conversion of stored elements to single precision and back.

use std::borrow::Cow;

use blt_kernels::{Bf12, BlockFormat, Weights};
use half::{bf16, f16};

use super::{DType, Tensor};
use crate::error::{Error, Result};

impl Tensor {
    /// A tensor that owns `values` in type `dtype`, each rounded to the nearest it can hold.
    ///
    /// # Errors
    /// [`Error::Argument`] if the shape calls for more or fewer values, or the type cannot hold it.
    pub fn from_values(dtype: DType, shape: Vec<usize>, values: &[f32]) -> Result<Tensor> {
        let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if n != Some(values.len()) {
            return Err(Error::argument(
                "values",
                format!(
                    "expected the number of elements of {shape:?}, found {}",
                    values.len()
                ),
            ));
        }
        if dtype.size_of(&shape).is_none() {
            return Err(Error::argument(
                "shape",
                format!("expected one that {dtype} can hold, found {shape:?}"),
            ));
        }
        let mut bytes = Vec::new();
        encode(
            dtype,
            shape.last().copied().unwrap_or(1),
            values,
            None,
            &mut bytes,
        );
        Tensor::from_bytes(dtype, shape, bytes)
    }

    /// A converted copy of all elements; meant for vectors (norms) and for tools. Values are not
    /// checked: NaN and infinities come out as they are.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            DType::F32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
            DType::F16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f16_to_f32(u16::from_le_bytes(b)))
                .collect(),
            DType::Bf16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
                .collect(),
            DType::Bf12 | DType::Tiles(_) | DType::Table(_) => {
                let mut values = vec![0.0; self.n_elements()];
                let rows = values.chunks_exact_mut(self.cols().max(1));
                for (row, out) in rows.enumerate() {
                    self.decode_row(row, out);
                }
                values
            }
        }
    }

    /// How many [`Tensor::unpacked_bytes`] there are.
    pub fn unpacked_size(&self) -> usize {
        let size = self.dtype.unpacked().size_of(self.shape());
        size.expect("a little more than a tensor that is there")
    }

    /// The elements in type [`DType::unpacked`]: those bytes that the tensor has, unless it is packed.
    pub fn unpacked_bytes(&self) -> Cow<'_, [u8]> {
        let dtype = self.dtype.unpacked();
        if dtype == self.dtype {
            return Cow::Borrowed(self.bytes());
        }
        let (mut row, mut bytes) = (vec![0.0; self.cols()], Vec::new());
        for i in 0..self.rows() {
            self.decode_row(i, &mut row);
            encode(dtype, row.len(), &row, None, &mut bytes);
        }
        Cow::Owned(bytes)
    }

    /// The values of row `row` of a tensor that is not plain; out (cols).
    fn decode_row(&self, row: usize, out: &mut [f32]) {
        match self.dtype {
            DType::Tiles(format) => {
                blt_kernels::decode_row(Weights::Blocks(format, self.bytes()), row, out);
            }
            DType::Table(format) => {
                let width = format.chunk_cols();
                let pieces = self.cols().div_ceil(width);
                let mut piece = vec![0.0; width];
                for (i, out) in out.chunks_mut(width).enumerate() {
                    let weights = Weights::Blocks(format, self.bytes());
                    blt_kernels::decode_row(weights, row * pieces + i, &mut piece);
                    out.copy_from_slice(&piece[..out.len()]);
                }
            }
            DType::Bf12 => blt_kernels::decode_row(Weights::Bf12(self.bytes()), row, out),
            DType::F32 | DType::F16 | DType::Bf16 => unreachable!("plain"),
        }
    }
}

/// Appends rows of `cols` values to `out`, each value rounded to the nearest that `dtype` can hold.
///
/// For a type that keeps several rows together ([`DType::row_multiple`]), a number of rows that is not
/// a multiple is padded: only the last rows of a tensor may be. `importance` (cols) says how much a
/// squared error in each column of [`DType::Tiles`] weighs; other types do not look at it.
///
/// # Panics
/// If `values` is not a whole number of rows.
pub fn encode(
    dtype: DType,
    cols: usize,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) {
    if cols == 0 {
        return;
    }
    assert!(values.len().is_multiple_of(cols), "a whole number of rows");
    match dtype {
        DType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        DType::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        DType::Bf16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        DType::Bf12 => {
            let row_bytes = Bf12::row_bytes(cols).expect("a row that is in memory");
            for row in values.chunks_exact(cols) {
                let start = out.len();
                out.resize(start + row_bytes, 0);
                Bf12::pack_row(row, &mut out[start..]);
            }
        }
        DType::Tiles(format) => {
            for rows in values.chunks(BlockFormat::TILE_ROWS * cols) {
                put_tile(format, rows, cols, importance, out);
            }
        }
        DType::Table(format) => {
            // A row's pieces, the last padded with zeros, are the rows of a matrix one chunk wide.
            let width = format.chunk_cols();
            let mut tile = Vec::with_capacity(BlockFormat::TILE_ROWS * width);
            for row in values.chunks_exact(cols) {
                for piece in row.chunks(width) {
                    tile.extend_from_slice(piece);
                    tile.resize(tile.len().next_multiple_of(width), 0.0);
                    if tile.len() == BlockFormat::TILE_ROWS * width {
                        put_tile(format, &tile, width, None, out);
                        tile.clear();
                    }
                }
            }
            if !tile.is_empty() {
                put_tile(format, &tile, width, None, out);
            }
        }
    }
}

fn put_tile(
    format: BlockFormat,
    rows: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) {
    let n_bytes = format.tile_bytes(cols).expect("a row that is in memory");
    let start = out.len();
    out.resize(start + n_bytes, 0);
    format.encode_tile(rows, cols, importance, &mut out[start..]);
}

/// The value of a half-precision number, which single precision holds exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits) & 0x3ff;
    let magnitude = match exponent {
        // Zero and subnormals: fraction * 2^-24, a product that is exact.
        0 => (fraction as f32 * f32::from_bits((127 - 24) << 23)).to_bits(),
        31 => 0x7f80_0000 | fraction << 13,
        e => (e + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_has_the_value_its_definition_gives() {
        for bits in 0..=u16::MAX {
            let (s, e, m) = (
                bits >> 15,
                i32::from(bits >> 10 & 31),
                f64::from(bits & 1023),
            );
            let sign = if s == 1 { -1.0 } else { 1.0 };
            let found = f16_to_f32(bits);
            match e {
                31 if m != 0.0 => assert!(found.is_nan(), "{bits:#06x}"),
                31 => assert_eq!(f64::from(found), sign * f64::INFINITY, "{bits:#06x}"),
                0 => assert_eq!(f64::from(found), sign * m / 1024.0 * 2f64.powi(-14)),
                _ => assert_eq!(
                    f64::from(found),
                    sign * (1.0 + m / 1024.0) * 2f64.powi(e - 15)
                ),
            }
            assert_eq!(found.is_sign_negative(), s == 1, "{bits:#06x}");
        }
    }

    #[test]
    fn each_type_converts_to_f32() {
        let t = Tensor::from_f32(vec![2, 2], vec![1.0, -2.5, f32::MIN_POSITIVE, 0.0]).unwrap();
        assert_eq!(t.to_f32_vec(), [1.0, -2.5, f32::MIN_POSITIVE, 0.0]);
        let bf16 = Tensor::from_bytes(DType::Bf16, vec![2], vec![0x80, 0x3f, 0x20, 0xc0]).unwrap();
        assert_eq!(bf16.to_f32_vec(), [1.0, -2.5]);
        let f16 = Tensor::from_bytes(DType::F16, vec![2], vec![0x00, 0x3c, 0x00, 0xc1]).unwrap();
        assert_eq!(f16.to_f32_vec(), [1.0, -2.5]);
    }

    #[test]
    fn floats_round_to_the_nearest() {
        let values = [
            1.0,
            -2.5,
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            65504.0,
            1e-7,
        ];
        let of = |dtype| {
            let t = Tensor::from_values(dtype, vec![2, 3], &values).unwrap();
            t.to_f32_vec()
        };
        assert_eq!(of(DType::F32), values);
        let bf16 = [1.0, -2.5, 1.0, 1.015_625, 65536.0, 1.001_171_8e-7];
        assert_eq!(of(DType::Bf16), bf16);
        assert_eq!(of(DType::F16)[..5], values[..5]);
        assert!(Tensor::from_values(DType::F32, vec![2], &values).is_err());
        assert!(Tensor::from_values(DType::Tiles(BlockFormat::Q8_0), vec![6], &values).is_err());
    }

    #[test]
    fn quantised_rows_are_found_wherever_they_lie() {
        for format in BlockFormat::ALL {
            // Rows of one piece and of several, whole and not; the last tile is not full.
            for (rows, cols) in [(37, 64), (5, 100), (37, 256), (19, 320), (3, 1024)] {
                let values: Vec<f32> = (0..rows * cols)
                    .map(|i| (i as f32 * 0.37).sin() * (1.0 + (i / cols) as f32))
                    .collect();
                for dtype in [DType::Tiles(format), DType::Table(format)] {
                    let case = format!("{dtype:?} ({rows}, {cols})");
                    let t = Tensor::from_values(dtype, vec![rows, cols], &values).unwrap();
                    let found = t.to_f32_vec();
                    for (i, (x, y)) in values.iter().zip(&found).enumerate() {
                        let scale = 1.0 + (i / cols) as f32;
                        assert!((x - y).abs() <= 0.15 * scale, "{case}: {i}: {x} {y}");
                    }
                    let multiple = dtype.row_multiple(cols);
                    if multiple < rows {
                        let part = t.slice_rows(multiple..rows).unwrap();
                        assert_eq!(part.to_f32_vec(), found[multiple * cols..], "{case}");
                    }
                    if multiple > 1 {
                        assert!(t.slice_rows(1..rows).is_err(), "{case}");
                        assert!(t.slice_rows(0..1).is_err(), "{case}");
                    }
                    assert!(
                        t.reshape(vec![cols, rows]).is_err() || rows == cols,
                        "{case}"
                    );
                    assert_eq!(t.reshape(vec![rows, cols]).unwrap().to_f32_vec(), found);
                    // Every row's bytes are inside, and two rows of a table far apart share none.
                    for row in 0..rows {
                        assert!(t.row_range(row).end <= t.bytes().len(), "{case}: {row}");
                    }
                    if let DType::Table(_) = dtype
                        && multiple < rows
                    {
                        assert!(t.row_range(0).end <= t.row_range(multiple).start, "{case}");
                    }
                }
            }
        }
    }
}
