//! The numbers of the block formats against the reference reader of GGML's formats, and the byte layout
//! against its description: blocks in GGML's bytes are rearranged here, by the documented layout, into
//! tiles, and must decode to exactly the reference's values (`data/make_ggml.py` wrote both).

use blt_kernels::{BlockFormat, Isa, Weights, decode_row, linear};

const COLS: usize = 256;
const ROWS: usize = 16;
/// The rows whose values the files hold.
const KNOWN: [usize; 3] = [0, 7, 15];

/// GGML's numbers of one row: its half floats, 8-bit or 6-bit scales and integers, all as they are stored
/// (integers before any offset is taken off).
struct Row {
    d: Vec<[u8; 2]>,
    scales: Vec<u8>,
    minimums: Vec<u8>,
    q: Vec<u8>, // (256)
}

fn half(block: &[u8], at: usize) -> [u8; 2] {
    [block[at], block[at + 1]]
}

/// Two 4-bit integers a byte: the lower halves of `width` bytes, then their upper halves.
fn nibbles(bytes: &[u8], width: usize) -> Vec<u8> {
    let parts = bytes.chunks(width);
    parts
        .flat_map(|part| {
            [
                part.iter().map(|b| b & 15).collect(),
                part.iter().map(|b| b >> 4).collect(),
            ]
        })
        .collect::<Vec<Vec<u8>>>()
        .concat()
}

