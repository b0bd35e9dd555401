//! The local encoder: bytes with their hashed n-grams in, byte states and patch vectors out.
//!
//! Paper section 3.2, spec sections 5 and 6.

use std::ops::Range;

use smallvec::SmallVec;

use crate::cache::{KvCache, RowStore};
use crate::checkpoint::Checkpoint;
use crate::config::arch::EncoderCross;
use crate::config::{Config, CrossAttentionConfig};
use crate::error::Result;
use crate::model::block::{Rows, Stack};
use crate::model::cross::CrossAttention;
use crate::model::hash::NgramHasher;
use crate::model::split::split;
use crate::model::weights::{matrix, table};
use crate::ops::{self, Compute, Matrix, ScratchVec};
use crate::vocab::{Id, VOCAB_SIZE};

/// The local encoder's weights.
#[derive(Debug)]
pub struct Encoder {
    pub(crate) tok_embeddings: Matrix, // (vocab, dim)
    pub(crate) hasher: NgramHasher,
    pub(crate) hash_embeddings: Vec<Matrix>, // each (hash vocab, dim)
    /// Whether the tables are too large to stay in memory: rows are then prefetched, all at once.
    stay_on_disk: bool,
    /// The self-attention layers.
    pub layers: Stack,
    pub(crate) patch_projection: Matrix, // (k * dim, dim)
    /// The cross-attentions whose results are read, each with the layer whose output it reads.
    pub(crate) cross: Vec<(usize, CrossAttention)>,
    /// The layer whose output is pooled.
    pub(crate) pool_layer: usize,
    pub(crate) cross_config: CrossAttentionConfig,
    pub(crate) k: usize,
}

/// Hash tables of at most this many bytes are not prefetched: the system soon has all of them in memory.
const IN_MEMORY: usize = 64 << 20;

/// Patches of one sequence that have just been closed.
#[derive(Debug)]
pub struct Closed<'a> {
    /// The bytes' states, one store per cross-attention.
    pub states: &'a [RowStore],
    /// Where the sequence's patches start: patch p has the bytes `starts[p]..starts[p + 1]`.
    pub starts: &'a [usize],
    /// Not empty.
    pub patches: Range<usize>,
}

