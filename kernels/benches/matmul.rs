//! GFLOP/s of `matmul` on one thread at the shapes of training: forward (x W^T), the gradient of the input (dy W), the
//! gradient of the weights (dy^T x), and one head of attention.

use std::hint::black_box;
use std::time::Instant;

use blt_kernels::*;

/// The best of several runs, in seconds a call.
fn time(mut f: impl FnMut()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..30).map(run).fold(f64::INFINITY, f64::min)
}

fn main() {
    let x: Vec<f32> = (0..1 << 22)
        .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
        .collect();
    let mut out = x.clone();
    let isa = Isa::detect();
    println!("GFLOP/s on {}: x W^T, dy W, dy^T x", isa.name());
    let shapes = [
        (2048, 96, 96),
        (2048, 256, 96),
        (2048, 96, 256),
        (2048, 260, 96),
        (450, 256, 256),
        (450, 704, 256),
        (450, 256, 704),
        (4096, 256, 256),
        (1024, 768, 2048),
        (64, 127, 32),
    ];
    for (n, rows, cols) in shapes {
        print!("x ({n}, {cols}), W ({rows}, {cols}):");
        for precision in [Precision::F32, Precision::Bf16] {
            if !precision.is_available(isa) {
                continue;
            }
            let w = View::strided(&x, rows, cols, cols);
            let (x, dy) = (
                View::strided(&x, n, cols, cols),
                View::strided(&x, n, rows, rows),
            );
            let mut rate = |m, width, a: View<f32>, b: View<f32>| {
                let seconds = time(|| {
                    let c = ViewMut::strided(&mut out, m, width, width);
                    matmul(
                        isa,
                        precision,
                        Accumulate::Overwrite,
                        c,
                        1.0,
                        black_box(a),
                        black_box(b),
                    );
                });
                2e-9 * (n * rows * cols) as f64 / seconds
            };
            let rates = [
                rate(n, rows, x, w.t()),
                rate(n, cols, dy, w),
                rate(rows, cols, dy.t(), x),
            ];
            print!("   {precision:?}");
            rates.iter().for_each(|r| print!(" {r:4.0}"));
        }
        println!();
    }
}
