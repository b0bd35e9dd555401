//! Writes a checkpoint of any layout as one native file, which runs alone, also from memory:
//! cargo run --release --example to_native -- MODEL OUT.safetensors

use std::path::Path;

use blt::checkpoint::{Checkpoint, OpenOptions, write_native};

fn main() -> blt::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, out] = &args[..] else {
        eprintln!("usage: to_native MODEL OUT.safetensors");
        std::process::exit(2);
    };
    let checkpoint = Checkpoint::open(Path::new(model), &OpenOptions::default())?;
    let tensors = checkpoint
        .tensors()
        .map(|(name, t)| (name.to_string(), t.clone()));
    write_native(Path::new(out), checkpoint.config(), tensors)
}
