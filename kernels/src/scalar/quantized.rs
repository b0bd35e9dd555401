//! Quantised matrices times 8-bit activations, by their definition.

use crate::ViewMut;
use crate::block::activations::{ActivationBlock, BLOCK, QuantizedActivations};
use crate::block::{Format, TILE_ROWS};

/// See [`crate::linear_quantized`].
pub(crate) fn linear_quantized<F: Format>(
    w: &[u8],
    x: &QuantizedActivations,
    out: &mut ViewMut<'_, f32>,
) {
    let tile_bytes = x.cols.div_ceil(F::COLS) * F::CHUNK;
    let rows_of_x = x.blocks.chunks_exact(x.blocks_per_row().max(1)).take(x.n);
    for (i, x) in rows_of_x.enumerate() {
        for (r, out) in out.row(i).iter_mut().enumerate() {
            let chunks = w[r / TILE_ROWS * tile_bytes..][..tile_bytes].chunks_exact(F::CHUNK);
            let chunks = chunks.zip(x.chunks_exact(F::COLS / BLOCK));
            *out = chunks.fold(0.0, |acc, (chunk, x)| F::dot(chunk, r % TILE_ROWS, x, acc));
        }
    }
}

/// See [`crate::quantize_activations`].
pub(crate) fn quantize_row(x: &[f32], blocks: &mut [ActivationBlock]) {
    blocks.fill(ActivationBlock::default());
    for (x, block) in x.chunks(BLOCK).zip(blocks) {
        let mut padded = [0.0; BLOCK];
        padded[..x.len()].copy_from_slice(x);
        *block = ActivationBlock::quantize(&padded);
    }
}
