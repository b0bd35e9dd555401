//! Every path equals the scalar definition bit for bit, and the portable path within a tolerance. One input equals many
//! inputs, at any alignment, bit for bit on every path.

mod common;

use blt_kernels::*;
use common::*;
use half::f16;

/// The portable path rounds each product: sums of n terms of size 1 to 8 then differ by about
/// `8 * sqrt(n) * 2^-24`, less than this for all lengths here.
const PORTABLE_TOLERANCE: f32 = 1e-4;

/// Lengths: all short ones, and around the edges of the blocks of 16 and 64.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=67).chain([79, 80, 81, 127, 128, 129, 260, 768, 1000])
}

/// The result of a path must be that of the scalar path.
fn agree(isa: Isa, got: &[f32], want: &[f32], what: std::fmt::Arguments) {
    if isa == Isa::Portable {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let same = got == want || got.is_nan() && want.is_nan();
            assert!(
                same || (got - want).abs() <= PORTABLE_TOLERANCE * want.abs().max(1.0),
                "portable, {what}: [{i}] is {got}, scalar {want}"
            );
        }
    } else {
        assert_eq!(bits(got), bits(want), "{}, {what}", isa.name());
    }
}

/// Runs `f` on every path and compares the results.
fn on_every_path(what: std::fmt::Arguments, f: impl Fn(Isa) -> Vec<f32>) {
    let want = f(Isa::Scalar);
    for isa in Isa::available() {
        agree(isa, &f(isa), &want, what);
    }
}

/// Noise with some values that expose rounding, signs of zero and large ranges.
fn rough(n: usize, seed: u64) -> Vec<f32> {
    let mut x = noise(n, seed);
    for (i, x) in x.iter_mut().enumerate() {
        match (i as u64 + seed) % 11 {
            0 => *x *= 8.0,
            1 => *x *= 1e-6,
            2 => *x = -0.0,
            3 => *x *= 1e-38,
            _ => (),
        }
    }
    x
}

