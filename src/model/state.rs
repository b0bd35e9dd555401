//! All that one sequence carries from byte to byte: caches, boundaries, the open patch.

use super::Model;
use super::backend::BackendCaches;
use super::decoder::PatchKv;
use super::draft::{Draft, DraftCounts};
use super::patcher::Patcher;
use crate::cache::{KvCache, KvType, RowStore};
use crate::vocab::Id;

/// The state of one sequence. Cloning is a fork: cache pages are shared until one side writes.
#[derive(Debug, Clone)]
pub struct State {
    /// The ids read so far.
    pub(crate) ids: Vec<Id>,
    /// Entropy in nats of the id after each of `ids`; NaN where it was not computed.
    pub(crate) entropies: Vec<f32>,
    /// Decided patch starts, ascending, `0` first. The last is where the open patch starts; it is
    /// `ids.len()` when the next byte is known to start a patch.
    pub(crate) starts: Vec<usize>,
    /// Positions of the EOS ids.
    pub(super) eos: Vec<usize>,
    pub(super) patcher: Patcher,
    pub(crate) entropy_cache: Option<KvCache>,
    pub(super) encoder_cache: KvCache,
    pub(super) decoder_cache: KvCache,
    pub(super) global_cache: KvCache,
    /// What the encoder's cross-attentions read, from the oldest byte that can still be in an open
    /// patch after a rewind: rows of the local width.
    pub(super) byte_states: Vec<RowStore>,
    /// Global outputs of all closed patches (from which `patch_kv` is rebuilt on a rewind).
    pub(super) global_out: RowStore,
    /// What the decoder's cross-attentions read.
    pub(super) patch_kv: Vec<PatchKv>,
    /// Length at which the entropy model last began anew, and how often it does.
    pub(super) entropy_reset: Option<usize>,
    /// Caches in the memory of a device, instead of those above, which then stay empty.
    pub(crate) device: Option<Box<dyn BackendCaches>>,
    /// What is known beyond `ids` without a GPU.
    pub(super) draft: Draft,
}

/// Bytes that can be taken back, or are read at once, without recomputing what lies before.
pub(super) const SLACK: usize = 256;

impl State {
    /// Whether the caches are on a GPU.
    pub(crate) fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    /// The state before the first byte. The entropy model begins anew every `entropy_reset` bytes
    /// (Meta's patcher: 8192; `None`: never), and does not run at all unless `entropies`.
    pub fn new(
        model: &Model,
        patcher: Patcher,
        entropies: bool,
        entropy_reset: Option<usize>,
        kv: KvType,
    ) -> Self {
        let w = model.blt();
        let entropy = w.entropy.as_ref().filter(|_| entropies);
        State {
            ids: Vec::new(),
            entropies: Vec::new(),
            starts: vec![0],
            eos: Vec::new(),
            patcher,
            entropy_cache: entropy.map(|e| e.layers.new_cache(kv, SLACK)),
            encoder_cache: w.encoder.layers.new_cache(kv, SLACK),
            decoder_cache: w.decoder.layers.new_cache(kv, SLACK),
            global_cache: w.global.layers.new_cache(kv, SLACK),
            byte_states: w.encoder.new_states(),
            global_out: RowStore::new(w.config.global.dim),
            patch_kv: w.decoder.new_patch_kv(),
            entropy_reset,
            device: model.backend().new_caches(kv),
            draft: Draft::default(),
        }
    }

    /// Ids read so far.
    pub fn ids(&self) -> &[Id] {
        &self.ids
    }

    /// Entropies in nats, one per id: of the id after it. NaN if the entropy model does not run.
    pub fn entropies(&self) -> &[f32] {
        &self.entropies
    }

    /// Where patches start, the open one included; ends with `ids().len()` when the next byte is
    /// known to start a patch.
    pub fn patch_starts(&self) -> &[usize] {
        &self.starts
    }

    /// How drafting went.
    pub fn draft_counts(&self) -> DraftCounts {
        self.draft.counts
    }

    /// Number of closed patches.
    pub fn n_closed(&self) -> usize {
        self.starts.len() - 1
    }

