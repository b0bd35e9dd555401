//! The kernels compared with f64 arithmetic and known values, on every path of this CPU.

mod common;

use blt_kernels::*;
use common::noise;

/// Rounding of f32 sums of some hundred terms of size 1.
const SUM_TOLERANCE: f64 = 2e-5;

fn close(got: f32, want: f64, tolerance: f64, what: &str) {
    assert!(
        (got as f64 - want).abs() <= tolerance,
        "{what}: got {got}, want {want}"
    );
}

#[test]
fn linear_is_a_matrix_product() {
    let (rows, cols, n) = (7, 37, 3);
    let (w, x) = (noise(rows * cols, 1), noise(n * cols, 2));
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    for isa in Isa::available() {
        let mut out = vec![0.0; n * rows];
        let views = ViewMut::dense(&mut out, rows);
        linear(isa, Weights::F32(&bytes), cols, &x, views);
        for i in 0..n {
            for r in 0..rows {
                let want: f64 = (0..cols)
                    .map(|k| w[r * cols + k] as f64 * x[i * cols + k] as f64)
                    .sum();
                close(out[i * rows + r], want, SUM_TOLERANCE, isa.name());
            }
        }
    }
}

#[test]
fn attention_products() {
    let (d, n, stride) = (24, 9, 30);
    let (q, rows) = (noise(d, 3), noise(n * stride, 4));
    let strided = StridedRows {
        values: FloatSlice::F32(&rows),
        stride,
        next: FloatSlice::F32(&rows[..2 * stride]),
    };
    for isa in Isa::available() {
        let mut scores = vec![0.0; n];
        dot_rows(
            isa,
            View::dense(&q, d),
            strided,
            0.5,
            ViewMut::dense(&mut scores, n),
        );
        for j in 0..n {
            let want: f64 = (0..d)
                .map(|c| q[c] as f64 * rows[j * stride + c] as f64)
                .sum();
            close(scores[j], 0.5 * want, SUM_TOLERANCE, isa.name());
        }
        let mut acc = vec![1.0; d];
        weighted_sum(
            isa,
            View::dense(&scores, n),
            strided,
            ViewMut::dense(&mut acc, d),
        );
        for c in 0..d {
            let want: f64 = (0..n)
                .map(|j| scores[j] as f64 * rows[j * stride + c] as f64)
                .sum();
            close(acc[c], 1.0 + want, SUM_TOLERANCE, isa.name());
        }
    }
}

#[test]
fn softmax_of_known_scores() {
    for isa in Isa::available() {
        let mut x = [0.0, 2f32.ln(), f32::NEG_INFINITY, 5f32.ln()];
        softmax(isa, &mut x);
        for (got, want) in x.iter().zip([0.125, 0.25, 0.0, 0.625]) {
            close(*got, want, 1e-7, isa.name());
        }
        softmax(isa, &mut []);
        let mut x = [1.0, f32::NAN, 3.0];
        softmax(isa, &mut x);
        assert!(x.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn entropy_is_accurate() {
    /// The error that the threshold of the patcher tolerates.
    const TOLERANCE: f64 = 2e-6;
    for isa in Isa::available() {
        for (scale, seed) in [(0.0, 5), (1.0, 6), (4.0, 7), (30.0, 8), (200.0, 9)] {
            let logits: Vec<f32> = noise(260, seed).iter().map(|x| x * scale).collect();
            let s: f64 = logits.iter().map(|&x| (x as f64).exp()).sum();
            let want: f64 = logits
                .iter()
                .map(|&x| x as f64 - s.ln())
                .map(|lp| -lp.exp() * lp)
                .sum();
            close(
                log_softmax_entropy(isa, &logits),
                want,
                TOLERANCE,
                isa.name(),
            );
        }
        let halves = [f32::NEG_INFINITY, 3.0, 3.0];
        close(
            log_softmax_entropy(isa, &halves),
            std::f64::consts::LN_2,
            1e-7,
            isa.name(),
        );
        assert!(log_softmax_entropy(isa, &[1.0, f32::NAN]).is_nan());
    }
}

#[test]
fn norm_gate_and_rotation() {
    let (x, w) = (noise(50, 10), noise(50, 11));
    for isa in Isa::available() {
        let mut out = vec![0.0; 50];
        rms_norm(isa, &x, &w, 1e-5, &mut out);
        let mean = x.iter().map(|&x| x as f64 * x as f64).sum::<f64>() / 50.0;
        for i in 0..50 {
            close(
                out[i],
                x[i] as f64 / (mean + 1e-5).sqrt() * w[i] as f64,
                1e-6,
                isa.name(),
            );
        }
        let mut gate: Vec<f32> = x.iter().map(|x| x * 20.0).collect();
        let z = gate.clone();
        swiglu(isa, &mut gate, &w);
        for i in 0..50 {
            let z = z[i] as f64;
            close(
                gate[i],
                z / (1.0 + (-z).exp()) * w[i] as f64,
                4e-6,
                isa.name(),
            );
        }
        let mut pair = [3.0, 4.0];
        rope(isa, &mut pair, &[0.0], &[1.0]);
        assert_eq!(pair, [-4.0, 3.0]);
    }
}

#[test]
fn elementwise_operations() {
    for isa in Isa::available() {
        let mut x = [1.0, 2.0, 3.0];
        add_assign(isa, &mut x, &[0.5, 0.5, 0.5]);
        assert_eq!(x, [1.5, 2.5, 3.5]);
        double_add(isa, &mut x, &[1.0, 0.0, -1.0]);
        assert_eq!(x, [4.0, 5.0, 6.0]);
        max_assign(isa, &mut x, &[9.0, 0.0, f32::NAN]);
        assert_eq!(x[..2], [9.0, 5.0]);
        assert!(x[2].is_nan());
        max_assign(isa, &mut x, &[0.0, 0.0, 100.0]);
        assert!(x[2].is_nan(), "NaN in the accumulator stays");

        let bytes: Vec<u8> = [1.0f32, -2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let mut acc = [10.0, 10.0];
        add_row(isa, &mut acc, Weights::F32(&bytes));
        assert_eq!(acc, [11.0, 8.0]);
        read_row(Weights::F32(&bytes), &mut acc);
        assert_eq!(acc, [1.0, -2.0]);
    }
}

#[test]
#[should_panic(expected = "do not fit")]
fn rows_out_of_range_panic() {
    dot_rows(
        Isa::detect(),
        View::dense(&[0.0; 4], 4),
        StridedRows {
            values: FloatSlice::F32(&[0.0; 10]),
            stride: 4,
            next: FloatSlice::F32(&[]),
        },
        1.0,
        ViewMut::dense(&mut [0.0; 3], 3),
    );
}
