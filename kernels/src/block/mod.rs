//! Quantised weights: block formats, their bytes, and the dot products over them.
//!
//! # Numbers
//!
//! The value of a block is that of GGML's public format of the same name, so values can be compared with any reader of
//! those formats. The order of the bytes is different.
//!
//! # Bytes (layout version 1)
//!
//! 16 consecutive rows form a *tile*, and tiles are contiguous. A tile is split along the columns into contiguous
//! *chunks* of [`Format::COLS`] columns (64, or 256 for the formats with super-blocks). A chunk interleaves its 16 rows.
//! Where a format has one number per row, such as a scale, the chunk has 16 consecutive numbers. The integers are in
//! groups of 4 columns by 16 rows, so that 64 bytes hold `[row 0: k..k+4][row 1: k..k+4]..[row 15: k..k+4]`. A
//! multiplication broadcasts 4 activations and gets 16 outputs from one 64-byte load, with no sum across lanes, on
//! AVX-512, on AVX2 (two halves) and on NEON (four quarters). The integers are stored unsigned, as the 8-bit dot-product
//! instructions of x86 require.
//!
//! The size of a chunk is a multiple of 64 bytes. A matrix should start at a multiple of 64 in its file, so that no load
//! crosses a cache line, but the kernels accept any alignment.
//!
//! Rows are padded to a multiple of 16 and columns to a multiple of [`Format::COLS`]. The padding has zero scales, so it
//! adds nothing. 16-bit integers and scales are little-endian.
//!
//! # The order of sums
//!
//! Each output is one f32 sum that starts at +0. For each block, in increasing column order, one fused multiply-add adds
//! the integer dot product (exact, so its order is free) times `weight scale * activation scale`. Formats with a minimum
//! add the minimum with a second one. Each format documents its own terms, and `Format::dot` is the definition.

pub(crate) mod activations;
mod format;
pub(crate) mod q4_0;
pub(crate) mod q4_k;
pub(crate) mod q6_k;
pub(crate) mod q8_0;
mod search;

pub use activations::{QuantizedActivations, Terms};
pub(crate) use format::{Format, TILE_ROWS};

/// A format of quantised weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 8-bit integers, one scale per 32 weights: 8.5 bits per weight.
    Q8_0,
    /// 4-bit integers, one scale per 32 weights: 4.5 bits per weight.
    Q4_0,
    /// 4-bit integers, a 6-bit scale and minimum per 32 weights, a scale per 256: 4.5 bits per weight.
    Q4K,
    /// 6-bit integers, an 8-bit scale per 16 weights, a scale per 256: 6.625 bits per weight.
    Q6K,
}

/// Runs `$body` with `$F` as the type that implements `$format`.
macro_rules! with_format {
    ($format:expr, $F:ident => $body:expr) => {
        match $format {
            $crate::BlockFormat::Q8_0 => {
                type $F = $crate::block::q8_0::Q8_0;
                $body
            }
            $crate::BlockFormat::Q4_0 => {
                type $F = $crate::block::q4_0::Q4_0;
                $body
            }
            $crate::BlockFormat::Q4K => {
                type $F = $crate::block::q4_k::Q4K;
                $body
            }
            $crate::BlockFormat::Q6K => {
                type $F = $crate::block::q6_k::Q6K;
                $body
            }
        }
    };
}

// The kernels read whole chunks of activations.
const _: () = assert!(activations::ROW_MULTIPLE.is_multiple_of(BlockFormat::MAX_CHUNK_COLS));

impl BlockFormat {
    /// All formats.
    pub const ALL: [BlockFormat; 4] = [
        BlockFormat::Q8_0,
        BlockFormat::Q4_0,
        BlockFormat::Q4K,
        BlockFormat::Q6K,
    ];

    /// Rows of a tile. Matrices are encoded, and split over threads, in multiples of this.
    pub const TILE_ROWS: usize = TILE_ROWS;

    /// The widest chunk of all formats.
    pub const MAX_CHUNK_COLS: usize = {
        let mut widest = 0;
        let mut i = 0;
        while i < Self::ALL.len() {
            let cols = Self::ALL[i].chunk_cols();
            if cols > widest {
                widest = cols;
            }
            i += 1;
        }
        widest
    };

    /// The version of the byte layout, which files store with the weights.
    pub const LAYOUT_VERSION: u32 = 1;

    /// `q8_0`, `q4_0`, `q4_k` or `q6_k`.
    pub fn name(self) -> &'static str {
        match self {
            BlockFormat::Q8_0 => "q8_0",
            BlockFormat::Q4_0 => "q4_0",
            BlockFormat::Q4K => "q4_k",
            BlockFormat::Q6K => "q6_k",
        }
    }

    /// The format with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// The width of a chunk. Columns are padded to a multiple of this.
    pub const fn chunk_cols(self) -> usize {
        with_format!(self, F => F::COLS)
    }

    /// Bytes of a tile of 16 rows of `cols` weights; `None` if that overflows.
    pub fn tile_bytes(self, cols: usize) -> Option<usize> {
        with_format!(self, F => cols.div_ceil(F::COLS).checked_mul(F::CHUNK))
    }

    /// Bytes of a (rows, cols) matrix with its padding; `None` if that overflows.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        self.tile_bytes(cols)?.checked_mul(rows.div_ceil(TILE_ROWS))
    }

    /// Encodes up to 16 rows as one tile.
    ///
    /// - `rows`: (1 to 16, cols), finite.
    /// - `importance`: (cols), the weight of the squared error in each column; equal weights if `None`.
    /// - `tile`: [`BlockFormat::tile_bytes`] bytes.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn encode_tile(
        self,
        rows: &[f32],
        cols: usize,
        importance: Option<&[f32]>,
        tile: &mut [u8],
    ) {
        assert!(rows.len().is_multiple_of(cols) && rows.len() / cols <= TILE_ROWS);
        assert!(importance.is_none_or(|i| i.len() == cols));
        assert_eq!(Some(tile.len()), self.tile_bytes(cols));
        with_format!(self, F => {
            let mut buffer = [0.0; TILE_ROWS * F::COLS];
            let mut weights = [1.0; F::COLS];
            for (c, chunk) in tile.chunks_exact_mut(F::CHUNK).enumerate() {
                let first = c * F::COLS;
                let width = F::COLS.min(cols - first);
                buffer.fill(0.0);
                for (padded, row) in buffer.chunks_exact_mut(F::COLS).zip(rows.chunks_exact(cols)) {
                    padded[..width].copy_from_slice(&row[first..][..width]);
                }
                if let Some(importance) = importance {
                    weights[..width].copy_from_slice(&importance[first..][..width]);
                }
                F::encode(&buffer, &weights, chunk);
            }
        })
    }

    /// Decodes row `row` of a tile.
    ///
    /// # Panics
    /// If `row` is 16 or more, or the tile does not have `out.len()` columns.
    pub fn decode_row(self, tile: &[u8], row: usize, out: &mut [f32]) {
        assert!(row < TILE_ROWS);
        assert_eq!(Some(tile.len()), self.tile_bytes(out.len()));
        with_format!(self, F => {
            let mut buffer = [0.0; F::COLS];
            for (out, chunk) in out.chunks_mut(F::COLS).zip(tile.chunks_exact(F::CHUNK)) {
                F::decode(chunk, row, &mut buffer);
                out.copy_from_slice(&buffer[..out.len()]);
            }
        })
    }
}
