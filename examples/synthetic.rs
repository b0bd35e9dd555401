//! Writes a native checkpoint of random weights at a published shape, for measurements.
//!
//! cargo run --release --example synthetic -- OUT.safetensors [1b|7b|small] [bf16|q8_0|q4_0|...]
//!
//! Streams: the 9 GB of the 1b shape need a few megabytes of memory. `blt-bench --synthetic 1b` makes
//! this file itself.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(out) = args.next() else {
        eprintln!("usage: synthetic OUT.safetensors [1b|7b|small] [bf16|q8_0|q4_0|...]");
        return ExitCode::from(2);
    };
    let shape = args.next().unwrap_or("1b".into());
    let dtype = args.next().unwrap_or("bf16".into());
    let mut said = 0;
    let told = |written, total| {
        if written >= said + (1 << 30) || written == total {
            said = written;
            let gigabytes = |n: u64| n as f64 / 1e9;
            eprintln!("{:.1} of {:.1} GB", gigabytes(written), gigabytes(total));
        }
    };
    match blt::cli::synthetic::write(Path::new(&out), &shape, &dtype, told) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synthetic: {error}");
            ExitCode::FAILURE
        }
    }
}
