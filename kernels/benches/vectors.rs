//! The time of the kernels that are not matrix products, at the sizes of blt-1b, on every path of the CPU. All data stays
//! in the first-level cache. These kernels should take negligible time compared with a matrix product.

use std::hint::black_box;
use std::time::Instant;

use blt_kernels::*;

/// The best of several runs, in nanoseconds a call.
fn time(mut f: impl FnMut()) -> f64 {
    const CALLS: u32 = 200;
    (0..15)
        .map(|_| {
            let start = Instant::now();
            (0..CALLS).for_each(|_| f());
            start.elapsed().as_secs_f64() * 1e9 / CALLS as f64
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let x: Vec<f32> = (0..8192)
        .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
        .collect();
    let (d, keys) = (64, 128);
    let rows = StridedRows {
        values: FloatSlice::F32(&x),
        stride: d,
        next: FloatSlice::F32(&[]),
    };
    println!(
        "nanoseconds a call; softmax of 512, entropy of 260, rms_norm of 2048, swiglu of 5632,"
    );
    println!("rope of 64, dot_rows and weighted_sum of 128 rows of 64, 8-bit activations of 2048");
    for isa in Isa::available() {
        let mut y = x.clone();
        let mut scores = vec![0.01; keys];
        let mut quantized = QuantizedActivations::new();
        let times = [
            time(|| softmax(isa, black_box(&mut y[..512]))),
            time(|| {
                black_box(log_softmax_entropy(isa, black_box(&x[..260])));
            }),
            time(|| rms_norm(isa, black_box(&x[..2048]), &x[..2048], 1e-5, &mut y[..2048])),
            time(|| {
                y[..5632].copy_from_slice(&x[..5632]);
                swiglu(isa, black_box(&mut y[..5632]), &x[..5632]);
            }),
            time(|| rope(isa, black_box(&mut y[..d]), &x[..d / 2], &x[..d / 2])),
            time(|| {
                dot_rows(
                    isa,
                    black_box(View::dense(&x[..d], d)),
                    rows,
                    0.125,
                    ViewMut::dense(&mut scores, keys),
                )
            }),
            time(|| {
                let p = black_box(View::dense(&scores, keys));
                weighted_sum(isa, p, rows, ViewMut::dense(&mut y[..d], d))
            }),
            time(|| {
                quantize_activations(isa, Terms::One, black_box(&x[..2048]), 2048, &mut quantized)
            }),
        ];
        print!("{:10}", isa.name());
        times.iter().for_each(|t| print!(" {t:8.0}"));
        println!();
    }
}
