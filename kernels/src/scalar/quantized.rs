//! Quantised matrices times 8-bit activations in one or two terms, by their definition.

use crate::block::activations::{ActivationBlock, BLOCK, QuantizedActivations, Terms};
use crate::block::{Format, TILE_ROWS};
use crate::view::ViewMut;

/// See [`crate::linear_quantized`].
pub(crate) fn linear_quantized<F: Format>(
    w: &[u8],
    x: &QuantizedActivations,
    out: &mut ViewMut<'_, f32>,
) {
    let tile_bytes = x.cols.div_ceil(F::COLS) * F::CHUNK;
    let per_row = x.blocks_per_row();
    let rows_of_x = (x.blocks).chunks_exact(x.terms.count() * per_row);
    for (i, terms) in rows_of_x.take(x.n).enumerate() {
        for (r, out) in out.row(i).iter_mut().enumerate() {
            let chunks = w[r / TILE_ROWS * tile_bytes..][..tile_bytes].chunks_exact(F::CHUNK);
            let dot = |x: &[ActivationBlock]| {
                let chunks = chunks.clone().zip(x.chunks_exact(F::COLS / BLOCK));
                chunks.fold(0.0, |acc, (chunk, x)| F::dot(chunk, r % TILE_ROWS, x, acc))
            };
            *out = match x.terms {
                Terms::One => dot(terms),
                Terms::Two => dot(&terms[..per_row]) + dot(&terms[per_row..]),
            };
        }
    }
}

/// See [`crate::quantize_activations`].
pub(crate) fn quantize_row(terms: Terms, x: &[f32], blocks: &mut [ActivationBlock]) {
    blocks.fill(ActivationBlock::default());
    let (first, second) = blocks.split_at_mut(blocks.len() / terms.count());
    for (i, x) in x.chunks(BLOCK).enumerate() {
        let mut padded = [0.0; BLOCK];
        padded[..x.len()].copy_from_slice(x);
        let error;
        (first[i], error) = ActivationBlock::quantize(&padded);
        if terms == Terms::Two {
            (second[i], _) = ActivationBlock::quantize(&error);
        }
    }
}
