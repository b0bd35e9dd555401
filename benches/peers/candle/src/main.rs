//! Times candle's quantised products of matrices for `benches/peers/run.py`.
//!
//! Reads lines `TYPE ROWS COLS N` (such as `q8_0 2048 5632 128`) and answers each with the median
//! seconds of y (N, ROWS) = x (N, COLS) W^T, W in that type. As many matrices take turns as no cache holds.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::Instant;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Error, Module, Result, Tensor};

/// Bytes of weights that take turns when one row is multiplied.
const ROTATION: usize = 300 << 20;
/// Seconds spent on a line, at least.
const BUDGET: f64 = 0.8;

fn main() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        println!("{}", time(&line?)?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn time(line: &str) -> Result<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |i: usize| words.get(i).and_then(|w| w.parse::<usize>().ok());
    let (Some(&name), Some(rows), Some(cols), Some(n)) = (words.first(), number(1), number(2), number(3)) else {
        return Err(Error::Msg(format!("expected TYPE ROWS COLS N, found {line:?}")));
    };
    let dtype = match name {
        "q8_0" => GgmlDType::Q8_0,
        "q4_0" => GgmlDType::Q4_0,
        "q4_k" => GgmlDType::Q4K,
        _ => return Err(Error::Msg(format!("expected q8_0, q4_0 or q4_k, found {name}"))),
    };
    let device = Device::Cpu;
    let weights = QTensor::quantize(&Tensor::randn(0f32, 0.02, (rows, cols), &device)?, dtype)?;
    let bytes = weights.data()?.into_owned();
    let count = if n > 8 { 2 } else { ROTATION.div_ceil(bytes.len()) };
    let matrices = (0..count)
        .map(|_| QMatMul::from_qtensor(qtensor_from_ggml(dtype, &bytes, vec![rows, cols], &device)?))
        .collect::<Result<Vec<_>>>()?;
    let x = Tensor::randn(0f32, 1.0, (n, cols), &device)?;
    // The first product with a matrix rearranges it.
    for matrix in &matrices {
        black_box(matrix.forward(&x)?);
    }
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed().as_secs_f64() < BUDGET || times.len() < 5 {
        let start = Instant::now();
        for matrix in &matrices {
            black_box(matrix.forward(&x)?);
        }
        times.push(start.elapsed().as_secs_f64() / count as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
