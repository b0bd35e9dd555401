//! Reads every weight of a checkpoint, to find bytes that differ from their checksums and numbers that are not finite.

use blt::Result;
use blt::checkpoint::Checkpoint;
use blt::error::Error;
use blt::tensor::Tensor;

use blt::cli::args::Failure;
use blt::cli::interrupt;
use blt::cli::progress::Progress;

/// How many weights there are, if all are finite.
///
/// # Errors
/// The first that is not, by its tensor's name and place.
pub fn all_finite(checkpoint: &Checkpoint, quiet: bool) -> std::result::Result<u64, Failure> {
    let total = checkpoint
        .tensors()
        .map(|(_, t)| t.bytes().len() as u64)
        .sum();
    let mut progress = Progress::new("checking", Some(total), quiet);
    let mut n_bytes = 0;
    let mut n_weights = 0;
    for (name, tensor) in checkpoint.tensors() {
        for (first, piece) in tensor.row_pieces(Tensor::PIECE) {
            check_piece(checkpoint, name, first, &piece)?;
            n_bytes += piece.bytes().len() as u64;
            progress.set(n_bytes);
            if interrupt::requested() {
                progress.finish();
                return Err(Failure::Failed(format!(
                    "interrupted: the first {n_bytes} of {total} bytes of weights are finite"
                )));
            }
        }
        n_weights += tensor.n_elements() as u64;
    }
    progress.finish();
    Ok(n_weights)
}

fn check_piece(
    checkpoint: &Checkpoint,
    name: &str,
    first_row: usize,
    piece: &Tensor,
) -> Result<()> {
    let values = piece.to_f32_vec();
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (stored, file) = checkpoint.source(name).expect("a tensor of the checkpoint");
            Err(Error::tensor(
                stored,
                format!(
                    "expected finite numbers, found {} in row {}, column {} in {}",
                    values[at],
                    first_row + at / piece.cols(),
                    at % piece.cols(),
                    file.display()
                ),
            ))
        }
    }
}
