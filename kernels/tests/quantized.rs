//! Block formats: the error of the encoders, and products on every path, which equal the scalar definition bit for bit.

mod common;

use blt_kernels::*;
use common::*;

/// The portable path rounds products and sums separately: see `agreement.rs`.
const PORTABLE_TOLERANCE: f32 = 1e-4;

/// A (rows, cols) matrix in a block format, `offset` bytes into the buffer.
fn encode_matrix(format: BlockFormat, w: &[f32], cols: usize, offset: usize) -> Vec<u8> {
    let tile_bytes = format.tile_bytes(cols).unwrap();
    let mut bytes = vec![0xaa; offset];
    for rows in w.chunks(16 * cols) {
        let start = bytes.len();
        bytes.resize(start + tile_bytes, 0xaa);
        format.encode_tile(rows, cols, None, &mut bytes[start..]);
    }
    assert_eq!(
        Some(bytes.len() - offset),
        format.matrix_bytes(w.len() / cols, cols)
    );
    bytes
}

fn decode(w: Weights, rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows * cols];
    for (r, out) in out.chunks_exact_mut(cols).enumerate() {
        decode_row(w, r, out);
    }
    out
}

/// All formats, with activations in one term and in two.
fn cases() -> impl Iterator<Item = (BlockFormat, Terms)> {
    let terms = |format| [(format, Terms::One), (format, Terms::Two)];
    BlockFormat::ALL.into_iter().flat_map(terms)
}

fn run(terms: Terms, isa: Isa, w: Weights, rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / cols * rows];
    let mut quantized = QuantizedActivations::new();
    quantize_activations(isa, terms, x, cols, &mut quantized);
    linear_quantized(isa, w, &quantized, ViewMut::dense(&mut out, rows));
    out
}

fn agree(isa: Isa, got: &[f32], want: &[f32], what: std::fmt::Arguments) {
    if isa == Isa::Portable {
        for (got, want) in got.iter().zip(want) {
            assert!(
                (got - want).abs() <= PORTABLE_TOLERANCE * want.abs().max(1.0),
                "portable, {what}: {got}, scalar {want}"
            );
        }
    } else {
        assert_eq!(bits(got), bits(want), "{}, {what}", isa.name());
    }
}

#[test]
fn encoding_loses_little() {
    // Relative root mean square error of uniform noise; a step of 2/15 or 2/255 of the range, spread
    // evenly, gives 0.066 and 0.0039. q6_k: 2/63.
    let bounds = [
        (BlockFormat::Q8_0, 0.0045),
        (BlockFormat::Q4_0, 0.072),
        (BlockFormat::Q4K, 0.067),
        (BlockFormat::Q6K, 0.0175),
    ];
    let (rows, cols) = (32, 512);
    let w = noise(rows * cols, 1);
    for (format, bound) in bounds {
        let bytes = encode_matrix(format, &w, cols, 0);
        let back = decode(Weights::Blocks(format, &bytes), rows, cols);
        let square = |x: f32| (x as f64).powi(2);
        let lost: f64 = w.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
        let all: f64 = w.iter().map(|a| square(*a)).sum();
        let error = (lost / all).sqrt();
        assert!(error < bound, "{}: {error}", format.name());
    }
}

#[test]
fn encoding_keeps_what_it_can_represent() {
    // Multiples of a power of two inside every format's range.
    let cols = 256;
    let mut w: Vec<f32> = (0..16 * cols)
        .map(|i| ((i * 7) % 16) as f32 - 8.0)
        .collect();
    w.iter_mut().for_each(|w| *w *= 0.25);
    for format in [BlockFormat::Q4_0, BlockFormat::Q6K] {
        let bytes = encode_matrix(format, &w, cols, 0);
        let back = decode(Weights::Blocks(format, &bytes), 16, cols);
        for (a, b) in w.iter().zip(&back) {
            assert!((a - b).abs() <= 2e-3, "{}: {a} became {b}", format.name());
        }
    }
    for format in BlockFormat::ALL {
        let bytes = encode_matrix(format, &vec![0.0; 16 * cols], cols, 0);
        let back = decode(Weights::Blocks(format, &bytes), 16, cols);
        assert!(back.iter().all(|&w| w == 0.0), "{}", format.name());
    }
}