    /// Bytes of memory held by the caches.
    pub fn n_bytes(&self) -> usize {
        let caches = [&self.encoder_cache, &self.decoder_cache, &self.global_cache];
        let rows = self.byte_states.iter().chain([&self.global_out]);
        (caches
            .into_iter()
            .chain(&self.entropy_cache)
            .map(KvCache::n_bytes))
        .sum::<usize>()
            + rows.map(RowStore::n_bytes).sum::<usize>()
            + self.device.as_ref().map_or(0, |caches| caches.n_bytes())
    }

    /// Goes back to the first `len` ids.
    ///
    /// Returns `false`, leaving the state as it is, if too much has been overwritten for that; the
    /// caller then starts over and reads the `len` ids again.
    pub(crate) fn truncate(&mut self, model: &Model, len: usize) -> bool {
        let w = model.blt();
        let n_starts = self.starts.partition_point(|&s| s <= len);
        let n_closed = n_starts - 1;
        let oldest_patch = n_closed.saturating_sub(w.encoder.patches_seen_back());
        if let Some(caches) = &self.device {
            let held = caches.can_rewind(len, n_closed);
            if held {
                self.truncate_text(len, n_starts);
            }
            return held;
        }
        // The next byte sees `window - 1` positions before its own.
        let holds = |cache: &KvCache, window: Option<usize>| {
            window.is_none_or(|window| cache.oldest() <= (len + 1).saturating_sub(window))
        };
        let held = (self.entropy_cache.iter()).all(|cache| {
            holds(
                cache,
                w.entropy.as_ref().and_then(|e| e.layers.config.window),
            )
        }) && holds(&self.encoder_cache, w.config.encoder.window)
            && holds(&self.decoder_cache, w.config.decoder.window)
            && (self.byte_states.iter()).all(|s| s.first() <= self.starts[oldest_patch]);
        if !held {
            return false;
        }
        self.truncate_text(len, n_starts);
        for cache in self.entropy_cache.iter_mut() {
            cache.rewind(len);
        }
        self.encoder_cache.rewind(len);
        self.decoder_cache.rewind(len);
        self.draft.clear();
        self.forget_beyond(model);
        true
    }

    /// Goes back to `len` ids and `n_starts` patch starts in all but the caches.
    fn truncate_text(&mut self, len: usize, n_starts: usize) {
        self.ids.truncate(len);
        self.entropies.truncate(len);
        self.starts.truncate(n_starts);
        self.eos.retain(|&p| p < len);
        self.patcher
            .rewind(len, &self.ids, &self.entropies, self.starts[n_starts - 1]);
    }

    /// Forgets what was made of bytes and patches beyond the text, where rows are counted.
    pub(super) fn forget_beyond(&mut self, model: &Model) {
        self.forget_from(model, self.ids.len(), self.n_closed());
    }

    /// Forgets what was made of the bytes from `n_ids` and the patches from `n_closed` on.
    pub(super) fn forget_from(&mut self, model: &Model, n_ids: usize, n_closed: usize) {
        self.byte_states.iter_mut().for_each(|s| s.rewind(n_ids));
        self.global_cache.rewind(n_closed);
        self.global_out.rewind(n_closed);
        if !model
            .blt()
            .decoder
            .rewind_patches(n_closed, &mut self.patch_kv)
        {
            self.read_patches_again(model);
        }
    }

    /// Makes what the decoder reads of the last patches anew from the global outputs.
    pub(super) fn read_patches_again(&mut self, model: &Model) {
        let decoder = &model.blt().decoder;
        let seen = decoder.patches_seen(self.n_closed());
        decoder.clear_patches(seen.start, &mut self.patch_kv);
        let outputs = self.global_out.rows(seen.clone());
        let sequence = (self.n_closed() - seen.start, &mut self.patch_kv[..]);
        decoder.add_patches(&model.compute, outputs, &mut [sequence]);
    }

    /// Drops what neither the next bytes nor a rewind within [`SLACK`] can need.
    pub(super) fn drop_unneeded(&mut self, model: &Model) {
        let w = model.blt();
        let back_to = self.ids.len().saturating_sub(SLACK);
        let patch = self.starts.partition_point(|&s| s <= back_to) - 1;
        let patch = patch.saturating_sub(w.encoder.patches_seen_back());
        for store in &mut self.byte_states {
            store.evict(self.starts[patch]);
        }
        w.decoder.evict_patches(self.n_closed(), &mut self.patch_kv);
    }
}