fn parse(format: BlockFormat, bytes: &[u8]) -> Row {
    let mut row = Row {
        d: Vec::new(),
        scales: Vec::new(),
        minimums: Vec::new(),
        q: Vec::new(),
    };
    match format {
        BlockFormat::Q8_0 => {
            for block in bytes.chunks_exact(34) {
                row.d.push(half(block, 0));
                // Signed in GGML, 128 more here.
                row.q.extend(block[2..].iter().map(|q| q ^ 128));
            }
        }
        BlockFormat::Q4_0 => {
            for block in bytes.chunks_exact(18) {
                row.d.push(half(block, 0));
                row.q.extend(nibbles(&block[2..], 16));
            }
        }
        BlockFormat::Q4K => {
            row.d = vec![half(bytes, 0), half(bytes, 2)];
            let s = &bytes[4..16];
            row.scales = (0..4).map(|j| s[j] & 63).collect();
            row.scales
                .extend((0..4).map(|j| s[8 + j] & 15 | s[j] >> 6 << 4));
            row.minimums = (0..4).map(|j| s[4 + j] & 63).collect();
            row.minimums
                .extend((0..4).map(|j| s[8 + j] >> 4 | s[4 + j] >> 6 << 4));
            row.q = nibbles(&bytes[16..144], 32);
        }
        BlockFormat::Q6K => {
            row.d = vec![half(bytes, 208)];
            row.scales = bytes[192..208].to_vec();
            row.q = nibbles(&bytes[..128], 64);
            for (k, q) in row.q.iter_mut().enumerate() {
                let upper = bytes[128 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
                *q |= upper << 4;
            }
        }
        _ => unreachable!(),
    }
    row
}

/// Puts 4-bit integers of 32 columns where the layout has them: groups of 4 columns, 16 rows each;
/// columns 16..32 in the upper halves of the bytes of 0..16.
fn put_nibbles(out: &mut [u8], r: usize, q: &[u8]) {
    for k in 0..16 {
        out[k / 4 * 64 + r * 4 + k % 4] = q[k] & 15 | (q[k + 16] & 15) << 4;
    }
}

fn put_halves(out: &mut [u8], r: usize, d: [u8; 2]) {
    out[2 * r..2 * r + 2].copy_from_slice(&d);
}

/// Row `r` into a tile of 256 columns.
fn put(format: BlockFormat, tile: &mut [u8], r: usize, row: &Row) {
    let blocks = row.q.chunks_exact(32).enumerate();
    match format {
        BlockFormat::Q8_0 => {
            for (b, q) in blocks {
                let chunk = &mut tile[b / 2 * 1088..][..1088];
                put_halves(&mut chunk[b % 2 * 32..], r, row.d[b]);
                for (k, q) in q.iter().enumerate() {
                    chunk[64 + b % 2 * 512 + k / 4 * 64 + r * 4 + k % 4] = *q;
                }
            }
        }
        BlockFormat::Q4_0 => {
            for (b, q) in blocks {
                let chunk = &mut tile[b / 2 * 576..][..576];
                put_halves(&mut chunk[b % 2 * 32..], r, row.d[b]);
                put_nibbles(&mut chunk[64 + b % 2 * 256..], r, q);
            }
        }
        BlockFormat::Q4K => {
            put_halves(tile, r, row.d[0]);
            put_halves(&mut tile[32..], r, row.d[1]);
            let sixes = [&row.scales[..], &row.minimums[..]].concat();
            for (i, s) in sixes.chunks_exact(4).enumerate() {
                for (j, byte) in s[..3].iter().enumerate() {
                    tile[64 + i * 48 + j * 16 + r] = byte | (s[3] >> (2 * j) & 3) << 6;
                }
            }
            for (b, q) in blocks {
                put_nibbles(&mut tile[256 + b * 256..], r, q);
            }
        }
        BlockFormat::Q6K => {
            put_halves(tile, r, row.d[0]);
            for (i, s) in row.scales.iter().enumerate() {
                tile[64 + i * 16 + r] = *s;
            }
            for (b, q) in blocks {
                put_nibbles(&mut tile[320 + b * 256..], r, q);
                for (k, q) in q.iter().enumerate() {
                    let byte = 2368 + b * 128 + k / 16 * 64 + r * 4 + k % 4;
                    tile[byte] |= (q >> 4) << (k % 16 / 4 * 2);
                }
            }
        }
        _ => unreachable!(),
    }
}

#[test]
fn blocks_mean_what_they_mean_elsewhere() {
    let files: [(BlockFormat, &[u8]); 4] = [
        (BlockFormat::Q8_0, include_bytes!("data/ggml_q8_0.bin")),
        (BlockFormat::Q4_0, include_bytes!("data/ggml_q4_0.bin")),
        (BlockFormat::Q4K, include_bytes!("data/ggml_q4_k.bin")),
        (BlockFormat::Q6K, include_bytes!("data/ggml_q6_k.bin")),
    ];
    for (format, file) in files {
        let (rows, values) = file.split_at(file.len() - KNOWN.len() * COLS * 4);
        let mut tile = vec![0; format.tile_bytes(COLS).unwrap()];
        for (r, row) in rows.chunks_exact(rows.len() / ROWS).enumerate() {
            put(format, &mut tile, r, &parse(format, row));
        }
        let w = Weights::Blocks(format, &tile);
        for (r, values) in KNOWN.into_iter().zip(values.chunks_exact(COLS * 4)) {
            let want: Vec<f32> = values
                .chunks_exact(4)
                .map(|v| f32::from_le_bytes(v.try_into().unwrap()))
                .collect();
            let mut got = vec![0.0; COLS];
            decode_row(w, r, &mut got);
            // Zeros of either sign are the same weight.
            assert_eq!(got, want, "{} row {r}", format.name());

            // One column at a time through the kernels: a single activation of 1 becomes 127 / 127.
            for isa in Isa::available() {
                for k in [0, 1, 17, 100, 255] {
                    let mut x = vec![0.0; COLS];
                    x[k] = 1.0;
                    let mut out = [0.0; ROWS];
                    linear(isa, w, COLS, &x, &mut [&mut out]);
                    let error = (out[r] - want[k]).abs();
                    // The minimum of q4_k cancels: rounding is relative to the larger part.
                    let what = (format.name(), isa.name(), r, k, out[r], want[k]);
                    assert!(error <= 1e-6 * want[k].abs().max(8.0), "{what:?}");
                }
            }
        }
    }
}
