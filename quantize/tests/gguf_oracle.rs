//! The numbers of our blocks are those of GGML's formats of the same names, as the `gguf` package reads
//! and writes them. `make_gguf_oracle.py` made the data.
//!
//! The blocks come in GGML's order of bytes. They are put into tiles here, from the published layouts
//! alone (ours: the tables at the head of `kernels/src/block/*.rs`), so that neither our encoder nor
//! our decoder is what judges itself.

use blt::tensor::{DType, Tensor, encode};
use blt_kernels::BlockFormat;
use safetensors::SafeTensors;

const ROWS: usize = 16;
const COLS: usize = 256;
/// The row of `source` with a very large value.
const OUTLIER: usize = 6;

/// The file that the script wrote.
struct Oracle(Vec<u8>);

impl Oracle {
    fn open() -> Oracle {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/gguf-oracle.safetensors"
        );
        Oracle(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        all.tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        let floats: Vec<f32> = (bytes.chunks_exact(4))
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(floats.len(), ROWS * COLS);
        floats
    }
}

/// A tile of 16 rows and 256 columns in the making.
struct Tile(Vec<u8>);

impl Tile {
    /// Adds `bits` to the byte at `at`.
    fn put(&mut self, at: usize, bits: u8) {
        assert_eq!(self.0[at] & bits, 0, "twice at {at}");
        self.0[at] |= bits;
    }

    /// The two bytes of a half float.
    fn put_half(&mut self, at: usize, half: &[u8]) {
        self.put(at, half[0]);
        self.put(at + 1, half[1]);
    }

    /// Column `k` (0..32) of `row` in a run of 4-bit integers that begins at `start`.
    fn put_nibble(&mut self, start: usize, row: usize, k: usize, q: u8) {
        let at = start + (k % 16 / 4 * 16 + row) * 4 + k % 4;
        self.put(at, q << (k / 16 * 4));
    }
}

/// The matrix in our bytes.
fn tile(format: BlockFormat, blocks: &[u8]) -> Vec<u8> {
    let mut tile = Tile(vec![0; format.tile_bytes(COLS).unwrap()]);
    let row_bytes = blocks.len() / ROWS;
    for (row, blocks) in blocks.chunks_exact(row_bytes).enumerate() {
        match format {
            BlockFormat::Q8_0 => q8_0(&mut tile, row, blocks),
            BlockFormat::Q4_0 => q4_0(&mut tile, row, blocks),
            BlockFormat::Q4K => q4_k(&mut tile, row, blocks),
            BlockFormat::Q6K => q6_k(&mut tile, row, blocks),
            other => panic!("{other:?} has no oracle"),
        }
    }
    tile.0
}

/// GGML: f16 scale, 32 signed bytes.
fn q8_0(tile: &mut Tile, row: usize, blocks: &[u8]) {
    for (b, block) in blocks.chunks_exact(34).enumerate() {
        let (chunk, b) = (b / 2 * 1088, b % 2);
        tile.put_half(chunk + (b * 16 + row) * 2, &block[..2]);
        for (k, q) in block[2..].iter().enumerate() {
            tile.put(
                chunk + 64 + b * 512 + (k / 4 * 16 + row) * 4 + k % 4,
                q.wrapping_add(128),
            );
        }
    }
}

/// GGML: f16 scale; byte i holds integers i and i + 16.
fn q4_0(tile: &mut Tile, row: usize, blocks: &[u8]) {
    for (b, block) in blocks.chunks_exact(18).enumerate() {
        let (chunk, b) = (b / 2 * 576, b % 2);
        tile.put_half(chunk + (b * 16 + row) * 2, &block[..2]);
        for (i, byte) in block[2..].iter().enumerate() {
            tile.put_nibble(chunk + 64 + b * 256, row, i, byte & 15);
            tile.put_nibble(chunk + 64 + b * 256, row, i + 16, byte >> 4);
        }
    }
}

