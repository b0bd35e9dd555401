//! Quantised weights: block formats, their bytes, and the dot products over them.
//!
//! # Numbers
//!
//! What a block stands for is the public definition of GGML's formats of the same names, so values can be
//! compared with any reader of those. The bytes are arranged differently.
//!
//! # Bytes (layout version 1)
//!
//! 16 consecutive rows form a *tile*; tiles follow each other. A tile is cut along the columns into
//! *chunks* of [`Format::COLS`] columns (64, or 256 for the formats with super-blocks), which also follow
//! each other. In a chunk the 16 rows lie side by side: wherever a format has one number a row (a scale),
//! the chunk has 16 of them in a row; the integers lie in groups of 4 columns, 16 rows each, so that
//! 64 bytes hold `[row 0: k..k+4][row 1: k..k+4]..[row 15: k..k+4]`. A multiplication broadcasts 4
//! activations and gets 16 outputs from one 64-byte load, with no sum across lanes, on AVX-512, AVX2
//! (two halves) and NEON (four quarters) alike. The integers are stored unsigned, as the 8-bit
//! dot-product instructions of x86 want them.
//!
//! Every chunk is a multiple of 64 bytes. A matrix should start at a multiple of 64 in its file, so that
//! no load crosses a cache line; the kernels themselves take any alignment.
//!
//! Rows are padded to a multiple of 16 and columns to a multiple of [`Format::COLS`]: with zero scales,
//! so padding weighs nothing. Integers and scales of 16 bits are little-endian.
//!
//! # The order of sums
//!
//! Per output there is one f32 sum, +0 at the start. Block by block in increasing column order, the integer
//! dot product with the activations' integers (exact, so its order is free) is added by one fused
//! multiply-add with the factor `weight scale * activation scale`; formats with a minimum add that
//! part by a second one. Each format states its own; `Format::dot` is the definition.

pub(crate) mod activations;
pub(crate) mod q4_0;
pub(crate) mod q4_k;
pub(crate) mod q6_k;
pub(crate) mod q8_0;
mod search;

pub use activations::{QuantizedActivations, Terms};

use activations::ActivationBlock;
use half::f16;

use crate::vector::{Int8, Prefetch};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;

/// One block format.
pub(crate) trait Format {
    /// Columns of a chunk.
    const COLS: usize;
    /// Bytes of a chunk: 16 rows of `COLS` columns.
    const CHUNK: usize;

    /// Encodes 16 rows of `COLS` weights each. `importance` weighs the squared errors of the columns.
    fn encode(rows: &[f32], importance: &[f32], chunk: &mut [u8]);

    /// The `COLS` weights of one row of a chunk.
    fn decode(chunk: &[u8], row: usize, out: &mut [f32]);

    /// Adds the dot product of one row of a chunk with `COLS` activations to `acc`: the definition.
    fn dot(chunk: &[u8], row: usize, x: &[ActivationBlock], acc: f32) -> f32;

    /// [`Format::dot`] of all 16 rows of `TILES` tiles with `INPUTS` inputs: a chunk of each tile.
    ///
    /// # Safety
    /// Each of `chunks` is valid for reading `CHUNK` bytes, each of `x` for `COLS / 32` blocks.
    unsafe fn accumulate<Q: Int8, const TILES: usize, const INPUTS: usize>(
        q: Q,
        chunks: [*const u8; TILES],
        prefetch: Prefetch,
        x: [*const ActivationBlock; INPUTS],
        acc: &mut [[Q::V; INPUTS]; TILES],
    );
}

/// A format of quantised weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 8-bit integers, one scale for 32: 8.5 bits a weight.
    Q8_0,
    /// 4-bit integers, one scale for 32: 4.5 bits a weight.
    Q4_0,
    /// 4-bit integers, a 6-bit scale and minimum for 32 under a scale for 256: 4.5 bits a weight.
    Q4K,
    /// 6-bit integers, an 8-bit scale for 16 under a scale for 256: 6.625 bits a weight.
    Q6K,
}

/// Runs `$body` with `$F` standing for the type that implements `$format`.
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

impl BlockFormat {
    /// All of them.
    pub const ALL: [BlockFormat; 4] = [
        BlockFormat::Q8_0,
        BlockFormat::Q4_0,
        BlockFormat::Q4K,
        BlockFormat::Q6K,
    ];

    /// Rows of a tile: matrices are encoded, and split over threads, in multiples of so many rows.
    pub const TILE_ROWS: usize = TILE_ROWS;

    /// The version of the byte layout, to be stored beside the weights.
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

    /// The format of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Columns are padded to a multiple of this: the width of a chunk.
    pub fn chunk_cols(self) -> usize {
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
    /// - `importance`: (cols), how much a squared error in each column weighs; all the same if `None`.
    /// - `tile`: [`BlockFormat::tile_bytes`] bytes.
    ///
    /// # Panics
    /// If the lengths do not fit.
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
                let from = c * F::COLS;
                let width = F::COLS.min(cols - from);
                buffer.fill(0.0);
                for (to, row) in buffer.chunks_exact_mut(F::COLS).zip(rows.chunks_exact(cols)) {
                    to[..width].copy_from_slice(&row[from..][..width]);
                }
                if let Some(importance) = importance {
                    weights[..width].copy_from_slice(&importance[from..][..width]);
                }
                F::encode(&buffer, &weights, chunk);
            }
        })
    }

    /// Row `row` of a tile, as floats.
    ///
    /// # Panics
    /// If `row` is not below 16 or the tile is not one of `out.len()` columns.
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

/// The half float at byte `at`.
#[inline]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Writes `x` as a half float to byte `at` and returns what was written.
fn put_half(bytes: &mut [u8], at: usize, x: f32) -> f32 {
    // Beyond the largest half float the nearest is better than infinity.
    let h = f16::from_f32(x.clamp(-65504.0, 65504.0));
    bytes[at..at + 2].copy_from_slice(&h.to_le_bytes());
    h.to_f32()
}

/// The exact dot product of 32 integers, given by their position, with a block of activations.
#[inline]
fn int_dot(x: &ActivationBlock, range: std::ops::Range<usize>, w: impl Fn(usize) -> i32) -> f32 {
    let q = x.q.as_flattened();
    range.map(|k| w(k) * q[k] as i32).sum::<i32>() as f32
}
