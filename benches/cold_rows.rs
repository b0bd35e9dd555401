//! What a hash row costs that no cache holds: `cargo bench --bench cold_rows -- MODEL` (Linux), with a
//! model whose tables are far larger than what is read of them (`examples/synthetic.rs`, 1b).
//!
//! Before every run the file's pages are dropped from the cache, by `dd`. A run reads the rows of a
//! prompt of 512 bytes, one of each table a byte, as the encoder does: all of them asked for, then
//! read. Beside it, without asking, and the same rows again from the cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use blt::checkpoint::{Checkpoint, OpenOptions, Role};
use blt::random::SplitMix64;
use blt::tensor::Tensor;

const RUNS: usize = 5;
const BYTES: usize = 512;

fn main() {
    let model = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let Some(model) = model.map(PathBuf::from) else {
        return println!(
            "cold_rows: left out; name a model: cargo bench --bench cold_rows -- MODEL"
        );
    };
    println!("microseconds a row: asked for in one go, not asked for, again from the cache");
    for run in 0..RUNS as u64 {
        drop_cached_pages(&model);
        let tables = open(&model);
        let asked = time(&tables, 3 * run, true);
        let plain = time(&tables, 3 * run + 1, false);
        let warm = time(&tables, 3 * run, false);
        println!("{asked:8.1} {plain:8.1} {warm:8.2}");
    }
}

/// The tables, opened again: pages that are mapped are not dropped.
fn open(model: &Path) -> Vec<Tensor> {
    let checkpoint = Checkpoint::open(model, &OpenOptions::default()).unwrap();
    let tables = checkpoint.model_tensors();
    let tables = tables.filter(|(of, _)| of.role == Role::HashTable);
    let tables: Vec<Tensor> = tables.map(|(_, tensor)| tensor.clone()).collect();
    assert!(!tables.is_empty(), "a model with hash tables");
    tables.iter().for_each(Tensor::advise_random);
    tables
}

fn drop_cached_pages(model: &Path) {
    let file = format!("if={}", model.display());
    let status = Command::new("dd")
        .args([&file, "iflag=nocache", "count=0", "status=none"])
        .status();
    assert!(status.is_ok_and(|s| s.success()), "dd drops the pages");
}

/// Reads [`BYTES`] rows of each table; microseconds a row.
fn time(tables: &[Tensor], seed: u64, ask: bool) -> f64 {
    let mut random = SplitMix64::mixed(seed);
    let rows: Vec<Vec<usize>> = (tables.iter())
        .map(|table| (0..BYTES).map(|_| random.below(table.rows())).collect())
        .collect();
    let start = Instant::now();
    if ask {
        for (table, rows) in tables.iter().zip(&rows) {
            rows.iter().for_each(|&row| table.prefetch_row(row));
        }
    }
    let mut sum = 0u64;
    for (table, rows) in tables.iter().zip(&rows) {
        for &row in rows {
            let row = &table.bytes()[row * table.row_bytes()..][..table.row_bytes()];
            sum += row.iter().map(|&b| u64::from(b)).sum::<u64>();
        }
    }
    std::hint::black_box(sum);
    start.elapsed().as_secs_f64() * 1e6 / (BYTES * tables.len()) as f64
}