/// GGML: f16 scale and minimum, 12 bytes of 6-bit numbers, 128 bytes of integers; 64 columns share 32
/// bytes, the first half in the lower bits.
fn q4_k(tile: &mut Tile, row: usize, block: &[u8]) {
    tile.put_half(row * 2, &block[..2]);
    tile.put_half(32 + row * 2, &block[2..4]);
    let packed = &block[4..16];
    for b in 0..8 {
        let (scale, minimum) = match b {
            0..4 => (packed[b] & 63, packed[b + 4] & 63),
            _ => (
                packed[b + 4] & 15 | packed[b - 4] >> 6 << 4,
                packed[b + 4] >> 4 | packed[b] >> 6 << 4,
            ),
        };
        for (start, six) in [(64, scale), (160, minimum)] {
            let at = start + b / 4 * 48 + row;
            match b % 4 {
                3 => (0..3).for_each(|i| tile.put(at + i * 16, (six >> (2 * i) & 3) << 6)),
                i => tile.put(at + i * 16, six),
            }
        }
        for k in 0..32 {
            let byte = block[16 + b / 2 * 32 + k];
            let q = if b % 2 == 0 { byte & 15 } else { byte >> 4 };
            tile.put_nibble(256 + b * 256, row, k, q);
        }
    }
}

/// GGML: lower 4 bits (128 bytes), upper 2 bits (64), scales of 16 columns (16), f16 scale.
fn q6_k(tile: &mut Tile, row: usize, block: &[u8]) {
    let (lower, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    tile.put_half(row * 2, &block[208..]);
    for (i, scale) in scales.iter().enumerate() {
        tile.put(64 + i * 16 + row, *scale);
    }
    for column in 0..256 {
        let (half, quarter, l) = (column / 128, column % 128 / 32, column % 32);
        let low = lower[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        let high = upper[half * 32 + l] >> (quarter * 2) & 3;
        let (b, k) = (column / 32, column % 32);
        tile.put_nibble(320 + b * 256, row, k, low);
        let at = 2368 + b * 128 + (k / 16 * 16 + row) * 4 + k % 4;
        tile.put(at, high << (k % 16 / 4 * 2));
    }
}

#[test]
fn blocks_stand_for_the_numbers_the_reference_reads() {
    let oracle = Oracle::open();
    for format in BlockFormat::ALL {
        let name = format.name();
        let bytes = tile(format, &oracle.bytes(&format!("{name}.blocks")));
        let tensor = Tensor::from_bytes(DType::Tiles(format), vec![ROWS, COLS], bytes).unwrap();
        let expected = oracle.floats(&format!("{name}.values"));
        for (i, (x, y)) in tensor.to_f32_vec().iter().zip(&expected).enumerate() {
            // -0 for +0: the reference multiplies in another order.
            assert!(
                x == y,
                "{name}: row {}, column {}: expected {y}, found {x}",
                i / COLS,
                i % COLS
            );
        }
    }
}

#[test]
fn encoding_loses_no_more_than_the_reference() {
    let oracle = Oracle::open();
    let source = oracle.floats("source");
    let error = |values: &[f32]| -> f64 {
        let squares = source
            .iter()
            .zip(values)
            .map(|(x, y)| f64::from(x - y).powi(2));
        squares.sum::<f64>()
    };
    let ours = |format| {
        let dtype = DType::Tiles(format);
        let mut bytes = Vec::new();
        encode(dtype, COLS, &source, None, &mut bytes);
        Tensor::from_bytes(dtype, vec![ROWS, COLS], bytes)
            .unwrap()
            .to_f32_vec()
    };
    // q8_0 has no choice but in ties; q4_0 searches for its scale, the reference does not.
    let (q8, q4) = (ours(BlockFormat::Q8_0), ours(BlockFormat::Q4_0));
    let reference = |name: &str| error(&oracle.floats(&format!("{name}.values")));
    assert!(
        error(&q8) <= 1.001 * reference("q8_0"),
        "{} {}",
        error(&q8),
        reference("q8_0")
    );
    let gain = error(&q4) / reference("q4_0");
    assert!(gain < 0.95, "the search leaves {gain} of the squared error");
    // The formats with super-blocks, which the reference does not write, lose less than that: but for
    // a row whose outlier takes all the range of the scales from the other blocks.
    let rest = |values: Vec<f32>| -> f64 {
        let rows = source.chunks(COLS).zip(values.chunks(COLS)).enumerate();
        (rows.filter(|&(row, _)| row != OUTLIER))
            .flat_map(|(_, (x, y))| x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)))
            .sum()
    };
    let q4 = rest(q4);
    let (q4_k, q6_k) = (rest(ours(BlockFormat::Q4K)), rest(ours(BlockFormat::Q6K)));
    assert!(q4_k < q4, "q4_k loses {q4_k}, q4_0 {q4}");
    assert!(q6_k < 0.15 * q4, "q6_k loses {q6_k}, q4_0 {q4}");
}