/// Rows of keys or values.
#[derive(Debug)]
enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Stored {
    fn both(x: Vec<f32>) -> [Self; 2] {
        let half = x.iter().map(|&x| f16::from_f32(x)).collect();
        [Stored::F32(x), Stored::F16(half)]
    }

    /// The rows from value `first` on, `stride` apart. The rows to prefetch are arbitrary.
    fn strided(&self, first: usize, stride: usize) -> StridedRows<'_> {
        let all = match self {
            Stored::F32(x) => FloatSlice::F32(x),
            Stored::F16(x) => FloatSlice::F16(x),
        };
        StridedRows {
            values: all.slice(first..all.len()),
            stride,
            next: all,
        }
    }

    fn wide(&self) -> Vec<f32> {
        match self {
            Stored::F32(x) => x.clone(),
            Stored::F16(x) => x.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

fn run_linear(isa: Isa, w: Weights, rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
    let n = x.len() / cols.max(1);
    let mut out = vec![f32::NAN; n * rows];
    let views = ViewMut::dense(&mut out, rows);
    linear(isa, w, cols, x, views);
    out
}

#[test]
fn linear_every_length() {
    for cols in lengths().filter(|&cols| cols > 0) {
        let (rows, n) = (9, 3);
        let (w, x) = (rough(rows * cols, 1), rough(n * cols, 2));
        for kind in Kind::ALL {
            let bytes = encode(kind, &w, 0);
            on_every_path(format_args!("{kind:?}, {cols} columns"), |isa| {
                run_linear(isa, kind.weights(&bytes), rows, cols, &x)
            });
        }
    }
}

#[test]
fn linear_every_batch_and_row_count() {
    let cols = 53;
    for kind in Kind::ALL {
        for rows in [1, 2, 3, 4, 5, 7, 8, 11, 16, 19] {
            let bytes = encode(kind, &noise(rows * cols, 3), 0);
            for n in 1..=20 {
                let x = noise(n * cols, 4);
                let w = kind.weights(&bytes);
                on_every_path(format_args!("{kind:?}, {rows} rows, {n} inputs"), |isa| {
                    run_linear(isa, w, rows, cols, &x)
                });
            }
        }
    }
}

#[test]
fn linear_over_several_row_blocks() {
    // 2048 columns of f32: a block of rows is 32.
    let (rows, cols, n) = (67, 2048, 7);
    let (w, x) = (noise(rows * cols, 5), noise(n * cols, 6));
    for kind in Kind::ALL {
        let bytes = encode(kind, &w, 0);
        on_every_path(format_args!("{kind:?}"), |isa| {
            run_linear(isa, kind.weights(&bytes), rows, cols, &x)
        });
    }
}

#[test]
fn linear_any_alignment() {
    let (rows, cols, n) = (6, 45, 4);
    let (w, x) = (noise(rows * cols, 7), noise(n * cols, 8));
    for kind in Kind::ALL {
        for isa in Isa::available() {
            let bytes = encode(kind, &w, 0);
            let want = run_linear(isa, kind.weights(&bytes), rows, cols, &x);
            for offset in [1, 2, 3, 5, 16, 31, 63] {
                let bytes = encode(kind, &w, offset);
                let mut shifted = vec![0.0; offset % 4];
                shifted.extend(&x);
                let x = &shifted[offset % 4..];
                let got = run_linear(isa, kind.weights(&bytes[offset..]), rows, cols, x);
                assert_eq!(
                    bits(&got),
                    bits(&want),
                    "{}, {kind:?}, {offset}",
                    isa.name()
                );
            }
        }
    }
}

/// The contract: the results of an input do not depend on the other inputs, or on how rows are split.
#[test]
fn linear_one_input_equals_many() {
    for (rows, cols) in [(21, 100), (40, 768), (13, 2817)] {
        let w = rough(rows * cols, 9);
        for kind in Kind::ALL {
            let bytes = encode(kind, &w, 0);
            let w = kind.weights(&bytes);
            for isa in Isa::available() {
                for n in [2, 5, 6, 7, 13, 20] {
                    let x = rough(n * cols, 10);
                    let many = run_linear(isa, w, rows, cols, &x);
                    for i in 0..n {
                        let one = run_linear(isa, w, rows, cols, &x[i * cols..][..cols]);
                        let what = (isa.name(), kind, rows, cols, n, i);
                        assert_eq!(bits(&one), bits(&many[i * rows..][..rows]), "{what:?}");
                    }
                    for cut in [1, 3, rows / 2] {
                        let top = run_linear(isa, w.slice_rows(0..cut, cols), cut, cols, &x);
                        let rest = w.slice_rows(cut..rows, cols);
                        let rest = run_linear(isa, rest, rows - cut, cols, &x);
                        for i in 0..n {
                            let halves = [
                                &top[i * cut..][..cut],
                                &rest[i * (rows - cut)..][..rows - cut],
                            ];
                            let what = (isa.name(), kind, n, cut);
                            assert_eq!(
                                bits(&halves.concat()),
                                bits(&many[i * rows..][..rows]),
                                "{what:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// bfloat16 weights times activations rounded to bfloat16.
fn run_bf16(isa: Isa, w: &[u8], rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
    let mut rounded = Bf16Activations::new();
    // The content after an earlier, longer input must not matter.
    round_activations(isa, &vec![f32::NAN; x.len() + cols * 2], cols, &mut rounded);
    round_activations(isa, x, cols, &mut rounded);
    let mut out = vec![f32::NAN; rounded.n() * rows];
    let views = ViewMut::dense(&mut out, rows);
    linear_bf16_bf16(isa, Weights::Bf16(w), &rounded, views);
    out
}

/// This includes the portable path, because the product of two bfloat16 numbers is exact.
#[test]
fn bf16_every_length_and_batch() {
    let check = |rows, cols, n| {
        let (w, x) = (noise(rows * cols, 27), rough(n * cols, 28));
        let w = encode(Kind::Bf16, &w, 1);
        let want = run_bf16(Isa::Scalar, &w[1..], rows, cols, &x);
        for isa in Isa::available() {
            let what = (isa.name(), rows, cols, n);
            let got = run_bf16(isa, &w[1..], rows, cols, &x);
            assert_eq!(bits(&got), bits(&want), "{what:?}");
            for i in 0..n {
                let one = run_bf16(isa, &w[1..], rows, cols, &x[i * cols..][..cols]);
                assert_eq!(bits(&one), bits(&got[i * rows..][..rows]), "{what:?}, {i}");
            }
        }
    };
    for cols in lengths().filter(|&cols| cols > 0) {
        check(9, cols, 3);
    }
    for (rows, n) in (1..=17).map(|rows| (rows, 1 + rows * 5 % 14)) {
        check(rows, 77, n);
    }
    check(80, 2048, 7);
    check(13, 4500, 7);
}

/// Close to the exact product: the relative error of each input is at most 2^-9.
#[test]
fn bf16_is_near_the_exact_product() {
    let (rows, cols) = (5, 300);
    let (w, x) = (noise(rows * cols, 29), noise(cols, 30));
    let w = encode(Kind::Bf16, &w, 0);
    let exact = run_linear(Isa::Scalar, Weights::Bf16(&w), rows, cols, &x);
    let found = run_bf16(Isa::detect(), &w, rows, cols, &x);
    for (found, exact) in found.iter().zip(&exact) {
        let most = cols as f32 / 512.0;
        assert!((found - exact).abs() <= most, "{found} for {exact}");
    }
    assert_ne!(found, exact, "inputs were rounded");
}

#[test]
fn dots_every_length() {
    for d in lengths() {
        let (a, b) = (rough(d, 11), rough(d, 12));
        on_every_path(format_args!("dot of {d}"), |isa| vec![dot(isa, &a, &b)]);
        for (m, n) in [
            (0, 4),
            (1, 0),
            (1, 1),
            (1, 3),
            (1, 4),
            (1, 9),
            (2, 5),
            (3, 4),
            (7, 9),
        ] {
            let (stride, q_stride) = (d + n % 3, d + m % 2);
            let q = rough(m * q_stride, 11);
            let rows = Stored::both(rough(n * stride, 13));
            for rows in &rows {
                let run = |isa, scale| {
                    let (q, mut out) = (View::strided(&q, m, d, q_stride), vec![0.0; m * n]);
                    let to = ViewMut::strided(&mut out, m, n, n);
                    dot_rows(isa, q, rows.strided(0, stride), scale, to);
                    out
                };
                let what = format!("{m} times {n} dots of {d}");
                on_every_path(format_args!("{what}, {rows:?}"), |isa| run(isa, 0.125));
                let wide = rows.wide();
                for isa in Isa::available() {
                    let single: Vec<f32> = (0..m * n)
                        .map(|at| {
                            let (i, j) = (at / n, at % n);
                            dot(isa, &q[i * q_stride..][..d], &wide[j * stride..][..d])
                        })
                        .collect();
                    let (got, name) = (run(isa, 1.0), isa.name());
                    assert_eq!(bits(&got), bits(&single), "{name}, {what}");
                }
            }
        }
    }
}

#[test]
fn weighted_sums_every_length() {
    for (d, gap) in lengths().flat_map(|d| [(d, 0), (d, 2)]) {
        let (m, n, stride) = (6, 7, d + gap);
        let (p, rows, start) = (noise(m * n, 14), noise(n * stride, 15), noise(m * d, 16));
        for rows in Stored::both(rows) {
            let run = |isa, cuts: &[usize], sums: std::ops::Range<usize>| {
                let mut acc = start[sums.start * d..sums.end * d].to_vec();
                let mut from = 0;
                for &to in cuts {
                    let p = View::strided(&p[sums.start * n + from..], sums.len(), to - from, n);
                    let rows = rows.strided(from * stride, stride);
                    let acc = ViewMut::strided(&mut acc, sums.len(), d, d);
                    weighted_sum(isa, p, rows, acc);
                    from = to;
                }
                acc
            };
            on_every_path(format_args!("{d} columns, {rows:?}"), |isa| {
                run(isa, &[n], 0..m)
            });
            for isa in Isa::available() {
                let (name, whole) = (isa.name(), run(isa, &[n], 0..m));
                let cut = run(isa, &[3, 4, n], 0..m);
                assert_eq!(bits(&cut), bits(&whole), "{name}, {d}");
                for i in 0..m {
                    let alone = run(isa, &[n], i..i + 1);
                    let whole_row = &whole[i * d..][..d];
                    assert_eq!(bits(&alone), bits(whole_row), "{name}, {d}, {i}");
                }
            }
        }
    }
}

#[test]
fn to_f16_every_length() {
    for n in lengths() {
        let mut x = rough(n, 26);
        // Halfway between neighbours, subnormal, too large, and NaN.
        let hard = [1.0 + 1.0 / 2048.0, 3e-8, -6e-6, 65519.9, 65520.0, f32::NAN];
        for (x, hard) in x.iter_mut().step_by(5).zip(hard) {
            *x = hard;
        }
        on_every_path(format_args!("to_f16 of {n}"), |isa| {
            let mut out = vec![f16::ONE; n];
            to_f16(isa, &x, &mut out);
            out.iter().map(|x| x.to_f32()).collect()
        });
    }
}

#[test]
fn rows_of_scores_every_length() {
    for n in lengths() {
        for scale in [1.0, 30.0, 400.0] {
            let mut x: Vec<f32> = noise(n, 17).iter().map(|x| x * scale).collect();
            for holes in [false, true] {
                if holes {
                    x.iter_mut().step_by(3).for_each(|x| *x = f32::NEG_INFINITY);
                }
                on_every_path(format_args!("softmax of {n}, scale {scale}"), |isa| {
                    let mut x = x.clone();
                    softmax(isa, &mut x);
                    x
                });
                on_every_path(format_args!("entropy of {n}, scale {scale}"), |isa| {
                    vec![log_softmax_entropy(isa, &x)]
                });
            }
        }
    }
}

#[test]
fn vectors_every_length() {
    for n in lengths() {
        let (x, y) = (noise(n, 18), noise(n, 19));
        on_every_path(format_args!("rms_norm of {n}"), |isa| {
            let mut out = vec![0.0; n];
            rms_norm(isa, &x, &y, 1e-5, &mut out);
            out
        });
        let (x, y) = (rough(n, 20), rough(n, 21));
        type InPlace = fn(Isa, &mut [f32], &[f32]);
        let in_place: [(&str, InPlace); 4] = [
            ("swiglu", swiglu),
            ("add_assign", add_assign),
            ("double_add", double_add),
            ("max_assign", max_assign),
        ];
        for (name, f) in in_place {
            on_every_path(format_args!("{name} of {n}"), |isa| {
                let mut x = x.clone();
                f(isa, &mut x, &y);
                x
            });
        }
        let (cos, sin) = (noise(n, 22), noise(n, 23));
        on_every_path(format_args!("rope of {n} pairs"), |isa| {
            let mut head = noise(2 * n, 24);
            rope(isa, &mut head, &cos, &sin);
            head
        });
        for kind in Kind::ALL {
            for offset in [0, 1, 7] {
                let bytes = encode(kind, &y, offset);
                on_every_path(format_args!("add_row of {n} {kind:?}"), |isa| {
                    let mut x = x.clone();
                    add_row(isa, &mut x, kind.weights(&bytes[offset..]));
                    x
                });
            }
        }
    }
}

#[test]
fn extremes_agree() {
    let mut x = vec![
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        1e-45,
        f32::MAX,
    ];
    x.extend([
        -104.5,
        -103.9,
        -88.0,
        -87.3,
        88.7,
        88.73,
        89.5,
        f32::MIN_POSITIVE,
    ]);
    x.extend(noise(300, 25).iter().map(|x| x * 110.0));
    on_every_path(format_args!("swiglu"), |isa| {
        let mut gate = x.clone();
        swiglu(isa, &mut gate, &vec![1.0; x.len()]);
        gate
    });
    let mut y = x.clone();
    y.rotate_left(1);
    on_every_path(format_args!("max_assign"), |isa| {
        let mut acc = x.clone();
        max_assign(isa, &mut acc, &y);
        acc
    });
    // Every half float, subnormal and infinite ones included.
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(|h| h.to_le_bytes()).collect();
    for (name, w) in [
        ("f16", Weights::F16(&halves)),
        ("bf16", Weights::Bf16(&halves)),
    ] {
        on_every_path(format_args!("widening {name}"), |isa| {
            let mut acc = vec![-0.0; 1 << 16];
            add_row(isa, &mut acc, w);
            acc
        });
    }
}
