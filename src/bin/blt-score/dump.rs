//! The numbers of every position as a safetensors file, for comparisons with other programs.

use std::path::Path;

use blt::Result;
use blt::checkpoint::{SafetensorsWriter, TensorSpec};
use blt::vocab::VOCAB_SIZE;

use super::scorer::Scorer;
use blt::cli::output;

/// Writes what the scorer's only window holds:
///
/// - `input_ids`, I32 (n): the ids read, BOS included
/// - `entropies`, F32 (n): entropy in nats of the id after each; NaN without an entropy model
/// - `patch_lengths`, I32: the id that comes next is counted, so they sum to n + 1
/// - `logits`, F32 (n, vocab): of the id after each
pub fn write(path: &Path, scorer: &Scorer) -> Result<()> {
    let session = scorer.session();
    let n = session.len();
    let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX).to_le_bytes();
    let ids: Vec<u8> = session
        .ids()
        .iter()
        .flat_map(|&id| int(id.into()))
        .collect();
    let lengths: Vec<u8> = session.patch_lengths().into_iter().flat_map(int).collect();
    let floats =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let tensors = [
        ("input_ids", "I32", vec![n], ids),
        ("entropies", "F32", vec![n], floats(session.entropies())),
        ("patch_lengths", "I32", vec![lengths.len() / 4], lengths),
        (
            "logits",
            "F32",
            vec![n, VOCAB_SIZE],
            floats(scorer.logits()),
        ),
    ];
    let specs = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| TensorSpec {
            name: name.to_string(),
            dtype: dtype.to_string(),
            shape: shape.clone(),
            n_bytes: bytes.len() as u64,
        });
    let mut writer = SafetensorsWriter::begin(|| output::create(path), &[], specs.collect())?;
    for (name, _, _, bytes) in &tensors {
        writer.write(name, bytes)?;
    }
    writer.finish()
}
