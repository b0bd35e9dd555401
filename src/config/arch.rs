//! The rules that follow from a configuration: which layers have cross-attention, which patches and
//! bytes it sees, and where a segment starts.
//!
//! Inference on the CPU and on a GPU, training, and the table of tensor names all ask here, so that none
//! of them has a copy of its own. Spec sections 5 to 7.

use std::ops::Range;

use super::{Config, CrossAttentionConfig, TransformerConfig};

/// A cross-attention of the local encoder whose result is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderCross {
    /// The layer whose byte states are its keys and values.
    pub layer: usize,
    /// The number in the names of the checkpoint's tensors, `encoder.cross.{index}`.
    pub index: usize,
}

impl Config {
    /// Number of cross-attentions that a checkpoint has for the local encoder.
    pub(crate) fn n_encoder_cross(&self) -> usize {
        n_cross(&self.encoder_cross, &self.encoder)
    }

    /// The local encoder's cross-attentions whose result is read, first to last. Where each layer pools
    /// again (`pool_each_layer`), only the last one's result is.
    pub(crate) fn encoder_cross_layers(&self) -> Vec<EncoderCross> {
        let last = self.encoder.n_layers - 1;
        let cross = &self.encoder_cross;
        match (cross.all_layers, cross.pool_each_layer) {
            (false, _) => vec![EncoderCross {
                layer: last,
                index: 0,
            }],
            (true, true) => vec![EncoderCross {
                layer: last,
                index: last,
            }],
            (true, false) => (0..=last)
                .map(|layer| EncoderCross {
                    layer,
                    index: layer,
                })
                .collect(),
        }
    }

    /// The layer of the local encoder whose byte states are pooled to patch vectors.
    pub(crate) fn pool_layer(&self) -> usize {
        self.encoder_cross_layers()[0].layer
    }

    /// Number of cross-attentions of the local decoder; number `l` runs before layer `l`.
    pub(crate) fn n_decoder_cross(&self) -> usize {
        n_cross(&self.decoder_cross, &self.decoder)
    }
}

fn n_cross(cross: &CrossAttentionConfig, stack: &TransformerConfig) -> usize {
    match cross.all_layers {
        true => stack.n_layers,
        false => 1,
    }
}

impl CrossAttentionConfig {
    /// How many patches are seen, the own one included.
    pub(crate) fn n_patches_seen(&self) -> usize {
        self.window.unwrap_or(1)
    }

    /// Encoder: the bytes that the queries of patch `patch` see. `starts` holds the start of each patch
    /// and, behind them, the end of the last.
    pub(crate) fn bytes_seen(&self, starts: &[usize], patch: usize) -> Range<usize> {
        let first = (patch + 1).saturating_sub(self.n_patches_seen());
        starts[first]..starts[patch + 1]
    }

    /// Decoder: the patches that a byte sees when `n_closed` patches are closed, its own id read.
    pub(crate) fn patches_seen(&self, n_closed: usize) -> Range<usize> {
        n_closed.saturating_sub(self.n_patches_seen())..n_closed
    }
}

/// The first position that the byte or patch at `position` may see: one past the last of `ends`
/// (ascending) before it.
pub(crate) fn segment_start(ends: &[usize], position: usize) -> usize {
    match ends.partition_point(|&end| end < position) {
        0 => 0,
        n => ends[n - 1] + 1,
    }
}

/// The patches that hold the EOS ids at positions `eos` (ascending), each once. `starts` holds the start
/// of each patch.
pub(crate) fn eos_patches(eos: &[usize], starts: &[usize]) -> Vec<usize> {
    let patch_of = |&p: &usize| starts.partition_point(|&start| start <= p) - 1;
    let mut patches: Vec<usize> = eos.iter().map(patch_of).collect();
    patches.dedup();
    patches
}

/// Number of patches closed once the ids before position `end` have been read: a patch is closed when the
/// start of the next one is known.
pub(crate) fn n_closed(starts: &[usize], end: usize) -> usize {
    starts.partition_point(|&start| start <= end) - 1
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use crate::train::presets::preset;

    #[test]
    fn cross_attention_is_where_the_configuration_puts_it() {
        let mut config = preset("toy").unwrap();
        config.encoder.n_layers = 3;
        config.decoder.n_layers = 4;
        let pairs = |c: &Config| -> Vec<(usize, usize)> {
            let list = c.encoder_cross_layers().into_iter();
            list.map(|cross| (cross.layer, cross.index)).collect()
        };
        for (all, again, layers, n_tensors) in [
            (false, false, vec![(2, 0)], 1),
            (false, true, vec![(2, 0)], 1),
            (true, true, vec![(2, 2)], 3),
            (true, false, vec![(0, 0), (1, 1), (2, 2)], 3),
        ] {
            config.encoder_cross.all_layers = all;
            config.encoder_cross.pool_each_layer = again;
            assert_eq!(pairs(&config), layers, "{all} {again}");
            assert_eq!(config.pool_layer(), layers[0].0, "{all} {again}");
            assert_eq!(config.n_encoder_cross(), n_tensors, "{all} {again}");
        }
        for (all, n) in [(false, 1), (true, 4)] {
            config.decoder_cross.all_layers = all;
            assert_eq!(config.n_decoder_cross(), n);
        }
    }

    #[test]
    fn windows_of_patches_end_at_the_text() {
        let mut cross = preset("toy").unwrap().encoder_cross;
        let starts = [0, 1, 4, 6];
        for (window, bytes, patches) in [
            (None, [0..1, 1..4, 4..6], [0..0, 0..1, 1..2]),
            (Some(2), [0..1, 0..4, 1..6], [0..0, 0..1, 0..2]),
            (Some(9), [0..1, 0..4, 0..6], [0..0, 0..1, 0..2]),
        ] {
            cross.window = window;
            for p in 0..3 {
                assert_eq!(cross.bytes_seen(&starts, p), bytes[p], "{window:?}");
                assert_eq!(cross.patches_seen(p), patches[p], "{window:?}");
            }
        }
    }

    #[test]
    fn segments_and_patches_of_eos() {
        let starts = [0, 1, 4, 6];
        let eos = [3, 4, 5];
        let first: Vec<usize> = (0..8).map(|p| segment_start(&eos, p)).collect();
        assert_eq!(first, [0, 0, 0, 0, 4, 5, 6, 6]);
        assert_eq!(segment_start(&[], 7), 0);
        assert_eq!(eos_patches(&eos, &starts), [1, 2]);
        let closed: Vec<usize> = (0..8).map(|end| n_closed(&starts, end)).collect();
        assert_eq!(closed, [0, 1, 1, 1, 2, 2, 3, 3]);
    }
}
