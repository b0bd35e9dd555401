//! Matrix products: every path equals the scalar definition, and products in bfloat16.

mod common;

use blt_kernels::*;
use common::*;

/// Whole numbers from -100 to 100.
fn whole(n: usize, seed: u64) -> Vec<f32> {
    noise(n, seed).iter().map(|x| (x * 100.0).round()).collect()
}

/// `c = scale * a b` and `c += scale * a b`, for each layout of a and b.
fn products(
    isa: Isa,
    precision: Precision,
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    b: &[f32],
    scale: f32,
) -> Vec<f32> {
    let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
        (0..rows * cols)
            .map(|i| x[i % rows * cols + i / rows])
            .collect()
    };
    let (at, bt) = (transposed(a, m, k), transposed(b, k, n));
    let mut all = Vec::new();
    for a in [View::strided(a, m, k, k), View::strided(&at, k, m, m).t()] {
        for b in [View::strided(b, k, n, n), View::strided(&bt, n, k, k).t()] {
            for into in [Accumulate::Overwrite, Accumulate::Add] {
                let mut c = whole(m * (n + 3), 9);
                matmul(
                    isa,
                    precision,
                    into,
                    ViewMut::strided(&mut c, m, n, n + 3),
                    scale,
                    a,
                    b,
                );
                all.extend(c);
            }
        }
    }
    all
}

const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (6, 16, 64),
    (7, 17, 65),
    (5, 3, 15),
    (13, 33, 31),
    (97, 40, 50),
    (3, 255, 130),
    (2, 513, 17),
    (9, 700, 33),
    (2, 7, 600),
];

#[test]
fn every_path_agrees_with_the_definition() {
    for shape in SHAPES {
        let (m, k, n) = shape;
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let want = products(Isa::Scalar, Precision::F32, shape, &a, &b, 0.3);
        for isa in Isa::available() {
            let got = products(isa, Precision::F32, shape, &a, &b, 0.3);
            if isa == Isa::Portable {
                // The portable path rounds each product.
                for (got, want) in got.iter().zip(&want) {
                    assert!((got - want).abs() < 1e-4, "{shape:?}: {got}, scalar {want}");
                }
            } else {
                assert_eq!(bits(&got), bits(&want), "{}, {shape:?}", isa.name());
            }
        }
    }
}

/// Small whole numbers are exact in bfloat16, and so are their sums in f32.
#[test]
fn bf16_products_of_whole_numbers_are_exact() {
    for isa in Isa::available() {
        if !Precision::Bf16.is_available(isa) {
            continue;
        }
        for shape in SHAPES {
            let (m, k, n) = shape;
            let (a, b) = (whole(m * k, 3), whole(k * n, 4));
            let want = products(Isa::Scalar, Precision::F32, shape, &a, &b, 0.25);
            let got = products(isa, Precision::Bf16, shape, &a, &b, 0.25);
            assert_eq!(bits(&got), bits(&want), "{}, {shape:?}", isa.name());
        }
    }
}

/// Only the factors are rounded, to the nearest bfloat16.
#[test]
fn bf16_products_round_the_factors_alone() {
    for isa in Isa::available() {
        if !Precision::Bf16.is_available(isa) {
            continue;
        }
        for shape in SHAPES {
            let (m, k, n) = shape;
            let (a, b) = (noise(m * k, 5), noise(k * n, 6));
            let round = |x: &[f32]| -> Vec<f32> {
                x.iter()
                    .map(|&x| half::bf16::from_f32(x).to_f32())
                    .collect()
            };
            let want = products(
                Isa::Scalar,
                Precision::F32,
                shape,
                &round(&a),
                &round(&b),
                0.3,
            );
            let got = products(isa, Precision::Bf16, shape, &a, &b, 0.3);
            for (got, want) in got.iter().zip(&want) {
                assert!(
                    (got - want).abs() < 1e-4,
                    "{}, {shape:?}: {got}, {want}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn empty_products() {
    for isa in Isa::available() {
        let mut c = [1.0f32; 4];
        let empty = View::strided(&[], 2, 0, 0);
        matmul(
            isa,
            Precision::F32,
            Accumulate::Add,
            ViewMut::dense(&mut c, 2),
            1.0,
            empty,
            empty.t(),
        );
        assert_eq!(c, [1.0; 4]);
        matmul(
            isa,
            Precision::F32,
            Accumulate::Overwrite,
            ViewMut::dense(&mut c, 2),
            1.0,
            empty,
            empty.t(),
        );
        assert_eq!(c, [0.0; 4]);
    }
}

#[test]
#[should_panic(expected = "a view beyond its slice")]
fn views_beyond_their_slice_panic() {
    View::strided(&[0.0f32; 7], 2, 4, 4);
}