#[test]
fn importance_moves_the_error() {
    let cols = 256;
    let w = noise(16 * cols, 2);
    let importance: Vec<f32> = (0..cols)
        .map(|k| if k % 8 == 0 { 100.0 } else { 1.0 })
        .collect();
    for format in [BlockFormat::Q4_0, BlockFormat::Q4K, BlockFormat::Q6K] {
        let error = |importance: Option<&[f32]>| {
            let mut tile = vec![0; format.tile_bytes(cols).unwrap()];
            format.encode_tile(&w, cols, importance, &mut tile);
            let back = decode(Weights::Blocks(format, &tile), 16, cols);
            let errors = w.iter().zip(&back).map(|(a, b)| (a - b) * (a - b));
            errors.step_by(8).sum::<f32>()
        };
        assert!(error(Some(&importance)) < error(None), "{}", format.name());
    }
}

#[test]
fn extreme_weights_stay_finite() {
    let cols = 256;
    for magnitude in [1e-30f32, 1e-7, 1e6, 3e38] {
        let w: Vec<f32> = noise(16 * cols, 3).iter().map(|w| w * magnitude).collect();
        for format in BlockFormat::ALL {
            let bytes = encode_matrix(format, &w, cols, 0);
            let back = decode(Weights::Blocks(format, &bytes), 16, cols);
            assert!(
                back.iter().all(|w| w.is_finite()),
                "{} {magnitude}",
                format.name()
            );
        }
    }
}