impl Encoder {
    /// Takes the tensors `encoder.*`.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let dim = config.encoder.dim;
        let load_cross = |EncoderCross { layer, index }: EncoderCross| {
            let prefix = format!("encoder.cross.{index}");
            let cross = CrossAttention::load(checkpoint, &prefix, dim, &config.encoder_cross)?;
            Ok((layer, cross))
        };
        let load_table = |number| {
            let name = format!("encoder.hash_embeddings.{number}");
            table(checkpoint, &name, config.hash.vocab, dim)
        };
        let hash_embeddings: Vec<Matrix> = (0..config.hash.n_tables())
            .map(load_table)
            .collect::<Result<_>>()?;
        let n_bytes = hash_embeddings.iter().map(|t| t.tensor().bytes().len());
        let stay_on_disk = n_bytes.sum::<usize>() > IN_MEMORY;
        if stay_on_disk {
            // Each byte reads one row of each table, far from the previous one: read-ahead would be waste.
            hash_embeddings
                .iter()
                .for_each(|t| t.tensor().advise_random());
        }
        Ok(Encoder {
            tok_embeddings: table(checkpoint, "encoder.tok_embeddings", VOCAB_SIZE, dim)?,
            hasher: NgramHasher::new(&config.hash)?,
            hash_embeddings,
            stay_on_disk,
            layers: Stack::load(checkpoint, "encoder", &config.encoder)?,
            patch_projection: matrix(
                checkpoint,
                "encoder.patch_projection",
                config.patch_dim(),
                dim,
            )?,
            pool_layer: config.pool_layer(),
            cross: (config.encoder_cross_layers().into_iter())
                .map(load_cross)
                .collect::<Result<_>>()?,
            cross_config: config.encoder_cross.clone(),
            k: config.cross_attn_k,
        })
    }

    /// Empty stores for the byte states that [`Encoder::patches`] reads: one per cross-attention.
    pub fn new_states(&self) -> Vec<RowStore> {
        let dim = self.layers.config.dim;
        self.cross.iter().map(|_| RowStore::new(dim)).collect()
    }

    /// The states that come out of the last layer, which the decoder reads, among `states`.
    pub fn output<'s>(&self, states: &'s [RowStore]) -> &'s RowStore {
        let last = self.layers.n_layers() - 1;
        let index = self.cross.iter().position(|(layer, _)| *layer == last);
        &states[index.expect("a cross-attention reads the last layer")]
    }

    /// Earlier patches whose bytes a patch sees.
    pub fn patches_seen_back(&self) -> usize {
        self.cross_config.n_patches_seen() - 1
    }

    /// Embeddings (n, dim) of the ids from position `first` on; `ids` is the text from its start.
    pub fn embed<'c>(&self, compute: &'c Compute, ids: &[Id], first: usize) -> ScratchVec<'c, f32> {
        let dim = self.layers.config.dim;
        let n_tables = self.hash_embeddings.len();
        let n = ids.len() - first;
        let mut rows = compute.empty(n * n_tables);
        rows.extend(std::iter::repeat_n(0, n * n_tables));
        if n_tables > 0 {
            for (i, rows) in rows.chunks_exact_mut(n_tables).enumerate() {
                self.hasher.rows(ids, first + i, rows);
            }
        }
        if self.stay_on_disk {
            // The first access to a page takes a few microseconds even if the system has it, so all
            // threads touch the rows, after all of them are prefetched.
            let tensor = |prefix: usize| self.hash_embeddings[prefix % n_tables].tensor();
            compute.each(&mut rows, 1 << 15, |prefix, row| {
                tensor(prefix).prefetch_row(*row)
            });
            compute.each(&mut rows, 1 << 16, |prefix, row| {
                tensor(prefix).touch_row(*row)
            });
        }
        let mut x = compute.buffer(n * dim);
        x.fill(0.0);
        compute.rows(&mut x, dim, 4 * (1 + n_tables), |run, x| {
            for (i, x) in x.chunks_exact_mut(dim).enumerate() {
                let i = run + i;
                ops::add_table_row(compute, &self.tok_embeddings, ids[first + i].into(), x);
                for (t, table) in self.hash_embeddings.iter().enumerate() {
                    ops::add_table_row(compute, table, rows[i * n_tables + t], x);
                }
            }
        });
        x
    }

    /// Runs the layers on x (n, dim) in place: the byte states. What the cross-attentions read is
    /// added to `states`; there is a cache and a set of states per run.
    pub fn forward(
        &self,
        compute: &Compute,
        rows: &Rows<'_>,
        caches: &mut [&mut KvCache],
        states: &mut [&mut [RowStore]],
        x: &mut [f32],
    ) {
        for layer in 0..self.layers.n_layers() {
            self.layers.forward_layer(compute, layer, rows, caches, x);
            for (i, _) in (self.cross.iter().enumerate()).filter(|(_, c)| c.0 == layer) {
                for (x, states) in rows.by_run(x).zip(states.iter_mut()) {
                    states[i].push(x);
                }
            }
        }
    }

    /// Vectors (n, k * dim) of closed patches, one sequence's after the other.
    pub fn patches<'c>(&self, compute: &'c Compute, closed: &[Closed<'_>]) -> ScratchVec<'c, f32> {
        let dim = self.layers.config.dim;
        let pooled_store = (self.cross.iter())
            .position(|(layer, _)| *layer == self.pool_layer)
            .expect("the pooled layer has a cross-attention");
        let n: usize = closed.iter().map(|c| c.patches.len()).sum();
        let mut pooled = compute.buffer(n * dim); // (n, dim)
        let all = closed
            .iter()
            .flat_map(|c| c.patches.clone().map(move |p| (c, p)));
        for ((c, p), out) in all.clone().zip(pooled.chunks_exact_mut(dim)) {
            let bytes = c.starts[p]..c.starts[p + 1];
            ops::max_rows(compute, c.states[pooled_store].rows(bytes), out);
        }
        let mut x = compute.buffer(n * self.k * dim); // (n * k, dim)
        ops::linear(compute, &self.patch_projection, &pooled, &mut x);

        let mut visible = compute.empty(n * self.k);
        visible.extend(all.flat_map(|(c, p)| std::iter::repeat_n(self.sees(c, p), self.k)));
        let bytes = |c: &Closed<'_>| self.sees(c, c.patches.start).start..c.starts[c.patches.end];
        let n_bytes: usize = closed.iter().map(|c| bytes(c).len()).sum();
        for (i, (_, cross)) in self.cross.iter().enumerate() {
            let mut rows = compute.empty(n_bytes * dim); // (n_bytes, dim)
            for c in closed {
                rows.extend_from_slice(c.states[i].rows(bytes(c)));
            }
            let (k, v) = cross.keys_values(compute, &rows);
            let n_values = || closed.iter().map(|c| bytes(c).len() * cross.kv_dim());
            let keys_values = split(&k, n_values()).zip(split(&v, n_values()));
            let visible = split(&visible, closed.iter().map(|c| c.patches.len() * self.k));
            let runs: SmallVec<[_; 1]> = (closed.iter().zip(keys_values).zip(visible))
                .map(|((c, (k, v)), visible)| (cross.tile(bytes(c).start, k, v), visible))
                .collect();
            cross.forward(compute, &runs, &mut x);
        }
        x
    }

    /// The bytes that patch `p` sees.
    fn sees(&self, c: &Closed<'_>, p: usize) -> Range<usize> {
        self.cross_config.bytes_seen(c.starts, p)
    }
}
