//! The local encoder: bytes with their hashed n-grams in, byte states and patch vectors out.
//!
//! Paper section 3.2, spec sections 5 and 6.

use std::ops::Range;

use crate::cache::{KvCache, RowStore};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::Result;
use crate::model::block::{Rows, Stack};
use crate::model::cross::CrossAttention;
use crate::model::hash::NgramHasher;
use crate::model::weights::{matrix, table};
use crate::ops::{self, Compute, Matrix};
use crate::vocab::{Id, VOCAB_SIZE};

/// The local encoder's weights.
#[derive(Debug)]
pub struct Encoder {
    tok_embeddings: Matrix, // (vocab, dim)
    hasher: NgramHasher,
    hash_embeddings: Vec<Matrix>, // each (hash vocab, dim)
    /// The self-attention layers.
    pub layers: Stack,
    pub(super) patch_projection: Matrix, // (k * dim, dim)
    /// The cross-attentions that count, each with the layer whose output it reads.
    pub(super) cross: Vec<(usize, CrossAttention)>,
    /// The layer whose output is pooled.
    pub(super) pool_layer: usize,
    /// Patches a patch's queries see, the own one included.
    pub(super) cross_window: usize,
    pub(super) k: usize,
}

impl Encoder {
    /// Takes the tensors `encoder.*`.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let dim = config.encoder.dim;
        let last = config.encoder.n_layers - 1;
        let all = config.encoder_cross.all_layers;
        let repool = config.encoder_cross.pool_each_layer;
        // (layer read, index of the cross-attention): where each layer pools anew, only the last
        // one's result is ever read.
        let used: Vec<(usize, usize)> = match (all, repool) {
            (false, _) => vec![(last, 0)],
            (true, true) => vec![(last, last)],
            (true, false) => (0..=last).map(|l| (l, l)).collect(),
        };
        let load_cross = |(layer, index): (usize, usize)| {
            let at = format!("encoder.cross.{index}");
            let cross = CrossAttention::load(checkpoint, &at, dim, &config.encoder_cross)?;
            Ok((layer, cross))
        };
        let load_table = |number| {
            let name = format!("encoder.hash_embeddings.{number}");
            let table = table(checkpoint, &name, config.hash.vocab, dim)?;
            // Six rows of a table are read per byte, far apart: reading around them is waste.
            table.tensor().advise_random();
            Ok(table)
        };
        Ok(Encoder {
            tok_embeddings: table(checkpoint, "encoder.tok_embeddings", VOCAB_SIZE, dim)?,
            hasher: NgramHasher::new(&config.hash)?,
            hash_embeddings: (0..config.hash.n_tables())
                .map(load_table)
                .collect::<Result<_>>()?,
            layers: Stack::load(checkpoint, "encoder", &config.encoder)?,
            patch_projection: matrix(
                checkpoint,
                "encoder.patch_projection",
                config.patch_dim(),
                dim,
            )?,
            pool_layer: used[0].0,
            cross: used.into_iter().map(load_cross).collect::<Result<_>>()?,
            cross_window: config.encoder_cross.window.unwrap_or(1),
            k: config.cross_attn_k,
        })
    }

    /// Empty stores for the byte states that [`Encoder::patches`] reads: one per cross-attention.
    pub fn new_states(&self) -> Vec<RowStore> {
        let dim = self.layers.config.dim;
        self.cross.iter().map(|_| RowStore::new(dim)).collect()
    }

    /// Patches before the own one whose bytes a patch sees.
    pub fn patches_seen_back(&self) -> usize {
        self.cross_window - 1
    }

    /// Embeddings (n, dim) of the ids from position `first` on; `ids` is the text from its start.
    pub fn embed(&self, compute: &Compute, ids: &[Id], first: usize) -> Vec<f32> {
        let dim = self.layers.config.dim;
        let n_tables = self.hash_embeddings.len();
        let n = ids.len() - first;
        let mut rows = vec![0; n * n_tables];
        if n_tables > 0 {
            for (i, rows) in rows.chunks_exact_mut(n_tables).enumerate() {
                self.hasher.rows(ids, first + i, rows);
            }
        }
        for (t, table) in self.hash_embeddings.iter().enumerate() {
            let of_table: Vec<usize> = rows.iter().skip(t).step_by(n_tables).copied().collect();
            table.tensor().prefetch_rows(&of_table);
        }
        let mut x = vec![0.0; n * dim];
        for (i, x) in x.chunks_exact_mut(dim).enumerate() {
            ops::add_table_row(compute, &self.tok_embeddings, ids[first + i].into(), x);
            for (t, table) in self.hash_embeddings.iter().enumerate() {
                ops::add_table_row(compute, table, rows[i * n_tables + t], x);
            }
        }
        x
    }

    /// Runs the layers on x (n, dim) in place: the byte states. What the cross-attentions read is
    /// added to `states`.
    pub fn forward(
        &self,
        compute: &Compute,
        rows: &Rows,
        cache: &mut KvCache,
        states: &mut [RowStore],
        x: &mut [f32],
    ) {
        for layer in 0..self.layers.n_layers() {
            self.layers.forward_layer(compute, layer, rows, cache, x);
            for (store, (of_layer, _)) in states.iter_mut().zip(&self.cross) {
                if *of_layer == layer {
                    store.push(x);
                }
            }
        }
    }

    /// Vectors (n, k * dim) of the closed patches `patches`; patch p holds the bytes
    /// `starts[p]..starts[p + 1]`, whose states are in `states`.
    pub fn patches(
        &self,
        compute: &Compute,
        states: &[RowStore],
        starts: &[usize],
        patches: Range<usize>,
    ) -> Vec<f32> {
        let dim = self.layers.config.dim;
        let pool_store = (self.cross.iter())
            .position(|(layer, _)| *layer == self.pool_layer)
            .map(|i| &states[i])
            .expect("the pooled layer has a cross-attention");
        let mut pooled = vec![0.0; patches.len() * dim]; // (n, dim)
        for (p, out) in patches.clone().zip(pooled.chunks_exact_mut(dim)) {
            ops::max_rows(compute, pool_store.rows(starts[p]..starts[p + 1]), out);
        }
        let mut x = vec![0.0; patches.len() * self.k * dim]; // (n * k, dim)
        ops::linear(compute, &self.patch_projection, &pooled, &mut x);

        let sees = |p: usize| starts[(p + 1).saturating_sub(self.cross_window)]..starts[p + 1];
        let visible: Vec<Range<usize>> = (patches.clone())
            .flat_map(|p| std::iter::repeat_n(sees(p), self.k))
            .collect();
        let bytes = sees(patches.start).start..starts[patches.end];
        for ((_, cross), store) in self.cross.iter().zip(states) {
            let (k, v) = cross.keys_values(compute, store.rows(bytes.clone()));
            cross.forward(compute, (bytes.start, &k, &v), &visible, &mut x);
        }
        x
    }
}
