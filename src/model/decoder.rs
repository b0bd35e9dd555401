//! The local decoder: byte states and the latest closed patch in, logits of the next byte out.
//!
//! Paper section 3.3, spec section 7.

use std::ops::Range;

use smallvec::SmallVec;

use crate::cache::{KvCache, RowStore};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, CrossAttentionConfig};
use crate::error::Result;
use crate::model::block::{Rows, Stack};
use crate::model::cross::CrossAttention;
use crate::model::split::split;
use crate::model::weights::{matrix, vector};
use crate::ops::{self, Compute, Matrix, ScratchVec};
use crate::vocab::VOCAB_SIZE;

/// The local decoder's weights.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) patch_projection: Matrix,   // (k * dim, global dim)
    pub(crate) cross: Vec<CrossAttention>, // before every layer, or before the first only
    /// The self-attention layers.
    pub layers: Stack,
    pub(crate) norm: Vec<f32>, // (dim)
    pub(crate) output: Matrix, // (vocab, dim)
    pub(crate) cross_config: CrossAttentionConfig,
    pub(crate) k: usize,
}

/// Keys and values of the latest patches in one cross-attention: k rows of kv_dim per patch.
#[derive(Debug, Clone)]
pub struct PatchKv {
    k: RowStore,
    v: RowStore,
}

impl Decoder {
    /// Takes the tensors `decoder.*`.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let dim = config.decoder.dim;
        let load_cross = |l| {
            let prefix = format!("decoder.cross.{l}");
            CrossAttention::load(checkpoint, &prefix, dim, &config.decoder_cross)
        };
        Ok(Decoder {
            patch_projection: matrix(
                checkpoint,
                "decoder.patch_projection",
                config.patch_dim(),
                config.global.dim,
            )?,
            cross: (0..config.n_decoder_cross())
                .map(load_cross)
                .collect::<Result<_>>()?,
            layers: Stack::load(checkpoint, "decoder", &config.decoder)?,
            norm: vector(checkpoint, "decoder.norm", dim)?,
            output: matrix(checkpoint, "decoder.output", VOCAB_SIZE, dim)?,
            cross_config: config.decoder_cross.clone(),
            k: config.cross_attn_k,
        })
    }

    /// Empty stores for the patches' keys and values, one per cross-attention.
    pub fn new_patch_kv(&self) -> Vec<PatchKv> {
        let store = |c: &CrossAttention| PatchKv {
            k: RowStore::new(self.k * c.kv_dim()),
            v: RowStore::new(self.k * c.kv_dim()),
        };
        self.cross.iter().map(store).collect()
    }

    /// Adds the keys and values of patches whose global outputs are `global_out` (n, global dim) to
    /// the stores of their sequences. Each sequence comes with its number of patches, in order.
    pub fn add_patches(
        &self,
        compute: &Compute,
        global_out: &[f32],
        sequences: &mut [(usize, &mut [PatchKv])],
    ) {
        let n = global_out.len() / self.patch_projection.cols();
        let mut u = compute.buffer(n * self.patch_projection.rows()); // (n * k, dim)
        ops::linear(compute, &self.patch_projection, global_out, &mut u);
        for (i, cross) in self.cross.iter().enumerate() {
            let (k, v) = cross.keys_values(compute, &u);
            let width = self.k * cross.kv_dim();
            let n_values: SmallVec<[usize; 1]> = sequences.iter().map(|(n, _)| n * width).collect();
            let pieces = |rows| split(rows, n_values.iter().copied());
            for ((_, stores), (k, v)) in sequences.iter_mut().zip(pieces(&k).zip(pieces(&v))) {
                stores[i].k.push(k);
                stores[i].v.push(v);
            }
        }
    }

    /// The patches whose keys and values a byte after `n_closed` closed patches needs.
    pub fn patches_seen(&self, n_closed: usize) -> Range<usize> {
        self.cross_config.patches_seen(n_closed)
    }

    /// Drops the patches that bytes after `n_closed` closed patches do not see.
    pub fn evict_patches(&self, n_closed: usize, patch_kv: &mut [PatchKv]) {
        for store in patch_kv {
            store.k.evict(self.patches_seen(n_closed).start);
            store.v.evict(self.patches_seen(n_closed).start);
        }
    }

    /// Drops the patches from `n_closed` on. Returns `false` if what a byte after `n_closed` closed
    /// patches needs has been evicted.
    pub fn rewind_patches(&self, n_closed: usize, patch_kv: &mut [PatchKv]) -> bool {
        let first = self.patches_seen(n_closed).start;
        for store in patch_kv.iter_mut() {
            store.k.rewind(n_closed);
            store.v.rewind(n_closed);
        }
        (patch_kv.iter()).all(|store| store.k.first() <= first && store.k.end() == n_closed)
    }

    /// Drops all patches; the next one added is number `patch`.
    pub fn clear_patches(&self, patch: usize, patch_kv: &mut [PatchKv]) {
        for store in patch_kv {
            store.k.clear(patch);
            store.v.clear(patch);
        }
    }

    /// Runs the layers on the byte states y (n, dim) in place. There is a cache and a set of stores
    /// per run; `n_closed[i]` patches are closed once byte i has been read, and it sees the last of
    /// them.
    pub fn forward(
        &self,
        compute: &Compute,
        rows: &Rows<'_>,
        n_closed: &[usize],
        patch_kv: &[&[PatchKv]],
        caches: &mut [&mut KvCache],
        y: &mut [f32],
    ) {
        let mut visible = compute.empty(n_closed.len());
        visible.extend(n_closed.iter().map(|&n| {
            let patches = self.patches_seen(n);
            patches.start * self.k..patches.end * self.k
        }));
        for layer in 0..self.layers.n_layers() {
            if let Some(cross) = self.cross.get(layer) {
                let runs: SmallVec<[_; 1]> = (rows.by_run(&visible).zip(patch_kv))
                    .map(|(visible, stores)| {
                        let PatchKv { k, v } = &stores[layer];
                        let patches = k.first()..k.end();
                        let first = patches.start * self.k;
                        let tile = cross.tile(first, k.rows(patches.clone()), v.rows(patches));
                        (tile, visible)
                    })
                    .collect();
                cross.forward(compute, &runs, y);
            }
            self.layers.forward_layer(compute, layer, rows, caches, y);
        }
    }

    /// Logits (n, vocab) of the ids after rows y (n, dim).
    pub fn logits<'c>(&self, compute: &'c Compute, y: &[f32]) -> ScratchVec<'c, f32> {
        let mut h = compute.buffer(y.len());
        ops::rms_norm(compute, y, &self.norm, self.layers.config.norm_eps, &mut h);
        let mut logits = compute.buffer(y.len() / self.norm.len() * VOCAB_SIZE);
        ops::linear(compute, &self.output, &h, &mut logits);
        logits
    }
}