#[test]
fn products_match_the_decoded_weights() {
    // 8-bit activations: 2^-8 of the largest value in a block, averaged over the columns. Two terms: 2^-8 of that.
    let tolerance = |terms| match terms {
        Terms::One => 0.01,
        Terms::Two => 0.01 / 256.0,
    };
    let (rows, cols, n) = (20, 320, 3);
    let (w, x) = (noise(rows * cols, 4), noise(n * cols, 5));
    for (format, terms) in cases() {
        let bytes = encode_matrix(format, &w, cols, 0);
        let weights = Weights::Blocks(format, &bytes);
        let decoded = decode(weights, rows, cols);
        for isa in Isa::available() {
            let out = run(terms, isa, weights, rows, cols, &x);
            for i in 0..n {
                for r in 0..rows {
                    let pairs = decoded[r * cols..][..cols]
                        .iter()
                        .zip(&x[i * cols..][..cols]);
                    let want: f64 = pairs.map(|(&w, &x)| w as f64 * x as f64).sum();
                    let got = out[i * rows + r] as f64;
                    let bound = tolerance(terms) * (cols as f64).sqrt();
                    assert!(
                        (got - want).abs() < bound,
                        "{} {}: {got} {want}",
                        format.name(),
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn every_path_every_shape() {
    let lengths = (1..=67)
        .step_by(3)
        .chain([31, 32, 33, 63, 64, 65, 128, 255, 256, 257, 300, 768]);
    for cols in lengths {
        let many = (cols == 768).then_some((33, 135));
        for (rows, n) in [(16, 1), (5, 2), (35, 3), (17, 9)].into_iter().chain(many) {
            let (w, x) = (noise(rows * cols, 6), noise(n * cols, 7));
            for (format, terms) in cases() {
                let bytes = encode_matrix(format, &w, cols, 0);
                let w = Weights::Blocks(format, &bytes);
                let want = run(terms, Isa::Scalar, w, rows, cols, &x);
                for isa in Isa::available() {
                    let got = run(terms, isa, w, rows, cols, &x);
                    let what =
                        format_args!("{} ({rows}, {cols}), {n} inputs, {terms:?}", format.name());
                    agree(isa, &got, &want, what);
                }
            }
        }
    }
}

/// Bytes that no encoder writes: every integer at the ends of its range.
#[test]
fn extreme_integers_do_not_overflow() {
    let (rows, cols, n) = (16, 512, 3);
    let mut x = vec![1.0f32; n * cols];
    x[cols..2 * cols].fill(-1.0);
    x[2 * cols..].iter_mut().step_by(2).for_each(|x| *x = -1.0);
    for (format, terms) in cases() {
        for fill in [0x00, 0xff, 0x80, 0x7f, 0x01] {
            let mut bytes = vec![fill; format.tile_bytes(cols).unwrap()];
            // Finite scales: the upper bytes of the half floats that every chunk starts with.
            let chunk = format.tile_bytes(1).unwrap();
            for chunk in bytes.chunks_exact_mut(chunk) {
                chunk[..64]
                    .iter_mut()
                    .skip(1)
                    .step_by(2)
                    .for_each(|b| *b = 0x24);
            }
            let w = Weights::Blocks(format, &bytes);
            let want = run(terms, Isa::Scalar, w, rows, cols, &x);
            assert!(want.iter().all(|x| x.is_finite()));
            for isa in Isa::available()
                .into_iter()
                .filter(|&isa| isa != Isa::Portable)
            {
                let got = run(terms, isa, w, rows, cols, &x);
                assert_eq!(
                    bits(&got),
                    bits(&want),
                    "{} {} {fill:#x}",
                    format.name(),
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn one_input_equals_many_and_splits_do_not_matter() {
    let (rows, cols) = (75, 1056);
    let w = noise(rows * cols, 8);
    for (format, terms) in cases() {
        let bytes = encode_matrix(format, &w, cols, 0);
        let w = Weights::Blocks(format, &bytes);
        for isa in Isa::available() {
            for n in [1, 2, 3, 5, 8, 9, 15, 20] {
                let x = noise(n * cols, 9);
                let many = run(terms, isa, w, rows, cols, &x);
                for i in 0..n {
                    let one = run(terms, isa, w, rows, cols, &x[i * cols..][..cols]);
                    let what = (format, terms, isa.name(), n, i);
                    assert_eq!(bits(&one), bits(&many[i * rows..][..rows]), "{what:?}");
                }
                for cut in [16, 64] {
                    let top = run(terms, isa, w.slice_rows(0..cut, cols), cut, cols, &x);
                    let rest = run(
                        terms,
                        isa,
                        w.slice_rows(cut..rows, cols),
                        rows - cut,
                        cols,
                        &x,
                    );
                    for i in 0..n {
                        let parts = [
                            &top[i * cut..][..cut],
                            &rest[i * (rows - cut)..][..rows - cut],
                        ];
                        let what = (format, terms, isa.name(), n, cut);
                        assert_eq!(
                            bits(&parts.concat()),
                            bits(&many[i * rows..][..rows]),
                            "{what:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn any_alignment() {
    let (rows, cols, n) = (16, 320, 2);
    let (w, x) = (noise(rows * cols, 10), noise(n * cols, 11));
    for (format, terms) in cases() {
        for isa in Isa::available() {
            let bytes = encode_matrix(format, &w, cols, 0);
            let want = run(terms, isa, Weights::Blocks(format, &bytes), rows, cols, &x);
            for offset in [1, 3, 16, 32, 63] {
                let bytes = encode_matrix(format, &w, cols, offset);
                let got = run(
                    terms,
                    isa,
                    Weights::Blocks(format, &bytes[offset..]),
                    rows,
                    cols,
                    &x,
                );
                assert_eq!(
                    bits(&got),
                    bits(&want),
                    "{} {} {offset}",
                    format.name(),
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn shared_activations_and_reuse_give_the_same() {
    let cols = 96;
    let (w, x) = (noise(32 * cols, 12), noise(4 * cols, 13));
    let bytes = encode_matrix(BlockFormat::Q8_0, &w, cols, 0);
    let w = Weights::Blocks(BlockFormat::Q8_0, &bytes);
    for isa in Isa::available() {
        let mut shared = QuantizedActivations::new();
        // An earlier use with more and wider rows must have no effect.
        quantize_activations(isa, Terms::Two, &noise(5 * 700, 14), 700, &mut shared);
        quantize_activations(isa, Terms::One, &x, cols, &mut shared);
        assert_eq!((shared.n(), shared.cols()), (4, cols));
        let mut out = vec![0.0; 4 * 32];
        let views = ViewMut::dense(&mut out, 32);
        linear_quantized(isa, w, &shared, views);
        let mut whole = vec![0.0; 4 * 32];
        linear(isa, w, cols, &x, ViewMut::dense(&mut whole, 32));
        assert_eq!(bits(&out), bits(&whole));
    }
}

#[test]
fn non_finite_activations_spread() {
    let cols = 128;
    let w = noise(16 * cols, 15);
    for (format, terms) in cases() {
        let bytes = encode_matrix(format, &w, cols, 0);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = noise(cols, 16);
            x[70] = bad;
            for isa in Isa::available() {
                let out = run(terms, isa, Weights::Blocks(format, &bytes), 16, cols, &x);
                assert!(
                    out.iter().all(|x| x.is_nan()),
                    "{} {}",
                    format.name(),
                    isa.name()
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "inside a tile")]
fn splitting_a_tile_panics() {
    let bytes = vec![0; BlockFormat::Q8_0.matrix_bytes(64, 64).unwrap()];
    Weights::Blocks(BlockFormat::Q8_0, &bytes).slice_rows(0..20, 64);
}

#[test]
fn sizes_that_overflow_are_none() {
    for format in BlockFormat::ALL {
        assert_eq!(format.matrix_bytes(usize::MAX, usize::MAX), None);
        assert_eq!(BlockFormat::by_name(format.name()), Some(format));
    }
    assert_eq!(BlockFormat::by_name("q3_k"), None);
}
