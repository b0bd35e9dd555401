//! Element types: names, sizes, and where rows begin.

use blt_kernels::{Bf12, BlockFormat};

/// How the elements of a tensor are stored.
///
/// Sizes are given per row, not per element, because quantised formats store blocks of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// bfloat16 packed into 12 bits: [`blt_kernels::Weights::Bf12`].
    Bf12,
    /// Quantised blocks of a matrix, 16 rows side by side: what products read
    /// ([`BlockFormat`] has the bytes).
    Tiles(BlockFormat),
    /// Quantised blocks of a table of which single rows are looked up. Each row is cut into pieces
    /// of [`BlockFormat::chunk_cols`] columns; all pieces, row after row, are stored as the rows of
    /// one matrix of that width. So a row lies in one place of the file, not in every 16th word of
    /// 16 rows.
    Table(BlockFormat),
}

impl DType {
    /// The types whose elements lie one by one, as safetensors files have them.
    pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

    /// The name, as safetensors files spell it; of a type they do not have, our own.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            DType::Bf12 => "bf12",
            DType::Tiles(format) | DType::Table(format) => format.name(),
        }
    }

    /// The type of that name in a safetensors file; `None` for types this engine does not read.
    pub fn parse(name: &str) -> Option<DType> {
        DType::FLOATS.into_iter().find(|d| d.name() == name)
    }

    /// The block format of a quantised type.
    pub fn block_format(self) -> Option<BlockFormat> {
        match self {
            DType::Tiles(format) | DType::Table(format) => Some(format),
            DType::F32 | DType::F16 | DType::Bf16 | DType::Bf12 => None,
        }
    }

    /// Whether elements lie one by one, as safetensors files have them: those of [`DType::FLOATS`].
    pub fn is_plain(self) -> bool {
        DType::FLOATS.contains(&self)
    }

    /// The type in which packed elements lie one by one; any other type itself.
    pub fn unpacked(self) -> DType {
        match self {
            DType::Bf12 => DType::Bf16,
            other => other,
        }
    }

    /// Whether elements are quantised.
    pub fn is_quantized(self) -> bool {
        self.block_format().is_some()
    }

    /// Bytes that a row of `cols` elements adds to a tensor (a 16th of 16 rows where rows lie side
    /// by side); `None` if its size overflows.
    pub fn size_of_row(self, cols: usize) -> Option<usize> {
        match self {
            DType::F32 => cols.checked_mul(4),
            DType::F16 | DType::Bf16 => cols.checked_mul(2),
            DType::Bf12 => Bf12::row_bytes(cols),
            DType::Tiles(format) | DType::Table(format) => {
                Some(format.tile_bytes(cols)? / BlockFormat::TILE_ROWS)
            }
        }
    }

    /// Bytes of a whole tensor, padding included; `None` if that overflows or the type cannot hold
    /// such a shape (quantised tensors are matrices). The last axis is the row.
    pub fn size_of(self, shape: &[usize]) -> Option<usize> {
        match (self, shape) {
            (DType::Tiles(format), &[rows, cols]) => format.matrix_bytes(rows, cols),
            (DType::Table(format), &[rows, cols]) => {
                let width = format.chunk_cols();
                format.matrix_bytes(rows.checked_mul(cols.div_ceil(width))?, width)
            }
            (DType::Tiles(_) | DType::Table(_), _) => None,
            (DType::F32 | DType::F16 | DType::Bf16 | DType::Bf12, _) => {
                let (cols, rows) = shape.split_last().unwrap_or((&1, &[]));
                let rows = rows.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
                self.size_of_row(*cols)?.checked_mul(rows)
            }
        }
    }

    /// A tensor with rows of `cols` elements can be cut between rows at multiples of this.
    pub fn row_multiple(self, cols: usize) -> usize {
        const TILE: usize = BlockFormat::TILE_ROWS;
        match self {
            DType::F32 | DType::F16 | DType::Bf16 | DType::Bf12 => 1,
            DType::Tiles(_) => TILE,
            // The fewest rows whose pieces fill tiles: 16 divided by the powers of two in a row's
            // number of pieces.
            DType::Table(format) => {
                let pieces = cols.div_ceil(format.chunk_cols()).max(1);
                TILE >> pieces.trailing_zeros().min(TILE.trailing_zeros())
            }
        }
    }
}

/// In lower case, as flags name types.
impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name().to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_strangers_do_not() {
        for dtype in DType::FLOATS {
            assert_eq!(DType::parse(dtype.name()), Some(dtype));
        }
        assert_eq!(DType::parse("q8_0"), None);
        assert_eq!(DType::parse("I64"), None);
        assert_eq!(DType::parse("f32"), None);
    }

    #[test]
    fn quantised_sizes_are_checked() {
        for format in BlockFormat::ALL {
            for dtype in [DType::Tiles(format), DType::Table(format)] {
                for shape in [vec![64], vec![2, 3, 64], vec![]] {
                    assert_eq!(dtype.size_of(&shape), None, "{dtype:?} {shape:?}");
                }
                for shape in [
                    vec![usize::MAX, 64],
                    vec![64, usize::MAX],
                    vec![1 << 60, 1 << 10],
                ] {
                    assert_eq!(dtype.size_of(&shape), None, "{dtype:?} {shape:?}");
                }
                assert_eq!(dtype.size_of(&[0, 64]), Some(0));
                assert_eq!(dtype.size_of(&[17, 64]).unwrap() % 64, 0);
            }
        }
    }
}
