//! bfloat16 in 12 bits: packing is lossless, and products on every path have the bits of plain bfloat16.

mod common;

use blt_kernels::*;
use common::*;

/// Weights like those of a model, rounded to bfloat16. A few are tiny: the exceptions.
fn weights(rows: usize, cols: usize) -> Vec<f32> {
    let mut w = noise(rows * cols, 21);
    for (i, w) in w.iter_mut().enumerate() {
        *w *= match i * 7919 % 97 {
            0 => 2f32.powi(-15 - (i % 40) as i32),
            1 => 0.0,
            2 => -0.0,
            _ => 1.0,
        };
    }
    // No row has more exceptions than slots.
    for row in w.chunks_exact_mut(cols) {
        let mut free_slots = 8;
        for w in row.iter_mut().filter(|w| **w != 0.0 && w.abs() < 1e-4) {
            match free_slots {
                0 => *w = 0.0,
                _ => free_slots -= 1,
            }
        }
    }
    w.iter()
        .map(|&w| half::bf16::from_f32(w).to_f32())
        .collect()
}

fn pack(w: &[f32], cols: usize) -> Vec<u8> {
    let row_bytes = Bf12::row_bytes(cols).unwrap();
    let mut out = vec![0xaa; w.len() / cols * row_bytes];
    let rows = w.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes));
    rows.for_each(|(row, out)| Bf12::pack_row(row, out));
    out
}

fn unpack(bytes: &[u8], cols: usize) -> Vec<f32> {
    let w = Weights::Bf12(bytes);
    let mut out = vec![f32::NAN; w.rows(cols) * cols];
    for (i, row) in out.chunks_exact_mut(cols).enumerate() {
        decode_row(w, i, row);
    }
    out
}

const COLS: [usize; 14] = [
    1, 15, 16, 63, 64, 65, 100, 127, 128, 129, 192, 300, 768, 2816,
];

#[test]
fn packing_is_lossless() {
    for cols in COLS {
        let w = weights(5, cols);
        let back = unpack(&pack(&w, cols), cols);
        assert_eq!(bits(&back), bits(&w), "{cols} columns");
    }
    // Infinite, subnormal and extreme values, and powers of two.
    let strange = [
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
        -1e-40,
        3e38,
        1.2e-38,
        0.0,
        -0.0,
    ];
    let strange = strange.map(|x| half::bf16::from_f32(x).to_f32());
    let back = unpack(&pack(&strange, 8), 8);
    assert_eq!(bits(&back), bits(&strange));
    let octaves: Vec<f32> = (0..15).map(|e| 1.5 * 2f32.powi(-e)).collect();
    assert_eq!(bits(&unpack(&pack(&octaves, 15), 15)), bits(&octaves));
}

#[test]
fn too_many_exceptions_cause_a_small_error() {
    let cols = 256;
    let mut w = vec![1.0; cols];
    (w.iter_mut().skip(1).step_by(2)).for_each(|w| *w = 1.0 / 32768.0 / 3.0);
    w[3] = 1.75 / 32768.0;
    let w: Vec<f32> = w
        .iter()
        .map(|&w| half::bf16::from_f32(w).to_f32())
        .collect();
    let back = unpack(&pack(&w, cols), cols);
    let lost = w.iter().zip(&back).filter(|(a, b)| a != b).count();
    // A row of 256 columns has 15 slots.
    assert_eq!(lost, 128 - 15);
    for (a, b) in w.iter().zip(&back) {
        assert!((a - b).abs() < 2f32.powi(-14), "{a} became {b}");
    }
}

#[test]
fn products_have_the_bits_of_bfloat16() {
    for cols in COLS {
        for (rows, n) in [
            (3, 0),
            (1, 1),
            (5, 1),
            (2, 2),
            (7, 2),
            (7, 3),
            (35, 9),
            (70, 70),
        ] {
            if rows * cols * n > 4_000_000 {
                continue;
            }
            let (w, x) = (weights(rows, cols), noise(n * cols, 22));
            let plain = encode(Kind::Bf16, &w, 0);
            let packed = pack(&w, cols);
            for isa in Isa::available() {
                let run = |w: Weights| {
                    let mut out = vec![f32::NAN; n * rows];
                    linear(isa, w, cols, &x, ViewMut::dense(&mut out, rows));
                    bits(&out)
                };
                let what = (isa.name(), rows, cols, n);
                let want = run(Weights::Bf16(&plain));
                assert_eq!(run(Weights::Bf12(&packed)), want, "{what:?}");

                let mut rounded = Bf16Activations::new();
                round_activations(isa, &x, cols, &mut rounded);
                let run = |w: Weights| {
                    let mut out = vec![f32::NAN; n * rows];
                    linear_bf16_bf16(isa, w, &rounded, ViewMut::dense(&mut out, rows));
                    bits(&out)
                };
                let want = run(Weights::Bf16(&plain));
                assert_eq!(run(Weights::Bf12(&packed)), want, "{what:?}, rounded");
            }
        }
    }
}

#[test]
fn rows_are_sliced_and_added() {
    let (rows, cols) = (6, 300);
    let w = weights(rows, cols);
    let packed = pack(&w, cols);
    let matrix = Weights::Bf12(&packed);
    assert_eq!((matrix.rows(cols), matrix.row_multiple()), (rows, 1));
    for isa in Isa::available() {
        let mut sum = noise(cols, 23);
        let want: Vec<f32> = sum.iter().zip(&w[4 * cols..]).map(|(a, b)| a + b).collect();
        add_row(isa, &mut sum, matrix.slice_rows(4..5, cols));
        assert_eq!(bits(&sum), bits(&want), "{}", isa.name());
    }
}

/// Bytes that no encoder writes: exceptions out of order, or beyond the row.
#[test]
fn any_bytes_are_weights() {
    let cols = 300;
    let row_bytes = Bf12::row_bytes(cols).unwrap();
    let mut random = Random(1);
    let mut bytes: Vec<u8> = (0..4 * row_bytes)
        .map(|_| random.below(256) as u8)
        .collect();
    // Many of the columns are in the row.
    let slots = 3 * 193;
    for row in bytes.chunks_exact_mut(row_bytes) {
        for slot in row[slots..].chunks_exact_mut(4) {
            (slot[1], slot[2]) = (slot[1] & 1, 0);
        }
    }
    let want = unpack(&bytes, cols);
    for isa in Isa::available() {
        for n in [1, 2, 3] {
            let mut out = vec![0.0; n * 4];
            let x = vec![0.5; n * cols];
            let y = ViewMut::dense(&mut out, 4);
            linear(isa, Weights::Bf12(&bytes), cols, &x, y);
        }
        for (i, want) in want.chunks_exact(cols).enumerate() {
            let mut sum = vec![0.0; cols];
            add_row(
                isa,
                &mut sum,
                Weights::Bf12(&bytes).slice_rows(i..i + 1, cols),
            );
            let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            assert!(sum.iter().zip(want).all(same), "{}", isa.name());
        }
    }
}

#[test]
fn sizes() {
    assert_eq!(Bf12::row_bytes(0), Some(0));
    assert_eq!(Bf12::row_bytes(2048), Some(3136));
    assert_eq!(Bf12::row_bytes(1), Some(256));
    assert_eq!(Bf12::row_bytes(1 << 24), None);
    assert_eq!(Bf12::row_bytes(usize::MAX), None);
    assert!(Bf12::row_bytes((1 << 24) - 1).is_some());
}
